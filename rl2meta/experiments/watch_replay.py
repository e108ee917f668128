"""Pictures of single environments: the recorded actions are played once more, by environments that render."""

from collections.abc import Collection, Iterator
from contextlib import ExitStack, closing
from typing import Any

import gymnasium as gym
import numpy as np
from PIL import Image

from rl2meta.errors import UserError
from rl2meta.experiments.watched_trial import WatchedTrial
from rl2meta.spaces import bounded
from rl2meta.tasks import MappingTasks
from rl2meta.workers.elements import actor
from rl2meta.workers.family import make_shown
from rl2meta.workers.plugged_in import PluggedIn, seed_of

_ROUNDING = 1e-5


class Replay:
    """Draws a recorded trial on one task of single environments by their own ``render``.

    Args:
        law: of the task.
        task: one task.
        watched: the trial on it.
        size: the largest width and height of a picture in pixels.
    """

    def __init__(
        self, law: PluggedIn, task: MappingTasks, watched: WatchedTrial, size: tuple[int, int]
    ) -> None:
        self._law, self._task, self._watched, self._size = law, task.entries[0], watched, size
        self._actions = bounded(law.action_space)(watched.steps(lambda phase: phase.action)).numpy()
        self._lasts = watched.steps(lambda phase: phase.last).tolist()
        self._rewards = watched.steps(lambda phase: phase.reward)

    def __call__(self, steps: Collection[int]) -> dict[int, Image.Image]:
        """Return the pictures after some numbers of steps.

        Raises:
            UserError: for environments that do not render, or do not play the trial again as it was.
        """
        wanted = set(steps)
        with ExitStack() as stack:
            envs = [self._made(stack) for _ in range(self._watched.lanes)]
            for lane, env in enumerate(envs):
                env.reset(seed=seed_of(self._watched.env_seed, 0, lane))
            found = {0: self._picture(envs[0])} if 0 in wanted else {}
            for step, lane in self._played(envs):
                if step in wanted:
                    found[step] = self._picture(envs[lane])
        return found

    def _made(self, stack: ExitStack) -> gym.Env[Any, Any]:
        return stack.enter_context(closing(make_shown(self._law.family, self._task, "rgb_array")))

    def _played(self, envs: list[gym.Env[Any, Any]]) -> Iterator[tuple[int, int]]:
        """Play the trial; yield the number of steps so far, and the lane of the last one."""
        act, over = actor(self._law.described.action_space), [False] * len(envs)
        for step, place in enumerate(self._watched.places):
            env = envs[place.lane]
            if over[place.lane]:
                env.reset()
            reward = env.step(act(self._actions[step]))[1]
            self._refuse_another(step, float(reward))
            over[place.lane] = self._lasts[step]
            yield step + 1, place.lane

    def _refuse_another(self, step: int, reward: float) -> None:
        recorded = float(self._rewards[step])
        if abs(reward - recorded) > _ROUNDING * max(1.0, abs(recorded)):
            raise UserError(
                f"{self._law}: expected the recorded trial from the same seed and actions, got the reward "
                f"{reward:.6g} instead of {recorded:.6g} at step {step}; `rl2meta check` finds unseeded draws"
            )

    def _picture(self, env: gym.Env[Any, Any]) -> Image.Image:
        pixels = env.render()
        if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.ndim != 3:
            raise UserError(f"{self._law}: expected pixels from render(), got {type(pixels).__name__}")
        picture = Image.fromarray(pixels)
        picture.thumbnail(self._size)
        return picture
