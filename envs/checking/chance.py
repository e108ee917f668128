"""What chance can do: a check calls something a fault only where chance would do it once in a million."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from rl2meta.envs.checking.case import as_json
from rl2meta.tasks import Tasks

SURE = 1e-6
"""The largest probability with which a sound family may be called faulty, by one check."""
_MIXED = 10  # pairs of unequal tasks: two draws of a pair agree by chance with p <= 1/4, and 4**-10 < SURE
_MOST = 250  # pairs of equal tasks


class Untold(str):
    """A message of a check that could not tell; it is no failure."""


def always_equal(pairs: Iterator[tuple[Tasks, Tasks]]) -> int:
    """Return how many pairs of independent draws were looked at if all are equal, and 0 if one is not.

    Two draws of a pair that has at least two different tasks are equal with a probability of at most 1/4, so
    ten such pairs are no coincidence. Draws that always are one and the same task say less: there, many
    pairs are looked at.
    """
    mixed = looked = 0
    for looked, (some, others) in enumerate(pairs, start=1):
        if as_json(some) != as_json(others):
            return 0
        mixed += has_several(some)
        if mixed == _MIXED or looked == _MOST:
            break
    return looked


def has_several(tasks: Tasks) -> bool:
    """Return whether at least two of the tasks differ."""
    return len({as_json(tasks[i : i + 1]) for i in range(len(tasks))}) > 1


def log_chance(deviations: Tensor, later: Tensor, fresh: int) -> float:
    """Return the logarithm of the probability that all deviations are in the later of exchangeable draws.

    In each lane, ``d`` of ``R`` later values and none of ``S`` fresh values deviate. If the order is of no
    meaning, the probability is ``C(R, d) / C(R + S, d)``; lanes are independent.

    Args:
        deviations: d, int64 [B].
        later: R, int64 [B].
        fresh: S.
    """

    def log_choices(of: Tensor) -> Tensor:
        """Return the logarithm of C(of, d) d!, [B]."""
        return torch.lgamma(of + 1.0) - torch.lgamma(of - deviations + 1.0)

    odds = log_choices(later.double()) - log_choices(later.double() + fresh)  # [B]
    return float(odds.sum())


def sure(log_probability: float, lanes: int, looks: int) -> bool:
    """Return whether a probability is small enough for a fault, after several looks at several lanes.

    Which of the lanes deviate is not said before: there are ``2**lanes`` possibilities.
    """
    return log_probability < math.log(SURE) - lanes * math.log(2) - math.log(looks)
