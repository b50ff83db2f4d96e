"""How it is computed changes nothing but rounding: precision, memory layout, how steps run, the folded teacher."""

import dataclasses
import io
import warnings

import pytest
import torch
from fake_graphs import without_a_gpu
from tiny import over, run_all, same, tiny_config
from torch import nn

from nayer_lib import compute as computing
from nayer_lib import steps
from nayer_lib.classifiers import build
from nayer_lib.classifiers.teacher import Classifier, load_teacher
from nayer_lib.compute import Compute, compute_of, fastest, folded
from nayer_lib.distill import distill, prepare
from nayer_lib.errors import UserError
from nayer_lib.methods import METHODS
from nayer_lib.methods.base import Batch
from nayer_lib.runs.run import Run
from nayer_lib.steps import Graphs, Running, Step

CPU = torch.device("cpu")
MEASURED = computing._measured  # other tests measure nothing
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


def test_unknown_precision_and_steps_are_told():
    with pytest.raises(UserError, match="unknown precision 'fp8'. Did you mean 'fp"):
        Compute("fp8")
    with pytest.raises(UserError, match="unknown steps 'graph'. Did you mean 'graphs'"):
        Compute(steps="graph")


def test_a_card_says_how_it_was_computed_also_where_it_is_old():
    assert compute_of({}) == Compute()
    graphs = Compute("bf16", True, "graphs")
    assert compute_of({"compute": dataclasses.asdict(graphs)}) == graphs
    old = {"precision": "bf16", "channels_last": True, "compiled": True}
    assert compute_of({"compute": old}) == Compute("bf16", True, "compiled") and "compiled" in old
    assert compute_of({"compute": old | {"compiled": False}}).steps == "eager"


# --- what suits a device


def test_a_gpu_computes_in_16_bits(monkeypatch):
    for capability, precision in (((7, 5), "fp16"), ((8, 0), "bf16"), ((9, 0), "bf16")):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, c=capability: c)
        assert fastest(torch.device("cuda")) == Compute(precision, channels_last=True)
        assert fastest(torch.device("cuda"), steps="graphs").steps == "graphs"


@pytest.fixture
def clocks(monkeypatch):
    """Have a CPU's steps last as long as it is told: seconds by kind, a list where repeats differ."""
    plain, layout, half = Compute(), Compute(channels_last=True), Compute("bf16", channels_last=True)
    asked = []

    def set_to(of_plain, of_layout, of_half):
        times = {plain: of_plain, layout: of_layout, half: of_half}
        done = dict.fromkeys(times, -1)  # the first call warms up

        def seconds(compute):
            asked.append(compute)
            done[compute] += 1
            told = times[compute]
            return told[max(0, done[compute]) % len(told)] if isinstance(told, list) else told

        asked.clear()
        MEASURED.cache_clear()
        monkeypatch.setattr(computing, "_measured", MEASURED)
        monkeypatch.setattr(computing, "_training_step", lambda compute: compute)
        monkeypatch.setattr(computing, "_seconds", seconds)
        return asked

    yield set_to
    MEASURED.cache_clear()


@pytest.mark.parametrize(
    ("times", "chosen"),
    [
        ((1.0, 1.1, 9.0), Compute()),  # no fast bfloat16
        ((1.0, 0.9, 9.0), Compute(channels_last=True)),
        ((1.0, 1.0, 0.81), Compute(channels_last=True)),  # faster by less than a fifth is not faster
        ((1.0, 0.9, 0.5), Compute("bf16", channels_last=True)),
        ((1.0, 1.1, 0.5), Compute("bf16", channels_last=True)),
        ((1.0, [1.5, 0.9, 0.9], 9.0), Compute(channels_last=True)),  # two of three
        ((1.0, [0.9, 1.5, 1.5], 9.0), Compute()),
        ((1.0, 1.1, [0.5, 0.9, 0.9]), Compute()),
    ],
    ids=str,
)
def test_a_cpu_takes_what_it_is_faster_with(clocks, times, chosen):
    asked = clocks(*times)
    assert fastest(CPU) == chosen
    before = len(asked)
    assert fastest(CPU) == chosen and len(asked) == before  # measured once a process


def test_what_is_many_times_slower_is_not_measured_to_the_end(clocks):
    asked = clocks(1.0, 1.1, 9.0)
    fastest(CPU)
    assert [c.precision for c in asked].count("bf16") == 3  # a warm-up and two repeats


def test_nothing_is_measured_where_somebody_said_or_bits_must_be_equal(clocks):
    asked = clocks(1.0, 0.5, 0.1)
    assert fastest(CPU, profile="quick") == fastest(CPU, processes=2) == Compute()
    assert fastest(CPU, profile="quick", precision="bf16") == Compute("bf16")
    assert fastest(CPU, precision="fp32", channels_last=False) == Compute() and not asked
    assert fastest(CPU, precision="fp32") == Compute(channels_last=True) and asked


def test_the_measurement_itself_changes_no_random_number(monkeypatch):
    state = torch.get_rng_state()
    computing._training_step(Compute(channels_last=True))()
    assert torch.equal(torch.get_rng_state(), state)


# --- how steps run


def test_graphs_are_refused_without_a_gpu():
    with pytest.raises(UserError, match="CUDA graphs need a CUDA device, not the cpu: take eager or compiled steps"):
        setup(Compute(steps="graphs"))


def told_of(name: str, compute: Compute) -> tuple[list, list]:
    """All losses and the student's weights of a run of a method, with rates that are the same in 32 bits and in 64."""
    options = {"rounds": 2, "generator_steps": 5, "student_steps": 5, "generator_lr": 2.0**-9}
    options |= {"student_lr": 2.0**-3, "student_lr_end": 2.0**-3}
    slow = {"student_lr": 2.0**-10, "student_lr_end": 2.0**-10, "student_steps": 9}
    options |= {"fm": {"latent_lr": 2.0**-6}, "nayer": {"generator_life": 1}, "zeroq": slow}.get(name, {})
    made = prepare(tiny_config(**over(options, {"method": name})), device="cpu", compute=compute)
    reports = [(epoch.rounds, epoch.student_loss) for epoch in run_all(made)]
    losses = [([(r.ce_per_step, r.bn, r.adv, r.extra) for r in rounds], loss) for rounds, loss in reports]
    return losses, list(made.method.student.state_dict().values())


@pytest.mark.parametrize(
    "name",
    [
        name if name in ("nayer", "fm") else pytest.param(name, marks=pytest.mark.slow)
        for name, method in METHODS.items()
        if method.makes_images
    ],
)
def test_a_replayed_run_is_the_eager_one_bit_by_bit(name, monkeypatch):
    """So no step of any method depends on what Python does in it, and all that it changes is changed in place."""
    expected = told_of(name, EAGER)
    graphs = without_a_gpu(monkeypatch)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # it did not fall back
        losses, student = told_of(name, Compute(steps="graphs"))
    assert losses == expected[0] and same(student, expected[1])
    assert len(graphs) >= 2 and sum(graph.replays for graph in graphs) > 10


class Line:
    """A step that walks down a line: x <- x - rate * slope."""

    def __init__(self, running):
        self.x = nn.Parameter(torch.zeros(2))
        self.optimizer = torch.optim.SGD([self.x], 1.0, fused=True)
        self.trains, self.called = True, 0
        self.step = Graphs(self.walk, running, lambda: self.trains)

    def walk(self, slope, sign, optimizers):
        self.called += 1
        self.optimizer.zero_grad(set_to_none=True)
        (sign * slope * self.x).sum().backward()
        self.optimizer.step()
        return self.x.detach() + 0

    def __call__(self, slope, sign=1):
        return self.step(torch.full((2,), float(slope)), sign, optimizers=[self.optimizer]).tolist()[0]


def running(steps: str) -> Running:
    return Running(Compute(steps=steps), CPU, "a test")


def test_a_graph_reads_new_arguments_and_rates_and_there_is_one_for_each_kind(monkeypatch):
    graphs = without_a_gpu(monkeypatch)
    line = Line(running("graphs"))
    assert [line(1) for _ in range(Graphs.WARMUP)] == [-1, -2, -3] and not graphs
    assert line(10) == -13 and line(100) == -113  # the first of them was captured, which ran nothing
    line.optimizer.param_groups[0]["lr"] = 2.0
    assert line(1) == -115 and [graph.replays for graph in graphs] == [3]
    assert line.called == Graphs.WARMUP + 1  # a replay runs no Python
    assert line.optimizer.param_groups[0]["lr"] == 2.0 and "capturable" not in line.optimizer.param_groups[0]
    for other in ({"sign": -1}, {}):  # another plain value, another mode
        line.trains = bool(other)
        for _ in range(Graphs.WARMUP + 1):
            line(1, **other)
    assert len(graphs) == 3 and line.x[0].item() == -115  # as many steps up as down
    line.optimizer.load_state_dict(line.optimizer.state_dict())  # what was captured does not see what was loaded
    assert line(1) == -117 and graphs[-1].replays == 1


def test_eager_steps_make_no_graph(monkeypatch):
    graphs, line = without_a_gpu(monkeypatch), Line(running("eager"))
    assert [line(1) for _ in range(9)][-1] == -9 and not graphs and line.called == 9


def test_what_cannot_be_captured_goes_on_eagerly_and_loses_no_step(monkeypatch):
    """A step that asks for a number; a scaler that was in the middle of a step goes on as well."""
    graphs, how = without_a_gpu(monkeypatch), running("graphs")
    line = Line(how)
    monkeypatch.setattr(line, "step", Graphs(lambda *a, **b: (line.walk(*a, **b), line.x[0].item())[0], how, lambda: 0))
    seen = [line(1) for _ in range(Graphs.WARMUP)]
    with pytest.warns(UserWarning, match=r"graphs steps failed \(RuntimeError: .* waits for the device.*going on with"):
        seen += [line(1), line(1)]
    assert seen == [-1, -2, -3, -4, -5] and [graph.replays for graph in graphs] == [0]
    assert how.compute.steps == "eager" and "waits for the device" in how.reason
    assert line.optimizer.param_groups[0]["lr"] == 1.0


def test_a_scaler_that_was_in_mid_step_is_replaced_by_an_equal_one():
    how = Running(Compute("fp16", steps="compiled"), CPU, "a test")
    x = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([x], 0.1)
    how.scaler.load_state_dict(how.scaler.state_dict() | {"scale": 64.0})
    how.scaler.scale(x.sum()).backward()
    how.scaler.step(optimizer)
    with pytest.warns(UserWarning):
        how.fall_back(RuntimeError("the compiler"))
    how.scaler.scale(x.sum()).backward()
    how.scaler.step(optimizer)  # the old one would refuse a second step
    assert how.scaler.get_scale() == 64.0


def test_the_card_says_what_really_ran_and_why(monkeypatch, tmp_path):
    without_a_gpu(monkeypatch)
    made = setup(Compute(steps="graphs"), generator_steps=5)
    run = Run(made, tmp_path / "run")
    assert run.card["compute"]["steps"] == "graphs" and "fell_back" not in run.card
    monkeypatch.setattr(made.method, "after_backward", lambda: torch.zeros(1).item())
    with pytest.warns(UserWarning, match="going on with eager ones"):
        list(run)
    assert run.card["compute"] == dataclasses.asdict(Compute()) and "waits for the device" in run.card["fell_back"]


def test_runs_that_differ_in_their_seed_share_what_was_compiled(monkeypatch):
    """dynamo bounds the variants of a function: those of another method or config are forgotten."""
    resets = []
    steps._forget_others.cache_clear()
    monkeypatch.setattr(torch.compiler, "reset", lambda: resets.append(1))
    compile_with("eager", monkeypatch)
    for count, options in ((1, {"seed": 0}), (1, {"seed": 1}), (2, {"bn_momentum": 0.5})):
        setup(Compute(steps="compiled"), **options)
        assert len(resets) == count


def compile_with(backend, monkeypatch) -> list:
    """torch.compile with another backend; returns what was compiled."""
    original, asked = torch.compile, []

    def patched(function, mode=None, dynamic=None):
        asked.append((function.__name__, mode, dynamic))
        return original(function, backend=backend, dynamic=dynamic)

    monkeypatch.setattr(torch, "compile", patched)
    return asked


@pytest.mark.slow
def test_a_compiled_run_computes_what_a_plain_one_does(monkeypatch):
    """Through dynamo and its backward pass, code generation left out; a rebuilt generator is not compiled again."""
    expected = told(setup())
    asked = compile_with("aot_eager", monkeypatch)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # it did not fall back
        seen = told(setup(Compute(steps="compiled")))
    assert sorted(asked) == [("_objective", None, False), ("_student_loss", None, False)]
    for (ce, bn, loss), (ce_, bn_, loss_) in zip(expected, seen, strict=True):
        assert ce == [pytest.approx(one, rel=1e-3) for one in ce_] and bn == pytest.approx(bn_, rel=1e-3)
        assert loss == (loss_ and pytest.approx(loss_, rel=1e-2))


@pytest.mark.slow
def test_so_does_generated_code():
    assert told(setup(Compute(steps="compiled")))[0][0][0] == pytest.approx(told(setup())[0][0][0], rel=1e-2)


def test_where_compiling_fails_it_goes_on_plainly_with_one_warning(monkeypatch):
    expected = told(setup())

    def broken(function, mode=None, dynamic=None):
        def fails(*args):
            raise RuntimeError("no compiler")

        return fails

    monkeypatch.setattr(torch, "compile", broken)
    made = setup(Compute(steps="compiled"))
    with pytest.warns(UserWarning, match=r"compiled steps failed \(RuntimeError: no compiler\)") as caught:
        assert told(made) == expected
    assert len([w for w in caught if "steps failed" in str(w.message)]) == 1  # for both phases
    assert made.method.compute == EAGER


def test_a_users_mistake_is_no_failure_to_compile(monkeypatch):
    def forward():
        raise UserError("the mistake")

    monkeypatch.setattr(torch, "compile", lambda function, mode=None, dynamic=None: lambda *args: function(*args))
    step = Step(forward, running("compiled"))
    with pytest.raises(UserError, match="the mistake"):
        step.backward()


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


def test_a_gpus_rounding_is_no_reason_not_to_fold(monkeypatch):
    """As with TensorFloat-32: of what enters a 32-bit convolution 10 bits of the mantissa count."""
    convolve = nn.Conv2d._conv_forward

    def coarse(self, x, weight, bias):
        if x.dtype == torch.float32:
            x, weight = ((t.contiguous().view(torch.int32) & -8192).view(torch.float32) for t in (x, weight))
        return convolve(self, x, weight, bias)

    teacher = trained_looking("resnet20")
    monkeypatch.setattr(nn.Conv2d, "_conv_forward", coarse)
    assert norms(folded(teacher, (3, 32, 32))) == 0


def test_the_folded_teachers_of_two_runs_are_of_one_class():
    """Else what was compiled with one does not serve the other."""
    one, other = (folded(load_teacher("digits", "wrn10_1"), (1, 8, 8)) for _ in range(2))
    assert type(one.net) is type(other.net) and norms(one) < norms(load_teacher("digits", "wrn10_1"))


def test_a_folding_that_changes_answers_is_not_taken(monkeypatch):
    from torch.fx.experimental import optimization

    def other(net):
        return build("wrn10_1", 10, channels=1).eval().to(next(net.parameters()).dtype)

    monkeypatch.setattr(optimization, "fuse", other)
    teacher = load_teacher("digits", "wrn10_1")
    assert folded(teacher, (1, 8, 8)) is teacher


# --- on a GPU, where there is one


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_the_fast_path_agrees_with_plain_32_bits_on_a_gpu():
    device = torch.device("cuda")
    plain, fast = first_losses(EAGER, "cuda"), first_losses(fastest(device), "cuda")
    assert torch.allclose(plain, fast, rtol=0.03)
    assert [len(r) for r in told(setup(fastest(device), "cuda"))] == [3, 3, 3]
