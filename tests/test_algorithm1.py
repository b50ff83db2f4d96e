"""Algorithm 1 as one function computes what the library computes, to the bit, and stays short enough to be read."""

import pytest
import torch
from test_flow import FILES, imports
from tiny import tiny_config
from torch import nn

from nayer_lib.algorithm1 import algorithm1
from nayer_lib.classifiers.teacher import Classifier, load_teacher, make_classifier
from nayer_lib.config import DIVERGENCES
from nayer_lib.distill import distill, prepare
from nayer_lib.errors import UserError

# A batch that is no multiple of the ten classes, a new G in every epoch but the first, and steps that overshoot, so
# that the last one's loss is not always the lowest.
SHORT = {"generator_batch": 23, "generator_life": 1, "generator_steps": 3, "generator_lr": 0.5, "rounds": 2}


class Branching(nn.Module):
    """A network whose BatchNorms `distill` cannot fold, so that the student phase asks the same teacher here as there:
    folding rounds, and training makes a rounding large."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(x) if x.isfinite().all() else x


def both(variant="released", teacher=None, **overrides) -> tuple[list, list]:
    """(mean L_S of each epoch, images, labels, rounds, student) by the library and by the one function."""
    config = tiny_config(variant, **overrides)
    library, own = (prepare(config, teacher, device="cpu") for _ in range(2))
    losses = [epoch.student_loss for epoch in distill(library.method, lambda student: None)]
    table, facts = own.pool.table, own.method.facts
    epochs = list(algorithm1(config, own.method.teacher, own.method.student, table, facts))
    left = (losses, library.method.memory, library.method), ([loss for loss, _ in epochs], epochs[-1][1], own.method)
    return [
        [losses, memory.images, memory.labels, memory.rounds, list(method.student.state_dict().values())]
        for losses, memory, method in left
    ]


def same(one, other) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    return len(one) == len(other) and all(
        same(*pair) if isinstance(pair[0], torch.Tensor) else pair[0] == pair[1]
        for pair in zip(one, other, strict=True)
    )


@pytest.fixture(scope="module")
def teacher() -> Classifier:
    kept = load_teacher("digits", "wrn10_1")
    return Classifier(Branching(kept.net), kept.class_names, kept.mean, kept.std)


@pytest.fixture(scope="module")
def released(teacher) -> list:
    library, own = both(teacher=teacher, **SHORT)
    assert all(map(same, library, own))
    return own


def test_it_computes_what_the_library_computes(released):
    losses, images, labels, rounds, _ = released
    assert losses[0] is None and all(loss > 0 for loss in losses[1:])
    assert len(images) == 5 * 23 and images.float().std() > 1
    assert rounds.tolist() == [r for r in range(5) for _ in range(23)]
    assert len(set(map(tuple, labels.view(5, 23).tolist()))) > 1  # the last three of a round are drawn


@pytest.mark.parametrize(
    ("overrides", "variant"),
    [(DIVERGENCES[row], "released") for row in ("D5", "D7", "D8", "D11", "D12", "D13")]
    + [({}, "paper"), ({"memory_size": 30}, "released"), ({"generator_batch": 7, "alpha_adv": 0.0}, "released")],
    ids=str,
)
def test_so_it_does_with_other_settings_which_make_a_difference(overrides, variant, teacher, released):
    short = {name: value for name, value in SHORT.items() if variant == "released" or name != "generator_life"}
    library, own = both(variant, teacher, **short | overrides)
    assert all(map(same, library, own))
    assert not all(map(same, own, released))


def test_beside_the_library_with_a_folded_teacher_it_differs_by_rounding():
    library, own = both(**SHORT | {"generator_lr": 4e-3, "student_lr": 0.01})
    for theirs, mine in zip(library[1:4], own[1:4], strict=True):
        assert torch.equal(theirs, mine)
    assert library[0][1:] == pytest.approx(own[0][1:], rel=1e-5)
    for theirs, mine in zip(library[4], own[4], strict=True):
        torch.testing.assert_close(theirs, mine, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "overrides", [{"latent": "lte"}, {"embedding": "orthogonal"}, {"repeats": 2}, {"method": "fm"}], ids=str
)
def test_what_algorithm_1_does_not_have_is_refused(overrides, teacher):
    student = make_classifier("wrn10_half", teacher.class_names, teacher.mean, teacher.std, 0)
    with pytest.raises(UserError, match="take distill"):
        next(algorithm1(tiny_config(**overrides), teacher, student, torch.randn(10, 16), None))


def test_it_is_made_of_the_papers_parts_alone():
    parts = "text generator classifiers losses memory augment datasets base_config errors".split()
    assert {name.split(".")[1] for name in imports("nayer_lib.algorithm1")} <= set(parts)


def test_it_fits_on_a_page_and_names_every_line_of_the_paper():
    lines = FILES["nayer_lib.algorithm1"].read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 120 and max(map(len, lines)) <= 88
    numbers = [int(line[-2:]) for line in lines if line[-4:-2] == "# " and len(line) == 88]
    assert numbers == sorted(numbers) and set(numbers) == set(range(1, 15))
