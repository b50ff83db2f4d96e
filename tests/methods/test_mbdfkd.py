"""MBDFKD: a ring of mini-batches, what enters it and when, and how large it may be."""

import pytest
import torch
from tiny import run_all, tiny_setup

from nayer_lib.config import make_config
from nayer_lib.errors import UserError
from nayer_lib.memory import Memory
from nayer_lib.methods.mbdfkd import MBDFKD


def tiny_mbdfkd(**overrides) -> MBDFKD:
    return tiny_setup(method="mbdfkd", **overrides).method


def test_its_ring_is_of_ten_mini_batches_one_every_five_epochs():
    config = make_config("cifar10-wrn40_2-wrn16_2", method="mbdfkd", protocol="published", profile="full")
    assert (config.push_every, config.ring_batches) == (5, 10)
    assert [make_config(profile=profile, method="mbdfkd").push_every for profile in ("quick", "lab", "full")] == [
        1,
        1,
        5,
    ]


@pytest.mark.parametrize(("every", "held"), [(1, [0, 1, 2, 3, 3, 3]), (2, [0, 1, 1, 2, 2, 3])])
def test_a_mini_batch_is_pushed_after_the_first_of_every_few_epochs_and_the_oldest_leaves(every, held):
    method, seen = tiny_mbdfkd(push_every=every, ring_batches=3, student_batch=27), []
    for epoch in range(6):
        method.begin_epoch(epoch)
        seen.append(len(method.ring))
    assert seen == held
    assert all(batch.shape == (3, 1, 8, 8) and batch.dtype == torch.uint8 for batch in method.ring)


def test_the_ring_holds_the_newest_mini_batches():
    method, pushed = tiny_mbdfkd(push_every=1, ring_batches=3, student_batch=27), []
    for epoch in range(1, 6):
        method.begin_epoch(epoch)
        pushed.append(method.ring[-1])
    assert len({batch.float().mean().item() for batch in pushed}) == 5
    assert [id(batch) for batch in method.ring] == [id(batch) for batch in pushed[-3:]]


def test_it_keeps_what_the_generator_made_before_the_epoch():
    method, made = tiny_mbdfkd(), []
    method.generator.register_forward_hook(lambda _module, _inputs, images: made.append(images.detach().clone()))
    method.begin_epoch(1)
    (batch,) = method.ring
    assert torch.equal(batch, Memory.as_bytes(made[0])) and len(made) == 1


def test_it_replays_one_whole_mini_batch_and_all_of_them_in_time():
    method = tiny_mbdfkd(student_batch=27, augment_student=False)
    assert method.sample(27).replayed == 0 and len(method.replay(3)) == 0  # nothing yet
    for epoch in (1, 2, 3):
        method.begin_epoch(epoch)
    batches, found = [batch.float() / 255 for batch in method.ring], []
    for _ in range(600):
        replayed = method.replay(3)
        found += [i for i, batch in enumerate(batches) if torch.equal(replayed, batch)]
    assert len(found) == 600
    assert torch.tensor(found).bincount(minlength=3).sub(200).abs().max() < 60  # a standard deviation is 11.5
    assert method.sample(27).replayed == 3


@pytest.mark.parametrize(("memory_size", "batches"), [(None, 10), (30, 10), (31, 10), (60, 20), (3, 1)])
def test_a_memory_size_in_images_bounds_the_ring(memory_size, batches):
    """Table 10: whole mini-batches, never more images than it says."""
    method = tiny_mbdfkd(student_batch=27, memory_size=memory_size)
    for epoch in range(1, 30):
        method.begin_epoch(epoch)
    assert len(method.ring) == batches and (memory_size is None or 3 * batches <= memory_size)


def test_a_memory_size_for_no_mini_batch_is_refused():
    with pytest.raises(UserError, match="memory_size=2 holds none of the mini-batches of 3 .* raise memory_size"):
        tiny_mbdfkd(student_batch=27, memory_size=2)


def test_a_run_replays_from_its_second_epoch_on():
    setup, replayed = tiny_setup(method="mbdfkd", epochs=3), []
    sample = setup.method.sample
    setup.method.sample = lambda n: replayed.append(sample(n)) or replayed[-1]
    run_all(setup)
    assert [batch.replayed for batch in replayed] == [0, 0, 2, 2, 2, 2]


@pytest.mark.parametrize("cropped", [True, False])
def test_what_is_replayed_is_cropped_where_the_students_images_are(cropped):
    """White images: a shift brings a black edge in."""
    method = tiny_mbdfkd(augment_student=cropped)
    method.ring = [torch.full((10, 1, 8, 8), 255, dtype=torch.uint8)]
    replayed = method.sample(90).images[80:]
    assert set(replayed.unique().tolist()) == ({0, 1} if cropped else {1})
    assert (len(replayed.unique(dim=0)) > 2) == cropped
