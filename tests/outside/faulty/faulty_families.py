"""Families of tasks that are wrong, each in one way, and one that is right."""

import random
from collections.abc import Mapping
from typing import Any

import faulty_lamps
import faulty_steps
import gymnasium as gym
import numpy as np
from faulty_lamps import SWITCHES, Lamp


class Lamps:
    """Lamps of four switches, or of a kind that ``env`` names."""

    def __init__(self, env: str = "Lamp", horizon: Any = 10) -> None:
        self.env, self.horizon = env, horizon

    def sample(self, rng: np.random.Generator, split: str) -> Any:
        return {"switch": int(rng.integers(SWITCHES))}

    def make_env(self, task: Mapping[str, Any]) -> gym.Env[Any, Any]:
        module = faulty_lamps if hasattr(faulty_lamps, self.env) else faulty_steps
        env: gym.Env[Any, Any] = getattr(module, self.env)(**task)
        return env


class NoGenerator(Lamps):
    def sample(self, rng: np.random.Generator, split: str) -> Any:
        return {"switch": random.randrange(SWITCHES)}


class NoMapping(Lamps):
    def sample(self, rng: np.random.Generator, split: str) -> Any:
        return int(rng.integers(SWITCHES))


class Objects(Lamps):
    def sample(self, rng: np.random.Generator, split: str) -> Any:
        return {"switch": Lamp(1)}


class NumbersAsNames(Lamps):
    def sample(self, rng: np.random.Generator, split: str) -> Any:
        return {1: 2}


class OneTask(Lamps):
    def sample(self, rng: np.random.Generator, split: str) -> Any:
        return {"switch": 1}


class SampleRaises(Lamps):
    def sample(self, rng: np.random.Generator, split: str) -> Any:
        raise KeyError("switch")


class SampleWithoutSplit(Lamps):
    def sample(self, rng: np.random.Generator) -> Any:  # type: ignore[override]
        return {"switch": 1}


class MakesNothing(Lamps):
    def make_env(self, task: Mapping[str, Any]) -> Any:
        return None


class HasNoHorizon:
    sample, make_env = Lamps.sample, Lamps.make_env
    env = "Lamp"


class HasNoMakeEnv:
    sample, horizon = Lamps.sample, 10


class Picky(Lamps):
    def __init__(self, colour: str) -> None:
        super().__init__()


class HoldsALambda(Lamps):
    def __init__(self) -> None:
        super().__init__()
        self.paint = lambda: 0


def lamps() -> Lamps:
    return Lamps()


NUMBER = 7


class ConstructorRaises(Lamps):
    def __init__(self) -> None:
        raise RuntimeError("no lamps left")


class IgnoresTasks(Lamps):
    def make_env(self, task: Mapping[str, Any]) -> gym.Env[Any, Any]:
        return Lamp(1)


gym.register("EndlessLamp-v0", Lamp)  # without max_episode_steps
