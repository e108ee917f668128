"""What the sub-policies of MLSH do on moving bandits: where each goes, and a picture of its motion."""

import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from matplotlib.axes import Axes
from torch import Tensor

from rl2meta import drawing
from rl2meta.agents.mlsh import MLSHAgent
from rl2meta.agents.sub_policies import SubPolicies
from rl2meta.colours import TRAINED
from rl2meta.drawing import INK, titled_figure
from rl2meta.envs.moving_bandits import MovingBandits
from rl2meta.errors import UserError
from rl2meta.experiments.run import Run
from rl2meta.networks import Categorical
from rl2meta.rollout import RolloutWorker
from rl2meta.tasks import Tasks, sample_tasks
from rl2meta.trial import Choice, Phase, TimeStep, Trajectory

_SIDE = 15  # arrows along each side of a picture
_REACH = 1.15  # of a picture, in the units of observations


@dataclass(frozen=True)
class Follower:
    """Always follows one sub-policy, by its likeliest action.

    Attributes:
        network: all sub-policies.
        number: of the one to follow.
    """

    network: SubPolicies
    number: int
    phase: Phase = field(default=Phase(episodes=1), init=False)

    def begin(self, num_tasks: int, generator: torch.Generator, num_steps: int | None = None) -> None:
        """Return nothing: a sub-policy alone does not learn."""

    def act(self, carry: None, step: TimeStep) -> tuple[Choice, None]:
        """Take the likeliest action."""
        observation = self.network.encode(step.observation)
        policy, _ = self.network.chosen(self._everywhere(observation), observation, step.legal)
        return Choice(policy.mode(), policy.mode()), None

    def adapt(self, carry: None, trajectory: Trajectory) -> None:
        """Learn nothing."""

    def _everywhere(self, observation: Tensor) -> Tensor:
        return torch.full((len(observation),), self.number, device=observation.device)


class Places(NamedTuple):
    """Where sub-policies end.

    Attributes:
        shares: the share of tasks in which each of K sub-policies ends near each point, [K, 2].
        apart: the share of tasks in which two sub-policies end near different points, and not in one cell.
    """

    shares: Tensor
    apart: float


def places(run: Run, num_tasks: int = 1000, seed: int = 0) -> Places:
    """Let each sub-policy play an episode alone on held-out tasks; return where it ends.

    Raises:
        UserError: for a run of another agent, or on another family.
    """
    network, law = _parts(run)
    tasks = sample_tasks(law, num_tasks, seed, "test")
    seen = torch.stack([_last_seen(network, k, law, tasks, seed) for k in range(network.num)])  # [K, N, 6]
    offset = seen[..., 2:].reshape(*seen.shape[:2], 2, 2) - seen[..., None, :2]
    near = offset.square().sum(dim=3).sqrt() * law.side / 2 < law.radius  # [K, N, 2]
    both = near[:, None, :, 0] & near[None, :, :, 1]  # [K, K, N]: one near point 0, one near point 1
    elsewhere = (seen[:, None, :, :2] != seen[None, :, :, :2]).any(dim=3)  # in different cells
    apart = (both & elsewhere).flatten(0, 1).any(dim=0)  # [N]
    return Places(near.double().mean(dim=1), float(apart.double().mean()))


def draw(run: Run, path: str | Path, num_tasks: int = 3, seed: int = 0) -> None:
    """Draw the mean move of each sub-policy all over the square, for some placements of the points.

    Args:
        run: of MLSH on moving bandits.
        path: of the figure, a PNG.
        num_tasks: number of placements, one a column; each sub-policy has a row.
        seed: of the placements.

    Raises:
        UserError: as ``places``.
    """
    network, law = _parts(run)
    points = _placements(law, num_tasks, seed)
    figure = titled_figure(
        "Where each sub-policy goes", "Arrows: the mean move at each place. Dots: the points.", network.num
    )
    grid = figure.subplots(network.num, num_tasks, squeeze=False)
    top = 1 - 0.85 / figure.get_figheight()
    figure.subplots_adjust(left=0.05, right=0.98, bottom=0.02, top=top, hspace=0.05, wspace=0.05)
    for k, row in enumerate(grid):
        row[0].set_ylabel(f"sub-policy {k}", color=TRAINED[k % len(TRAINED)], weight="bold")
        for axes, placed in zip(row, points, strict=True):
            _draw_one(axes, network, law, k, placed)
    drawing.save(figure, Path(path))


def _placements(law: MovingBandits, num: int, seed: int) -> Tensor:
    """Return the points of the first episode on held-out tasks, [num, 2, 2], also where each has its own."""
    options = {"tasks": sample_tasks(law, num, seed, "test")}
    observation, _ = law.make_envs(num, torch.device("cpu")).reset(seed=seed, options=options)
    return observation[:, 2:].reshape(-1, 2, 2)


def _draw_one(axes: Axes, network: SubPolicies, law: MovingBandits, k: int, points: Tensor) -> None:
    along = torch.linspace(-1, 1, _SIDE)
    here = torch.cartesian_prod(along, along)  # [places, 2]
    observation = torch.cat([here, points.flatten().expand(len(here), 4)], dim=1)
    with torch.no_grad():
        policy, _ = network.chosen(torch.full((len(here),), k), observation)
    assert isinstance(policy, Categorical)
    moves = policy.log_probs.exp() @ torch.tensor(law.model.moves, dtype=torch.float32)  # [places, 2]
    colour = TRAINED[k % len(TRAINED)]
    axes.quiver(*here.T.numpy(), *moves.T.numpy(), color=colour, scale=1.6, width=0.006, pivot="mid")
    for number, (x, y) in enumerate(points.tolist()):
        axes.plot(x, y, "o", color=INK, ms=13)
        axes.text(x, y, str(number), color="white", ha="center", va="center", weight="bold", size=9)
    axes.set(xlim=(-_REACH, _REACH), ylim=(-_REACH, _REACH), xticks=[], yticks=[], aspect="equal")


def _last_seen(network: SubPolicies, k: int, law: MovingBandits, tasks: Tasks, seed: int) -> Tensor:
    """Return the last observation of an episode that follows sub-policy k, [num_tasks, 6]."""
    (phase,) = RolloutWorker(law).run(Follower(network, k), tasks, 1, seed).phases
    seen: Tensor = phase.inputs.observation[-1]
    return seen


def _parts(run: Run) -> tuple[SubPolicies, MovingBandits]:
    agent, law = run.agent, run.distribution
    if not isinstance(agent, MLSHAgent) or not isinstance(law, MovingBandits):
        raise UserError(f"expected a run of mlsh on moving_bandits, got {type(agent).__name__} on {law}")
    return copy.deepcopy(agent.network).cpu(), law  # wherever it was trained
