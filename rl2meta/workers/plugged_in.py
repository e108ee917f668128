"""A family of single environments as a ``TaskDistribution``."""

from functools import cached_property
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from rl2meta.counted import ACTION_MASK, is_counted, sizes_of
from rl2meta.errors import UserError
from rl2meta.models import Model, said_model
from rl2meta.randomness import derive, generator
from rl2meta.tasks import MappingTasks, Split, Tasks, refuse_other_shapes
from rl2meta.workers.crew import Crew, Stepper
from rl2meta.workers.family import Described, SingleFamily, Task, acted, observed
from rl2meta.workers.faults import EnvironmentFault, told
from rl2meta.workers.scout import first_look
from rl2meta.workers.settings import WorkerSettings
from rl2meta.workers.solo import Solo

_SEED_BITS = 31  # of an environment's seed: some libraries do not accept more
_ENDLESS = -1


class PluggedIn:
    """A family of single environments as a ``TaskDistribution``; worker processes run the environments.

    ``rl2meta.workers.family.observed`` and ``acted`` say which observations and actions agents get.

    Args:
        family: draws tasks and makes environments.
        workers: where the environments run.
        called: the name to show for a family whose class has no ``__repr__`` of its own.

    Raises:
        EnvironmentFault: (by the spaces, ``sample`` and the environments) if the family breaks a rule.
    """

    def __init__(
        self, family: SingleFamily, workers: WorkerSettings | None = None, called: str | None = None
    ) -> None:
        self.family, self._called = family, called
        self.workers = workers or WorkerSettings()

    def __str__(self) -> str:
        family = self.family
        nameless = type(family).__repr__ is object.__repr__
        return (self._called or type(family).__name__) if nameless else str(family)

    @property
    def model(self) -> Model | None:
        """What the family says that its tasks are, or None."""
        try:
            return said_model(self.family)
        except UserError:
            raise
        except (Exception, SystemExit) as error:
            raise EnvironmentFault(f"{self}: model: {told(error)}") from None

    @cached_property
    def observation_space(self) -> gym.Space[Any]:
        """The space of observations, the same for every task."""
        return observed(self.described.observation_space)

    @cached_property
    def action_space(self) -> gym.Space[Any]:
        """The space of actions, the same for every task."""
        return acted(self.described.action_space)

    @property
    def horizon(self) -> int:
        """The maximum number of steps in an episode."""
        return self.family.horizon

    def sample(self, num_tasks: int, generator: torch.Generator, split: Split) -> MappingTasks:
        """Draw tasks, each from its own random stream."""
        seeds = torch.randint(2**62, (num_tasks,), generator=generator).tolist()
        return MappingTasks(tuple(self._draw(seed, split) for seed in seeds))  # [num_tasks]

    def make_envs(self, num_envs: int, device: torch.device) -> "PluggedVectorEnv":
        """Return ``num_envs`` environments that step together; the worker processes start here."""
        return PluggedVectorEnv(self, num_envs, device)

    def optimal_return(self, tasks: Tasks) -> Tensor | None:
        """Return the family's ``optimal_return`` of each task, [num_tasks]; None if the family has none."""
        of_task = getattr(self.family, "optimal_return", None)
        if of_task is None:
            return None
        try:
            return torch.tensor([float(of_task(task)) for task in _entries(tasks)])
        except (Exception, SystemExit) as error:
            raise EnvironmentFault(f"{self}: optimal_return: {told(error)}") from None

    def bayes_optimal_return(self, num_episodes: int) -> float | None:
        """Return None: not known."""
        return None

    @cached_property
    def described(self) -> Described:
        """The spaces of the environments and the values that they emit, from one task; found out once."""
        task = self._draw(0, "train")
        try:
            return first_look(self.family, task, self.workers)
        except EnvironmentFault as error:
            raise EnvironmentFault(f"{self}: {error}") from None

    def _draw(self, seed: int, split: Split) -> Task:
        try:
            task = self.family.sample(np.random.default_rng(seed), split)
        except (Exception, SystemExit) as error:
            raise EnvironmentFault(f"{self}: sample: {told(error)}") from None
        try:
            return MappingTasks((task,)).entries[0]
        except ValueError as error:  # it is not a task
            raise EnvironmentFault(f"{self}: sample: {error}") from None


class PluggedVectorEnv:
    """Single environments side by side; see ``rl2meta.tasks.TaskVectorEnv`` for tasks, seeds and restarts.

    Each environment gets its own seed in the first episode of a trial; later episodes continue its random
    stream. ``options["episodes_wanted"]`` is the number of episodes until the next reset: an environment
    that has finished them idles, with rewards of 0.
    """

    def __init__(self, law: PluggedIn, num_envs: int, device: torch.device | str) -> None:
        self.num_envs, self.device = num_envs, torch.device(device)
        self.single_observation_space, self.single_action_space = law.observation_space, law.action_space
        self.tasks: MappingTasks | None = None
        self._law, self._trials = law, 0
        self._seed: int | None = None
        self._closed = False
        self._stepper: Stepper = (
            Solo(law.family, law.described, num_envs)
            if law.workers.processes == 0
            else Crew(law.family, law.described, num_envs, law.workers)
        )

    @property
    def finished(self) -> bool:
        """Whether every environment has finished ``episodes_wanted`` episodes."""
        return not self._stepper.arrays.left.any()

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Tensor, dict[str, Any]]:
        """Start an episode in every environment."""
        if self._closed:
            raise gym.error.ClosedEnvironmentError("expected no reset after close(); make new environments")
        options = options or {}
        tasks, episodes = options.get("tasks"), int(options.get("episodes_wanted", _ENDLESS))
        if seed is None and self._seed is None:
            seed = int(np.random.SeedSequence().generate_state(1)[0])  # fresh entropy, as Gymnasium does
        if seed is not None:
            self._seed, self._trials = seed, 0
            if tasks is None:
                tasks = self._law.sample(self.num_envs, generator(seed, "tasks"), "train")
        if tasks is not None:
            self._begin(tasks, episodes)
        else:
            self._stepper.reset(episodes)
        return self._observation(), self._legal()

    def step(self, actions: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, dict[str, Any]]:
        """Take one step in every environment; ended episodes restart in the same step on the same task."""
        if self.tasks is None:
            raise gym.error.ResetNeeded("expected a reset before the first step; call reset(seed=...)")
        arrays = self._stepper.arrays
        arrays.action[:] = self._possible(torch.as_tensor(actions))
        self._stepper.step()
        terminated, truncated = self._there(arrays.terminated), self._there(arrays.truncated)
        observation, last = self._observation(), terminated | truncated
        final = torch.where(
            last.reshape(-1, *[1] * (observation.dim() - 1)), self._there(arrays.final), observation
        )  # [B, ...]
        known = zip(self._law.described.emits, arrays.known, strict=True)
        info = {
            "final_obs": final,
            **self._legal(),
            **{name: self._there(values).float() for name, values in known},
        }
        return observation, self._there(arrays.reward).float(), terminated, truncated, info

    def close(self) -> None:
        """Close the environments and end the workers."""
        self._closed, self.tasks = True, None
        self._stepper.close()

    def _begin(self, tasks: Any, episodes: int) -> None:
        entries = _entries(tasks)
        if len(entries) != self.num_envs:
            raise ValueError(
                f"options['tasks']: expected {self.num_envs} tasks, one per environment, got {len(entries)}"
            )
        assert self._seed is not None  # reset draws one
        seeds = [seed_of(self._seed, self._trials, lane) for lane in range(self.num_envs)]
        self.tasks, self._trials = tasks, self._trials + 1
        self._stepper.begin(entries, seeds, episodes)

    def _possible(self, actions: Tensor) -> Any:
        space = self.single_action_space
        refuse_other_shapes(actions, self.num_envs, space)
        array = actions.detach().cpu().numpy()
        if is_counted(space) and not ((array >= 0) & (array < _above(space))).all():
            raise ValueError(f"expected actions in {space}, got {array.min()} to {array.max()}")
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise EnvironmentFault(
                "expected finite actions of the agent, got NaN or infinity: its policy has diverged; make "
                "its updates smaller, for example with a lower learning rate"
            )
        return array

    def _legal(self) -> dict[str, Tensor]:
        """Return which actions may be taken next, by the name of the info's entry; nothing without masks."""
        return {ACTION_MASK: self._there(self._stepper.arrays.legal)} if self._law.described.masks else {}

    def _observation(self) -> Tensor:
        return self._there(self._stepper.arrays.observation)

    def _there(self, array: Any) -> Tensor:
        """Return a copy on the device; a copy, as the workers will write into the array again."""
        return torch.from_numpy(array.copy()).to(self.device)


def seed_of(seed: int, trial: int, lane: int) -> int:
    """Return the seed of one environment in the first episode of a trial after ``reset(seed=seed)``."""
    return derive(seed, "trial", trial, lane) >> (63 - _SEED_BITS)


def _above(space: gym.Space[Any]) -> Any:
    """Return how many values the action has, or each of its entries."""
    return space.n if isinstance(space, gym.spaces.Discrete) else sizes_of(space)


def _entries(tasks: Tasks) -> tuple[Task, ...]:
    if not isinstance(tasks, MappingTasks):
        raise TypeError(f"options['tasks']: expected MappingTasks, got {type(tasks).__name__}")
    return tasks.entries
