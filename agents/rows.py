"""The steps of a phase as training examples of the inner loop, without a time axis."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from rl2meta.errors import UserError
from rl2meta.trial import Trajectory


class Rows(NamedTuple):
    """The steps of one phase as training examples, without a time axis: tensors [num_tasks, rows, ...].

    Attributes:
        observation: encoded, [num_tasks, rows, size].
        label: the action that the agent took, or the target of a supervised task, [num_tasks, rows, ...].
        advantage: of the action, [num_tasks, rows]; 1 for supervised tasks.
        weight: sums to 1 over the rows of a task; 0 on padding, [num_tasks, rows].
        legal: bool, true for the legal actions, [num_tasks, rows, A]; [num_tasks, rows, 0] if all are.
    """

    observation: Tensor
    label: Tensor
    advantage: Tensor
    weight: Tensor
    legal: Tensor

    def of(self, tasks: slice) -> "Rows":
        """Return the rows of a slice of the tasks."""
        return Rows(*(field[tasks] for field in self))

    def take(self, index: Tensor) -> "Rows":
        """Return the rows at ``index``, the same for every task, with weights that sum to 1 again."""
        part = Rows(*(field[:, index] for field in self))  # [num_tasks, rows, ...] -> [num_tasks, index, ...]
        return part._replace(weight=normalised(part.weight))


def legal_rows(trajectory: Trajectory, lanes: int) -> Tensor:
    """Return which actions were legal, bool [num_tasks, rows, A]; A = 0 if all always were."""
    legal = trajectory.inputs.legal
    return by_row(trajectory.mask.new_zeros(*trajectory.mask.shape, 0) if legal is None else legal, lanes)


def labelled_rows(
    trajectory: Trajectory, lanes: int, encode: Callable[[Tensor], Tensor], advice: str
) -> Rows:
    """Return the examples of a phase of a supervised task, with equal weights.

    Args:
        trajectory: with the ``target`` of each step in its truth.
        lanes: episodes of each task side by side.
        encode: returns the network's input for observations.
        advice: what to use where there is no target.

    Raises:
        UserError: for a family that reveals no targets.
    """
    if "target" not in trajectory.truth:
        raise UserError(
            "agent.name: expected targets to learn from, got a trajectory without targets; use a family that "
            f"reveals them, such as {advice} (Stable-Baselines3's predict provides no targets: use a rollout)"
        )
    mask = by_row(trajectory.mask.float(), lanes)  # [T, num_tasks × lanes] -> [num_tasks, rows]
    observation = encode(trajectory.inputs.observation)  # [T, num_tasks × lanes, size]
    return Rows(
        by_row(observation, lanes),  # [num_tasks, rows, size]
        by_row(trajectory.truth["target"], lanes),  # [num_tasks, rows, ...]
        torch.ones_like(mask),
        normalised(mask),
        legal_rows(trajectory, lanes),
    )


def episode_return(phase: Trajectory) -> Tensor:
    """Return the mean over lanes of what the steps of a phase pay, []."""
    return (phase.reward * phase.mask).sum(dim=0).mean()


def by_row(field: Tensor, lanes: int) -> Tensor:
    """Lay the steps of all lanes of a task in one row axis, lane after lane.

    [T, num_tasks × lanes, ...] -> [num_tasks, lanes × T, ...].
    """
    laned = by_lane(field, lanes).movedim(0, 2)  # [num_tasks, lanes, T, ...]
    return laned.flatten(1, 2)  # [num_tasks, lanes × T, ...]


def by_lane(field: Tensor, lanes: int) -> Tensor:
    """Split columns into tasks and lanes: [T, num_tasks × lanes, ...] -> [T, num_tasks, lanes, ...]."""
    num_tasks = field.shape[1] // lanes  # reshape cannot tell it from -1 if an axis has length 0
    return field.reshape(len(field), num_tasks, lanes, *field.shape[2:])


def normalised(weight: Tensor) -> Tensor:
    """Return weights [num_tasks, rows] that sum to 1 over the rows of each task."""
    return weight / weight.sum(dim=1, keepdim=True).clamp(min=1e-12)
