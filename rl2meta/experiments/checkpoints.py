"""The checkpoints of a run: whole after a kill at any moment, and never trusted when damaged."""

import itertools
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import torch

from rl2meta.errors import UserError
from rl2meta.experiments.checkpoint_files import (
    REPLACED,
    STATE,
    TENSORS,
    Checkpoint,
    CorruptCheckpoint,
    encode,
    load,
    name_of,
    read,
)
from rl2meta.files import make_folder, reading, sync_folder, write_durably, writing

__all__ = [
    "STATE",
    "TENSORS",
    "Checkpoint",
    "CorruptCheckpoint",
    "load",
    "newest",
    "only_first",
    "prune",
    "save",
    "tidy",
]
_NAME = re.compile(r"update_([0-9]{8,})(\.replaced)?")
_TRIES = 1000  # a writer that replaces its checkpoints faster than they are read is no writer of ours


def save(folder: Path, checkpoint: Checkpoint) -> Path:
    """Write ``checkpoint`` into a new folder inside ``folder`` and return its path.

    After a kill or a power cut at any moment there is either the whole checkpoint or leftovers, which
    ``newest`` ignores and the next ``save`` removes. A different checkpoint of the same update is replaced,
    and it is removed only after the new one is in place. Only one process may save at a time
    (``RunFolder.locked``).

    Raises:
        ValueError: if the update is negative or the state holds values that JSON cannot give back.
        UserError: if it cannot be written to the disk; all earlier checkpoints are then still there.
    """
    target = folder / name_of(checkpoint.update)
    files = encode(checkpoint)
    with writing(target):
        make_folder(folder)
        _clean(folder)
        if not _holds(target, files):
            _put(target, files)
    return target


def newest(
    folder: Path, warn: Callable[[str], None], device: torch.device | str = "cpu"
) -> Checkpoint | None:
    """Return the newest undamaged checkpoint in ``folder``, or None if none was ever saved.

    Args:
        folder: the folder that ``save`` wrote into.
        warn: called with a message for each damaged checkpoint that is skipped.
        device: the device for the tensors.

    Raises:
        UserError: if there are checkpoints but all are damaged (a fresh start would hide the loss), or the
            folder cannot be read.
    """
    said: set[str] = set()
    for _ in range(_TRIES):
        paths = _found(folder)
        if not paths:
            return None
        for path in paths:
            loaded = _loaded(path, device)
            if isinstance(loaded, Checkpoint):
                return loaded
            if loaded is None:
                break  # while it was read, the run removed it, because there is a newer one
            if loaded not in said:
                warn(f"{loaded}; looking for an older checkpoint")
                said.add(loaded)
        else:
            raise UserError(
                f"expected a whole checkpoint in {folder}, got {len(paths)} damaged; restore one from a copy "
                "or start again in another --run-dir"
            )
    raise UserError(f"expected checkpoints in {folder}, got names that change all the time; try again later")


def prune(folder: Path, keep: int) -> None:
    """Remove all checkpoints that are older than the ``keep`` newest undamaged ones.

    Damaged checkpoints among the newest are not removed: they are evidence, and a resumed run replaces them.

    Raises:
        ValueError: if ``keep`` < 1.
        UserError: if the disk does not allow it.
    """
    if keep < 1:
        raise ValueError(f"expected to keep at least 1 checkpoint, got keep={keep}")
    found = _found(folder)
    paths = iter(found)
    whole = (path for path in paths if _is_whole(path))
    if keep > len(found) or next(itertools.islice(whole, keep - 1, None), None) is None:
        return  # there are fewer than ``keep`` undamaged ones
    with writing(folder):
        for path in paths:
            _remove(path)


def only_first(folder: Path) -> bool:
    """Return whether a folder holds nothing but the checkpoint of update 0, or less."""
    return folder.is_dir() and all(path.name.startswith(name_of(0)) for path in folder.iterdir())


def tidy(folder: Path) -> None:
    """Remove what a killed ``save`` or ``prune`` left; only the process that holds the run's lock may.

    Raises:
        UserError: if the disk does not allow it.
    """
    with writing(folder):
        _clean(folder)


def _loaded(path: Path, device: torch.device | str) -> Checkpoint | str | None:
    """Return a checkpoint, or what is wrong with it, or None if it was removed or replaced meanwhile."""
    before = _inode(path)
    try:
        return load(path, device)
    except CorruptCheckpoint as error:
        return None if before is None or before != _inode(path) else str(error)


def _holds(target: Path, files: dict[str, bytes]) -> bool:
    try:
        return all(read(target, name) == data for name, data in files.items())
    except CorruptCheckpoint:
        return False


def _put(target: Path, files: dict[str, bytes]) -> None:
    """Write to a temporary folder beside ``target`` and rename it; an old target is renamed first."""
    temporary, replaced = _beside(target, ".tmp"), _beside(target, REPLACED)
    try:
        temporary.mkdir()
        for name, data in files.items():
            write_durably(temporary / name, data)
        sync_folder(temporary)
        if os.path.lexists(target):
            target.rename(replaced)
        temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    sync_folder(target.parent)
    if os.path.lexists(replaced):
        _remove(replaced)


def _clean(folder: Path) -> None:
    """Remove what a killed ``save`` or ``prune`` left, and restore a checkpoint that was being replaced."""
    for path in folder.glob("update_*.tmp"):
        _delete(path)
    for replaced in folder.glob("update_*.replaced"):
        target = replaced.with_suffix("")
        if target.exists():
            _remove(replaced)
        else:
            replaced.rename(target)


def _remove(path: Path) -> None:
    # Renamed first: a kill during rmtree would otherwise leave what looks like a damaged checkpoint.
    temporary = _beside(path, ".removed.tmp")
    path.rename(temporary)
    _delete(temporary)


def _delete(path: Path) -> None:
    """Remove a folder with all that it holds, or the file or link that is in its place."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _beside(path: Path, ending: str) -> Path:
    return path.with_name(path.name + ending)


def _found(folder: Path) -> list[Path]:
    """Return the paths that look like checkpoints, newest first; a replaced one follows its replacement."""
    with reading(folder):
        try:
            names = os.listdir(folder)
        except FileNotFoundError:
            return []
    matches = [(match, folder / name) for name in names if (match := _NAME.fullmatch(name))]
    matches.sort(key=lambda pair: (-int(pair[0][1]), pair[0][2] is not None))
    return [path for _, path in matches]


def _inode(path: Path) -> int | None:
    """Return the number by which the disk knows what is at ``path`` now; None if there is nothing."""
    with reading(path):
        try:
            return path.lstat().st_ino
        except FileNotFoundError:
            return None


def _is_whole(path: Path) -> bool:
    try:
        load(path)
    except CorruptCheckpoint:
        return False
    return True
