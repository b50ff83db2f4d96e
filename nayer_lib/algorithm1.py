"""Algorithm 1 of the paper as one function: read it from top to bottom, and change it.

Numbers at the right edge are the paper's lines, D1 to D13 rows of docs/divergences.md.
`distill` with methods/nayer.py computes the same, with the additions that a lab needs.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from . import losses
from .augment import crop_and_flip
from .base_config import NayerConfig
from .classifiers.teacher import Classifier
from .datasets import DataSet
from .errors import UserError
from .generator.networks import Generator
from .generator.noisy_layer import NoisyLayer
from .memory import Memory


def algorithm1(
    config: NayerConfig, teacher: Classifier, student: Classifier,
    table: Tensor, facts: DataSet,
) -> Iterator[tuple[float | None, Memory]]:
    """NAYER, an epoch at a time: yields the mean L_S (None in warm-up) and memory M.

    Args:
        config: a run of NAYER, in any setting of D1 to D13.
        teacher: with BatchNorm2d layers; frozen here.
        student: trained in place.
        table: (K, e), the embeddings of the labels' text, on the networks' device.
        facts: the size of images, and how to crop and flip them.

    Raises:
        UserError: a config with a setting that Algorithm 1 does not have.
    """
    fixed = {"method": "nayer", "latent": "noisy", "embedding": "text", "repeats": 1}
    if any(getattr(config, name, None) != fixed[name] for name in fixed):
        raise UserError(f"Algorithm 1 has {fixed}: take distill for other configs.")
    K, B, device = len(table), config.generator_batch, table.device
    rng = torch.Generator(device).manual_seed(config.seed)

    def crop(images: Tensor) -> Tensor:
        return crop_and_flip(images, facts.crop_padding, facts.flip, rng)

    batch_norm = losses.BatchNormLoss(teacher.freeze(), config.bn_momentum)  # D8
    sgd = torch.optim.SGD(
        student.parameters(), config.student_lr, config.student_momentum,
        weight_decay=config.student_weight_decay, fused=True,
    )

    M = Memory(facts.image_shape, device, config.memory_size)                       #  1
    P = table                                                                       #  2
    rounds = 0
    for epoch in range(config.total_epochs):  # D6                                  #  3
        warmup = epoch < config.warmup_epochs
        life = config.generator_life  # D5
        if epoch == 0 or (life and (epoch - config.warmup_epochs) % life == 0):
            with torch.random.fork_rng(devices=[]):  # seeded by this run's rng
                seed = torch.randint(2**31, (), generator=rng, device=device)
                torch.manual_seed(int(seed))
                Z = NoisyLayer(P.shape[1], config.noise_dim, B, per_head=K)
                Z.redraw()  # a second time, as the library does: G starts equal
                G = Generator(
                    config.noise_dim, facts.size, facts.channels,
                    config.generator_width, config.generator_layout,  # D1
                    config.spectral_norm,  # D2
                )
            Z, G = Z.to(device), G.to(device)

        # Phase 1: Z and G learn to make images that T is sure of and S gets wrong.
        student.requires_grad_(False)
        a_cls, a_bn = config.alpha_cls, config.alpha_bn
        a_adv = 0 if warmup else config.alpha_adv  # S has not learned anything yet
        for i in range(config.synthesis_rounds(epoch)):  # D4                       #  4
            Z.redraw(rng, norm=config.redraw_norm)  # D10                           #  5
            rest = torch.randint(K, (B % K,), generator=rng, device=device)
            y = torch.cat([torch.arange(K, device=device).repeat(B // K), rest])    #  5
            e = P[y]                                                                #  6
            adam = torch.optim.Adam(
                [*Z.parameters(), *G.parameters()], config.generator_lr,
                config.generator_betas, fused=True,
            )
            student.train(config.student_trains_in_synthesis and i > 0)  # D13
            lowest = float("inf")
            with batch_norm.armed():
                for _ in range(config.generator_steps):                             #  7
                    x = G(Z(e))                                                     #  8
                    view = crop(x) if config.augment_synthesis else x  # D12
                    t = teacher(view)
                    L_CE, L_BN, L_KL = losses.classification(t, y), batch_norm(), 0
                    if a_adv:
                        s = student(view)
                        L_KL = -losses.adversarial(t, s, config.adversarial_mask)  # D7
                    L_Z = a_cls * L_CE - a_adv * L_KL + a_bn * L_BN                 #  9
                    adam.zero_grad()
                    L_Z.backward()
                    adam.step()                                                     # 10
                    if L_Z.item() < lowest or config.keep == "last":  # D11
                        lowest, kept = L_Z.item(), x.detach()
                batch_norm.end_round()
            M.add(kept, y, rounds)                                                  # 11
            rounds += 1

        # Phase 2: S learns T's answers to images of M.
        student.requires_grad_(True).train()
        sgd.param_groups[0]["lr"] = config.lr(epoch)  # D3
        student_losses = []
        for _ in range(0 if warmup else config.student_steps):                      # 12
            x = crop(M.draw(config.student_batch, rng)[0]).float() / 255            # 13
            with torch.no_grad():
                t = teacher(x)
            L_S = losses.distillation(t, student(x), config.temperature)
            sgd.zero_grad()
            L_S.backward()
            sgd.step()                                                              # 14
            student_losses.append(L_S.detach())
        yield None if warmup else torch.stack(student_losses).mean().item(), M
