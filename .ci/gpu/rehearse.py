"""The short GPU run rehearsed on a CPU with tiny counts, from exactly what would be carried: a copy of the files that
git knows or would take, and the folder of pack.py.

    python .ci/gpu/rehearse.py --carried carried --python PYTHON

PYTHON should be of an environment like the machine's: torch and what it brings, the kit's dependencies but for the
carried wheels. It fails where a stage was not done, where what a killed row leaves cannot be read, where the row does
not go on from there, and where its projected time was not said.
"""

import argparse
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MINUTES = 30  # for each command: enough for a slow CPU
TINY = {
    "patience": 60,
    "nets": ["wrn10_1", "wrn10_half"],
    "set": {
        "noise_dim": 16,
        "generator_width": 8,
        "generator_batch": 20,
        "generator_steps": 3,
        "warmup_epochs": 1,
        "warmup_rounds": 2,
        "student_steps": 4,
        "student_batch": 16,
    },
    "scored": 48,  # few enough for every epoch to be scored
    "batch": 4,
    "repeats": 1,
    "training": {"standin": 1, "teacher": 1},
    "epochs": {"full": [1, 12], "lab": [1, 12]},
    "seeds": [1],
    "arms": {"z": {"latent": "noise"}},
    "sweeps": ["rehearsed"],
    "jobs": 2,
    "copy_every": 1,
    "save_after": 0,
}

SWEEP = {
    "preset": "cifar10-resnet20-wrn16_1",
    "seeds": [0, 1],
    "compute": {"precision": "fp32", "channels_last": True},
    "common": {"student": "resnet8", "generator_width": 8, "noise_dim": 16, "generator_batch": 20, "generator_steps": 2}
    | {"warmup_epochs": 1, "warmup_rounds": 1, "epochs": 1, "rounds": 1, "student_steps": 2, "student_batch": 16},
    "arms": {"text": {}, "Z": {"latent": "noise"}},
}


def copy_tree(target: Path, carried: Path) -> float:
    """What would be carried, put into a folder; its MiB."""
    words = ["git", "-C", ROOT, "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(words, capture_output=True, text=True, check=True).stdout.split("\0")
    for name in names:
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, target / name)
    shutil.copytree(carried, target / "carried", dirs_exist_ok=True)
    return sum(path.stat().st_size for path in target.rglob("*") if path.is_file()) / 2**20


def command(python: Path, tree: Path, stages: str, out: Path, work: Path) -> subprocess.Popen:
    """Start run.py as it would be started there, apart from this process's group, so that it can be killed whole."""
    words = [python, ".ci/gpu/run.py", "--minutes", MINUTES, "--stages", stages, "--counts", json.dumps(TINY)]
    words += ["--carried", "carried", "--out", out, "--work", work]
    bare = {name: os.environ[name] for name in ("PATH", "HOME", "OMP_NUM_THREADS") if name in os.environ}
    pipe = {"stdout": subprocess.PIPE, "text": True, "start_new_session": True}
    return subprocess.Popen(list(map(str, words)), cwd=tree, env=bare | {"PYTHONNOUSERSITE": "1"}, **pipe)


def finish(child: subprocess.Popen, out: Path) -> str:
    """Wait for a command; every stage must have been done. What it printed."""
    said = child.communicate()[0]
    print(said, end="", flush=True)
    lines = json.loads((out / "report.json").read_text())["stages"]
    undone = [f"{line['stage']}: {line['result']}" for line in lines if not line["result"].startswith("done")]
    if undone or child.returncode:
        sys.exit(f"not done: {'; '.join(undone)}\n{(out / 'log.txt').read_text()[-3000:]}")
    return said


def kill_row(child: subprocess.Popen, out: Path) -> int:
    """Kill a row without warning once a student is out; the epochs on its card."""
    while child.poll() is None and not (out / "student.safetensors").is_file():
        time.sleep(0.05)
    os.killpg(child.pid, signal.SIGKILL)
    print(child.communicate()[0], end="", flush=True)
    last = json.loads((out / "report.json").read_text())["stages"][-1]
    card = json.loads((out / "card.json").read_text())
    if (last["stage"], last["result"], card["status"]) != ("row", "running", "running"):
        sys.exit(f"the row ended before it could be killed: {last}")
    return len(card["curve"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--carried", type=Path, required=True, help="what pack.py made; one sheet a split is enough")
    parser.add_argument("--python", type=Path, default=Path(sys.executable), help="like the machine's")
    parser.add_argument("--limit-mib", type=float, help="refuse what is larger than the machine takes")
    given = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="nayer-gpu-") as scratch:
        tree, out = Path(scratch) / "kit", Path(scratch)
        size = copy_tree(tree, given.carried)
        print(f"{size:.2f} MiB are carried, the files of the kit among them", flush=True)
        if given.limit_mib and size > given.limit_mib:
            sys.exit(f"that is more than {given.limit_mib:g} MiB: pack fewer sheets")

        def start(stages: str, name: str, work: str = "work") -> subprocess.Popen:
            return command(given.python, tree, stages, out / name, out / work)

        finish(start("smoke", "first"), out / "first")
        seen = kill_row(start("row", "killed"), out / "killed")
        said = finish(start("row", "second"), out / "second")
        if "projected" not in said:
            sys.exit("the row's projected time was not said")
        card = json.loads((out / "second" / "card.json").read_text())
        if card["status"] != "finished" or not card.get("resumed") or card["resumed"][0] < seen:
            sys.exit(f"the row did not go on from epoch {seen}: {card['status']}, resumed at {card.get('resumed')}")
        teacher = tree / "carried" / "teacher.safetensors"
        shutil.copyfile(out / "second" / teacher.name, teacher)
        with open(tree / "carried" / "SHA256SUMS", "a") as sums:
            sums.write(f"{hashlib.sha256(teacher.read_bytes()).hexdigest()}  {teacher.name}\n")
        finish(start("seeds", "third", work="another day"), out / "third")
        (tree / "data" / "sweeps" / "rehearsed.json").write_text(json.dumps(SWEEP))
        finish(start("sweeps", "fourth", work="another day"), out / "fourth")
        cards = (out / "fourth" / "rehearsed.jsonl").read_text().splitlines()
        if [json.loads(card)["status"] for card in cards] != ["finished"] * 4:
            sys.exit(f"{len(cards)} cards of the sweep came back, not 4")
    print(f"rehearsed in {time.monotonic() - began:.0f} s: every stage was done, and a killed row went on")


if __name__ == "__main__":
    main()
