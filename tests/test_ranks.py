"""One run on several processes: equal weights, disjoint shards of the memory, and the gradients of one process."""

import multiprocessing
import os
import socket
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from tiny import TINY, over, run_all, same, tiny_config
from torch import distributed, nn

from nayer_lib import cli, compute
from nayer_lib.classifiers.teacher import load_classifier
from nayer_lib.compute import Compute, fastest
from nayer_lib.distill import Setup, prepare
from nayer_lib.errors import UserError
from nayer_lib.methods.base import Batch
from nayer_lib.ranks import Ranks, find_ranks
from nayer_lib.runs.card import read_card
from nayer_lib.runs.run import Run

CPU = torch.device("cpu")
ALONE = Ranks()
# Two rounds an epoch: the student is in training mode in the second one. The generator is rebuilt after each epoch.
OPTIONS = {"generator_life": 1, "rounds": 2, "epochs": 2}


def setup(ranks: Ranks | None = None, **overrides) -> Setup:
    return prepare(tiny_config(**over(OPTIONS, overrides)), device="cpu", ranks=ranks)


def processes(work: Callable[[int], None], size: int = 2) -> None:
    """Run `work(rank)` on each of `size` processes; all must end well."""
    fork = multiprocessing.get_context("fork")  # torch is imported already: a new interpreter takes many seconds
    running = [fork.Process(target=work, args=(rank,)) for rank in range(size)]
    for process in running:
        process.start()
    for process in running:
        process.join()
    assert [process.exitcode for process in running] == [0] * size


def connected(work: Callable[[], dict], folder: Path, size: int = 2) -> list[dict]:
    """What `work()` returns on each of `size` processes that are connected on this machine."""

    def one(rank: int) -> None:
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
        meet, patience = f"file://{folder / 'meet'}", timedelta(seconds=60)
        distributed.init_process_group("gloo", meet, patience, rank=rank, world_size=size)
        torch.save(work(), folder / str(rank))
        distributed.destroy_process_group()

    processes(one, size)
    return [torch.load(folder / str(rank), weights_only=True) for rank in range(size)]


def whole_run(**options) -> dict:
    """A run, and what this process holds at its end."""
    made = setup(**options)
    epochs, method = run_all(made), made.method
    told = [
        (epoch.images, epoch.student_loss, [(r.images, r.ce_per_step, r.bn, r.adv) for r in epoch.rounds])
        for epoch in epochs
    ]
    return {
        "ranks": [method.ranks.rank, method.ranks.size],
        "student": method.student.state_dict(),
        "generator": method.generator.state_dict(),
        "shared": [parameter.detach() for part in method.shared for parameter in part.parameters()],
        "bn_memory": method.bn_loss.memory if method.bn_loss else [],
        "images": method.memory.rows[0],
        "labels": method.memory.labels,
        "rounds": method.memory.rounds,
        "rng": method.rng.get_state(),
        "told": told,
        "accuracy": [epoch.scores.accuracy for epoch in epochs if epoch.scores],
    }


@pytest.fixture(scope="module")
def two(alone, tmp_path_factory) -> list[dict]:
    """After `alone`, so that what that imports need not be imported in each process."""
    return connected(whole_run, tmp_path_factory.mktemp("two"))


@pytest.fixture(scope="module")
def alone() -> dict:
    return whole_run()


# --- a whole run


def test_the_processes_find_each_other(two, alone):
    assert [end["ranks"] for end in two] == [[0, 2], [1, 2]] and alone["ranks"] == [0, 1]


def different(one: dict, other: dict) -> set[str]:
    """The names of the tensors in which two states differ."""
    return {name for name in one if not torch.equal(one[name], other[name])}


@pytest.mark.parametrize("what", ["student", "told", "accuracy"])
def test_ranks_agree_to_the_last_bit_on(what, two):
    """Weights and BatchNorm statistics of the student, reports and scores."""
    one, other = (end[what] for end in two)
    assert one == other if what in ("told", "accuracy") else same(one, other)


def test_ranks_agree_on_the_generator_but_for_their_heads(two):
    one, other = (end["generator"] for end in two)
    assert different(one, other) == {"0.layer.weight", "0.layer.bias"}
    assert len(one["0.layer.weight"]) == 1  # of the two heads of 20 images and 10 classes


def test_each_rank_has_random_numbers_and_statistics_of_its_own(two):
    """Labels, heads, crops and draws come from these; L_BN's memory is of a rank's own images."""
    one, other = two
    assert not torch.equal(one["rng"], other["rng"]) and not same(one["bn_memory"], other["bn_memory"])


def test_shards_are_disjoint_and_hold_together_what_one_process_would(two, alone):
    one, other = ({tuple(image) for image in end["images"].flatten(1).tolist()} for end in two)
    assert not one & other and len(one) > 1
    held = [len(end["labels"]) for end in two]
    assert held[0] == held[1] and sum(held) == len(alone["labels"])
    assert [epoch[0] for epoch in two[0]["told"]] == [epoch[0] for epoch in alone["told"]] == [20, 60, 100]
    assert all(report[0] == 20 for _, _, rounds in two[0]["told"] for report in rounds)


def test_every_rank_has_each_class_as_often_and_all_rounds(two, alone):
    for end in two:
        for made in range(5):
            assert end["labels"][end["rounds"] == made].tolist() == list(range(10))
    assert torch.cat([end["labels"] for end in two]).sort()[0].equal(alone["labels"].sort()[0])


def test_a_bounded_memory_a_random_remainder_and_other_inputs_do_too(tmp_path):
    """A head that is kept, and so trained together, noise of each rank beside the text, and a ring on each rank."""
    options = {"memory_size": 30, "generator_batch": 28, "latent": "cat_lte", "variant": "paper"}
    one, other = connected(lambda: whole_run(**options), tmp_path)
    assert same(one["student"], other["student"]) and different(one["generator"], other["generator"]) == {"0.z"}
    assert (
        one["told"] == other["told"] and one["told"][-1][0] == 30 and len(one["labels"]) == len(other["labels"]) == 15
    )


# --- its parts


def gradients(ranks: Ranks) -> dict:
    """Of the student, on a batch of which a rank has its share, with the running statistics of BatchNorm: then a
    batch's loss is the mean of its images' losses."""
    method = setup(ranks).method
    method.student.eval()
    share = 16 // ranks.size
    mine = slice(ranks.rank * share, (ranks.rank + 1) * share)
    images = torch.rand(16, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    method._student_loss(Batch(images[mine], torch.zeros(share).long(), "test")).backward()
    ranks.average_gradients([method.student])
    return {name: p.grad for name, p in method.student.named_parameters()}


def test_averaged_gradients_are_those_of_one_process(tmp_path):
    expected = gradients(ALONE)
    for got in connected(lambda: gradients(find_ranks(CPU)), tmp_path):
        assert got.keys() == expected.keys()
        for name, gradient in expected.items():
            assert torch.allclose(got[name], gradient, rtol=1e-4, atol=1e-5), name


def one_step_that_overflows() -> dict:
    """Two layers, the second one averaged; the first rank's first layer overflows in 16 bits."""
    ranks, (own, shared) = find_ranks(CPU), (nn.Linear(1, 1), nn.Linear(1, 1))
    for p in (*own.parameters(), *shared.parameters()):
        p.grad = torch.full_like(p, 1.0 + ranks.rank)
    if ranks.rank == 0:
        own.weight.grad.fill_(torch.inf)
    ranks.average_gradients([shared], [*own.parameters(), *shared.parameters()])
    parameters = [*own.parameters(), *shared.parameters()]
    return {"sound": torch.stack([p.grad.isfinite().all() for p in parameters]).all(), "bias": shared.bias.grad}


def test_a_gradient_that_overflows_on_one_rank_overflows_on_all(tmp_path):
    """Else one would leave a step out, and its weights would no longer be the others'."""
    ends = connected(one_step_that_overflows, tmp_path)
    assert [bool(end["sound"]) for end in ends] == [False, False]
    assert all(end["bias"].item() == 1.5 for end in ends)  # the mean of 1 and 2


def test_a_process_alone_changes_nothing():
    value, config = torch.ones(2), tiny_config(generator_batch=7)
    assert find_ranks(CPU) == ALONE and ALONE.mean(value) is value and ALONE.local(config) is config
    assert same([ALONE.generator(3, CPU).get_state()], [torch.Generator().manual_seed(3).get_state()])


def test_ranks_draw_different_numbers_the_first_those_of_one_process():
    drawn = [Ranks(rank, 3).generator(0, CPU).get_state() for rank in range(3)]
    assert torch.equal(drawn[0], ALONE.generator(0, CPU).get_state())
    assert not any(torch.equal(drawn[i], drawn[j]) for i, j in ((0, 1), (0, 2), (1, 2)))


# --- refusals


@pytest.mark.parametrize(
    ("name", "value", "size"),
    [("generator_batch", 25, 2), ("student_batch", 15, 2), ("memory_size", 31, 2), ("generator_batch", 2, 2)],
)
def test_a_batch_that_cannot_be_shared_is_refused(name, value, size):
    with pytest.raises(UserError, match=f"{size} processes cannot share {name}={value}: choose a multiple of {size}"):
        setup(Ranks(0, size), **{name: value})


def test_several_processes_do_not_resume_and_save_no_state(tmp_path, monkeypatch):
    monkeypatch.setattr(Ranks, "agree", lambda _, number: int(number))  # there is no other process here
    made = setup(Ranks(0, 2))
    for options in ({"resume": True}, {"max_minutes": 1.0}):
        with pytest.raises(UserError, match="on several processes cannot stop early or be resumed"):
            Run(made, tmp_path / "run", **options)
    assert not list(tmp_path.iterdir())


def test_several_processes_do_not_measure_each_for_itself_nor_capture(monkeypatch):
    monkeypatch.setattr(compute, "_measured", lambda: pytest.fail("it measured"))
    assert fastest(CPU, processes=2) == Compute()
    with pytest.raises(UserError, match="steps of several processes, .*, are not captured: take eager ones"):
        Compute(steps="graphs").check(torch.device("cuda"), 2)
    Compute(steps="graphs").check(torch.device("cuda"), 1)


def test_accelerate_launch_on_a_cpu_which_starts_one_process_is_refused(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")  # as it sets it
    with pytest.raises(UserError, match="starts one process on a CPU, .*: take `python -m torch.distributed.run"):
        find_ranks(CPU)


# --- the command


def test_the_command_on_processes_of_a_launcher_leaves_one_run(tmp_path):
    """With the environment that `accelerate launch` gives its processes."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    words = [
        "distill",
        "--device",
        "cpu",
        "--out",
        str(tmp_path / "run"),
        "--set",
        *(f"{k}={v}" for k, v in TINY.items()),
    ]

    def one(rank: int) -> None:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
        assert cli.main(words) == 0

    processes(one)
    card = read_card(tmp_path / "run")
    assert card["status"] == "finished" and card["processes"] == 2 and card["device"].endswith(", 2 processes")
    assert card["config"]["generator_batch"] == 20  # of both together
    assert card["images"] == 20 * (1 + 2 * tiny_config().rounds) and len(card["curve"]) == 3
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names == {"card.json", "curve.csv", "student.safetensors", "images.png"}
    assert load_classifier(tmp_path / "run" / "student.safetensors").name == "wrn10_half"
