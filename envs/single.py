"""The single Gymnasium environment around a batch of one, and what ``gym.make`` and ``gym.make_vec`` call."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, SupportsIndex

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from rl2meta.counted import ACTION_MASK
from rl2meta.envs.arguments import built
from rl2meta.errors import UserError
from rl2meta.rendering import FPS, MODES, Screen, filmed, modes_of
from rl2meta.tasks import TaskDistribution


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
            filmed(self._batch).screen = Screen(distribution, render_mode, [0])
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
        screen = filmed(self._batch).screen
        assert screen is not None  # there is a render mode
        return screen

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
    """Return a batched environment of the family ``module:Class`` (``vector_entry_point``).

    Raises:
        UserError: for arguments that the family does not have, a render mode that many environments do not
            have, and ``render_rows``, the environments that ``render`` shows (None: all), that there are not.
    """
    law = built(family, arguments, _OF_MAKE_VEC)
    envs = law.make_envs(num_envs, torch.device(device))
    if render_mode is not None:
        rows = range(num_envs) if render_rows is None else render_rows
        _check_many(render_mode, rows, num_envs)
        filmed(envs).screen = Screen(law, render_mode, rows)
        filmed(envs).render_mode = render_mode
    return envs


def _check_many(mode: str, rows: Sequence[int], num_envs: int) -> None:
    if mode == "human":
        raise UserError(
            "render_mode: expected 'rgb_array' or 'ansi' for many environments, got 'human'; use gym.make, "
            "which opens a window for one"
        )
    listed = rows if isinstance(rows, Iterable) else [None]
    if not all(isinstance(row, SupportsIndex) and 0 <= row < num_envs for row in listed):
        raise UserError(f"render_rows: expected rows 0 … {num_envs - 1}, got {rows!r:.80}")


_OF_MAKE = ("render_mode",)
_OF_MAKE_VEC = ("device", "render_mode", "render_rows")
