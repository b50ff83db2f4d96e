"""`make one-line`: Algorithm 1 and five versions of it with one line changed, three seeds each, for notebook 04.

Writes the student's accuracy by epoch to data/one_line.json, arm by arm, with the line that was changed. What is there
already, made on this machine, is not run again. No table and no word rests on these runs: they are the curves behind a
learner's own.
"""

import json

import torch

from nayer_lib import files
from nayer_lib.algorithm1 import algorithm1
from nayer_lib.config import make_config
from nayer_lib.distill import prepare
from nayer_lib.runs.card import device_name
from nayer_notebooks.exercises import one_line

KEPT = files.data_dir() / "one_line.json"
SEEDS, BUDGET = (0, 1, 2), {"epochs": 8, "warmup_rounds": 2}
EDITS = {
    "no redraw": ("Z.redraw(rng, norm=config.redraw_norm)", "pass"),
    "random vectors for the text": ("P = table", "P = torch.randn(table.shape, generator=rng, device=device)"),
    "a plus before L_KL": ("- a_adv * L_KL", "+ a_adv * L_KL"),
    "no L_BN": (" + a_bn * L_BN", ""),
    "a memory of the last round": ("config.memory_size", "B"),
}


def accuracies(function, seed: int) -> list[float]:
    """Of the student after each distillation epoch, in percent."""
    setup = prepare(make_config("digits", seed=seed, **BUDGET), device="cpu")
    method, found = setup.method, []
    for loss, _ in function(setup.config, method.teacher, method.student, method.table, method.facts):
        if loss is not None:
            found.append(round(100 * setup.evaluate(method.student).accuracy, 2))
    return found


def main() -> None:
    torch.set_num_threads(1)
    about = {"budget": BUDGET, "device": device_name(torch.device("cpu")), "torch": torch.__version__}
    about["teacher"] = round(100 * prepare(make_config("digits"), device="cpu").evaluate.teacher.accuracy, 2)
    kept = json.loads(KEPT.read_text()) if KEPT.is_file() else {}
    if {name: kept.get(name) for name in about} != about:  # runs of two machines are never one figure
        kept = {**about, "arms": {}}
    for seed in SEEDS:
        for name, edit in {"unchanged": None, **EDITS}.items():
            arm = kept["arms"].setdefault(name, {"line": edit, "accuracy": {}})
            if str(seed) not in arm["accuracy"]:
                changed = one_line(algorithm1, *edit) if edit else algorithm1
                arm["accuracy"][str(seed)] = accuracies(changed, seed)
                print(f"{name}, seed {seed}: {arm['accuracy'][str(seed)][-1]:.1f} %", flush=True)
                write(kept)
    write(kept)


def write(kept: dict) -> None:
    files.write_text(KEPT, json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main()
