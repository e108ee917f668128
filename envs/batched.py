"""Batched environments from dynamics over tensors, and the single Gymnasium environment around them."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from torch import Tensor

from rl2meta.counted import ACTION_MASK
from rl2meta.envs.arguments import built
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

    def keep(self, mode: str, rows: Sequence[int] | None = None) -> None:
        """Keep from the next reset on what happens, and let ``render`` show it.

        Args:
            mode: "rgb_array" or "ansi".
            rows: the environments to show; None for all.

        Raises:
            UserError: for a mode that the family does not have, and for rows that there are not.
        """
        rows = range(self.num_envs) if rows is None else rows
        if any(not 0 <= row < self.num_envs for row in rows):
            raise UserError(f"render_rows: expected rows 0 … {self.num_envs - 1}, got {list(rows)}")
        self.screen, self.render_mode = Screen(self._distribution, mode, rows), mode

    def render(self) -> tuple[Any, ...]:
        """Return a frame or a text of each of the rows that ``keep`` named; of all by default.

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


class TaskEnv(gym.Env[Any, Any]):
    """One environment over NumPy arrays, which ``gym.make`` returns; inside is a batch of one.

    ``reset(options={"tasks": tasks})`` sets the task, ``reset(seed=...)`` draws one, ``reset()`` keeps it.

    Args:
        distribution: the law of the tasks.
        render_mode: "rgb_array", "ansi", "human" or None; ``metadata`` has those that there are. Only with
            one does the environment keep what has happened since the task was set.

    Raises:
        UserError: for another render mode, and for "human" without a display.
    """

    metadata: dict[str, Any] = {"render_modes": list(MODES), "render_fps": FPS}  # noqa: RUF012

    def __init__(self, distribution: TaskDistribution, render_mode: str | None = None) -> None:
        self.distribution = distribution
        self.metadata = {**self.metadata, "render_modes": modes_of(distribution)}
        self.render_mode = render_mode
        self.observation_space = distribution.observation_space
        self.action_space = distribution.action_space
        self._batch = distribution.make_envs(1, torch.device("cpu"))
        if render_mode is not None:
            kept(self._batch, render_mode)
        self._seeded = False
        self._ended = True
        self._info: dict[str, Any] = {}  # of the last step or reset of the batch
        self._restarted: Tensor | None = None  # after an episode's end: first observation of the next one

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Start an episode."""
        super().reset(seed=seed)
        inner = None
        if seed is not None or not self._seeded:
            inner = int(self.np_random.integers(2**62))
            self._seeded = True
        if self._restarted is None or inner is not None or options:
            self._restarted, self._info = self._batch.reset(seed=inner, options=options)
        observation, self._restarted = self._single(self._restarted), None
        self._ended = False
        self._appear()
        return observation, _known({name: self._info[name] for name in self._info.keys() & {ACTION_MASK}})

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Take one step; after the end of an episode call ``reset``."""
        if not self.action_space.contains(action):
            raise ValueError(f"expected an action in {self.action_space}, got {action!r}")
        if self._ended:
            raise gym.error.ResetNeeded("expected reset() after the episode's end, got step(); call reset()")
        actions = torch.as_tensor(np.asarray(action, dtype=self.action_space.dtype)).unsqueeze(0)  # [1, ...]
        restarted, reward, terminated, truncated, info = self._batch.step(actions)
        observation = self._single(info.pop("final_obs"))
        self._info = info
        self._ended = bool(terminated | truncated)
        self._restarted = restarted if self._ended else None
        self._appear()
        return observation, reward.item(), bool(terminated), bool(truncated), _known(info)

    def render(self) -> Any:
        """Return a frame, uint8 [480, 640, 3], or a text of the task and of what has happened to it.

        In a window ("human") every step and reset is shown anyway, and this returns None.

        Raises:
            ResetNeeded: before the first reset.
        """
        if self.render_mode is None:
            gym.logger.warn(
                f"expected a render mode to render, got None; use one of {self.metadata['render_modes']}"
            )
            return None
        if not self._seeded:
            raise gym.error.ResetNeeded("expected a reset before the first picture; call reset()")
        history = self._screen.history(0)
        return self._screen.show(0, history.settled() if self._ended else history)

    def close(self) -> None:
        """Close the batch of one and the window."""
        self._batch.close()
        if self.render_mode is not None:
            self._screen.close()

    @property
    def _screen(self) -> Screen:
        assert isinstance(self._batch, TensorVectorEnv) and self._batch.screen is not None  # by kept
        return self._batch.screen

    def _appear(self) -> None:
        """Show a step or a reset in the window, if there is one."""
        if self.render_mode == "human":
            self.render()

    def _single(self, batch: Tensor) -> Any:
        observation = batch[0].numpy().astype(self.observation_space.dtype)
        return observation if observation.ndim else observation[()]


def _known(info: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the info of a batch of one without tensors; its arrays are copies, as tensors may be tables."""
    return {name: x[0].numpy().copy() if x.dim() > 1 else x.item() for name, x in info.items()}


def make_env(family: str, render_mode: str | None = None, **arguments: Any) -> TaskEnv:
    """Return a single environment of the family ``module:Class`` (Gymnasium's ``entry_point``)."""
    return TaskEnv(built(family, arguments, _OF_MAKE), render_mode)


make_env.metadata = TaskEnv.metadata  # type: ignore[attr-defined]  # then Gymnasium knows "rgb_array_list"


def make_vec_env(
    num_envs: int,
    family: str,
    device: str = "cpu",
    render_mode: str | None = None,
    render_rows: Sequence[int] | None = None,
    **arguments: Any,
) -> Any:
    """Return a batched environment of the family ``module:Class`` (``vector_entry_point``)."""
    envs = built(family, arguments, _OF_MAKE_VEC).make_envs(num_envs, torch.device(device))
    return envs if render_mode is None else kept(envs, render_mode, render_rows)


def kept(envs: Any, mode: str, rows: Sequence[int] | None = None) -> TensorVectorEnv:
    """Return the environments, which keep what happens; see ``TensorVectorEnv.keep``."""
    if not isinstance(envs, TensorVectorEnv):
        raise UserError(
            f"render_mode: expected a TensorVectorEnv from make_envs, which keeps what happens, got "
            f"{type(envs).__name__}; use render_mode=None"
        )
    envs.keep(mode, rows)
    return envs


_OF_MAKE = ("render_mode",)
_OF_MAKE_VEC = ("device", "render_mode", "render_rows")


def _layout(tasks: Any) -> dict[str, tuple[list[int], torch.dtype]]:
    """Return the name, the shape per task and the dtype of each parameter."""
    return {name: (list(value.shape[1:]), value.dtype) for name, value in tasks.parameters.items()}


def _like(flag: Tensor, other: Tensor) -> Tensor:
    """Return a flag [B] with as many axes as ``other`` [B, ...]."""
    return flag.reshape(-1, *[1] * (other.dim() - 1))  # [B, 1, ...]
