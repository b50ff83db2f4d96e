"""How it is computed changes nothing but rounding: precision, memory layout, compiled steps, the folded teacher."""

import io
import warnings

import pytest
import torch
from tiny import run_all, tiny_config
from torch import nn

from nayer_lib.classifiers import build
from nayer_lib.classifiers.teacher import Classifier, load_teacher
from nayer_lib.compute import Compute, Step, fastest, folded
from nayer_lib.distill import distill, prepare
from nayer_lib.errors import UserError
from nayer_lib.methods.base import Batch

CPU = torch.device("cpu")
EAGER = Compute()


def setup(compute=EAGER, device="cpu", **overrides):
    return prepare(tiny_config(**{"generator_life": 1, **overrides}), device=device, compute=compute)


def told(made) -> list:
    """Losses of a run, step by step."""
    epochs = run_all(made)
    return [([r.ce_per_step for r in e.rounds], [r.bn for r in e.rounds], e.student_loss) for e in epochs]


def first_losses(compute, device="cpu") -> torch.Tensor:
    """Eq. 5 and its terms, and Eq. 6, on the first images, before any update."""
    method = setup(compute, device).method
    labels = torch.arange(20, device=device) % 10
    method.generator[0].redraw(torch.Generator(device).manual_seed(0))
    with method.bn_loss.armed():
        loss, terms, images = method._objective(labels, None, adversarial=True)
    learned = method._student_loss(Batch(images.detach(), labels, "test"))
    return torch.stack([loss.detach(), *terms.detach(), learned.detach()]).cpu()


@pytest.mark.parametrize(("precision", "tolerance"), [("bf16", 0.03), ("fp16", 0.004)])
def test_half_precision_agrees_with_32_bits_on_the_first_losses(precision, tolerance):
    """bfloat16 has 8 bits of precision, float16 has 11; the losses sum over many numbers."""
    plain, half = first_losses(EAGER), first_losses(Compute(precision))
    assert not torch.equal(plain, half)
    assert torch.allclose(plain, half, rtol=tolerance)


@pytest.mark.parametrize("compute", [Compute("bf16"), Compute("fp16"), Compute(channels_last=True)], ids=str)
def test_a_run_ends_and_goes_on_after_a_file_with_each(compute):
    whole = setup(compute, epochs=3)
    run_all(whole)
    first, second = setup(compute, epochs=3), setup(compute, epochs=3)
    epochs = distill(first.method, first.evaluate)
    for _ in range(2):
        next(epochs)
    file = io.BytesIO()
    torch.save(first.method.state_dict(), file)
    file.seek(0)
    second.method.load_state_dict(torch.load(file, weights_only=True))
    run_all(second, start=2)
    ends = [made.method.student.net.state_dict() for made in (whole, second)]
    assert all(torch.equal(a, b) for a, b in zip(*(end.values() for end in ends), strict=True))
    assert all(p.dtype == torch.float32 for p in second.method.student.parameters())  # only passes are in 16 bits


def test_float16_scales_its_loss_and_leaves_out_steps_that_overflow():
    method = setup(Compute("fp16")).method
    assert method.scaler.is_enabled() and not setup(Compute("bf16")).method.scaler.is_enabled()
    method.synthesize(1)
    before = {name: p.clone() for name, p in method.student.named_parameters()}
    method.scaler.load_state_dict(method.scaler.state_dict() | {"scale": 2.0**100})
    method.student_step(method.sample(16))
    assert all(torch.equal(before[name], p) for name, p in method.student.named_parameters())
    assert method.scaler.get_scale() < 2.0**100


def test_a_resumed_run_goes_on_with_the_scale_that_it_had():
    """Else a scale that overflowed is tried again, and steps are left out that the whole run took."""
    first, second = (setup(Compute("fp16")).method for _ in range(2))
    first.synthesize(1)
    first.scaler.load_state_dict(first.scaler.state_dict() | {"scale": 2.0**100})
    first.student_step(first.sample(16))  # overflows: half of it is tried next
    second.load_state_dict(first.state_dict())
    assert second.scaler.get_scale() == first.scaler.get_scale() == 2.0**99


def test_an_unknown_precision_is_told():
    with pytest.raises(UserError, match="unknown precision 'fp8'. Did you mean 'fp"):
        Compute("fp8")


def test_a_cpu_computes_plainly_and_a_gpu_in_16_bits(monkeypatch):
    assert fastest(CPU) == Compute("fp32", channels_last=False, compiled=False)
    for capability, precision in (((7, 5), "fp16"), ((8, 0), "bf16"), ((9, 0), "bf16")):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, c=capability: c)
        assert fastest(torch.device("cuda")) == Compute(precision, channels_last=True, compiled=True)
        assert not fastest(torch.device("cuda"), profile="quick").compiled


# --- compiled steps


def compile_with(backend, monkeypatch) -> list:
    """torch.compile with another backend; returns what was compiled."""
    original, asked = torch.compile, []

    def patched(function, mode=None, dynamic=None):
        asked.append((function.__name__, mode, dynamic))
        return original(function, backend=backend, dynamic=dynamic)

    monkeypatch.setattr(torch, "compile", patched)
    return asked


def test_a_compiled_run_computes_what_a_plain_one_does(monkeypatch):
    """Through dynamo and its backward pass, code generation left out; a rebuilt generator is not compiled again."""
    expected = told(setup())
    asked = compile_with("aot_eager", monkeypatch)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # it did not fall back
        seen = told(setup(Compute(compiled=True)))
    assert sorted(asked) == [("_objective", None, False), ("_student_loss", None, False)]
    for (ce, bn, loss), (ce_, bn_, loss_) in zip(expected, seen, strict=True):
        assert ce == [pytest.approx(one, rel=1e-3) for one in ce_] and bn == pytest.approx(bn_, rel=1e-3)
        assert loss == (loss_ and pytest.approx(loss_, rel=1e-2))


@pytest.mark.slow
def test_so_does_generated_code():
    assert told(setup(Compute(compiled=True)))[0][0][0] == pytest.approx(told(setup())[0][0][0], rel=1e-2)


def test_where_compiling_fails_it_goes_on_plainly_with_one_warning(monkeypatch):
    expected = told(setup())

    def broken(function, mode=None, dynamic=None):
        def fails(*args):
            raise RuntimeError("no compiler")

        return fails

    monkeypatch.setattr(torch, "compile", broken)
    made = setup(Compute(compiled=True))
    with pytest.warns(UserWarning, match=r"torch.compile failed \(RuntimeError\)") as caught:
        assert told(made) == expected
    assert len([w for w in caught if "torch.compile failed" in str(w.message)]) == 2  # one for each phase's step


def test_a_users_mistake_is_no_failure_to_compile(monkeypatch):
    def forward():
        raise UserError("the mistake")

    monkeypatch.setattr(torch, "compile", lambda function, mode=None, dynamic=None: lambda *args: function(*args))
    step = Step(forward, Compute(compiled=True), CPU)
    with pytest.raises(UserError, match="the mistake"):
        step.backward(scaler=EAGER.scaler(CPU))


# --- the folded teacher


def trained_looking(name, channels=3) -> Classifier:
    """A network whose BatchNorms have something to fold."""
    torch.manual_seed(0)
    net = build(name, 10, channels=channels)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight.data, module.running_var):
                tensor.uniform_(0.5, 2)
            for tensor in (module.bias.data, module.running_mean):
                tensor.normal_(0, 0.1)
    return Classifier(net, [str(k) for k in range(10)], (0.5,) * channels, (0.2,) * channels).freeze()


def norms(classifier) -> int:
    return len(classifier.batch_norms())


@pytest.mark.parametrize(("name", "left"), [("resnet20", 0), ("wrn16_1", 7)])
def test_a_folded_teacher_gives_the_same_answers(name, left):
    """A pre-activation network has BatchNorms that follow no convolution: they stay."""
    teacher = trained_looking(name)
    state = {key: value.clone() for key, value in teacher.net.state_dict().items()}
    quick = folded(teacher, (3, 32, 32))
    images = torch.rand(5, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(quick(images), teacher(images), rtol=1e-4, atol=1e-4)
    assert quick is not teacher and norms(quick) == left < norms(teacher)
    assert quick.mean == teacher.mean and not quick.training
    assert all(torch.equal(state[key], value) for key, value in teacher.net.state_dict().items())


def test_a_teacher_that_cannot_be_traced_is_taken_as_it_is():
    class Branching(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(3, 10, 3), nn.BatchNorm2d(10))

        def forward(self, x):
            return self.body(x).mean((2, 3)) if x.sum() > 0 else x.mean((2, 3))

    teacher = Classifier(Branching(), [str(k) for k in range(10)], (0.5,) * 3, (0.2,) * 3).freeze()
    assert folded(teacher, (3, 8, 8)) is teacher


def test_a_folding_that_changes_answers_is_not_taken(monkeypatch):
    from torch.fx.experimental import optimization

    monkeypatch.setattr(optimization, "fuse", lambda net: build("wrn10_1", 10, channels=1).eval())
    teacher = load_teacher("digits", "wrn10_1")
    assert folded(teacher, (1, 8, 8)) is teacher


# --- on a GPU, where there is one


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_the_fast_path_agrees_with_plain_32_bits_on_a_gpu():
    device = torch.device("cuda")
    plain, fast = first_losses(EAGER, "cuda"), first_losses(fastest(device), "cuda")
    assert torch.allclose(plain, fast, rtol=0.03)
    assert [len(r) for r in told(setup(fastest(device), "cuda"))] == [3, 3, 3]
