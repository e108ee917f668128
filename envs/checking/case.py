"""The family that is checked: its tasks, its environments, and steps in them."""

import json
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from rl2meta.counted import ACTION_MASK, sizes_of
from rl2meta.tasks import Split, TaskDistribution, Tasks, TaskVectorEnv, sample_tasks

CPU = torch.device("cpu")


class Step(NamedTuple):
    """One step of all environments."""

    before: Tensor  # the observation before the action
    action: Tensor
    observation: Tensor
    reward: Tensor
    terminated: Tensor
    truncated: Tensor
    info: dict[str, Any]

    @property
    def last(self) -> Tensor:
        """Whether the step ended its episode, bool [B]."""
        return self.terminated | self.truncated

    def tensors(self) -> dict[str, Tensor]:
        """Return every tensor of the step by name, with the tensors of info."""
        return {**self._asdict(), **self.info, "info": torch.empty(0)}


@dataclass(frozen=True)
class Case:
    """The family that is checked, and how.

    Attributes:
        distribution: the family.
        num_tasks: number of tasks to play.
        seed: of all random numbers.
        steady: whether a task must be the same in each of its episodes.
        most_steps: the largest number of steps to play, for environments that are slow or show much.
    """

    distribution: TaskDistribution
    num_tasks: int
    seed: int
    steady: bool = True
    most_steps: int | None = None

    @property
    def num_steps(self) -> int:
        """The number of steps to play: more than one episode of maximum length, or ``most_steps``."""
        steps = self.distribution.horizon + min(self.distribution.horizon + 1, 200)
        return steps if self.most_steps is None else min(steps, self.most_steps)

    def tasks(self, split: Split = "train") -> Tasks:
        """Draw the tasks of a split, the same at every call."""
        return sample_tasks(self.distribution, self.num_tasks, self.seed, split)

    def envs(self) -> TaskVectorEnv:
        """Return new environments, one per task."""
        return self.distribution.make_envs(self.num_tasks, CPU)

    def actions(self) -> list[Tensor]:
        """Draw random actions for ``num_steps`` steps, the same at every call."""
        return list(self.drawn_actions())

    def drawn_actions(self) -> Iterator[Tensor]:
        """Draw the actions of ``actions()`` one step after another, where a list of all would be long."""
        space = deepcopy(self.distribution.action_space)  # seeding the original would change the family
        space.seed(self.seed)
        for _ in range(self.num_steps):
            yield torch.as_tensor(np.stack([space.sample() for _ in range(self.num_tasks)]))

    def play(self, tasks: Tasks | None = None, actions: list[Tensor] | None = None) -> list[Step]:
        """Play in new environments; by default on the training tasks, with ``actions()``."""
        tasks = self.tasks() if tasks is None else tasks
        return play_on(self.envs(), self.actions() if actions is None else actions, tasks, self.seed)


Check = Callable[[Case], Iterator[str]]
"""Checks a family and yields messages of the form 'what: expected ..., got ...'."""


def play_on(envs: TaskVectorEnv, actions: list[Tensor], tasks: Tasks | None, seed: int) -> list[Step]:
    """Reset and then play ``actions`` one after another; without tasks the environments draw them."""
    observation, info = envs.reset(seed=seed, options=None if tasks is None else {"tasks": tasks})
    steps: list[Step] = []
    for action in actions:
        legal = legal_after(info, action, envs)
        steps.append(Step(observation, legal, *envs.step(legal)))
        observation, info = steps[-1].observation, steps[-1].info
    return steps


def legal_after(info: dict[str, Any], action: Tensor, envs: Any) -> Tensor:
    """Return the actions, or legal ones in place of those that the info of a reset or a step forbids."""
    mask = info.get(ACTION_MASK)
    return action if mask is None else next_legal(action, mask, envs.single_action_space)


def next_legal(action: Tensor, mask: Tensor, space: gym.Space[Any]) -> Tensor:
    """Return actions [B, ...] in which the next legal value, in a circle, replaces an illegal one.

    Args:
        action: of a discrete space, [B] or [B, entries].
        mask: bool [B, A].
        space: of one action.
    """
    entries, columns = action.reshape(len(action), -1), list[Tensor]()
    for entry, legal in enumerate(torch.split(mask, sizes_of(space), dim=1)):  # [B, values of the entry]
        order = (entries[:, entry, None] + torch.arange(legal.shape[1])) % legal.shape[1]
        first = legal.gather(1, order).int().argmax(dim=1, keepdim=True)  # [B, 1]
        columns.append(order.gather(1, first))
    return torch.cat(columns, dim=1).reshape(action.shape)


def same_stream(some: list[Step], others: list[Step]) -> bool:
    """Return whether two lists of steps are equal to the bit."""
    pairs = [(a.tensors(), b.tensors()) for a, b in zip(some, others, strict=True)]
    return all(a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a) for a, b in pairs)


def as_json(tasks: Tasks) -> str:
    """Return the tasks as text; equal tasks give equal text."""
    return json.dumps(tasks.to_dict(), sort_keys=True)
