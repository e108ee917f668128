"""Two-armed bandits with dependent arms: the rewards of one arm also give information about the other."""

import math
from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from rl2meta.envs.bandits import Pulls, arm_means, describe_arms, draw_arms
from rl2meta.envs.batched import TensorVectorEnv
from rl2meta.history import History
from rl2meta.models import DependentArms
from rl2meta.tasks import Split, Tasks, TensorTasks

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Law = Literal["uniform", "easy", "medium", "hard"]
MAX_PULLS = 20_000
"""Longer trials count as intractable: the time grows with the square of the pulls, here to 1 or 2 seconds."""

_BETTER: Mapping[Law, float] = {"easy": 0.9, "medium": 0.75, "hard": 0.6}
_CERTAIN = 1e3  # log-odds of one sign if the arms pay 1 and 0; finite, because 0 · ∞ is NaN


@dataclass(frozen=True, config=ConfigDict(extra="forbid", strict=True))
class DependentBandits:
    """Two Bernoulli arms that pay 1 with the probabilities p₁ and p₂ = 1 − p₁, else 0.

    The distribution of p₁ is U[0, 1] (``uniform``), or one of two values with equal probability: 0.1 or 0.9
    (``easy``), 0.25 or 0.75 (``medium``), 0.4 or 0.6 (``hard``). For two *independent* arms, use
    ``BernoulliBandits(num_arms=2)``; both families can play each other's tasks.

    ``easy``, ``medium`` and ``hard`` have two tasks each, and train and test share both. Holding one out
    makes no sense: an agent that never saw it would have learnt a different task distribution, where the same
    arm is always better. These tasks test the learning within a trial, not generalisation.

    Source: Wang et al. 2016 (arXiv 1611.05763), section 3.1.

    Raises:
        pydantic.ValidationError: for another law.
    """

    law: Annotated[Law, Field(description=f"distribution of p₁: {', '.join(get_args(Law))}")] = "uniform"

    @property
    def model(self) -> DependentArms:
        """The model of the tasks."""
        return DependentArms(_BETTER.get(self.law))

    @property
    def observation_space(self) -> gym.Space[Any]:
        """The constant 0."""
        return gym.spaces.Discrete(1)

    @property
    def action_space(self) -> gym.Space[Any]:
        """The arm to pull."""
        return gym.spaces.Discrete(2)

    @property
    def horizon(self) -> int:
        """One pull is an episode."""
        return 1

    def sample(self, num_tasks: int, generator: torch.Generator, split: Split) -> TensorTasks:
        """Draw the arms' means, [num_tasks, 2], from the same law in both splits."""
        chance = torch.rand(num_tasks, generator=generator)
        if self.law == "uniform":
            return TensorTasks({"means": torch.stack([chance, 1 - chance], dim=1)})
        high = _BETTER[self.law]
        tasks = torch.tensor([[high, 1 - high], [1 - high, high]])
        return TensorTasks({"means": tasks[(chance < 0.5).long()]})

    def make_envs(self, num_envs: int, device: torch.device) -> TensorVectorEnv:
        """Return ``num_envs`` bandits that step together on ``device``."""
        return TensorVectorEnv(self, Pulls("bernoulli"), num_envs, device)

    def optimal_return(self, tasks: Tasks) -> Tensor:
        """Return max(p₁, p₂), [num_tasks]: one pull of the better arm."""
        return arm_means(tasks).amax(dim=1)

    def bayes_optimal_return(self, num_episodes: int) -> float | None:
        """Return the exact value of the best strategy over ``num_episodes`` pulls; None for over 20,000."""
        return bayes_optimal_dependent(_BETTER.get(self.law), num_episodes)

    def draw(self, figure: "Figure", tasks: Tasks, row: int, history: History) -> None:
        """Draw the arms; see ``draw_arms``."""
        draw_arms(figure, tasks, row, history, f"Two dependent arms ({self.law})", (0, 1.05))

    def describe(self, tasks: Tasks, row: int, history: History) -> str:
        """Return a table of the arms."""
        return describe_arms(tasks, row, history, f"Two dependent arms ({self.law})")


@lru_cache(maxsize=64)
def bayes_optimal_dependent(better: float | None, num_pulls: int) -> float | None:
    """Return the greatest expected total reward of ``num_pulls`` pulls of two arms with p₂ = 1 − p₁.

    A success of arm 1 and a failure of arm 2 have the same probability, p₁. So a pull of either arm gives a
    *sign* for arm 1 with this probability. Both arms give the same information, so it is optimal to pull the
    arm with the higher posterior mean, m or 1 − m, and the value is

        Σ_{t < n} Σ_k P_t(k) max(m_t(k), 1 − m_t(k)),

    where k counts the signs for arm 1 in t pulls. Their distribution P_t starts from P_0(0) = 1:

        P_{t+1}(k) = P_t(k) (1 − m_t(k)) + P_t(k − 1) m_t(k − 1).

    Args:
        better: p₁ is ``better`` or 1 − ``better``, with equal probability; None for p₁ ~ U[0, 1].
        num_pulls: n.

    Returns:
        The value, or None if n exceeds ``MAX_PULLS``.

    Raises:
        ValueError: for less than one pull, or ``better`` outside (1/2, 1].
    """
    if num_pulls < 1:
        raise ValueError(f"expected num_pulls >= 1, got {num_pulls}")
    if better is not None and not 0.5 < better <= 1:
        raise ValueError(f"expected better in (1/2, 1], got {better}")
    if num_pulls > MAX_PULLS:
        return None
    value, chance = 0.0, np.ones(1)
    for pulls in range(num_pulls):
        mean = _posterior_mean(better, pulls)
        value += float(chance @ np.maximum(mean, 1 - mean))
        grown = np.zeros(pulls + 2)
        grown[:-1] = chance * (1 - mean)
        grown[1:] += chance * mean
        chance = grown
    return value


def _posterior_mean(better: float | None, pulls: int) -> NDArray[np.float64]:
    """Return m_t(k) = E[p₁ | k signs for arm 1 in t pulls] for k = 0 … t."""
    signs = np.arange(pulls + 1)
    if better is None:
        uniform: NDArray[np.float64] = (signs + 1) / (pulls + 2)
        return uniform
    # P(p₁ = better) has the log-odds (2k − t) ln(better / (1 − better)); 2σ(x) − 1 = tanh(x / 2).
    sign = math.log(better / (1 - better)) if better < 1 else _CERTAIN
    two_point: NDArray[np.float64] = 0.5 + (better - 0.5) * np.tanh((2 * signs - pulls) * sign / 2)
    return two_point
