"""One check of a teacher before anything is written: what cannot be distilled is told in a sentence."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.ops import FrozenBatchNorm2d

from nayer_lib.classifiers.check import check_teacher
from nayer_lib.classifiers.teacher import Classifier, make_classifier
from nayer_lib.errors import UserError
from nayer_lib.losses import BatchNormLoss

NAMES = tuple(f"class {k}" for k in range(5))
SHAPE = (3, 8, 8)


def network(norm=nn.BatchNorm2d, head=None, classes=5):
    torch.manual_seed(0)
    head = head or [nn.Flatten(), nn.Linear(16, classes)]
    return nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), norm(16), nn.ReLU(), nn.AdaptiveAvgPool2d(1), *head)


def teacher(net, mean=(0.5,) * 3, std=(0.25,) * 3):
    return Classifier(net, NAMES, mean, std)


class Then(nn.Module):
    """A network, and what is done with its logits, or before."""

    def __init__(self, after=lambda y: y, before=lambda x: x, net=None):
        super().__init__()
        self.net, self.after, self.before = net or network(), after, before

    def forward(self, x):
        return self.after(self.net(self.before(x)))


def with_idle():
    net = network()
    net[0].aside = nn.BatchNorm2d(4)
    return net


def test_a_sound_teacher_passes_and_is_frozen():
    made = teacher(network())
    check_teacher(made, SHAPE)
    assert not made.training and not any(p.requires_grad or p.grad is not None for p in made.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in made.modules())


@pytest.mark.parametrize(
    ("net", "sentence"),
    [
        (Then(lambda y: (y, y)), "gives a tuple, not one tensor of logits: wrap"),
        (Then(lambda y: {"logits": y}), "gives a dict, not one tensor"),
        (Then(lambda y: y.softmax(1)), "take the softmax off"),
        (Then(lambda y: (y - 0.5).sigmoid()), "take the sigmoid off"),
        (Then(lambda y: y.half()), "gives torch.float16, not float32"),
        (Then(lambda y: y / 0), "logits that are not finite"),
        (Then(lambda y: y[:, :, None]), r"gives \(2, 5, 1\) for two images, not \(2, 5\)"),
        (network(classes=4), r"gives \(2, 4\) for two images, not \(2, 5\), one logit for each of its 5 class names"),
        (Then(lambda y: y.detach()), "no gradient to its images"),
        (Then(lambda y: F.dropout(y)), "depends on chance or on the batch"),
        (Then(before=lambda x: (x - x.mean(0)) * 9), "depends on chance or on the batch"),
        (Then(before=lambda x: x[:, :1]), "fails on images of 3 x 8 x 8 .RuntimeError"),
        (network(head=[nn.Flatten(), nn.LazyLinear(5)]), "lazy layers"),
        (network(lambda c: nn.BatchNorm2d(c, track_running_stats=False)), "'1' keeps no running statistics"),
        (with_idle(), "BatchNorm '0.aside' takes no part in its answer"),
        (Then(net=nn.Sequential(nn.Conv2d(3, 5, 8), nn.Flatten())), "without a head that can be found"),
        (nn.Flatten(), "no weights as floating-point parameters"),
    ],
)
def test_what_cannot_be_distilled_is_told(net, sentence):
    with pytest.raises(UserError, match=sentence):
        check_teacher(teacher(net), SHAPE)


def test_log_probabilities_are_logits():
    """The softmax of them is that of the logits, at every temperature."""
    check_teacher(teacher(Then(lambda y: y.log_softmax(1))), SHAPE)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_become_32_bits(dtype):
    made = teacher(network().to(dtype))
    check_teacher(made, SHAPE)
    assert {p.dtype for p in made.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("1.running_var", float("nan"), r"not finite: 1.running_var \(1\)"),
        ("1.running_var", -1.0, r"variances below 0: 1.running_var \(1\)"),
        ("5.bias", float("inf"), r"not finite: 5.bias \(1\)"),
    ],
)
def test_damaged_weights_are_told_by_their_keys(key, value, sentence):
    net = network()
    net.state_dict()[key][0] = value
    with pytest.raises(UserError, match=sentence):
        check_teacher(teacher(net), SHAPE)


def test_channels_and_normalisation_must_fit_the_images():
    with pytest.raises(UserError, match=r"normalisation has 3 numbers and the images have 1 channel"):
        check_teacher(teacher(network()), (1, 8, 8))
    for mean, std in (((125.3, 123.0, 113.9), (0.25,) * 3), ((0.5,) * 3, (63.0,) * 3)):
        with pytest.raises(UserError, match="divide them by 255"):
            teacher(network(), mean, std)


@pytest.mark.parametrize("mean", [None, 0.5, "abc", ("a",) * 3, (float("nan"),) * 3])
def test_a_normalisation_that_is_no_numbers_is_refused(mean):
    with pytest.raises(UserError, match="normalisation needs|in .0, 1."):
        teacher(network(), mean)


def test_a_1x1_convolution_is_a_head():
    made = teacher(network(head=[nn.Conv2d(16, 5, 1), nn.Flatten()]))
    check_teacher(made, SHAPE)
    logits, features = made(torch.rand(4, *SHAPE), return_features=True)
    assert features.shape == (4, 16)
    torch.testing.assert_close(logits, F.linear(features, made.head().weight.flatten(1), made.head().bias))


@pytest.mark.parametrize("norm", [nn.SyncBatchNorm, FrozenBatchNorm2d, nn.BatchNorm2d])
def test_batchnorms_of_every_form_serve_l_bn(norm):
    made = teacher(network(norm))
    check_teacher(made, SHAPE)
    loss = BatchNormLoss(made, momentum=0.0)
    with loss.armed():
        made(torch.rand(4, *SHAPE))
        assert loss() > 0


def test_a_batchnorm_of_vectors_serves_l_bn():
    """Rows that have the running statistics cost nothing."""
    made = teacher(network(head=[nn.Flatten(), nn.BatchNorm1d(16), nn.Linear(16, 5)]))
    check_teacher(made, SHAPE)
    images, [_, vectors] = torch.rand(4, *SHAPE), made.batch_norms()
    loss = BatchNormLoss(made, momentum=0.0)
    with loss.armed():
        features = made(images, return_features=True)[1] * (vectors.running_var + vectors.eps).sqrt()
        vectors.running_var.copy_(features.var(0, correction=0))
        vectors.running_mean.copy_(features.mean(0))
        made(images)
        first = loss.layers[0]
        var, mean = loss._batch[0]
        expected = (first.running_var - var).norm() + (first.running_mean - mean).norm()
        torch.testing.assert_close(loss(), expected, atol=1e-4, rtol=1e-3)


def test_the_kits_networks_pass():
    for name in ("wrn10_half", "resnet8", "vgg11"):
        check_teacher(make_classifier(name, NAMES, (0.5,) * 3, (0.25,) * 3, 0), (3, 32, 32))
