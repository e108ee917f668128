"""The convolutional network of the few-shot papers, over weights that differ between tasks.

    four blocks: 3 × 3 convolution -> batch norm -> ReLU; then one linear layer for the logits

A convolution has stride 2 and halves height and width, unless these would become less than 2: where images
are few, batch norm needs several places of each.

Batch norm has no running means: its statistics are those of the images that it is given,

    y = γ (x − m) / √(v + ε) + β, with mean m and variance v of a channel over images and places.

Given the support (the images that a task is learnt from), m and v are those of the support alone. Then the
answer to a query does not depend on the other queries.

The convolutions of all tasks are one convolution with a group of channels for each task. On a CPU that took
less time than products of unfolded images (docs/performance.md).

Source: Vinyals et al. 2016 (arXiv 1606.04080), section 4.1.1; Finn et al. 2017 (arXiv 1703.03400), 5.2 and
appendix A.1, which replaces pooling by strides.
"""

from collections.abc import Mapping
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from rl2meta.learner_state import under

_BLOCKS = 4
_EPSILON = 1e-5


class ImageClassifier(nn.Module):
    """Flat pixels -> blocks of convolutions -> logits.

    Args:
        axes: channels, height and width of an image.
        num_classes: number of logits.
        filters: channels of every block.
        batch_norm: normalise after each convolution.
    """

    def __init__(self, axes: tuple[int, int, int], num_classes: int, filters: int, batch_norm: bool) -> None:
        super().__init__()
        channels, height, width = axes
        self.axes, self.batch_norm = axes, batch_norm
        sizes = [channels, *[filters] * _BLOCKS]
        self.strides = []
        for _ in range(_BLOCKS):
            self.strides.append(2 if min(height, width) > 2 else 1)
            height, width = (-(-side // self.strides[-1]) for side in (height, width))  # rounded up
        self.convolutions = nn.ModuleList(  # a bias before batch norm would change nothing
            nn.Conv2d(*pair, 3, stride, padding=1, bias=not batch_norm)
            for pair, stride in zip(pairwise(sizes), self.strides, strict=True)
        )
        self.norms = nn.ModuleList(Scale(filters) for _ in range(_BLOCKS if batch_norm else 0))
        self.head = nn.Linear(filters * height * width, num_classes)

    def forward(self, pixels: Tensor) -> Tensor:
        """Return logits [rows, num_classes] for flat pixels [rows, pixels], all of one task."""
        weights = {name: value.unsqueeze(0) for name, value in self.named_parameters()}
        return self.stacked(weights, pixels.unsqueeze(0))[0]

    def stacked(self, weights: Mapping[str, Tensor], observation: Tensor, support: int = 0) -> Tensor:
        """Return logits [N, rows, num_classes] for flat pixels [N, rows, pixels] of N tasks.

        Args:
            weights: by name, [N, ...] each.
            observation: images of each task.
            support: the first so many rows are the support, whose statistics all rows are normalised by; 0:
                all rows give the statistics.
        """
        features = self.features(weights, observation, support)  # [N, rows, features]
        return torch.baddbmm(weights["head.bias"].unsqueeze(1), features, weights["head.weight"].mT)

    def features(self, weights: Mapping[str, Tensor], observation: Tensor, support: int = 0) -> Tensor:
        """Return what the last block says of each image, [N, rows, features]; see ``stacked``."""
        tasks, rows = observation.shape[:2]
        # [N, rows, pixels] -> [rows, N × channels, height, width]
        x = observation.reshape(tasks, rows, *self.axes).transpose(0, 1).flatten(1, 2)
        for block, stride in enumerate(self.strides):
            kernel = under(f"convolutions.{block}.", weights)
            bias = None if self.batch_norm else kernel["bias"].flatten()
            x = functional.conv2d(x, kernel["weight"].flatten(0, 1), bias, stride, padding=1, groups=tasks)
            if self.batch_norm:
                x = normalised(x, under(f"norms.{block}.", weights), support)
            x = functional.relu(x)
        return x.reshape(rows, tasks, -1).transpose(0, 1)  # [N, rows, filters × height × width]


class Scale(nn.Module):
    """γ and β of batch norm, [channels] each."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))


def normalised(x: Tensor, scale: Mapping[str, Tensor], support: int) -> Tensor:
    """Return batch norm of x [rows, N × channels, height, width] by the statistics of each task.

    Args:
        x: the channels of all tasks side by side, so that those of one task are normalised by its own rows.
        scale: γ and β, [N, channels] each.
        support: number of rows that give the statistics; 0 for all.
    """
    gamma, beta = scale["weight"].flatten(), scale["bias"].flatten()  # [N × channels]
    if not support:  # torch's own is faster, and has a second derivative
        return functional.batch_norm(x, None, None, gamma, beta, training=True, eps=_EPSILON)
    variance, mean = torch.var_mean(x[:support], dim=(0, 2, 3), correction=0)  # [N × channels]
    factor = gamma * torch.rsqrt(variance + _EPSILON)
    return x * _channels(factor) + _channels(beta - mean * factor)


def _channels(value: Tensor) -> Tensor:
    return value[:, None, None]
