"""The metrics of a run: one JSON object per line, one line per update, and beside them a digest of each line.

metrics.jsonl holds nothing but the rows, so that any tool reads it. metrics.digests has one line per row, the
beginning of its SHA-256; it shows which row differs from what the run wrote. A digest is written before its
row: whatever a kill leaves, each row has one. Runs of earlier versions have no digests; their rows are not
checked until they are resumed, which writes digests of the rows as they are.
"""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from rl2meta.errors import UserError
from rl2meta.files import append, read_file, reading, write_atomically, writing

_LENGTH = 16  # hexadecimal digits of a digest
_TIMES = 10  # the memory of rows as dicts, in multiples of their text


class _Line(NamedTuple):
    """One line of the metrics: its bytes without the line's end, and its parsed content."""

    raw: bytes
    row: dict[str, Any]


@dataclass(frozen=True)
class MetricsFile:
    """The rows of a run.

    Attributes:
        path: of the rows.
    """

    path: Path

    @property
    def digests_path(self) -> Path:
        """The file with one digest for each row."""
        return self.path.with_suffix(".digests")

    def append(self, row: Mapping[str, Any]) -> None:
        """Add one line; when this returns, the operating system has it.

        Args:
            row: values that JSON can hold, with the number of the update under "update".

        Raises:
            ValueError: if "update" is missing or a number is not finite (JSON cannot represent it).
            UserError: if the line cannot be written.
        """
        _check_row(row)
        line = json.dumps(dict(row), allow_nan=False).encode()
        for path, data in ((self.digests_path, _digest(line)), (self.path, line)):
            with writing(path):
                append(path, data + b"\n")

    def truncate(self, update: int) -> int:
        """Remove the rows after ``update``, and write digests of the others; return how many these are.

        It also removes an incomplete last line, which a kill may have left, and digests without rows. What
        follows the row of ``update`` is not read.

        Raises:
            UserError: if a row that stays is damaged, or the files cannot be written.
        """
        kept = list(self._lines(last=update))
        lines = [line.raw for line in kept]
        with writing(self.path):
            if self.path.exists():
                write_atomically(self.path, _joined(lines))
        with writing(self.digests_path):
            if self.path.exists() or self.digests_path.exists():
                write_atomically(self.digests_path, _joined([_digest(line) for line in lines]))
        return len(kept)

    def read(self) -> list[dict[str, Any]]:
        """Return the rows in the order in which they were appended, without an incomplete last line.

        Raises:
            UserError: if a row is damaged, or cannot be read.
        """
        return [line.row for line in self._lines()]

    def _lines(self, last: float = math.inf) -> Iterator[_Line]:
        """Yield the rows up to the update ``last``; refuse one that is not what the run wrote."""
        content, digests = self._contents()
        *ended, cut = content.split(b"\n")
        former = 0
        for number, raw in enumerate([*ended, cut], start=1):
            line = _parse(raw)
            if former >= last or (line is None and number > len(ended)):
                return  # the last line is empty, or a kill left a part of it
            if line is None or line.row["update"] <= former:
                raise UserError(
                    f"expected JSON objects with rising updates in {self.path}, got something else in line "
                    f"{number}; restore the file from a copy, or remove that line and "
                    f"{self.digests_path.name}"
                )
            if digests is not None:
                self._refuse_altered(number, raw, digests)
            former = line.row["update"]
            if former <= last:
                yield line

    def _refuse_altered(self, number: int, raw: bytes, digests: list[bytes]) -> None:
        if number > len(digests) or digests[number - 1] != _digest(raw):
            found = "a row without a digest" if number > len(digests) else "another row"
            raise UserError(
                f"expected in line {number} of {self.path} the row that the run wrote, with its digest in "
                f"line {number} of {self.digests_path.name}, got {found}; restore both files from a copy, or "
                f"remove {self.digests_path.name} to take the rows as they are"
            )

    def _contents(self) -> tuple[bytes, list[bytes] | None]:
        """Return the text of the rows, and the digests; None if the run has no digests.

        A resumed run replaces both files, first the rows. They are read again if that happened in between.
        """
        while True:
            with reading(self.path):
                before = _inode(self.path)
                content = b"" if before is None else read_file(self.path, times=_TIMES)
            with reading(self.digests_path):
                known = _inode(self.digests_path) is not None
                digests = read_file(self.digests_path, times=_TIMES) if known else None
            with reading(self.path):
                if _inode(self.path) == before:
                    return content, None if digests is None else digests.split()


def _inode(path: Path) -> int | None:
    try:
        return path.stat().st_ino
    except FileNotFoundError:
        return None


def _joined(lines: list[bytes]) -> bytes:
    return b"".join(line + b"\n" for line in lines)


def _digest(line: bytes) -> bytes:
    return hashlib.sha256(line).hexdigest()[:_LENGTH].encode()


def _check_row(row: Mapping[str, Any]) -> None:
    update = row.get("update")
    if type(update) is not int or update < 1:
        raise ValueError(f"expected the number of the update under 'update', got {update!r}")
    for name, value in row.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"expected finite metrics, got {name}={value} at update {update}")


def _parse(raw: bytes) -> _Line | None:
    """Return a row; None for what is none: JSON in another encoding, NaN, an update that is no number."""
    try:
        row = json.loads(raw.decode(), parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        return None
    return _Line(raw, row) if isinstance(row, dict) and type(row.get("update")) is int else None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"JSON has no {name}")
