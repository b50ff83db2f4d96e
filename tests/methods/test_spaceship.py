"""SpaceshipNet: exchanged activations in place of images, and a student that looks where the teacher does."""

import copy
import dataclasses
import warnings

import pytest
import torch
from tiny import run_all, same, tiny_setup
from torch import nn

from nayer_lib import losses
from nayer_lib.classifiers.teacher import Classifier, make_classifier, tapped
from nayer_lib.compute import Compute
from nayer_lib.config import make_config
from nayer_lib.datasets import dataset, load_split
from nayer_lib.distill import prepare
from nayer_lib.errors import UserError
from nayer_lib.methods import terms
from nayer_lib.methods.base import Batch
from nayer_lib.methods.spaceship import SpaceshipNet, exchange
from nayer_lib.runs.forecast import held
from nayer_notebooks import paper

NAMES = [str(k) for k in range(10)]
NETWORKS = ["wrn16_1", "resnet20", "resnet18", "vgg11"]


def tiny_spaceship(**overrides) -> SpaceshipNet:
    return tiny_setup(method="spaceship", **overrides).method


def network(name: str, seed: int = 0) -> Classifier:
    facts = dataset("cifar10")
    return make_classifier(name, NAMES, facts.mean, facts.std, seed)


def between(teacher: str | Classifier, student: str | Classifier, size: int = 32, **overrides) -> SpaceshipNet:
    """A pair of fresh networks on images of CIFAR-10's kind."""
    pair = [n if isinstance(n, Classifier) else network(n, seed) for seed, n in enumerate((teacher, student))]
    sizes = {"noise_dim": 16, "generator_width": 8, "generator_batch": 4, "student_batch": 4}
    facts = dataclasses.replace(dataset("cifar10"), size=size)
    return SpaceshipNet(*pair, make_config(method="spaceship", **{**sizes, **overrides}), facts=facts)


def noise(count: int, channels: int = 1, size: int = 8) -> torch.Tensor:
    return torch.rand(count, channels, size, size, generator=torch.Generator().manual_seed(0))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_its_numbers_are_its_authors():
    config = make_config("cifar10-wrn40_2-wrn16_2", method="spaceship", protocol="published", profile="full")
    assert (config.alpha_cls, config.alpha_bn, config.alpha_adv, config.bn_momentum) == (0.5, 1, 0, 0)
    assert (config.alpha_cam, config.alpha_gradcam, config.temperature, config.exchange_rate) == (1, 1, 30, 0.7)
    assert (config.total_epochs, config.rounds, config.generator_steps, config.student_steps) == (200, 1, 200, 2000)
    assert config.generator_batch == config.student_batch == config.noise_dim == 256
    assert (config.generator_lr, config.student_lr, config.student_weight_decay) == (1e-3, 0.1, 1e-4)
    assert config.memory_size == 200 * 256  # bounds nothing there


def test_the_published_accuracies_stand_in_table_1():
    table = paper.table(1)
    rows = table[(table["method"] == "SpaceshipNet") & (table["dataset"] == "cifar10")]
    assert rows["accuracy"].tolist() == [95.39, 93.25, 90.38, 93.56, 92.27]


# --- synthesis


def test_its_loss_has_no_term_against_the_student():
    method = tiny_spaceship()
    with method.bn_loss.armed():
        total, (ce, bn, kl), _ = method._objective(torch.arange(20) % 10, None, False)
    assert kl == 0 and total.item() == pytest.approx(0.5 * ce.item() + bn.item(), rel=1e-5)

    def refuse(*_):
        raise AssertionError("the student should not have been run")

    method.student.register_forward_pre_hook(refuse)
    assert method.synthesize(method.config.total_epochs - 1).adv == 0


def test_labels_are_balanced_and_z_stays_while_g_moves_and_goes_on():
    method = tiny_spaceship()
    method.synthesize(0)
    assert method.memory.labels.tolist() == 2 * list(range(10))
    z, g = method.generator[0].z, copy.deepcopy(method.generator[1].state_dict())
    drawn, steps = [], method.steps

    def watched(*args):
        drawn.append(z.clone())
        assert same(g, method.generator[1].state_dict())  # the next round starts where the last one ended
        yield from steps(*args)

    method.steps = watched
    before = z.clone()
    method.synthesize(0)
    assert torch.equal(drawn[0], z) and not torch.equal(before, z) and z.grad is None
    assert not same(g, method.generator[1].state_dict())


# --- the memory


def test_the_three_activations_are_where_the_paper_exchanges():
    method = between("wrn16_2", "wrn16_1", generator_width=128)
    kinds = [type(method.generator[1].layers[i]) for i in method.layers]
    assert kinds == [nn.BatchNorm2d, nn.LeakyReLU, nn.LeakyReLU]
    assert [tuple(column.shape[1:]) for column in method.memory.rows] == [(128, 8, 8), (128, 16, 16), (64, 32, 32)]
    assert all(column.dtype == torch.float16 for column in method.memory.rows)
    assert method.memory.row_bytes == 212_992 + 16


def test_at_full_size_the_memory_is_bounded_by_the_published_runs_images():
    facts = dataset("cifar10")
    networks = [make_classifier(name, facts.class_names, facts.mean, facts.std, 0) for name in ("wrn16_2", "wrn16_1")]
    for protocol in ("equal", "published"):
        config = make_config("cifar10-wrn40_2-wrn16_2", method="spaceship", profile="full", protocol=protocol)
        counted = held(SpaceshipNet(*networks, config))
        assert counted.images == 51_200 and counted.bytes["memory"] == 51_200 * 213_008  # 10.9 GB


@pytest.mark.parametrize("keep", ["best", "last"])
def test_it_holds_the_activations_of_the_best_step(keep):
    method = tiny_spaceship(generator_steps=6, keep=keep)
    losses_, made, steps = [], [], method.steps

    def followed(*args):
        for step in steps(*args):
            losses_.append(step.loss.item())
            made.append([maps.clone() for maps in step.kept])
            yield step

    method.steps = followed
    method.synthesize(0)
    best = 5 if keep == "last" else losses_.index(min(losses_))
    for mine, expected in zip(method.memory.rows, made[best], strict=True):
        assert torch.equal(mine, expected.half())
    assert not method.caught


def test_each_depth_decodes_to_the_generators_own_image():
    method = tiny_spaceship()
    method.synthesize(0)
    network_, labels = method.generator[1].eval(), torch.arange(20)
    with torch.no_grad(), tapped([network_.layers[i] for i in method.layers]) as maps:
        expected = method.generator(labels)
    network_.train()
    before = copy.deepcopy(method.generator.state_dict())
    for depth in range(3):
        torch.testing.assert_close(method.decode(maps[depth], depth), expected)
    assert same(before, method.generator.state_dict()) and method.generator.training


# --- the exchange


@pytest.mark.parametrize("batch", [6, 7])
def test_each_row_keeps_half_of_its_channels_and_takes_the_others_from_the_opposite_row(batch):
    maps = torch.arange(batch * 9).float().view(batch, 9, 1, 1).expand(-1, -1, 2, 2)
    mixed = exchange(maps, 1.0, seeded())
    kept = (mixed == maps).flatten(2).all(2)
    for i in range(batch):
        opposite = batch - 1 - i
        assert kept[i].sum() == (9 if i == opposite else 4)  # of nine
        assert torch.equal(mixed[i, ~kept[i]], maps[opposite, ~kept[i]])
    assert len(kept.unique(dim=0)) == batch  # a mix, not a swap: two opposite rows keep other channels


def test_it_happens_as_often_as_asked_and_to_every_channel():
    maps, rng = torch.arange(20).float().view(2, 10, 1, 1), seeded()
    changed = torch.stack([(exchange(maps, 0.7, rng) != maps).flatten(1)[0] for _ in range(1000)])
    assert changed.any(1).float().mean() == pytest.approx(0.7, abs=0.05)
    assert (changed.float().mean(0) - 0.35).abs().max() < 0.06  # each channel in half of those
    assert torch.equal(exchange(maps, 0.0, rng), maps)


def test_a_sample_is_decoded_from_exchanged_rows_of_a_depth_drawn_at_random(monkeypatch):
    method = tiny_spaceship(exchange_rate=1.0)
    method.synthesize(0)
    seen, decode = [], method.decode
    monkeypatch.setattr(method, "decode", lambda maps, depth: seen.append((maps, depth)) or decode(maps, depth))
    batches = [method.sample(16) for _ in range(60)]
    depths = [depth for _, depth in seen]
    assert min(depths.count(depth) for depth in range(3)) > 8
    assert all(batch.images.shape == (16, 1, 8, 8) and batch.labels.shape == (16,) for batch in batches)
    stored = method.memory
    for (maps, depth), batch in zip(seen, batches, strict=True):
        own = (maps[:, None] == stored.rows[depth][None]).flatten(3).all(3)  # (16, rows, channels)
        assert not own.all(2).any(1).all()  # not all are whole rows
        share = [channels.sum(1)[stored.labels == y].max() for channels, y in zip(own, batch.labels, strict=True)]
        assert min(share) >= maps.shape[1] // 2  # half of row i stays with its label


# --- where the student looks


@pytest.mark.parametrize("name", NETWORKS)
def test_a_class_activation_map_averages_to_the_logit_without_its_bias(name):
    net, images = network(name).eval(), noise(3, 3, 32)
    assert net.ends_in_pooling((3, 32, 32))
    with torch.no_grad(), tapped([net.pooled()]) as maps:
        logits = net(images)
        cam = terms.class_activation(maps[0].relu(), net.head().weight)
    torch.testing.assert_close(cam.mean((2, 3)) + net.head().bias, logits, rtol=1e-3, atol=1e-4)


def test_a_grad_cam_is_the_maps_weighted_with_the_mean_gradient_of_the_class():
    rng = seeded()
    a = torch.randn(2, 3, 4, 4, generator=rng, requires_grad=True)
    w = torch.randn(5, 3, generator=rng)
    logits = (a.square().mean((2, 3))) @ w.T
    classes = torch.tensor([4, 1])
    (found,) = terms.grad_cams(logits, [a], classes)
    gradient = w[classes][:, :, None, None] * 2 * a / 16
    torch.testing.assert_close(found, (gradient.mean((2, 3), keepdim=True) * a).sum(1))
    assert (found < 0).any()  # no ReLU


def by_hand(method: SpaceshipNet, images: torch.Tensor) -> torch.Tensor:
    """L_S of the student as it is, the weights of both kinds of maps constants."""
    maps, logits, cams = [], [], []
    for net in (method.teacher, method.student):
        with tapped([*net.stages(), net.pooled()]) as seen:
            logits.append(net(images.clone().requires_grad_()))
        maps.append([seen[i] for i in range(3)])
        cams.append(torch.einsum("bdhw,kd->bkhw", seen[3].relu(), net.net.fc.weight.detach()))
    t, s = logits
    p, q = ((x / 30).softmax(1) for x in (t.detach(), s))
    total = 900 * (p * (p / q).log()).sum(1).mean() / 10 + (cams[0].detach() - cams[1]).square().mean()
    for of_teacher, of_student in zip(*maps, strict=True):
        found = []
        for x, a in ((t, of_teacher), (s, of_student)):
            chosen = x[torch.arange(len(images)), t.argmax(1)].sum()
            (gradient,) = torch.autograd.grad(chosen, a, retain_graph=True)
            found.append((gradient.mean((2, 3), keepdim=True) * a).sum(1))
        total = total + (found[0].detach() - found[1]).square().mean()
    return total


def test_the_students_loss_and_its_gradient_by_hand():
    method, other = tiny_spaceship(), tiny_spaceship()
    expected, loss = by_hand(other, noise(16)), method._student_loss(Batch(noise(16), None, "test"))
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
    gradients = [
        torch.autograd.grad(each, list(net.parameters()))
        for each, net in ((loss, method.student), (expected, other.student))
    ]
    for mine, wanted in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, wanted, rtol=1e-3, atol=1e-5)


def test_the_weights_of_a_grad_cam_are_constants():
    a = torch.randn(2, 3, 4, 4, generator=seeded(), requires_grad=True)
    (found,) = terms.grad_cams(a.square().mean((2, 3)), [a], torch.tensor([0, 2]))
    (gradient,) = torch.autograd.grad(found.sum(), a)
    one = a[torch.arange(2), [0, 2]]  # by hand: found = 2 mean(a) / 16 times a, of the class's channel
    torch.testing.assert_close(gradient[torch.arange(2), [0, 2]], (one.mean((1, 2), True) / 8).expand(2, 4, 4))


def test_without_the_two_terms_it_is_the_divergence_alone():
    method = tiny_spaceship(alpha_cam=0.0, alpha_gradcam=0.0)
    images = noise(16)
    with torch.no_grad():
        t, s = method.teacher(images), copy.deepcopy(method.student)(images)
    loss = method._student_loss(Batch(images, None, "test"))
    assert loss.item() == pytest.approx(losses.distillation(t, s, 30.0).item() / 10, rel=1e-4)


def test_a_student_that_is_the_teacher_has_nothing_to_learn():
    method = tiny_spaceship()
    method.student = copy.deepcopy(method.teacher).requires_grad_(True)
    assert method._student_loss(Batch(noise(16), None, "test")).item() == pytest.approx(0, abs=1e-6)


@pytest.fixture(scope="module")
def digits() -> torch.Tensor:
    """Real ones: on noise there is little to look at."""
    return load_split("digits", "test").images.float() / 255


def apart(method: SpaceshipNet, images: torch.Tensor) -> tuple[float, float]:
    """The student's maps from the teacher's: class activation, Grad-CAM."""
    images, cams, seen = images.clone().requires_grad_(), [], []
    for net in (method.teacher, method.student.eval()):
        with tapped([*net.stages(), net.pooled()]) as maps:
            seen.append((net(images), [maps[i] for i in range(3)]))
        cams.append(terms.class_activation(maps[3].relu(), net.head().weight))
    method.student.train()
    classes = seen[0][0].argmax(1)
    pairs = zip(*(terms.grad_cams(*each, classes) for each in seen), strict=True)
    return (cams[0] - cams[1]).square().mean().item(), sum((t - s).square().mean().item() for t, s in pairs)


@pytest.mark.parametrize(("weights", "which"), [((1.0, 0.0), 0), ((0.0, 1.0), 1)])
def test_each_term_teaches_where_to_look(weights, which, digits):
    """On images that the student did not see."""
    asked, plain = (
        tiny_spaceship(alpha_cam=cam, alpha_gradcam=gradcam, student_lr=0.02) for cam, gradcam in (weights, (0.0, 0.0))
    )
    for method in (asked, plain):
        for step in range(30):
            method.student_step(Batch(digits[64 * (step % 6) :][:64], None, "test"))
    assert apart(asked, digits[384:])[which] < 0.8 * apart(plain, digits[384:])[which]


def test_it_leaves_no_hook_and_no_gradient_on_the_teacher():
    setup = tiny_setup(method="spaceship")
    run_all(setup)
    method = setup.method
    for net in (method.teacher, method.student, method.generator):
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())
    assert all(p.grad is None for p in method.teacher.parameters())


# --- pairs, sizes and machines


@pytest.mark.parametrize("pair", [("wrn16_2", "wrn10_1"), ("resnet34", "resnet18"), ("vgg11", "vgg11")])
def test_networks_of_one_family_pair_up(pair):
    method = between(*pair)
    assert method.student.training and not method.teacher.training
    loss = method.student_step(Batch(noise(4, 3, 32), None, "test"))
    assert loss.isfinite()


@pytest.mark.parametrize("pair", [("vgg11", "resnet18"), ("resnet18", "wrn10_1")])
def test_others_are_refused_with_the_way_out(pair):
    with pytest.raises(
        UserError, match=r"SpaceshipNet pairs the feature maps .* or set alpha_gradcam=0, and alpha_cam"
    ):
        between(*pair)
    assert between(*pair, alpha_gradcam=0.0, alpha_cam=0.0).student_step(Batch(noise(4, 3, 32), None, "test")) > 0


def test_vgg_and_resnet_share_their_last_map():
    method = between("vgg11", "resnet18", alpha_gradcam=0.0)
    assert method.student_step(Batch(noise(4, 3, 32), None, "test")).isfinite()


def test_a_network_without_pooling_is_refused_for_cam():
    class Flat(nn.Module):
        def __init__(self):
            super().__init__()
            self.block1 = nn.Sequential(nn.Conv2d(3, 4, 3, 4, 1), nn.BatchNorm2d(4))
            self.fc = nn.Linear(4 * 64, 10)

        def forward(self, x):
            return self.fc(self.block1(x).flatten(1))

    pair = [Classifier(Flat(), NAMES, (0.5,) * 3, (0.2,) * 3) for _ in range(2)]
    with pytest.raises(UserError, match=r"need networks that end in a ReLU, .*: set alpha_cam=0"):
        between(*pair)
    assert between(*pair, alpha_cam=0.0).student_step(Batch(noise(4, 3, 32), None, "test")).isfinite()


@pytest.mark.parametrize("options", [{"generator_layout": "paper"}, {"size": 80}])
def test_another_generator_is_refused(options):
    with pytest.raises(UserError, match="generator_layout=released and images of at most 64 px"):
        between("wrn10_half", "wrn10_half", **options)


def test_an_exchange_more_often_than_always_is_refused():
    with pytest.raises(UserError, match=r"exchange_rate must lie in \[0, 1\], not 1.5"):
        tiny_spaceship(exchange_rate=1.5)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_16_bits_change_the_students_loss_by_rounding_alone(precision):
    config, told = tiny_spaceship().config, []
    for compute in (Compute(), Compute(precision)):
        method = prepare(config, device="cpu", compute=compute).method
        told.append(method._student_loss(Batch(noise(16), None, "test")).item())
    assert told[1] == pytest.approx(told[0], rel=0.05)


@pytest.mark.slow
def test_its_synthesis_is_compiled_and_its_student_step_is_not(monkeypatch):
    """Through dynamo and its backward pass, code generation left out."""
    original, asked = torch.compile, []

    def patched(function, mode=None, dynamic=None):
        asked.append(function.__name__)
        return original(function, backend="aot_eager", dynamic=dynamic)

    plain = tiny_spaceship()
    plain.synthesize(0)
    monkeypatch.setattr(torch, "compile", patched)
    method = prepare(plain.config, device="cpu", compute=Compute(steps="compiled")).method
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # it did not fall back
        method.synthesize(0)
        method.student_step(method.sample(16))
    assert method._learn.forward == method._student_loss and "_objective" in asked
    for mine, expected in zip(method.memory.rows, plain.memory.rows, strict=True):
        torch.testing.assert_close(mine, expected, rtol=0.01, atol=0.01)
