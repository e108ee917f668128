"""Environments that are wrong, each in one way, and one that is right."""

import os
import random
import sys
import time
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box, Dict, Discrete, Graph, Sequence, Text, Tuple

SWITCHES = 4
LATE = 7  # steps into the trial


class Lamp(gym.Env[Any, Any]):
    """One of four switches lights the lamp; an episode takes ``length`` steps."""

    observation_space: gym.Space[Any] = Box(0, 1, (3,), np.float32)
    action_space: gym.Space[Any] = Discrete(SWITCHES)
    length = 10**6
    worst = 2  # the switch of those tasks in which a late fault shows

    def __init__(self, switch: int) -> None:
        self.switch, self.taken, self.total = switch, 0, 0

    @property
    def late(self) -> bool:
        return self.switch == self.worst and self.total == LATE + 1

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.taken = 0
        return self.seen(), {}

    def step(self, action: Any) -> Any:
        self.taken, self.total = self.taken + 1, self.total + 1
        return self.seen(), self.paid(action), self.taken == self.length, False, {}

    def seen(self) -> Any:
        return self.np_random.random(3, dtype=np.float32)

    def paid(self, action: Any) -> Any:
        return float(action == self.switch)


class FloatsOfAnotherWidth(Lamp):
    def seen(self) -> Any:
        return self.np_random.random(3)


class AnotherShape(Lamp):
    def seen(self) -> Any:
        return super().seen()[:2]


class Scalar(Lamp):
    def seen(self) -> Any:
        return 0.5


class ListOfNumbers(Lamp):
    def seen(self) -> Any:
        return [0.1, 0.2, 0.3]


class ShapeOfTheTask(Lamp):
    def __init__(self, switch: int) -> None:
        super().__init__(switch)
        self.observation_space = Box(0, 1, (1 + switch,), np.float32)

    def seen(self) -> Any:
        return self.np_random.random(1 + self.switch, dtype=np.float32)


class ActionsOfTheTask(Lamp):
    def __init__(self, switch: int) -> None:
        super().__init__(switch)
        self.action_space = Discrete(2 + switch)


class SeenSequence(Lamp):
    observation_space = Sequence(Box(0, 1, (1,)))

    def seen(self) -> Any:
        return ()


class SeenGraph(Lamp):
    observation_space = Graph(Box(0, 1, (1,)), None)

    def seen(self) -> Any:
        return self.observation_space.sample()


class SeenText(Lamp):
    observation_space = Text(5)

    def seen(self) -> Any:
        return "dark"


class DoneTuple(Lamp):
    action_space = Tuple((Discrete(2), Discrete(2)))


class DoneDict(Lamp):
    action_space = Dict({"left": Discrete(2)})


class NoSpace(Lamp):
    observation_space = None  # type: ignore[assignment]


class NaNAtFirst(Lamp):
    def step(self, action: Any) -> Any:
        return np.full(3, np.nan, np.float32), *super().step(action)[1:]


class NaNLate(Lamp):
    def seen(self) -> Any:
        return np.full(3, np.nan, np.float32) if self.late else super().seen()


class NaNAtTheEnd(Lamp):
    length = 5

    def seen(self) -> Any:
        return np.full(3, np.nan, np.float32) if self.taken == self.length else super().seen()


class NaNInReset(Lamp):
    def seen(self) -> Any:
        return super().seen() if self.taken else np.full(3, np.nan, np.float32)


class ObservationAlone(Lamp):
    def reset(self, **kwargs: Any) -> Any:
        return super().reset(**kwargs)[0]


class ResetWithoutSeed(Lamp):
    def reset(self) -> Any:  # type: ignore[override]
        return super().reset()


class Outside(Lamp):
    def seen(self) -> Any:
        return np.full(3, 7, np.float32)


class GlobalRandomness(Lamp):
    def seen(self) -> Any:
        return np.random.random(3).astype(np.float32)


class Clock(Lamp):
    def seen(self) -> Any:
        return np.full(3, time.perf_counter() % 1, np.float32)


class OutlivesReset(Lamp):
    """Its lamp burns on: what was done in one trial is seen in the next."""

    def seen(self) -> Any:
        return np.full(3, self.total > 5, np.float32)


class TaskOfTheReset(Lamp):
    def reset(self, **kwargs: Any) -> Any:
        outcome = super().reset(**kwargs)
        self.switch = int(self.np_random.integers(SWITCHES))
        return outcome


class TaskForgotten(Lamp):
    """Only its first episode is of the task."""

    length = 5

    def reset(self, **kwargs: Any) -> Any:
        self.switch = 0 if self.total else self.switch
        return super().reset(**kwargs)


class RaisesLate(Lamp):
    def paid(self, action: Any) -> Any:
        if self.late:
            raise ZeroDivisionError("the fuse blew")
        return 0.0


class ExitsLate(Lamp):
    def paid(self, action: Any) -> Any:
        return sys.exit("no power") if self.late else 0.0


class DiesLate(Lamp):
    def paid(self, action: Any) -> Any:
        if self.late:
            os._exit(7)
        return 0.0


class HangsLate(Lamp):
    def paid(self, action: Any) -> Any:
        time.sleep(15 if self.late else 0)
        return 0.0


class HangsInReset(Lamp):
    def reset(self, **kwargs: Any) -> Any:
        time.sleep(15)


class HangsInClose(Lamp):
    def close(self) -> None:
        time.sleep(15)


class OldLamp:
    """As the package gym had them."""

    observation_space = Box(0, 1, (3,), np.float32)
    action_space = Discrete(SWITCHES)

    def __init__(self, switch: int) -> None:
        self.switch = switch

    def reset(self) -> Any:
        return np.zeros(3, np.float32)

    def step(self, action: Any) -> Any:
        return np.zeros(3, np.float32), 0.0, False, {}


class NeedsMore(Lamp):
    def __init__(self, switch: int, bulb: str) -> None:
        super().__init__(switch)


class Shaky(Lamp):
    """Its constructor draws from the global generator."""

    def __init__(self, switch: int) -> None:
        super().__init__(switch)
        random.random()
