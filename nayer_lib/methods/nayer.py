"""NAYER: constant label text, redrawn layers (Section 3; Algorithm 1).

The authors' code and the text differ in D1-D13; each is a field of `Config` (docs/divergences.md). One round here is
the released code's `synthesize`, and with `variant="paper"` the text's lines 5-11.
"""

from torch import Tensor, nn

from .. import losses
from ..base_config import NayerConfig
from ..errors import UserError
from ..generator.latents import COLUMNS, build_latent, control_table
from .inversion import Inversion
from .round import SynthesisBatch

KEPT = [name for name, column in COLUMNS.items() if not column.redrawn]  # latents whose heads outlive a rebuild of G


class Nayer(Inversion):
    """The method of the paper.

    Each of several ranks has labels, heads and a memory of L_BN of its own. Heads that outlive a round are trained by
    all ranks together.

    Attributes:
        generator: the latent (Z over the pool P) followed by G: labels (B,) -> images (B, C, H, W) in [0, 1].
    """

    name = "NAYER"
    citation = "Tran et al. 2024"
    config_class = NayerConfig
    published = {}  # Table 8
    reads_text = True
    terms = {"L_CE": "alpha_cls", "L_BN": "alpha_bn", "L_KL": "alpha_adv"}

    def __init__(self, teacher, student, config, table, facts=None, compute=None, ranks=None):
        super().__init__(teacher, student, config, table, facts, compute, ranks)
        if len(table) != len(teacher.class_names):
            raise UserError(f"the pool has {len(table)} classes, the teacher {len(teacher.class_names)}.")
        self.table = control_table(config.embedding, table.cpu(), self.facts.factors, config.seed).to(self.device)
        self.generator = self._new_generator()
        self.optimizers = [self.adam(self.generator.parameters(), config.generator_lr)]

    def values(self, batch: SynthesisBatch) -> list[Tensor]:
        """Eq. 5: L_CE, L_BN, and L_KL with its minus."""
        ce = losses.classification(batch.t, batch.labels)
        return [ce, self.batch_norm_term(batch), self.adversarial_term(batch)]

    @property
    def shared(self) -> list[nn.Module]:
        """The parts that outlive a round: G, the BatchNorm of Z, and heads that are kept."""
        return [self.generator] if self.config.latent in KEPT else super().shared

    def begin_epoch(self, epoch: int) -> None:
        """Rebuild the whole generator every `generator_life` epochs, counted from the end of warm-up (D5)."""
        super().begin_epoch(epoch)
        life = self.config.generator_life
        if life is not None and epoch > 0 and (epoch - self.config.warmup_epochs) % life == 0:
            self.rebuild()

    def rebuild(self) -> None:
        """A new generator, in place: steps compiled or captured for the old one serve the new one."""
        self.generator.load_state_dict(self._new_generator().state_dict())

    def begin_round(self) -> None:
        """Redraw the noisy layer; a fresh Adam."""
        super().begin_round()
        self.generator[0].redraw(self.rng)

    def _new_generator(self) -> nn.Sequential:
        """A new G with PyTorch's default initialisation, and a new latent, unless its heads are meant to persist."""
        config = self.config
        kept = self.generator[0] if hasattr(self, "generator") and config.latent in KEPT else None

        def make() -> nn.Sequential:
            latent = kept or build_latent(
                config.latent,
                self.table,
                config.noise_dim,
                config.generator_batch,
                config.latent_beta,
                config.latent_concat,
                config.redraw_norm,
            )
            return nn.Sequential(latent, self.network(config.noise_dim))

        return self.build(make)
