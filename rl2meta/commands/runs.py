"""``rl2meta runs``: a table of the runs below a folder."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rl2meta.commands.progress import say
from rl2meta.errors import UserError
from rl2meta.experiments.overview import Entry, differences, overview
from rl2meta.experiments.text_tables import aligned, short_keys

_SCORES = {
    "return": "return",
    "regret": "regret",
    "held_out_return": "held-out return",
    "held_out_regret": "held-out regret",
}


def print_runs(folder: Path) -> None:
    """Print one row for each run and each group below a folder; columns that say nothing are left out.

    Raises:
        UserError: if there is no such folder, or it holds no run.
    """
    entries = overview(folder)
    if not entries:
        raise UserError(f"{folder}: expected runs below this folder, got none; `rl2meta train` writes them")
    columns = _columns(folder, entries)
    if len(entries) > 1 and len(agents := set(columns["agent"])) == 1 and any(agents):
        say(f"all: {agents.pop()}\n")
        del columns["agent"]
    told = {name: cells for name, cells in columns.items() if any(cells)}
    rows = [list(told), *([*row] for row in zip(*told.values(), strict=True))]
    say(aligned(rows))


def _columns(folder: Path, entries: list[Entry]) -> dict[str, list[str]]:
    varied = differences(entries)
    short = short_keys(list(dict.fromkeys(key for settings in varied for key in settings)))
    agents = [entry.agent for entry in entries]
    return {
        "run": [_name(folder, entry) for entry in entries],
        "agent": agents,
        "seeds": ["" if entry.seeds is None else str(entry.seeds) for entry in entries],
        "differs in": [_said(settings, short) for settings in varied],
        "updates": [f"{entry.done}/{entry.total}" if entry.total else "" for entry in entries],
        **{title: [_score(entry, name) for entry in entries] for name, title in _SCORES.items()},
        "damaged": [entry.fault for entry in entries],
    }


def _name(folder: Path, entry: Entry) -> str:
    return str(folder) if entry.path == folder else entry.path.relative_to(folder).as_posix()


def _said(settings: Mapping[str, Any], short: Mapping[str, str]) -> str:
    """Return settings in one line, without the names that the column of the agent has."""
    names = ("agent.name", "distribution.name")
    return " ".join(f"{short[key]}={_value(value)}" for key, value in settings.items() if key not in names)


def _value(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else f"{value!s:.40}"


def _score(entry: Entry, name: str) -> str:
    return f"{entry.scores[name]:.3f}" if name in entry.scores else ""
