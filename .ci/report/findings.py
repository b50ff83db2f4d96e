"""docs/findings.md: what was found, with its interval, its n and what would overturn it, from the cards."""

from typing import NamedTuple

from ablation_tables import difference_in_words, more_or_less
from result_tables import fill, markdown

from nayer_notebooks.ablations import lines_of
from nayer_notebooks.rule import RUNS_ALONE

STEPS = "steps to CE < 1"
COLUMNS = ("question", "problem", "row, against", "difference [95 %]", "n", "word", "what would overturn it")


class Finding(NamedTuple):
    """A question, the row of a table that answers it, and what would overturn the answer."""

    asks: str
    stem: str
    dataset: str
    row: str
    against: str
    overturned: str
    measure: str = ""  # the heading of what is compared; "" for what the table is about


CIFAR = "CIFAR-10 images"
RATES = "rates that are searched; CIFAR-10 images"
FINDINGS = (
    Finding("Does NAYER keep LTE's speed? Steps to CE < 1", "speed", "cifar10", "NAYER", "LTE", "a larger teacher"),
    Finding("Is NAYER faster than noise? Steps to CE < 1", "speed", "cifar10", "Z", "NAYER", "more seeds"),
    Finding("LTE's steps to CE < 1 on digits", "table3", "digits", "LTE", "NAYER(Kto1)", CIFAR, STEPS),
    Finding("Noise's steps to CE < 1 on digits", "table3", "digits", "Z", "NAYER(Kto1)", CIFAR, STEPS),
    Finding("Do constant inputs teach less?", "table3", "digits", "LTE", "NAYER(Kto1)", CIFAR),
    Finding("Is plain noise as good as the noisy layer?", "table3", "digits", "Z", "NAYER(Kto1)", CIFAR),
    Finding("Does redrawing the K-to-1 layer matter?", "table3", "digits", "NAYER(woRI)", "NAYER(Kto1)", CIFAR),
    Finding("Is K-to-1 as accurate as 1-to-1?", "table3", "digits", "NAYER(1to1)", "NAYER(Kto1)", CIFAR),
    *(
        Finding(asks, "redraw", "digits", f"one layer, redrawn{arm}", f"one layer, kept{arm}", CIFAR)
        for asks, arm in {
            "Does redrawing one layer matter, the generator kept?": "",
            "Does it where no opponent makes images vary?": ", no L_KL",
        }.items()
    ),
    *(
        Finding(asks, "controls", "cifar10", row, against, "larger networks; CIFAR-100, whose classes are related")
        for asks, row, against in (
            ("What if label text goes to the wrong classes?", "permuted text", "text"),
            ("Are vectors that mean nothing worse than text?", "orthogonal", "text"),
            ("Is text better than noise, which names no class?", "text", "Z"),
        )
    ),
    *(
        Finding(asks, "table4", "color_digits", row, "SBERT", "ten seeds; here a name is what is seen: ink and digit")
        for asks, row in {
            "And where class names describe the images: text at the wrong classes?": "permuted text",
            "Vectors that mean nothing?": "orthogonal",
        }.items()
    ),
    Finding("Are one-hot inputs worse?", "table3", "color_digits", "OH", "NAYER(Kto1)", CIFAR),
    Finding(
        *("Does Table 6's generator, as printed, do as well (D1)?", "divergences", "digits", "D1", "released"),
        "ten seeds (registered, not run); CIFAR-10 images (`paper_cifar10`)",
    ),
    *(
        Finding(asks, "eq5", "digits", row, against, CIFAR)
        for asks, row, against in (
            ("Does L_KL, the adversarial term, help?", "no L_KL", "all terms"),
            ("Does the memory in L_BN matter (D8), at one weight?", "m = 0", "all terms"),
            ("And at one gradient, a tenth of the weight?", "m = 0, weight 1", "all terms"),
        )
    ),
    *(
        Finding(asks, "nayer_plus", "digits", row, "NAYER", f"another reading of B.7; {more}")
        for asks, row, more in (
            ("Does feature exchange help NAYER, the paper's future work?", "exchange", RATES),
            ("Does retention?", "retention", "a smaller inner rate"),
            ("Do all three, momentum with them?", "all three", "a smaller inner rate"),
        )
    ),
    *(
        Finding(asks, "cpnet", "digits", row, against, RATES)
        for asks, row, against in (
            ("Do CPNet's five changes help NAYER?", "all", "NAYER"),
            ("Is the coupling what they do it by?", "all but the coupling", "all"),
        )
    ),
    Finding(
        "Is noise enough in place of a generator?",
        "noise",
        "digits",
        "Gaussian unclipped, T by batch",
        "NAYER",
        "another recipe (the best of six loses 52.3); by each test batch's own statistics it stands far higher",
    ),
    *(
        Finding(asks, "procedural", "digits", row, against, "richer pictures and augmentation; CIFAR-10 images")
        for asks, row, against in (
            ("Does NAYER's generator do better than pictures that a formula draws?", "NAYER", "procedural"),
            ("Do such pictures do better than noise?", "procedural", "noise"),
        )
    ),
    *(
        Finding(asks, "black_box", "digits", row, against, f"{more}another budget of questions; CIFAR-10 images")
        for asks, row, against, more in (
            ("What does a teacher that only answers cost?", "text, logits", "NAYER, white box", "as many images; "),
            ("Are meaningless vectors worse than text there?", "orthogonal, logits", "text, logits", ""),
        )
    ),
    *(
        Finding(asks, "table9", "digits", f"{row}, W2A4", "NAYER, W2A4", "a cell of Table 9")
        for asks, row in {
            "Weights on three levels: what does rounding alone lose against NAYER?": "rounding alone",
            "Does ZAQ reach NAYER there?": "ZAQ",
            "Do real images teach such a student more?": "fine-tuned on real images",
        }.items()
    ),
)


def findings_page(page: str, cards: list[dict]) -> str:
    """docs/findings.md with a row for each finding."""
    columns = {heading: "--:" if heading == "n" else "---" for heading in COLUMNS}
    return fill(page, {"findings": markdown(columns, [_row(finding, cards) for finding in FINDINGS])})


def _row(finding: Finding, cards: list[dict]) -> list[str]:
    found = lines_of(finding.stem, finding.dataset, cards)
    line = next(line for line in found if (line.name, line.against) == (finding.row, finding.against))
    contrast, word = line.contrast, line.word
    if finding.measure:
        contrast = line.measured.get(finding.measure)
        few = f", n = {contrast.n}" if contrast and contrast.n < RUNS_ALONE else ""
        word = line.silent or more_or_less(contrast) + few
    pair = f"{finding.row}, against {finding.against}"
    n = str(contrast.n if contrast else 0)
    return [finding.asks, finding.dataset, pair, difference_in_words(contrast), n, word, finding.overturned]
