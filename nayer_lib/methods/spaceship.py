"""SpaceshipNet (Yu, Chen, Han, Jiang 2023, "Data-Free Knowledge Distillation via Feature Exchange and Activation Region
Constraint", CVPR).

A round draws z, and optimises the generator that all rounds share for balanced labels y, without the student:

    L_G = alpha_cls L_CE(y) + alpha_bn L_BN                                          over G

The memory keeps no images but the outputs of three layers of G in the best step: the BatchNorm after its Linear, and
the LeakyReLU behind each of its first two convolutions. For each student batch one of the three is drawn, and with
probability 0.7 each row i keeps a random half of its channels and takes the others from row B - 1 - i (`exchange`). The
present G, in eval mode, makes images of the result.

    L_S = T^2 KL_T(t || s) / K + alpha_cam MSE(CAM_t, CAM_s) + alpha_gradcam sum over stages of MSE(GC_t, GC_s)

CAM has a map for each class, the head's weights on the last feature map; GC is the Grad-CAM of the class that the
teacher predicts, without its ReLU, on the last block of each stage. The teacher's maps are constants, and so are the
weights in the student's, the head's in CAM and the mean gradients in GC: gradients flow through feature maps alone.
CAM's term is by far the strongest: at T = 30 the first is 1 / (2 K^2) of the sum of squared errors of an image's
logits, CAM's at least 1 / K of it. A Grad-CAM of a map with H W places is of size 1 / (H W), its error of that squared:
on the 8 px digits it counts about 256 times as much as on 32 px.

All of this, and a fresh Adam in each round, is as in the authors' code (skgyu/SpaceshipNet), which fills the last
incomplete set of labels in order (here: at random). Activations are 16-bit floats here, 32-bit there: 213 KB an image
of 32 px, so the memory is bounded by the published run's 51,200 images (10.9 GB) also in longer runs. The file of a
stopped run holds the activations of all images made. torch.compile takes no function that asks for gradients, so the
student's step is not compiled. Their best of six seeds is the printed 77.41 on CIFAR-100 (ResNet-34 to 18), by their
README, whose mean is 77.15. For a pair whose maps do not fit each other, such as VGG-11 and ResNet-18, we do not know
what they compare.
"""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import losses
from ..classifiers.check import check_paired
from ..classifiers.teacher import Classifier, tapped
from ..errors import UserError
from ..evaluate import in_batches
from ..generator.latents import Noise
from ..generator.networks import Generator
from ..memory import Memory, Pool
from . import terms
from .base import Batch, Examples
from .inversion import Inversion, InversionConfig
from .nayer import Nayer


def exchange(maps: Tensor, rate: float, rng: torch.Generator) -> Tensor:
    """With probability `rate` every row i of (B, C, H, W) keeps a random half of its channels, rounded down, each row
    its own half, and takes the others from row B - 1 - i as it was."""
    happens = torch.rand((), generator=rng, device=maps.device) < rate
    kept = torch.rand(maps.shape[:2], generator=rng, device=maps.device).argsort(1) < maps.shape[1] // 2
    return torch.where((happens & ~kept)[:, :, None, None], maps.flip(0), maps)


def exchange_layers(network: Generator) -> list[int]:
    """The places in G of the layers whose outputs are exchanged: the BatchNorm after its Linear, the LeakyReLU behind
    each of its first two convolutions.

    Raises:
        UserError: another generator than that of the released layout up to 64 px.
    """
    if not isinstance(network.layers[2], nn.BatchNorm2d):  # after Linear and Unflatten
        raise UserError(
            "features are exchanged at three layers of the generator for up to 64 px: take generator_layout=released "
            "and images of at most 64 px."
        )
    return [2, *(i for i, layer in enumerate(network.layers) if isinstance(layer, nn.LeakyReLU))]


@dataclass(frozen=True)
class SpaceshipConfig(InversionConfig):
    """SpaceshipNet (Yu et al. 2023), its numbers for CIFAR."""

    noise_dim: int = 256  # of z
    alpha_cls: float = 0.5
    alpha_bn: float = 1.0
    alpha_adv: float = 0.0
    exchange_rate: float = 0.7  # how often the rows of a student batch exchange channels
    alpha_cam: float = 1.0
    alpha_gradcam: float = 1.0
    temperature: float = 30.0
    memory_size: int | None = 51_200  # as many as in the published run; on 32 px 213 KB each, 10.9 GB together


class SpaceshipNet(Inversion):
    """Images from exchanged features, and a student with the teacher's activation maps.

    Attributes:
        generator: z, one vector an image, then G: labels (B,) -> images (B, C, H, W) in [0, 1]. Only G is optimised.
        memory: of G's activations at three depths, float16.
        layers: the places of the three layers in G.

    Raises:
        UserError: another generator than that of the released layout up to 64 px; networks whose maps do not pair up.
    """

    name = "SpaceshipNet"
    citation = "Yu et al. 2023"
    config_class = SpaceshipConfig
    published = {"rounds": 1, "warmup_rounds": None, "generator_steps": 200, "generator_batch": 256}
    published |= {"epochs": 200, "warmup_epochs": 0, "student_steps": 2000, "student_batch": 256}
    compilable = False
    terms, values = Nayer.terms, Nayer.values

    def __init__(self, teacher, student, config, table=None, facts=None, compute=None, ranks=None):
        super().__init__(teacher, student, config, table, facts, compute, ranks)
        size, width, r = self.facts.size, config.generator_width, config.noise_dim
        self._check_maps()
        batch = self.config.generator_batch
        self.generator = self.build(lambda: nn.Sequential(Noise(r, batch), self.network(r)))
        self.optimizers = [self.adam(self.generator[1].parameters(), config.generator_lr)]
        self.layers = exchange_layers(self.generator[1])
        shapes = [(width, size // 4, size // 4), (width, size // 2, size // 2), (width // 2, size, size)]
        self.memory = Pool([(shape, torch.float16) for shape in shapes], self.device, self.memory.capacity)

    # Phase 1.

    def begin_round(self) -> None:
        """A new z, and a fresh Adam for G, which keeps its weights."""
        super().begin_round()
        self.generator[0].redraw(self.rng)

    def watched(self) -> AbstractContextManager[dict[int, Tensor]]:
        """The outputs of the three layers."""
        return tapped([self.generator[1].layers[i] for i in self.layers])

    def worth_keeping(self, images: Tensor) -> list[Tensor]:
        """The activations in place of the images; every step starts with `caught` empty, so it is compiled once."""
        return [self.caught.pop(depth).detach() for depth in range(len(self.layers))]

    def remember(self, kept: list[Tensor], labels: Tensor) -> None:
        """Put the activations into the memory."""
        self.memory.add(kept, labels, self.round - 1)

    # Phase 2.

    def sample(self, n: int) -> Batch:
        """n images of exchanged activations; image i has the label of row i."""
        depth = int(torch.randint(len(self.layers), (), generator=self.rng, device=self.device))
        maps, labels = self.memory.draw(n, self.rng, depth)
        maps = exchange(maps, self.config.exchange_rate, self.rng)
        return Batch(self.augment(self.decode(maps, depth)), labels, "memory")

    @torch.no_grad()
    def decode(self, maps: Tensor, depth: int) -> Tensor:
        """The images (B, C, H, W) that the present G, in eval mode, makes of activations at one of the three depths."""
        network = self.generator[1].eval()
        with self.compute.autocast(self.device):
            images = network.decode(maps.float(), self.layers[depth] + 1)
        network.train()
        return images

    def _student_loss(self, batch: Batch) -> Tensor:
        config = self.config
        t, of_teacher = self._look(self.teacher, batch.images.detach().requires_grad_())  # for gradients of the maps
        s, of_student = self._look(self.student, batch.images)
        loss = losses.distillation(t.detach(), s, config.temperature) / t.shape[1]
        if config.alpha_cam:
            cams = [
                terms.class_activation(F.relu(maps.pop().float()), network.head().weight.detach().flatten(1))
                for network, maps in ((self.teacher, of_teacher), (self.student, of_student))
            ]
            loss = loss + config.alpha_cam * F.mse_loss(cams[1], cams[0].detach())
        if config.alpha_gradcam:
            classes = t.argmax(1)
            grad_cams_t = terms.grad_cams(t, of_teacher, classes)
            grad_cams_s = terms.grad_cams(s, of_student, classes)
            errors = [F.mse_loss(cam_s, cam_t.detach()) for cam_s, cam_t in zip(grad_cams_s, grad_cams_t, strict=True)]
            loss = loss + config.alpha_gradcam * torch.stack(errors).sum()
        return loss

    def _look(self, network: Classifier, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Logits (B, K), and the maps that `_watched` asks for.

        The gradients of Grad-CAM are not scaled, and too small for float16.
        """
        full = self.config.alpha_gradcam and self.compute.precision == "fp16"
        with tapped(self._watched(network)) as maps, nullcontext() if full else self.compute.autocast(self.device):
            logits = network(images).float()
        return logits, [maps[i] for i in range(len(maps))]

    def _watched(self, network: Classifier) -> list[nn.Module]:
        """The stages for Grad-CAM, then the last feature map for CAM."""
        stages = network.stages() if self.config.alpha_gradcam else []
        return [*stages, network.pooled()] if self.config.alpha_cam else stages

    def _check_maps(self) -> None:
        """Raise a `UserError` for networks that the two terms cannot be computed for."""
        config, shape = self.config, self.facts.image_shape
        if config.alpha_cam or config.alpha_gradcam:
            way_out = "take two networks of one family, or set alpha_gradcam=0, and alpha_cam=0 if the last maps differ"
            check_paired(self.teacher, self.student, shape, self._watched, self.name, way_out)
        if config.alpha_cam and not all(network.ends_in_pooling(shape) for network in (self.teacher, self.student)):
            raise UserError(
                "class activation maps need networks that end in a ReLU, the mean over places and one linear layer: "
                "set alpha_cam=0."
            )

    def examples(self) -> Examples:
        """The images that the present G makes of the memory's activations, without an exchange."""
        images = in_batches(lambda maps: self.decode(maps, 0), self.memory.rows[0], 500)
        return Examples(Memory.as_bytes(images), self.memory.labels, self.memory.rounds)
