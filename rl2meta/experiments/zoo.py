"""The zoo: trained agents that come with the package. ``zoo:NAME`` stands for the run folder of one.

Their folders are only read: an installed package is no place for results. This imports no torch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rl2meta.errors import UserError
from rl2meta.experiments.yaml_text import parse
from rl2meta.files import read_text, reading

PREFIX = "zoo:"
ZOO = Path(__file__).parents[1] / "zoo"
"""The folder of the package that holds a run folder for each agent."""
RECORD = "entry.yaml"
"""The file of an entry that says how it was trained and chosen."""
_LARGEST = 2**20  # bytes of a record


@dataclass(frozen=True)
class ZooEntry:
    """What the record of a zoo agent says.

    Attributes:
        line: what it is, in one line.
        command: trains the group that it was chosen from.
        trained: the date.
        seed: of its training; of the median score among ``scores``.
        scores: of each seed, ``seed``, and the mean ``return`` and ``regret`` of a trial on the same tasks.
        tasks: number of these held-out tasks.
    """

    line: str
    command: str
    trained: str
    seed: int
    scores: Sequence[Mapping[str, float]]
    tasks: int


def zoo_names(zoo: Path | None = None) -> list[str]:
    """Return the names of the agents in the zoo, or in another folder of that kind."""
    return sorted(path.parent.name for path in (zoo or ZOO).glob(f"[!.]*/{RECORD}"))


def list_zoo() -> dict[str, str]:
    """Return the trained agents of the zoo for ``zoo:NAME``, each with one line."""
    return {name: read_entry(ZOO / name).line for name in zoo_names()}


def read_entry(folder: Path) -> ZooEntry:
    """Return the record in the folder of an entry.

    Raises:
        UserError: if it is damaged.
    """
    path = folder / RECORD
    with reading(path):
        said: dict[str, Any] = parse(read_text(path, _LARGEST), str(path))
    try:
        return ZooEntry(**said)
    except TypeError:
        raise UserError(f"{path}: expected the record of a zoo agent, got {sorted(said)}; {REPAIR}") from None


def located(path: str | Path) -> Path:
    """Return the folder that ``zoo:NAME`` stands for; any other path is returned as it is.

    Raises:
        UserError: if the zoo has no agent of that name; the message suggests one.
    """
    if not str(path).startswith(PREFIX):
        return Path(path)
    name = str(path).removeprefix(PREFIX)
    if name not in (known := zoo_names()):
        from rl2meta.experiments.config import suggestion  # takes a second to load

        raise UserError(
            f"{path}: expected an agent of the zoo, got none of that name{suggestion(name, known)}"
        )
    return ZOO / name


def zoo_name(path: str | Path | None) -> str | None:
    """Return the name of the zoo agent that a path stands for; None if it is any other path."""
    if path is None:
        return None
    if str(path).startswith(PREFIX):
        return str(path).removeprefix(PREFIX)
    whole = Path(path).resolve()
    return whole.name if whole.parent == ZOO.resolve() else None


def said_path(path: Path) -> str:
    """Return a path as text; of a zoo agent, ``zoo:NAME``, which means the same on every machine."""
    name = zoo_name(path)
    return str(path) if name is None else PREFIX + name


def results_of(path: Path, what: str) -> Path:
    """Return where results of a run or a group go: into its folder; of a zoo agent, into the current folder.

    Args:
        path: of the run or the group.
        what: the name of the file or folder with the results.
    """
    name = zoo_name(path)
    return path / what if name is None else Path(f"zoo-{name}-{what}")


def is_in_zoo(path: Path) -> bool:
    """Return whether a path is ``zoo:NAME``, or the zoo's folder or anything in it."""
    return str(path).startswith(PREFIX) or path.resolve().is_relative_to(ZOO.resolve())


def refuse_results_in_zoo(path: Path, option: str) -> None:
    """Refuse to write results to ``zoo:NAME``, which no command would find there, or into the package.

    Raises:
        UserError: names the option.
    """
    if is_in_zoo(path):
        raise UserError(
            f"{option}: expected a place of yours to write to, got {path}, but the zoo is only read; "
            "choose another"
        )


def refuse_zoo(path: Path) -> None:
    """Refuse to write into the folder of a zoo agent.

    Raises:
        UserError: says how to train a copy of it.
    """
    name = zoo_name(path)
    if is_in_zoo(path):
        which = name if name in zoo_names() else "NAME"
        raise UserError(
            f"{said_path(path)}: expected a folder of yours to write into, got the zoo, whose agents are "
            "only read and have no state of an optimiser; to train one further, begin with its weights: "
            f"rl2meta train CONFIG --from {PREFIX}{which} --run-dir runs/MINE"
        )


def damaged(path: Path, error: UserError) -> UserError:
    """Return an error about the files of a run, which for a zoo agent says how to get them back."""
    name = zoo_name(path)
    return error if name is None else UserError(f"{PREFIX}{name} is damaged: {error}. {REPAIR}")


REPAIR = "Install rl2meta again: pip install --force-reinstall --no-deps rl2meta"
