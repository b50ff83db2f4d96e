"""The memory M: bytes as an image file would hold them, a ring where it is bounded, and fair draws."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nayer_lib.errors import UserError
from nayer_lib.memory import Memory, Pool

few = settings(max_examples=40, deadline=None)
sizes = st.lists(st.integers(0, 7), max_size=8)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def numbered(start, count):
    """`count` images of one pixel and their labels, both saying the image's number."""
    numbers = torch.arange(start, start + count)
    return ((numbers + 0.5) / 255).view(-1, 1, 1, 1), numbers


def filled(counts, capacity=None):
    """A memory after rounds of these sizes; images are numbered through."""
    memory, start = Memory((1, 1, 1), "cpu", capacity), 0
    for round_number, count in enumerate(counts):
        memory.add(*numbered(start, count), round_number)
        start += count
    return memory


def contents(memory):
    """(image, label, round) of each image, oldest first."""
    rows = zip(memory.images.flatten().tolist(), memory.labels.tolist(), memory.rounds.tolist(), strict=True)
    return sorted(rows, key=lambda row: row[1])


def expected_contents(counts, capacity=None):
    """The same, by keeping a list."""
    rounds = [number for number, count in enumerate(counts) for _ in range(count)]
    rows = [(number, number, round_number) for number, round_number in enumerate(rounds)]
    return rows[-capacity:] if capacity else rows


# --- bytes


def test_images_are_floored_to_bytes():
    """Truncated, as the released code's image files are: 0.999 becomes 254, not 255."""
    values, expected = [0.0, 0.0039, 0.004, 0.25, 0.5, 0.999, 1.0], [0, 0, 1, 63, 127, 254, 255]
    memory = Memory((1, 1, len(values)), "cpu")
    memory.add(torch.tensor(values).view(1, 1, 1, -1), torch.tensor([3]), 0)
    assert memory.images.dtype == torch.uint8
    assert memory.images.flatten().tolist() == expected == [math.floor(value * 255) for value in values]
    images, labels = memory.draw(1, seeded())
    assert images.dtype == torch.uint8 and images.shape == (1, 1, 1, 7) and labels.tolist() == [3]
    assert images.flatten().tolist() == expected


@given(st.lists(st.floats(0, 1, width=32), min_size=1, max_size=20))
@few
def test_no_pixel_gains_and_none_loses_a_whole_step(values):
    given_, memory = torch.tensor(values).view(-1, 1, 1, 1), Memory((1, 1, 1), "cpu")
    memory.add(given_, torch.zeros(len(values), dtype=torch.long), 0)
    loss = given_.double() * 255 - memory.images.double()
    assert (loss > -1e-4).all() and (loss < 1).all()


def test_what_was_drawn_is_a_copy_and_saving_makes_none_of_the_rows():
    memory = filled([3])
    images, _ = memory.draw(3, seeded())
    images.fill_(77)
    assert contents(memory) == expected_contents([3])
    [rows] = memory.state_dict()["rows"]
    assert rows.data_ptr() == memory.images.data_ptr()


# --- growth and the ring


@given(sizes)
@few
def test_without_a_capacity_every_image_stays(counts):
    memory = filled(counts)
    assert len(memory) == sum(counts) and contents(memory) == expected_contents(counts)


@given(sizes, st.integers(1, 10))
@few
def test_with_a_capacity_the_newest_stay(counts, capacity):
    """Table 10: the oldest leave first, also where one round alone is too large."""
    memory = filled(counts, capacity)
    assert len(memory) == min(sum(counts), capacity)
    assert contents(memory) == expected_contents(counts, capacity)
    assert [row[2] for row in contents(memory)] == sorted(memory.rounds.tolist())


def test_the_ring_never_takes_more_room_than_its_capacity():
    memory = Memory((1, 1, 1), "cpu", capacity=10)
    for round_number in range(12):
        memory.add(*numbered(3 * round_number, 3), round_number)
        assert len(memory._rows[0]) <= 10 and len(memory) == min(3 * round_number + 3, 10)


def test_growing_copies_each_image_a_few_times_at_most():
    """By doubling: 200 rounds need 9 new blocks, not 200."""
    memory, blocks = Memory((1, 1, 1), "cpu"), set()
    for round_number in range(200):
        memory.add(*numbered(0, 2), round_number)
        blocks.add(len(memory._rows[0]))
    assert len(memory) == 400 and len(blocks) <= 9 and max(blocks) < 800


def test_an_empty_memory_has_nothing_to_draw():
    memory = Memory((1, 1, 1), "cpu")
    assert len(memory) == 0 and memory.images.shape == (0, 1, 1, 1)
    with pytest.raises(UserError, match="memory is empty: run at least one synthesis round"):
        memory.draw(1, seeded())


@pytest.mark.parametrize("capacity", [0, -1])
def test_a_memory_for_no_image_is_refused(capacity):
    with pytest.raises(UserError, match=f"at least one image, not {capacity}"):
        Memory((1, 1, 1), "cpu", capacity)


# --- draws: Algorithm 1, line 13


@given(st.integers(1, 12), st.lists(st.integers(1, 9), min_size=1, max_size=8), st.integers(0, 99))
@few
def test_each_image_is_seen_once_before_any_is_seen_twice(count, draws, seed):
    memory, rng = filled([count]), seeded(seed)
    drawn = [label for n in draws for label in memory.draw(n, rng)[1].tolist()]
    assert len(drawn) == sum(draws)
    for start in range(0, len(drawn), count):
        part = drawn[start : start + count]
        assert len(set(part)) == len(part)


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 9), st.integers(0, 99))
@few
def test_new_images_enter_the_draws_at_once(old, before, new, seed):
    memory, rng = filled([old]), seeded(seed)
    memory.draw(before, rng)
    memory.add(*numbered(old, new), 1)
    assert sorted(memory.draw(old + new, rng)[1].tolist()) == list(range(old + new))


@given(sizes.filter(any), st.integers(1, 10), st.integers(1, 20))
@few
def test_a_label_stays_with_its_image(counts, capacity, n):
    images, labels = filled(counts, capacity).draw(n, seeded())
    assert images.shape == (n, 1, 1, 1)
    assert images.flatten().tolist() == labels.tolist()


@pytest.mark.parametrize("capacity", [None, 40])
def test_the_oldest_come_last_where_that_is_asked_for_and_are_the_same_rows(capacity):
    images, labels = filled([20, 20, 20], capacity).draw(30, seeded(), oldest_last=True)
    assert images.flatten().tolist() == labels.tolist()
    rounds = [label // 20 for label in labels.tolist()]
    assert rounds == sorted(rounds, reverse=True) and len(set(rounds)) > 1
    _, plain = filled([20, 20, 20], capacity).draw(30, seeded())
    assert labels.tolist() != plain.tolist() and labels.sort().values.tolist() == plain.sort().values.tolist()


def test_draws_are_shuffled_by_the_generator_alone():
    def drawn(seed):
        torch.manual_seed(seed + 1)
        return filled([50]).draw(50, seeded(seed))[1].tolist()

    assert drawn(0) == drawn(0) != drawn(1) != list(range(50))


@given(sizes.filter(any), st.one_of(st.none(), st.integers(1, 10)), st.integers(1, 9), st.integers(0, 99))
@few
def test_a_resumed_memory_goes_on_as_if_it_had_never_stopped(counts, capacity, n, seed):
    memory, rng = filled(counts, capacity), seeded(seed)
    memory.draw(n, rng)
    resumed, resumed_rng = Memory((1, 1, 1), "cpu", capacity), seeded()
    state = memory.state_dict()
    resumed.load_state_dict(state)
    resumed_rng.set_state(rng.get_state())
    for each, its_rng in ((memory, rng), (resumed, resumed_rng)):
        assert contents(each) == expected_contents(counts, capacity)
        each.now = [each.draw(n, its_rng)[1].tolist() for _ in range(3)]
        each.add(*numbered(sum(counts), 4), len(counts))
        each.now += [each.draw(n, its_rng)[1].tolist() for _ in range(3)]
    assert memory.now == resumed.now
    assert contents(memory) == contents(resumed) == expected_contents([*counts, 4], capacity)


def test_a_state_of_another_capacity_is_refused():
    with pytest.raises(UserError, match="holds a memory of 5 images, not of None"):
        filled([3]).load_state_dict(filled([3], 5).state_dict())


# --- rows of several tensors


KINDS = [((2, 1, 1), torch.float16), ((3,), torch.float32)]


def pool_of(counts, capacity=None):
    """A pool after additions of these sizes; every number of a row, and its label, is the row's."""
    pool, start = Pool(KINDS, "cpu", capacity), 0
    for round_number, count in enumerate(counts):
        numbers = torch.arange(start, start + count)
        rows = [numbers.float().view(-1, *[1] * len(shape)).expand(-1, *shape) for shape, _ in KINDS]
        pool.add(rows, numbers, round_number)
        start += count
    return pool


@given(sizes, st.one_of(st.none(), st.integers(1, 10)))
@few
def test_the_tensors_of_a_row_stay_together_in_their_own_kinds(counts, capacity):
    pool = pool_of(counts, capacity)
    expected = [number for number, _, _ in expected_contents(counts, capacity)]
    assert [(tuple(column.shape[1:]), column.dtype) for column in pool.rows] == KINDS
    for column in pool.rows:
        assert (
            column.flatten(1).tolist() == [[n] * column[0].numel() for n in expected] if expected else not len(column)
        )
    assert pool.labels.tolist() == expected


@given(sizes.filter(any), st.integers(1, 10), st.integers(1, 20), st.integers(0, 1))
@few
def test_a_draw_gives_the_tensor_that_is_asked_for_with_its_labels(counts, capacity, n, column):
    drawn, labels = pool_of(counts, capacity).draw(n, seeded(), column)
    shape, dtype = KINDS[column]
    assert drawn.shape == (n, *shape) and drawn.dtype == dtype
    assert (drawn.flatten(1) == labels.unsqueeze(1)).all()


@given(sizes, st.one_of(st.none(), st.integers(1, 10)))
@few
def test_a_resumed_pool_goes_on_in_the_same_rows(counts, capacity):
    pool, resumed = pool_of(counts, capacity), Pool(KINDS, "cpu", capacity)
    resumed.load_state_dict(pool.state_dict())
    for each in (pool, resumed):
        each.add([torch.ones(2, *shape) for shape, _ in KINDS], torch.tensor([1, 1]), 9)
    assert all(map(torch.equal, pool.rows, resumed.rows)) and torch.equal(pool.rounds, resumed.rounds)


def test_a_row_takes_its_tensors_its_label_and_its_round():
    assert Pool(KINDS, "cpu").row_bytes == 2 * 2 + 3 * 4 + 16
    assert Memory((3, 32, 32), "cpu").row_bytes == 3 * 32 * 32 + 16


def test_a_pool_keeps_no_gradient():
    pool = Pool(KINDS, "cpu")
    pool.add([torch.ones(2, *shape, requires_grad=True) for shape, _ in KINDS], torch.tensor([0, 1]), 0)
    assert not any(column.requires_grad for column in pool.rows)


@given(sizes, st.integers(1, 10), st.integers(1, 10), st.integers(0, 99))
@few
def test_as_many_different_rows_are_chosen_as_asked_for_or_none(counts, capacity, n, seed):
    pool = pool_of(counts, capacity)
    chosen = pool.choose(n, seeded(seed)).flatten(1)
    assert chosen.shape == (n if n <= len(pool) else 0, 2) and torch.equal(chosen[:, 0], chosen[:, 1])
    assert len(set(chosen[:, 0].tolist())) == len(chosen)
    assert set(chosen[:, 0].tolist()) <= set(pool.labels.tolist())  # only what is held
    assert sorted(pool.choose(len(pool), seeded(seed)).flatten(1)[:, 0].tolist()) == pool.labels.tolist()


def test_every_row_is_chosen_as_often():
    pool, rng = pool_of([10], 10), seeded()
    chosen = torch.cat([pool.choose(3, rng).flatten(1)[:, 0] for _ in range(1000)])
    assert chosen.long().bincount().sub(300).abs().max() < 75  # a standard deviation is 14.5


@given(sizes, sizes, st.integers(1, 10), st.integers(1, 10), st.integers(0, 99))
@few
def test_a_resumed_pool_chooses_the_same_rows(counts, others, capacity, n, seed):
    pool, resumed = pool_of(counts, capacity), pool_of(others, capacity)  # what it held before is gone
    resumed.load_state_dict(pool.state_dict())
    assert torch.equal(*(each.choose(min(n, capacity), seeded(seed)) for each in (pool, resumed)))


def test_a_pool_keeps_and_gives_copies():
    pool, row = Pool(KINDS, "cpu", 4), [torch.ones(2, *shape) for shape, _ in KINDS]
    pool.add(row, torch.tensor([0, 1]), 0)
    for tensor in (*row, pool.choose(2, seeded()), *pool.draw(2, seeded(), 0, 1)):
        tensor.fill_(7)
    assert all((column == 1).all() for column in pool.rows)
