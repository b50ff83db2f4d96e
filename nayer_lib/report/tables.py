"""The arms of a sweep as a table, for notebooks."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas


def arms_table(arms: dict[str, list[dict]]) -> "pandas.DataFrame":
    """A sweep's arms, one a row, from its cards (`sweep.arm_cards`): mean over seeds, and the spread of the accuracy.

    Columns: n (seeds); accuracy (last epoch, percent) and its sample sd; the mean L_CE at the first, fifth, fifteenth
    and last generator step; the share of rounds that reach CE < 1; diversity within and across rounds.
    """
    import pandas as pd

    runs = []
    for arm, card in ((arm, card) for arm, cards in arms.items() for card in cards):
        run = {"arm": arm, "accuracy": 100 * card["accuracy_last"]}
        if "metrics" in card:  # else measuring failed, and the card says why
            ce, metrics = card["metrics"]["ce_by_step"], card["metrics"]
            run |= {f"CE {t}": ce[t - 1] for t in (1, 5, 15, len(ce)) if t <= len(ce)}
            run |= {"CE < 1": metrics["convergence"]["1.0"]["success"], **metrics["diversity"]}
        runs.append(run)
    groups = pd.DataFrame(runs).groupby("arm", sort=False)
    whole = groups.count().eq(groups.size(), axis=0)  # one seed without a value, and the arm has no mean
    table = groups.mean().where(whole).dropna(axis=1, how="all")
    table.insert(1, "sd", groups["accuracy"].std())
    table.insert(0, "n", groups.size())
    return table.reindex(list(arms)).rename_axis(None).fillna({"n": 0}).astype({"n": int})
