"""The two-step task: a choice leads to one of two places by chance, and the good one must be found."""

import math
from typing import Annotated, Any, Self

import gymnasium as gym
import torch
from pydantic import ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass
from torch import Tensor

from rl2meta.envs.bandits import Chance, check_order
from rl2meta.envs.batched import TensorVectorEnv, Transition
from rl2meta.envs.dependent_bandits import bayes_optimal_dependent
from rl2meta.models import TwoStepTask
from rl2meta.tasks import Split, Tasks, TensorTasks

MAX_SWITCHES = 64
"""Switches of the good side that a task holds; after the last the side stays for good."""

_NEVER = 2**40  # episodes; 64 such gaps still add up within int64


@dataclass(frozen=True, config=ConfigDict(extra="forbid", strict=True))
class TwoStep:
    """A first choice leads to a side, mostly as wanted, and one side pays more often than the other.

    An episode has two steps. In S0, action a leads to the side S(1 + a) with probability ``common`` and to
    the other with 1 − ``common``, the same in all tasks. There any action pays 1 with probability ``high``
    on the good side and ``low`` on the other, else 0, and the episode ends. The good side is all that
    distinguishes tasks: either with equal probability, and before each episode but the first it flips with
    probability ``switch_probability``, at most ``MAX_SWITCHES`` = 64 times in a trial (at 2.5 %, not before
    some 2,000 episodes). The schedule belongs to the task, so that agents on one task share it. With
    switch probability 0 there are two tasks only, and train and test share them.

    Words: an episode here is a *trial* in the papers, and a trial here is an *episode* there.

    Source: the task is of Daw et al. 2011, in the form of Wang et al. 2016 (arXiv 1611.05763), section 3.2:
    common transitions 0.75, rewards 0.9 and 0.1, trials of 10 episodes in which the good side stays. That
    the side is drawn anew for each trial but stays within it, and the 10 episodes, are as reproduced in
    mtrazzi/two-step-task, ``arxiv.ipynb``. Wang et al. 2018 (Nature Neuroscience 21), simulation 4: common
    transitions 0.8, a switch probability of 2.5 %, trials of 100 episodes.

    Raises:
        pydantic.ValidationError: unless common is in [0.5, 1], low < high, and all else in [0, 1].
    """

    common: Annotated[
        float, Field(ge=0.5, le=1, description="probability that a choice leads to its own side")
    ] = 0.75
    high: Annotated[Chance, Field(description="probability that the good side pays")] = 0.9
    low: Annotated[Chance, Field(description="and the other")] = 0.1
    switch_probability: Annotated[
        Chance, Field(description="that the sides change roles before an episode")
    ] = 0.0

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        check_order(self.low, self.high)
        return self

    @property
    def model(self) -> TwoStepTask:
        """What the tasks are."""
        return TwoStepTask(self.high, self.low, self.switch_probability)

    @property
    def observation_space(self) -> gym.Space[Any]:
        """Where the agent is: S0, S1 or S2."""
        return gym.spaces.Discrete(3)

    @property
    def action_space(self) -> gym.Space[Any]:
        """In S0 the side to make for; elsewhere without effect."""
        return gym.spaces.Discrete(2)

    @property
    def horizon(self) -> int:
        """A choice and a reward."""
        return 2

    def sample(self, num_tasks: int, generator: torch.Generator, split: Split) -> TensorTasks:
        """Draw the first good side (0 or 1), [N], and the episodes at which it flips, [N, 64]; both int64.

        The gaps between flips are geometric, P(gap = g) = s (1 − s)^(g − 1), g >= 1.
        """
        side = torch.randint(2, (num_tasks,), generator=generator)
        chance = torch.rand(num_tasks, MAX_SWITCHES, generator=generator, dtype=torch.float64)
        gaps = _geometric(chance, self.switch_probability)
        return TensorTasks({"good_side": side, "switches": gaps.cumsum(dim=1)})

    def make_envs(self, num_envs: int, device: torch.device) -> TensorVectorEnv:
        """Return ``num_envs`` environments that step together on ``device``."""
        return TensorVectorEnv(self, _Dynamics(self), num_envs, device)

    def optimal_return(self, tasks: Tasks) -> Tensor:
        """Return common · high + (1 − common) · low for every task, the good side of each episode known."""
        if not isinstance(tasks, TensorTasks):
            raise TypeError(f"expected TensorTasks with 'good_side', got {type(tasks).__name__}")
        best = self.common * self.high + (1 - self.common) * self.low
        return torch.full_like(tasks.parameters["good_side"], best, dtype=torch.float32)

    def bayes_optimal_return(self, num_episodes: int) -> float | None:
        """Return the exact value of the best strategy, where high + low = 1 and the side never switches.

        A reward on one side then tells what its lack tells on the other: each episode is one sign of the
        good side, right with probability ``high``, wherever it was spent. So the agent knows as much as in
        a dependent bandit that pays high or low, whose value is n low + (high − low) C with C the expected
        number of right choices. Here a right choice earns (2 common − 1)(high − low) more than a wrong one,
        which earns w = (1 − common) high + common low: the value is n w + (2 common − 1)(high − low) C.

        Elsewhere the posterior does not live on a lattice, or the choice is also one of what to learn: None.
        """
        if self.switch_probability > 0 or not math.isclose(self.high + self.low, 1):
            return None
        value = bayes_optimal_dependent(self.high, num_episodes)
        if value is None:
            return None
        wrong = (1 - self.common) * self.high + self.common * self.low
        return num_episodes * wrong + (2 * self.common - 1) * (value - num_episodes * self.low)


class _Dynamics:
    """The rules. A state is int64 [B, 2]: the place (0, 1, 2) and the good side (0, 1) of the episode."""

    def __init__(self, law: TwoStep) -> None:
        self._law = law

    def prepare(self, tasks: TensorTasks) -> TensorTasks:
        return tasks

    def begin(self, tasks: TensorTasks, episode: Tensor, generator: torch.Generator) -> Tensor:
        flips = (tasks.parameters["switches"] <= episode.unsqueeze(1)).sum(dim=1)
        side = (tasks.parameters["good_side"] + flips) % 2
        return torch.stack([torch.zeros_like(side), side], dim=1)

    def observe(self, state: Tensor) -> Tensor:
        return state[:, 0]

    def step(
        self, tasks: TensorTasks, state: Tensor, action: Tensor, generator: torch.Generator
    ) -> Transition:
        law, (place, side) = self._law, state.unbind(dim=1)
        choosing = place == 0
        rare = torch.rand(action.shape, generator=generator, device=action.device) >= law.common
        reached = 1 + torch.where(rare, 1 - action, action)
        expected = torch.where(place == 1 + side, law.high, law.low).masked_fill(choosing, 0.0)
        gap = (2 * law.common - 1) * (law.high - law.low)  # V* − Q* of the wrong choice
        return Transition(
            state=torch.stack([torch.where(choosing, reached, place), side], dim=1),
            reward=torch.bernoulli(expected, generator=generator),
            terminated=~choosing,
            truth={
                "expected_reward": expected,
                "regret": torch.where(choosing & (action != side), gap, 0.0),
            },
        )


def _geometric(chance: Tensor, probability: float) -> Tensor:
    """Return int64 gaps >= 1 from uniform draws in [0, 1), never more than ``_NEVER``."""
    if probability == 0:
        return torch.full_like(chance, _NEVER, dtype=torch.int64)
    survival = torch.log1p(torch.tensor(-probability, dtype=chance.dtype))  # ln(1 − s); −∞ for s = 1
    gaps = torch.log1p(-chance).div(survival).floor() + 1
    return gaps.clamp(max=_NEVER).long()
