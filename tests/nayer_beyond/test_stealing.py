"""Stealing: images through the student, answers from a black box, a budget."""

import dataclasses

import pytest
import torch
from tiny import read_json, same, tiny_setup
from torch.nn import functional as F

from nayer_lib.config import fields_of, make_config
from nayer_lib.errors import UserError
from nayer_lib.methods import METHODS
from nayer_lib.methods.base import Batch
from nayer_lib.methods.nayer import Nayer
from nayer_lib.methods.round import SynthesisBatch
from nayer_lib.ranks import Ranks
from nayer_lib.runs.card import read_card
from nayer_lib.runs.run import Run


def stealing(**options):
    return tiny_setup(method="stealing", **options)


def test_it_reads_nothing_that_needs_the_teachers_gradient():
    gone = {"alpha_bn", "alpha_adv", "adversarial_mask", "bn_momentum", "warmup_epochs", "student_trains_in_synthesis"}
    assert fields_of("nayer") - fields_of("stealing") == gone | {"warmup_rounds", "epochs_include_warmup"}
    assert fields_of("stealing") - fields_of("nayer") == {"answers", "budget", "alpha_ie"}
    assert issubclass(METHODS["stealing"], Nayer)
    with pytest.raises(UserError, match="unknown kind of answers"):
        make_config("digits", method="stealing", answers="grades")
    with pytest.raises(UserError, match="budget must be a whole number from 1 up, not 0"):
        make_config("digits", method="stealing", budget=0)


def test_its_terms_by_hand():
    """CE of the student's logits, and minus the entropy of its mean prediction."""
    method = stealing().method
    t = torch.randn(6, 10, generator=torch.Generator().manual_seed(0))
    y = torch.arange(6)
    ce, ie = method.values(SynthesisBatch(None, None, y, t, None, None, None))
    p = F.softmax(t, 1)
    q = p.mean(0)
    assert ce == pytest.approx(-torch.stack([p[i, y[i]].log() for i in range(6)]).mean().item(), rel=1e-5)
    assert ie == pytest.approx(sum((x * x.log()).item() for x in q), rel=1e-5)


def test_a_rounds_gradient_comes_through_the_student_and_leaves_it_as_it_is():
    setup = stealing(generator_steps=3)
    method = setup.method
    before = {key: value.clone() for key, value in method.student.state_dict().items()}
    weights = [p.clone() for p in method.generator.parameters()]
    method.begin_epoch(0)
    report = method.synthesize(0)
    assert same(before, method.student.state_dict()) and method.teacher.asked == report.images == 20
    assert report.ce_per_step[-1] < report.ce_per_step[0] and set(report.extra) == {"L_IE"}
    assert any(not torch.equal(*pair) for pair in zip(weights, method.generator.parameters(), strict=True))


@pytest.mark.parametrize("answers", ["logits", "probabilities", "labels"])
def test_the_memory_keeps_the_answer_to_each_image_as_it_is_kept(answers):
    setup = stealing(answers=answers)
    method, teacher = setup.method, setup.evaluate.classifier
    for _ in range(2):
        method.synthesize(0)
    images, kept = method.memory.rows
    logits = teacher(images.float() / 255)
    if answers == "labels":
        assert torch.equal(kept.argmax(1), logits.argmax(1))
    else:
        assert torch.allclose(kept, {"logits": logits}.get(answers, logits.log_softmax(1)), atol=1e-5)
    assert method.teacher.asked == 40


def test_an_image_is_drawn_with_its_own_answer(monkeypatch):
    method = stealing().method
    method.synthesize(0)
    monkeypatch.setattr(method, "augment", lambda images: images)
    images, answers = method.memory.rows
    batch = method.sample(20)
    place = [(images.float() / 255 == image).flatten(1).all(1).nonzero()[0].item() for image in batch.images]
    assert sorted(place) == list(range(20)) != place
    assert torch.equal(batch.answers, answers[place]) and torch.equal(batch.labels, method.memory.labels[place])


def test_the_student_learns_from_the_kept_answers_without_asking():
    for answers in ("logits", "labels"):
        method = stealing(answers=answers).method
        images = torch.rand(8, 1, 8, 8, generator=torch.Generator().manual_seed(1))
        given = torch.randn(8, 10, generator=torch.Generator().manual_seed(2))
        s = method.student(images).detach()
        method.student.load_state_dict(stealing(answers=answers).method.student.state_dict())  # buffers as they were
        loss = method._student_loss(Batch(images, torch.zeros(8, dtype=torch.long), "memory", answers=given))
        if answers == "labels":
            expected = F.cross_entropy(s, given.argmax(1))
        else:
            log_p, log_q = F.log_softmax(given / 20, 1), F.log_softmax(s / 20, 1)
            expected = 400 * (log_p.exp() * (log_p - log_q)).sum(1).mean()
        assert loss.item() == pytest.approx(expected.item(), rel=1e-4) and method.teacher.asked == 0


# --- the budget: two epochs of two rounds of 20 images


def test_a_run_asks_about_as_many_images_as_it_makes_and_its_card_says_so(tmp_path):
    run = Run(stealing(answers="labels", budget=80), tmp_path / "run")
    list(run)
    counted = {"answers": "labels", "asked": 80}
    assert read_card(run.folder)["black_box"] == counted
    assert run.card["status"] == "finished" and "problems" not in run.card
    assert "feature_diversity" in run.card["metrics"] and len(run.setup.method.memory) == 80


def test_a_budget_that_does_not_last_stops_the_run_between_two_epochs_and_more_of_it_goes_on(tmp_path):
    whole = Run(stealing(epochs=3, budget=1000), tmp_path / "whole")
    list(whole)
    run = Run(stealing(epochs=3, budget=119), tmp_path / "run", save_after=1e9)  # saves after the first epoch alone
    sentence = (
        "the budget of 119 images does not last: the teacher was asked about 80, and epoch 2 needs 40 more. Resume the "
        "run with a larger budget."
    )
    with pytest.raises(UserError) as caught:
        list(run)
    assert str(caught.value) == sentence
    card = read_card(run.folder)
    assert card["status"] == f"stopped: {sentence}" and card["black_box"]["asked"] == 80 and len(card["curve"]) == 2

    again = Run(stealing(epochs=3, budget=119), tmp_path / "run", resume=True)
    assert len(again.card["curve"]) == 2
    with pytest.raises(UserError, match="does not last"):
        list(again)
    larger = stealing(epochs=3, budget=1000)
    assert len(list(Run(larger, tmp_path / "run", resume=True))) == 1
    assert same(larger.method.state_dict(), whole.setup.method.state_dict())
    card = read_json(tmp_path / "run" / "card.json")
    assert card["status"] == "finished" and card["black_box"]["asked"] == 120
    assert card["config"]["budget"] == 1000 and card["config_sha256"] == larger.config.hash
    with pytest.raises(UserError, match="is finished"):
        Run(stealing(epochs=3, budget=1000), tmp_path / "run", resume=True)


def test_only_the_budget_may_differ_in_a_run_that_goes_on(tmp_path):
    with pytest.raises(UserError):
        list(Run(stealing(budget=50), tmp_path / "run"))
    with pytest.raises(UserError, match="another answers"):
        Run(stealing(budget=500, answers="labels"), tmp_path / "run", resume=True)


def test_ranks_share_the_budget(monkeypatch):
    monkeypatch.setattr(Ranks, "agree", lambda self, number: int(number))
    setup = stealing()
    teacher, student, config = setup.evaluate.classifier, setup.method.student, setup.config
    config = dataclasses.replace(config, budget=101)
    method = METHODS["stealing"](teacher, student, config, setup.method.table, ranks=Ranks(0, 2))
    assert method.teacher.budget == 50 and method.config.generator_batch == 10
