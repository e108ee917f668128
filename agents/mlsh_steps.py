"""The steps from which the sub-policies of MLSH learn: which of them acted, minibatches, and advantages."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from rl2meta.shards import ALONE, Shards


class Steps(NamedTuple):
    """The steps of the joint phases of a batch, in one row axis: tensors [rows, ...].

    Attributes:
        observation: encoded.
        action, log_prob: taken, and their log π_old.
        sub_policy: which one acted.
        advantage, value_target: of the step.
        mask: float, 0 on padding.
        legal: of the actions; see ``TimeStep``.
    """

    observation: Tensor
    action: Tensor
    log_prob: Tensor
    sub_policy: Tensor
    advantage: Tensor
    value_target: Tensor
    mask: Tensor
    legal: Tensor

    def of_each(self, num: int) -> Tensor:
        """Return where each of ``num`` sub-policies acted, float [K, rows]; 0 on padding."""
        number = torch.arange(num, device=self.mask.device).unsqueeze(1)
        return (self.sub_policy == number) * self.mask

    def minibatches(
        self, epochs: int, number: int, generator: torch.Generator, shards: Shards = ALONE
    ) -> Iterator["Steps"]:
        """Yield all steps in random order, ``epochs`` times, in ``number`` minibatches each time.

        Of several shards each yields as many, however many steps it has; alone there may be fewer.
        """
        for _ in range(epochs):
            order = torch.randperm(len(self.mask), generator=generator).to(self.mask.device)
            parts = order.chunk(number) if shards.total == 1 else order.tensor_split(number)
            for index in parts:
                yield Steps(*(field[index] for field in self))


def counts(batches: Sequence[Steps], num: int, shards: Shards) -> Tensor:
    """Return the number of steps of each of ``num`` sub-policies, and of all, in all shards: [K + 1]."""
    own = [torch.cat([batch.of_each(num).sum(dim=1), batch.mask.sum().reshape(1)]) for batch in batches]
    return shards.mean(own) * shards.total


def standardised(batches: Sequence[Steps], num: int, shards: Shards) -> list[Steps]:
    """Return the steps with advantages (A − mean) / (standard deviation) over the steps of a sub-policy."""
    own = [batch.of_each(num) for batch in batches]  # [K, rows] each
    weights = [each.clamp(min=1e-12) for each in own]  # a sub-policy that never acted has a mean, too
    mean = _means([batch.advantage for batch in batches], weights, shards)
    centred = [batch.advantage - mean for batch in batches]  # [rows] -> [K, rows]
    deviation = _means([each.square() for each in centred], weights, shards).sqrt() + 1e-8
    rows = zip(batches, own, centred, strict=True)
    return [batch._replace(advantage=(w * (x / deviation)).sum(dim=0)) for batch, w, x in rows]


def _means(xs: Sequence[Tensor], weights: Sequence[Tensor], shards: Shards) -> Tensor:
    """Return Σ x w / Σ w over the rows of all shards, [K, 1], for w [K, rows]."""
    sums = [torch.stack([(x * w).sum(dim=1), w.sum(dim=1)]) for x, w in zip(xs, weights, strict=True)]
    total, weight = shards.mean(sums).unbind()  # [2, K] -> [K] each
    return (total / weight).unsqueeze(1)
