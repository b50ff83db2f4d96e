"""Many runs from one file: arms that differ in a few config fields, the same seeds for each.

A sweep file is JSON: "preset", "variant" and "profile" (as in `make_config`), "seeds", "common" overrides, and "arms",
a name -> overrides map. A run that has finished is known by its card and is not run again, so a killed sweep goes on.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from . import files
from .config import Config, make_config
from .distill import prepare
from .errors import MissingFile, UserError
from .results.runs import Run, card_config, kept_cards, local_cards

FIELDS = {"preset", "variant", "profile", "seeds", "common", "arms"}


@dataclass(frozen=True)
class Sweep:
    """Arms of a sweep file: name -> one config a seed."""

    name: str
    arms: dict[str, list[Config]]


def read_sweep(path: Path) -> Sweep:
    """Read a sweep file; every config is checked before anything runs.

    Raises:
        MissingFile, UserError: no such file, not JSON, an unknown field, or a config that makes no sense.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingFile(f"no sweep file {path}: the kit's own are in data/sweeps.")
    try:
        spec = dict(json.loads(path.read_text(encoding="utf-8")))
        unknown = set(spec) - FIELDS
    except (ValueError, TypeError) as error:
        raise UserError(f"{path} is not JSON that describes a sweep ({error}).") from error
    if unknown or not {"arms", "seeds"} <= set(spec):
        others = sorted(FIELDS - {"arms", "seeds"})
        raise UserError(f"{path} must have 'arms' and 'seeds' and may have {others}, not {sorted(unknown)}.")
    base = {name: spec[name] for name in ("preset", "variant", "profile") if name in spec}
    try:
        arms = {
            arm: [
                make_config(**{**base, **spec.get("common", {}), **overrides, "seed": seed}) for seed in spec["seeds"]
            ]
            for arm, overrides in spec["arms"].items()
        }
    except (TypeError, AttributeError) as error:
        raise UserError(
            f"{path}: 'seeds' is a list of numbers, 'arms' maps names to config fields ({error})."
        ) from error
    return Sweep(path.stem, arms)


def arm_cards(sweep: Sweep, cards: list[dict]) -> dict[str, list[dict]]:
    """The finished cards of each arm, in the order of its seeds; a seed that was not run is left out."""
    finished = {card_config(card): card for card in cards if card["status"] == "finished"}
    return {arm: [finished[c] for c in configs if c in finished] for arm, configs in sweep.arms.items()}


def keep_sweep(sweep: Sweep) -> Path:
    """Write the finished cards of a sweep, one a line, to data/runs/<name>.jsonl."""
    kept = [card for cards in arm_cards(sweep, kept_cards() + local_cards()).values() for card in cards]
    path = files.data_dir() / "runs" / f"{sweep.name}.jsonl"
    files.write_text(path, "".join(json.dumps(card) + "\n" for card in kept))
    return path


def run_sweep(sweep: Sweep, jobs: int = 1) -> list[str]:
    """Run what has no finished card yet, `jobs` at a time, one thread each. Returns the sentences of failed runs."""
    from joblib import Parallel, delayed

    done = {card_config(card) for card in kept_cards() + local_cards() if card["status"] == "finished"}
    left = [(arm, config) for arm, configs in sweep.arms.items() for config in configs if config not in done]
    # Seed by seed, so that a sweep that is cut short has every arm with fewer seeds.
    left.sort(key=lambda pair: pair[1].seed)
    results = Parallel(n_jobs=jobs, verbose=0)(delayed(_run)(arm, config) for arm, config in left)
    return [sentence for sentence in results if sentence]


def _run(arm: str, config: Config) -> str | None:
    import torch

    torch.set_num_threads(1)
    try:
        run = Run(prepare(config))
        for _ in run:
            pass
    except UserError as error:
        return f"{arm}, seed {config.seed}: {error}"
    print(f"{arm}, seed {config.seed}: {100 * run.card['accuracy_last']:.1f} %", flush=True)
    return None
