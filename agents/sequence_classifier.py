"""A network that reads images with their classes, and then images without: convolutions before a core.

    h_S = core((e(x₀), y₀), …, (e(x_{S−1}), y_{S−1}), (e(x), 0)),    logits = W h_S + b

``sequence_classification`` learns it.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from rl2meta.agents.cores.core import Core, Position, Seen
from rl2meta.agents.image_classifier import ImageClassifier
from rl2meta.agents.maml import named
from rl2meta.trial import TrialLength


class Memory(NamedTuple):
    """The support of each task; empty before the end of the first phase.

    Attributes:
        examples: flat pixels, [num_tasks, support, pixels].
        labels: their classes, one-hot, [num_tasks, support, classes].
    """

    examples: Tensor
    labels: Tensor


class SequenceClassifier(nn.Module):
    """Examples with classes, and queries -> logits.

    The core reads the support once, and each query by itself from the state after the support.

    Args:
        encoder: gives the features of an image in the place of logits.
        core: reads these features, and the class in the place of an action.
        num_classes: of a task.
    """

    encoder: ImageClassifier
    core: Core

    def __init__(self, encoder: ImageClassifier, core: Core, num_classes: int) -> None:
        super().__init__()
        self.encoder, self.core, self.num_classes = encoder, core, num_classes
        self.head = nn.Linear(core.out_features, num_classes)

    def forward(self, memory: Memory, queries: Tensor) -> Tensor:
        """Return logits [num_tasks, queries, classes] for flat pixels [num_tasks, queries, pixels]."""
        return self.read(self.encoded(memory, queries), memory.labels)

    def read(self, features: Tensor, labels: Tensor) -> Tensor:
        """Return logits of the queries for features of support and queries, as from ``encoded``."""
        num_tasks, support = labels.shape[:2]
        shown, unknown = features[:, :support], features[:, support:].flatten(0, 1)
        asked = features.shape[1] - support
        state, before = self.core.begin(num_tasks, support + 1), torch.zeros_like(features[:, 0])
        for t in range(support):
            seen = _seen(shown[:, t], labels[:, t], before, t, support + 1)
            _, state = self.core.step(seen, state)
            before = shown[:, t]
        no_label = unknown.new_zeros(len(unknown), self.num_classes)
        seen = _seen(unknown, no_label, before.repeat_interleave(asked, dim=0), support, support + 1)
        output, _ = self.core.step(seen, self.core.repeated(state, asked))  # [num_tasks × queries, ...]
        logits: Tensor = self.head(output.features)
        return logits.view(num_tasks, asked, -1)

    def encoded(self, memory: Memory, queries: Tensor) -> Tensor:
        """Return features [num_tasks, support + queries, features]; batch norm is by the support."""
        pixels = torch.cat([memory.examples, queries], dim=1)
        weights = {name: each.expand(len(pixels), *each.shape) for name, each in named(self.encoder).items()}
        return self.encoder.stacked(weights, pixels, memory.examples.shape[1])

    def numbers_per_task(self, rows: int) -> int:
        """Estimate how many numbers a read of so many images of a task holds at once."""
        _, height, width = self.encoder.axes
        wide = len(self.encoder.convolutions[0].weight)  # type: ignore[arg-type]
        return rows * (wide * height * width + 8 * self.core.out_features)


def _seen(features: Tensor, label: Tensor, before: Tensor, place: int, length: int) -> Seen:
    """Return an example as a step of an episode of its own, with its class in the place of an action."""
    nothing = features.new_zeros(len(features))
    number = torch.zeros(len(features), dtype=torch.int64, device=features.device)
    position = Position(before, number, place)
    first = torch.ones_like(number, dtype=torch.bool)
    return Seen(features, label, nothing, first, TrialLength(length, 1), position)
