"""Two points that the agent sees, of which only one pays: it must find out which, and go there."""

import math
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from rl2meta.envs.batched import TensorVectorEnv, Transition
from rl2meta.history import EpisodeRecord, History
from rl2meta.models import PayingPoint
from rl2meta.tasks import Split, Tasks, TensorTasks

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_STRICT = ConfigDict(extra="forbid", strict=True)
_Length = Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)]
MOVES = ((0, 0), (1, 0), (-1, 0), (0, 1), (0, -1))
"""The actions as steps along x and y: stay, right, left, up, down."""
_QUADRATURE = 800  # points along each axis of the square, for the mean optimum


@dataclass(frozen=True, config=_STRICT)
class MovingBandits:
    """Walkers that see two points in a square, one of which pays 1 for each step that ends near it.

    Episodes start in the middle of the square, (side/2, side/2), and last ``horizon`` steps. An action moves
    the walker by ``step_size`` along one axis, or not at all; the square has no walls. The points are
    uniform in the square. A step that ends at a distance below ``radius`` from the right point pays 1, any
    other step pays 0. The observation is (walker, point 0, point 1), each as (x, y), counted from the middle
    in units of side/2, so the square is [−1, 1]².

    A task is the number of the right point and, unless ``redraw`` is set, the places of both. With
    ``redraw`` every episode draws new places, so there are only two tasks, which train and test share.

    Source: Frans et al. 2018 (arXiv 1710.09767), section 6.2; the numbers are those of the authors' code
    (openai/mlsh, MovementBandits), which draws new places for every episode.

    Raises:
        pydantic.ValidationError: for numbers out of range.
    """

    side: Annotated[_Length, Field(description="side of the square that holds the points")] = 400.0
    step_size: Annotated[_Length, Field(description="length of a step")] = 20.0
    radius: Annotated[_Length, Field(description="the right point pays at a smaller distance")] = 50.0
    horizon: Annotated[int, Field(ge=1, le=1000, description="number of steps in an episode")] = 50
    redraw: Annotated[
        bool, Field(description="draw new places of the points for every episode, not only for every task")
    ] = False

    @property
    def model(self) -> PayingPoint:
        """The model of the tasks."""
        half = self.side / 2
        moves = tuple((x * self.step_size / half, y * self.step_size / half) for x, y in MOVES)
        return PayingPoint(moves, lambda offset: steps_to(self, half * offset), self.horizon)

    @property
    def observation_space(self) -> gym.Space[Any]:
        """Walker and points: the walker as far as ``horizon`` steps can go, the points in [−1, 1]²."""
        reach = 2 * self.step_size * (self.horizon + 1) / self.side
        high = np.array([reach] * 2 + [1.0] * 4, np.float32)
        return gym.spaces.Box(-high, high, dtype=np.float32)

    @property
    def action_space(self) -> gym.Space[Any]:
        """Stay, right, left, up, down."""
        return gym.spaces.Discrete(len(MOVES))

    def sample(self, num_tasks: int, generator: torch.Generator, split: Split) -> TensorTasks:
        """Draw the right point, int64 [N], and the places of both in the units of observations, [N, 2, 2]."""
        right = torch.randint(2, (num_tasks,), generator=generator)
        places = _places(num_tasks, generator, right.device)
        return TensorTasks({"right": right} | ({} if self.redraw else {"points": places}))

    def make_envs(self, num_envs: int, device: torch.device) -> TensorVectorEnv:
        """Return ``num_envs`` walkers that step together on ``device``."""
        return TensorVectorEnv(self, _Walk(self, device), num_envs, device)

    def optimal_return(self, tasks: Tasks) -> Tensor:
        """Return the best return of an episode in which the right point is known, [num_tasks].

        V*_h(d) = max(0, h + 1 − max(1, k(d))), with k from ``steps_to``; with ``redraw``, its mean over the
        square, by the midpoint rule.
        """
        if not isinstance(tasks, TensorTasks):
            raise TypeError(f"expected TensorTasks with 'right', got {type(tasks).__name__}")
        right = tasks.parameters["right"]
        if self.redraw:
            return torch.full_like(right, _mean_optimum(self), dtype=torch.float32)
        offset = self.side / 2 * _of_right(tasks.parameters["points"], right)  # [B, 2], from the start
        return _best(self, offset, torch.full_like(right, self.horizon)).float()

    def bayes_optimal_return(self, num_episodes: int) -> float | None:
        """Return None: see the reference ``explorer``, which is near it."""
        return None

    def draw(self, figure: "Figure", tasks: Tasks, row: int, history: History) -> None:
        """Draw both points, which of them pays, and the walker's paths."""
        _draw(self, figure, tasks, row, history)


def steps_to(law: MovingBandits, offset: Tensor) -> Tensor:
    """Return k(d), the least number of steps that ends nearer than ``radius``, float64 [...]; ∞ if none does.

    k(d) = min {i + j : (|dₓ| − i s)² + (|d_y| − j s)² < radius²}, with s = ``step_size``. Among the i that
    leave a distance along x between −s/2 and the radius, each has one least j.

    Args:
        law: the law of the tasks.
        offset: d, from the walker to the point, [..., 2].
    """
    s, radius = law.step_size, law.radius
    along_x, along_y = offset.double().abs().unsqueeze(-2).unbind(-1)  # [..., 1] each
    more = torch.arange(int(radius / s + 0.5) + 1, dtype=torch.float64, device=offset.device)
    i = _least(along_x - radius, s) + more  # [..., candidates]
    left_x = along_x - i * s
    half_width = (radius**2 - left_x.square()).clamp(min=0).sqrt()
    j = _least(along_y - half_width, s)
    inside = left_x.square() + (along_y - j * s).square() < radius**2
    return torch.where(inside, i + j, math.inf).amin(dim=-1)


def _least(excess: Tensor, step: float) -> Tensor:
    """Return the least n >= 0 with excess − n·step < 0."""
    return (excess / step).floor().add(1).clamp(min=0)


def _best(law: MovingBandits, offset: Tensor, left: Tensor) -> Tensor:
    """Return V* for offsets [..., 2] to the right point and the number of steps left, [...]."""
    return (left + 1 - steps_to(law, offset).clamp(min=1)).clamp(min=0)


def _places(num_tasks: int, generator: torch.Generator, device: torch.device) -> Tensor:
    """Draw the places of two points for each task, [num_tasks, 2, 2], in [−1, 1)²."""
    return 2 * torch.rand(num_tasks, 2, 2, generator=generator, device=device) - 1


def _of_right(points: Tensor, right: Tensor) -> Tensor:
    """Return the place of the right point, [B, 2, 2] -> [B, 2]."""
    return points.gather(1, right.view(-1, 1, 1).expand(-1, 1, 2)).squeeze(1)


@lru_cache(maxsize=16)
def _mean_optimum(law: MovingBandits) -> float:
    middle = (torch.arange(_QUADRATURE, dtype=torch.float64) + 0.5) * (law.side / 2 / _QUADRATURE)
    offset = torch.cartesian_prod(middle, middle)  # one quarter of the square stands for all
    return float(_best(law, offset, torch.full_like(offset[:, 0], law.horizon)).mean())


class _State(NamedTuple):
    """A state, [B, 7] as one tensor: steps from the start along x and y, steps taken, places."""

    walked: Tensor
    elapsed: Tensor
    points: Tensor

    @classmethod
    def of(cls, packed: Tensor) -> "_State":
        return cls(packed[:, :2], packed[:, 2], packed[:, 3:].reshape(-1, 2, 2))

    def packed(self) -> Tensor:
        return torch.cat([self.walked, self.elapsed.unsqueeze(1), self.points.flatten(1)], dim=1)


class _Walk:
    """The dynamics; see ``_State``."""

    def __init__(self, law: MovingBandits, device: torch.device) -> None:
        self._law = law
        self._moves = torch.tensor(MOVES, dtype=torch.float32, device=device)  # [5, 2]

    def prepare(self, tasks: TensorTasks) -> TensorTasks:
        return tasks

    def begin(self, tasks: TensorTasks, episode: Tensor, generator: torch.Generator) -> Tensor:
        right = tasks.parameters["right"]
        drawn = (
            _places(len(right), generator, right.device) if self._law.redraw else tasks.parameters["points"]
        )
        nothing = torch.zeros_like(drawn[:, 0])
        return _State(nothing, nothing[:, 0], drawn).packed()

    def observe(self, state: Tensor) -> Tensor:
        law, here = self._law, _State.of(state)
        walker = here.walked * (2 * law.step_size / law.side)
        return torch.cat([walker, here.points.flatten(1)], dim=1)  # [B, 6]

    def step(
        self, tasks: TensorTasks, state: Tensor, action: Tensor, generator: torch.Generator
    ) -> Transition:
        law, here = self._law, _State.of(state)
        point = law.side / 2 * _of_right(here.points, tasks.parameters["right"]).double()
        after = point.unsqueeze(1) - law.step_size * (here.walked.unsqueeze(1) + self._moves)  # [B, 5, 2]
        pays = (after.square().sum(dim=2) < law.radius**2).double()  # [B, 5]
        left = law.horizon - here.elapsed.unsqueeze(1) - 1
        earns = pays + _best(law, after, left)  # Q*, [B, 5]
        regrets = (earns.amax(dim=1, keepdim=True) - earns).float()
        reward, regret = (x.gather(1, action.unsqueeze(1)).squeeze(1) for x in (pays.float(), regrets))
        walked = here.walked + self._moves[action]
        return Transition(
            state=here._replace(walked=walked, elapsed=here.elapsed + 1).packed(),
            reward=reward,
            terminated=torch.zeros_like(action, dtype=torch.bool),
            truth={"expected_reward": reward.clone(), "regret": regret, "regrets": regrets},
        )


_MOST_PATHS = 100  # of older episodes in a picture


def _draw(law: MovingBandits, figure: "Figure", tasks: Tasks, row: int, history: History) -> None:
    from rl2meta.envs import pictures

    right = int(pictures.parameter(tasks, "right", row))
    places = history.current.observations[0][2:].reshape(2, 2)
    paths = [_path(law, episode) for episode in history.episodes[-_MOST_PATHS:]]
    reach = max(1.02 + 2 * law.radius / law.side, *(1.06 * float(np.abs(path).max()) for path in paths))
    pictures.heading(figure, "Two points, one of which pays", pictures.progress(history))
    width = 3.7 / figure.get_figwidth()
    panel = pictures.Panel(figure, (0.04, 0.05, width, 3.7 / 4.8), (-reach, reach), (-reach, reach))
    square = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1], [-1, -1]])
    panel.lines([square], color=pictures.FAINT, lw=1, ls="--")
    turn = np.linspace(0, 2 * np.pi, 60)
    circle = 2 * law.radius / law.side * np.stack([np.cos(turn), np.sin(turn)], axis=1)
    colours = [pictures.GOOD if point == right else pictures.FAINT for point in (0, 1)]
    panel.shapes(places[:, None] + circle, facecolors=colours, alpha=0.35, antialiased=True)
    for number, (place, colour) in enumerate(zip(places, colours, strict=True)):
        panel.line(*place, marker="o", ms=11, color=colour)
        panel.words(place[0], place[1], str(number), color="white")
    ages = np.linspace(0.25, 0.75, max(len(paths) - 1, 1))
    panel.lines(paths[:-1], colors=pictures.shades(pictures.SEEN, ages)[: len(paths) - 1], lw=1.5)
    panel.line(*paths[-1].T, color=pictures.NOW, lw=2)
    panel.line(*paths[-1][-1:].T, marker="o", ms=8, color=pictures.NOW, mec="white")
    entries = [
        ("pays nearby (hidden)", {"marker": "o", "ms": 9, "color": pictures.GOOD}),
        ("never pays", {"marker": "o", "ms": 9, "color": pictures.FAINT}),
        ("path now", {"color": pictures.NOW, "lw": 2}),
        ("earlier episodes", {"color": pictures.SEEN, "lw": 2}),
        ("points are in here", {"color": pictures.FAINT, "lw": 1, "ls": "--"}),
    ]
    pictures.key(figure, (0.085 + width, 0.795), entries, row=False)
    pictures.returns(figure, (0.1 + width, 0.125, 0.86 - width, 0.24), history)


def _path(law: MovingBandits, episode: EpisodeRecord) -> NDArray[np.float32]:
    """Return the walker's places in an episode, [t + 1, 2]; the last one follows from the last move."""
    path = episode.observations[:, :2].copy()
    if episode.num_steps:  # not every record holds the observation after an episode's last step
        path[-1] = path[-2] + np.array(MOVES[int(episode.actions[-1])]) * (2 * law.step_size / law.side)
    return path
