"""CPNet: a generator coupled to the teacher, mixed views, features aligned with labels; each off is NAYER."""

import math
import warnings

import pytest
import torch
from tiny import run_all, same, tiny_setup
from torch import nn
from torch.nn import functional as F

from nayer_beyond import cpnet
from nayer_beyond.coupled import CoupledGenerator
from nayer_beyond.cpnet import CPNet, nodes
from nayer_beyond.views import jitter
from nayer_lib.classifiers.teacher import Classifier, make_classifier, tapped
from nayer_lib.compute import Compute
from nayer_lib.config import TABLE8, fields_of, make_config
from nayer_lib.distill import prepare
from nayer_lib.errors import UserError
from nayer_lib.methods.round import SynthesisBatch

OFF = {"coupled_generator": False, "alpha_x": 0.0, "cutmix": 0.0, "jitter": 0.0, "alpha_align": 0.0}
NAMES = [str(k) for k in range(10)]


def made(**overrides) -> CPNet:
    return tiny_setup(method="cpnet", **overrides).method


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def network(name: str, channels: int = 3) -> Classifier:
    return make_classifier(name, NAMES, (0.5,) * channels, (0.5,) * channels, 0).freeze()


def test_with_all_switches_off_it_is_nayer_bit_for_bit():
    options = {"generator_life": 1, "epochs": 3}
    one, other = tiny_setup(**options), tiny_setup(method="cpnet", **(options | OFF))
    told, expected = run_all(other), run_all(one)
    assert same(other.method.state_dict(), one.method.state_dict())
    assert [e.student_loss for e in told] == [e.student_loss for e in expected]
    assert all(r.extra == {"L_X": 0, "L_align": 0} for e in told for r in e.rounds)


def test_its_numbers_are_nayers_and_its_authors():
    config, nayer = (make_config("cifar10-wrn40_2-wrn16_2", profile="full", method=m) for m in ("cpnet", "nayer"))
    assert all(getattr(config, name) == getattr(nayer, name) for name in fields_of("nayer") - {"method"})
    assert (config.alpha_x, config.cutmix, config.jitter, config.alpha_align) == (1, 0.5, 0.4, config.alpha_adv)
    imagenet = make_config("imagenet-resnet50-resnet50", profile="full", method="cpnet")
    assert all(getattr(imagenet, name) == value for name, value in TABLE8["imagenet"].items())


# --- the generator


AUTHORS = {
    "wrn40_2": {"bn1": (128, 8), "block3.layer.0.bn1": (64, 16)}
    | {"block2.layer.0.bn1": (32, 32), "block1.layer.0.bn1": (16, 32)},
    "resnet34": {"layer4.2.bn2": (512, 4), "layer3.5.bn2": (256, 8), "layer2.3.bn2": (128, 16)}
    | {"layer1.2.bn2": (64, 32)},
    "vgg11": {"block4.4": (512, 4), "block2.4": (256, 8), "block1.1": (128, 16), "block0.1": (64, 32)},
}


@pytest.mark.parametrize("name", AUTHORS)
def test_the_nodes_of_the_authors_teachers_are_theirs(name):
    teacher = network(name)
    names = {id(module): key for key, module in teacher.net.named_modules()}
    places, shapes = nodes(teacher, (3, 32, 32))
    assert dict(zip((names[id(teacher.batch_norms()[i])] for i in places), shapes, strict=True)) == AUTHORS[name]


@pytest.mark.parametrize(
    ("name", "size", "channels"),
    [("wrn10_1", 8, 1), ("wrn10_half", 8, 3), ("resnet8", 8, 1), ("resnet20", 32, 3), ("resnet18", 32, 3)]
    + [("wrn16_1", 32, 3), ("vgg11", 64, 3), ("vgg19", 32, 3), ("mobilenetv2", 32, 3)],
)
def test_the_generators_maps_have_the_nodes_shapes(name, size, channels):
    teacher = network(name, channels)
    places, shapes = nodes(teacher, (channels, size, size))
    norms = [teacher.batch_norms()[i] for i in places]
    assert len(norms) == len(set(shapes)) >= 3
    generator = CoupledGenerator(7, shapes, channels, size)
    with torch.no_grad(), tapped(generator.blocks) as x, tapped(norms, inputs=True) as f:
        images = generator(torch.randn(2, 7, generator=seeded()))
        teacher(images)
    assert images.shape == (2, channels, size, size) and images.min() >= 0 and images.max() <= 1
    assert all(x[k].shape == f[k].shape for k in range(len(norms)))


def test_a_teacher_without_maps_to_couple_to_is_refused():
    flat = Classifier(nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), nn.Linear(64, 10)), NAMES, (0.3,), (0.4,))
    config, student = made().config, make_classifier("wrn10_half", NAMES, (0.3,), (0.4,), 0)
    with pytest.raises(UserError, match="set coupled_generator=False and alpha_x=0"):
        CPNet(flat, student, config, torch.randn(10, 16))
    with pytest.raises(UserError, match="set coupled_generator=False and alpha_x=0"):
        nodes(network("wrn10_1"), (3, 10, 10))  # maps of 3, 5 and 10


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"coupled_generator": False}, "L_X needs the maps of coupled_generator"),
        ({"alpha_bn": 0.0}, "L_X needs .* the statistics of L_BN: else set alpha_x=0"),
        ({"augment_synthesis": False}, "leave augment_synthesis on, or set cutmix=0 and jitter=0"),
        ({"cutmix": 1.1}, r"cutmix must lie in \[0, 1\], not 1.1"),
    ],
    ids=str,
)
def test_what_needs_something_else_says_so(options, sentence):
    with pytest.raises(UserError, match=sentence):
        made(**options)


# --- L_X


def norms_of(method: CPNet) -> list[nn.Module]:
    return [method.teacher.batch_norms()[i] for i in method.nodes]


def looked(method: CPNet, adversarial: bool = True):
    """One step's terms and what they were computed from, with the maps of G and of T."""
    labels = torch.arange(20) % 10
    seen: list[SynthesisBatch] = []
    values = method.values
    method.values = lambda batch: seen.append(batch) or values(batch)
    drawn, blocks = method.draw_view(20), method.generator[1].blocks
    with tapped(blocks) as x, tapped(norms_of(method), True) as f, method.bn_loss.armed(), method.watched() as caught:
        method.caught = caught
        loss, found, _ = method._objective(labels, drawn, adversarial)
    return seen[0], dict(zip(method.terms, found, strict=True)), loss, [x[k] for k in range(len(x))], f


def test_l_x_by_hand_and_its_gradient_reaches_g_alone():
    method = made(alpha_cls=0.0, alpha_bn=1e-12, alpha_adv=0.0)
    _, found, _, x, f = looked(method)
    expected = 0
    for k, norm in enumerate(norms_of(method)):
        var, mean = torch.var_mean(f[k], (0, 2, 3), correction=0, keepdim=True)
        target = (f[k] - mean) / (var + norm.eps).sqrt() * (norm.running_var + norm.eps).sqrt().view(-1, 1, 1)
        expected = expected + (x[k] - target.detach() - norm.running_mean.view(-1, 1, 1)).square().mean()
    assert found["L_X"].item() == pytest.approx(expected.item(), rel=1e-4)
    end = [*method.generator[1].end.parameters()]  # behind them are the images
    gradients = torch.autograd.grad(found["L_X"], [*x, *f.values(), *end])
    assert [bool(gradient.any()) for gradient in gradients] == [True] * len(x) + [False] * (len(f) + len(end))


def test_l_x_is_0_on_its_own_target(monkeypatch):
    method = made()
    monkeypatch.setattr(cpnet, "recoloured", lambda f, var, mean, norm: next(maps))
    blocks = method.generator[1].blocks
    with tapped(blocks) as x:
        method.generator(torch.arange(20) % 10)
    maps = iter([x[k].detach() for k in range(len(x))])
    assert looked(method)[1]["L_X"].item() == pytest.approx(0, abs=1e-8)


def test_from_the_second_round_on_the_statistics_are_mixed_with_the_memory(monkeypatch):
    method, asked = made(bn_momentum=0.9), []
    real = cpnet.recoloured
    monkeypatch.setattr(cpnet, "recoloured", lambda f, *of: asked.append((f, *of)) or real(f, *of))
    for _ in range(2):
        method.synthesize(0)
        memory = [[x.clone() for x in pair] for pair in method.bn_loss.memory]
        if len(asked) == 2 * len(method.nodes):
            first = memory
    for k, (f, var, mean, norm) in enumerate(asked):
        own_var, own_mean = torch.var_mean(f, (0, 2, 3), correction=0)
        share = 0.0 if k < 2 * len(method.nodes) else 0.9
        old_var, old_mean = first[method.bn_loss.layers.index(norm)]
        torch.testing.assert_close(var, (1 - share) * own_var + share * old_var)
        torch.testing.assert_close(mean, (1 - share) * own_mean + share * old_mean)


# --- the views and L_mix


def test_a_view_is_cropped_then_jittered_then_cut():
    method, images = made(), torch.rand(20, 1, 8, 8, generator=seeded())
    pixels, moves, _, partners = method.draw_view(20)
    box = torch.zeros(8, 8, dtype=torch.bool)
    box[2:5, 1:8] = True
    plain = made(cutmix=0.0, jitter=0.0)
    cropped = plain.view(images, (pixels, None, None, None))
    jittered = jitter(cropped, moves)
    seen = method.view(images, (pixels, moves, box, partners))
    assert torch.equal(seen[:, :, box], jittered[partners][:, :, box])
    assert torch.equal(seen[:, :, ~box], jittered[:, :, ~box]) and not torch.equal(jittered, cropped)


def test_l_mix_by_hand_with_a_known_box():
    method = made(jitter=0.0)
    batch, _, _, _, _ = looked(method)
    box = torch.zeros(8, 8, dtype=torch.bool)
    box[:4, :4] = True  # a quarter
    partners = torch.arange(20).roll(3)
    mixed = SynthesisBatch(**(vars(batch) | {"view": (None, None, box, partners)}))
    with method.bn_loss.armed(), method.watched() as method.caught:
        method.generator(batch.labels)
        method.teacher(batch.images)
        told = CPNet.values(method, mixed)[0]
    log_p = batch.t.log_softmax(1)
    rows = torch.arange(20)
    expected = -0.75 * log_p[rows, batch.labels].mean() - 0.25 * log_p[rows, batch.labels[partners]].mean()
    assert told.item() == pytest.approx(expected.item(), rel=1e-5)


def test_cutmix_with_probability_0_draws_nothing_and_is_the_plain_view():
    plain, never = made(cutmix=0.0, jitter=0.0), made(cutmix=1e-12, jitter=0.0)
    pixels, moves, box, partners = plain.draw_view(20)
    assert moves is box is partners is None
    images = torch.rand(20, 1, 8, 8, generator=seeded())
    _, _, box, partners = never.draw_view(20)
    whole = plain.view(images, (pixels, None, None, None))
    assert not box.any() and torch.equal(never.view(images, (pixels, None, box, partners)), whole)


# --- L_align


def test_l_align_by_hand():
    method = made()
    batch, found, loss, _, _ = looked(method)
    head = method.teacher.head()
    inverse = cpnet.head_inverse(head.weight)
    d = math.log(0.9 * 9 / 0.1)
    assert d == pytest.approx(4.39, abs=0.01) and math.log(0.9 * 99 / 0.1) == pytest.approx(6.79, abs=0.01)
    wanted = (d * F.one_hot(batch.labels, 10) - head.bias) @ inverse
    apart, shift = batch.features - wanted, torch.ones(10) @ inverse
    cosines = (apart @ shift) / apart.norm(dim=1) / shift.norm()
    assert found["L_align"].item() == pytest.approx(cosines.abs().mean().item(), rel=1e-4)
    weighted = [getattr(method.config, method.terms[term]) * value.item() for term, value in found.items()]
    assert loss.item() == pytest.approx(sum(weighted), rel=1e-5)
    (gradient,) = torch.autograd.grad(found["L_align"], batch.generated, retain_graph=True)
    assert gradient.any()


def test_features_at_which_the_label_has_probability_0_9_have_that():
    method = made()
    head = method.teacher.head()
    if torch.linalg.svdvals(head.weight).min() > 0.1:
        p = head(method._aligned).softmax(1)
        torch.testing.assert_close(p.diagonal(), torch.full((10,), 0.9), atol=1e-3, rtol=0)


def test_l_align_is_off_where_l_kl_is():
    method = made(alpha_align=2.0)
    assert looked(method, adversarial=False)[1]["L_align"] == 0
    method.begin_epoch(0)
    assert method.synthesize(0).extra["L_align"] == 0  # the warm-up
    assert method.synthesize(method.config.total_epochs - 1).extra["L_align"] > 0


# --- compiled steps


@pytest.mark.slow
def test_its_synthesis_is_compiled(monkeypatch):
    """Through dynamo and its backward pass, code generation left out."""
    original, plain = torch.compile, made()
    plain.synthesize(0)
    monkeypatch.setattr(torch, "compile", lambda function, **_: original(function, backend="aot_eager", dynamic=False))
    method = prepare(plain.config, device="cpu", compute=Compute(steps="compiled")).method
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch's own, where the teacher's features are read
        method.synthesize(0)
    assert method.running.reason == "" and method.compute.steps == "compiled"
    torch.testing.assert_close(method.memory.images.float(), plain.memory.images.float(), rtol=0, atol=2)
