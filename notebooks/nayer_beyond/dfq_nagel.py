"""DFQ (Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction", ICCV).

No images and no training. BatchNorm is folded into the convolutions; then, over pairs of layers with nothing between
but ReLU and pooling (which commute with a factor s > 0 on a channel),

    equalisation:     s_i = sqrt(r1_i r2_i) / r1_i; row i of W1, b1, beta, gamma times s_i, column i of W2 over s_i
    bias absorption:  c = max(0, beta - 3 gamma); b1 - c, b2 + W2 c
    bias correction:  b2 - (Wq2 - W2) E[x]

with r1_i and r2_i the largest |w| of row and column, swept until the weights stand still; beta and gamma mean and
deviation of what layer 1 gives (those of its BatchNorm), E[x] the mean of what the layer reads (`moments`). Inputs'
ranges are mean +- 6 deviations, those of the image its own: all from BatchNorm, nothing from noise.

Where the paper is open or this kit's quantiser decides: weights are symmetric (theirs asymmetric), one scale a tensor
as theirs; additions are not rounded; the optional clip of weights at 15 is left out. Absorption takes a convolution's
padding for c, which it is not, as the public code does (jakc4103/DFQ). That code computes the error of bias correction
at 8 bits whatever the bits are; here it is at the layer's own. MobileNetV2 has ReLU in place of ReLU6 from the start.

Table 9's column DFQ cites Choi et al. 2020 (`dfq_choi`), but its text describes this method.
"""

import copy
from dataclasses import dataclass, replace

import torch
from torch import fx

from nayer_lib.classifiers.folding import fold_batch_norms
from nayer_lib.classifiers.teacher import Classifier
from nayer_lib.errors import UserError

from .equalisation import absorb, correct, equalise, given_by_batch_norm, neighbours
from .moments import Moments, inputs_of_layers
from .quantised import Quantisation, give_biases, quantise
from .rounding import Rounding, RoundingConfig


@dataclass(frozen=True)
class DFQNagelConfig(RoundingConfig):
    """DFQ (Nagel et al. 2019): a scale a tensor is what equalisation is for."""

    weight_scale: str = "tensor"


@torch.no_grad()
def without_data(teacher: Classifier, how: Quantisation) -> tuple[Classifier, int]:
    """A quantised copy of a teacher by this method, and how many pairs of layers it equalised.

    Raises:
        UserError: a network that cannot be traced, that has an operation without a rule (`moments`), or no pair.
    """
    student = copy.deepcopy(teacher)
    try:
        graph = fx.symbolic_trace(teacher.net).graph
        student.net = net = fold_batch_norms(teacher.net)
    except Exception as error:  # fx raises many kinds of errors for a network that it cannot trace
        raise UserError(
            f"{DFQNagel.name} needs a teacher that torch.fx can trace ({type(error).__name__}: {error}): take another "
            "method."
        ) from error
    give_biases(net)
    pairs, known = neighbours(graph, net), given_by_batch_norm(graph, teacher.net, net)
    if not pairs:
        raise UserError(
            f"{DFQNagel.name} found 0 pairs of layers in this teacher with nothing between but ReLU and pooling: there "
            "is nothing to equalise; take another method."
        )
    equalise(net, pairs, known)
    absorb(net, pairs, known)
    mean, std = (torch.tensor(x, device=teacher.device) for x in (teacher.mean, teacher.std))
    image = Moments(torch.zeros_like(mean), torch.ones_like(mean), -mean / std, (1 - mean) / std)
    read = inputs_of_layers(graph, net, image, known)
    student.quantisation = replace(how, folded=True)
    quantise(net, student.quantisation)
    for name, moments in read.items():
        layer = net.get_submodule(name)
        correct(layer, moments.mean)
        layer.low.copy_(moments.low.min().clamp(max=0))
        layer.high.copy_(moments.high.max().clamp(min=0))
    return student.requires_grad_(True).train(), len(pairs)


class DFQNagel(Rounding):
    """A quantised copy of the teacher, equalised and corrected without an image.

    Attributes:
        pairs: how many pairs of layers were equalised.

    Raises:
        UserError: as `without_data`.
    """

    name = "DFQ (Nagel)"
    citation = "Nagel et al. 2019"
    config_class = DFQNagelConfig

    def __init__(self, teacher, student, config, table=None, facts=None, compute=None, ranks=None):
        super().__init__(teacher, student, config, table, facts, compute, ranks)
        self.student, self.pairs = without_data(self.teacher, self.student.quantisation)
        self.compute.lay_out(self.student)
        self.student_optimizer = self.make_student_optimizer()
