"""A family that shows the task to the agent, for oracles that need not explore."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rl2meta.errors import UserError
from rl2meta.history import History
from rl2meta.randomness import generator
from rl2meta.spaces import encoding
from rl2meta.tasks import MappingTasks, Split, TaskDistribution, Tasks, TaskVectorEnv, TensorTasks


@dataclass(frozen=True)
class Revealed:
    """The same law with the task's parameters in the observation, for oracles.

    The observation is one float32 vector: the encoding of the inner observation, then the parameters of the
    task, flattened, in the order of their names, and not scaled. Everything else equals the inner family
    exactly. Networks cannot use the parameters of ``TwoStep`` well: they are episode numbers, some very
    large.

    Attributes:
        distribution: the inner law; its tasks must be ``TensorTasks``, or mappings that hold only numbers.
    """

    distribution: TaskDistribution

    def __str__(self) -> str:
        return f"Revealed({self.distribution})"

    @property
    def observation_space(self) -> gym.Space[Any]:
        """The encoding of the inner observation and the parameters; TypeError for tasks without tensors."""
        task = self.sample(1, torch.Generator(), "train")
        size = encoding(self.distribution.observation_space).size + _parameters(task).shape[1]
        return gym.spaces.Box(-np.inf, np.inf, (size,), np.float32)

    @property
    def action_space(self) -> gym.Space[Any]:
        """The action space of the inner law."""
        return self.distribution.action_space

    @property
    def horizon(self) -> int:
        """The horizon of the inner law."""
        return self.distribution.horizon

    def sample(self, num_tasks: int, generator: torch.Generator, split: Split) -> Tasks:
        """Draw tasks of the inner law."""
        return self.distribution.sample(num_tasks, generator, split)

    def make_envs(self, num_envs: int, device: torch.device) -> TaskVectorEnv:
        """Return ``num_envs`` inner environments whose observations include the task."""
        return _RevealedEnvs(self, num_envs, device)

    def optimal_return(self, tasks: Tasks) -> Tensor | None:
        """Return the optimum of the inner law, [num_tasks], which already assumes that the task is known."""
        return self.distribution.optimal_return(tasks)

    def bayes_optimal_return(self, num_episodes: int) -> float | None:
        """Return None: this bound is for agents that know only the law, but here the agent knows the task."""
        return None

    def inside(self, history: History) -> History:
        """Return the history with the observations of the inner law, which draws its tasks."""
        episodes = [replace(each, observations=self._hidden(each.observations)) for each in history.episodes]
        return replace(history, episodes=tuple(episodes))

    def _hidden(self, observations: NDArray[Any]) -> NDArray[Any]:
        """Return inner observations [t, ...] from those with the task, [t, size]."""
        space = self.distribution.observation_space
        encoded = observations[:, : encoding(space).size]
        if isinstance(space, gym.spaces.Discrete):
            return np.asarray(encoded.argmax(axis=1) + space.start)  # from one-hot
        return encoded.reshape(-1, *(space.shape or ()))


class _RevealedEnvs:
    """The inner environments; without given tasks, this draws the same tasks as they would draw."""

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
        """Step all environments."""
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
            "of the same length"
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
            f"{value!r:.80}; use a number instead"
        )
