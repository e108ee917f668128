"""A table of seconds to a score by date and commit, to which every measurement adds a row for each config."""

from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any

from rl2meta.errors import UserError
from rl2meta.files import read_text, reading, write_atomically, writing
from rl2meta.speed import checkouts

HEAD = (
    "| date | commit | config | score | seconds to it, seed by seed | seconds in all | threads | machine |\n"
    "| --- | --- | --- | --- | --- | --- | --- | --- |\n"
)
_LARGEST = 2**24  # bytes of a page with a table


def refuse_page(path: Path) -> None:
    """Refuse a page without the table, before hours of training.

    Raises:
        UserError: if the file is there and has another content, or its folder is not there.
    """
    if not path.parent.is_dir():
        raise UserError(f"--history: expected a file in a folder that exists, got {path}; choose another")
    if path.exists() and not _text(path).endswith("|\n"):
        raise UserError(
            "--history: expected a new file, or one that ends with a table of earlier measurements, got "
            f"{path}; choose another"
        )


def add_rows(path: Path, report: Mapping[str, Any], commit: str, day: date) -> None:
    """Add a row to the table for each config of a report; a file that is not there begins with a head.

    Args:
        path: a Markdown page that ends with the table.
        report: as ``make_report`` returns it, with the suite ``learning``.
        commit: what was measured.
        day: when.
    """
    about = [str(report["threads"]), report["processor"]]
    rows = [
        _row([day.isoformat(), commit, f"`{name}`", *_figures(said), *about])
        for name, said in report["suites"]["learning"].items()
    ]
    before = _text(path) if path.exists() else HEAD
    with writing(path):
        write_atomically(path, before + "".join(rows))


def _figures(said: Mapping[str, Any]) -> list[str]:
    """Return the score, the seconds to it and the seconds in all."""
    times = [run["seconds_to_score"] for run in said["runs"]]
    reached = ", ".join("not reached" if time is None else f"{time:.1f}" for time in times)
    return [f"{said['target']:g}", reached, ", ".join(f"{run['seconds']:.1f}" for run in said["runs"])]


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |\n"


def _text(path: Path) -> str:
    with reading(path):
        return read_text(path, _LARGEST)


def measured_commit(package: Path | None = None) -> str:
    """Return the short name of the checkout's commit, with a + if a file differs from it; "?" without git."""
    try:
        top = checkouts.root(package)
    except UserError:
        return "?"
    return checkouts.resolved(top, "HEAD") + ("+" if checkouts.changed(top) else "")
