"""ZAQ: DFAD on quantised networks, with the relations in feature maps."""

import math

import pytest
import torch
from tiny import tiny_setup
from torch import nn

from nayer_beyond.zaq import ZAQ, relation_distance, relations
from nayer_lib.classifiers.teacher import tapped
from nayer_lib.config import make_config
from nayer_lib.errors import UserError
from nayer_lib.methods.base import Batch


def tiny_zaq(**overrides) -> ZAQ:
    return tiny_setup(method="zaq", **overrides).method


def test_its_numbers_are_the_authors():
    config = make_config("cifar10-wrn40_2-wrn16_2", profile="full", method="zaq", protocol="published")
    assert (config.epochs, config.repeats, config.student_steps, config.generator_steps) == (300, 60, 5, 1)
    assert (config.alpha_crm, config.alpha_act, config.noise_dim, config.student_batch) == (1, 0.1, 256, 256)
    assert (config.student_lr, config.student_weight_decay, config.generator_lr) == (0.1, 5e-4, 1e-3)


def test_relations_are_a_loop_over_places_and_channels():
    maps = torch.randn(2, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    of_places, of_channels = relations(maps)
    for b, image in enumerate(maps.flatten(2).tolist()):
        size = [math.sqrt(sum(row[j] ** 2 for row in image)) for j in range(4)]
        f = [[value / size[j] for j, value in enumerate(row)] for row in image]
        for j in range(4):  # each place: what is at all places, by how alike they are
            alike = [math.exp(sum(f[c][i] * f[c][j] for c in range(3))) for i in range(4)]
            for c in range(3):
                mixed = sum(f[c][i] * alike[i] / sum(alike) for i in range(4))
                assert of_places[b, c, j].item() == pytest.approx(f[c][j] + 0.1 * mixed, rel=1e-4)
        gram = [[sum(x * y for x, y in zip(f[c], f[d], strict=True)) for d in range(3)] for c in range(3)]
        for c in range(3):  # each channel: all channels, by how unlike they are
            unlike = [math.exp(max(gram[c]) - gram[c][d]) for d in range(3)]
            for j in range(4):
                mixed = sum(f[d][j] * unlike[d] / sum(unlike) for d in range(3))
                assert of_channels[b, c, j].item() == pytest.approx(f[c][j] + 0.1 * mixed, rel=1e-4, abs=1e-6)


def test_crm_is_0_for_equal_maps_and_adds_stages_up():
    maps = [torch.randn(2, 3, side, side) for side in (4, 2)]
    others = [torch.randn_like(stage) for stage in maps]
    assert relation_distance(maps, maps) == 0
    alone = [relation_distance([a], [b]) for a, b in zip(maps, others, strict=True)]
    torch.testing.assert_close(relation_distance(maps, others), sum(alone))
    [a], [b] = relations(maps[1])[:1], relations(others[1])[:1]
    assert 0 < (a - b).abs().mean() < alone[1]


def test_generator_and_student_play_for_the_same_distances():
    method = tiny_zaq(alpha_crm=3.0, alpha_act=0.5)
    method.student.eval()
    z = torch.randn(20, 16, generator=torch.Generator().manual_seed(0))
    with method.watched() as method.caught:
        total, (_, l1, crm, act), images = method._objective(z, None, True)
    assert not method.caught
    images = images.detach()
    stages = method.teacher.stages()
    with torch.no_grad(), tapped(stages) as of_teacher, tapped(method.student.stages()) as of_student:
        t, s = method.teacher(images), method.student(images)
        expected = relation_distance(of_teacher.values(), of_student.values())
        last = of_teacher[len(stages) - 1].abs().mean()
    torch.testing.assert_close(torch.stack([l1, crm, act]), -torch.stack([(t - s).abs().mean(), expected, last]))
    torch.testing.assert_close(total, l1 + 3 * crm + 0.5 * act)
    loss = method._student_loss(Batch(images, None, "test"))
    torch.testing.assert_close(loss, (t - s).abs().mean() + 3 * expected)


def test_stages_with_large_maps_are_left_out():
    """The digits' stages are of 8, 4 and 2 px."""
    maps, others = ([torch.randn(2, 3, side, side) for side in (8, 4, 2)] for _ in range(2))
    for largest, counted in ((16, 3), (7, 2), (2, 1), (1, 1)):
        apart = tiny_zaq(crm_largest_map=largest).relation_distance(maps, others)
        torch.testing.assert_close(apart, relation_distance(maps[3 - counted :], others[3 - counted :]))


def test_what_it_cannot_do_is_told():
    of_floats, method = tiny_setup(method="dfad").method, tiny_zaq()
    with pytest.raises(UserError, match="^ZAQ makes a quantised student: give weight_bits"):
        ZAQ(of_floats.teacher, of_floats.student, method.config)
    method.teacher.net = nn.Sequential(*method.teacher.net.children())  # numbered, not named
    with pytest.raises(UserError, match=r"finds none in this teacher: call the modules .* or take dfad"):
        ZAQ(method.teacher, method.student, method.config)
