"""Writes files so that a kill leaves no part of one, reads what may be no file, says what a disk refuses."""

import errno
import math
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rl2meta.errors import UserError
from rl2meta.memory import available

_LEFTOVER = re.compile(r"\..+\.\d+\.tmp")  # the temporary names of write_atomically
_KINDS = {stat.S_IFIFO: "a FIFO", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}
_LITTLE = 2**24  # bytes; whoever needs no more is not asked whether there is so much memory


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


def append(path: Path, data: bytes) -> None:
    """Add ``data`` to the end of a file; unlike a file object, it never waits for a FIFO, and it is faster.

    Raises:
        OSError: if it cannot be written; a part of it may be there.
    """
    binary = getattr(os, "O_BINARY", 0)  # on Windows
    descriptor = _open_at_once(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | binary)
    try:
        while data:
            data = data[os.write(descriptor, data) :]
    finally:
        os.close(descriptor)


def make_folder(path: Path) -> None:
    """Make a folder and its parents, unless they are there, and wait until the disk has their names.

    Raises:
        OSError: if one of them cannot be made.
    """
    new = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in reversed(new):
        sync_folder(folder.parent)


def sync_folder(path: Path) -> None:
    """Wait until the disk has the names in folder ``path``; a rename survives a power cut only after that."""
    if os.name == "nt":  # Windows opens no folders
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_file(path: Path, most: float = math.inf, times: int = 1) -> bytes:
    """Return the content of a file, which may be another one than this program wrote.

    Unlike ``Path.read_bytes`` it never waits for a FIFO or a device, and never begins to read what does not
    fit into the memory.

    Args:
        path: of the file, or of a link to it.
        most: the largest size in bytes.
        times: the memory that the caller needs for the content in all its forms, in multiples of its size.

    Raises:
        OSError: if it cannot be read, is no regular file, or is too large; its ``strerror`` says which.
    """
    with open(path, "rb", opener=_open_at_once) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            kind = _KINDS.get(stat.S_IFMT(status.st_mode), "something else")
            raise OSError(errno.EINVAL, f"expected a file, got {kind}", str(path))
        size = status.st_size
        if size > most:
            raise OSError(errno.EFBIG, f"expected at most {most:,.0f} bytes, got {size:,}", str(path))
        try:
            if times * size > _LITTLE and (room := available()) is not None and times * size > room:
                raise MemoryError
            return file.read(size)
        except MemoryError:
            said = f"its {size:,} bytes are too large for the memory"
            raise OSError(errno.ENOMEM, said, str(path)) from None


def read_text(path: Path, most: float = math.inf, times: int = 1) -> str:
    """Return the content of a text file in UTF-8, with newlines as line ends; otherwise as ``read_file``.

    Raises:
        OSError: as in ``read_file``.
        UnicodeDecodeError: if it is not UTF-8.
    """
    return read_file(path, most, times).decode().replace("\r\n", "\n").replace("\r", "\n")


def _open_at_once(path: str | Path, flags: int) -> int:
    return os.open(
        path, flags | getattr(os, "O_NONBLOCK", 0), 0o666
    )  # Windows has no such flag, and no FIFOs


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn an error of the disk (no permission, a FIFO) in the block into a UserError that names ``path``.

    Raises:
        UserError: for any OSError in the block, and for text that is not UTF-8.
    """
    try:
        yield
    except (OSError, UnicodeDecodeError) as error:
        said = error.strerror or error if isinstance(error, OSError) else error
        raise UserError(
            f"cannot read {path}: {said}; restore it from a copy, or mend the permissions"
        ) from error


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
