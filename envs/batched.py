"""Batched environments from dynamics over tensors; single.py has the Gymnasium environment around them."""

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from torch import Tensor

from rl2meta.envs.single import TaskEnv as TaskEnv
from rl2meta.envs.single import make_env as make_env
from rl2meta.envs.single import make_vec_env as make_vec_env
from rl2meta.errors import UserError
from rl2meta.randomness import derive, generator
from rl2meta.rendering import FPS, MODES, Screen, modes_of
from rl2meta.tasks import TaskDistribution, TensorTasks, refuse_other_shapes


class Transition(NamedTuple):
    """The results of one step; every tensor is [B, ...].

    Attributes:
        state: the next state.
        reward: float, the sampled reward.
        terminated: bool, whether the task itself ended the episode.
        truth: values that the family knows and no agent sees, by name, with the same names at every step.
            See ``rl2meta.trial.Trajectory`` for ``expected_reward``, ``regret``, ``regrets`` and ``target``;
            values with other names are passed on, too.
    """

    state: Tensor
    reward: Tensor
    terminated: Tensor
    truth: Mapping[str, Tensor] = {}


class Dynamics(Protocol):
    """The rules of a family for B tasks at once: pure functions of tensors, no branch on their values."""

    def prepare(self, tasks: TensorTasks) -> TensorTasks:
        """Return the tasks for the other methods; may add values that every step would compute again."""
        ...

    def begin(self, tasks: TensorTasks, episode: Tensor, generator: torch.Generator) -> Tensor:
        """Return the first states of new episodes, [B, ...].

        ``episode``, int64 [B], is the number of episodes that began before on the task. Most families ignore
        it; families whose tasks change from one episode to the next use it.
        """
        ...

    def observe(self, state: Tensor) -> Tensor:
        """Return the observations of the states, [B, ...]."""
        ...

    def step(
        self, tasks: TensorTasks, state: Tensor, action: Tensor, generator: torch.Generator
    ) -> Transition:
        """Take one step in every state."""
        ...


class TensorVectorEnv(VectorEnv[Any, Any, Any]):
    """B tasks that step together on one device: the batched environment of every built-in family.

    Observations, rewards and flags are tensors on the device; actions may be tensors or arrays. See
    ``rl2meta.tasks.TaskVectorEnv`` for how tasks, seeds and restarts behave.

    Args:
        distribution: the law: spaces, horizon, and the source of tasks if ``reset`` gets none.
        dynamics: the rules.
        num_envs: B.
        device: the device of all tensors.
    """

    metadata: dict[str, Any] = {  # noqa: RUF012
        "autoreset_mode": AutoresetMode.SAME_STEP,
        "render_modes": list(MODES[1:]),
        "render_fps": FPS,
    }
    finished = False  # unknown: to find out, the GPU would have to send data back

    def __init__(
        self, distribution: TaskDistribution, dynamics: Dynamics, num_envs: int, device: torch.device | str
    ) -> None:
        if num_envs < 1:
            raise ValueError(f"expected num_envs >= 1, got {num_envs}")
        self.num_envs = num_envs
        self.device = torch.device(device)
        self.single_observation_space = distribution.observation_space
        self.single_action_space = distribution.action_space
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.tasks: TensorTasks | None = None
        self._expected = _layout(distribution.sample(1, torch.Generator(), "train"))
        self._distribution = distribution
        self._horizon = distribution.horizon
        self._dynamics = dynamics
        self.screen: Screen | None = None
        self._generator: torch.Generator | None = None
        self._prepared: TensorTasks
        self._state: Tensor
        self._elapsed: Tensor  # int64 [B], steps taken in the current episode
        self._episode: Tensor  # int64 [B], episodes begun before on the task

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Tensor, dict[str, Any]]:
        """Start an episode in every environment."""
        if seed is None and self._generator is None:
            seed = int(np.random.SeedSequence().generate_state(1)[0])  # fresh entropy, as Gymnasium does
        tasks = (options or {}).get("tasks")
        if seed is not None:
            self.seed(seed)
            if tasks is None:
                tasks = self._distribution.sample(self.num_envs, generator(seed, "tasks"), "train")
        source = self._ready(tasks, (options or {}).get("episodes_before"))
        self._state = self._dynamics.begin(self._prepared, self._episode, source)
        self._elapsed = torch.zeros_like(self._episode)
        observation = self._dynamics.observe(self._state)
        if self.screen is not None:
            self.screen.begin(observation, self.tasks, new_trial=tasks is not None)
        return observation, {}

    def step(self, actions: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, dict[str, Any]]:
        """Take one step in every environment; ended episodes restart in the same step on the same task."""
        source = self._running()
        actions = self._possible(torch.as_tensor(actions, device=self.device))
        end = self._dynamics.step(self._prepared, self._state, actions, source)
        truncated = self._restart(end, source)
        observation, final = self._dynamics.observe(self._state), self._dynamics.observe(end.state)
        if self.screen is not None:
            last = end.terminated | truncated
            self.screen.step(actions, end.reward, last, final, observation, end.truth)
        return observation, end.reward, end.terminated, truncated, {"final_obs": final, **end.truth}

    def render(self) -> tuple[Any, ...]:
        """Return a frame or a text of each of the rows that ``screen`` shows: of all by default.

        Where an episode has ended, the first observation of the next one is shown.

        Raises:
            UserError: without a render mode.
        """
        if self.screen is None:
            modes = " or ".join(f"render_mode={mode!r}" for mode in modes_of(self._distribution)[-2:])
            raise UserError(f"expected a render mode, got None; use gym.make_vec(..., {modes})")
        return tuple(self.screen.show(row, self.screen.history(row)) for row in self.screen.rows)

    def _restart(self, end: Transition, source: torch.Generator) -> Tensor:
        """Begin a new episode where one ended; return where the episode was truncated, bool [B]."""
        if self._horizon == 1:  # every step is an episode: no counter and no torch.where are needed
            self._episode = self._episode + 1
            self._state = self._dynamics.begin(self._prepared, self._episode, source)
            return ~end.terminated
        elapsed = self._elapsed + 1
        truncated = (elapsed >= self._horizon) & ~end.terminated
        last = end.terminated | truncated
        self._episode = self._episode + last
        begin = self._dynamics.begin(self._prepared, self._episode, source)
        self._state = torch.where(_like(last, begin), begin, end.state)
        self._elapsed = elapsed.masked_fill(last, 0)
        return truncated

    def seed(self, seed: int) -> torch.Generator:
        """Restart the random stream of the dynamics; the generator object never changes (for CUDA graphs)."""
        if self._generator is None:
            self._generator = torch.Generator(self.device)
        return self._generator.manual_seed(derive(seed, "dynamics"))

    def _possible(self, actions: Tensor) -> Tensor:
        """Check the actions; their values only on a CPU, as a check on a GPU would have to wait for it."""
        space = self.single_action_space
        refuse_other_shapes(actions, self.num_envs, space)
        if self.device.type == "cpu" and isinstance(space, gym.spaces.Discrete):
            low, high = (int(bound) for bound in actions.aminmax())
            if low < 0 or high >= space.n:
                raise ValueError(f"expected actions in {space}, got one of {low if low < 0 else high}")
        return actions

    def _ready(self, tasks: Any, episode: Tensor | None) -> torch.Generator:
        """Set new tasks, or count one more episode on the old ones; ``episode`` sets the count instead."""
        if tasks is not None:
            self.tasks = self._checked(tasks).to(self.device)
            self._prepared = self._dynamics.prepare(self.tasks)
            self._episode = torch.zeros(self.num_envs, dtype=torch.int64, device=self.device)
            self._elapsed = self._episode
        source = self._running()
        if episode is None:
            self._episode = self._episode + (self._elapsed > 0)  # an episode without a step does not count
        else:
            self._episode = episode.to(self.device)
        return source

    def _running(self) -> torch.Generator:
        if self.tasks is None or self._generator is None:
            raise gym.error.ResetNeeded("expected a reset before the first step; call reset(seed=...)")
        return self._generator

    def _checked(self, tasks: Any) -> TensorTasks:
        if not isinstance(tasks, TensorTasks):
            raise TypeError(f"options['tasks']: expected TensorTasks, got {type(tasks).__name__}")
        if len(tasks) != self.num_envs:
            raise ValueError(
                f"options['tasks']: expected {self.num_envs} tasks, one per environment, got {len(tasks)}"
            )
        if _layout(tasks) != self._expected:
            raise ValueError(
                f"options['tasks']: expected parameters {self._expected} per task, got {_layout(tasks)}"
            )
        return tasks


def _layout(tasks: Any) -> dict[str, tuple[list[int], torch.dtype]]:
    """Return the name, the shape per task and the dtype of each parameter."""
    return {name: (list(value.shape[1:]), value.dtype) for name, value in tasks.parameters.items()}


def _like(flag: Tensor, other: Tensor) -> Tensor:
    """Return a flag [B] with as many axes as ``other`` [B, ...]."""
    return flag.reshape(-1, *[1] * (other.dim() - 1))  # [B, 1, ...]
