"""An explorer of two points of which one pays: it tries the nearer one first, and remembers."""

from dataclasses import dataclass, field
from typing import NamedTuple

import gymnasium as gym
import torch
from torch import Tensor

from rl2meta.agents.references.anything import random_references
from rl2meta.agents.references.reference import Reference
from rl2meta.beliefs import Probabilities, Told
from rl2meta.models import PayingPoint
from rl2meta.trial import Choice, Phase, TimeStep, Trajectory

_TIE = 1e-3  # steps to the other point count only between paths of equal length


class Known(NamedTuple):
    """The carry of B trials.

    Attributes:
        right: the number of the right point, 0 or 1, int64 [B]; −1 while it is unknown.
        offsets: from the walker to both points after its last step, [B, 2, 2].
        moves: how far each action moves the walker, [A, 2], on the device of the trial.
    """

    right: Tensor
    offsets: Tensor
    moves: Tensor


@dataclass(frozen=True)
class Explorer:
    """Goes to the right point if it is known, else to the nearer one, which a visit then tells of.

    A step that ends near one point only says which point is right: it pays there or it does not. Of the
    shortest paths to a point, it takes one that comes near the other. In an episode that begins with nothing
    known, this is the best strategy but for the order of the two visits, which is not planned: a detour of a
    step on the way to the first point saves at most a step to the second, which is needed half of the time.

    Attributes:
        model: the world.
    """

    model: PayingPoint
    phase: Phase = field(default=Phase(episodes=None), init=False)  # the carry moves while it acts

    def begin(self, num_tasks: int, generator: torch.Generator, num_steps: int | None = None) -> Known:
        """Return nothing known."""
        device = generator.device
        unknown = torch.full((num_tasks,), -1, device=device)
        return Known(unknown, torch.zeros(num_tasks, 2, 2, device=device), self._moves(device))

    def act(self, carry: Known, step: TimeStep) -> tuple[Choice, Known]:
        """Learn from the last step, and take the move after which the fewest steps are left."""
        right = torch.where(carry.right < 0, self._told(carry, step), carry.right)
        walker, points = step.observation[:, :2], step.observation[:, 2:].reshape(-1, 2, 2)
        offsets = points - walker.unsqueeze(1)  # [B, points, 2]
        target = torch.where(right < 0, self.model.steps(offsets).argmin(dim=1), right)
        after = self.model.steps(offsets.unsqueeze(2) - carry.moves)  # [B, points, A]
        first, second = (
            after.take_along_dim(i.view(-1, 1, 1), dim=1).squeeze(1) for i in (target, 1 - target)
        )
        # an unreachable point is as far as is possible, without deciding more than a tie
        action = (first + _TIE * second.clamp(max=0.5 / _TIE)).argmin(dim=1)  # [B, A] -> [B]
        left = offsets - carry.moves[action].unsqueeze(1)
        return Choice(action, action), Known(right, left, carry.moves)

    def act_and_tell(self, carry: Known, step: TimeStep) -> tuple[Choice, Known, Told]:
        """Do what ``act`` does; tell which point may be the right one. Both are equally likely at first."""
        choice, known = self.act(carry, step)
        right = known.right.unsqueeze(1)  # [B, 1]
        chance = torch.where(right < 0, 0.5, (right == torch.arange(2, device=right.device)).float())
        return choice, known, {"which point is the right one": Probabilities(chance, "point")}

    def adapt(self, carry: Known, trajectory: Trajectory) -> Known:
        """Return the carry as it is: the agent learns while it acts."""
        return carry

    def _told(self, carry: Known, step: TimeStep) -> Tensor:
        """Return the right point if the last step tells, else −1, [B]."""
        near = self.model.steps(carry.offsets) == 0  # [B, 2], where the last step ended
        moved = step.action.sum(dim=1) > 0  # there was no action before a trial's first step
        tells = moved & (near[:, 0] != near[:, 1])
        return torch.where(tells, torch.where(step.reward > 0, near[:, 1], near[:, 0]).long(), -1)

    def _moves(self, device: torch.device) -> Tensor:
        return torch.tensor(self.model.moves, device=device)


def paying_point_references(model: PayingPoint) -> dict[str, Reference]:
    """Return the references of two points of which one pays, by name."""
    explorer = Reference(
        "to the nearer point, then to the other if that does not pay; remembers the right one",
        lambda: Explorer(model),
    )
    return random_references(gym.spaces.Discrete(model.num_actions)) | {"explorer": explorer}
