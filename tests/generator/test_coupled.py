"""The coupled generator: its layers. That its maps fit a teacher's is asked in tests/methods/test_cpnet.py."""

from torch import nn

from nayer_lib.generator.coupled import CoupledGenerator


def test_the_coupled_generator_is_built_of_linear_doublings_and_convolutions():
    generator = CoupledGenerator(7, [(8, 2), (6, 4), (4, 4)], 1, 8)
    kinds = [[type(layer) for layer in block] for block in generator.blocks]
    assert kinds[0] == [nn.Linear, nn.Unflatten, nn.BatchNorm2d]
    assert kinds[1] == kinds[2] == [nn.Upsample, nn.Conv2d, nn.BatchNorm2d, nn.LeakyReLU]
    assert [block[0].scale_factor for block in (*generator.blocks[1:], generator.end)] == [2, 1, 2]
    assert generator.end[1].bias is not None and generator.blocks[1][1].bias is None
