"""The paper's numbers, from `data/paper/`: one file a table, one row a printed cell, and the list of misprints.

The numbers are those of the ICLR-2024 submission text, not of the CVPR version. No number stands twice: code, tests
and notebooks ask here. A cell that the paper leaves out ("-") is a row with a missing value. A cell that contradicts
another one, or differs from the source it names, keeps the printed number and has the misprint's id beside it.
"""

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from nayer_lib.errors import unknown
from nayer_lib.files import data_dir

if TYPE_CHECKING:
    import pandas

EDITION = "ICLR-2024 submission"
TABLES = range(1, 12)


def table(number: int) -> "pandas.DataFrame":
    """Table `number` (1 to 11) of the paper, in its printed order.

    Accuracies are top-1 in percent, `hours` A100 hours, `speed_up` times DeepInv's speed, `steps` generator steps,
    `memory` images (missing: all are kept). Missing numbers are NaN or NA, missing words "". Tables 1, 2, 10 and 11
    have a column `misprint`: an id of `misprints()`, or "". `source` in Table 1 is the superscript: a Fang et al. 2022,
    b Patel et al. 2023, c Do et al. 2022, d Yu et al. 2023, e the authors' own run.

    Raises:
        UserError: the paper has no such table.
    """
    return _read(_path(number)).copy()


def rows(number: int) -> list:
    """The rows of table `number`, each with its columns as attributes; None where a number is missing."""
    return list(_rows(_path(number)))


def _path(number: int) -> Path:
    if number not in TABLES:
        raise unknown("table of the paper", number, map(str, TABLES))
    return data_dir() / "paper" / f"table{number}.csv"


@cache
def _rows(path: Path) -> list:
    cells = _read(path).astype(object)
    return list(cells.where(cells.notna(), None).itertuples(index=False, name="Row"))


@cache
def _read(path: Path) -> "pandas.DataFrame":
    import pandas as pd

    types = {"epochs": "Int64", "memory": "Int64", "source": str, "misprint": str}
    frame = pd.read_csv(path, dtype=types)
    return frame.fillna({name: "" for name in frame.columns if not pd.api.types.is_numeric_dtype(frame[name])})


def misprints() -> "pandas.DataFrame":
    """What does not fit: `id`, `table`, `where`, `printed`, `expected` ("" if unknown) and `evidence`, one row each.

    `where` begins with the kind of place: cell(s), column, caption or text. Several printed numbers are separated by
    "; ", in the order of their cells. "Differs from its source" does not say which of the two is right.
    """
    import pandas as pd

    frame = pd.read_csv(data_dir() / "paper" / "misprints.csv", dtype=str, keep_default_na=False)
    return frame.astype({"table": int})
