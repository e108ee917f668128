"""The room, in three manners of telling it which switch is the right one."""

from typing import Any

import gymnasium as gym
import numpy as np

SWITCHES = 4


class Lamp(gym.Env[Any, Any]):
    """Press switches; the right one pays 1, and may come as ``reset(options={"task": {"switch": 2}})``.

    Observed are the switch that was pressed last, and light that flickers.
    """

    observation_space = gym.spaces.Dict(
        {"last": gym.spaces.Discrete(SWITCHES), "light": gym.spaces.Box(0, 1, (1,), np.float32)}
    )
    action_space = gym.spaces.Discrete(SWITCHES)

    def __init__(self, switch: int = 0) -> None:
        self.switch = switch
        self._last = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.switch = (options or {}).get("task", {}).get("switch", self.switch)
        self._last = 0
        return self._seen(0.0), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self._last = int(action)
        paid = float(action == self.switch)
        return self._seen(paid), paid, False, False, {"expected_reward": paid, "regret": 1 - paid}

    def _seen(self, paid: float) -> dict[str, Any]:
        light = np.array([0.5 * paid + 0.5 * self.np_random.random()], np.float32)
        return {"last": np.int64(self._last), "light": light}


class SettableLamp(Lamp):
    """As learn2learn and garage have them."""

    def sample_tasks(self, num_tasks: int) -> list[dict[str, int]]:
        return [{"switch": int(self.np_random.integers(SWITCHES))} for _ in range(num_tasks)]

    def set_task(self, task: dict[str, int]) -> None:
        self.switch = task["switch"]
