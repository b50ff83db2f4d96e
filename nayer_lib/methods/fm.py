"""FM, a generator learned to be adapted (Fang et al. 2022, "Up to 100x Faster Data-free Knowledge Distillation").

A round optimises a copy G' of a persistent meta-generator G, together with fresh z, for random labels y:

    G' <- G,  z ~ N(0, I)
    g times:  (G', z) <- Adam of  alpha_bn L_BN + alpha_cls L_CE(y) - alpha_adv L_KL       at lr_G' and lr_z
    G <- Adam of  sum over the g steps of dL/dG'  at lr_G = g lr_G'                         (first-order MAML)

The terms are those of Eq. 5, which NAYER took from FM: L_BN with its momentum, L_KL where both networks agree.
Once, after 60 % of distillation, the first Linear and the first BatchNorm of G start over.

The authors' code: the reset draws both layers' weights from N(0, 0.02) (here: as PyTorch initialises them), and in one
of its versions those of all layers; reset and L_KL come an epoch earlier than here; for ImageNet z is a map that is
meta-learned too, by Reptile (here: as elsewhere). Its rates go with g: (g, lr_G', lr_z) is (2, 5e-3, 0.015),
(5, 3e-3, 0.01) or (10, 2e-3, 0.01). Its weights go with the teacher: alpha_adv and alpha_cls are 1.33 and 0.5 for
ResNet-34, 1.0 and 0.5 for VGG-11.

Guesses: for g > 10, also in Table 8's budget, the rates of g = 10; in Table 11, where the further Linear sits.
"""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..generator.latents import Noise
from .inversion import Inversion, InversionConfig
from .nayer import Nayer
from .round import parameter_bytes


@dataclass(frozen=True)
class FMConfig(InversionConfig):
    """FM (Fang et al. 2022), its numbers for WRN pairs at g = 10."""

    noise_dim: int = 256  # of z
    nayer_generator: bool = False  # z enters G through a further Linear, as the text's vectors do in NAYER (Table 11)
    nayer_noise_dim: int = 1000  # r of that Linear
    generator_lr: float = 2e-3  # of G'; the meta step's rate is g times this one
    latent_lr: float = 0.01
    alpha_cls: float = 0.4
    alpha_bn: float = 10.0
    alpha_adv: float = 1.1
    bn_momentum: float = 0.9
    student_lr: float = 0.2
    student_lr_end: float = 2e-4
    reset_after: float = 0.6  # share of the distillation epochs after which G's first layers start over


class FM(Inversion):
    """Fast meta-learned inversion.

    Attributes:
        generator: z, then G': labels (B,) -> images (B, C, H, W) in [0, 1]; the same modules in every round.
        meta: G.
    """

    name = "FM"
    citation = "Fang et al. 2022"
    config_class = FMConfig
    published = {"rounds": 1, "warmup_rounds": 1, "generator_steps": 10, "generator_batch": 256}
    published |= {"epochs": 200, "warmup_epochs": 20, "student_steps": 400, "student_batch": 256}
    balanced = False
    terms, values = Nayer.terms, Nayer.values
    saved = (*Inversion.saved, "meta", "meta_optimizer")

    def __init__(self, teacher, student, config, table=None, facts=None, compute=None, ranks=None):
        super().__init__(teacher, student, config, table, facts, compute, ranks)
        self.generator = self._new_generator()
        self.meta = copy.deepcopy(self.generator[1:])
        self.meta_optimizer = self.adam(self.meta.parameters(), config.generator_lr * config.generator_steps)
        noise, adapted = self.generator[0], self.generator[1:]
        groups = [{"params": adapted.parameters()}, {"params": noise.parameters(), "lr": config.latent_lr}]
        self.optimizers = [self.adam(groups, config.generator_lr)]

    def begin_epoch(self, epoch: int) -> None:
        """Start G's first layers over, once, after the fraction `reset_after` of the distillation epochs.

        With NAYER's generator the first Linear is the further one.
        """
        super().begin_epoch(epoch)
        config = self.config
        if epoch == config.warmup_epochs + round(config.reset_after * config.distillation_epochs):
            fresh = self._new_generator()[1:]
            for kind in (nn.Linear, _BatchNorm):
                old, new = (next(m for m in net.modules() if isinstance(m, kind)) for net in (self.meta, fresh))
                old.load_state_dict(new.state_dict())

    def begin_round(self) -> None:
        """G' <- G and new z, in place, because compiled and captured steps read these tensors."""
        super().begin_round()
        self.generator[0].redraw(self.rng)
        self.generator[1:].load_state_dict(self.meta.state_dict())
        for parameter in self.meta.parameters():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            parameter.grad.zero_()

    def after_backward(self) -> None:
        """Add the gradient of G' to that of G, except in a step that overflows in 16 bits, which the scaler skips."""
        self.scaler.unscale_(self.optimizers[0])
        sound = torch.stack([p.grad.isfinite().all() for p in self.generator.parameters()]).all()
        for meta, adapted in zip(self.meta.parameters(), self.generator[1:].parameters(), strict=True):
            meta.grad += torch.where(sound, adapted.grad, 0)

    def remember(self, kept: list[Tensor], labels: Tensor) -> None:
        """Keep the images; the meta step."""
        super().remember(kept, labels)
        self.meta_optimizer.step()

    def _new_generator(self) -> nn.Sequential:
        config = self.config

        def make() -> nn.Sequential:
            noise = Noise(config.noise_dim, config.generator_batch, learned=True)
            if not config.nayer_generator:
                return nn.Sequential(noise, self.network(config.noise_dim))
            widened = nn.Linear(config.noise_dim, config.nayer_noise_dim)
            return nn.Sequential(noise, widened, self.network(config.nayer_noise_dim))

        return self.build(make)

    @property
    def beside(self) -> int:
        """G under the meta step's Adam."""
        return parameter_bytes(self.meta, copies=4)
