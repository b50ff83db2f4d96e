"""Training a teacher: the loss falls, the seed decides, and interrupted is uninterrupted."""

import pytest
import torch
from torch.nn import functional as F

from nayer_lib.augment import crop_and_flip
from nayer_lib.classifiers import training as training_file
from nayer_lib.classifiers.teacher import make_classifier
from nayer_lib.classifiers.training import RECIPES, Recipe, Training, resume_training, save_partial
from nayer_lib.compute import PRECISIONS, Compute
from nayer_lib.datasets import dataset, load_split
from nayer_lib.errors import MissingFile, UserError
from nayer_lib.files import tensors_hash

ABOUT = {"network": "wrn10_half", "recipe": {"epochs": 3}, "seed": 0}


@pytest.fixture(scope="module")
def drawings():
    """A few digits to learn."""
    fit = load_split("digits", "fit")
    return fit.images[:160], fit.labels[:160]


def as_they_are(batch, rng):
    return batch


def cropped(batch, rng):
    return crop_and_flip(batch, 1, False, rng)


def begun(drawings, recipe, seed=0, augment=as_they_are, weights=0):
    """A training that has not begun; the classifier's weights have a seed of their own."""
    made = make_classifier("wrn10_half", dataset("digits").class_names, (0.3,), (0.4,), seed=weights)
    return Training(made, *drawings, augment, recipe, seed)


def trained(drawings, recipe, seed=0, augment=as_they_are):
    """The weights' hash after training, and the loss of each epoch."""
    training = begun(drawings, recipe, seed, augment)
    losses = list(training)
    return tensors_hash(training.classifier.state_dict()), losses


@pytest.mark.parametrize("one_cycle", [False, True])
def test_training_lowers_the_loss(drawings, one_cycle):
    training = begun(drawings, Recipe(epochs=4, batch=32, nesterov=True, one_cycle=one_cycle))
    losses, made = list(training), training.classifier
    assert len(losses) == training.epoch == 4 and losses[-1] < 0.6 * losses[0]
    assert not made.training
    images, labels = drawings
    with torch.no_grad():
        assert F.cross_entropy(made(images.float() / 255), labels) < 2.3  # ln 10 is knowing nothing


def test_the_seed_decides_the_training(drawings):
    recipe = Recipe(epochs=1, batch=32)
    torch.manual_seed(1)
    first, again = (trained(drawings, recipe, 0, cropped) for _ in range(2))
    other, others = trained(drawings, recipe, 1, cropped)
    assert first == again
    assert first[0] != other and first[1] != others


def test_an_epoch_shows_each_image_once_in_whole_batches_in_0_1(drawings):
    seen = []

    def note(batch, rng):
        seen.append(batch.clone())
        return batch

    trained(drawings, Recipe(epochs=2, batch=48), augment=note)  # 3 batches of 48, 16 images left out
    assert [len(batch) for batch in seen] == [48] * 6
    assert max(batch.max() for batch in seen) == 1 and min(batch.min() for batch in seen) == 0
    every = {image.numpy().tobytes() for image in drawings[0]}
    for epoch in (seen[:3], seen[3:]):
        shown = [(image * 255).round().to(torch.uint8).numpy().tobytes() for image in torch.cat(epoch)]
        assert set(shown) <= every and len(set(shown)) == 144


def test_every_epoch_trains_in_training_mode_also_after_an_evaluation(drawings):
    training = begun(drawings, Recipe(epochs=2, batch=32))
    for number, _ in enumerate(training, 1):
        assert all(layer.num_batches_tracked == 5 * number for layer in training.classifier.batch_norms())
        training.classifier.eval()


def test_fewer_images_than_a_batch_are_one_batch(drawings):
    _, losses = trained((drawings[0][:5], drawings[1][:5]), Recipe(epochs=3, batch=64))
    assert len(losses) == 3


def test_the_paper_trains_teachers_so():
    """Appendix A.1."""
    paper = RECIPES["paper"]
    assert (paper.epochs, paper.batch, paper.lr, paper.momentum, paper.weight_decay) == (200, 128, 0.1, 0.9, 5e-4)
    assert not paper.nesterov and not paper.one_cycle


# --- minutes in place of epochs


@pytest.fixture
def clock(monkeypatch):
    """A clock that a test sets; every step takes `clock.step` seconds."""

    class Clock:
        now, step = 1000.0, 1.0

    monkeypatch.setattr(training_file.time, "perf_counter", lambda: Clock.now)

    def tick(batch, rng):
        Clock.now += Clock.step
        return batch

    Clock.tick = staticmethod(tick)
    return Clock


MINUTE = Recipe(epochs=None, minutes=1, batch=32, lr=0.2, nesterov=True, one_cycle=True)


def rates_of(training):
    """(the time, the rate) at each step."""
    seen = []
    training.optimizer.register_step_pre_hook(
        lambda optimizer, *_: seen.append((training_file.time.perf_counter(), optimizer.param_groups[0]["lr"]))
    )
    list(training)
    return seen


@pytest.mark.parametrize("step", [1.0, 7.0])
def test_with_minutes_the_rate_follows_the_clock_and_is_annealed_at_the_end(drawings, clock, step):
    clock.step = step
    training = begun(drawings, MINUTE, augment=clock.tick)
    seen = rates_of(training)
    assert training.seconds == pytest.approx(step * len(seen)) and 60 <= training.seconds < 60 + step
    assert training.steps == len(seen) and training.epoch == -(-len(seen) // 5)  # five steps an epoch, the last in part
    cycle = torch.optim.lr_scheduler.OneCycleLR(torch.optim.SGD([torch.zeros(1)], 0.2), 0.2, total_steps=10_000)
    for after, rate in seen:  # noted at the end of the step, set at its beginning
        cycle.last_epoch = (after - 1000 - step) / 60 * 9999 - 1
        cycle.optimizer.step()
        cycle.step()
        assert rate == pytest.approx(cycle.get_last_lr()[0])
    assert training.optimizer.param_groups[0]["lr"] == pytest.approx(0.2 / 25 / 1e4)
    assert max(rate for _, rate in seen) > 0.15 and not training.classifier.training


def test_what_lies_between_epochs_counts_and_a_resumed_training_goes_on_at_its_time(drawings, clock, tmp_path):
    first = begun(drawings, MINUTE, augment=clock.tick)
    epochs = iter(first)
    next(epochs)
    clock.now += 20
    next(epochs)
    assert first.seconds == 30
    save_partial(tmp_path / "t.partial", ABOUT, first)
    second = begun(drawings, MINUTE, seed=7, augment=clock.tick, weights=7)
    resume_training(tmp_path / "t.partial", ABOUT, second)
    clock.now += 1000  # nobody trained
    rate = second.optimizer.param_groups[0]["lr"]
    seen = rates_of(second)
    assert len(seen) == 30 and second.steps == 40 and second.seconds == 60 and seen[0][1] == rate
    assert list(second) == []  # nothing is left


def test_minutes_want_a_one_cycle_recipe(drawings):
    with pytest.raises(UserError, match="minutes in place of epochs need a one-cycle recipe: take short or laptop"):
        begun(drawings, Recipe(epochs=None, minutes=1))


# --- half precision, as a GPU would train in


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_learns_as_well_and_leaves_float32_weights(drawings, precision, monkeypatch):
    recipe = Recipe(epochs=4, batch=32, nesterov=True, one_cycle=True)
    _, losses = trained(drawings, recipe)
    monkeypatch.setattr(training_file, "fastest", lambda device: Compute(precision, channels_last=True))
    training = begun(drawings, recipe)
    assert training.scaler.is_enabled() == (precision == "fp16")
    seen = []
    handle = training.classifier.net.conv1.register_forward_hook(lambda module, _, output: seen.append(output.dtype))
    assert list(training) == pytest.approx(losses, rel=0.1)
    handle.remove()
    assert set(seen) == {PRECISIONS[precision]}
    assert all(x.dtype is torch.float32 for x in training.classifier.parameters())
    assert training.classifier.net.conv1.weight.is_contiguous(memory_format=torch.channels_last)


# --- interrupted and resumed


@pytest.mark.parametrize("one_cycle", [False, True])
@pytest.mark.parametrize("stop", [1, 2])
def test_interrupted_and_resumed_is_uninterrupted_bit_by_bit(drawings, one_cycle, stop, tmp_path):
    recipe, path = Recipe(epochs=3, batch=32, nesterov=True, one_cycle=one_cycle), tmp_path / "t.partial"
    expected, losses = trained(drawings, recipe, augment=cropped)
    first = begun(drawings, recipe, augment=cropped)
    for _ in first:
        save_partial(path, ABOUT, first)
        if first.epoch == stop:
            break
    second = begun(drawings, recipe, seed=7, augment=cropped, weights=7)  # all that it starts with is replaced
    resume_training(path, ABOUT, second)
    assert second.epoch == stop and list(second) == losses[stop:]
    assert tensors_hash(second.classifier.state_dict()) == expected


def test_a_training_goes_on_as_it_was_computed(drawings, tmp_path, monkeypatch):
    monkeypatch.setattr(training_file, "fastest", lambda device: Compute("fp16", channels_last=True))
    recipe = Recipe(epochs=2, batch=32)
    first = begun(drawings, recipe)
    next(iter(first))
    save_partial(tmp_path / "t.partial", ABOUT, first)
    monkeypatch.undo()
    second = begun(drawings, recipe)
    assert second.compute == Compute()
    resume_training(tmp_path / "t.partial", ABOUT, second)
    assert second.compute == first.compute and second.scaler.get_scale() == first.scaler.get_scale()
    assert second.classifier.net.conv1.weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("about", "sentence"),
    [
        ({"network": "wrn16_1"}, r"is another training \(network wrn10_half, not wrn16_1\): resume that"),
        ({"seed": 1, "recipe": {"epochs": 5}}, r"\(recipe {'epochs': 3}, not {'epochs': 5}; seed 0, not 1\)"),
        ({"device": "cuda"}, r"\(device None, not cuda\)"),
    ],
)
def test_another_training_is_not_resumed(drawings, about, sentence, tmp_path):
    training = begun(drawings, RECIPES["digits"])
    save_partial(tmp_path / "t.partial", ABOUT, training)
    before = tensors_hash(training.classifier.state_dict())
    with pytest.raises(UserError, match=sentence):
        resume_training(tmp_path / "t.partial", {**ABOUT, **about}, training)
    assert tensors_hash(training.classifier.state_dict()) == before


def test_what_cannot_be_resumed_is_told(drawings, tmp_path):
    training, path = begun(drawings, RECIPES["digits"]), tmp_path / "t.partial"
    with pytest.raises(MissingFile, match="no unfinished training at .*: leave --resume out to begin one"):
        resume_training(path, ABOUT, training)
    save_partial(path, ABOUT, training)
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(UserError, match="cut short"):
        resume_training(path, ABOUT, training)
    torch.save([1, 2], path)
    with pytest.raises(UserError, match=r"is another training \(network None, not wrn10_half"):
        resume_training(path, ABOUT, training)


@pytest.mark.parametrize("broken", ["loss", "statistics"])
def test_a_training_that_breaks_stops_before_its_epoch_counts(drawings, broken):
    """Also where the loss does not show it: in training mode nobody reads BatchNorm's running variance."""
    calls = []

    def spoil(batch, rng):
        calls.append(len(batch))
        if len(calls) == 7 and broken == "statistics":
            training.classifier.batch_norms()[0].running_var.fill_(torch.inf)
        return batch * (torch.nan if len(calls) == 7 and broken == "loss" else 1)

    training = begun(drawings, Recipe(epochs=3, batch=32), augment=spoil)  # five steps an epoch
    epochs = iter(training)
    next(epochs)
    with pytest.raises(UserError, match="became NaN or infinite in epoch 1 of the teacher's training: take another"):
        next(epochs)
    assert training.epoch == 1
