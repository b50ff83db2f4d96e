"""What every method behind the seam promises. A new method is one line in METHODS; then all of this is asked of it."""

import copy
import dataclasses
import itertools

import pytest
import torch
from test_ranks import connected, whole_run
from tiny import QUANTISED, over, run_all, same, through_a_file, tiny_config, tiny_setup

from nayer_beyond.quantised import layers
from nayer_lib.base_config import QUANTISATION
from nayer_lib.classifiers.teacher import Classifier, load_teacher
from nayer_lib.compute import Compute
from nayer_lib.config import fields_of, make_config
from nayer_lib.datasets import Split, load_split
from nayer_lib.distill import Epoch, Setup, distill, prepare
from nayer_lib.errors import UserError
from nayer_lib.methods import KINDS, METHODS
from nayer_lib.methods.base import Batch, Method, SynthesisReport
from nayer_lib.methods.inversion import Inversion

KEEPING = [name for name, method in METHODS.items() if issubclass(method, Inversion)]  # what they make, in a memory


MAKING = [name for name, method in METHODS.items() if method.makes_images]


@pytest.fixture(params=sorted(METHODS), scope="module")
def name(request):
    return request.param


@pytest.fixture
def making(name):
    """A method that makes images: the others have nothing to show."""
    if name not in MAKING:
        pytest.skip("it makes no images")
    return name


def outcome(setup) -> tuple:
    """What a run leaves: its images with their labels, and the student."""
    seen = setup.method.examples()
    return [seen.images, seen.labels], setup.method.student.state_dict()


def rebuilt(name: str, seed: int = 0) -> Setup:
    """A run of three epochs, with a new generator in each where the method makes new ones."""
    return tiny_setup(**over({"generator_life": 1}, {"method": name, "seed": seed}))


@dataclasses.dataclass(frozen=True)
class Ran:
    """A run that has ended, for every test that only looks at it: its epochs, what it left, images after each epoch."""

    setup: Setup
    teacher: Classifier  # whole, also where the method has it as a black box
    epochs: list[Epoch]
    outcome: tuple
    images: list[int]


@pytest.fixture(scope="module")
def ran(name) -> Ran:
    torch.manual_seed(1)
    setup, epochs, images = rebuilt(name), [], []
    for epoch in distill(setup.method, setup.evaluate):
        epochs.append(epoch)
        images.append(len(setup.method.memory))
    return Ran(setup, setup.evaluate.classifier, epochs, copy.deepcopy(outcome(setup)), images)


def test_it_says_what_it_is(name):
    method = METHODS[name]
    config = make_config(profile="full", method=name, protocol="published")
    assert issubclass(method, Method) and type(config) is method.config_class
    assert {field: getattr(config, field) for field in method.published} == method.published
    assert method.name and method.citation[-4:].isdigit()


def test_its_images_are_bytes_to_look_at_and_in_0_to_1_when_drawn(name, making, ran):
    method, facts = ran.setup.method, ran.setup.method.facts
    shape = (facts.channels, facts.size, facts.size)
    seen = method.examples()
    assert seen.images.dtype == torch.uint8 and seen.images.shape[1:] == shape
    assert seen.images.float().std() > 1  # not one grey
    assert seen.labels.dtype == torch.long and len(seen.labels) == len(seen.images)
    assert set(seen.labels.tolist()) <= set(range(len(method.teacher.class_names)))

    batch = method.sample(7)
    assert isinstance(batch, Batch) and batch.source
    assert batch.images.shape == (7, *shape) and (batch.labels is None) == (name not in KEEPING)
    assert batch.labels is None or batch.labels.shape == (7,)
    assert batch.images.is_floating_point() and batch.images.min() >= 0 and batch.images.max() <= 1
    assert not batch.images.requires_grad


def test_the_teacher_is_left_as_it_was(ran):
    teacher, before = ran.teacher, load_teacher("digits", ran.setup.method.config.teacher)
    assert any(key.endswith("running_mean") for key in before.state_dict())  # buffers too, and the count of batches
    assert same(before.state_dict(), teacher.state_dict())
    assert not any(module.training for module in teacher.modules())
    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in teacher.modules())  # nothing left behind


# A run in which every field has something to decide: a new G, a reset, a push and a second rate within three epochs,
# two rounds an epoch, a full ring and a full bank.
BUSY = {"repeats": 1, "rounds": 2, "warmup_rounds": 1, "warmup_epochs": 1, "epochs": 2, "generator_steps": 3} | {
    "generator_batch": 20,
    "generator_life": 1,
    "generator_lr": 0.1,
    "generator_width": 8,
    "noise_dim": 16,
    "student_steps": 2,
    "student_batch": 18,
    "alpha_adv": 1.0,
    "bank_size": 40,
    "bank_draw": 10,
    "ring_batches": 1,
    "fine_tune": True,
}
# Another value of a field, where it is not half of the usual one, one more of them, or the contrary.
OTHER = {"student": "wrn10_1", "encoder": "doc2vec", "prompt": "p2", "latent": "lte", "embedding": "orthogonal"} | {
    "generator_layout": "paper",
    "generator_width": 10,
    "generator_betas": (0.9, 0.99),
    "keep": "last",
    "memory_size": 4,
    "reset_after": 1.0,
    "vae_share": 1.0,
    "exchange_rate": 0.0,
    "exchange": 0.0,
    "crm_largest_map": 4,
    "weight_bits": 3,
    "activation_bits": 3,
    "edge_bits": 8,
    "weight_scale": "tensor",
    "quantised_bn": "train",
    "answers": "labels",
}
# What a field needs beside it to decide anything.
BESIDE = {"latent_beta": {"latent": "sum_lte"}, "latent_concat": {"latent": "cat_lte"}} | {
    "nayer_noise_dim": {"nayer_generator": True},
    "keep": {"generator_lr": 0.5, "generator_steps": 8},  # steps that overshoot: the last is not the best
}
NAYERS_G = {"coupled_generator": False, "alpha_x": 0.0}  # CPNet has another
BESIDE |= dict.fromkeys(("generator_width", "generator_layout", "spectral_norm"), NAYERS_G)
BESIDE |= dict.fromkeys(QUANTISATION, {"student": "wrn10_1", "weight_bits": 4})
SMALL_RATE = {"student_lr": 1e-3, "retention": 1e-3}  # at the usual ones a quantised student diverges
NAMES = {"method", "dataset", "teacher"}  # they say what is built
LIMITS = {"budget"}  # it only says when a run stops
LABELS = {"protocol", "variant", "profile"}  # they say where the other values come from; `fastest` compiles no "quick"


def another(name: str, value):
    if name in OTHER:
        return OTHER[name] if OTHER[name] != value else "wrn10_half"  # of a quantised student: refused
    return not value if isinstance(value, bool) else value + 1 if isinstance(value, int) else value / 2 + 0.03


@pytest.mark.slow
def test_every_field_of_its_config_changes_the_run_or_is_refused(name):
    """A field that does nothing would be swept, and "no effect" written down of it."""
    teacher, test = load_teacher("digits", "wrn10_1"), load_split("digits", "test")
    few = Split(test.images[:50], test.labels[:50])

    def run(overrides: dict):
        try:
            setup = prepare(make_config("digits", **overrides), teacher, test=few, device="cpu")
        except UserError:
            return "refused"
        epochs = list(distill(setup.method, lambda student: None))
        return len(epochs), *outcome(setup), setup.evaluate.logits(setup.method.student)

    def equal(one, other) -> bool:
        return one != "refused" != other and one[0] == other[0] and same(one[1:], other[1:])

    bits = QUANTISED if METHODS[name].needs_bits else {}
    busy, dead = over(BUSY | bits, {"method": name}), []
    usual = run(busy)
    fixed = set() if name in MAKING else {"seed"}  # what makes no images may draw nothing
    for field in sorted(fields_of(name) - NAMES - LIMITS - LABELS - fixed):
        needed = BESIDE.get(field, {}) | (SMALL_RATE if field in QUANTISATION else {})
        beside = busy | over(needed, {"method": name})
        value = getattr(make_config("digits", **beside), field)
        before = run(beside) if field in BESIDE else usual
        if equal(before, run(beside | {field: another(field, value)})):
            dead.append(field)
    assert usual != "refused"
    assert not dead, dead


@pytest.mark.parametrize("field", ["generator_life", "temperature", "alpha_tv"])
def test_a_field_that_it_does_not_read_is_refused_with_the_methods_that_do(name, field):
    readers = [other for other in KINDS if field in fields_of(other)]
    if name in readers:
        assert getattr(make_config(method=name, **{field: 3}), field) == 3
        return
    with pytest.raises(UserError, match=f"^{name} does not read {field}: of all methods {', '.join(readers)} do.$"):
        make_config(method=name, **{field: 3})


def test_it_freezes_a_teacher_that_is_not(name):
    method = tiny_setup(method=name).method
    teacher = method.teacher.train().requires_grad_(True)
    METHODS[name](teacher, method.student, method.config, method.table)
    assert not any(module.training for module in teacher.modules())
    assert not any(p.requires_grad for p in teacher.parameters())


def test_the_same_seed_gives_the_same_run_and_another_seed_another(name, making, ran):
    """Whatever torch's global randomness is, which is neither read nor moved."""
    torch.manual_seed(2)
    before = torch.get_rng_state()
    again, other = rebuilt(name), rebuilt(name, seed=1)
    for setup in (again, other):
        run_all(setup)
    assert torch.equal(torch.get_rng_state(), before)
    assert same(ran.outcome, outcome(again))
    assert not torch.equal(ran.outcome[0][0], other.method.examples().images)
    assert not same(ran.outcome[1], other.method.student.state_dict())


def test_its_reports_count_what_happened(name, ran):
    config, held = ran.setup.method.config, 0
    assert len(ran.epochs) == config.total_epochs
    for epoch, images in zip(ran.epochs, ran.images, strict=True):
        assert len(epoch.rounds) == config.repeats * config.synthesis_rounds(epoch.epoch)
        for report in epoch.rounds:
            assert isinstance(report, SynthesisReport)
            assert report.steps == len(report.ce_per_step) == config.generator_steps
            assert all(ce > 0 for ce in report.ce_per_step)
            assert report.seconds > 0 and report.images > 0 and report.bn >= 0
        held += sum(report.images for report in epoch.rounds)
        assert epoch.images == images == (held if name in KEEPING else 0)


def test_looking_at_its_images_changes_nothing(ran):
    method = ran.setup.method
    before = through_a_file(method.state_dict())
    first, again = method.examples(), method.examples()
    assert torch.equal(first.images, again.images) and torch.equal(first.labels, again.labels)
    assert same(before, method.state_dict())


def test_the_student_is_trainable_and_in_train_mode_after_a_round(name, making):
    method = tiny_setup(method=name).method
    for epoch in (0, method.config.total_epochs - 1):
        method.begin_epoch(epoch)
        before = {key: value.clone() for key, value in method.student.state_dict().items()}
        method.synthesize(epoch)
        assert method.student.training and all(p.requires_grad and p.grad is None for p in method.student.parameters())
        assert all(torch.equal(before[key], p) for key, p in method.student.named_parameters())


@pytest.mark.parametrize("name", [name for name in METHODS if make_config(method=name).alpha_adv])
def test_its_adversarial_term_is_there_against_a_student_that_is_not_the_teacher(name):
    """Published code has passed the teacher as the student: then the term stands at its highest on any images."""
    unmasked = over({"adversarial_mask": False}, {"method": name})
    method = tiny_setup(warmup_epochs=0, epochs_include_warmup=False, **unmasked).method
    twin = copy.deepcopy(method.teacher)
    twin.quantisation = method.student.quantisation  # what it is asked for, if only in name
    itself = METHODS[name](method.teacher, twin, method.config, method.table)
    method.begin_epoch(0)
    itself.begin_epoch(0)
    assert method.synthesize(0).adv < itself.synthesize(0).adv - 1e-3  # more than rounding


@pytest.mark.parametrize("name", [name for name in KEEPING if "memory_size" in fields_of(name)])
def test_its_memory_is_bounded_where_the_config_says_so(name):
    setup = tiny_setup(method=name, memory_size=30)
    epochs = run_all(setup)
    made = itertools.accumulate(sum(report.images for report in epoch.rounds) for epoch in epochs)
    assert [epoch.images for epoch in epochs] == [min(30, count) for count in made] and epochs[-1].images == 30
    assert all(len(column) == 30 for column in setup.method.memory.rows)
    assert setup.method.memory.rounds.min() > 0  # the oldest left


BOUNDED = {"memory_size": 30, "generator_life": 1}
INTERRUPTED = [(name, {}) for name in MAKING] + [
    pytest.param(name, BOUNDED, id=f"{name}, bounded, rebuilt", marks=() if name == "nayer" else pytest.mark.slow)
    for name in METHODS
    if fields_of(name) & set(BOUNDED)
]


@pytest.mark.parametrize(("name", "options"), INTERRUPTED)
def test_interrupted_is_uninterrupted(name, options):
    """After one epoch and after two; that saving moves nothing is asked where its images are looked at."""
    options = over(options, {"method": name, "epochs": 3, "seed": 3})
    whole, expected, states = tiny_setup(**options), [], []
    for epoch in distill(whole.method, whole.evaluate):
        expected.append(epoch)
        states.append(through_a_file(whole.method.state_dict()))

    for done in (1, 2):
        second = tiny_setup(**options)
        second.method.load_state_dict(states[done - 1])
        rest = run_all(second, start=done)
        assert same(outcome(second), outcome(whole))
        assert same(second.method.state_dict(), whole.method.state_dict())
        resumed, uninterrupted = (
            [(e.epoch, e.images, e.student_loss, [r.ce_per_step for r in e.rounds]) for e in epochs]
            for epochs in (rest, expected)
        )
        assert resumed == uninterrupted[done:]


def test_a_state_says_the_same_after_loading(name, ran):
    method, fresh = ran.setup.method, rebuilt(name, seed=9).method
    assert not same(method.state_dict(), fresh.state_dict())
    fresh.load_state_dict(through_a_file(method.state_dict()))
    assert same(method.state_dict(), fresh.state_dict())
    for n in (9, 200):  # and draws the same images next, also past the end of the present shuffle
        mine, other = method.sample(n), fresh.sample(n)
        assert torch.equal(mine.images, other.images) and same([mine.labels], [other.labels])


def test_what_saved_names_comes_back_whatever_it_is():
    """A part with a state of its own stays the same object; tensors come to the method's device, here "meta" as a GPU;
    nothing may be a part, too."""

    class Example(METHODS["dfad"]):
        saved = (*METHODS["dfad"].saved, "part", "count", "single", "several", "off")
        part, count, single, several, off = None, 0, None, [], None

    def example() -> Example:
        made = tiny_setup(method="dfad").method
        method = Example(made.teacher, made.student, made.config)
        method.part = torch.nn.Linear(1, 1)
        return method

    method, fresh = example(), example()
    method.count, method.single, method.several = 3, torch.ones(2), [torch.ones(1), torch.zeros(2)]
    part, fresh.device = fresh.part, torch.device("meta")
    fresh.load_state_dict(through_a_file(method.state_dict()))
    assert fresh.part is part and torch.equal(part.weight, method.part.weight)
    assert fresh.count == 3 and fresh.off is None
    assert [(x.device.type, len(x)) for x in (fresh.single, *fresh.several)] == [("meta", 2), ("meta", 1), ("meta", 2)]
    with pytest.raises(KeyError):
        fresh.load_state_dict(tiny_setup(method="dfad").method.state_dict())


@pytest.mark.parametrize("precision", ["bf16", pytest.param("fp16", marks=pytest.mark.slow)])
def test_it_runs_in_16_bits(name, making, precision):
    setup = prepare(tiny_config(method=name), device="cpu", compute=Compute(precision))
    before = setup.method.student.net.fc.weight.clone()
    run_all(setup)
    assert all(value.isfinite().all() for value in setup.method.student.state_dict().values())
    assert not torch.equal(before, setup.method.student.net.fc.weight)
    assert setup.method.examples().images.float().std() > 1


BITS = {"student": "wrn10_1", "weight_bits": 3, "activation_bits": 3} | SMALL_RATE


def rounded(name: str, **options) -> Setup:
    return tiny_setup(**over(BITS | {"student_trains_in_synthesis": False}, {"method": name} | options))


def test_its_student_can_be_quantised(name):
    """A table of the paper has four methods; all of the kit's make one."""
    setup = rounded(name)
    student = setup.method.student
    assert len(layers(student.net)) == 10 and student.quantisation.weight_bits == 3
    before = {key: value.clone() for key, value in student.named_parameters()}
    run_all(setup)
    assert all(value.isfinite().all() for value in student.state_dict().values())
    assert any(not torch.equal(before[key], value) for key, value in student.named_parameters()) == (name in MAKING)
    assert all(len(row.unique()) <= 2**3 - 1 for row in layers(student.net)[0].weight_on_grid())


@pytest.mark.parametrize("name", ["nayer", "dfad"])  # one that keeps images, one whose generator lives
def test_a_quantised_student_is_resumed_exactly(name):
    whole, states = rounded(name), []
    for _ in distill(whole.method, whole.evaluate):
        states.append(through_a_file(whole.method.state_dict()))
    second = rounded(name)
    second.method.load_state_dict(states[-2])
    run_all(second, start=len(states) - 1)
    assert same(second.method.state_dict(), whole.method.state_dict())
    assert any(key.endswith(".low") for key in whole.method.student.state_dict())


def test_ranks_agree_on_what_they_train_and_draw_for_themselves(name, making, tmp_path):
    one, other = connected(lambda: whole_run(method=name), tmp_path)
    assert same(one["student"], other["student"]) and same(one["shared"], other["shared"])
    assert one["told"] == other["told"] and not torch.equal(one["rng"], other["rng"])
    assert len(one["images"]) == len(other["images"])
    assert name not in KEEPING or not torch.equal(one["images"], other["images"])


def test_teacher_and_student_must_have_the_same_classes_in_the_same_order(name):
    method = tiny_setup(method=name).method
    method.student.class_names = method.student.class_names[::-1]
    with pytest.raises(ValueError, match="same class names in the same order"):
        METHODS[name](method.teacher, method.student, method.config, method.table)
