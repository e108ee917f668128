"""The folder of a run on disk: its config, metrics, checkpoints and evaluations."""

import itertools
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from filelock import FileLock, Timeout

from rl2meta.errors import UserError
from rl2meta.experiments import checkpoints, trust
from rl2meta.experiments.metrics import MetricsFile
from rl2meta.experiments.zoo import located, refuse_results_in_zoo, refuse_zoo
from rl2meta.files import (
    is_leftover,
    make_folder,
    read_text,
    reading,
    remove_leftovers,
    write_atomically,
    writing,
)

CONFIG = "config.yaml"
"""The file with the config that a run was started with."""
LARGEST_CONFIG = 4 * 2**20
"""The largest size of a config in bytes; a longer text is no config."""
LOCK = ".lock"
"""The file in a folder that a process locks while it writes there."""


@dataclass(frozen=True)
class RunFolder:
    """The folder of one run; ``create`` makes a new one and ``open`` returns an existing one.

    Attributes:
        path: the folder; it exists.
    """

    path: Path

    @classmethod
    def create(
        cls, path: Path, config_text: str, prepare: Callable[[Self], object] = lambda folder: None
    ) -> Self:
        """Make a run folder at ``path``, and its parents, with ``config_text`` as its config.yaml.

        If two processes create the same folder at the same time, at most one of them succeeds. config.yaml
        comes last: a folder that has one holds everything that a run needs, and what a killed start left in a
        folder without one is removed by the next start.

        Args:
            path: of the folder.
            config_text: YAML.
            prepare: writes what must be there when config.yaml is, such as the first checkpoint.

        Raises:
            UserError: if ``path`` is a file or a folder that is not empty, or cannot be written.
        """
        refuse_zoo(path)
        _refuse_used(path)
        folder = cls(path)
        with writing(path):
            make_folder(path)
        with folder.locked():
            _refuse_used(path)  # again: another process may have created it meanwhile
            with writing(path):
                prepare(folder)
                trust.stamp(path, config_text)
                write_atomically(folder.config_path, config_text)
        return folder

    @classmethod
    def open(cls, path: Path) -> Self:
        """Return the run folder at ``path``, which may be ``zoo:NAME``.

        Raises:
            UserError: if there is no folder, or it holds no config.yaml.
        """
        path = located(path)
        folder = cls(path)
        with writing(path):
            found = path.is_dir()
        if not found:
            raise UserError(
                f"expected a run folder at {path}, got {_kind(path)}; give one that training wrote"
            )
        with reading(path):
            has_config = folder.config_path.exists()
        if not has_config:
            raise UserError(
                f"expected a run folder, got {path} without a config.yaml; give the folder that "
                "`rl2meta train` wrote"
            )
        return folder

    @property
    def config_path(self) -> Path:
        """The config that the run was started with."""
        return self.path / CONFIG

    @property
    def metrics_path(self) -> Path:
        """The file of metrics: one JSON object per line, one line per update; beside it metrics.digests."""
        return self.path / "metrics.jsonl"

    @property
    def checkpoints_path(self) -> Path:
        """The folder of the checkpoints; see ``rl2meta.experiments.checkpoints``."""
        return self.path / "checkpoints"

    @property
    def tensorboard_path(self) -> Path:
        """The log folder for TensorBoard."""
        return self.path / "tensorboard"

    def config_text(self) -> str:
        """Return the text of config.yaml.

        Raises:
            UserError: if it cannot be read.
        """
        with reading(self.config_path):
            return read_text(self.config_path, LARGEST_CONFIG)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Prevent other processes from writing to the run until the block or this process ends.

        What killed processes left half written is removed first.

        Raises:
            UserError: if another process is writing to the run; it does not wait. Also for a zoo agent.
        """
        refuse_zoo(self.path)
        taken = f"another process is writing to {self.path}; wait until it ends or choose another --run-dir"
        with locked(self.path, taken):
            with writing(self.path):
                remove_leftovers(self.path)
            checkpoints.tidy(self.checkpoints_path)
            yield

    def append_metrics(self, row: Mapping[str, Any]) -> None:
        """Add one line to the metrics; when this returns, the operating system has it.

        Args:
            row: values that JSON can hold, with the number of the update under "update".

        Raises:
            ValueError: if "update" is missing or a number is not finite (JSON cannot represent it).
            UserError: if the line cannot be written.
        """
        self._metrics.append(row)

    def truncate_metrics(self, update: int) -> int:
        """Remove the rows after ``update`` atomically; return the number of rows that remain.

        A resumed run calls it with the update of its checkpoint. It also removes an incomplete last line,
        which a kill may have left, and writes digests of the rows that remain.

        Raises:
            UserError: if one of them is damaged, or the files cannot be written.
        """
        return self._metrics.truncate(update)

    def read_metrics(self) -> list[dict[str, Any]]:
        """Return the rows in the order in which they were appended, without an incomplete last line.

        Raises:
            UserError: if a row is damaged; see ``rl2meta.experiments.metrics``.
        """
        return self._metrics.read()

    @contextmanager
    def new_evaluation_folder(self, out: Path | None) -> Iterator[Path]:
        """Make a folder for one evaluation, for this process only; remove it if it stays empty.

        Args:
            out: the path of the folder; None: ``evaluation``, ``evaluation_2``, ... inside the run folder.

        Raises:
            UserError: if ``out`` exists or cannot be made.
        """
        with new_folder(self.path / "evaluation", out) as folder:
            yield folder

    @property
    def _metrics(self) -> MetricsFile:
        return MetricsFile(self.metrics_path)


@contextmanager
def locked(path: Path, taken: str, seconds: float = 0.0) -> Iterator[None]:
    """Hold the lock of a folder in the block.

    Raises:
        UserError: with the text ``taken``, if another process holds it and keeps it for ``seconds``.
    """
    lock = FileLock(path / LOCK, timeout=seconds)
    with writing(path):
        try:
            lock.acquire()
        except Timeout:
            raise UserError(taken) from None
    try:
        yield
    finally:
        lock.release()


def has_run(path: Path) -> bool:
    """Return whether a folder holds a run."""
    return (path / CONFIG).exists()


@contextmanager
def new_folder(default: Path, out: Path | None) -> Iterator[Path]:
    """Make a folder for results, for this process only; remove it if it stays empty.

    Args:
        default: the path if ``out`` is None; if it exists, a number is added, from _2 on.
        out: the path of the folder, or None.

    Raises:
        UserError: if ``out`` exists or is in the zoo, or the folder cannot be made.
    """
    if out is not None:
        refuse_results_in_zoo(out, "--out")
    folder = _next_folder(default) if out is None else _new_folder(out)
    try:
        yield folder
    finally:
        if not any(folder.iterdir()):
            folder.rmdir()


def _next_folder(path: Path) -> Path:
    folder = path
    with writing(folder):
        for number in itertools.count(2):
            try:
                folder.mkdir()
                break
            except FileExistsError:
                folder = path.with_name(f"{path.name}_{number}")
    return folder


def _new_folder(path: Path) -> Path:
    try:
        with writing(path):
            make_folder(path.parent)
            path.mkdir()
    except UserError as error:
        if isinstance(error.__cause__, FileExistsError):
            raise UserError(
                f"--out: expected a new folder, got {_kind(path)} at {path}; choose another"
            ) from None
        raise
    return path


def is_of_a_run(path: Path) -> bool:
    """Return whether a file is the config.yaml of a run; in the current folder it may be the user's own."""
    others = (LOCK, "checkpoints", "metrics.jsonl", "tensorboard")
    if path.name != CONFIG or not os.path.isfile(path):
        return False
    return path.parent.resolve() != Path.cwd() or any((path.parent / name).exists() for name in others)


def _is_used(path: Path) -> bool:
    """Return whether ``path`` is a file, or a folder that holds anything but what a killed start leaves."""
    with writing(path):
        if not path.is_dir():
            return path.exists()
        return not all(map(_is_of_a_start, path.iterdir()))


def _is_of_a_start(entry: Path) -> bool:
    """Return whether ``create`` makes an entry of a run folder before it writes config.yaml."""
    if entry.name == "checkpoints":
        return checkpoints.only_first(entry)
    return entry.name in (LOCK, trust.STAMP) or is_leftover(entry)


def _refuse_used(path: Path) -> None:
    if _is_used(path):
        raise UserError(
            f"run folder {path} is already in use ({_kind(path)}); choose another --run-dir or continue it "
            "with --resume"
        )


def _kind(path: Path) -> str:
    if path.is_dir():
        return "a folder with something in it" if _is_used(path) else "an empty folder"
    return "a file" if path.exists() else "nothing"
