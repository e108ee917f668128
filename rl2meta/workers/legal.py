"""Legal actions of a single environment, for whoever acts at random in it."""

from typing import Any

import gymnasium as gym
import numpy as np

from rl2meta.counted import as_element, is_counted, sizes_of
from rl2meta.workers.block import Array
from rl2meta.workers.elements import masker
from rl2meta.workers.family import Described


def legal_sample(described: Described, space: gym.Space[Any], came: Any) -> Any:
    """Return a random action of ``space`` that is legal after ``came``, what a reset or a step returned."""
    if not described.masks or not isinstance(came, tuple):
        return space.sample()
    parts = _legal_values(described, came)
    return as_element(space, _one_number(space, [int(space.np_random.choice(part)) for part in parts]))


def _one_number(space: gym.Space[Any], values: list[int]) -> Any:
    return values[0] if isinstance(space, gym.spaces.Discrete) else np.array(values)


def _legal_values(described: Described, came: tuple[Any, ...]) -> list[Array]:
    """Return the legal values of each entry of an action, from 0 on; all of them if none is."""
    info = came[-1] if isinstance(came[-1], dict) else {}
    mask = np.broadcast_to(masker(described)(came[0], info), described.mask_size)
    parts = np.split(mask, np.cumsum(sizes_of(described.action_space))[:-1])
    return [np.flatnonzero(part) if part.any() else np.arange(len(part)) for part in parts]


class LegalOnly(gym.Wrapper[Any, Any, Any, Any], gym.utils.RecordConstructorArgs):
    """Takes the smallest legal value where an action is illegal, for callers who know nothing of masks."""

    def __init__(self, env: gym.Env[Any, Any], described: Described) -> None:
        gym.utils.RecordConstructorArgs.__init__(self, described=described)
        gym.Wrapper.__init__(self, env)
        self._described = described
        self._came: tuple[Any, ...] | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Reset the environment."""
        self._came = came = self.env.reset(seed=seed, options=options)
        return came

    def step(self, action: Any) -> Any:
        """Take a step by a legal action."""
        if self._came is not None and is_counted(self.action_space):
            action = self._legal(action, _legal_values(self._described, self._came))
        self._came = came = self.env.step(action)
        return came

    def _legal(self, action: Any, legal: list[Array]) -> Any:
        taken = np.ravel(np.asarray(action) - getattr(self.action_space, "start", 0))
        values = [
            int(value if value in possible else possible[0])
            for value, possible in zip(taken, legal, strict=True)
        ]
        return as_element(self.action_space, _one_number(self.action_space, values))
