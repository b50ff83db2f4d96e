"""Many runs from one file: arms that differ in a few config fields, the same seeds for each.

A sweep file is JSON: "preset", "variant" and "profile" (as in `make_config`), "seeds", "common" overrides, and "arms",
a name -> overrides map. "more_seeds" gives further seeds to the arms that it names. Arms of unequal budgets are refused
unless the file says "unequal_budgets": true. A file that chooses a setting says "split": "validation": its runs are
scored on the validation split, in place of the test split.

"compute": {"precision": "bf16", "channels_last": true} is how all runs are computed (fields of `Compute`); each run
chooses the fields that are not named. "primary" names, before anything runs, at most six contrasts that the sweep is to
decide, each an arm and its reference. Every card keeps the hash of this registration, for its own sweep and for each
other sweep of data/sweeps that its run belongs to.
"""

import dataclasses
import json
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from .. import files
from ..compute import Compute, compute_of
from ..config import Config, fields_of, make_config
from ..errors import MissingFile, UserError, unknown
from ..methods import KINDS
from .card import card_config, kept_cards, local_cards, split_of, unread_lines
from .forecast import budget

FIELDS = {"preset", "variant", "profile", "seeds", "more_seeds", "common", "arms"}
FIELDS |= {"unequal_budgets", "split", "primary", "compute"}
PRIMARY = 6  # contrasts at most: each further one makes all of them harder to decide


@dataclass(frozen=True)
class Sweep:
    """A sweep file.

    Attributes:
        name: of the file.
        arms: name -> one config a seed.
        split: on which its runs are scored.
        computed: the options of `distill` that say how its runs are computed.
        primary: the contrasts that it is there to decide, (arm, reference).
        registration: sha256 of all in the file that decides what they are; None where it names none.
    """

    name: str
    arms: dict[str, list[Config]]
    split: str = "test"
    computed: tuple[str, ...] = ()
    primary: tuple[tuple[str, str], ...] = ()
    registration: str | None = None

    def runs(self, share: str | None = None) -> list[tuple[str, Config]]:
        """Every run once, as (arm, config), seed by seed: a sweep that is cut short has every arm with fewer seeds.

        Args:
            share: "i/n", the i-th of n disjoint shares, counted from 1; their sizes differ by one run at most.

        Raises:
            UserError: a share that does not exist.
        """
        arm_of = {}
        for arm, configs in self.arms.items():
            for config in configs:
                arm_of.setdefault(config, arm)
        runs = [(arm_of[config], config) for config in sorted(arm_of, key=lambda config: config.seed)]
        if share is None:
            return runs
        numbers = re.fullmatch(r"(\d+)/(\d+)", share)
        i, n = map(int, numbers.groups()) if numbers else (0, 0)
        if not 1 <= i <= n:
            raise UserError(f"a share of a sweep is i/n with i from 1 to n, as 2/3, not {share!r}.")
        return runs[i - 1 :: n]


def read_sweep(path: Path) -> Sweep:
    """Read a sweep file; every config is checked before anything runs. Of "common" an arm gets what its method reads.

    Raises:
        MissingFile, UserError: no such file, not JSON, an unknown field, a config that makes no sense, or arms of
            unequal budgets.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingFile(f"no sweep file {path}: the kit's own are in data/sweeps.")
    try:
        spec = dict(json.loads(path.read_text(encoding="utf-8")))
        unknown_fields = set(spec) - FIELDS
    except (ValueError, TypeError) as error:
        raise UserError(f"{path} is not JSON that describes a sweep ({error}).") from error
    if unknown_fields or not {"arms", "seeds"} <= set(spec):
        others = sorted(FIELDS - {"arms", "seeds"})
        raise UserError(f"{path} must have 'arms' and 'seeds' and may have {others}, not {sorted(unknown_fields)}.")
    base = {name: spec[name] for name in ("preset", "variant", "profile") if name in spec}
    try:
        more = dict(spec.get("more_seeds", {}))
        arms = {
            arm: [
                make_config(**{**base, **_read_by(overrides, spec), **overrides, "seed": seed})
                for seed in [*spec["seeds"], *more.pop(arm, ())]
            ]
            for arm, overrides in spec["arms"].items()
        }
    except (TypeError, AttributeError) as error:
        raise UserError(
            f"{path}: 'seeds' is a list of numbers, 'arms' maps names to config fields ({error})."
        ) from error
    if more:
        raise unknown("arm with more seeds", next(iter(more)), arms)
    primary = _primary(path, spec.get("primary", []), arms)
    registration = files.text_hash(json.dumps(spec, sort_keys=True)) if primary else None
    computed = _computed(path, spec.get("compute", {}))
    sweep = Sweep(path.stem, arms, spec.get("split", "test"), computed, primary, registration)
    if sweep.split not in ("test", "validation"):
        raise unknown("split of a sweep", sweep.split, ("test", "validation"))
    budgets = {arm: budget(config) for arm, config in sweep.runs()}
    for arm, spent in budgets.items():
        (first, of_first), *_ = budgets.items()
        unequal = [what for what in spent if spent[what] != of_first[what]]
        if unequal and spec.get("unequal_budgets") is not True:
            raise UserError(
                f"{path}: arm {arm!r} has {spent[unequal[0]]} {unequal[0]}, arm {first!r} {of_first[unequal[0]]}: give "
                'all arms one budget, or say "unequal_budgets": true in the file.'
            )
    return sweep


def _primary(path: Path, pairs: object, arms: dict[str, list[Config]]) -> tuple[tuple[str, str], ...]:
    """The primary contrasts of a file, if each is a pair of two of its arms."""
    whole = isinstance(pairs, list) and all(isinstance(pair, list) and len(pair) == 2 for pair in pairs)
    if not whole or len(pairs) > PRIMARY or any(a == b or not {a, b} <= set(arms) for a, b in pairs):
        raise UserError(
            f"{path}: 'primary' is a list of at most {PRIMARY} pairs [arm, reference] of two of its arms, not {pairs}."
        )
    return tuple(map(tuple, pairs))


def _read_by(overrides: dict, spec: dict) -> dict:
    """The common overrides of a sweep for one of its arms: without fields that only other arms read."""
    common = spec.get("common", {})

    def read(arm: dict) -> set[str]:
        method = {"method": "nayer", **common, **arm}["method"]
        return fields_of(method) if method in KINDS else set()  # `make_config` refuses the unknown

    elsewhere = set().union(*map(read, spec["arms"].values())) - read(overrides)
    return {name: value for name, value in common.items() if name not in elsewhere}


def _computed(path: Path, compute: dict) -> tuple[str, ...]:
    """The options of `distill` for what a file says of how its runs are computed."""
    known = [field.name for field in dataclasses.fields(Compute)]
    sound = isinstance(compute, dict) and compute.keys() <= set(known)
    if not sound or not isinstance(compute.get("channels_last", True), bool):
        raise UserError(f"{path}: 'compute' may have {known}, channels_last true or false, not {compute!r}.")
    named = {name: value for name, value in dataclasses.asdict(Compute(**compute)).items() if name in compute}
    last = named.pop("channels_last", None)
    layout = () if last is None else ("--channels-last",) if last else ("--no-channels-last",)
    return (*layout, *(word for name, value in named.items() for word in (f"--{name}", value)))


def registrations(sweep: Sweep) -> dict[Config, str]:
    """The registrations of each run of a sweep, a blank between them: its own, and those of the kit's other sweeps.

    A run belongs to another sweep if that one has its config, its split, and the same way to compute it.
    """
    kit = [read_sweep(path) for path in sorted((files.data_dir() / "sweeps").glob("*.json"))]
    found: dict[Config, list[str]] = {config: [] for _, config in sweep.runs()}
    for one in (sweep, *(other for other in kit if other.name != sweep.name)):
        if one.registration and (one.split, one.computed) == (sweep.split, sweep.computed):
            for config in found.keys() & {config for _, config in one.runs()}:
                found[config].append(one.registration)
    return {config: " ".join(named) for config, named in found.items()}


def arm_cards(sweep: Sweep, cards: list[dict]) -> dict[str, list[dict]]:
    """The finished cards of each arm, in the order of its seeds; a seed that was not run is left out.

    Of a run that was made twice the first card counts; of one that another sweep made too, on another machine, the
    card whose machine made most of this one's.
    """
    finished: dict[Config, dict[tuple, dict]] = {config: {} for _, config in sweep.runs()}
    for card in cards:
        if card["status"] == "finished" and split_of(card) == sweep.split and (config := card_config(card)) in finished:
            finished[config].setdefault((card["device"], compute_of(card)), card)
    most = Counter(machine for found in finished.values() for machine in found)
    own = {config: found[max(found, key=most.get)] for config, found in finished.items() if found}
    return {arm: [own[config] for config in configs if config in own] for arm, configs in sweep.arms.items()}


def keep_sweep(sweep: Sweep) -> Path:
    """Write the finished cards of a sweep, one a line, to data/runs/<name>.jsonl; lines there that are none stay.

    Raises:
        UserError: that file cannot be read, or not be written.
    """
    kept = [card for cards in arm_cards(sweep, kept_cards(sweep.split) + local_cards()).values() for card in cards]
    path = files.data_dir() / "runs" / f"{sweep.name}.jsonl"
    files.write_text(path, "".join(line + "\n" for line in [*map(json.dumps, kept), *unread_lines(path)]))
    return path
