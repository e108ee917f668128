"""Games in which most moves are illegal, and an illegal one raises; imports no torch."""

from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

PLACE = spaces.Box(-1, 1, (2,), np.float32)
ACTIONS = {
    "discrete": spaces.Discrete(4, start=-1),
    "choices": spaces.MultiDiscrete([3, 2], start=[1, 0]),
    "switches": spaces.MultiBinary(3),
}


class Game(gym.Env[Any, Any]):
    """Pays for the largest legal numbers; which are legal changes with every step."""

    def __init__(self, task: dict[str, Any], acted: str, told: str, fault: str) -> None:
        self.action_space, self._told, self._fault = ACTIONS[acted], told, fault
        self._sizes = {"discrete": [4], "choices": [3, 2], "switches": [2, 2, 2]}[acted]
        self._bonus = task["bonus"]
        inside = {"place": PLACE, "action_mask": spaces.MultiBinary(sum(self._sizes))}
        self.observation_space = spaces.Dict(inside) if told == "observation" else PLACE

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self._steps = 0
        return self._now()

    def step(self, action: Any) -> Any:
        assert action in self.action_space
        numbers = np.ravel(action - getattr(self.action_space, "start", 0))
        if not all(mask[number] for mask, number in zip(self._masks, numbers, strict=True)):
            raise ValueError(f"illegal action {action}")
        self._steps += 1
        over = bool(self.np_random.random() < 0.2)
        shown, info = self._now()
        if over and self._fault == "none at the end":
            info = {"action_mask": np.zeros(sum(self._sizes), np.int8)}
        return shown, self._bonus + float(numbers.sum()), over, False, info

    def _now(self) -> Any:
        self._masks = [self.np_random.random(size) < 0.4 for size in self._sizes]
        for mask in self._masks:
            mask[self.np_random.integers(len(mask))] = True
            mask |= self._fault == "told late"  # nothing raises
        flat = np.concatenate(self._masks).astype(np.int8)
        if self._fault == "none legal" and self._steps == 2:
            flat[:] = 0
        if self._fault == "too long":
            flat = np.append(flat, 1)
        shown = self.np_random.uniform(-1, 1, 2).astype(np.float32)
        told: Any = tuple(mask.astype(np.int8) for mask in self._masks) if self._told == "parts" else flat
        self._info = {} if self._told == "observation" else {"action_mask": told}
        if self._fault == "told late" and self._steps < 2:
            self._info = {}
            self._masks = [np.ones(size, bool) for size in self._sizes]
            return shown, {}
        return ({"place": shown, "action_mask": flat} if not self._info else shown), self._info


gym.register(
    "Masked-v0", lambda bonus=0.0: Game({"bonus": bonus}, "discrete", "info", ""), max_episode_steps=4
)


@dataclass(frozen=True)
class Games:
    acted: str = "discrete"
    told: str = "info"
    fault: str = ""
    horizon: int = 6

    def sample(self, rng: np.random.Generator, split: str) -> dict[str, Any]:
        return {"bonus": float(rng.uniform(0, 1))}

    def make_env(self, task: Any) -> gym.Env[Any, Any]:
        return Game(task, self.acted, self.told, self.fault)
