"""Several ranks: the bits of one process for any number of them, and ranks that are killed."""

import os
import random
import shutil
import signal
import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from children import Child, Ended
from experiments import Outcome, differences, outcome, undisturbed, words_to_go_on, write_config
from kills import brief
from report import Row

_KINDS = ("RL²", "MAML-TRPO", "MAML regression")
_TRAINING = {"updates": 20, "trials_per_update": 16, "shards": 8}
_SHORTER = {**_TRAINING, "updates": 10, "trials_per_update": 8}
_SECONDS = 15  # that a rank waits for the others, such as one that was killed before it could join


def start(size: int, words: Sequence[object], folder: Path) -> list[Child]:
    """Start the ranks of one command as ``torchrun`` would; each has a folder of its own."""
    port = _free_port()
    places = [folder / f"rank{number}" for number in range(size)]
    for place in places:
        place.mkdir(exist_ok=True)
    return [Child(words, place, _is_rank(number, size, port)) for number, place in enumerate(places)]


def end(ranks: Sequence[Child]) -> list[Ended]:
    """Wait for the end of all ranks."""
    return [rank.end() for rank in ranks]


def _is_rank(number: int, size: int, port: int) -> Callable[[], None]:
    facts = {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": size}
    facts |= {"MASTER_ADDR": "localhost", "MASTER_PORT": port, "RANK_TIMEOUT": _SECONDS}
    return lambda: os.environ.update({name: str(value) for name, value in facts.items()})


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port: int = free.getsockname()[1]
    return port


def numbers_of_ranks(home: Path) -> Row:
    """Train runs of 8 shards on several ranks; compare them with one process."""
    row = Row(
        "a run of 8 shards on 2, 4 or 8 ranks", "weights and all rows of metrics have the bits of one process"
    )
    for turn, name in enumerate(_KINDS):
        folder = home / f"kind{turn}"
        right = outcome(undisturbed(name, folder, **_TRAINING))
        for size in (2, 4, 8):
            shutil.rmtree(folder / "run", ignore_errors=True)
            words = words_to_go_on(write_config(name, folder, **_TRAINING), folder / "run")
            row.check(*_finished(end(start(size, words, folder)), folder, right, f"{name}, {size} ranks"))
            row.count(f"on {size} ranks")
    return row


def killed_ranks(home: Path, number: int, chance: random.Random) -> Row:
    """Kill one of several ranks at a random moment, some runs twice; go on with any number of ranks."""
    row = Row(
        "one rank of 2, 4 or 8 killed at a random moment; the run goes on, with any number of ranks",
        "the other ranks end with a message and exit code 2; the run ends with the undisturbed bits; no "
        "process and no file is left",
    )
    for turn, name in enumerate(_KINDS[:2]):
        folder = home / f"kind{turn}"
        right = outcome(undisturbed(name, folder, **_SHORTER))
        for _ in range(max(1, number // 2)):
            _kill_ranks_of_a_run(row, name, folder, right, chance)
    return row


def _kill_ranks_of_a_run(row: Row, name: str, folder: Path, right: Outcome, chance: random.Random) -> None:
    config, run = write_config(name, folder, **_SHORTER), folder / "run"
    shutil.rmtree(run, ignore_errors=True)
    told = []
    for _ in range(chance.choice((1, 1, 2))):
        size, begun = chance.choice((2, 2, 4, 8)), time.monotonic()
        ranks, killed = start(size, words_to_go_on(config, run), folder), chance.randrange(size)
        time.sleep(chance.uniform(0, 1 + 0.5 * size))
        ranks[killed].kill(signal.SIGKILL)
        told.append(f"rank {killed} of {size} after {time.monotonic() - begun:.2f} s")
        row.count("kills")
        for each in (ended := end(ranks)):
            if each.left or each.stuck or each.crashed:
                row.failures.append(f"{name}, {told}: left {each.left}, stuck {each.stuck}: {brief(each)}")
        if sum(each.code == 2 for each in ended) == size - 1:
            row.count("told by all others")
    ended = end(start(chance.choice((1, 2, 4)), words_to_go_on(config, run), folder))
    row.check(*_finished(ended, folder, right, f"{name}, {told}"))


def _finished(ended: Sequence[Ended], folder: Path, right: Outcome, where: str) -> tuple[bool, str]:
    """Return whether all ranks ended well with the right outcome; and what to say if not."""
    well = all(each.code == 0 and not each.left for each in ended)
    other = differences(outcome(folder / "run"), right) if well else "not finished"
    return well and not other, f"{where}: {other}; {'; '.join(map(brief, ended))}"
