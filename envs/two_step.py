"""The two-step task: a choice leads to one of two sides by chance, and the agent must find the good side."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Self

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass
from torch import Tensor

from rl2meta.envs.bandits import Chance, check_order
from rl2meta.envs.batched import TensorVectorEnv, Transition
from rl2meta.envs.dependent_bandits import bayes_optimal_dependent
from rl2meta.history import EpisodeRecord, History
from rl2meta.models import TwoStepTask
from rl2meta.tasks import Split, Tasks, TensorTasks

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_SWITCHES = 64
"""Number of switches of the good side in a task; after the last switch the side never changes."""

_NEVER = 2**40  # episodes; 64 such gaps still add up within int64


@dataclass(frozen=True, config=ConfigDict(extra="forbid", strict=True))
class TwoStep:
    """A first action leads to one of two sides by chance, and one side pays more often than the other.

    An episode has two steps. In S0, action a leads to the side S(1 + a) with probability ``common``, and to
    the other side with probability 1 − ``common``; this is the same in all tasks. At a side, any action pays
    1 with probability ``high`` (good side) or ``low`` (other side), else 0, and the episode ends. Tasks
    differ only in the good side. Initially both sides are equally likely; before each later episode, the good
    side switches with probability ``switch_probability``, at most ``MAX_SWITCHES`` = 64 times in a trial
    (with 2.5 %, this takes at least about 2,000 episodes). The switches are part of the task, so all
    agents on a task see the same. With switch probability 0 there are only two tasks, and train and test
    share them.

    Words: an episode here is a *trial* in the papers, and a trial here is an *episode* in the papers.

    Source: the task is that of Daw et al. 2011, in the form of Wang et al. 2016 (arXiv 1611.05763), section
    3.2: common transitions 0.75, rewards 0.9 and 0.1, trials of 10 episodes with a constant good side. The 10
    episodes, and a good side that is drawn for each trial and stays within it, follow the reproduction
    mtrazzi/two-step-task, ``arxiv.ipynb``. Wang et al. 2018 (Nature Neuroscience 21), simulation 4, have
    common transitions 0.8, a switch probability of 2.5 %, and trials of 100 episodes.

    Raises:
        pydantic.ValidationError: unless common is in [0.5, 1], low < high, and all others are in [0, 1].
    """

    common: Annotated[
        float, Field(ge=0.5, le=1, description="probability that an action leads to its own side")
    ] = 0.75
    high: Annotated[Chance, Field(description="probability of a reward at the good side")] = 0.9
    low: Annotated[Chance, Field(description="probability of a reward at the other side")] = 0.1
    switch_probability: Annotated[
        Chance, Field(description="probability that the good side changes before an episode")
    ] = 0.0

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        check_order(self.low, self.high)
        return self

    @property
    def model(self) -> TwoStepTask:
        """The model of the tasks."""
        return TwoStepTask(self.high, self.low, self.switch_probability)

    @property
    def observation_space(self) -> gym.Space[Any]:
        """The place of the agent: S0, S1 or S2."""
        return gym.spaces.Discrete(3)

    @property
    def action_space(self) -> gym.Space[Any]:
        """The side to go to, in S0; elsewhere actions have no effect."""
        return gym.spaces.Discrete(2)

    @property
    def horizon(self) -> int:
        """Two steps: a choice and a reward."""
        return 2

    def sample(self, num_tasks: int, generator: torch.Generator, split: Split) -> TensorTasks:
        """Draw the first good side (0 or 1), [N], and the episodes at which it switches, [N, 64]; both int64.

        The gaps between switches are geometric, P(gap = g) = s (1 − s)^(g − 1), g >= 1.
        """
        side = torch.randint(2, (num_tasks,), generator=generator)
        chance = torch.rand(num_tasks, MAX_SWITCHES, generator=generator, dtype=torch.float64)
        gaps = _geometric(chance, self.switch_probability)
        return TensorTasks({"good_side": side, "switches": gaps.cumsum(dim=1)})

    def make_envs(self, num_envs: int, device: torch.device) -> TensorVectorEnv:
        """Return ``num_envs`` environments that step together on ``device``."""
        return TensorVectorEnv(self, _Dynamics(self), num_envs, device)

    def optimal_return(self, tasks: Tasks) -> Tensor:
        """Return common · high + (1 − common) · low, [num_tasks]: the good side of each episode is known."""
        if not isinstance(tasks, TensorTasks):
            raise TypeError(f"expected TensorTasks with 'good_side', got {type(tasks).__name__}")
        best = self.common * self.high + (1 - self.common) * self.low
        return torch.full_like(tasks.parameters["good_side"], best, dtype=torch.float32)

    def bayes_optimal_return(self, num_episodes: int) -> float | None:
        """Return the exact value of the best strategy, if high + low = 1 and the side never switches.

        Then a reward at one side gives the same information as no reward at the other: each episode gives one
        sign of the good side, which is right with probability ``high``, at either side. So the agent has as
        much information as in a dependent bandit that pays high or low. With C the expected number of right
        choices, that bandit has the value n low + (high − low) C. Here a wrong choice earns
        w = (1 − common) high + common low, and a right choice earns (2 common − 1)(high − low) more, so the
        value is n w + (2 common − 1)(high − low) C.

        Otherwise the result is None: the posterior has no finite table, or choices also change what the agent
        learns.
        """
        if self.switch_probability > 0 or not math.isclose(self.high + self.low, 1):
            return None
        value = bayes_optimal_dependent(self.high, num_episodes)
        if value is None:
            return None
        wrong = (1 - self.common) * self.high + self.common * self.low
        return num_episodes * wrong + (2 * self.common - 1) * (value - num_episodes * self.low)

    def draw(self, figure: "Figure", tasks: Tasks, row: int, history: History) -> None:
        """Draw where the choices led, the good side of this episode, and the last episodes in a strip."""
        _draw(self, figure, tasks, row, history)


class _Dynamics:
    """The dynamics. A state is int64 [B, 2]: the place (0, 1, 2) and the good side (0, 1) of the episode."""

    def __init__(self, law: TwoStep) -> None:
        self._law = law

    def prepare(self, tasks: TensorTasks) -> TensorTasks:
        return tasks

    def begin(self, tasks: TensorTasks, episode: Tensor, generator: torch.Generator) -> Tensor:
        flips = (tasks.parameters["switches"] <= episode.unsqueeze(1)).sum(dim=1)  # [B, 64] -> [B]
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
        lost = torch.where(choosing, gap, 0.0)
        regrets = torch.stack([lost * side, lost * (1 - side)], dim=1)  # [B, 2]
        return Transition(
            state=torch.stack([torch.where(choosing, reached, place), side], dim=1),
            reward=torch.bernoulli(expected, generator=generator),
            terminated=~choosing,
            truth={
                "expected_reward": expected,
                "regret": regrets.gather(1, action.unsqueeze(1)).squeeze(1),
                "regrets": regrets,
            },
        )


def _geometric(chance: Tensor, probability: float) -> Tensor:
    """Return int64 gaps >= 1 from uniform draws in [0, 1), at most ``_NEVER``."""
    if probability == 0:
        return torch.full_like(chance, _NEVER, dtype=torch.int64)
    survival = torch.log1p(torch.tensor(-probability, dtype=chance.dtype))  # ln(1 − s); −∞ for s = 1
    gaps = torch.log1p(-chance).div(survival).floor() + 1
    return gaps.clamp(max=_NEVER).long()


_MOST_EPISODES = 25  # in the strip
_PLACES = np.array([[0.0, 1.0], [-1.0, 0.0], [1.0, 0.0]])  # of S0, S1 and S2 in a picture


def _draw(law: TwoStep, figure: "Figure", tasks: Tasks, row: int, history: History) -> None:
    from rl2meta.envs import pictures

    number = len(history.episodes)
    switches = pictures.parameter(tasks, "switches", row)  # [64]
    good = 1 + int(pictures.parameter(tasks, "good_side", row) + (switches < number).sum()) % 2
    pictures.heading(figure, "Two steps: a choice, and a side that pays", pictures.progress(history))
    box = (0.05, 0.36, 3.4 / figure.get_figwidth(), 0.46)
    panel = pictures.Panel(figure, box, (-1.6, 1.6), (-0.6, 1.5))
    tried, counts = _outcomes(history)
    ways = _PLACES[1 + tried[:, 1]]
    colours = np.where(tried[:, 0] == 0, pictures.SEEN, pictures.OTHER)
    widths = 0.8 + 6 * counts / max(counts.max(initial=0), 8)
    for action, bend in ((0, 0.12), (1, -0.12)):
        mine = tried[:, 0] == action
        start = np.broadcast_to(_PLACES[0], ways[mine].shape)
        pictures.arrows(panel, start, ways[mine], widths[mine], 0.28, bend, colors=colours[mine])
    now = -1 if history.current.ended else int(history.observation)
    for place, (x, y) in enumerate(_PLACES):
        if place == good:
            panel.line(x, y, marker="o", ms=43, color=pictures.GOOD)
        fill, ink = (pictures.NOW, "white") if place == now else ("white", pictures.INK)
        panel.line(x, y, marker="o", ms=33, color=fill, mec=pictures.INK)
        panel.words(x, y, f"S{place}", color=ink, size=12)
        if place:
            panel.words(x, y - 0.42, f"pays 1 with chance {law.high if place == good else law.low:g}")
    entries = [
        ("action 0 led here", {"color": pictures.SEEN, "lw": 3}),
        ("action 1 led here", {"color": pictures.OTHER, "lw": 3}),
        ("good side (hidden)", {"marker": "o", "ms": 8, "mfc": "none", "mec": pictures.GOOD, "mew": 3}),
        ("agent is here", {"marker": "o", "ms": 9, "color": pictures.NOW, "mec": pictures.INK}),
    ]
    pictures.key(figure, (0.08 + box[2], 0.75), entries, row=False)
    _draw_strip(figure, history)


def _draw_strip(figure: "Figure", history: History) -> None:
    """Draw choice, side and reward of the last episodes."""
    from rl2meta.envs import pictures

    episodes = history.episodes[-_MOST_EPISODES:]
    first = len(history.episodes) - len(episodes) + 1
    x = (first - 0.6, first + _MOST_EPISODES - 0.4)
    panel = pictures.Panel(figure, (0.14, 0.115, 0.83, 0.19), x, (0, 3))
    for height, name in ((2.5, "action"), (1.5, "to side"), (0.5, "reward")):
        panel.words(x[0], height, name, ha="right")
    action, side, paid = _lived(episodes).T  # [episodes] each
    numbers = first + np.arange(len(episodes))
    looks: list[tuple[NDArray[np.bool_], float, dict[str, Any]]] = [
        (action == 0, 2.5, {"marker": "o", "ms": 11, "color": pictures.SEEN}),
        (action == 1, 2.5, {"marker": "o", "ms": 11, "color": pictures.OTHER}),
        (side == 1, 1.5, {"marker": "<", "ms": 9, "color": pictures.FAINT}),  # S1 is at the left
        (side == 2, 1.5, {"marker": ">", "ms": 9, "color": pictures.FAINT}),
        (paid == 0, 0.5, {"marker": "o", "ms": 9, "color": "white", "mec": pictures.INK}),
        (paid == 1, 0.5, {"marker": "o", "ms": 9, "color": pictures.INK}),
    ]
    for where, height, look in looks:
        panel.line(numbers[where], np.full(where.sum(), height), **look)
    for tick in pictures.whole_numbers(first, first + _MOST_EPISODES - 1):
        panel.words(tick, -0.1, f"{tick:.0f}", va="top")
    panel.words(sum(x) / 2, -0.75, "episode", va="top")


def _outcomes(history: History) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the pairs (action, side − 1) of first steps so far, [n, 2], and how often each occurred, [n]."""
    action, side, _ = _lived(history.episodes).T
    pairs = np.stack([action, side - 1], axis=1)[action >= 0]
    found, counts = np.unique(pairs, axis=0, return_counts=True)
    return found, counts


def _lived(episodes: Sequence[EpisodeRecord]) -> NDArray[np.int64]:
    """Return the first action, the side, and whether it paid, [episodes, 3]; −1 for what is to come."""
    table = [
        (
            int(each.actions[0]) if each.num_steps else -1,
            int(each.observations[1]) if each.num_steps else -1,
            int(each.rewards[1] > 0) if each.num_steps > 1 else -1,
        )
        for each in episodes
    ]
    return np.array(table, np.int64)
