"""What enters the generator: the columns of Table 3 that this version has, as modules that can be swapped."""

import pytest
import torch
from torch import nn

from nayer_lib.errors import UserError
from nayer_lib.generator.latents import LATENTS, Noise, NoisyText, build_latent

CLASSES, EMBED, NOISE = 3, 8, 5


@pytest.fixture
def table():
    torch.manual_seed(0)
    return torch.randn(CLASSES, EMBED)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def train_a_step(latent, labels):
    """One step of gradient descent on something."""
    latent(labels).square().sum().backward()
    with torch.no_grad():
        for parameter in latent.parameters():
            if parameter.grad is not None:
                parameter -= 0.1 * parameter.grad


@pytest.mark.parametrize("name", LATENTS)
@pytest.mark.parametrize("batch", [2, 6, 7])
def test_a_latent_maps_labels_to_generator_inputs(table, name, batch):
    latent = build_latent(name, table, NOISE, batch)
    labels = torch.arange(batch) % CLASSES
    assert latent(labels).shape == (batch, NOISE)
    assert latent(labels[:2]).shape == (2, NOISE)  # fewer labels than the batch it was built for


@pytest.mark.parametrize("name", LATENTS)
def test_between_two_redraws_the_same_labels_give_the_same_inputs(table, name):
    latent, labels = build_latent(name, table, NOISE, 6), torch.arange(6) % CLASSES
    latent.redraw(seeded(1))
    first = latent(labels)
    assert torch.equal(latent(labels), first)
    latent.redraw(seeded(2))
    assert (latent(labels) - first).abs().min() > 0
    latent.redraw(seeded(1))
    assert torch.equal(latent(labels), first)


def test_k_to_1_has_a_head_for_every_k_images(table):
    """H = ceil(B / K): a head makes "a maximum of 100 for CIFAR100 or 10 for CIFAR10" samples (Section 3.3)."""
    for batch, heads in ((2, 1), (3, 1), (6, 2), (7, 3)):
        assert len(build_latent("noisy", table, NOISE, batch).layer.weight) == heads


def test_noisy_text_is_the_noisy_layer_of_the_labels_own_rows(table):
    latent, labels = build_latent("noisy", table, NOISE, 6), torch.tensor([2, 0, 0, 1, 2, 1])
    rows = torch.stack([table[label] for label in labels.tolist()])
    assert torch.equal(latent(labels), latent.layer(rows))


def test_the_embeddings_are_constant(table):
    """The table is neither parameter nor state; training and redraws leave it alone."""
    latent, labels, before = build_latent("noisy", table, NOISE, 6), torch.arange(6) % CLASSES, table.clone()
    train_a_step(latent, labels)
    latent.redraw()
    assert torch.equal(latent.table, before) and not latent.table.requires_grad
    assert not any("table" in name for name, _ in latent.named_parameters())
    assert not any("table" in name for name in latent.state_dict())


@pytest.mark.parametrize("redraw_norm", [False, True])
def test_redraw_norm_decides_whether_the_batchnorm_starts_over(table, redraw_norm):
    latent = build_latent("noisy", table, NOISE, 6, redraw_norm=redraw_norm)
    nn.init.constant_(latent.layer.norm.weight, 3)
    latent.redraw()
    assert latent.layer.norm.weight.unique().tolist() == [1.0 if redraw_norm else 3.0]


def test_what_training_learned_in_the_heads_is_thrown_away(table):
    latent, labels = build_latent("noisy", table, NOISE, 6), torch.arange(6) % CLASSES
    latent.redraw(seeded(1))
    before = latent(labels).detach()
    latent.layer.norm.requires_grad_(False)
    train_a_step(latent, labels)
    assert not torch.allclose(latent(labels), before)
    latent.redraw(seeded(1))
    assert torch.equal(latent(labels), before)


# --- plain noise (Fig. 2a)


def test_noise_is_standard_normal_and_new_with_each_redraw():
    latent, labels = Noise(100, 200), torch.zeros(200, dtype=torch.long)
    latent.redraw(seeded(0))
    z = latent(labels)
    assert abs(z.mean().item()) < 4 / 20000**0.5 and z.std().item() == pytest.approx(1, abs=0.02)
    assert torch.pdist(z).min() > 8  # one vector an image; sqrt(200) = 14 apart
    latent.redraw(seeded(1))
    assert abs((latent(labels) * z).mean().item()) < 4 / 20000**0.5


def test_the_labels_do_not_enter_noise(table):
    latent = build_latent("noise", table, NOISE, 6)
    assert torch.equal(latent(torch.zeros(6, dtype=torch.long)), latent(torch.arange(6) % CLASSES))


def test_noise_is_not_optimised_but_kept_in_the_state(table):
    latent = build_latent("noise", table, NOISE, 6)
    assert list(latent.parameters()) == []
    other = build_latent("noise", table, NOISE, 6)
    other.load_state_dict(latent.state_dict())
    labels = torch.arange(6) % CLASSES
    assert torch.equal(other(labels), latent(labels))


# --- names


def test_an_unknown_latent_names_the_nearest(table):
    with pytest.raises(UserError, match="unknown latent 'noisey'. Did you mean 'noisy'"):
        build_latent("noisey", table, NOISE, 6)


@pytest.mark.parametrize("name", LATENTS)
@pytest.mark.parametrize("batch", [0, 1])
def test_a_batch_without_a_second_image_is_refused(table, name, batch):
    with pytest.raises(UserError, match="at least 2 images: BatchNorm has nothing to compare"):
        build_latent(name, table, NOISE, batch)


def test_one_to_one_is_a_head_for_every_image(table):
    latent = NoisyText(table, NOISE, 4, per_head=1)
    out = latent(torch.tensor([0, 1, 0, 1]))
    assert len(latent.layer.weight) == 4
    assert (out[0] - out[2]).abs().max() > 0.1  # the same label twice, two places
