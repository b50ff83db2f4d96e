"""Every network against its published counts, its checkpoint's names and its formula worked by hand."""

import math
import os
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nayer_lib.classifiers import KNOWN, build
from nayer_lib.classifiers.resnet import PadShortcut, dafl_resnet, he_resnet
from nayer_lib.classifiers.wide_resnet import PreactBlock, WideResNet
from nayer_lib.errors import UserError

SMALL = [name for name in KNOWN if name != "resnet50"]
SIDE = {"vgg19": 32}  # pixels of the smallest image; other networks take 8

# parameters at 10, 100 and 200 classes; state tensors; BatchNorm2d layers and the sum of their channels; head
TABLE = {
    "resnet18": ((11_173_962, 11_220_132, 11_271_432), 122, 20, 4800, "linear"),
    "resnet34": ((21_282_122, 21_328_292, 21_379_592), 218, 36, 8512, "linear"),
    "wrn40_2": ((2_243_546, 2_255_156, 2_268_056), 227, 37, 2704, "fc"),
    "wrn16_2": ((691_674, 703_284, 716_184), 83, 13, 912, "fc"),
    "wrn16_1": ((175_066, 180_916, 187_416), 82, 13, 464, "fc"),
    "wrn40_1": ((563_930, 569_780, 576_280), 226, 37, 1360, "fc"),
    "vgg11": ((9_231_114, 9_277_284, 9_328_584), 58, 8, 2752, "classifier"),
    "resnet20_b": ((272_474, 278_324, 284_824), 128, 21, 784, "linear"),
    "mobilenetv2": ((2_296_922, 2_412_212, 2_540_312), 344, 57, 17_544, "linear"),
    "vgg19": ((38_958_922, 39_327_652, 39_737_352), 118, 16, 5504, "classifier"),
}


def on_meta(name, num_classes=10, channels=3):
    """The network with shapes but no memory."""
    with torch.device("meta"):
        return build(name, num_classes, channels)


def parameters(net):
    return sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize("name", TABLE)
def test_published_counts(name):
    counts, tensors, norms, norm_channels, head = TABLE[name]
    assert tuple(parameters(on_meta(name, k)) for k in (10, 100, 200)) == counts
    net = on_meta(name)
    batch_norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(net.state_dict()) == tensors
    assert (len(batch_norms), sum(m.num_features for m in batch_norms)) == (norms, norm_channels)
    assert all((m.eps, m.momentum, m.affine) == (1e-5, 0.1, True) for m in batch_norms)
    hidden = ["hidden.0", "hidden.3"] if name == "vgg19" else []
    assert [key for key, m in net.named_modules() if isinstance(m, nn.Linear)] == [*hidden, head]


@pytest.mark.parametrize(
    ("name", "num_classes", "channels", "count"),
    [
        ("resnet8", 10, 3, 432 + 4608 + 13_824 + 55_296 + 2 * 240 + 650),  # stem, three blocks, norms, head, by hand
        ("resnet20", 10, 3, 269_722),
        ("resnet44", 10, 3, 658_586),
        ("resnet50", 1000, 3, 25_557_032),
        ("wrn10_1", 10, 3, 432 + 4672 + 14_432 + 57_536 + 128 + 650),  # stem, three blocks, bn1, fc, added up by hand
        ("wrn10_half", 10, 1, 144 + 1904 + 3632 + 14_432 + 64 + 330),
    ],
)
def test_other_counts(name, num_classes, channels, count):
    assert parameters(on_meta(name, num_classes, channels)) == count


# --- names in the state_dict

NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def conv(*names):
    return {f"{name}.weight" for name in names}


def affine(*names):
    return {f"{name}.{leaf}" for name in names for leaf in ("weight", "bias")}


def norm(*names):
    return {f"{name}.{leaf}" for name in names for leaf in NORM}


def wrn_names(n, with_shortcut):
    names = conv("conv1") | norm("bn1") | affine("fc")
    names |= conv(*(f"{group}.layer.0.convShortcut" for group in with_shortcut))
    for block in (f"block{g}.layer.{i}" for g in (1, 2, 3) for i in range(n)):
        names |= norm(f"{block}.bn1", f"{block}.bn2") | conv(f"{block}.conv1", f"{block}.conv2")
    return names


def resnet_names(blocks, with_shortcut):
    names = conv("conv1") | norm("bn1") | affine("linear")
    names |= conv(*(f"{group}.0.shortcut.0" for group in with_shortcut))
    names |= norm(*(f"{group}.0.shortcut.1" for group in with_shortcut))
    for block in (f"layer{g}.{i}" for g, count in enumerate(blocks, 1) for i in range(count)):
        names |= norm(f"{block}.bn1", f"{block}.bn2") | conv(f"{block}.conv1", f"{block}.conv2")
    return names


def mobilenet_names():
    """Seven groups; every block has three convolutions, and blocks of a new width at stride 1 a fourth."""
    blocks = [f"layer{g}.{i}" for g, count in enumerate((1, 2, 3, 4, 3, 3, 1), 1) for i in range(count)]
    names = conv("conv1", "conv2") | norm("bn1", "bn2") | affine("linear")
    for block in blocks:
        names |= conv(*(f"{block}.conv{i}" for i in (1, 2, 3))) | norm(*(f"{block}.bn{i}" for i in (1, 2, 3)))
    for block in ("layer1.0", "layer2.0", "layer5.0", "layer7.0"):
        names |= conv(f"{block}.shortcut.0") | norm(f"{block}.shortcut.1")
    return names


VGG19_CONVS = [f"block{b}.{3 * i}" for b, count in enumerate((2, 2, 4, 4, 4)) for i in range(count)]
VGG19_NORMS = [f"block{b}.{3 * i + 1}" for b, count in enumerate((2, 2, 4, 4, 4)) for i in range(count)]
VGG_CONVS = ("block0.0", "block1.0", "block2.0", "block2.3", "block3.0", "block3.3", "block4.0", "block4.3")
VGG_NORMS = ("block0.1", "block1.1", "block2.1", "block2.4", "block3.1", "block3.4", "block4.1", "block4.4")

NAMES = {
    "wrn40_2": wrn_names(6, ("block1", "block2", "block3")),
    "wrn40_1": wrn_names(6, ("block2", "block3")),
    "wrn16_2": wrn_names(2, ("block1", "block2", "block3")),
    "wrn16_1": wrn_names(2, ("block2", "block3")),
    "wrn10_1": wrn_names(1, ("block2", "block3")),
    "wrn10_half": wrn_names(1, ("block1", "block2", "block3")),
    "resnet18": resnet_names((2, 2, 2, 2), ("layer2", "layer3", "layer4")),
    "resnet34": resnet_names((3, 4, 6, 3), ("layer2", "layer3", "layer4")),
    "resnet8": resnet_names((1, 1, 1), ()),
    "resnet20": resnet_names((3, 3, 3), ()),
    "resnet44": resnet_names((7, 7, 7), ()),
    "vgg11": affine("classifier", *VGG_CONVS) | norm(*VGG_NORMS),
    "resnet20_b": resnet_names((3, 3, 3), ("layer2", "layer3")),
    "mobilenetv2": mobilenet_names(),
    "vgg19": affine("classifier", "hidden.0", "hidden.3", *VGG19_CONVS) | norm(*VGG19_NORMS),
}


@pytest.mark.parametrize("name", NAMES)
def test_state_dict_names(name):
    assert set(on_meta(name).state_dict()) == NAMES[name]


def test_wrn_names_spelled_out_once():
    """One block in full, so that the patterns above are not the only witness."""
    names = [name for name in on_meta("wrn16_2").state_dict() if name.startswith("block1.layer.0.")]
    assert names == [
        "block1.layer.0.bn1.weight",
        "block1.layer.0.bn1.bias",
        "block1.layer.0.bn1.running_mean",
        "block1.layer.0.bn1.running_var",
        "block1.layer.0.bn1.num_batches_tracked",
        "block1.layer.0.conv1.weight",
        "block1.layer.0.bn2.weight",
        "block1.layer.0.bn2.bias",
        "block1.layer.0.bn2.running_mean",
        "block1.layer.0.bn2.running_var",
        "block1.layer.0.bn2.num_batches_tracked",
        "block1.layer.0.conv2.weight",
        "block1.layer.0.convShortcut.weight",
    ]


# --- formulas


def shaken(module):
    """`module` in eval mode, with BatchNorm statistics and affine parameters that are not 0 and 1."""
    torch.manual_seed(0)
    for m in module.modules():
        if isinstance(m, nn.BatchNorm2d):
            for tensor in (m.weight.data, m.running_var):
                tensor.uniform_(0.5, 2.0)
            for tensor in (m.bias.data, m.running_mean):
                tensor.normal_()
    return module.eval()


def relu_bn(x, bn):
    """relu((x - mean) / sqrt(var + eps) * weight + bias), channel by channel."""
    mean, var, weight, bias = (t[:, None, None] for t in (bn.running_mean, bn.running_var, bn.weight, bn.bias))
    return ((x - mean) / (var + 1e-5).sqrt() * weight + bias).clamp(min=0)


@pytest.mark.parametrize(("out_channels", "stride"), [(4, 1), (6, 1), (6, 2), (2, 1)])
@torch.no_grad()
def test_preactivation_rule(out_channels, stride):
    block = shaken(PreactBlock(4, out_channels, stride))
    x = torch.randn(2, 4, 8, 8)
    a = relu_bn(x, block.bn1)
    residual = F.conv2d(a, block.conv1.weight, stride=stride, padding=1)
    residual = F.conv2d(relu_bn(residual, block.bn2), block.conv2.weight, padding=1)
    raw = out_channels == 4
    shortcut = x if raw else F.conv2d(a, block.convShortcut.weight, stride=stride)
    torch.testing.assert_close(block(x), shortcut + residual)


def test_option_a_shortcut():
    x = torch.arange(2 * 4 * 4.0).reshape(1, 2, 4, 4)
    zeros = [[0.0, 0.0], [0.0, 0.0]]
    expected = torch.tensor([[zeros, [[0.0, 2.0], [8.0, 10.0]], [[16.0, 18.0], [24.0, 26.0]], zeros]])
    assert torch.equal(PadShortcut(2, 4, stride=2)(x), expected)


@torch.no_grad()
def test_option_a_block():
    block = shaken(he_resnet(20, 10).layer2[0])
    x = torch.randn(2, 16, 8, 8)
    h = relu_bn(F.conv2d(x, block.conv1.weight, stride=2, padding=1), block.bn1)
    residual = block.bn2(F.conv2d(h, block.conv2.weight, padding=1))
    residual[:, 8:24] += x[:, :, ::2, ::2]  # 16 channels in the middle of 32
    torch.testing.assert_close(block(x), residual.clamp(min=0))


@torch.no_grad()
def test_projection_block():
    block = shaken(dafl_resnet(18, 10).layer2[0])
    x = torch.randn(1, 64, 8, 8)
    h = relu_bn(F.conv2d(x, block.conv1.weight, stride=2, padding=1), block.bn1)
    residual = block.bn2(F.conv2d(h, block.conv2.weight, padding=1))
    shortcut = block.shortcut[1](F.conv2d(x, block.shortcut[0].weight, stride=2))
    torch.testing.assert_close(block(x), (shortcut + residual).clamp(min=0))


# --- shapes and gradients


def watch_input(module):
    """A list that receives the input of `module` at each forward."""
    seen = []
    module.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    return seen


def head_of(net):
    return [m for m in net.modules() if isinstance(m, nn.Linear)][-1]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", KNOWN)
def test_output_shapes(name, channels):
    net = on_meta(name, 7, channels).eval()
    for side in (SIDE.get(name, 8), 32, 64):
        features = watch_input(head_of(net))
        assert net(torch.zeros(2, channels, side, side, device="meta")).shape == (2, 7)
        assert features[-1].shape == (2, head_of(net).in_features)


@pytest.mark.parametrize(("side", "last"), [(8, 1), (32, 4), (48, 6), (64, 4)])
def test_vgg_pools_a_fourth_time_only_at_64(side, last):
    net = on_meta("vgg11").eval()
    seen = watch_input(net.block4)
    net(torch.zeros(1, 3, side, side, device="meta"))
    assert seen[0].shape == (1, 512, last, last)


@pytest.mark.parametrize("name", ["wrn10_half", "wrn16_1", "resnet20", "vgg11"])
@torch.no_grad()
def test_head_sees_the_mean_of_non_negative_maps(name):
    net = shaken(build(name, 10))
    features = watch_input(head_of(net))
    logits = net(torch.randn(2, 3, 16, 16))
    assert (features[0] >= 0).all() and features[0].any()
    torch.testing.assert_close(logits, F.linear(features[0], head_of(net).weight, head_of(net).bias))


@pytest.mark.parametrize("name", SMALL)
def test_gradients_reach_every_parameter(name):
    torch.manual_seed(0)
    net = build(name, 10).eval()  # in training mode a BatchNorm cancels the bias of the convolution before it
    side = SIDE.get(name, 8)
    F.cross_entropy(net(torch.randn(4, 3, side, side)), torch.arange(4)).backward()
    assert [key for key, p in net.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("name", SMALL)
def test_evaluation_leaves_the_state_alone_and_training_moves_the_statistics(name):
    torch.manual_seed(0)
    net = build(name, 10, channels=1)
    images = torch.randn(2, 1, SIDE.get(name, 8), SIDE.get(name, 8))
    before = {key: tensor.clone() for key, tensor in net.state_dict().items()}
    with torch.no_grad():
        net.eval()(images)
        assert all(torch.equal(before[key], tensor) for key, tensor in net.state_dict().items())
        net.train()(images)
    moved = {key for key, tensor in net.state_dict().items() if not torch.equal(before[key], tensor)}
    assert moved == {key for key in before if key.endswith(("running_mean", "running_var", "num_batches_tracked"))}


@pytest.mark.parametrize(
    ("place", "out", "stride", "shortcut"),
    [("layer2.0", 24, 1, "projected"), ("layer2.1", 24, 1, "itself"), ("layer3.0", 32, 2, "none")],
)
@torch.no_grad()
def test_inverted_residual(place, out, stride, shortcut):
    """Six times the width, depthwise, and down to the new width without a ReLU."""
    block = shaken(build("mobilenetv2", 10).get_submodule(place))
    x = torch.randn(2, block.conv1.in_channels, 8, 8)
    h = relu_bn(F.conv2d(x, block.conv1.weight), block.bn1)
    assert len(block.conv2.weight) == block.conv2.groups == 6 * x.shape[1]
    h = relu_bn(F.conv2d(h, block.conv2.weight, stride=stride, padding=1, groups=h.shape[1]), block.bn2)
    expected = block.bn3(F.conv2d(h, block.conv3.weight))
    if shortcut == "projected":
        expected = expected + block.shortcut[1](F.conv2d(x, block.shortcut[0].weight))
    elif shortcut == "itself":
        expected = expected + x
    torch.testing.assert_close(block(x), expected)
    assert expected.shape == (2, out, 8 // stride, 8 // stride)


@torch.no_grad()
def test_vgg19_is_five_blocks_and_three_linear_layers():
    net = shaken(build("vgg19", 10))
    x = images = torch.randn(2, 3, 32, 32)
    for block in (net.block0, net.block1, net.block2, net.block3, net.block4):
        for conv_layer, bn in zip(list(block)[:-1:3], list(block)[1:-1:3], strict=True):
            x = relu_bn(F.conv2d(x, conv_layer.weight, conv_layer.bias, padding=1), bn)
        x = F.max_pool2d(x, 2)
    assert x.shape == (2, 512, 1, 1)
    for layer in (net.hidden[0], net.hidden[3]):
        x = F.linear(x.flatten(1), layer.weight, layer.bias).clamp(min=0)
    torch.testing.assert_close(net(images), F.linear(x, net.classifier.weight, net.classifier.bias))


# --- initialisation


@pytest.mark.parametrize("name", ["wrn16_2", "vgg11", "resnet20"])
def test_convolutions_start_with_he_fan_out(name):
    torch.manual_seed(0)
    for m in build(name, 10).modules():
        if isinstance(m, nn.Conv2d):
            std = math.sqrt(2 / (m.kernel_size[0] ** 2 * m.out_channels))
            assert m.weight.std().item() == pytest.approx(std, rel=4 / math.sqrt(2 * m.weight.numel()))
            assert m.bias is None or not m.bias.any()


def test_heads_start_as_published():
    torch.manual_seed(0)
    assert not build("wrn16_1", 10).fc.bias.any()
    head = build("vgg11", 100).classifier
    assert head.weight.std().item() == pytest.approx(0.01, rel=0.02) and not head.bias.any()


def test_seed_decides_the_weights():
    def weights(seed):
        torch.manual_seed(seed)
        return build("wrn10_half", 10, 1).state_dict()

    first, again, other = weights(1), weights(1), weights(2)
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["conv1.weight"], other["conv1.weight"])


# --- names of networks


def test_known_names_are_the_tested_ones():
    assert set(KNOWN) == set(NAMES) | {"resnet50"}


@pytest.mark.parametrize(
    ("typed", "meant"), [("wrn16-2", "wrn16_2"), ("resnets", "resnet"), ("vgg-11", "vgg11"), ("wrn40_", "wrn40_")]
)
def test_unknown_name_names_the_nearest(typed, meant):
    with pytest.raises(UserError, match=f"unknown network '{typed}'. Did you mean '{meant}"):
        build(typed, 10)


@pytest.mark.parametrize("name", ["wrn16_0", "wrn16_0.5", "wrn_2", "xwrn16_2", "wrn16_2x", ""])
def test_malformed_names_are_unknown(name):
    with pytest.raises(UserError, match="unknown network"):
        build(name, 10)


@pytest.mark.parametrize("name", ["wrn12_1", "wrn4_1", "wrn41_2", "wrn0_half"])
def test_bad_wrn_depth(name):
    depth = name[3:].split("_")[0]
    with pytest.raises(UserError, match=rf"depth is 6n\+4 .*, not {depth}\.$"):
        build(name, 10)


def test_other_bad_shapes():
    with pytest.raises(UserError, match=r"widening factor .*, not 0\.3"):
        WideResNet(16, 0.3, 10)
    with pytest.raises(UserError, match=r"6n\+2 .*, not 18"):
        he_resnet(18, 10)


def test_a_wrn_outside_the_list():
    net = on_meta("wrn28_10")
    assert parameters(net) == 36_479_194  # the 36.5M of the Wide ResNet paper
    assert len(net.block1.layer) == 4 and net.fc.in_features == 640


# --- third-party checkpoints

CHECKPOINTS = {"resnet20": "resnet20-12fca82f.th", "resnet44": "resnet44-014dd654.th"}


def data_path(*parts):
    """A path below NAYER_TEST_DATA; skips the test where it is absent."""
    folder = os.environ.get("NAYER_TEST_DATA")
    if not folder:
        pytest.skip("NAYER_TEST_DATA does not name a folder that holds classifiers-cifar10/")
    path = Path(folder, *parts)
    if not path.exists():
        pytest.skip(f"{path} is absent")
    return path


def published(name):
    """The third-party weights without the prefix that DataParallel gave their names."""
    path = data_path("classifiers-cifar10", CHECKPOINTS[name])
    saved = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
    return {key.removeprefix("module."): tensor for key, tensor in saved.items()}


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_published_checkpoint_loads_strictly(name):
    state, net = published(name), build(name, 10)
    net.load_state_dict(state, strict=True)
    loaded = net.state_dict()
    assert all(torch.equal(loaded[key], tensor) for key, tensor in state.items())
    assert {key for key in loaded if not key.endswith("num_batches_tracked")} == {
        key for key in state if not key.endswith("num_batches_tracked")
    }


@torch.no_grad()
def test_published_resnet20_recognises_cifar10():
    """91.7 % on the whole test set; 91.0 % on these 500 images, and 22 % if all zero channels stood behind."""
    image = pytest.importorskip("PIL.Image")
    np = pytest.importorskip("numpy")
    net = build("resnet20", 10).eval()
    net.load_state_dict(published("resnet20"))
    pixels = np.asarray(image.open(data_path("cifar10", "test_000.webp")).convert("RGB")).reshape(-1, 32, 32, 3)
    labels = torch.from_numpy(np.load(data_path("cifar10", "test_labels.npz"))["labels"][: len(pixels)].astype("int64"))
    mean, std = (torch.tensor(t)[:, None, None] for t in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    images = (torch.from_numpy(pixels.copy()).permute(0, 3, 1, 2) / 255 - mean) / std
    assert (net(images).argmax(1) == labels).float().mean().item() > 0.88
