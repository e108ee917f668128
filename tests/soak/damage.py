"""Damage to the files of a run: bits, lengths, zeros, swaps."""

import random
import shutil
from collections.abc import Callable
from pathlib import Path

from children import Ended, command
from experiments import bits, outcome, undisturbed
from report import Row

from rl2meta.errors import UserError
from rl2meta.experiments import checkpoints

Harm = Callable[[bytes, random.Random], bytes]


def _flip(data: bytes, chance: random.Random) -> bytes:
    place = chance.randrange(len(data))
    return data[:place] + bytes([data[place] ^ 1 << chance.randrange(8)]) + data[place + 1 :]


def _cut(data: bytes, chance: random.Random) -> bytes:
    return data[: chance.randrange(len(data))]


def _zeros(data: bytes, chance: random.Random) -> bytes:
    start = chance.randrange(len(data))
    length = min(chance.choice((1, 512, 4096)), len(data) - start)
    return data[:start] + bytes(length) + data[start + length :]


def _swap(data: bytes, chance: random.Random) -> bytes:
    """Exchange two blocks of equal length."""
    length = max(1, len(data) // chance.choice((4, 16, 64)))
    first = chance.randrange(max(1, len(data) // 2 - length + 1))
    second = chance.randrange(first + length, max(first + length + 1, len(data) - length + 1))
    one, other = data[first : first + length], data[second : second + length]
    return data[:first] + other + data[first + length : second] + one + data[second + len(other) :]


def _longer(data: bytes, chance: random.Random) -> bytes:
    return data + chance.randbytes(chance.choice((1, 100)))


HARMS: dict[str, Harm] = {
    "a flipped bit": _flip,
    "cut short": _cut,
    "zeros": _zeros,
    "swapped blocks": _swap,
    "bytes added": _longer,
}


def harm(path: Path, chance: random.Random) -> str | None:
    """Damage a file; return how, or None if it is as before."""
    name, change = chance.choice(list(HARMS.items()))
    before = path.read_bytes()
    if not before:
        return None
    after = change(before, chance)
    path.write_bytes(after)
    return None if after == before else f"{name} in {path.name}"


def damaged_checkpoints(home: Path, number: int, chance: random.Random) -> Row:
    """Damage files of checkpoints: each damage is named, and the newest whole checkpoint is taken."""
    row = Row(
        "damage to files of checkpoints", "it is named, an older one is used; a refusal if none is whole"
    )
    source = undisturbed("RL²", home, keep_checkpoints=3) / "checkpoints"
    names = sorted((path.name for path in source.iterdir()), reverse=True)  # newest first
    whole = {name: bits(checkpoints.load(source / name)) for name in names}
    copy = home / "damaged"
    while row.tried < number:
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(source, copy)
        broken = names[: chance.choice((1, 1, 1, 2, 3))]
        done = [_harm_one(copy / name, source, names, chance) for name in broken]
        if all(done):
            row.check(_told(copy, names[len(broken) :], broken, whole), f"{done} of {broken}")
    return row


def _harm_one(path: Path, source: Path, names: list[str], chance: random.Random) -> str | None:
    file = path / chance.choice((checkpoints.TENSORS, checkpoints.STATE))
    if chance.random() < 0.1:  # the whole file of another checkpoint
        other = source / chance.choice([name for name in names if name != path.name]) / file.name
        shutil.copyfile(other, file)
        return f"{file.name} of {other.parent.name}"
    if chance.random() < 0.05:
        file.unlink()
        return f"{file.name} removed"
    return harm(file, chance)


def _told(copy: Path, left: list[str], broken: list[str], whole: dict[str, dict[str, bytes]]) -> bool:
    said: list[str] = []
    try:
        saved = checkpoints.newest(copy, said.append)
    except UserError as error:
        return not left and "expected a whole checkpoint" in str(error)
    if saved is None or not left:
        return False
    named = all(any(name in line for line in said) for name in broken)
    return named and bits(saved) == whole[left[0]]


COMMANDS: dict[str, list[object]] = {
    "resume": ["train", "--resume", "--run-dir", "RUN"],
    "evaluate": ["evaluate", "RUN"],
    "runs": ["runs", "RUN"],
    "plot": ["plot", "RUN", "--out", "figure.png"],
    "compare": ["compare", "RUN", "OTHER", "--tasks", "20"],
}


def damaged_run_folders(home: Path, number: int, chance: random.Random) -> Row:
    """Damage any other file of a run folder, and use the folder by each command."""
    row = Row(
        "damage to another file of a run folder, then a command",
        "a message and exit code 2, or the right result; no traceback; nothing is overwritten",
    )
    source = _stopped(home)
    right = outcome(home / "undisturbed").tensors
    while row.tried < number:
        run = home / "damaged"
        shutil.rmtree(run, ignore_errors=True)
        (home / "figure.png").unlink(missing_ok=True)
        for path in home.glob("runs"):
            shutil.rmtree(path)
        shutil.copytree(source, run)
        others = [path for path in run.rglob("*") if path.is_file() and "checkpoints" not in path.parts]
        file = chance.choice([path for path in sorted(others) if path.stat().st_size])
        if (how := harm(file, chance)) is None:
            continue
        name, words = chance.choice(list(COMMANDS.items()))
        before = _content(run)
        places = {"RUN": run, "OTHER": home / "undisturbed"}
        ended = command([places.get(str(word), word) for word in words], home)
        held, why = _respected(name, run, before, ended, right)
        row.count("refused" if ended.code else "went on")
        row.check(held, f"{how}, {name}: {why}; exit code {ended.code}: …{ended.said[-300:]}")
    return row


def _stopped(home: Path) -> Path:
    """Return a run that stopped after two thirds of its updates, with an evaluation."""
    undisturbed("RL²", home)  # also writes the config
    run = home / "stopped"
    shutil.rmtree(run, ignore_errors=True)
    command(["train", home / "config.yaml", "--run-dir", run], home, _stop_at(20))
    assert command(["evaluate", run], home).code == 0
    return run


def _stop_at(update: int) -> Callable[[], None]:
    """Return what makes this process ask itself to stop after an update."""

    def prepare() -> None:
        import os
        import signal

        from rl2meta.commands import train

        show = train.Terminal.after_update

        def after_update(self: train.Terminal, run: object, row: dict[str, object]) -> bool:
            if row["update"] == update:
                os.kill(os.getpid(), signal.SIGTERM)
            return show(self, run, row)  # type: ignore[arg-type]

        train.Terminal.after_update = after_update  # type: ignore[assignment,method-assign]

    return prepare


def _content(run: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name != ".lock"}


def _respected(
    name: str, run: Path, before: dict[Path, bytes], ended: Ended, right: dict[str, bytes]
) -> tuple[bool, str]:
    if ended.crashed or ended.stuck or ended.code not in (0, 2):
        return False, "it crashed"
    if name == "resume" and ended.code == 0:
        saved = checkpoints.newest(run / "checkpoints", print)
        return saved is not None and bits(saved) == right, "other weights"
    now = _content(run)
    lost = [path.name for path, data in before.items() if now.get(path) != data]
    return not lost, f"changed {lost}"
