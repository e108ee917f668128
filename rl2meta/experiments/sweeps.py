"""A plain grid: train an experiment at each point of it, with one or several seeds, and evaluate all runs."""

import itertools
import json
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rl2meta import levels
from rl2meta.errors import UserError
from rl2meta.experiments.components import read_config
from rl2meta.experiments.config import RunConfig
from rl2meta.experiments.evaluations import evaluate
from rl2meta.experiments.group_folder import refuse_trained
from rl2meta.experiments.groups import Group, train_group
from rl2meta.experiments.judging import Say, silent, within
from rl2meta.experiments.overview import read_run
from rl2meta.experiments.restore import load_run
from rl2meta.experiments.run import Run
from rl2meta.experiments.run_folder import LARGEST_CONFIG, has_run
from rl2meta.experiments.search_space import parse_dimension, settings_text
from rl2meta.experiments.side_by_side import is_orphan, side_by_side
from rl2meta.experiments.text_tables import short_keys
from rl2meta.experiments.trainings import resume, train
from rl2meta.experiments.yaml_text import read
from rl2meta.files import read_text, write_atomically, writing

_LONGEST_NAME = 200  # of a folder; file systems allow 255 bytes
_MOST_POINTS, _MOST_JOBS = 10_000, 1024
Axes = dict[str, tuple[Any, ...]]
"""The values of each setting that the grid varies, by dotted key."""


@dataclass(frozen=True)
class Point:
    """One point of the grid; pickle takes it.

    Attributes:
        source, overrides, trust: the experiment there, as for ``train``.
        settings: what the point chose, by dotted key.
        path: its folder: a run, or the runs of all seeds.
        seeds: of the trainings; () for one run with the config's seed.
    """

    source: str
    overrides: list[str]
    settings: dict[str, Any]
    path: Path
    seeds: tuple[int, ...]
    trust: frozenset[str]

    @property
    def runs(self) -> dict[int | None, Path]:
        """The run folder of each seed."""
        return {seed: self.path / f"seed{seed}" for seed in self.seeds} or {None: self.path}


def split_axes(words: Sequence[str]) -> tuple[Axes, list[str]]:
    """Return the axes of the grid, which are lists such as ``key=[1,2]``, and the other overrides.

    A setting that is itself a list, and that all points share, has a list around it: ``key=[[32,32]]``.

    Raises:
        UserError: for a list without values or with one twice, a key that is there twice, and without a list.
    """
    axes: Axes = {}
    others: list[str] = []
    for word in words:
        key, _, text = word.partition("=")
        if not text.lstrip().startswith("["):
            others.append(word)
            continue
        if key in axes:
            raise UserError(f"{key}: expected one list for each setting, got two; write all values in one")
        axes[key] = tuple(parse_dimension(key, read(text, key), "sweep").ends())
    if not axes:
        raise UserError(
            'expected a setting with a list of values, such as "agent.discount=[0.9,1.0]", got none'
        )
    if (count := int(np.prod([len(values) for values in axes.values()]))) > _MOST_POINTS:
        raise UserError(f"expected at most {_MOST_POINTS:,} points, got {count:,}; leave values out")
    return axes, others


def folder_names(axes: Axes) -> list[tuple[dict[str, Any], str]]:
    """Return the settings of each point and its folder's name, such as ``hidden_size=32,discount=0.9``."""
    keys = short_keys(list(axes))
    points = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
    named = [(settings, _folder_name(settings, keys)) for settings in points]
    names = [name for _, name in named]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"expected values with different names of folders, got {twice[0]} twice; change one")
    return named


def _folder_name(settings: Mapping[str, Any], keys: Mapping[str, str]) -> str:
    said = ",".join(f"{keys[key]}={_in_a_name(value)}" for key, value in settings.items())
    if len(said.encode()) > _LONGEST_NAME:
        raise UserError(
            f"expected settings of at most {_LONGEST_NAME} letters, which name the folder of a point, got "
            f"{said:.60}...; vary fewer at a time"
        )
    return said


def _in_a_name(value: Any) -> str:
    """Return a value as it stands in a folder's name: without what file systems or shells take for more."""
    text = value if isinstance(value, str) else json.dumps(value, separators=("-", ":")).strip("[]")
    return "".join(letter if letter.isalnum() or letter in "._+-" else "_" for letter in text)


def sweep(
    source: str,
    words: Sequence[str],
    *,
    run_dir: Path,
    seeds: Sequence[int] = (),
    jobs: int = 1,
    trust: Collection[str] = (),
    say: Say = silent,
) -> tuple[list[dict[str, Any]], str]:
    """Train and evaluate at each point of a grid, and write sweep.json.

    A second call goes on: it continues runs that stopped, and trains no finished run again. Each training has
    one thread unless the config says how many, so that ``jobs`` changes no bit.

    Args:
        source: the experiment, as for ``train``.
        words: settings, as ``key=value`` for all points and ``key=[a,b]`` for an axis of the grid.
        run_dir: the folder for the points; new or that of the sweep.
        seeds: of the trainings at each point; none: one training with the config's seed.
        jobs: number of points that are trained at a time.
        trust: modules that a config from elsewhere may import.
        say: called with one line of text before each step.

    Returns:
        For each point its settings, folder, and the held-out return and regret: ``mean``, ``low``, ``high``,
        or None where a run failed; and what the runs that failed say, which is "" if none did.

    Raises:
        UserError: for settings that do not fit (before anything is trained), or a folder of another sweep.
    """
    jobs = within("--jobs", jobs, 1, _MOST_JOBS)
    refuse_trained(run_dir)
    axes, others = split_axes(words)
    if seeds and any(key == "seed" for key in [*axes, *(other.partition("=")[0] for other in others)]):
        raise UserError("seed: expected none beside --seeds, got one; leave one of them out")
    points = [
        _point(source, others, settings, run_dir / name, seeds, frozenset(trust))
        for settings, name in folder_names(axes)
    ]
    for point in points:
        read_config(point.source, point.overrides, point.trust)
    say(
        f"{len(points)} points with {max(1, len(seeds))} run{'s' if len(seeds) > 1 else ''} each in {run_dir}"
    )
    failed = _errors_of(lambda: side_by_side(train_point, [(point,) for point in points], jobs, say))
    rows, faults = zip(*(_result(point, run_dir, say) for point in points), strict=True)
    with writing(run_dir):
        content = {
            "config": source,
            "overrides": others,
            "axes": axes,
            "seeds": list(seeds),
            "points": list(rows),
        }
        write_atomically(run_dir / "sweep.json", json.dumps(content, indent=2) + "\n")
    return list(rows), "\n".join(filter(None, [failed, *faults]))


def _errors_of(call: Callable[[], None]) -> str:
    try:
        call()
    except UserError as error:
        return str(error)
    return ""


def _point(
    source: str,
    others: Sequence[str],
    settings: dict[str, Any],
    path: Path,
    seeds: Sequence[int],
    trust: frozenset[str],
) -> Point:
    overrides = [*others, *settings_text(settings)]
    if _config(source, overrides, trust).settings.threads is None:
        overrides.append("threads=1")
    return Point(source, overrides, settings, path, tuple(seeds), trust)


def _config(source: str, overrides: Sequence[str], trust: frozenset[str]) -> RunConfig:
    return read_config(source, overrides, trust)


def train_point(point: Point, say: Say) -> None:
    """Train the runs of a point that are missing or unfinished, one seed after the other.

    Raises:
        UserError: if runs fail, after the others have ended; the message names them.
    """
    try:
        _train(point)
    except UserError as error:
        raise UserError(f"{point.path}: {error}") from None
    say(f"trained {point.path}")


def _train(point: Point) -> None:
    how: dict[str, Any] = {"run_dir": point.path, "callbacks": [_go_on], "trust": point.trust}
    if point.seeds:
        train_group(point.source, point.overrides, seeds=point.seeds, **how)
    elif has_run(point.path):
        resume(point.path, point.source, point.overrides, callbacks=[_go_on], trust=point.trust)
    else:
        train(point.source, point.overrides, **how)


def _go_on(run: Run, row: dict[str, Any]) -> bool:
    return not is_orphan()


Score = Mapping[str, float] | None
"""A mean with its interval: ``mean``, ``low``, ``high``; None if unknown."""


def _result(point: Point, run_dir: Path, say: Say) -> tuple[dict[str, Any], str]:
    """Return what the runs of a point earn on held-out tasks, and what failed; evaluate if they were not."""
    score: dict[str, Score] = {"return": None, "regret": None}
    failed = ""
    try:
        if all(map(_is_finished, point.runs.values())):
            score = _score(point, say)
    except UserError as error:  # the other points have results
        failed = f"{point.path}: {error}"
    row = {
        "settings": point.settings,
        "folder": point.path.relative_to(run_dir).as_posix(),
        "seeds": list(point.seeds),
        "interval_over": "seeds and tasks" if len(point.seeds) > 1 else "tasks",
        **score,
    }
    return row, failed


def _is_finished(path: Path) -> bool:
    run = read_run(path)
    return run.done == run.total > 0


def _score(point: Point, say: Say) -> dict[str, Score]:
    file = point.path / "scores.json"
    if (known_score := _kept(file, point.seeds)) is not None:
        return known_score
    say(f"evaluating {point.path} ...")
    result = next(iter(evaluate(_trained(point), against="none", trust=point.trust).results.values()))
    known = ["rewards"] if result.regrets is None else ["rewards", "regrets"]
    of = {"rewards": "return", "regrets": "regret"}
    score: dict[str, Score] = {"return": None, "regret": None}
    for name in known:
        score[of[name]] = levels.said(levels.interval(result, levels.of_trials(result, name)))  # type: ignore[arg-type]
    with writing(file):
        write_atomically(file, json.dumps({"seeds": list(point.seeds), **score}) + "\n")
    return score


def _kept(file: Path, seeds: Sequence[int]) -> dict[str, Score] | None:
    """Return the scores that a file holds for these seeds; None if it is missing, damaged or of others."""
    try:
        found = json.loads(read_text(file, LARGEST_CONFIG))
        return {name: found[name] for name in ("return", "regret")} if found["seeds"] == list(seeds) else None
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _trained(point: Point) -> Group:
    """Return the runs of a point; the group in its folder may have more of them."""
    return Group([load_run(path, trust=point.trust) for path in point.runs.values()], point.path)


def sweep_table(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Return a table of the results of a sweep, the best point first; its first row names the columns."""
    keys = short_keys(list(rows[0]["settings"]))
    head = [*keys.values(), "held-out return", "regret"]
    ordered = sorted(rows, key=lambda row: -(row["return"] or {"mean": -math.inf})["mean"])
    figures = [[_said(row["return"], "failed"), _said(row["regret"], "unknown")] for row in ordered]
    settings = [map(str, row["settings"].values()) for row in ordered]
    return [head, *([*some, *others] for some, others in zip(settings, figures, strict=True))]


def _said(score: Score, otherwise: str) -> str:
    if score is None:
        return otherwise
    return f"{score['mean']:.3f} [{score['low']:.3f}, {score['high']:.3f}]"
