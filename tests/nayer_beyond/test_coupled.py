"""The coupled generator's layers, recoloured maps, the head's inverse. That maps fit a teacher's: test_cpnet.py."""

import torch
from torch import nn

from nayer_beyond.coupled import CoupledGenerator, head_inverse, recoloured


def test_the_coupled_generator_is_built_of_linear_doublings_and_convolutions():
    generator = CoupledGenerator(7, [(8, 2), (6, 4), (4, 4)], 1, 8)
    kinds = [[type(layer) for layer in block] for block in generator.blocks]
    assert kinds[0] == [nn.Linear, nn.Unflatten, nn.BatchNorm2d]
    assert kinds[1] == kinds[2] == [nn.Upsample, nn.Conv2d, nn.BatchNorm2d, nn.LeakyReLU]
    assert [block[0].scale_factor for block in (*generator.blocks[1:], generator.end)] == [2, 1, 2]
    assert generator.end[1].bias is not None and generator.blocks[1][1].bias is None


def test_recoloured_maps_have_the_running_statistics():
    norm, f = torch.nn.BatchNorm2d(4), torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(0)) * 2 + 1
    norm.running_mean.copy_(torch.tensor([0.0, 1.0, -2.0, 5.0]))
    norm.running_var.copy_(torch.tensor([1.0, 4.0, 0.25, 9.0]))
    f = f.requires_grad_()
    var, mean = torch.var_mean(f, (0, 2, 3), correction=0)
    target = recoloured(f, var, mean, norm)
    torch.testing.assert_close(target.mean((0, 2, 3)), norm.running_mean, atol=1e-5, rtol=0)
    torch.testing.assert_close(target.var((0, 2, 3), correction=0), norm.running_var, atol=1e-3, rtol=0)
    by_hand = (f - mean.view(-1, 1, 1)) / var.sqrt().view(-1, 1, 1) * norm.running_var.sqrt().view(-1, 1, 1)
    torch.testing.assert_close(target, by_hand.detach() + norm.running_mean.view(-1, 1, 1), atol=1e-4, rtol=1e-3)
    assert not target.requires_grad
    assert recoloured(torch.zeros(2, 4, 3, 3), torch.zeros(4), torch.zeros(4), norm).isfinite().all()


def test_the_heads_inverse_undoes_it_where_no_singular_value_is_clamped():
    weight = torch.randn(10, 64, generator=torch.Generator().manual_seed(0))
    assert torch.linalg.svdvals(weight).min() > 0.1
    torch.testing.assert_close(head_inverse(weight) @ weight.T, torch.eye(10), atol=1e-5, rtol=0)
    torch.testing.assert_close(head_inverse(weight), torch.linalg.pinv(weight.T), atol=1e-5, rtol=0)


def test_small_singular_values_count_as_a_tenth():
    weight = torch.diag(torch.tensor([2.0, 0.05]))
    torch.testing.assert_close(head_inverse(weight), torch.diag(torch.tensor([0.5, 10.0])))
