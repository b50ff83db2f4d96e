"""The student step of both KAKR: theta', the gradient through it, and BatchNorm's statistics."""

import copy

import pytest
import torch
from tiny import tiny_config, tiny_setup
from torch import nn

from nayer_lib.compute import Compute
from nayer_lib.config import make_config
from nayer_lib.distill import prepare
from nayer_lib.methods import METHODS
from nayer_lib.methods.base import Batch
from nayer_lib.methods.kakr import Bilevel, retention
from nayer_lib.methods.mbdfkd import MBDFKD
from nayer_lib.methods.prekd import PREKD

KAKR = ["kakr_mb", "kakr_gr"]


@pytest.fixture(params=KAKR)
def name(request):
    return request.param


def tiny_kakr(name: str, **overrides) -> Bilevel:
    return tiny_setup(method=name, **overrides).method


def batch(replayed: int) -> Batch:
    return Batch(torch.rand(24, 1, 8, 8, generator=torch.Generator().manual_seed(0)), None, "test", replayed)


def gradient(method: Bilevel, some: Batch) -> torch.Tensor:
    method.student.zero_grad()
    method._student_loss(some).backward()
    return torch.cat([p.grad.flatten() for p in method.student.parameters()])


def test_one_keeps_a_ring_and_one_a_vae():
    assert issubclass(METHODS["kakr_mb"], MBDFKD) and issubclass(METHODS["kakr_gr"], PREKD)
    assert [make_config(method=name).inner_lr for name in KAKR] == [0.9, 0.9]


# --- the loss


@pytest.fixture
def toy():
    """A network of 64-bit floats without kinks, with BatchNorm, and what `retention` asks of it."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 3)).double()
        new, t_new, old, t_old = (torch.randn(n, m).double() for n, m in ((8, 5), (8, 3), (6, 5), (6, 3)))
    return network, new, t_new, old, t_old


def test_retention_by_hand_is_the_loss_after_a_step_of_gradient_descent(toy):
    network, new, t_new, old, t_old = toy
    stepped = copy.deepcopy(network)
    (t_new - stepped(new)).abs().mean().backward()
    torch.optim.SGD(stepped.parameters(), 0.3).step()
    expected = (t_old - stepped(old)).abs().mean()
    assert retention(*toy, 0.3).item() == pytest.approx(expected.item(), rel=1e-12)
    assert retention(*toy, 0.0).item() == pytest.approx((t_old - network(old)).abs().mean().item(), rel=1e-12)


def test_its_gradient_is_that_of_finite_differences(toy):
    network = toy[0]
    parameters = list(network.parameters())
    told = torch.autograd.grad(retention(*toy, 0.3), parameters)
    first_order = torch.autograd.grad(retention(*toy, 0.0), parameters)
    for p, slope, plain in zip(parameters, told, first_order, strict=True):
        found = torch.zeros_like(p)
        for i in range(p.numel()):
            ends = []
            for step in (1e-6, -1e-6):
                with torch.no_grad():
                    p.view(-1)[i] += step
                ends.append(retention(*toy, 0.3).item())
                with torch.no_grad():
                    p.view(-1)[i] -= step
            found.view(-1)[i] = (ends[0] - ends[1]) / 2e-6
        torch.testing.assert_close(slope, found, rtol=1e-5, atol=1e-7)
        assert p.shape != (6, 5) or not torch.allclose(slope, plain, rtol=0.05)  # the step counts


def test_retention_leaves_parameters_gradients_and_buffers_alone(toy):
    network = toy[0]
    before = copy.deepcopy(network.state_dict())
    retention(*toy, 0.3)
    assert all(torch.equal(value, network.state_dict()[key]) for key, value in before.items())
    assert all(p.grad is None for p in network.parameters())


def test_the_students_loss_is_retention_and_the_joint_one(name):
    method, some = tiny_kakr(name), batch(4)
    student = copy.deepcopy(method.student)
    with torch.no_grad():
        t = method.teacher(some.images)
        joint = (t - student(some.images)).abs().mean()
    kept = retention(copy.deepcopy(method.student), some.images[:20], t[:20], some.images[20:], t[20:], 0.9)
    assert method.student_step(some).item() == pytest.approx((joint + kept).item(), rel=1e-4)


def test_its_gradient_differs_from_that_of_the_plain_step_and_of_no_inner_step(name):
    method, still = tiny_kakr(name), tiny_kakr(name, inner_lr=0.0)
    inner, plain, first_order = gradient(method, batch(4)), gradient(method, batch(0)), gradient(still, batch(4))
    assert (inner - plain).norm() > 0.1 * plain.norm() and (inner - first_order).norm() > 0.05 * inner.norm()


def test_with_nothing_to_replay_it_is_the_plain_step(name):
    method = tiny_kakr(name)
    plain = METHODS["mbdfkd" if name == "kakr_mb" else "prekd"](
        method.teacher, copy.deepcopy(method.student), method.config, facts=method.facts
    )
    assert torch.equal(gradient(method, batch(0)), gradient(plain, batch(0)))


def test_one_step_acquires_without_forgetting_more_than_a_plain_one():
    """Steps that look ahead leave the remembered images closer to the teacher after a step towards new ones."""
    looking, blind = tiny_kakr("kakr_mb", inner_lr=0.1), tiny_kakr("kakr_mb", inner_lr=0.0)
    some = batch(8)
    after = []
    for method in (looking, blind):
        for _ in range(10):
            method.student_step(some)
        with torch.no_grad():
            t = method.teacher(some.images)
        after.append(retention(method.student, some.images[:16], t[:16], some.images[16:], t[16:], 0.1).item())
    assert after[0] < after[1]


# --- BatchNorm


def test_running_statistics_move_once_a_step_by_the_joint_batch(name):
    method, some = tiny_kakr(name), batch(4)
    alone = copy.deepcopy(method.student)
    with torch.no_grad():
        alone(some.images)
    method.student_step(some)
    moved = dict(method.student.named_buffers())
    for key, expected in alone.named_buffers():
        torch.testing.assert_close(moved[key], expected)
    counted = [buffer.item() for key, buffer in moved.items() if key.endswith("num_batches_tracked")]
    assert counted and set(counted) == {1}


# --- compiled steps


def test_its_student_step_is_not_compiled(name):
    method = prepare(tiny_config(method=name), device="cpu", compute=Compute(steps="compiled")).method
    assert method._learn.forward is method._learn.plain and method._synthesis.forward is not method._synthesis.plain
