"""TA-DFKD: the mixture that tells clean images from others, and who sees which."""

import numpy as np
import pytest
import torch
from sklearn.mixture import GaussianMixture
from tiny import tiny_setup

from nayer_beyond import ta_dfkd
from nayer_beyond.ta_dfkd import ADDED, ITERATIONS, TADFKD, clean, uncertainty
from nayer_lib.config import make_config
from nayer_lib.losses import BatchNormLoss
from nayer_lib.methods import terms


def made(**overrides) -> TADFKD:
    return tiny_setup(method="ta_dfkd", **{"warmup_epochs": 0, "generator_steps": 1, "repeats": 1, **overrides}).method


def test_its_numbers_are_those_of_the_authors_program():
    config = make_config("cifar10-wrn40_2-wrn16_2", method="ta_dfkd", protocol="published", profile="full")
    assert (config.alpha_cls, config.alpha_bn, config.alpha_l2, config.alpha_tv) == (0, 10, 6e-3, 1.5e-5)
    assert (config.epochs, config.repeats, config.generator_steps, config.student_steps) == (200, 36, 1, 10)
    assert config.noise_dim == 1000 and config.generator_betas == (0.9, 0.999) and TADFKD.student_first
    assert config.augment_synthesis and config.augment_student and config.student_trains_in_synthesis
    assert (config.generator_lr, config.student_lr, config.student_weight_decay) == (1e-3, 0.01, 5e-4)


def test_uncertainty_by_hand():
    logits = torch.tensor([[0.0, 0.0], [0.0, 3.0]]).log_softmax(1)
    expected = [np.log(2), np.log(1 + np.exp(-3))]
    assert uncertainty(logits).tolist() == pytest.approx(expected, rel=1e-5)


def test_two_planted_clusters_are_told_apart():
    rng = torch.Generator().manual_seed(0)
    low, high = 0.1 + 0.05 * torch.rand(30, generator=rng), 1.5 + 0.3 * torch.rand(10, generator=rng)
    order = torch.randperm(40, generator=rng)
    expected = (torch.arange(40) < 30)[order]
    assert torch.equal(clean(torch.cat([low, high])[order]), expected)


@pytest.mark.parametrize("seed", range(6))
def test_the_mixture_is_that_of_scikit_learn(seed):
    """From the same start and in as many steps, on numbers that lie in no two heaps."""
    doubt = np.random.default_rng(seed).gamma(0.7, size=128)
    x = ((doubt - doubt.min()) / np.ptp(doubt)).reshape(-1, 1)
    var = x.var() + ADDED
    theirs = GaussianMixture(
        2,
        tol=0,
        max_iter=ITERATIONS,
        reg_covar=ADDED,
        weights_init=[0.5, 0.5],
        means_init=[[0.0], [1.0]],
        precisions_init=[[[1 / var]], [[1 / var]]],
    )
    with pytest.warns(match="did not converge"):
        theirs.fit(x)
    expected = theirs.predict_proba(x)[:, 0] > 0.5
    assert 0 < expected.sum() < 128 and np.array_equal(clean(torch.tensor(doubt, dtype=torch.float64)), expected)


def test_where_all_are_alike_all_are_clean():
    assert clean(torch.full((7,), 0.3)).all() and clean(torch.zeros(1)).all()


def test_js_sees_clean_images_alone(monkeypatch):
    method, kept = made(), torch.tensor([True, False, True, False])
    monkeypatch.setattr(ta_dfkd, "clean", lambda doubt: kept)
    rng = torch.Generator().manual_seed(0)
    t, s = (torch.randn(4, 10, generator=rng).requires_grad_() for _ in range(2))
    found = method.against_student(t, s)
    alone = 1 - terms.jensen_shannon(t[kept], s[kept]) / 10
    torch.testing.assert_close(found, alone)
    for gradient, expected in zip(*(torch.autograd.grad(term, (t, s)) for term in (found, alone)), strict=True):
        torch.testing.assert_close(gradient, expected, atol=1e-7, rtol=1e-4)
    monkeypatch.setattr(ta_dfkd, "clean", lambda doubt: torch.zeros(4, dtype=torch.bool))
    assert method.against_student(t, s).item() == pytest.approx(1)


def test_the_report_has_the_terms_of_what_the_networks_saw():
    method = made(alpha_tv=0.1, alpha_l2=0.1)
    seen = []
    method.generator.register_forward_hook(lambda _module, _inputs, images: seen.append(images.detach().clone()))
    report = method.synthesize(0)
    [images] = seen
    bn = BatchNormLoss(method.teacher, 0.0)
    with torch.no_grad(), bn.armed():
        t, s = method.teacher(images), method.student.eval()(images)
        assert report.bn == pytest.approx(bn().item(), rel=1e-3)
    kept = clean(uncertainty(t))
    assert report.adv == pytest.approx(1 - terms.jensen_shannon(t[kept], s[kept]).item() / 10, rel=1e-4)
    [mean], [std] = method.teacher.mean, method.teacher.std
    x = (images - mean) / std
    expected = {"L_TV": terms.total_variation(x).item(), "L_2": x.square().sum().sqrt().item()}
    assert report.extra == pytest.approx(expected, rel=1e-3)
    assert report.ce_per_step == [pytest.approx(uncertainty(t).mean().item(), rel=1e-3)]


def test_the_student_lowers_the_distance_of_the_logits():
    t, s = torch.tensor([[1.0, -2.0]]), torch.tensor([[0.0, 1.0]])
    assert made().student_loss(None, t, s).item() == 2


def test_the_counts_of_the_card_outlive_a_resume():
    method, other = made(), made()
    method.sample(8)
    other.load_state_dict(method.state_dict())
    assert other.on_card() == method.on_card() and 0 < method.on_card()["clean"] <= 1


def drawing(method, monkeypatch, doubts: list[list[float]], kept: list[list[bool]]) -> torch.Tensor:
    """A sample of two images, where the k-th draw has given doubts; an image's pixels are its number, in 255ths."""
    numbers, asked = iter(range(100)), iter(zip(doubts, kept, strict=True))
    shape = method.facts.image_shape
    monkeypatch.setattr(
        method, "generate", lambda n: torch.stack([torch.full(shape, next(numbers) / 255.0) for _ in range(n)])
    )
    now = []
    monkeypatch.setattr(ta_dfkd, "uncertainty", lambda t: now.append(next(asked)) or torch.tensor(now[-1][0]))
    monkeypatch.setattr(ta_dfkd, "clean", lambda doubt: torch.tensor(now[-1][1]))
    monkeypatch.setattr(method, "augment", lambda images: images)
    return (method.sample(2).images[:, 0, 0, 0] * 255).round().int().tolist()


def test_the_student_sees_clean_images_in_the_order_in_which_they_came(monkeypatch):
    method = made()
    yes, no = True, False
    chosen = drawing(method, monkeypatch, [[0.1, 0.9], [0.8, 0.2], [0.0, 0.0]], [[yes, no], [no, yes], [yes, yes]])
    assert chosen == [0, 3] and method.on_card() == {"clean": 0.5}  # no third draw


def test_draws_are_bounded_and_the_surest_fill_the_batch_up(monkeypatch):
    doubts = [[0.9, 0.5], [0.4, 0.7], [0.6, 0.8]]
    assert drawing(made(draws=3), monkeypatch, doubts, [[False] * 2] * 3) == [2, 1]
    assert drawing(made(draws=3), monkeypatch, doubts, [[False] * 2, [False, True], [False] * 2]) == [3, 2]


def test_without_selection_every_image_counts(monkeypatch):
    monkeypatch.setattr(ta_dfkd, "clean", lambda doubt: pytest.fail("selected"))
    method = made(select=False)
    report = method.synthesize(0)
    assert 0 < report.adv <= 1 and len(method.sample(4).images) == 4 and method.on_card() == {}
