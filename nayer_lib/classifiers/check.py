"""What is checked by passing an image or two through networks, before anything is written."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ..errors import UserError
from .checkpoints import check_weights
from .teacher import Classifier, tapped

WRAP = "wrap the network in a module that returns its logits alone (docs/your_own_model.md)"


def check_teacher(teacher: Classifier, image_shape: tuple[int, int, int]) -> None:
    """Freeze a teacher, and see that it can be distilled from images of this shape (C, H, W).

    Its weights are finite and become float32; two images give one tensor (2, K) of finite logits, each the same as
    alone, with a gradient to the images; its head and its BatchNorm statistics are found.

    Raises:
        UserError: it cannot; the sentence says what to change.
    """
    channels, classes = image_shape[0], len(teacher.class_names)
    if len(teacher.mean) != channels:
        raise UserError(
            f"the teacher's normalisation has {len(teacher.mean)} numbers and the images have {channels} channel(s): "
            "give one mean and one std a channel of the images that the teacher takes."
        )
    parameters = [*teacher.parameters()]
    if any(map(nn.parameter.is_lazy, parameters)):
        raise UserError("the teacher has lazy layers that no image has passed yet: train it first.")
    if not any(x.is_floating_point() for x in parameters):
        raise UserError("the teacher has no weights as floating-point parameters: pass the network before quantising.")
    check_weights(teacher.net.state_dict(), "the teacher")
    teacher.float().freeze()
    for name, module in teacher.net.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_var is None:
            raise UserError(
                f"the teacher's BatchNorm {name!r} keeps no running statistics (track_running_stats=False), so its "
                "answers depend on the batch: train it with them."
            )
    layers = teacher.batch_norms()
    images = torch.rand(2, *image_shape, generator=torch.Generator().manual_seed(0))
    images = images.to(next(teacher.parameters()).device).requires_grad_()
    try:
        with torch.enable_grad(), tapped(layers, inputs=True) as reached:
            given = teacher(images)
            if isinstance(given, Tensor) and given.requires_grad:
                given.float().sum().backward()
        with torch.no_grad():
            alone = teacher(images[:1])
    except Exception as error:  # whatever somebody's network raises
        reason = (str(error).splitlines() or [""])[0]
        shape = " x ".join(map(str, image_shape))
        raise UserError(
            f"the teacher's network fails on images of {shape} ({type(error).__name__}: {reason}): check the images' "
            "channels and size."
        ) from error
    if not isinstance(given, Tensor):
        raise UserError(f"the teacher gives a {type(given).__name__}, not one tensor of logits: {WRAP}.")
    if given.dtype != torch.float32:
        raise UserError(f"the teacher gives {given.dtype}, not float32: take the casts out of its forward.")
    if given.shape != (2, classes):
        raise UserError(
            f"the teacher gives {tuple(given.shape)} for two images, not (2, {classes}), one logit for each of its "
            f"{classes} class names: give as many names as it has outputs, or {WRAP}."
        )
    logits = given.detach()
    if not torch.isfinite(logits).all():
        raise UserError("the teacher gives logits that are not finite: check its weights and its normalisation.")
    features, before = _at_the_head(teacher, images)
    inside = (logits >= 0).all() and (logits <= 1).all()
    if inside and torch.allclose(logits.sum(1), torch.ones_like(logits[:, 0]), atol=1e-3) and classes > 1:
        raise UserError("the teacher gives probabilities, not logits: take the softmax off its end.")
    if inside and before.shape == logits.shape and ((before < 0) | (before > 1)).any():
        raise UserError("the teacher gives probabilities, not logits: take the sigmoid off its end.")
    if not torch.allclose(alone[0], logits[0], rtol=1e-2, atol=1e-2 * logits.abs().max().item()):
        raise UserError(
            "the teacher's answer for an image depends on chance or on the batch, also in eval mode: look for dropout "
            "and BatchNorm that always train."
        )
    if not given.requires_grad or images.grad is None:
        raise UserError("the teacher gives no gradient to its images: take no_grad and detach out of its forward.")
    if features.shape[:-1] != (2,):
        raise UserError(f"the head of the teacher reads {tuple(features.shape)}, not one row an image: {WRAP}.")
    if len(reached) < len(layers):
        names = [name for name, m in teacher.net.named_modules() if any(m is layer for layer in layers)]
        idle = next(name for i, name in enumerate(names) if i not in reached)
        raise UserError(f"the teacher's BatchNorm {idle!r} takes no part in its answer: remove it from the network.")


@torch.no_grad()
def _at_the_head(teacher: Classifier, images: Tensor) -> tuple[Tensor, Tensor]:
    """What the head reads, and what it gives, the mean over places of its maps: (2, K) if all is well."""
    with tapped([teacher.head()]) as out:
        features = teacher(images, return_features=True)[1]
    return features, out[0].mean((2, 3)) if out[0].dim() == 4 else out[0]


@torch.no_grad()
def check_paired(
    teacher: Classifier,
    student: Classifier,
    image_shape: tuple[int, int, int],
    of: Callable[[Classifier], Sequence[nn.Module]],
    who: str,
    way_out: str,
) -> None:
    """Pass one image (C, H, W) through both: as many feature maps, and each as large in both.

    Args:
        of: a classifier's modules that give the maps, e.g. `Classifier.stages`.
        who, way_out: what pairs the maps, and what else to do, for the sentence.

    Raises:
        UserError: they do not pair up, or there are none.
    """
    sizes = []
    for network in (teacher, student):
        training = network.training
        with tapped(of(network.eval())) as maps:
            network(torch.zeros(1, *image_shape, device=next(network.parameters()).device))
        network.train(training)
        sizes.append([tuple(maps[i].shape[2:]) for i in range(len(maps))])
    if sizes[0] != sizes[1] or not sizes[0]:
        raise UserError(
            f"{who} pairs the feature maps of teacher and student, and theirs are of {sizes[0]} and {sizes[1]}: "
            f"{way_out}."
        )
