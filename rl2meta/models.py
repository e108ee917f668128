"""Models of the world: descriptions of a family's tasks.

A family gives its model in the attribute ``model``; ``model_of`` reads it. References, which know the law of
the tasks, are defined on models, so every family with a model gets all references of this model.
This module imports no torch: a family that runs in worker processes may import it.

Besides its parameters, each model has ``num_actions``, ``num_observations`` and ``horizon``, with which the
family must agree; None fits any value.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import gymnasium as gym

from rl2meta.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from rl2meta.tasks import TaskDistribution


@dataclass(frozen=True)
class BernoulliArms:
    """Arms that pay 1 with probability pᵢ ~ U[low, high], independently, else 0; an episode is one pull.

    Attributes:
        num_arms: k.
        low: lower bound of pᵢ.
        high: upper bound of pᵢ.

    Raises:
        ValueError: unless num_arms >= 1 and 0 <= low < high <= 1.
    """

    num_arms: int
    low: float = 0.0
    high: float = 1.0
    horizon: ClassVar[int] = 1
    num_observations: ClassVar[None] = None

    def __post_init__(self) -> None:
        _require(self.num_arms >= 1, "num_arms >= 1", self.num_arms)
        _require(0 <= self.low < self.high <= 1, "0 <= low < high <= 1", (self.low, self.high))

    @property
    def num_actions(self) -> int:
        """One action per arm."""
        return self.num_arms


@dataclass(frozen=True)
class GaussianArms:
    """Arms that pay N(μᵢ, 1) with μᵢ ~ N(mean, 1), independently; an episode is one pull.

    Attributes:
        num_arms: k.
        mean: mean of the arms' means.

    Raises:
        ValueError: unless num_arms >= 1 and the mean is finite.
    """

    num_arms: int
    mean: float = 0.0
    horizon: ClassVar[int] = 1
    num_observations: ClassVar[None] = None

    def __post_init__(self) -> None:
        _require(self.num_arms >= 1, "num_arms >= 1", self.num_arms)
        _require(math.isfinite(self.mean), "a finite mean", self.mean)

    @property
    def num_actions(self) -> int:
        """One action per arm."""
        return self.num_arms


@dataclass(frozen=True)
class DependentArms:
    """Two arms that pay 1 with the probabilities p₁ and p₂ = 1 − p₁, else 0; an episode is one pull.

    Attributes:
        better: p₁ is ``better`` or 1 − ``better``, with equal probability; None for p₁ ~ U[0, 1].

    Raises:
        ValueError: for ``better`` outside (1/2, 1).
    """

    better: float | None = None
    num_actions: ClassVar[int] = 2
    horizon: ClassVar[int] = 1
    num_observations: ClassVar[None] = None

    def __post_init__(self) -> None:
        _require(self.better is None or 0.5 < self.better < 1, "better in (1/2, 1), or None", self.better)


@dataclass(frozen=True)
class TwoStepTask:
    """The two-step task: in S0, action a mostly leads to the side S(1 + a), and one side pays more often.

    An episode is a choice in S0 and a reward of 1 or 0 at a side. Before each episode except the first, the
    good side changes with probability ``switch_probability``.

    Attributes:
        high: probability of a reward at the good side.
        low: probability of a reward at the other side.
        switch_probability: probability that the good side changes before an episode.

    Raises:
        ValueError: unless 0 <= low < high <= 1 and 0 <= switch_probability <= 1.

    Source: Daw et al. 2011 (Neuron 69), in the form of Wang et al. 2016 (arXiv 1611.05763), section 3.2.
    """

    high: float
    low: float
    switch_probability: float = 0.0
    num_actions: ClassVar[int] = 2
    horizon: ClassVar[int] = 2
    num_observations: ClassVar[int] = 3

    def __post_init__(self) -> None:
        _require(0 <= self.low < self.high <= 1, "0 <= low < high <= 1", (self.low, self.high))
        switch = self.switch_probability
        _require(0 <= switch <= 1, "switch_probability in [0, 1]", switch)


@dataclass(frozen=True)
class TabularMDP:
    """MDPs with mean rewards μ(s, a) ~ N(m, d²) and P(· | s, a) ~ Dirichlet(α, …, α), all independent.

    A visit of (s, a) pays N(μ(s, a), noise²), and the state is the observation.

    Attributes:
        num_states: S.
        num_actions: A.
        horizon: H, number of steps in every episode.
        reward_mean: m.
        reward_deviation: d.
        noise: the standard deviation of a reward around its mean.
        concentration: α.

    Raises:
        ValueError: for counts below 1, negative deviations, or a concentration <= 0.
    """

    num_states: int
    num_actions: int
    horizon: int
    reward_mean: float = 1.0
    reward_deviation: float = 1.0
    noise: float = 1.0
    concentration: float = 1.0

    def __post_init__(self) -> None:
        counts = (self.num_states, self.num_actions, self.horizon)
        _require(min(counts) >= 1, "num_states, num_actions and horizon >= 1", counts)
        deviations = (self.reward_deviation, self.noise)
        _require(min(deviations) >= 0, "reward_deviation and noise >= 0", deviations)
        _require(self.concentration > 0, "concentration > 0", self.concentration)

    @property
    def num_observations(self) -> int:
        """The state is the observation."""
        return self.num_states


@dataclass(frozen=True, eq=False)
class HiddenGoals:
    """A maze with hidden goals in different cells, which the agent must reach in order; it observes its cell.

    A step that ends on the next goal pays 1, any other step pays 0; then the following goal becomes the next
    one. The last goal remains the next one until the episode ends. All placements of the goals are equally
    likely.

    Attributes:
        next_cell: the cell that an action leads to, int64 [cells, actions].
        distances: length of a shortest path between two cells, int64 [cells, cells].
        goals: the cells that may be goals, int64.
        num_goals: m, the number of goals: 1 for a hidden goal, 2 for a key and a door.
        columns: the cells lie on a map with so many columns, in reading order; 0 if they do not. It is only
            for pictures.

    Raises:
        ValueError: unless 1 <= num_goals <= the number of cells that may be goals.
    """

    next_cell: "Tensor"
    distances: "Tensor"
    goals: "Tensor"
    num_goals: int
    columns: int = 0
    horizon: ClassVar[None] = None

    def __post_init__(self) -> None:
        most = len(self.goals)
        _require(1 <= self.num_goals <= most, f"num_goals from 1 to {most}", self.num_goals)

    @property
    def num_actions(self) -> int:
        """The number of moves."""
        return int(self.next_cell.shape[1])

    @property
    def num_observations(self) -> int:
        """The cell is the observation."""
        return len(self.next_cell)


@dataclass(frozen=True, eq=False)
class PayingPoint:
    """A walk among two points that the agent sees; in a trial, one and the same of them pays.

    The observation is (walker, point 0, point 1), each as (x, y). A step that ends where ``steps`` to the
    right point is 0 pays 1, any other step pays 0. Both points are equally likely to be the right one.

    Attributes:
        moves: how far each action moves the walker along x and y.
        steps: offsets [..., 2] from the walker to a point -> the least number of steps to it, [...].
        horizon: number of steps in every episode.

    Raises:
        ValueError: without moves.
    """

    moves: tuple[tuple[float, float], ...]
    steps: "Callable[[Tensor], Tensor]"
    horizon: int
    num_observations: ClassVar[None] = None

    def __post_init__(self) -> None:
        _require(len(self.moves) > 0, "at least one move", self.moves)

    @property
    def num_actions(self) -> int:
        """The number of moves."""
        return len(self.moves)


@dataclass(frozen=True)
class LabelledExamples:
    """Classes that are told apart from examples; an episode is one example, and the action is its class.

    The step's ``target`` is the correct class. The first ``num_actions × shots`` episodes of a trial are the
    support, ``shots`` examples of each class.

    Attributes:
        num_actions: number of classes.
        shots: number of examples of each class in the support.

    Raises:
        ValueError: for counts below 1.
    """

    num_actions: int
    shots: int
    horizon: ClassVar[int] = 1
    num_observations: ClassVar[None] = None

    def __post_init__(self) -> None:
        counts = (self.num_actions, self.shots)
        _require(min(counts) >= 1, "num_actions and shots >= 1", counts)


Model = (
    BernoulliArms
    | GaussianArms
    | DependentArms
    | TwoStepTask
    | TabularMDP
    | HiddenGoals
    | PayingPoint
    | LabelledExamples
)


def said_model(family: Any) -> Model | None:
    """Return the ``model`` of a family (or of a class of families); None if it has none.

    A ``model`` of another type has another meaning in its family, so the result is None.

    Raises:
        UserError: if ``model`` is a class of models instead of a model.
    """
    said = getattr(family, "model", None)
    if isinstance(said, type) and issubclass(said, Model):
        raise UserError(f"{family}: model: expected a model, got its class; write {said.__name__}(...)")
    return said if isinstance(said, Model) else None


def model_of(distribution: "TaskDistribution") -> Model | None:
    """Return the model of the world of a family, or None.

    Raises:
        UserError: for a model that does not fit the family's spaces or horizon.
    """
    model = said_model(distribution)
    if model is None:
        return None
    wanted = {
        "action_space": gym.spaces.Discrete(model.num_actions),
        "observation_space": model.num_observations and gym.spaces.Discrete(model.num_observations),
        "horizon": model.horizon,
    }
    found = {name: getattr(distribution, name) for name, value in wanted.items() if value is not None}
    faults = [f"{name} {wanted[name]}, got {got}" for name, got in found.items() if got != wanted[name]]
    if faults:
        raise UserError(
            f"{distribution}: model {type(model).__name__}: expected {'; '.join(faults)}; change the model, "
            "or leave it out"
        )
    return model


def _require(condition: bool, expected: str, got: object) -> None:
    if not condition:
        raise ValueError(f"expected {expected}, got {got}")
