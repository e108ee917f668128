"""A point in the plane that must find, and then reach, a hidden goal."""

import math
from typing import TYPE_CHECKING, Annotated, Any

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor
from torch.nn import functional as F

from rl2meta.envs.batched import TensorVectorEnv, Transition
from rl2meta.history import EpisodeRecord, History
from rl2meta.parts import in_parts
from rl2meta.tasks import Split, Tasks, TensorTasks

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_STRICT = ConfigDict(extra="forbid", strict=True)
_Length = Annotated[float, Field(ge=1e-6, le=1e3, allow_inf_nan=False)]


@dataclass(frozen=True, config=_STRICT)
class PointNavigation:
    """Points that start at (0, 0); the reward is minus the distance to a hidden goal g ~ U[−side/2, side/2]².

    The observation is the position p. An action a in [−1, 1]² moves p by ``step_size``·a, without noise. The
    reward is −‖p − g‖ after the move. The episode terminates when this distance is below ``goal_radius``, and
    is truncated after ``horizon`` steps.

    Source: Finn et al. 2017 (arXiv 1703.03400), section 5.3; the defaults are its numbers. The authors' code
    ends an episode when both coordinates are within 0.01 of the goal's; the condition here is the Euclidean
    distance, as the paper says.

    Raises:
        pydantic.ValidationError: for numbers out of range.
    """

    side: Annotated[_Length, Field(description="side of the square around (0, 0) that holds the goals")] = 1.0
    step_size: Annotated[_Length, Field(description="maximum length of a step along each axis")] = 0.1
    goal_radius: Annotated[
        float,
        Field(
            ge=0, le=1e3, allow_inf_nan=False, description="an episode ends at a smaller distance to the goal"
        ),
    ] = 0.01
    horizon: Annotated[int, Field(ge=1, le=1000, description="maximum number of steps in an episode")] = 100

    @property
    def observation_space(self) -> gym.Space[Any]:
        """The position: as far as ``horizon`` steps can go, and one more step for rounding."""
        reach = self.step_size * (self.horizon + 1)
        return gym.spaces.Box(-reach, reach, (2,), np.float32)

    @property
    def action_space(self) -> gym.Space[Any]:
        """The move, in units of ``step_size``."""
        return gym.spaces.Box(-1.0, 1.0, (2,), np.float32)

    def sample(self, num_tasks: int, generator: torch.Generator, split: Split) -> TensorTasks:
        """Draw goals [N, 2]; they are continuous, so train and test are draws of the same law."""
        return TensorTasks({"goal": self.side * (torch.rand(num_tasks, 2, generator=generator) - 0.5)})

    def make_envs(self, num_envs: int, device: torch.device) -> TensorVectorEnv:
        """Return ``num_envs`` points that step together on ``device``."""
        return TensorVectorEnv(self, _Walk(self), num_envs, device)

    def optimal_return(self, tasks: Tasks) -> Tensor:
        """Return V*_H(g), [num_tasks]: the exact optimum of an episode; see ``best_return``."""
        goals = _goals(tasks)
        parts = (goals[part] for part in in_parts(len(goals), 8 * self.horizon))
        return torch.cat([best_return(self, part, torch.zeros_like(part[:, 0])) for part in parts])

    def bayes_optimal_return(self, num_episodes: int) -> float | None:
        """Return None: there are too many posteriors over the goal to enumerate."""
        return None

    def draw(self, figure: "Figure", tasks: Tasks, row: int, history: History) -> None:
        """Draw the paths of all episodes, older ones paler, and the hidden goal."""
        _draw(self, figure, tasks, row, history)


def best_return(law: PointNavigation, offset: Tensor, elapsed: Tensor) -> Tensor:
    """Return the best return of the rest of an episode, V*_h(d) = −Σ_{t=1}^{min(h, T)} n_t(d), [B].

    n_t(d) = ‖max(0, |d| − t·step_size)‖, with the maximum for each coordinate, and T is the first t with
    n_t < goal_radius. Moving to the goal at full speed along both axes minimises every later distance and
    the time until the end, all at once.

    Args:
        law: the law of the tasks.
        offset: d, from the position to the goal or the reverse, [B, 2].
        elapsed: number of steps taken in the episode, float [B]; h = horizon − elapsed.
    """
    most = law.horizon
    if offset.device.type == "cpu" and len(offset):  # on a GPU, reading the maximum would have to wait
        steps = float(offset.abs().max()) / law.step_size
        most = min(most, int(steps) + 2) if math.isfinite(steps) else most
    step = torch.arange(1, most + 1, dtype=offset.dtype, device=offset.device)  # [most]
    along_x, along_y = (offset.abs().unsqueeze(2) - law.step_size * step).clamp(min=0).unbind(dim=1)
    distance = torch.hypot(along_x, along_y)  # [B, most], decreasing
    paid = step <= law.horizon - elapsed.unsqueeze(1)
    if law.goal_radius > law.step_size:  # else a distance that follows one below the radius is 0
        before = F.pad(distance[:, :-1], (1, 0), value=math.inf)  # even at the goal, the agent takes one step
        paid = paid & (before >= law.goal_radius)
    return -(distance * paid).sum(dim=1)  # [B]


class _Walk:
    """The dynamics. A state is (x, y, steps taken, V* of the rest of the episode)."""

    def __init__(self, law: PointNavigation) -> None:
        self._law = law

    def prepare(self, tasks: TensorTasks) -> TensorTasks:
        """Add the states in which episodes start, [B, 4]."""
        optimum = self._law.optimal_return(tasks).unsqueeze(1)  # [B, 1]
        return TensorTasks({**tasks.parameters, "start": F.pad(optimum, (3, 0))})  # [B, 4]

    def begin(self, tasks: TensorTasks, episode: Tensor, generator: torch.Generator) -> Tensor:
        return tasks.parameters["start"]

    def observe(self, state: Tensor) -> Tensor:
        return state[:, :2].clone()  # [B, 2]; a copy: a change of an observation must not move the point

    def step(
        self, tasks: TensorTasks, state: Tensor, action: Tensor, generator: torch.Generator
    ) -> Transition:
        law = self._law
        position = state[:, :2] + law.step_size * action.to(state.dtype).clamp(-1, 1)
        offset, elapsed = position - tasks.parameters["goal"], state[:, 2] + 1
        distance = offset.square().sum(dim=1).sqrt()  # [B]
        terminated = distance < law.goal_radius
        rest = best_return(law, offset, elapsed).masked_fill(terminated, 0.0)
        return Transition(
            state=torch.cat([position, torch.stack([elapsed, rest], dim=1)], dim=1),  # [B, 4]
            reward=-distance,
            terminated=terminated,
            truth={
                "expected_reward": -distance,
                "regret": (state[:, 3] - rest + distance).clamp(min=0),  # rounding may give less than 0
            },
        )


def _goals(tasks: Tasks) -> Tensor:
    if not isinstance(tasks, TensorTasks):
        raise TypeError(f"expected TensorTasks with 'goal', got {type(tasks).__name__}")
    return tasks.parameters["goal"]


_MOST_PATHS = 100  # of older episodes in a picture


def _draw(law: PointNavigation, figure: "Figure", tasks: Tasks, row: int, history: History) -> None:
    from rl2meta.envs import pictures

    goal = pictures.parameter(tasks, "goal", row)  # [2]
    paths = [_path(law, episode) for episode in history.episodes[-_MOST_PATHS:]]
    reach = max(0.62 * law.side, *(1.08 * float(np.abs(path).max()) for path in paths))
    pictures.heading(figure, "Find the goal in the plane", pictures.progress(history))
    width = 3.7 / figure.get_figwidth()
    panel = pictures.Panel(figure, (0.04, 0.05, width, 3.7 / 4.8), (-reach, reach), (-reach, reach))
    half = law.side / 2
    square = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1], [-1, -1]])
    panel.lines([half * square], color=pictures.FAINT, lw=1, ls="--")
    panel.lines([reach * square], color=pictures.GRID, lw=1)
    ages = np.linspace(0.25, 0.75, max(len(paths) - 1, 1))
    panel.lines(paths[:-1], colors=pictures.shades(pictures.SEEN, ages)[: len(paths) - 1], lw=1.5)
    panel.line(*goal, marker="*", ms=16, color=pictures.GOOD, mec="white", mew=0.5)
    panel.line(0, 0, marker="s", ms=9, mfc="none", mec=pictures.FAINT, mew=1.2)
    panel.line(*paths[-1].T, color=pictures.NOW, lw=2)
    panel.line(*paths[-1][-1:].T, marker="o", ms=8, color=pictures.NOW, mec="white")
    entries = [
        ("goal (hidden)", {"marker": "*", "ms": 12, "color": pictures.GOOD}),
        ("path now", {"color": pictures.NOW, "lw": 2}),
        ("earlier episodes", {"color": pictures.SEEN, "lw": 2}),
        ("goals are in here", {"color": pictures.FAINT, "lw": 1, "ls": "--"}),
        ("start", {"marker": "s", "ms": 8, "mfc": "none", "mec": pictures.FAINT}),
    ]
    pictures.key(figure, (0.085 + width, 0.795), entries, row=False)
    pictures.returns(figure, (0.1 + width, 0.125, 0.86 - width, 0.24), history)


def _path(law: PointNavigation, episode: EpisodeRecord) -> NDArray[np.float32]:
    """Return the positions of an episode, [t + 1, 2]; the last one follows from the last move."""
    path = episode.observations.copy()
    if episode.num_steps:  # not every record holds the observation after an episode's last step
        path[-1] = path[-2] + law.step_size * episode.actions[-1].clip(-1, 1)
    return path
