"""ZeroQ: each image's own statistics, one round in a run, ranges set on its images, and learning only on request."""

import copy

import pytest
import torch
from test_ranks import connected
from tiny import run_all, same, tiny_config, tiny_setup
from torch import nn

from nayer_beyond.quantised import calibrate, layers
from nayer_beyond.zeroq import ZeroQ, image_statistics
from nayer_lib.config import make_config
from nayer_lib.distill import prepare
from nayer_lib.errors import UserError


def tiny_zeroq(**overrides) -> ZeroQ:
    return tiny_setup(method="zeroq", **overrides).method


def test_its_numbers_are_the_authors():
    config = make_config("cifar10-wrn40_2-wrn16_2", profile="full", method="zeroq", protocol="published")
    assert (config.generator_steps, config.generator_batch, config.generator_lr) == (500, 32, 0.5)
    assert config.total_rounds == 1 and not config.fine_tune


def test_image_statistics_by_hand():
    """Means 2 and 1, deviations 1 and 0 of two images of one channel; against mean 1, deviation 2."""
    maps = torch.tensor([[[1.0, 3.0]], [[1.0, 1.0]]])
    apart = image_statistics(maps, torch.tensor([1.0]), torch.tensor([4.0]))
    assert apart.item() == pytest.approx(((1 + 1) + (0 + 4)) / 2, abs=0.01)  # sqrt(0 + 1e-6) is 0.001


def test_what_it_lowers_is_every_layer_and_the_image():
    """By a loop over images, layers and channels, on what each BatchNorm reads."""
    method = tiny_zeroq()
    method.begin_round()
    method.generator.x.data.mul_(3).add_(2)  # so that the image's own statistics are far from 0 and 1
    seen, norms = [], method.teacher.batch_norms()
    handles = [n.register_forward_pre_hook(lambda _module, args: seen.append(args[0].detach())) for n in norms]
    with method.watched() as method.caught:
        total, (_, term), images = method._objective(method.pseudo_labels(), None, False)
    for handle in handles:
        handle.remove()
    x = method.teacher.normalised(images.detach())
    zero = torch.zeros(x.shape[1])
    expected = 0.0
    for maps, mean, var in [(x, zero, zero + 1)] + [
        (maps, n.running_mean, n.running_var) for maps, n in zip(seen, norms, strict=True)
    ]:
        for image in maps:
            for channel, m, v in zip(image, mean.tolist(), var.tolist(), strict=True):
                expected += (channel.mean().item() - m) ** 2 / len(maps)
                expected += (channel.std(correction=0).item() - v**0.5) ** 2 / len(maps)
    assert total == term and term.item() == pytest.approx(expected, rel=1e-3)


def test_one_round_in_a_run_sets_the_ranges_on_its_images():
    setup = tiny_setup(method="zeroq", fine_tune=False, epochs=3)
    method, before = setup.method, copy.deepcopy(setup.method.student.state_dict())
    epochs = run_all(setup)
    assert [len(epoch.rounds) for epoch in epochs] == [1, 0, 0, 0] and len(method.memory) == 20
    moved = {key for key, x in method.student.state_dict().items() if not torch.equal(x, before[key])}
    assert moved and all(key.endswith((".low", ".high")) for key in moved)  # it does not learn
    ends = [(layer.low.clone(), layer.high.clone()) for layer in layers(method.student.net)]
    calibrate(method.student, method.memory.images.float() / 255)
    assert same(ends, [(layer.low, layer.high) for layer in layers(method.student.net)])
    assert torch.equal(method.memory.labels, method.teacher(method.memory.images.float() / 255).argmax(1))


def test_it_learns_where_it_is_asked_to():
    for fine_tune in (False, True):
        setup = tiny_setup(method="zeroq", fine_tune=fine_tune)
        before = setup.method.student.net.fc.weight.clone()
        losses = [epoch.student_loss for epoch in run_all(setup) if epoch.student_loss is not None]
        assert torch.equal(before, setup.method.student.net.fc.weight) != fine_tune
        assert all(loss > 0 for loss in losses) == fine_tune


def test_the_rate_falls_tenfold_without_progress_down_to_the_lowest(monkeypatch):
    from nayer_beyond import zeroq

    monkeypatch.setattr(zeroq, "PATIENCE", 2)
    method = tiny_zeroq(generator_lr=1e-6, generator_steps=9)  # hardly any progress
    group, rates = method.optimizers[0].param_groups[0], []
    monkeypatch.setattr(zeroq, "LOWEST_RATE", 1e-7)
    method.begin_round()
    labels = method.pseudo_labels()
    for _ in method.steps(0, lambda: labels):
        rates.append(group["lr"])
    assert rates == pytest.approx([1e-6] * 3 + [1e-7] * 6)


def test_its_images_come_nearer_to_the_statistics():
    report = tiny_zeroq(generator_steps=2).synthesize(0)
    longer = tiny_zeroq(generator_steps=60).synthesize(0)
    assert longer.extra["L_statistics"] < 0.7 * report.extra["L_statistics"]


def test_two_processes_set_equal_ranges_on_images_of_their_own(tmp_path):
    def work() -> dict:
        setup = prepare(tiny_config(method="zeroq", fine_tune=False, epochs=1), device="cpu")
        run_all(setup)
        student = setup.method.student
        return {"images": setup.method.memory.images, "ends": [x for m in layers(student.net) for x in (m.low, m.high)]}

    one, other = connected(work, tmp_path)
    assert same(one["ends"], other["ends"]) and not torch.equal(one["images"], other["images"])


def test_what_it_cannot_do_is_told():
    with pytest.raises(UserError, match="^ZeroQ makes a quantised student: give weight_bits, from 2 to 16.$"):
        prepare(make_config("digits", method="zeroq"), device="cpu")
    with pytest.raises(UserError, match=r"cannot be set from 5 image\(s\)"):
        tiny_zeroq(generator_batch=5).synthesize(0)
    method = tiny_zeroq()
    for name, module in list(method.teacher.net.named_modules()):
        if isinstance(module, nn.BatchNorm2d):
            method.teacher.net.set_submodule(name, nn.Identity())
    with pytest.raises(UserError, match="needs a teacher with BatchNorm"):
        ZeroQ(method.teacher, method.student, method.config)
