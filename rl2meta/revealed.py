"""A family whose tasks are no secret: what an agent could earn that need not find out."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from rl2meta.errors import UserError
from rl2meta.randomness import generator
from rl2meta.spaces import encoding
from rl2meta.tasks import MappingTasks, Split, TaskDistribution, Tasks, TaskVectorEnv, TensorTasks


@dataclass(frozen=True)
class Revealed:
    """The same law, with the task's parameters in the observation: for oracles.

    The observation is one float32 vector: the inner observation's encoding, then the parameters of the task,
    flattened, in the order of their names and unscaled. All else is the inner family's, to the bit. A family
    whose parameters are a schedule in large numbers (``TwoStep``) gives a network little to read.

    Attributes:
        distribution: the inner law; its tasks must be ``TensorTasks``, or mappings of nothing but numbers.
    """

    distribution: TaskDistribution

    def __str__(self) -> str:
        return f"Revealed({self.distribution})"

    @property
    def observation_space(self) -> gym.Space[Any]:
        """The inner observation's encoding and the parameters; TypeError for tasks without any."""
        task = self.sample(1, torch.Generator(), "train")
        size = encoding(self.distribution.observation_space).size + _parameters(task).shape[1]
        return gym.spaces.Box(-np.inf, np.inf, (size,), np.float32)

    @property
    def action_space(self) -> gym.Space[Any]:
        """The inner one."""
        return self.distribution.action_space

    @property
    def horizon(self) -> int:
        """The inner one."""
        return self.distribution.horizon

    def sample(self, num_tasks: int, generator: torch.Generator, split: Split) -> Tasks:
        """Draw the inner family's tasks."""
        return self.distribution.sample(num_tasks, generator, split)

    def make_envs(self, num_envs: int, device: torch.device) -> TaskVectorEnv:
        """Return ``num_envs`` of the inner environments, which tell what they play."""
        return _RevealedEnvs(self, num_envs, device)

    def optimal_return(self, tasks: Tasks) -> Tensor | None:
        """Return the inner family's, [num_tasks]: knowing the task is what it presumes."""
        return self.distribution.optimal_return(tasks)

    def bayes_optimal_return(self, num_episodes: int) -> float | None:
        """Return None: that bound is on agents that know the law alone, and this one knows the task."""
        return None


class _RevealedEnvs:
    """The inner environments; where no tasks are handed over, draws those that they would have drawn."""

    def __init__(self, revealed: Revealed, num_envs: int, device: torch.device) -> None:
        self.num_envs, self.device = num_envs, torch.device(device)
        self.single_observation_space = revealed.observation_space
        self.single_action_space = revealed.action_space
        self._distribution = revealed.distribution
        self._envs = self._distribution.make_envs(num_envs, self.device)
        self._encode = encoding(self._distribution.observation_space).encode
        self._known: Tensor | None = None  # float32 [num_envs, size of the parameters]

    @property
    def finished(self) -> bool:
        """Whether the inner environments idle."""
        return self._envs.finished

    def close(self) -> None:
        """Close the inner environments."""
        self._envs.close()

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Tensor, dict[str, Any]]:
        """Start an episode in every environment."""
        tasks = (options or {}).get("tasks")
        if tasks is None and (seed is not None or self._known is None):
            tasks = self._draw(seed)
        if tasks is not None:
            options = {**(options or {}), "tasks": tasks}
        observation, info = self._envs.reset(seed=seed, options=options)
        if tasks is not None:
            self._known = _parameters(tasks).to(self.device)
        return self._reveal(observation), info

    def step(self, actions: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, dict[str, Any]]:
        """Act once everywhere."""
        observation, reward, terminated, truncated, info = self._envs.step(actions)
        info = {**info, "final_obs": self._reveal(info["final_obs"])}
        return self._reveal(observation), reward, terminated, truncated, info

    def _draw(self, seed: int | None) -> Tasks:
        if seed is None:
            seed = int(np.random.SeedSequence().generate_state(1)[0])  # fresh entropy, as Gymnasium does
        return self._distribution.sample(self.num_envs, generator(seed, "tasks"), "train")

    def _reveal(self, observation: Tensor) -> Tensor:
        assert self._known is not None  # the inner environments refuse a step before a reset
        return torch.cat([self._encode(observation), self._known], dim=1)


def _parameters(tasks: Tasks) -> Tensor:
    """Return the parameters as float32 [num_tasks, size], in the order of their names."""
    if isinstance(tasks, MappingTasks):
        return _table([list(_numbers(task)) for task in tasks.entries])
    if not isinstance(tasks, TensorTasks):
        raise TypeError(f"expected TensorTasks, whose parameters can be revealed, got {type(tasks).__name__}")
    values = (tasks.parameters[name] for name in sorted(tasks.parameters))
    return torch.cat([value.reshape(len(tasks), math.prod(value.shape[1:])).float() for value in values], 1)


def _table(rows: list[list[float]]) -> Tensor:
    if len(sizes := {len(row) for row in rows}) != 1:
        raise UserError(
            f"reveal_task: expected tasks of equally many numbers, got {sorted(sizes)}; give all tasks lists "
            "of one length"
        )
    return torch.tensor(rows, dtype=torch.float32)


def _numbers(value: Any) -> Iterator[float]:
    """Yield the numbers of a task in the order of their names."""
    if isinstance(value, Mapping):
        for name in sorted(value):
            yield from _numbers(value[name])
    elif isinstance(value, list | tuple | np.ndarray):
        for part in value:
            yield from _numbers(part)
    elif isinstance(value, bool | int | float | np.number | np.bool_):
        yield float(value)
    else:
        raise UserError(
            f"reveal_task: expected tasks of numbers, which can be revealed, got {type(value).__name__} "
            f"{value!r:.80}; let a number stand for it"
        )
