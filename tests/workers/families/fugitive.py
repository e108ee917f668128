"""Walks whose programs run away: into sessions of their own, and from their parents."""

import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
from walks import Walk, Walks

DAEMON = "setsid sleep 1000 > /dev/null 2>&1 & echo $!"  # its parent ends at once


class Fugitive(Walk):
    """Starts a program in a session of its own, and a daemon, and notes their numbers as names of files."""

    def __init__(self, task: Any, folder: str) -> None:
        super().__init__(task)
        self.program = subprocess.Popen(["sleep", "1000"], start_new_session=True)
        daemon = subprocess.run(["sh", "-c", DAEMON], stdout=subprocess.PIPE, text=True, check=True)
        for number in (self.program.pid, int(daemon.stdout)):
            (Path(folder) / str(number)).touch()


@dataclass(frozen=True)
class Fugitives(Walks):
    folder: str = ""

    def make_env(self, task: Any) -> gym.Env[Any, Any]:
        return Fugitive(task, self.folder)
