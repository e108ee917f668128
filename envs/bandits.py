"""Multi-armed bandits: arms with unknown means, one pull per episode.

A pull ends its episode by termination, so a trial of n episodes is a bandit with n pulls. The observation
is the constant 0: only past actions and rewards tell the agent about the task.
"""

from typing import Annotated, Any, Literal, Self

import gymnasium as gym
import torch
from pydantic import ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass
from torch import Tensor

from rl2meta.envs.batched import TensorVectorEnv, Transition
from rl2meta.envs.bayes_optimal import bayes_optimal_bernoulli
from rl2meta.models import BernoulliArms, GaussianArms
from rl2meta.tasks import Split, Tasks, TensorTasks

_STRICT = ConfigDict(extra="forbid", strict=True)
NumArms = Annotated[int, Field(ge=2, le=10**6, description="number of arms of each bandit")]
Chance = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Noise = Literal["bernoulli", "gaussian"]


@dataclass(frozen=True, config=_STRICT)
class BernoulliBandits:
    """Bandits whose arms pay 1 with probability pᵢ ~ U[low, high], independently, else 0.

    Source: Duan et al. 2016 (arXiv 1611.02779), section 3.1, with low = 0 and high = 1. Other bounds serve to
    test an agent outside the distribution that it was trained on.

    Raises:
        pydantic.ValidationError: for fewer than two arms, or unless 0 <= low < high <= 1.
    """

    num_arms: NumArms = 5
    low: Annotated[Chance, Field(description="lower bound of the arms' means")] = 0.0
    high: Annotated[Chance, Field(description="upper bound of the arms' means")] = 1.0

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        check_order(self.low, self.high)
        return self

    @property
    def model(self) -> BernoulliArms:
        """The model of the tasks."""
        return BernoulliArms(self.num_arms, self.low, self.high)

    @property
    def observation_space(self) -> gym.Space[Any]:
        """The constant 0."""
        return gym.spaces.Discrete(1)

    @property
    def action_space(self) -> gym.Space[Any]:
        """The arm to pull."""
        return gym.spaces.Discrete(self.num_arms)

    @property
    def horizon(self) -> int:
        """One pull is an episode."""
        return 1

    def sample(self, num_tasks: int, generator: torch.Generator, split: Split) -> TensorTasks:
        """Draw the arms' means; the tasks are a continuum, so train and test need no partition."""
        place = torch.rand(num_tasks, self.num_arms, generator=generator)
        return TensorTasks({"means": self.low + (self.high - self.low) * place})

    def make_envs(self, num_envs: int, device: torch.device) -> TensorVectorEnv:
        """Return ``num_envs`` bandits that step together on ``device``."""
        return TensorVectorEnv(self, Pulls("bernoulli"), num_envs, device)

    def optimal_return(self, tasks: Tasks) -> Tensor:
        """Return maxᵢ pᵢ, [num_tasks]: one pull of the best arm."""
        return arm_means(tasks).amax(dim=1)

    def bayes_optimal_return(self, num_episodes: int) -> float | None:
        """Return the exact value of the best strategy over ``num_episodes`` pulls; None if intractable."""
        return bayes_optimal_bernoulli(self.num_arms, num_episodes, self.low, self.high)


@dataclass(frozen=True, config=_STRICT)
class GaussianBandits:
    """Bandits whose arms pay N(μᵢ, 1) with μᵢ ~ N(mean, 1), independently.

    A mean other than 0 serves to test an agent outside the distribution that it was trained on.

    Raises:
        pydantic.ValidationError: for fewer than two arms, or a mean that is not a number within ±10⁶.
    """

    num_arms: NumArms = 5
    mean: Annotated[
        float, Field(ge=-1e6, le=1e6, allow_inf_nan=False, description="mean of the arms' means")
    ] = 0.0

    @property
    def model(self) -> GaussianArms:
        """The model of the tasks."""
        return GaussianArms(self.num_arms, self.mean)

    @property
    def observation_space(self) -> gym.Space[Any]:
        """The constant 0."""
        return gym.spaces.Discrete(1)

    @property
    def action_space(self) -> gym.Space[Any]:
        """The arm to pull."""
        return gym.spaces.Discrete(self.num_arms)

    @property
    def horizon(self) -> int:
        """One pull is an episode."""
        return 1

    def sample(self, num_tasks: int, generator: torch.Generator, split: Split) -> TensorTasks:
        """Draw the arms' means; the tasks are a continuum, so train and test need no partition."""
        offset = torch.randn(num_tasks, self.num_arms, generator=generator)
        return TensorTasks({"means": self.mean + offset})

    def make_envs(self, num_envs: int, device: torch.device) -> TensorVectorEnv:
        """Return ``num_envs`` bandits that step together on ``device``."""
        return TensorVectorEnv(self, Pulls("gaussian"), num_envs, device)

    def optimal_return(self, tasks: Tasks) -> Tensor:
        """Return maxᵢ μᵢ, [num_tasks]: one pull of the best arm."""
        return arm_means(tasks).amax(dim=1)

    def bayes_optimal_return(self, num_episodes: int) -> float | None:
        """Return None: the posterior means are real numbers, so there is no table to solve exactly."""
        return None


class Pulls:
    """The dynamics of a bandit: it has no state, and every pull ends its episode.

    Args:
        noise: distribution of the reward around the pulled arm's mean.
    """

    def __init__(self, noise: Noise) -> None:
        self._noise = noise

    def prepare(self, tasks: TensorTasks) -> TensorTasks:
        """Add the mean of the best arm, [B], and the regret of every arm, [B, num_arms]."""
        means = tasks.parameters["means"]
        best = means.amax(dim=1)
        return TensorTasks({"means": means, "best": best, "regrets": best.unsqueeze(1) - means})

    def begin(self, tasks: TensorTasks, episode: Tensor, generator: torch.Generator) -> Tensor:
        """Return the only state, 0."""
        return torch.zeros_like(episode)

    def observe(self, state: Tensor) -> Tensor:
        """Return the constant 0."""
        return state

    def step(
        self, tasks: TensorTasks, state: Tensor, action: Tensor, generator: torch.Generator
    ) -> Transition:
        """Return the reward of the pulled arm."""
        means = tasks.parameters["means"]
        expected = means.gather(1, action.unsqueeze(1)).squeeze(1)  # [B, num_arms] -> [B]
        return Transition(
            state=state,
            reward=_pay(self._noise, expected, generator),
            terminated=torch.ones_like(action, dtype=torch.bool),
            truth={
                "expected_reward": expected,
                "regret": tasks.parameters["best"] - expected,
                "regrets": tasks.parameters["regrets"],
            },
        )


def _pay(noise: Noise, expected: Tensor, generator: torch.Generator) -> Tensor:
    if noise == "bernoulli":
        return torch.bernoulli(expected, generator=generator)
    return torch.normal(expected, 1.0, generator=generator)


def check_order(low: float, high: float) -> None:
    """Raise ValueError unless low < high."""
    if low >= high:
        raise ValueError(f"low < high (here {low} and {high})")


def arm_means(tasks: Tasks) -> Tensor:
    """Return the arms' means, [num_tasks, num_arms]; TypeError for tasks that are not bandits."""
    if not isinstance(tasks, TensorTasks):
        raise TypeError(f"expected TensorTasks with 'means', got {type(tasks).__name__}")
    return tasks.parameters["means"]
