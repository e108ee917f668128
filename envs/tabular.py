"""Random tabular MDPs: few states, with unknown rewards and unknown transitions."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import gymnasium as gym
import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor
from torch.nn import functional

from rl2meta.dynamic_programming import Optimum, solve
from rl2meta.envs.batched import TensorVectorEnv, Transition
from rl2meta.history import History
from rl2meta.models import TabularMDP
from rl2meta.parts import in_parts
from rl2meta.tasks import Split, Tasks, TensorTasks

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_STRICT = ConfigDict(extra="forbid", strict=True)
_Count = Annotated[int, Field(ge=2, le=1000)]
_Deviation = Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)]


@dataclass(frozen=True, config=_STRICT)
class TabularMDPs:
    """MDPs with mean rewards μ(s, a) ~ N(m, d²) and P(· | s, a) ~ Dirichlet(α, …, α), all independent.

    Every visit of (s, a) pays N(μ(s, a), noise²). An episode starts in state 0 and lasts ``horizon`` steps;
    it ends by termination, because the horizon is part of the task. The state is the observation.

    Source: Duan et al. 2016 (arXiv 1611.02779), section 3.2, with m = d = noise = α = 1.

    Raises:
        pydantic.ValidationError: for numbers out of range.
    """

    num_states: Annotated[_Count, Field(description="number of states, S")] = 10
    num_actions: Annotated[_Count, Field(description="number of actions, A")] = 5
    horizon: Annotated[int, Field(ge=1, le=10_000, description="steps in an episode")] = 10
    reward_mean: Annotated[
        float, Field(ge=-1e3, le=1e3, description="m, the mean of the mean rewards over (s, a)")
    ] = 1.0
    reward_deviation: Annotated[
        _Deviation, Field(description="d, the standard deviation of the mean rewards over (s, a)")
    ] = 1.0
    noise: Annotated[_Deviation, Field(description="standard deviation of a reward around its mean")] = 1.0
    concentration: Annotated[
        float,
        Field(
            ge=1e-3,
            le=1e6,
            description="α of the Dirichlet transitions; with a small α, (s, a) almost always leads to the "
            "same state",
        ),
    ] = 1.0

    @property
    def model(self) -> TabularMDP:
        """The model of the tasks."""
        return TabularMDP(
            self.num_states,
            self.num_actions,
            self.horizon,
            reward_mean=self.reward_mean,
            reward_deviation=self.reward_deviation,
            noise=self.noise,
            concentration=self.concentration,
        )

    @property
    def observation_space(self) -> gym.Space[Any]:
        """The state."""
        return gym.spaces.Discrete(self.num_states)

    @property
    def action_space(self) -> gym.Space[Any]:
        """The action."""
        return gym.spaces.Discrete(self.num_actions)

    def sample(self, num_tasks: int, generator: torch.Generator, split: Split) -> TensorTasks:
        """Draw mean rewards [N, S, A] and transitions [N, S, A, S]; a continuum, so no task comes twice."""
        shape = (num_tasks, self.num_states, self.num_actions)
        means = self.reward_mean + self.reward_deviation * torch.randn(shape, generator=generator)
        transitions = _dirichlet(self.concentration, (*shape, self.num_states), generator)
        return TensorTasks({"reward_means": means, "transitions": transitions})

    def make_envs(self, num_envs: int, device: torch.device) -> TensorVectorEnv:
        """Return ``num_envs`` MDPs that step together on ``device``."""
        return TensorVectorEnv(self, _Walk(self), num_envs, device)

    def optimal_return(self, tasks: Tasks) -> Tensor:
        """Return V*_0(0), [num_tasks]: the exact optimal return of an episode."""
        return torch.cat([optimum.value[:, 0, 0] for optimum in self.optima(tasks)])

    def optima(self, tasks: Tasks) -> Iterator[Optimum]:
        """Solve the MDPs in parts that fit in memory."""
        means, transitions = _parameters(tasks)
        numbers = 8 * self.horizon * self.num_states * self.num_actions  # Q* and the intermediate results
        for part in in_parts(len(tasks), numbers):
            yield solve(means[part], transitions[part], self.horizon)

    def bayes_optimal_return(self, num_episodes: int) -> float | None:
        """Return None: there are too many posteriors to enumerate."""
        return None

    def draw(self, figure: "Figure", tasks: Tasks, row: int, history: History) -> None:
        """Draw the states, the transitions and visits so far, and the best action in each state now."""
        from rl2meta.envs.graph_pictures import draw_graph

        (optimum,) = self.optima(tasks[row : row + 1].to(torch.device("cpu")))
        step = min(history.current.num_steps, self.horizon - 1)
        draw_graph(figure, optimum.action_value[0, step].numpy(), history)


class _Walk:
    """The dynamics. A state is the node t·S + s: state s of the MDP after t steps of the episode."""

    def __init__(self, distribution: TabularMDPs) -> None:
        self._law = distribution

    def prepare(self, tasks: TensorTasks) -> TensorTasks:
        """Solve the MDPs, and make tables by (environment, node or state, action) for the steps."""
        means, transitions = _parameters(tasks)
        regrets = [
            (optimum.value.unsqueeze(-1) - optimum.action_value).flatten(1, 2)
            for optimum in self._law.optima(tasks)
        ]
        return TensorTasks(
            {
                "pairs": _pairs(means, transitions),  # [B, S × A, 1 + S]
                "regrets": torch.cat(regrets),  # [B, H × S, A]
            }
        )

    def begin(self, tasks: TensorTasks, episode: Tensor, generator: torch.Generator) -> Tensor:
        return torch.zeros_like(episode)

    def observe(self, state: Tensor) -> Tensor:
        return state % self._law.num_states

    def step(
        self, tasks: TensorTasks, state: Tensor, action: Tensor, generator: torch.Generator
    ) -> Transition:
        num_states, num_actions = self._law.num_states, self._law.num_actions
        here = self.observe(state)
        number = torch.arange(len(state), device=state.device)
        pair = (number * num_states + here) * num_actions + action
        row = tasks.parameters["pairs"].flatten(0, 1).index_select(0, pair)  # [B, 1 + S]
        mean, cumulative = row[:, 0], row[:, 1:]
        noise = torch.randn(mean.shape, generator=generator, device=mean.device)
        chance = torch.rand(len(pair), 1, generator=generator, device=pair.device)
        there = (cumulative <= chance).sum(dim=1)  # [B, S] -> [B]
        node = number * (self._law.horizon * num_states) + state
        regrets = tasks.parameters["regrets"].flatten(0, 1).index_select(0, node)  # [B, A]
        regret = regrets.gather(1, action.unsqueeze(1)).squeeze(1)  # [B, A] -> [B]
        after = state - here + num_states + there.clamp(max=num_states - 1)  # a sum may round to below 1
        return Transition(
            state=after,
            reward=mean + self._law.noise * noise,
            terminated=after >= self._law.horizon * num_states,
            truth={"expected_reward": mean, "regret": regret, "regrets": regrets},
        )


def _pairs(means: Tensor, transitions: Tensor) -> Tensor:
    """Return the mean reward and the cumulative probabilities of each pair: one row is one read of memory."""
    rows = functional.pad(transitions, (1, 0)).cumsum_(dim=-1)  # [B, S, A, 1 + S]
    rows[..., 0] = means
    return rows.flatten(1, 2)  # [B, S × A, 1 + S]


def _dirichlet(concentration: float, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Draw from Dirichlet(α, …, α) along the last axis, by normalised Gamma(α) variables.

    For α = 1 they are exponential. For small α all of them may round to 0, so this computes logarithms:
    Gamma(α) has the same distribution as Gamma(α + 1) U^{1/α}.
    """
    if concentration == 1:
        weights = torch.empty(shape).exponential_(generator=generator)
        return weights / weights.sum(dim=-1, keepdim=True)
    alpha = torch.full(shape, concentration, dtype=torch.float64)
    gamma = torch._standard_gamma(alpha + 1, generator=generator)
    uniform = 1 - torch.rand(shape, generator=generator, dtype=torch.float64)  # in (0, 1]
    return (gamma.log() + uniform.log() / concentration).softmax(dim=-1).float()


def _parameters(tasks: Tasks) -> tuple[Tensor, Tensor]:
    if not isinstance(tasks, TensorTasks):
        raise TypeError(
            f"expected TensorTasks with 'reward_means', 'transitions', got {type(tasks).__name__}"
        )
    return tasks.parameters["reward_means"], tasks.parameters["transitions"]
