"""NAYER's inner loops written plainly, as a first version would be: the benchmark's peer.

Written from the specification of the released algorithm and unoptimised on purpose: a Linear module a head, teacher
and student left unfrozen, BatchNorm hooks always on, crops one image at a time, PNG files as memory, a DataLoader that
decodes them. Losses are those of torch, so the benchmark can also show that both loops compute the same numbers.
"""

import math
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms


class PlainGenerator(nn.Module):
    """Embeddings -> images: BatchNorm, one Linear a head in a Python loop, then the network G."""

    def __init__(self, table, noise_dim, batch, network):
        super().__init__()
        self.table, self.classes = table, len(table)
        self.norm = nn.BatchNorm1d(table.shape[1])
        self.heads = nn.ModuleList(nn.Linear(table.shape[1], noise_dim) for _ in range(math.ceil(batch / self.classes)))
        self.network = network

    def redraw(self):
        for head in self.heads:
            nn.init.normal_(head.weight)
            nn.init.zeros_(head.bias)

    def forward(self, labels):
        rows = self.norm(self.table[labels])
        parts = []
        for i, head in enumerate(self.heads):
            parts.append(head(rows[i * self.classes : (i + 1) * self.classes]))
        return self.network(torch.cat(parts))


class PngFolder(Dataset):
    """The memory as files: an image is decoded, cropped and flipped each time it is read."""

    def __init__(self, folder, padding):
        self.paths = sorted(Path(folder).glob("*.png"))
        self.transform = transforms.Compose(
            [transforms.RandomCrop(32, padding), transforms.RandomHorizontalFlip(), transforms.ToTensor()]
        )

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, i):
        return self.transform(Image.open(self.paths[i]).convert("RGB"))


class PlainLoop:
    """One synthesis step, one student step, one store and one draw, for 32 px images."""

    def __init__(self, teacher, student, table, network, config, folder):
        self.teacher, self.student, self.config, self.folder = teacher, student, config, Path(folder)
        self.device = table.device
        self.generator = PlainGenerator(table, config.noise_dim, config.generator_batch, network).to(self.device)
        self.seen = []
        for layer in teacher.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.register_forward_hook(self._watch)
        self.student_optimizer = torch.optim.SGD(student.parameters(), config.student_lr, 0.9, weight_decay=1e-4)
        self.stored = 0
        self.begin_round()

    def _watch(self, layer, inputs, _output):
        x = inputs[0]
        mean = x.mean([0, 2, 3])
        var = x.permute(1, 0, 2, 3).contiguous().view(x.shape[1], -1).var(1, unbiased=False)
        self.seen.append((layer.running_var.data - var).norm(2) + (layer.running_mean.data - mean).norm(2))

    def begin_round(self):
        self.generator.redraw()
        self.optimizer = torch.optim.Adam(self.generator.parameters(), self.config.generator_lr, (0.5, 0.999))

    def terms(self, images, labels):
        """L_CE, L_BN and the masked -L_KL of Eq. 5 on these images."""
        self.seen.clear()
        t = self.teacher(images)
        s = self.student(images)
        mask = (s.max(1)[1] == t.max(1)[1]).float()
        kl = F.kl_div(F.log_softmax(s, 1), F.softmax(t, 1), reduction="none").sum(1)
        return F.cross_entropy(t, labels), sum(self.seen), -(kl * mask).mean()

    def synthesis_step(self, labels):
        images = self.generator(labels)
        padded = F.pad(images, [4] * 4)
        crops = []
        for image in padded:
            top, left = torch.randint(9, (2,)).tolist()
            crop = image[:, top : top + 32, left : left + 32]
            crops.append(crop.flip(-1) if torch.rand(()) < 0.5 else crop)
        ce, bn, adv = self.terms(torch.stack(crops), labels)
        loss = self.config.alpha_cls * ce + self.config.alpha_bn * bn + self.config.alpha_adv * adv
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return images.detach(), loss.item()

    def store(self, images):
        pixels = (images.cpu().numpy() * 255).clip(0, 255).astype(np.uint8).transpose(0, 2, 3, 1)
        for image in pixels:
            Image.fromarray(image).save(self.folder / f"{self.stored}.png")
            self.stored += 1

    def draws(self, batch):
        """An endless stream of student batches."""
        while True:
            yield from DataLoader(PngFolder(self.folder, 4), batch, shuffle=True, drop_last=True, num_workers=0)

    def student_loss(self, images):
        self.seen.clear()
        temperature = self.config.temperature
        with torch.no_grad():
            p = F.softmax(self.teacher(images) / temperature, 1)
        log_q = F.log_softmax(self.student(images) / temperature, 1)
        return F.kl_div(log_q, p, reduction="batchmean") * temperature**2

    def student_step(self, images):
        loss = self.student_loss(images)
        self.student_optimizer.zero_grad()
        loss.backward()
        self.student_optimizer.step()
        return loss.item()
