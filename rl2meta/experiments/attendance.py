"""Which processes are at work on something that several processes and machines share.

Each process holds a lock on a file of its own, which the operating system releases when the process ends,
however it ends. On some network file systems a lock is seen on its own machine alone; therefore a process
of another machine counts as ended only if its file has also been silent for a while.
"""

import os
import socket
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from rl2meta.files import make_folder, writing

_BEAT = 10.0  # seconds between two signs of life
SILENCE = 120.0
"""Seconds without a sign of life after which a process of another machine has ended."""


class Attendance:
    """The list of the processes at work.

    Args:
        folder: one file for each process; it is made if it is not there.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._host = folder, socket.gethostname()
        self._held: dict[str, FileLock] = {}

    @contextmanager
    def attending(self) -> Iterator[str]:
        """Note that this process is at work until the block ends; yield the name that it is noted by.

        Raises:
            UserError: if the file cannot be written or locked.
        """
        name = f"{os.getpid()}-{uuid.uuid4().hex[:8]}@{self._host}"
        path, done = self._folder / name, threading.Event()
        with writing(path):
            make_folder(self._folder)
            lock = FileLock(path)
            lock.acquire(timeout=0)
        self._held[name] = lock
        beats = threading.Thread(target=_beat, args=(path, done), daemon=True)
        beats.start()
        try:
            yield name
        finally:
            done.set()
            beats.join()
            del self._held[name]
            path.unlink(missing_ok=True)
            lock.release()

    def is_present(self, name: str) -> bool:
        """Return whether the process that was noted by a name is still at work."""
        path = self._folder / name
        if name in self._held:
            return True
        if not path.exists():
            return False
        lock = FileLock(path)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return True
        try:
            elsewhere = name.partition("@")[2] != self._host
            present = elsewhere and self._silence(path) < SILENCE
            if not present:
                path.unlink(missing_ok=True)
        finally:
            lock.release()
        return present

    def _silence(self, path: Path) -> float:
        """Return the seconds since the last sign of life, by the clock of the machine that has the files."""
        clock = self._folder / f"clock-{self._host}-{os.getpid()}"
        clock.touch()
        try:
            return clock.stat().st_mtime - path.stat().st_mtime
        finally:
            clock.unlink(missing_ok=True)


def _beat(path: Path, done: threading.Event) -> None:
    while not done.wait(_BEAT):
        with suppress(OSError):  # the file may be gone at the end
            os.utime(path)
