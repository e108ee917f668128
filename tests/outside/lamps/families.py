"""A family of single environments."""

from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np

from lamps.envs import SWITCHES, Lamp


class Lamps:
    """Rooms in each of which another switch is the right one."""

    def __init__(self, horizon: int = 6) -> None:
        self.horizon = horizon

    def sample(self, rng: np.random.Generator, split: str) -> dict[str, Any]:
        """Draw one task."""
        return {"switch": int(rng.integers(SWITCHES))}

    def make_env(self, task: Mapping[str, Any]) -> gym.Env[Any, Any]:
        """Return the room of a task."""
        return Lamp(task["switch"])

    def optimal_return(self, task: Mapping[str, Any]) -> float:
        """Return what an episode pays to who knows the switch."""
        return float(self.horizon)
