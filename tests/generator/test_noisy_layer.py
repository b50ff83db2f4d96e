"""The noisy layer Z: Eq. 3 worked by hand, what a redraw throws away, and what it keeps (Section 3.3)."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from nayer_lib.generator.noisy_layer import NoisyLayer
from nayer_lib.text.labels import class_names
from nayer_lib.text.lte_pool import load_pool, pool_path


def noisy_layer(embed_dim=6, noise_dim=4, batch=6, per_head=3):
    """A layer whose BatchNorm and biases are not the identity."""
    torch.manual_seed(0)
    layer = NoisyLayer(embed_dim, noise_dim, batch, per_head)
    with torch.no_grad():
        layer.norm.weight.uniform_(0.5, 2)
        layer.norm.bias.normal_()
        layer.bias.normal_()
    return layer


def by_hand(layer, lte, per_head):
    """Eq. 3: Z(e_y) = Linear(BatchNorm(e_y)), sample i through head i // n."""
    mean, var = lte.mean(0), lte.var(0, unbiased=False)
    rows = (lte - mean) / (var + 1e-5).sqrt() * layer.norm.weight + layer.norm.bias
    out = []
    for i, row in enumerate(rows):
        head = i // per_head
        out.append(row @ layer.weight[head] + layer.bias[head, 0])
    return torch.stack(out)


# batch, samples of a head, heads: whole heads, a ragged last one, fewer images than classes, 1-to-1
SHAPES = [(6, 3, 2), (7, 3, 3), (8, 3, 3), (2, 5, 1), (4, 1, 4), (5, 5, 1)]


@pytest.mark.parametrize(("batch", "per_head", "heads"), SHAPES)
def test_matches_equation_3_written_out_by_hand(batch, per_head, heads):
    layer, lte = noisy_layer(batch=batch, per_head=per_head), torch.randn(batch, 6)
    assert layer.weight.shape == (heads, 6, 4)
    torch.testing.assert_close(layer(lte), by_hand(layer, lte, per_head))


@pytest.mark.parametrize("size", [2, 3, 4, 6])
def test_a_batch_may_be_smaller_than_the_heads_allow_for(size):
    layer, lte = noisy_layer(), torch.randn(size, 6)
    torch.testing.assert_close(layer(lte), by_hand(layer, lte, 3))


def test_the_running_statistics_do_not_enter_in_training():
    """BatchNorm is in training mode always, so the batch's own statistics count."""
    layer, lte = noisy_layer(), torch.randn(6, 6)
    before = layer(lte)
    for _ in range(5):
        layer(torch.randn(6, 6) * 3 + 1)
    assert torch.equal(layer(lte), before)


def test_a_head_learns_from_its_own_samples_only():
    layer = noisy_layer(batch=7)
    layer(torch.randn(7, 6))[3:6].sum().backward()
    learns = [bool(layer.weight.grad[head].any()) for head in range(3)]
    assert learns == [False, True, False]
    assert [bool(layer.bias.grad[head].any()) for head in range(3)] == [False, True, False]
    assert layer.norm.weight.grad.any() and layer.norm.bias.grad.any()


def test_the_pad_of_a_ragged_head_adds_no_gradient():
    layer, lte = noisy_layer(batch=4), torch.randn(4, 6)
    upstream = torch.randn(4, 4)
    (layer(lte) * upstream).sum().backward()
    ours = [p.grad.clone() for p in layer.parameters()]
    layer.zero_grad()
    (by_hand(layer, lte, 3) * upstream).sum().backward()
    for mine, parameter in zip(ours, layer.parameters(), strict=True):
        torch.testing.assert_close(mine, parameter.grad)


def test_two_images_of_one_class_differ_only_through_their_heads():
    """K-to-1 (Section 3.3): each class once a head."""
    layer, table = noisy_layer(batch=6, per_head=3), torch.randn(3, 6)
    out = layer(table.repeat(2, 1))
    assert (out[:3] - out[3:]).norm(dim=1).min() > 0.1
    with torch.no_grad():
        layer.weight[1], layer.bias[1] = layer.weight[0], layer.bias[0]
    out = layer(table.repeat(2, 1))
    assert torch.equal(out[:3], out[3:])


# --- redraw: Algorithm 1, line 5


def test_fresh_weights_are_standard_normal_and_fresh_biases_zero():
    layer = noisy_layer(embed_dim=64, noise_dim=100, batch=8, per_head=2)
    layer.redraw(torch.Generator().manual_seed(0))
    count = layer.weight.numel()  # 25 600
    assert abs(layer.weight.mean().item()) < 4 / math.sqrt(count)
    assert layer.weight.std().item() == pytest.approx(1, abs=4 / math.sqrt(2 * count))
    assert (layer.weight.abs() < 1.96).float().mean().item() == pytest.approx(0.95, abs=0.01)
    assert layer.bias.shape == (4, 1, 100) and not layer.bias.any()
    assert torch.pdist(layer.weight.flatten(1)).min() > 100  # every head has weights of its own


def test_a_new_layer_is_already_drawn():
    layer = NoisyLayer(64, 100, batch=2, per_head=2)
    assert layer.weight.std().item() == pytest.approx(1, rel=0.05) and not layer.bias.any()


@pytest.mark.parametrize("norm", [False, True])
def test_redraw_keeps_the_batchnorm_unless_asked(norm):
    """D10: the released code redraws the Linear heads, the text says BatchNorm and Linear."""
    layer = noisy_layer()
    layer(torch.randn(6, 6) * 3 + 1)
    before = {name: tensor.clone() for name, tensor in layer.norm.state_dict().items()}
    layer.redraw(norm=norm)
    after = layer.norm.state_dict()
    if norm:
        fresh = nn.BatchNorm1d(6).state_dict()
        assert all(torch.equal(after[name], fresh[name]) for name in fresh)
    else:
        assert all(torch.equal(after[name], before[name]) for name in before)


def test_the_same_generator_gives_the_same_layer():
    def drawn(seed):
        torch.manual_seed(seed + 1)  # the global seed has no say
        layer = noisy_layer()
        layer.redraw(torch.Generator().manual_seed(seed))
        return layer.weight.detach().clone()

    assert torch.equal(drawn(3), drawn(3))
    assert not torch.equal(drawn(3), drawn(4))


def test_redraw_leaves_the_parameters_in_place_and_trainable():
    """An optimiser that was made before the redraw still moves them."""
    layer = noisy_layer()
    parameters = list(layer.parameters())
    layer.redraw()
    assert all(a is b for a, b in zip(parameters, layer.parameters(), strict=True))
    assert all(p.requires_grad and p.is_leaf for p in parameters)


def test_a_redraw_moves_the_same_label():
    layer, lte = NoisyLayer(64, 50, batch=5, per_head=5), torch.randn(5, 64)
    places = []
    for seed in range(4):
        layer.redraw(torch.Generator().manual_seed(seed))
        places.append(layer(lte)[2].detach())
    # Two independent draws: each coordinate's difference has a spread of sqrt(2 * 64).
    assert torch.pdist(torch.stack(places)).min() > 0.6 * math.sqrt(2 * 64 * 50)


def test_without_a_redraw_the_same_label_stays():
    layer, lte = noisy_layer(), torch.randn(6, 6)
    assert torch.equal(layer(lte), layer(lte))


# --- what BatchNorm is for (Section 3.3, Fig. 3)


def mean_cosine(rows):
    rows = F.normalize(rows)
    return (rows @ rows.T).masked_select(~torch.eye(len(rows), dtype=torch.bool)).mean().item()


def test_batchnorm_pulls_near_labels_apart():
    torch.manual_seed(0)
    lte = torch.randn(512) + 0.2 * torch.randn(10, 512)  # ten texts that say nearly the same
    apart = NoisyLayer(512, 2, batch=10, per_head=10).norm(lte)
    assert mean_cosine(lte) > 0.9 and mean_cosine(apart) < 0
    # Whatever the text: a unit variance in each coordinate makes the mean squared difference of pairs 2N / (N - 1).
    assert torch.pdist(apart).square().mean().item() / 512 == pytest.approx(2 * 10 / 9, rel=0.01)


@pytest.mark.parametrize("dataset", ["digits", "color_digits"])
def test_batchnorm_pulls_our_labels_apart(dataset):
    table = load_pool(pool_path(dataset, "sbert", "a"), class_names(dataset)).table
    apart = NoisyLayer(table.shape[1], 2, batch=len(table), per_head=len(table)).norm(table)
    assert mean_cosine(table) > 0.3 and abs(mean_cosine(apart)) < 0.12
    relative = torch.pdist(apart).min() / apart.norm(dim=1).mean()
    assert relative > torch.pdist(table).min() / table.norm(dim=1).mean()
