"""The losses and the augmentation written out plainly, straight from the specification: the oracle of the tests.

Nothing here is fast and nothing is shared with the library: loops over images and layers, formulas instead of
library losses. The formulas are those of the paper and of the released algorithm. t and s are logits (B, K), y (B,)
class ids.
"""

import torch

# --- the generator's loss: Eq. 5


def log_softmax(row):
    """log softmax(row)_k = row_k - log sum_j exp(row_j), for one image's logits (K,)."""
    shifted = row - row.max().detach()
    return shifted - shifted.exp().sum().log()


def kl_divergence(p_logits, q_logits):
    """KL(softmax(p) || softmax(q)) = sum_k p_k (log p_k - log q_k), for one image."""
    log_p, log_q = log_softmax(p_logits), log_softmax(q_logits)
    return (log_p.exp() * (log_p - log_q)).sum()


def classification(t, y):
    """L_CE = mean_b [ -sum_k y_bk log softmax(t_b)_k ], y one-hot."""
    total = 0.0
    for row, label in zip(t, y.tolist(), strict=True):
        one_hot = torch.tensor([float(k == label) for k in range(len(row))], dtype=row.dtype)
        total = total - (one_hot * log_softmax(row)).sum()
    return total / len(t)


def adversarial(t, s, mask):
    """L_adv = -mean_b [ m_b KL(softmax(t_b) || softmax(s_b)) ], the mean over all B; m_b = 1 where nothing is masked.

    The mask m_b is 1 where teacher and student predict the same class.
    """
    total = 0.0
    for t_row, s_row in zip(t, s, strict=True):
        if mask and t_row.argmax() != s_row.argmax():
            continue
        total = total - kl_divergence(t_row, s_row)
    return total / len(t)


def jensen_shannon(t, s, temperature):
    """mean_b [ sum_k (p_k log(p_k / m_k) + q_k log(q_k / m_k)) / 2 ], m = (p + q) / 2.

    p and q are the softmax of t / T and s / T, each of their numbers between 0.01 and 0.99.
    """
    total = 0.0
    for t_row, s_row in zip(t, s, strict=True):
        p, q = (log_softmax(row / temperature).exp().clamp(0.01, 0.99) for row in (t_row, s_row))
        for p_k, q_k in zip(p, q, strict=True):
            m_k = 0.5 * (p_k + q_k)
            total = total + 0.5 * p_k * (p_k.log() - m_k.log()) + 0.5 * q_k * (q_k.log() - m_k.log())
    return total / len(t)


def channel_statistics(inputs):
    """Mean and biased variance of each channel of (N, C, H, W) over N, H and W, written as sums."""
    rows = inputs.permute(1, 0, 2, 3).reshape(inputs.shape[1], -1)  # (C, N * H * W)
    mean = rows.sum(1) / rows.shape[1]
    var = ((rows - mean[:, None]) ** 2).sum(1) / rows.shape[1]
    return var, mean


class BatchNormTerm:
    """L_BN = sum over layers of ||v_run - v'||_2 + ||mu_run - mu'||_2, with the momentum memory.

    v' = v in the run's first round, afterwards v' = (1 - m) v + m v_mem, and mu' likewise. The memory is updated once
    a round from its last batch: first a copy, then mem <- m mem + (1 - m) stat, without gradient.
    """

    def __init__(self, layers, momentum):
        self.layers, self.momentum, self.memory = list(layers), momentum, None

    def __call__(self, inputs):
        """The loss for one input feature map a layer."""
        total = 0.0
        for index, (layer, feature_map) in enumerate(zip(self.layers, inputs, strict=True)):
            var, mean = channel_statistics(feature_map)
            if self.memory is not None:
                old_var, old_mean = self.memory[index]
                var = (1 - self.momentum) * var + self.momentum * old_var
                mean = (1 - self.momentum) * mean + self.momentum * old_mean
            total = total + ((layer.running_var - var) ** 2).sum() ** 0.5
            total = total + ((layer.running_mean - mean) ** 2).sum() ** 0.5
        return total

    def end_round(self, inputs):
        """Update the memory from the round's last feature maps."""
        new = [tuple(stat.detach() for stat in channel_statistics(feature_map)) for feature_map in inputs]
        if self.momentum == 0:
            return
        if self.memory is None:
            self.memory = new
            return
        m = self.momentum
        self.memory = [
            (m * old_var + (1 - m) * var, m * old_mean + (1 - m) * mean)
            for (old_var, old_mean), (var, mean) in zip(self.memory, new, strict=True)
        ]


def run_and_record(model, layers, images):
    """The model's output, and the input that each of `layers` had on the way."""
    seen = {}
    handles = [
        layer.register_forward_hook(lambda _module, args, _output, index=index: seen.__setitem__(index, args[0]))
        for index, layer in enumerate(layers)
    ]
    output = model(images)
    for handle in handles:
        handle.remove()
    return output, [seen[index] for index in range(len(handles))]


# --- the student's loss: Eq. 6


def distillation(t, s, temperature):
    """L_S = sum_bk p_bk (log p_bk - log q_bk) / B * T^2, with p and q the softmax of t / T and s / T."""
    total = 0.0
    for t_row, s_row in zip(t, s, strict=True):
        log_p, log_q = log_softmax(t_row / temperature), log_softmax(s_row / temperature)
        for k in range(len(t_row)):
            total = total + log_p[k].exp() * (log_p[k] - log_q[k])
    return total / len(t) * temperature**2


# --- crop and flip, one image at a time


def crop(image, padding, row, column):
    """The (C, H, W) window that starts at (row, column) of the image in a black frame of `padding` pixels."""
    channels, height, width = image.shape
    framed = torch.zeros(channels, height + 2 * padding, width + 2 * padding, dtype=image.dtype)
    framed[:, padding : padding + height, padding : padding + width] = image
    return framed[:, row : row + height, column : column + width]


def crop_and_flip(images, padding, rows, columns, mirrored):
    """Each image's own crop, and its mirror image where `mirrored` says so."""
    done = []
    for image, row, column, mirror in zip(images, rows, columns, mirrored, strict=True):
        window = crop(image, padding, row, column)
        done.append(window.flip(-1) if mirror else window)
    return torch.stack(done)
