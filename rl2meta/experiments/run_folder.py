"""The folder of a run on disk: its config, metrics, checkpoints and evaluations."""

import itertools
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

from filelock import FileLock, Timeout

from rl2meta.errors import UserError
from rl2meta.experiments import checkpoints, trust
from rl2meta.files import is_leftover, remove_leftovers, write_atomically, writing

CONFIG = "config.yaml"
"""The file with the config that a run was started with."""
_LOCK = ".lock"


class _Line(NamedTuple):
    """One line of the metrics: its text and its parsed content."""

    text: str
    row: dict[str, Any]


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
        _refuse_used(path)
        folder = cls(path)
        with writing(path):
            path.mkdir(parents=True, exist_ok=True)
        with folder.locked():
            _refuse_used(path)  # again: another process may have created it meanwhile
            with writing(path):
                prepare(folder)
                trust.stamp(path, config_text)
                write_atomically(folder.config_path, config_text)
        return folder

    @classmethod
    def open(cls, path: Path) -> Self:
        """Return the run folder at ``path``.

        Raises:
            UserError: if there is no folder, or it holds no config.yaml.
        """
        folder = cls(path)
        with writing(path):
            found = path.is_dir()
        if not found:
            raise UserError(
                f"expected a run folder at {path}, got {_kind(path)}; give one that training wrote"
            )
        if not folder.config_path.is_file():
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
        """The file of metrics: one JSON object per line, one line per update."""
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
        try:
            return self.config_path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"cannot read {self.config_path}: {error}; restore it from a copy") from error

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Prevent other processes from writing to the run until the block or this process ends.

        What killed processes left half written is removed first.

        Raises:
            UserError: if another process is writing to the run; it does not wait.
        """
        lock = FileLock(self.path / _LOCK, timeout=0)
        with writing(self.path):
            try:
                lock.acquire()
            except Timeout:
                raise UserError(
                    f"another process is writing to {self.path}; wait until it ends or choose another "
                    "--run-dir"
                ) from None
        try:
            with writing(self.path):
                remove_leftovers(self.path)
            checkpoints.tidy(self.checkpoints_path)
            yield
        finally:
            lock.release()

    def append_metrics(self, row: Mapping[str, Any]) -> None:
        """Add one line to the metrics; when this returns, the operating system has it.

        Args:
            row: values that JSON can hold, with the number of the update under "update".

        Raises:
            ValueError: if "update" is missing or a number is not finite (JSON cannot represent it).
            UserError: if the line cannot be written.
        """
        _check_row(row)
        line = json.dumps(dict(row), allow_nan=False) + "\n"
        with writing(self.metrics_path), self.metrics_path.open("a", encoding="utf-8", newline="\n") as file:
            file.write(line)

    def truncate_metrics(self, update: int) -> int:
        """Remove the rows after ``update`` atomically; return the number of rows that remain.

        A resumed run calls it with the update of its checkpoint. It also removes an incomplete last line,
        which a kill may have left.

        Raises:
            UserError: if a complete line cannot be read, or the file cannot be written.
        """
        if not self.metrics_path.exists():
            return 0
        kept = [line.text + "\n" for line in self._lines() if line.row["update"] <= update]
        with writing(self.metrics_path):
            write_atomically(self.metrics_path, "".join(kept))
        return len(kept)

    def read_metrics(self) -> list[dict[str, Any]]:
        """Return the rows in the order in which they were appended, without an incomplete last line.

        Raises:
            UserError: if a complete line cannot be read.
        """
        return [line.row for line in self._lines()] if self.metrics_path.exists() else []

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

    def _lines(self) -> list[_Line]:
        with writing(self.metrics_path):
            content = self.metrics_path.read_bytes()
        *ended, cut = (_parse(line) for line in content.split(b"\n"))
        if None in ended:
            raise UserError(
                f"expected JSON objects with an update in {self.metrics_path}, got something else in line "
                f"{ended.index(None) + 1}; remove that line"
            )
        return [line for line in (*ended, cut) if line is not None]


@contextmanager
def new_folder(default: Path, out: Path | None) -> Iterator[Path]:
    """Make a folder for results, for this process only; remove it if it stays empty.

    Args:
        default: the path if ``out`` is None; if it exists, a number is added, from _2 on.
        out: the path of the folder, or None.

    Raises:
        UserError: if ``out`` exists, or the folder cannot be made.
    """
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
            path.parent.mkdir(parents=True, exist_ok=True)
            path.mkdir()
    except UserError as error:
        if isinstance(error.__cause__, FileExistsError):
            raise UserError(
                f"expected a new folder for the evaluation, got {_kind(path)} at {path}; choose another"
            ) from None
        raise
    return path


def is_of_a_run(path: Path) -> bool:
    """Return whether a file is the config.yaml of a run; in the current folder it may be the user's own."""
    others = (_LOCK, "checkpoints", "metrics.jsonl", "tensorboard")
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
    return entry.name in (_LOCK, trust.STAMP) or is_leftover(entry)


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


def _check_row(row: Mapping[str, Any]) -> None:
    if not isinstance(row.get("update"), int):
        raise ValueError(f"expected the number of the update under 'update', got {row.get('update')!r}")
    for name, value in row.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"expected finite metrics, got {name}={value} at update {row['update']}")


def _parse(line: bytes) -> _Line | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return _Line(line.decode(), row) if isinstance(row, dict) and isinstance(row.get("update"), int) else None
