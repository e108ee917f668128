"""Walks that kill their own process at points of a training that are chosen by the luck of the task."""

import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
from walks import Walk, Walks


class Deadly(Walk):
    """Dies at one step in some, and leaves a file, so that it happens once."""

    def __init__(self, task: Any, folder: str) -> None:
        super().__init__(task)
        self.folder = folder

    def step(self, action: Any) -> Any:
        outcome = super().step(action)
        mark = Path(self.folder) / repr(self.task["drift"])
        if self.folder and self.task["end"] < 0.25 and self.steps == 3 and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return outcome


@dataclass(frozen=True)
class DeadlyWalks(Walks):
    folder: str = ""

    def make_env(self, task: Any) -> gym.Env[Any, Any]:
        return Deadly(task, self.folder)
