"""`make demo`: the main job from the command line. Executes notebook 04 and prints the results."""

import csv
import os
import sys
import threading
import time
from pathlib import Path

from nayer_lib.config import make_config
from nayer_lib.errors import UserError
from nayer_lib.files import data_dir, replacing, runs_dir
from nayer_lib.runs.card import read_card

from .display import profile

NOTEBOOK = "04_data_free_distillation.ipynb"
POLL = 0.5  # seconds between two looks at the run's curve


def demo() -> None:
    """Execute notebook 04 with papermill, showing the student's progress, then print the run card's numbers.

    Raises:
        UserError: papermill is not installed, or a cell failed (the sentence has its number and error).
    """
    # A kernel of another environment, registered for the user, must not shadow this one's.
    os.environ["JUPYTER_PREFER_ENV_PATH"] = "1"
    try:
        import nbclient
        import nbconvert
        import papermill
    except ImportError as error:
        raise UserError("the demo needs papermill and nbconvert: `pip install -e '.[notebooks]'`.") from error

    folder = runs_dir() / time.strftime("demo-%Y%m%d-%H%M%S")
    executed, run = folder / NOTEBOOK, folder / "run"
    with replacing(executed):  # raises now, not after the run, if the folder cannot be written
        pass
    print(f"running notebook 04 in profile {profile()!r}; a student learns from a teacher without its data")
    done = threading.Event()
    watcher = threading.Thread(target=_progress, args=(run / "curve.csv", done), daemon=True)
    watcher.start()
    try:
        papermill.execute_notebook(
            data_dir().parent / "notebooks" / NOTEBOOK,
            executed,
            parameters={"run_folder": str(run)},
            cwd=executed.parent,
            progress_bar=False,
        )
    except papermill.PapermillExecutionError as error:
        raise UserError(
            f"cell {error.exec_count} failed with {error.ename}: {error.evalue} (see {executed})."
        ) from error
    except nbclient.exceptions.DeadKernelError as error:
        raise UserError(
            f"the notebook's process died, most often for want of memory (see {executed}): close other programs and "
            "run it again."
        ) from error
    finally:
        done.set()
        watcher.join()
    page = executed.with_suffix(".html")
    with replacing(page) as temporary:
        temporary.write_text(nbconvert.HTMLExporter().from_filename(executed)[0], encoding="utf-8")

    card = read_card(run)
    teacher, student = 100 * card["teacher"]["accuracy"], 100 * card["accuracy_last"]
    print(f"teacher {teacher:.1f} %")
    print(f"student {student:.1f} % (last epoch)")
    print(f"gap {teacher - student:.1f} points")
    print(f"images made {card['images']}; real training images read 0")
    print(f"synthesis {card['seconds']['synthesis']:.0f} s, distillation {card['seconds']['student']:.0f} s")
    print(f"notebook {executed}\npage     {page}\nrun      {run} (card, curve, student.safetensors, images.png)")


def _progress(curve: Path, done: threading.Event) -> None:
    """A bar that follows curve.csv, one line an epoch, while the notebook runs in its own process."""
    from tqdm import tqdm

    with tqdm(total=make_config(profile=profile()).total_epochs, unit="epoch", desc="notebook starts") as bar:
        while not done.wait(POLL):
            rows = [*csv.DictReader(curve.read_text(encoding="utf-8").splitlines())] if curve.is_file() else []
            if len(rows) > bar.n:
                accuracy = rows[-1]["accuracy"]
                bar.set_description(f"student {100 * float(accuracy):.1f} %" if accuracy else "warm-up: images only")
                bar.update(len(rows) - bar.n)


if __name__ == "__main__":
    try:
        demo()
    except UserError as error:
        sys.exit(f"demo: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
