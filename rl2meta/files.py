"""Writes files so that a kill leaves no partial file, and turns a disk's errors into user errors."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rl2meta.errors import UserError

_LEFTOVER = re.compile(r"\..+\.\d+\.tmp")  # the temporary names of write_atomically


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write ``content`` (text as UTF-8) so that ``path`` has the old or the new content, never a part of it.

    Raises:
        OSError: if the file cannot be written; it then still has its old content.
    """
    data = content.encode() if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write_durably(temporary, data)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def is_leftover(path: Path) -> bool:
    """Return whether ``path`` is what a killed ``write_atomically`` left."""
    return _LEFTOVER.fullmatch(path.name) is not None


def remove_leftovers(folder: Path) -> None:
    """Remove what killed calls of ``write_atomically`` left in a folder that only this process writes to."""
    for path in filter(is_leftover, list(folder.iterdir())):
        path.unlink(missing_ok=True)


def write_durably(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path`` and wait until the disk has it."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Wait until the disk has the names in folder ``path``; a rename survives a power cut only after that."""
    if os.name == "nt":  # Windows opens no folders
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an error of the disk (no space, no permission) in the block into a UserError that names ``path``.

    Raises:
        UserError: for any OSError in the block.
    """
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror or error}; free some space, mend the permissions or "
            "choose another place"
        ) from error
