"""Kills at random moments, and before every file operation."""

import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from children import Child, Ended, command
from experiments import KINDS, Outcome, differences, outcome, undisturbed, words_to_go_on, write_config
from report import Row

WATCHED = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree", "os.listdir", "os.link"}
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)


def random_kills(home: Path, number: int, chance: random.Random) -> Row:
    """Kill runs of every kind at random moments, some of them twice, and let each go on to its end."""
    row = Row(
        "a run killed at a random moment", "ends with the undisturbed bits; no process and no file is left"
    )
    for turn, name in enumerate(list(KINDS)[:number]):
        folder = home / f"kind{turn}"
        begun = time.monotonic()
        right = outcome(undisturbed(name, folder))
        lasted = time.monotonic() - begun
        for _ in range(max(1, number // len(KINDS))):
            _kill_once(row, name, folder, right, lasted, chance)
    return row


def _kill_once(
    row: Row, name: str, folder: Path, right: Outcome, lasted: float, chance: random.Random
) -> None:
    config, run = write_config(name, folder), folder / "run"
    shutil.rmtree(run, ignore_errors=True)
    told = []
    slow = chance.random() < 0.3
    if slow:
        row.count("runs on a slow disk")
    for _ in range(chance.choice((1, 1, 2, 3))):  # the second kill hits a run that goes on
        child = Child(words_to_go_on(config, run), folder, _slowly(run, chance.random()) if slow else None)
        time.sleep(chance.uniform(0, lasted * (2 if slow else 1)))
        number = chance.choice(SIGNALS)
        child.kill(number)
        if chance.random() < 0.3:  # twice in a row: the second one ends it at once
            child.kill(chance.choice(SIGNALS))
        told.append(number.name)
        row.count("kills")
        _check_end(row, child.end(), f"{name}, {'+'.join(told)}")
    ended = command(words_to_go_on(config, run), folder)
    other = differences(outcome(run), right) if ended.code == 0 else "not finished"
    row.check(not other and not ended.left, f"{name}, {'+'.join(told)}: {other}; {brief(ended)}")


def _slowly(run: Path, seed: float) -> Callable[[], None]:
    """Return what makes each file operation below ``run`` take up to 40 ms, as on a busy network disk."""

    def prepare() -> None:
        chance = random.Random(seed)

        def hook(event: str, arguments: tuple[object, ...]) -> None:
            if event in WATCHED and str(run) in str(arguments[0]):
                time.sleep(chance.uniform(0, 0.04))

        sys.addaudithook(hook)

    return prepare


def _check_end(row: Row, ended: Ended, where: str) -> None:
    """A killed command leaves no process, is not stuck, and prints no traceback."""
    if ended.left or ended.stuck or ended.crashed:
        row.failures.append(f"{where}: left {ended.left}, stuck {ended.stuck}: {brief(ended)}")


def brief(ended: Ended) -> str:
    """Return how a command ended, and the end of what it said."""
    return f"exit code {ended.code}: …{ended.said[-300:]}"


def kills_at_file_operations(home: Path, every: int, chance: random.Random) -> Row:
    """Kill a short run before each of its file operations (or every n-th), and the next process, too."""
    row = Row(
        "a kill before every file operation of a run",
        "the run ends with the undisturbed bits; no file is left",
    )
    training = {"updates": 3, "checkpoint_every": 1, "keep_checkpoints": 1}
    right = outcome(undisturbed("RL²", home, **training))
    config, run, step = write_config("RL²", home, **training), home / "run", chance.randrange(every)
    while True:
        step += every
        shutil.rmtree(run, ignore_errors=True)
        first = command(words_to_go_on(config, run), home, at_operation(run, step, _die))
        if first.code is not None:
            break
        row.count("kills")
        if (
            command(words_to_go_on(config, run), home, at_operation(run, chance.randrange(1, 60), _die)).code
            is None
        ):
            row.count("kills")
        ended = command(words_to_go_on(config, run), home)
        other = differences(outcome(run), right) if ended.code == 0 else "not finished"
        row.check(not other, f"operation {step}: {other}; {brief(ended)}")
    return row


def at_operation(run: Path, step: int, act: Callable[[str, str], None]) -> Callable[[], None]:
    """Return what makes this process ``act`` before its ``step``-th file operation below ``run``."""

    def prepare() -> None:
        steps = 0

        def hook(event: str, arguments: tuple[object, ...]) -> None:
            nonlocal steps
            if event in WATCHED and str(run) in str(arguments[0]):
                steps += 1
                if steps == step:
                    act(event, str(arguments[0]))

        sys.addaudithook(hook)

    return prepare


def _die(event: str, path: str) -> None:
    os.kill(os.getpid(), signal.SIGKILL)
