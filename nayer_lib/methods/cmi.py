"""CMI: Fang, Song, Wang, Shen, Wang, Song 2021, "Contrastive model inversion for data-free knowledge distillation".

A round starts G and z over and optimises both for a batch of random labels:

    L = alpha_cls * L_CE + alpha_bn * L_BN + alpha_adv * L_KL + alpha_cr * L_cr

L_cr lets images differ from each other and from earlier ones. Each image is seen twice: the global view is the data
set's crop and flip, the local one a window of a quarter to all of its area, enlarged, and flipped where that is
allowed. A view's feature h is what enters the teacher's BatchNorm layers, averaged over space, layers side by side; a
head f, two linear layers and a ReLU, makes 256 numbers of norm 1 of it. With B images of this round and N of the bank

    l_i  = -log( exp(f(h_i local) . f(h_i global) / T) / sum over j <= B + N of exp(f(h_i local) . f(h_j global) / T) )
    L_cr = mean of l_i over the round's images + mean of l_i over the bank's

without a gradient through the global side. The head learns from L_cr as well, through the whole run.

As in the authors' code the bank holds both views' h, not the head's output, so the present head compares old images
with new ones. Their bank keeps the h of the best step's views; here two new views of the kept images are drawn. Here
the bank is used once it holds N rows, theirs is used with fewer. For ResNet-34 they take four blocks' inputs, here all
BatchNorm layers count. Their best result starts from images inverted beforehand; here, as in their script "scratch",
there are none. Their student's rate falls along a cosine to 0, as here (in steps in an older state of their code); in
FM's code (Fang et al. 2022) to 2e-4 over 200 epochs. Their numbers differ between scripts: alpha_cls 1 or 0.5, T 0.1 or
0.2. Their scripts have 200 steps a round; FM's README calls the printed row CMI-500, so `published` has 500.
"""

import copy
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..classifiers.teacher import Classifier, tapped
from ..errors import UserError
from ..generator.latents import Noise
from ..memory import Pool
from . import terms
from .inversion import Inversion, InversionConfig
from .nayer import Nayer
from .round import SynthesisBatch, parameter_bytes


@dataclass(frozen=True)
class CMIConfig(InversionConfig):
    """CMI (Fang et al. 2021), its numbers for WRN pairs."""

    noise_dim: int = 256  # of z
    alpha_cls: float = 1.0
    alpha_bn: float = 1.0
    alpha_adv: float = 0.5
    alpha_cr: float = 0.8
    temperature_cr: float = 0.1
    bank_size: int = 40_960  # features kept
    bank_draw: int = 4_096  # features of the bank in one step's L_cr


class CMI(Inversion):
    """Contrastive model inversion. Each of several ranks has a G of its own, which lasts for a round, and a part of the
    bank.

    Attributes:
        generator: z, one vector an image, followed by G: labels (B,) -> images (B, C, H, W) in [0, 1].
        onlooker: a second teacher with the same weight tensors, for the local view, which L_BN must not count.
        head: features (N, d) -> (N, 256), yet to be normalised; it learns through the whole run.
        bank: (2d,) a row: global and local feature of an image that was kept.
    """

    name = "CMI"
    citation = "Fang et al. 2021"
    config_class = CMIConfig
    published = {"rounds": 1, "warmup_rounds": None, "generator_steps": 500, "generator_batch": 256}
    published |= {"epochs": 200, "warmup_epochs": 0, "student_steps": 400, "student_batch": 128}
    terms = Nayer.terms | {"L_cr": "alpha_cr"}
    balanced = False
    saved = (*Inversion.saved, "head", "head_optimizer", "bank")

    def __init__(self, teacher, student, config, table=None, facts=None, compute=None, ranks=None):
        width = sum(len(layer.running_var) for layer in teacher.batch_norms())
        if not width:
            raise UserError("CMI compares what enters a teacher's BatchNorm layers; without any, take another method.")
        if not config.augment_synthesis:
            raise UserError("CMI compares two random views of each image: leave augment_synthesis on.")
        super().__init__(teacher, student, config, table, facts, compute, ranks)
        config = self.config
        if config.bank_draw > config.bank_size:
            raise UserError(
                f"a bank of {config.bank_size} features cannot give {config.bank_draw}: lower bank_draw or raise "
                "bank_size."
            )
        same = {id(tensor): tensor for tensor in (*self.teacher.parameters(), *self.teacher.buffers())}
        self.onlooker = copy.deepcopy(self.teacher, same)
        self.bank = Pool([((2 * width,), torch.float32)], self.device, config.bank_size)
        self.head = self.build(lambda: nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 256)))
        self.head_optimizer = torch.optim.Adam(self.head.parameters(), config.generator_lr, fused=True)
        r, batch = config.noise_dim, config.generator_batch
        self.generator = self.build(lambda: nn.Sequential(Noise(r, batch, learned=True), self.network(r)))
        self.optimizers = [self.adam(self.generator.parameters(), config.generator_lr), self.head_optimizer]

    @property
    def shared(self) -> list[nn.Module]:
        """No part: the generator starts over in every round."""
        return []

    def begin_round(self) -> None:
        """A new z and a new G, in place, with a fresh Adam for both; the head keeps its Adam."""
        super().begin_round()
        latent, network = self.generator
        latent.redraw(self.rng)
        redraw_weights(network, self.rng)

    def watched(self) -> AbstractContextManager[dict[int, Tensor]]:
        """The inputs of the BatchNorm layers of both teachers."""
        return tapped([*self.teacher.batch_norms(), *self.onlooker.batch_norms()], inputs=True)

    def draw_view(self, batch: int) -> tuple[Tensor, Tensor, Tensor]:
        """The global view's pixels, the local view's windows, and rows of the bank to compare with."""
        windows = draw_windows(batch, 0.25, self.facts.flip, self.rng, self.device)
        return super().draw_view(batch), windows, self.bank.choose(self.config.bank_draw, self.rng)

    def view(self, images: Tensor, drawn: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """The global view."""
        self.caught.clear()  # every step starts with an empty one, so it is compiled once
        return super().view(images, drawn[0])

    def values(self, batch: SynthesisBatch) -> list[Tensor]:
        """The three terms of Eq. 5, on the global view, and L_cr."""
        _, windows, banked = batch.view
        self._look(enlarge(batch.generated, windows), self.onlooker)
        features = torch.cat([self._features(self.caught), banked])
        self.caught.clear()
        with self.compute.autocast(self.device):
            key, query = (self.head(side) for side in features.chunk(2, 1))
        contrasts = terms.info_nce(F.normalize(query.float()), F.normalize(key.float()), self.config.temperature_cr)
        parts = contrasts.split([len(batch.generated), len(banked)])
        return [*Nayer.values(self, batch), sum(part.mean() for part in parts if len(part))]

    def after_backward(self) -> None:
        """Average the head's gradients over the ranks."""
        self.ranks.average_gradients([self.head])

    @torch.no_grad()
    def remember(self, kept: list[Tensor], labels: Tensor) -> None:
        """Keep the images, and put the features of two views of them into the bank."""
        super().remember(kept, labels)
        view = self.draw_view(len(labels))
        with self.watched() as inputs:
            self._look(self.view(kept[0], view), self.teacher)
            self._look(enlarge(kept[0], view[1]), self.onlooker)
        self.bank.add([self._features(inputs)], labels, self.round - 1)

    def _look(self, view: Tensor, onlooker: Classifier) -> None:
        with self.compute.autocast(self.device):
            onlooker(view)

    @staticmethod
    def _features(inputs: dict[int, Tensor]) -> Tensor:
        """(B, 2d): the global view's feature and the local one's."""
        return torch.cat([inputs[i].float().mean((2, 3)) for i in range(len(inputs))], 1)

    @property
    def beside(self) -> int:
        """The full bank, and the head under its Adam."""
        return self.bank.capacity * self.bank.row_bytes + parameter_bytes(self.head, copies=4)


def draw_windows(batch: int, smallest: float, flip: bool, rng: torch.Generator, device: torch.device) -> Tensor:
    """The random part of a random resized crop, for `enlarge`: (B, 2, 3), one affine map an image.

    A window's share of the image's area is uniform in [smallest, 1], its width over its height log-uniform in
    [3/4, 4/3] and its place uniform; windows are cut off at the image's edges. With `flip` half of the windows are
    mirrored. The map takes (x, y, 1), with x and y from -1 to 1 over the crop, to the place in the image.
    """
    area, ratio, across, down = torch.rand(4, batch, generator=rng, device=device)
    area = smallest + (1 - smallest) * area
    ratio = (3 / 4) * (16 / 9) ** ratio
    width, height = (area * ratio).sqrt().clamp(max=1), (area / ratio).sqrt().clamp(max=1)
    windows = torch.zeros(batch, 2, 3, device=device)
    windows[:, 0, 0], windows[:, 0, 2] = width, (1 - width) * (2 * across - 1)
    windows[:, 1, 1], windows[:, 1, 2] = height, (1 - height) * (2 * down - 1)
    if flip:
        windows[:, 0, 0] *= torch.where(torch.rand(batch, generator=rng, device=device) < 0.5, -1, 1)
    return windows


def enlarge(images: Tensor, windows: Tensor) -> Tensor:
    """The windows that `draw_windows` drew, each enlarged to the image's size, (B, C, H, W); bilinear."""
    grid = F.affine_grid(windows, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


@torch.no_grad()
def redraw_weights(network: nn.Module, rng: torch.Generator) -> None:
    """Initialise a network in place, as CMI and FM start G: weights from N(0, 0.02), those of norms from N(1, 0.02),
    biases 0. Source: their authors' code."""
    for name, parameter in network.named_parameters():
        if parameter.dim() > 1:
            parameter.normal_(0, 0.02, generator=rng)
        elif name.endswith("weight"):
            parameter.normal_(1, 0.02, generator=rng)
        else:
            parameter.zero_()
