"""Multi-armed bandits: arms with unknown means, one pull per episode.

A pull ends its episode by termination, so a trial of n episodes is a bandit with n pulls. The observation
is the constant 0: only past actions and rewards tell the agent about the task.
"""

from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass
from torch import Tensor

from rl2meta.envs.batched import TensorVectorEnv, Transition
from rl2meta.envs.bayes_optimal import bayes_optimal_bernoulli
from rl2meta.history import History
from rl2meta.models import BernoulliArms, GaussianArms
from rl2meta.tasks import Split, Tasks, TensorTasks

if TYPE_CHECKING:
    from matplotlib.figure import Figure

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

    def draw(self, figure: "Figure", tasks: Tasks, row: int, history: History) -> None:
        """Draw the arms; see ``draw_arms``."""
        draw_arms(figure, tasks, row, history, f"Bandit with {self.num_arms} arms", (0, 1.05))

    def describe(self, tasks: Tasks, row: int, history: History) -> str:
        """Return a table of the arms."""
        return describe_arms(tasks, row, history, f"Bandit with {self.num_arms} arms")


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

    def draw(self, figure: "Figure", tasks: Tasks, row: int, history: History) -> None:
        """Draw the arms; see ``draw_arms``."""
        means = arm_means(tasks)[row]
        limits = min(float(means.min()), 0.0) - 1.5, max(float(means.max()), 0.0) + 1.5
        draw_arms(figure, tasks, row, history, f"Gaussian bandit with {self.num_arms} arms", limits)

    def describe(self, tasks: Tasks, row: int, history: History) -> str:
        """Return a table of the arms."""
        return describe_arms(tasks, row, history, f"Gaussian bandit with {self.num_arms} arms")


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


def draw_arms(
    figure: "Figure", tasks: Tasks, row: int, history: History, title: str, limits: tuple[float, float]
) -> None:
    """Draw the mean of the rewards of each arm beside its true mean, and below how often it was pulled."""
    from rl2meta.envs import pictures

    means = pictures.parameter(tasks, "means", row)  # [num_arms]
    pulls, averages = _pulls(history, len(means))
    arms, pulled = np.arange(len(means)), pulls > 0
    pictures.heading(figure, title, f"{_count(history.num_steps, 'pull')} · {pictures.sums(history)}")
    colours = np.where(
        arms == (history.actions[-1] if history.num_steps else -1), pictures.NOW, pictures.SEEN
    )
    x, shown = (
        (-0.6, len(means) - 0.4),
        arms if len(means) <= 20 else pictures.whole_numbers(0, len(means) - 1),
    )
    floor = min(max(limits[0], 0.0), limits[1])
    upper = pictures.Panel(figure, (0.085, 0.365, 0.885, 0.4), x, limits)
    upper.bars(arms[pulled], averages[pulled], floor, facecolors=colours[pulled])
    upper.lines(
        [[(arm - 0.43, mean), (arm + 0.43, mean)] for arm, mean in enumerate(means)], color=pictures.INK
    )
    upper.ruled("reward", ())
    lower = pictures.Panel(figure, (0.085, 0.115, 0.885, 0.16), x, (0, max(4, 1.25 * pulls.max())))
    lower.bars(arms, pulls, facecolors=colours)
    lower.ruled("pulls", shown, "arm", steps=3)
    if len(means) <= 20:
        for arm, number in enumerate(pulls):
            lower.words(arm, number, str(number), va="bottom")
    block = {"marker": "s", "ms": 8}
    entries = [
        ("mean of the rewards", {**block, "color": pictures.SEEN}),
        ("pulled last", {**block, "color": pictures.NOW}),
        ("true mean (hidden)", {"color": pictures.INK, "lw": 2.2}),
    ]
    pictures.key(figure, (0.27, 0.815), entries, row=True)


def describe_arms(tasks: Tasks, row: int, history: History, title: str) -> str:
    """Return a table of the arms: true mean, pulls, and the mean of the rewards."""
    means = arm_means(tasks)[row].tolist()
    pulls, averages = _pulls(history, len(means))
    lines = [title, f"{_count(history.num_steps, 'pull')}, reward {history.rewards.sum():.1f}"]
    lines += [f"{'arm':>4}{'true mean':>11}{'pulls':>7}{'mean reward':>13}"]
    rows = zip(means, pulls, averages, strict=True)
    lines += [
        f"{arm:>4}{mean:>11.2f}{number:>7}{'' if not number else f'{average:.2f}':>13}"
        for arm, (mean, number, average) in enumerate(rows)
    ]
    return "\n".join(lines)


def _pulls(history: History, num_arms: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return how often each arm was pulled and the mean of its rewards, NaN without a pull, [num_arms]."""
    pulls = history.counts(num_arms)
    paid = np.bincount(history.actions.astype(np.int64), weights=history.rewards, minlength=num_arms)
    return pulls, np.divide(paid, pulls, out=np.full(num_arms, np.nan), where=pulls > 0)


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
