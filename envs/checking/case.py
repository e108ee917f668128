"""The family under check: its tasks, its environments, and games played on them."""

import json
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from rl2meta.tasks import Split, TaskDistribution, Tasks, TaskVectorEnv, sample_tasks

CPU = torch.device("cpu")


class Step(NamedTuple):
    """One step of all environments."""

    before: Tensor  # the observation that was acted on
    observation: Tensor
    reward: Tensor
    terminated: Tensor
    truncated: Tensor
    info: dict[str, Any]

    @property
    def last(self) -> Tensor:
        """The step ended its episode."""
        return self.terminated | self.truncated

    def tensors(self) -> dict[str, Tensor]:
        """Return every tensor of the step by name, those of info among them."""
        return {**self._asdict(), **self.info, "info": torch.empty(0)}


@dataclass(frozen=True)
class Case:
    """What is checked.

    Attributes:
        distribution: the family.
        num_tasks: tasks to play.
        seed: of all that is drawn.
        steady: a task is the same in each of its episodes.
    """

    distribution: TaskDistribution
    num_tasks: int
    seed: int
    steady: bool = True

    @property
    def num_steps(self) -> int:
        """More than one episode, and all of the longest one."""
        return self.distribution.horizon + min(self.distribution.horizon + 1, 200)

    def tasks(self, split: Split = "train") -> Tasks:
        """Draw the tasks of a split: the same at every call."""
        return sample_tasks(self.distribution, self.num_tasks, self.seed, split)

    def envs(self) -> TaskVectorEnv:
        """Return new environments, one per task."""
        return self.distribution.make_envs(self.num_tasks, CPU)

    def actions(self) -> list[Tensor]:
        """Draw random actions for ``num_steps`` steps: the same at every call."""
        space = deepcopy(self.distribution.action_space)  # seeding the family's own would leave a trace
        space.seed(self.seed)
        rows = [[space.sample() for _ in range(self.num_tasks)] for _ in range(self.num_steps)]
        return [torch.as_tensor(np.stack(row)) for row in rows]

    def play(self, tasks: Tasks | None = None, actions: list[Tensor] | None = None) -> list[Step]:
        """Play in new environments; by default the training tasks, with ``actions()``."""
        tasks = self.tasks() if tasks is None else tasks
        return play_on(self.envs(), self.actions() if actions is None else actions, tasks, self.seed)


Check = Callable[[Case], Iterator[str]]
"""Plays a family and yields what it found wrong, as 'what: expected, got'."""


def play_on(envs: TaskVectorEnv, actions: list[Tensor], tasks: Tasks | None, seed: int) -> list[Step]:
    """Play ``actions`` one after another from a reset on; without tasks the environments draw them."""
    observation, _ = envs.reset(seed=seed, options=None if tasks is None else {"tasks": tasks})
    steps: list[Step] = []
    for action in actions:
        steps.append(Step(observation, *envs.step(action)))
        observation = steps[-1].observation
    return steps


def same_stream(some: list[Step], others: list[Step]) -> bool:
    """Return whether two games are equal to the bit."""
    pairs = [(a.tensors(), b.tensors()) for a, b in zip(some, others, strict=True)]
    return all(a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a) for a, b in pairs)


def as_json(tasks: Tasks) -> str:
    """Return the tasks as text that is equal where they are."""
    return json.dumps(tasks.to_dict(), sort_keys=True)
