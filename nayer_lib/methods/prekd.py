"""PREKD (Binici et al. 2022, "Robust and Resource-Efficient Data-Free Knowledge Distillation by Generative Pseudo
Replay", AAAI): a memory that keeps no image.

L_G, L_S and the batch are those of `replay.py`. A VAE, encoder E and decoder D, learns to reproduce the images of G:

    L_V = mean |x - x'| + mean |T(x) - T(x')| + alpha_kld KL(E(x) || N(0, I)),     x' = D(z), z ~ E(x)

x are the first half of the student batch's new images and, so that the VAE forgets less, as many images of D as a
student step replays. The VAE learns beside the first 40 % of a turn's student steps: 4 of the authors' 10. D's images
in x, and the replayed images, are D(z) after one Adam step of z ~ N(0, I), at latent_lr, on

    alpha_ie L_IE + alpha_cls L_OH + mean (var(z) - 1)^2 + mean mean(z)^2

from the first student step on, before D has learned anything. D normalises by the batch while the VAE learns, and by
its running statistics in replay. This loss trains D too: its gradient is added to that of L_V.

All of this is as in the authors' code (kuluhan/PRE-DFKD), where this loss trains D perhaps by oversight; there the VAE
sees no images of D in the run's first turn. Under "equal" the VAE learns from cropped images, as the student does, and
replayed images are not cropped again. On several ranks z's step sees each rank's own images.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import losses
from ..generator.vae import VAE
from ..steps import Step
from . import terms
from .base import Batch, NonFiniteLoss, SynthesisReport
from .replay import Replay, ReplayConfig, replayed_of
from .round import parameter_bytes


@dataclass(frozen=True)
class PREKDConfig(ReplayConfig):
    """PREKD (Binici et al. 2022, AAAI), its numbers for CIFAR."""

    vae_lr: float = 0.02 / 40  # Adam
    vae_share: float = 0.4  # share of a turn's student steps, the first ones, beside which the VAE learns
    alpha_kld: float = 1e-5  # of the VAE's posterior
    latent_lr: float = 0.02  # of z's one Adam step before the decoder reads it


class PREKD(Replay):
    """Replay from a VAE that is trained along with the student.

    Attributes:
        vae: the VAE; its decoder makes the replayed images.
    """

    name = "PREKD"
    citation = "Binici et al. 2022"
    config_class = PREKDConfig
    saved = (*Replay.saved, "vae", "vae_optimizer", "_vae_losses")

    def __init__(self, teacher, student, config, table=None, facts=None, compute=None, ranks=None):
        super().__init__(teacher, student, config, table, facts, compute, ranks)
        r, facts = config.noise_dim, self.facts
        self.vae = self.build(lambda: VAE(self.network(r), r, facts.size, facts.channels, config.generator_width))
        self.vae_optimizer = self.adam(self.vae.parameters(), config.vae_lr)
        self._remember = Step(self._vae_loss, self.running)
        self._step_of_turn = 0  # 0 again at an epoch's end
        self._vae_losses: list[Tensor] = []  # L_V since the last round, on the device

    def synthesize(self, epoch: int) -> SynthesisReport:
        """One round of generator steps; L_V of the student steps since the last round is reported with it.

        Raises:
            NonFiniteLoss: L_V became NaN or infinite.
        """
        report = super().synthesize(epoch)
        if self._vae_losses:
            report.extra["L_V"] = torch.stack(self._vae_losses).mean().item()
            self._vae_losses = []
            if not math.isfinite(report.extra["L_V"]):
                raise NonFiniteLoss(
                    f"L_V became NaN or infinite before round {self.round} (epoch {epoch}): lower vae_lr. What was "
                    "saved before is whole."
                )
        return report

    def student_step(self, batch: Batch) -> Tensor:
        """One update of the student, and of the VAE beside the first ones of a turn."""
        loss = super().student_step(batch)
        steps = self.config.student_steps
        if self._step_of_turn < max(1, round(self.config.vae_share * steps)):
            self._vae_losses.append(self.vae_step(batch))
        self._step_of_turn = (self._step_of_turn + 1) % steps
        return loss

    def vae_step(self, batch: Batch) -> Tensor:
        """One update of the VAE beside a student batch. Returns L_V, a scalar still on the device."""
        n = len(batch.images)
        new = batch.images[: max(2, (n - batch.replayed) // 2)]
        self.vae_optimizer.zero_grad(set_to_none=True)
        images = torch.cat([new, self._recall(replayed_of(n), learn=True)])
        loss = self._remember.backward(images, self._draw(len(images)))
        self.ranks.average_gradients([self.vae])
        self.before_update(self.vae_optimizer)
        self.scaler.step(self.vae_optimizer)
        self.scaler.update()
        return loss.detach().clone()

    def _vae_loss(self, images: Tensor, noise: Tensor) -> Tensor:
        with self.compute.autocast(self.device):
            reconstructed, mean, log_var = self.vae(images, noise)
            with torch.no_grad():
                t = self._answering(images)
            t_reconstructed = self._answering(reconstructed)
        error = (images - reconstructed.float()).abs().mean() + terms.logit_distance(t.float(), t_reconstructed.float())
        return error + self.config.alpha_kld * terms.posterior_divergence(mean, log_var)

    def replay(self, n: int) -> Tensor:
        """n images that the decoder, in eval mode, makes of z after its Adam step."""
        self.vae.decoder.eval()
        images = self._recall(n, learn=False)
        self.vae.decoder.train()
        return images

    def _recall(self, n: int, learn: bool) -> Tensor:
        """n images that the decoder makes of z after its Adam step; with `learn` the loss of z also leaves its gradient
        on the decoder."""
        if not n:
            return self.no_images
        z = self._draw(n).requires_grad_()
        t = self._answering(self.vae.decoder(z))  # in 32 bits
        loss = self.config.alpha_ie * terms.information_entropy(t)
        loss = loss + self.config.alpha_cls * losses.classification(t, t.argmax(1)) + terms.from_standard_normal(z)
        # Scaled as L_V is, to whose gradient this one is added. Adam's first step does not depend on the scale.
        self.scaler.scale(loss).backward(inputs=None if learn else [z])
        torch.optim.Adam([z], self.config.latent_lr).step()
        with torch.no_grad():
            return self.vae.decoder(z)

    @property
    def beside(self) -> int:
        """The VAE under its Adam."""
        return parameter_bytes(self.vae, copies=4)
