"""Algorithm 1's outer loop, for every method, and `prepare`, which sets a run up."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from .classifiers.check import check_teacher
from .classifiers.teacher import Classifier, load_teacher, make_classifier
from .compute import Compute, fastest
from .config import Config, check
from .datasets import DATASETS, DataSet, Split, dataset, load_split
from .errors import UserError, unknown
from .evaluate import Evaluator, Scores
from .lazy import imported
from .methods import KINDS
from .methods.base import Method, NonFiniteLoss, SynthesisReport
from .ranks import Ranks, find_ranks
from .text.labels import labels_hash
from .text.lte_pool import LTEPool, find_pool


@dataclass(frozen=True)
class Epoch:
    """What one epoch did.

    Attributes:
        epoch: counted from 0, warm-up included.
        rounds: the reports of the epoch's synthesis rounds.
        images: images in the memory at the epoch's end, on all ranks.
        student_loss: mean of Eq. 6 over the epoch's student steps; None in warm-up.
        scores: of the student, on the split of `evaluate`; None in warm-up and in epochs without evaluation.
        seconds: wall time of "synthesis", "student" and "evaluation".
    """

    epoch: int
    rounds: list[SynthesisReport]
    images: int
    student_loss: float | None
    scores: Scores | None
    seconds: dict[str, float]


def distill(
    method: Method, evaluate: Callable[[Classifier], Scores], start: int = 0, score_every: int = 1
) -> Iterator[Epoch]:
    """Algorithm 1 for any method, one `Epoch` at a time. The caller prints and plots.

    Args:
        method: the method, with the student, which is trained in place.
        evaluate: scores the student, e.g. an `Evaluator`.
        start: the first epoch to run, for a method whose state was loaded.
        score_every: distillation epochs from one evaluation to the next; the last epoch is always scored.

    Raises:
        NonFiniteLoss: a loss became NaN or infinite; all earlier epochs were yielded.
    """
    config = method.config
    for epoch in range(start, config.total_epochs):  # line 3
        warmup = epoch < config.warmup_epochs
        rounds, losses, seconds = [], [], {"synthesis": 0.0, "student": 0.0, "evaluation": 0.0}
        if not warmup:
            for group in method.student_optimizer.param_groups:
                group["lr"] = config.lr(epoch)
        method.begin_epoch(epoch)
        for _ in range(config.repeats):
            for phase in ("student", "synthesis") if method.student_first else ("synthesis", "student"):
                with _timed(seconds, phase, method.device):
                    if phase == "synthesis":
                        rounds += [method.synthesize(epoch) for _ in range(config.synthesis_rounds(epoch))]  # 4-11
                    elif not warmup:
                        for _ in range(config.student_steps):  # lines 12-14
                            losses.append(method.student_step(method.sample(config.student_batch)))
        student_loss = None if warmup else torch.stack(losses).mean().item()
        if student_loss is not None and not math.isfinite(student_loss):
            raise NonFiniteLoss(
                f"L_S became NaN or infinite in epoch {epoch}: lower student_lr. What was saved before is whole."
            )
        scores = None
        if not warmup and (epoch + 1 - config.total_epochs) % score_every == 0:
            with _timed(seconds, "evaluation", method.device):
                scores = evaluate(method.student)
        yield Epoch(epoch, rounds, method.held, student_loss, scores, seconds)


@contextmanager
def _timed(seconds: dict[str, float], name: str, device: torch.device) -> Iterator[None]:
    """Add a block's wall time to `seconds[name]`, once the device has finished the block."""
    start = time.perf_counter()
    yield
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    seconds[name] += time.perf_counter() - start


@dataclass(frozen=True)
class Setup:
    """All parts of a run: start it with `distill(setup.method, setup.evaluate)`.

    Attributes:
        config: of the whole run; `method.config` is that of one process's part.
        pool: P, if the method reads text.
        score_every: epochs from one evaluation to the next, by `scoring_interval`.
    """

    config: Config
    method: Method
    evaluate: Evaluator
    pool: LTEPool | None
    score_every: int = 1


def prepare(
    config: Config,
    teacher: Classifier | Path | None = None,
    pool: LTEPool | None = None,
    test: Split | None = None,
    device: str | None = None,
    compute: Compute | None = None,
    ranks: Ranks | None = None,
) -> Setup:
    """Set a run up from its config, with the kit's teacher, pool and test split or with your own.

    Args:
        teacher: a `Classifier`, or a file of `save_classifier`; None takes the kit's teacher of the data set.
        pool: embeddings of the teacher's classes; None takes the kit's pool, or encodes the class names now.
        test: images to score on, all of one size. With `test`, `config.dataset` may be a name of your own: synthesis
            makes images of the same size then, and crops (by up to an eighth of the side) and flips them as CIFAR's.
            Training images are not read.
        device: "cpu" or "cuda"; None takes the GPU if there is one.
        compute: how the run is computed; None takes `suited`.
        ranks: the processes that share the run; None finds those of `accelerate launch`, or else this process alone.
            Each process scores the whole test split, since a process without images to score would only wait.

    Raises:
        UserError, MissingFile: the teacher, the pool or the test split is missing, or two of these do not fit together.
    """
    check(config)
    if config.method not in KINDS:
        raise unknown("method", config.method, KINDS)
    device = choose_device(device)
    ranks = ranks or find_ranks(device)
    if isinstance(teacher, torch.nn.Module) and not isinstance(teacher, Classifier):
        raise UserError("a teacher is a Classifier: wrap yours as Classifier(net, class_names, mean, std).")
    if isinstance(teacher, Classifier) and teacher.answers_alone:
        raise UserError(
            "a black box is made by the method stealing, of a teacher that is whole, as evaluation needs it: pass the "
            "teacher itself."
        )
    if test is None:
        dataset(config.dataset)  # an unknown name is told first
    if not isinstance(teacher, Classifier):
        teacher = load_teacher(config.dataset, config.teacher, teacher)
    names = teacher.class_names
    if test is not None:
        if not isinstance(test, Split):
            raise UserError(f"test images are a Split(images, labels), not a {type(test).__name__}.")
        test = test.checked(len(names))
    if test is None or config.dataset in DATASETS:
        facts = dataset(config.dataset)
        facts.check_classes(names)
        names = facts.class_names  # as the kit's pools have them
    else:
        channels, size = test.images.shape[1:3]
        facts = DataSet(config.dataset, channels, size, (), (), crop_padding=size // 8, flip=True)
    if test is not None and test.images.shape[1:] != facts.image_shape:
        raise UserError(f"{facts.name} has images {facts.image_shape}, the test split {(*test.images.shape[1:],)}.")
    check_teacher(teacher.to(device), facts.image_shape)
    kind = KINDS[config.method]
    if kind.reads_text:
        pool = pool or find_pool(config.dataset, names, config.encoder, config.prompt)
        wanted = labels_hash(names)
        if len(pool.table) != len(names) or pool.header.get("labels_sha256", wanted) != wanted:
            raise UserError("the pool is for other classes than the teacher's, or in another order: build their own.")
    elif pool:
        raise UserError(f"{kind.name} reads no label text: leave the pool out.")
    test = (test or load_split(config.dataset, "test")).to(device)
    # What a control learns from: never the images that it is scored on.
    real = load_split(config.dataset, "fit" if test.name == "validation" else "train") if kind.reads_images else None
    if config.weight_bits is not None:
        student = imported("nayer_beyond.quantised:student_of", "a quantised student")(teacher, config, facts)
    else:
        student = make_classifier(config.student, teacher.class_names, teacher.mean, teacher.std, config.seed)
    method = kind(
        teacher,
        student.to(device),
        config,
        pool.table.to(device) if pool else real,
        facts,
        compute or suited(config, device, ranks.size),
        ranks,
    )
    evaluate = Evaluator(teacher, test)
    return Setup(config, method, evaluate, pool, scoring_interval(config, len(test.labels)))


def suited(config: Config, device: torch.device, processes: int, **given) -> Compute:
    """`fastest` for a config; a quantised student computes in 32 bits unless `given` says otherwise.

    bfloat16 keeps eight significant bits: it would round 8-bit levels once more.
    """
    if config.weight_bits is not None:
        given = {"precision": "fp32"} | given
    return fastest(device, processes, config.profile, **given)


def scoring_interval(config: Config, images: int) -> int:
    """Epochs from one evaluation on `images` to the next: 1, or as many as keep evaluation below 5 % of the work.

    Work is counted in passes of an image through a network; a gradient counts as two passes. The interval depends on
    the config and the number of images alone, so a run scores the same epochs on every machine and after every resume.
    """
    student = config.student_steps * config.student_batch * (1 + 3)  # teacher, and student with its gradient
    synthesis = config.rounds * config.generator_steps * config.generator_batch * (3 + 3)  # generator and teacher
    return math.ceil(images / (0.05 * config.repeats * (student + synthesis)))


def choose_device(name: str | None) -> torch.device:
    """A device by its name; None takes the GPU if there is one."""
    cuda = torch.cuda.is_available()
    if name == "mps":
        raise UserError(
            "Apple's GPU (mps) is not supported: no result was checked on it. Leave the device out: the CPU does "
            "digits in about a minute."
        )
    if name not in (None, "cpu", "cuda"):
        raise unknown("device", name, ("cpu", "cuda"))
    if name == "cuda" and not cuda:
        raise UserError("there is no CUDA device that torch can use: leave the device out, or take cpu.")
    return torch.device(name or ("cuda" if cuda else "cpu"))
