"""What an agent tells of its beliefs and preferences, for whoever watches it act.

An agent tells kinds of things and not pictures: probabilities, intervals, densities, numbers. Whoever shows
them knows these kinds and no agent. Nothing of this happens in training: only a watcher asks.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

from torch import Tensor

from rl2meta.networks import ActionDistribution, Categorical, Categoricals, Gaussian
from rl2meta.trial import Choice, TimeStep

Carry = TypeVar("Carry")


class Probabilities(NamedTuple):
    """Probabilities of n alternatives.

    Attributes:
        each: [B, n], each row with the sum 1.
        of: what an alternative is; the action that was taken is marked among those of "action".
        columns: the alternatives lie on a map with so many columns, in reading order; 0 for no map.
    """

    each: Tensor
    of: str = "action"
    columns: int = 0


class Normals(NamedTuple):
    """Means and standard deviations of n numbers.

    Attributes:
        mean, deviation: [B, n].
        of: what each number belongs to, as in ``Probabilities``.
    """

    mean: Tensor
    deviation: Tensor
    of: str = "action"


class Betas(NamedTuple):
    """Beta distributions of n probabilities: densities proportional to p^(α − 1) (1 − p)^(β − 1).

    Attributes:
        alpha, beta: α and β, [B, n].
        of: what each probability belongs to, as in ``Probabilities``.
        low, high: the bounds between which the density is not 0.
    """

    alpha: Tensor
    beta: Tensor
    of: str = "action"
    low: float = 0.0
    high: float = 1.0


class Amounts(NamedTuple):
    """n numbers to compare, such as the values of actions.

    Attributes:
        each: [B, n].
        of: what each number belongs to, as in ``Probabilities``.
    """

    each: Tensor
    of: str = "action"


class Number(NamedTuple):
    """One number, to be followed over the trial.

    Attributes:
        value: [B].
    """

    value: Tensor


Belief = Probabilities | Normals | Betas | Amounts | Number
Told = Mapping[str, Belief]
"""By a name in words; the names are the same at every step of a trial."""


@runtime_checkable
class TellingAgent(Protocol[Carry]):
    """An agent that can also tell what it believes or prefers."""

    def act_and_tell(self, carry: Carry, step: TimeStep) -> tuple[Choice, Carry, Told]:
        """Return exactly what ``act`` returns, with the same draws, and what made the agent choose so."""
        ...


def policy_told(policy: ActionDistribution) -> dict[str, Belief]:
    """Return what a policy's distribution tells; nothing for one of another kind.

    Args:
        policy: over actions in B rows.
    """
    if isinstance(policy, Categorical):
        return {"policy": Probabilities(policy.log_probs.exp())}  # [B, A]
    if isinstance(policy, Categoricals):
        entries = policy.probabilities().unbind(dim=-2)  # [B, entries, largest size] -> [B, largest size]
        return {f"policy of entry {i}": Probabilities(each, "value") for i, each in enumerate(entries)}
    if isinstance(policy, Gaussian):
        return {"policy": Normals(policy.mean, policy.log_deviation.exp().expand_as(policy.mean), "entry")}
    return {}


def constants(belief: Belief) -> dict[str, Any]:
    """Return the kind of a belief and what stays the same at every step, as data for JSON."""
    fields = {name: each for name, each in belief._asdict().items() if not isinstance(each, Tensor)}
    return {"kind": type(belief).__name__.lower(), **fields}


def numbers(belief: Belief, row: int) -> list[Any]:
    """Return a row of the fields that change with the steps, in the order of the kind's attributes."""
    return [each[row].tolist() for each in belief if isinstance(each, Tensor)]
