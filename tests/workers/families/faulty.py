"""Walks that go wrong in a worker process: at one point, so many times, counted by files."""

import contextlib
import ctypes
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from walks import Walk, Walks


class Panic(BaseException):
    """What no ``except Exception`` catches, such as those of extensions in Rust."""


class Wordless(Exception):
    """What cannot even be printed."""

    def __str__(self) -> str:
        raise RuntimeError


def raised(how: str) -> BaseException | None:
    long = "first words " + "x" * 10**7 + " last words"
    return {
        "raise": ValueError("no luck"),
        "raise anew": ValueError(f"no luck with {time.time_ns()}"),  # never the same words
        "raise at length": ValueError(long),
        "raise without words": Wordless(),
        "panic": Panic("no hope"),
        "exit": SystemExit("enough"),
        "exit at length": SystemExit(long),
    }.get(how)


def go_wrong(how: str) -> None:
    if error := raised(how):
        raise error
    if how == "_exit":
        os._exit(3)
    if how == "hang":
        time.sleep(1000)
    if how == "hang in C":  # which keeps the lock that every other thread of Python needs
        ctypes.PyDLL(None).usleep(100_000_000)
    if how == "orphan" and os.fork() == 0:
        time.sleep(1000)
    if how in ("kill", "orphan"):
        os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError(how)


@dataclass(frozen=True)
class FaultyWalks(Walks):
    """One lane goes wrong ``where`` the trial has had ``at`` steps, the first ``times`` times."""

    folder: str = ""
    how: str = "raise"
    where: str = "step"
    lane: int = 1
    at: int = 2
    times: int = 1
    in_main: bool = False
    main: int = field(default_factory=os.getpid)

    def sample(self, rng: np.random.Generator, split: str) -> dict[str, Any]:
        return {**super().sample(rng, split), "lane": -1}

    def make_env(self, task: Any) -> gym.Env[Any, Any]:
        self.trouble("make_env", task, self.at)
        return FaultyWalk(task, self)

    def trouble(self, where: str, task: Any, steps: int) -> None:
        if (where, task["lane"], steps) == (self.where, self.lane, self.at) and self.due():
            go_wrong(self.how)

    def due(self) -> bool:
        """Whether it has not happened so often in worker processes yet; counts it."""
        if (os.getpid() == self.main and not self.in_main) or not os.path.isdir(self.folder):
            return False
        for number in range(self.times):
            with contextlib.suppress(FileExistsError):
                (Path(self.folder) / str(number)).touch(exist_ok=False)
                return True
        return False


class FaultyWalk(Walk):
    def __init__(self, task: Any, family: FaultyWalks) -> None:
        super().__init__(task)
        self.family = family

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.family.trouble("reset", self.task, self.steps)
        return super().reset(seed=seed)

    def step(self, action: Any) -> Any:
        self.family.trouble("step", self.task, self.steps)
        return super().step(action)

    def close(self) -> None:
        self.family.trouble("close", self.task, self.family.at)


class RetreatingWalks(FaultyWalks):
    """Dies at a step, and then while it lives through the trial again, one step earlier each time."""

    def trouble(self, where: str, task: Any, steps: int) -> None:
        happened = len(list(Path(self.folder).iterdir()))
        if where == "step" and task["lane"] == self.lane and steps == self.at - happened and self.due():
            go_wrong(self.how)


class Tired(Walk):
    """Fails as long as a file says so, at another step each time."""

    def __init__(self, task: Any, family: "TiredWalks") -> None:
        super().__init__(task)
        self.family = family

    def step(self, action: Any) -> Any:
        counted = Path(self.family.folder) / "count"
        if self.family.tired() and self.steps == 3 - len(counted.read_text()) % 3:
            counted.write_text(counted.read_text() + "x")
            raise ValueError("tired")
        return super().step(action)


@dataclass(frozen=True)
class TiredWalks(Walks):
    """Walks that fail once a training has done ``updates`` updates, unless a file ``mended`` is there.

    ``metrics`` is the file that the training writes.
    """

    folder: str = ""
    metrics: str = ""
    updates: int = 2

    def make_env(self, task: Any) -> gym.Env[Any, Any]:
        return Tired(task, self)

    def tired(self) -> bool:
        if (Path(self.folder) / "mended").exists() or not os.path.exists(self.metrics):
            return False
        return len(Path(self.metrics).read_text().splitlines()) >= self.updates


class Clocked(Walk):
    """Luck from elsewhere than the seed."""

    def _observation(self) -> Any:
        return np.array([self.place, int.from_bytes(os.urandom(4)), time.time()])


class ClockedWalks(Walks):
    def make_env(self, task: Any) -> gym.Env[Any, Any]:
        return Clocked(task)


class Parent(Walk):
    """Starts programs of its own, and ends them in its own way."""

    def __init__(self, task: Any, family: "Parents") -> None:
        super().__init__(task)
        here = os.getpid() == family.main  # where the family is only looked at
        self.family, self.children = family, [] if here else [subprocess.Popen(["sleep", "1000"])]
        if not here:
            self.children.append(multiprocessing.get_context("fork").Process(target=time.sleep, args=(1000,)))
            self.children[-1].start()

    def close(self) -> None:
        for child in self.children if self.family.polite else ():
            child.terminate()
            (child.wait if isinstance(child, subprocess.Popen) else child.join)()


@dataclass(frozen=True)
class Parents(Walks):
    polite: bool = False
    main: int = field(default_factory=os.getpid)

    def make_env(self, task: Any) -> gym.Env[Any, Any]:
        return Parent(task, self)


class Chatty(Walk):
    """Prints, asks, and lets a thread run for ever; observes what it was answered."""

    def _observation(self) -> Any:
        print("a walk goes on")
        if self.steps == 1:
            threading.Thread(target=time.sleep, args=(1000,)).start()
        return np.array([len(sys.stdin.read()), len(os.read(0, 10)), 0.0])


@dataclass(frozen=True)
class ChattyWalks(Walks):
    main: int = field(default_factory=os.getpid)

    def make_env(self, task: Any) -> gym.Env[Any, Any]:
        return (Walk if os.getpid() == self.main else Chatty)(task)
