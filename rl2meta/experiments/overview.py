"""What is below a folder: runs and groups of runs, what differs between them, how far they are, their scores.

This reads configs, last lines of metrics and evaluations, and imports no torch: it must be quick.
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from rl2meta.errors import UserError
from rl2meta.experiments.yaml_text import parse
from rl2meta.files import read_file, read_text

_CONFIG, _GROUP, _METRICS = "config.yaml", "group.yaml", "metrics.jsonl"
_TRACES = (_METRICS, "checkpoints")  # of a run that has lost its config
_LARGEST = 2**24  # bytes of a file that is read whole
_END = 2**16  # bytes at the end of the metrics that are looked at
_RECORDED = ("versions.", "started_from")  # no settings
_PLACE = ("device", "threads", "kernels")  # where a run computes changes nothing that it learns


@dataclass(frozen=True)
class Entry:
    """A run, or a group of runs that differ in the seed alone.

    Attributes:
        path: its folder.
        settings: of its config, by dotted key.
        done, total: updates; of a group, over all its runs.
        scores: ``return``, ``regret``, ``held_out_return``, ``held_out_regret``; those that are known.
        seeds: the number of runs of a group; None for a run.
        fault: what is damaged; "" if nothing is.
    """

    path: Path
    settings: Mapping[str, Any] = field(default_factory=dict)
    done: int = 0
    total: int = 0
    scores: Mapping[str, float] = field(default_factory=dict)
    seeds: int | None = None
    fault: str = ""

    @property
    def agent(self) -> str:
        """The agent and the family of its tasks."""
        names = (self.settings.get(f"{section}.name") for section in ("agent", "distribution"))
        return " on ".join(str(name) for name in names if name is not None)


def overview(folder: Path) -> list[Entry]:
    """Return the runs and groups below a folder, or the one that the folder is, in order of their paths.

    Raises:
        UserError: if there is no such folder.
    """
    if not folder.is_dir():
        raise UserError(
            f"FOLDER: expected a folder, got {'a file' if folder.exists() else 'nothing'} at {folder}"
        )
    return list(_entries(folder))


def _entries(folder: Path) -> Iterator[Entry]:
    """Yield what a folder is or holds; folders of a run are not looked into, nor are links."""
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        yield Entry(folder, fault=f"cannot be read: {error.strerror}")
        return
    if _GROUP in names:
        yield _group(folder, names)
    elif _CONFIG in names or any(name in names for name in _TRACES):
        yield read_run(folder)
    else:
        for name in names:
            path = folder / name
            if path.is_dir() and not path.is_symlink():
                yield from _entries(path)


def _group(folder: Path, names: Sequence[str]) -> Entry:
    members = [folder / name for name in names if name.startswith("seed") and name[4:].isdigit()]
    runs = [read_run(path) for path in members]
    faults, seeds = [f"{run.path.name}: {run.fault}" for run in runs if run.fault], _seeds(folder)
    if seeds == 0:
        faults.append(f"{_GROUP}: no list of seeds")
    count = max(seeds, len(runs))  # some may not have begun
    if not runs:
        return Entry(folder, fault="a group without runs", seeds=count)
    sound = [run for run in runs if not run.fault] or runs
    held_out = {
        name: _mean([run.scores[name] for run in sound])
        for name in ("held_out_return", "held_out_regret")
        if all(name in run.scores for run in sound)
    }
    settings = {key: value for key, value in sound[0].settings.items() if key != "seed"}
    done, total = sum(run.done for run in runs), sound[0].total * count
    said = Entry(folder, settings, done, total, held_out, count, "; ".join(faults))
    return _careful(lambda: replace(said, scores={**held_out, **_evaluated(folder)}), said)


def _seeds(folder: Path) -> int:
    """Return the number of seeds in a group's file, also of those that have not begun; 0 if unknown."""
    try:
        return len(parse(read_text(folder / _GROUP, _LARGEST), _GROUP)["seeds"])
    except (UserError, OSError, LookupError, TypeError):
        return 0


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def read_run(folder: Path) -> Entry:
    """Return what is known of the run in a folder; a damaged file gives a fault, and no error."""
    said = Entry(folder)
    for add in (_with_settings, _with_metrics, _with_scores):
        said = _careful(partial(add, said), said)
    return said


def _careful(read: Callable[[], Entry], otherwise: Entry) -> Entry:
    """Return what ``read`` returns; if a file is damaged, the entry ``otherwise`` with the fault."""
    try:
        return read()
    except UserError as error:
        said = str(error)
    except OSError as error:
        said = f"{Path(str(error.filename)).name}: {error.strerror or error}"
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        said = f"damaged: {error!s:.80}"
    faults = [fault for fault in (otherwise.fault, " ".join(said.split())[:120]) if fault]
    return replace(otherwise, fault="; ".join(faults))


def _with_settings(said: Entry) -> Entry:
    path = said.path / _CONFIG
    if not path.exists():
        raise UserError("no config.yaml")
    settings = _flat(parse(read_text(path, _LARGEST), _CONFIG))
    if not all(isinstance(settings.get(f"{part}.name"), str) for part in ("agent", "distribution")):
        raise UserError("config.yaml: no config of a run")
    total = settings.get("training.updates")
    if type(total) is not int:
        raise UserError("config.yaml: no number of training.updates")
    return replace(said, settings=settings, total=total)


def _flat(section: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in section.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return {key: value for key, value in flat.items() if not key.startswith(_RECORDED)}


def _with_metrics(said: Entry) -> Entry:
    """Add the updates done, and the newest scores on held-out tasks during training."""
    path = said.path / _METRICS
    if not path.exists():
        return said
    rows = list(_last_rows(path))
    if not rows:
        return said
    if type(rows[0].get("update")) is not int:
        raise UserError(f"{_METRICS}: no number of the update in the last row")
    names = ("held_out_return", "held_out_regret")
    newest = {
        name: next((float(row[name]) for row in rows if row.get(name) is not None), None) for name in names
    }
    scores = {name: value for name, value in newest.items() if value is not None}
    return replace(said, done=rows[0]["update"], scores=scores)


def _last_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the last rows of the metrics, the newest first; not what a kill left of a row."""
    if not path.is_file():  # to open a FIFO would wait for somebody who writes
        raise UserError(f"{_METRICS}: expected a file, got something else")
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        start = max(0, size - _END)
        file.seek(start)
        *lines, _ = file.read(_END).split(b"\n")
    if start > 0:
        lines = lines[1:]  # the first one is cut
    if not lines and size >= _END:
        raise UserError(f"{_METRICS}: no line in its last {_END:,} bytes")
    for line in reversed(lines):
        row = json.loads(line)
        if not isinstance(row, dict):
            raise UserError(f"{_METRICS}: a row that is no JSON object")
        yield row


def _with_scores(said: Entry) -> Entry:
    return replace(said, scores={**said.scores, **_evaluated(said.path)})


def _evaluated(folder: Path) -> dict[str, float]:
    """Return the return and the regret of the first agent in the newest evaluation of a folder."""
    files = sorted(folder.glob("evaluation*/evaluation.json"), key=lambda path: path.stat().st_mtime)
    if not files:
        return {}
    where = "/".join(files[-1].parts[-2:])
    try:
        agent = next(iter(json.loads(read_file(files[-1], _LARGEST))["agents"].values()))
        return {
            name: float(value) for name in ("return", "regret") if (value := _score(agent, name)) is not None
        }
    except StopIteration:
        raise UserError(f"{where}: no agents") from None
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{where}: damaged: {error!s:.80}") from None


def _score(agent: Mapping[str, Any], name: str) -> Any:
    """Return a mean of an agent: over seeds if there are some, else over tasks."""
    for level in ("over_seeds", "over_tasks"):
        said = agent.get(level) or {}
        if said.get(name) is not None:
            return said[name]["mean"]
    return agent.get(f"mean_{name}")


def differences(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """Return for each entry the settings that differ between the entries; {} for damaged configs.

    A setting that an entry does not have, such as one of another agent, is not in its mapping.
    """
    known = [entry.settings for entry in entries if entry.settings]
    keys = {key: None for settings in known for key in settings if key not in _PLACE}  # in their order
    varied = [key for key in keys if _varies(key, entries)]
    return [{key: entry.settings[key] for key in varied if key in entry.settings} for entry in entries]


def _varies(key: str, entries: Sequence[Entry]) -> bool:
    """Return whether a setting differs; a group has no seed of its own."""
    of = [entry for entry in entries if entry.settings and not (key == "seed" and entry.seeds is not None)]
    return len({json.dumps(entry.settings.get(key), sort_keys=True, default=str) for entry in of}) > 1
