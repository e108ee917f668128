"""What the machine refuses: space, permission, memory, outputs, the current folder."""

import errno
import os
import random
import resource
import shutil
from collections.abc import Callable
from pathlib import Path

from children import command
from experiments import Outcome, outcome, undisturbed, words_to_go_on, write_config
from kills import at_operation, brief
from report import Row

_TRAINING = {"updates": 4, "checkpoint_every": 1, "keep_checkpoints": 1}
_ERRORS = (errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EIO, errno.EDQUOT, errno.ESTALE)


def refused_operations(home: Path, every: int, chance: random.Random) -> Row:
    """Let the disk refuse each file operation of a run in turn (or every n-th)."""
    row = Row(
        "the disk refuses one file operation: full, read-only, no permission, broken, over quota, gone",
        "a message with exit code 2, or no harm; the run goes on afterwards to the undisturbed bits",
    )
    right = outcome(undisturbed("RL²", home, **_TRAINING))
    config, run, step = write_config("RL²", home, **_TRAINING), home / "run", 0
    while True:
        step += chance.randint(1, 2 * every - 1)
        number = chance.choice(_ERRORS)
        met = home / "met"
        met.unlink(missing_ok=True)
        _try(
            row,
            home,
            config,
            run,
            right,
            at_operation(run, step, _raiser(number, met)),
            f"operation {step}, {errno.errorcode[number]}",
        )
        if not met.exists():
            break
    return row


def _raiser(number: int, met: Path) -> Callable[[str, str], None]:
    def refuse(event: str, path: str) -> None:
        met.touch()
        raise OSError(number, os.strerror(number), path)

    return refuse


def too_large_files(home: Path, number: int, chance: random.Random) -> Row:
    """Let writes fail in the middle of a file: no file may get longer than a random limit."""
    row = Row(
        "no file may grow beyond a random size", "a message with exit code 2; the run goes on afterwards"
    )
    run = undisturbed("RL²", home, **_TRAINING)
    right = outcome(run)
    longest = max(path.stat().st_size for path in run.rglob("*") if path.is_file())
    config = write_config("RL²", home, **_TRAINING)
    for _ in range(number):
        most = chance.randrange(1, longest)
        _try(row, home, config, home / "run", right, _limit(resource.RLIMIT_FSIZE, most), f"{most} bytes")
    return row


def _limit(kind: int, most: int) -> Callable[[], None]:
    return lambda: resource.setrlimit(kind, (most, resource.getrlimit(kind)[1]))


def _try(
    row: Row,
    home: Path,
    config: Path,
    run: Path,
    right: Outcome,
    prepare: Callable[[], object],
    where: str,
) -> None:
    """Run a training that meets a refusal; then continue it without."""
    shutil.rmtree(run, ignore_errors=True)
    first = command(words_to_go_on(config, run), home, prepare)
    row.count("refusals told" if first.code == 2 else "without harm")
    told = first.code == 0 or (first.code == 2 and "error: " in first.said) or not first.said
    ended = command(words_to_go_on(config, run), home)
    held = told and not first.crashed and ended.code == 0 and outcome(run) == right
    row.check(held, f"{where}: {brief(first)} then {brief(ended)}")


def places_and_outputs(home: Path) -> Row:
    """Train with outputs that take nothing, in a folder that is gone, with too little memory."""
    row = Row(
        "outputs full or closed, current folder gone, memory exhausted",
        "a message, exit code 2; the run goes on",
    )
    right = outcome(undisturbed("RL²", home, **_TRAINING))
    config, run = write_config("RL²", home, **_TRAINING), home / "run"

    def full() -> None:
        os.dup2(os.open("/dev/full", os.O_WRONLY), 1)

    def closed() -> None:
        os.close(1)

    def gone() -> None:
        folder = home / "gone"
        folder.mkdir()
        os.chdir(folder)
        folder.rmdir()

    for where, prepare in (("a full output", full), ("a closed output", closed), ("no folder", gone)):
        _try(row, home, config, run, right, prepare, where)
    _out_of_memory(row, home)
    return row


def _out_of_memory(row: Row, home: Path) -> None:
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    words = [
        "train",
        "rl2_bandit",
        "--run-dir",
        home / "large",
        "training.trials_per_update=300000",
        "device=cpu",
    ]
    for room in (2**24, 2**27):
        shutil.rmtree(home / "large", ignore_errors=True)
        ended = command(words, home, _limit(resource.RLIMIT_AS, size + room))
        row.check(ended.code == 2 and not ended.crashed, f"memory + {room}: {brief(ended)}")
