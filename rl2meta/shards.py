"""Shards: a batch in V equal parts, whose results are added in the order of the parts.

    mean = (w₀ x₀ + w₁ x₁ + … + w_{V−1} x_{V−1}) / (w₀ + w₁ + … + w_{V−1})

Each shard has its own tasks and random streams, and is computed alone. A rank owns V / ranks of them, and all
ranks add all V results. So the bits of a result depend on V and not on the number of ranks.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor

from rl2meta.errors import UserError
from rl2meta.ranks import ONE, Ranks, Result
from rl2meta.returns import explained_variance, masked_mean, mean_or_zero, standardised


class Shards:
    """The V shards of a batch, of which this process owns some.

    Methods take a sequence with one entry for each own shard. With a single shard they do what the functions
    of ``rl2meta.returns`` do, to the bit.

    Args:
        total: V.
        ranks: the processes that own the shards; rank r owns the r-th part of them.

    Raises:
        UserError: if V is not a multiple of the number of ranks.
    """

    def __init__(self, total: int = 1, ranks: Ranks = ONE) -> None:
        if total % ranks.size:
            raise UserError(
                f"training.shards: expected a multiple of the {ranks.size} ranks, got {total}; use "
                f"training.shards={ranks.size * -(-total // ranks.size)}"
            )
        self.total, self.ranks = total, ranks
        each = total // ranks.size
        self.own = range(ranks.number * each, (ranks.number + 1) * each)

    @property
    def names(self) -> list[tuple[str | int, ...]]:
        """The names of the own shards' random streams; a single shard needs none."""
        return [()] if self.total == 1 else [("shard", number) for number in self.own]

    def together(self, call: Callable[[], Result]) -> Result:
        """Return the result of ``call``; where it raises on one rank, it does on all (``Ranks.together``)."""
        return call() if self.ranks.size == 1 else self.ranks.together(call)

    def gather(self, values: Sequence[Tensor]) -> list[Tensor]:
        """Return the tensors of all V shards, of the same shape, in the order of the shards."""
        if self.ranks.size == 1:
            return list(values)
        return [each for found in self.ranks.gather(torch.stack(list(values))) for each in found]

    def mean(self, values: Sequence[Tensor], weights: Sequence[Tensor] | None = None) -> Tensor:
        """Return the mean of the tensors of all V shards, weighted if each own shard has a weight [] >= 0."""
        if self.total == 1:
            return values[0]
        shares = [torch.ones((), device=values[0].device)] * len(values) if weights is None else weights
        rows = self.gather(
            [
                torch.cat([share.detach().to(value.dtype).reshape(1), value.detach().flatten()])
                for share, value in zip(shares, values, strict=True)
            ]
        )
        summed: Tensor = reduce(torch.add, [torch.cat([row[:1], row[0] * row[1:]]) for row in rows])
        smallest = torch.finfo(summed.dtype).tiny  # where nothing counts, the mean is 0
        return (summed[1:] / summed[0].clamp(min=smallest)).reshape(values[0].shape)

    def masked_mean(self, xs: Sequence[Tensor], masks: Sequence[Tensor]) -> Tensor:
        """Return Σ x m / Σ m over all V shards."""
        pairs = zip(xs, masks, strict=True)
        return self.mean([masked_mean(*pair) for pair in pairs], [mask.sum() for mask in masks])

    def mean_or_zero(self, xs: Sequence[Tensor], masks: Sequence[Tensor]) -> Tensor:
        """Return Σ x m / Σ m over all V shards, or 0 if the masks exclude everything."""
        pairs = zip(xs, masks, strict=True)
        return self.mean([mean_or_zero(*pair) for pair in pairs], [mask.sum() for mask in masks])

    def standardised(self, xs: Sequence[Tensor], masks: Sequence[Tensor]) -> list[Tensor]:
        """Return (x − mean) / (standard deviation), both over all V shards."""
        if self.total == 1:
            return [standardised(xs[0], masks[0])]
        mean = self.masked_mean(xs, masks)
        centred = [x - mean for x in xs]
        deviation = self.masked_mean([x.square() for x in centred], masks).sqrt()
        return [x / (deviation + 1e-8) for x in centred]

    def explained_variance(
        self, targets: Sequence[Tensor], errors: Sequence[Tensor], masks: Sequence[Tensor]
    ) -> Tensor:
        """Return 1 − Var(error) / Var(target) over all V shards, or 0 for a target without variance."""
        if self.total == 1:
            return explained_variance(targets[0], errors[0], masks[0])
        total = self._variance(targets, masks)
        return torch.where(total > 0, 1 - self._variance(errors, masks) / total, 0.0)

    def _variance(self, xs: Sequence[Tensor], masks: Sequence[Tensor]) -> Tensor:
        mean = self.mean_or_zero(xs, masks)
        return self.mean_or_zero([(x - mean).square() for x in xs], masks)


class Lost(NamedTuple):
    """The loss of a shard.

    Attributes:
        loss: a scalar with a graph: a mean over what counts.
        weight: how much counts, [].
        told: metrics, scalars that are means over the same.
        gradients: of the loss by every weight, if they are known; then the loss has no graph.
    """

    loss: Tensor
    weight: Tensor
    told: Mapping[str, Tensor]
    gradients: Mapping[Tensor, Tensor] | None = None


ALONE = Shards()
"""One shard in one process: the whole batch."""


def set_gradients(
    weights: Sequence[Tensor], losses: Iterable[Callable[[], Lost]], shards: Shards
) -> dict[str, Tensor]:
    """Set the gradients of ``weights`` to that of the mean loss of all V shards; return the mean metrics.

    A weight without a gradient in some shard has the gradient 0 there. One graph exists at a time.

    Args:
        weights: of the network.
        losses: one function for each own shard.
        shards: of the batch.
    """
    rows, shares, names = [], [], []
    for loss in losses:
        found = _differentiated(loss, weights)
        names, told = list(found.told), [each.detach() for each in found.told.values()]
        if shards.total == 1:
            return dict(zip(names, told, strict=True))
        rows.append(torch.cat([*map(_flat_gradient, weights), *(each.reshape(1) for each in told)]))
        shares.append(found.weight)
    mean = shards.mean(rows, shares)
    sizes = [*(weight.numel() for weight in weights), len(names)]
    *gradients, told_means = torch.split(mean, sizes)
    for weight, gradient in zip(weights, gradients, strict=True):
        weight.grad = gradient.view_as(weight)
    return dict(zip(names, told_means.unbind(), strict=True))


def _differentiated(loss: Callable[[], Lost], weights: Sequence[Tensor]) -> Lost:
    """Return the loss of a shard, and set the gradients of the weights to its own."""
    for weight in weights:
        weight.grad = None
    found = loss()
    if found.gradients is None:
        found.loss.backward()  # type: ignore[no-untyped-call]
    else:
        for weight, gradient in found.gradients.items():
            weight.grad = gradient
    return found


def _flat_gradient(weight: Tensor) -> Tensor:
    return torch.zeros_like(weight).flatten() if weight.grad is None else weight.grad.flatten()
