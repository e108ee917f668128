"""Several runs on one task distribution: their names in a comparison, and the length of their trials."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rl2meta.errors import UserError
from rl2meta.experiments.components import judged_episodes, row_name
from rl2meta.experiments.config import RunConfig, differing
from rl2meta.experiments.judging import SCRATCH, Subject, folder_name, within
from rl2meta.experiments.overrides import judged
from rl2meta.experiments.run import Run

_LONGEST_NAME = 120  # of a folder; file systems allow 255 bytes


@dataclass(frozen=True)
class Field:
    """The runs of a comparison.

    Attributes:
        labels: name or path of each run, as the caller gave it.
        runs: in the same order.
        configs: their experiments in the evaluation, all with the same length of trials.
    """

    labels: Sequence[str]
    runs: Sequence[Run]
    configs: Sequence[RunConfig]

    @property
    def common(self) -> RunConfig:
        """The first run's experiment, without revealing the tasks to the agent."""
        first = self.configs[0]
        return replace(first, settings=first.settings.model_copy(update={"reveal_task": False}))

    def named(self, taken: Collection[str]) -> dict[str, tuple[Run, RunConfig]]:
        """Return each run and its experiment in the evaluation by a name that is not in ``taken``."""
        short = [_short(label, run) for label, run in zip(self.labels, self.runs, strict=True)]
        names = [
            name if short.count(name) == 1 else label for name, label in zip(short, self.labels, strict=True)
        ]
        names = [f"{name} (run)" if name in {*taken, SCRATCH} else name for name in names]
        return dict(zip(names, zip(self.runs, self.configs, strict=True), strict=True))

    def facts(self, subjects: Mapping[str, Subject]) -> dict[str, Any]:
        """Return the facts that evaluation.json holds for each run."""
        return {
            name: {"path": _path(run), "agent": row_name(subject.trained), **subject.facts()}
            for (name, subject), run in zip(subjects.items(), self.runs, strict=True)
        }

    def default_folder(self) -> Path | None:
        """Return ``compare-NAME1-NAME2`` beside the first run; None if the first run has no folder."""
        path = self.runs[0].path
        if path is None:
            return None
        first, *others = (_short(label, run) for label, run in zip(self.labels, self.runs, strict=True))
        name = "-".join(["compare", first, *others])
        if len(name) > _LONGEST_NAME:
            name = f"compare-{first[:_LONGEST_NAME]}-and-{len(others)}-more"
        beside = path if path.name not in ("", "..") else path.resolve()
        return beside.parent / name.replace("/", "-")


def field_of(
    labels: Sequence[str | None], runs: Sequence[Run], episodes: int | None, settings: Sequence[str]
) -> Field:
    """Return the runs with their names and their experiments in the comparison.

    Args:
        labels: name of each run; None for a run that is named after its folder.
        runs: the runs.
        episodes: episodes in a trial; None for the longest trial of the runs.
        settings: changes to the agent of a run, as ``NAME:agent.KEY=VALUE``.

    Raises:
        UserError: for fewer than two runs, the same run twice, different task distributions, or a bad
        setting.
    """
    _refuse_too_few(runs)
    for other in runs[1:]:
        _refuse_another_law(runs[0], other)
    said = [_label(label, run, i) for i, (label, run) in enumerate(zip(labels, runs, strict=True))]
    short = [_short(label, run) for label, run in zip(said, runs, strict=True)]
    longest = max(judged_episodes(run.config) for run in runs) if episodes is None else episodes
    num_episodes = within("--episodes", longest, 1, 2**31 - 1)
    chosen = _by_run(settings, short)
    configs = [
        _of_length(judged(run.config, chosen[name]), num_episodes)
        for run, name in zip(runs, short, strict=True)
    ]
    return Field(said, runs, configs)


def law_of(config: RunConfig) -> dict[str, Any]:
    """Return the settings of an experiment's task distribution, without ``reveal_task``."""
    return {key: value for key, value in config.flat().items() if key.startswith("distribution.")}


def _label(label: str | None, run: Run, place: int) -> str:
    if label is not None:
        return label
    return f"run {place + 1}" if run.path is None else str(run.path)


def _short(label: str, run: Run) -> str:
    """Return the label of a run, or the name of its folder if the label is the folder's path."""
    return label if run.path is None or label != str(run.path) else folder_name(run.path)


def _path(run: Run) -> str | None:
    return None if run.path is None else str(run.path)


def _by_run(settings: Sequence[str], names: Sequence[str]) -> dict[str, list[str]]:
    """Return the overrides of each run from settings ``NAME:KEY=VALUE``."""
    chosen: dict[str, list[str]] = {name: [] for name in names}
    for setting in settings:
        name, colon, override = setting.partition(":")
        if not colon or names.count(name) != 1 or not override.startswith("agent."):
            raise UserError(
                f"--set {setting!r}: expected NAME:agent.KEY=VALUE with the name of one run's folder, one of "
                f"{', '.join(chosen)}"
            )
        chosen[name].append(override)
    return chosen


def _refuse_too_few(runs: Sequence[Run]) -> None:
    if len(runs) < 2:
        raise UserError("DIR: expected at least two run folders, got one; use `rl2meta evaluate` for it")
    paths = [run.path for run in runs if run.path is not None]
    if len({path.resolve() for path in paths}) < len(paths):
        said = " ".join(map(str, paths))
        raise UserError(
            f"DIR: expected different run folders, got the same one twice in {said}; name each only once"
        )


def _refuse_another_law(first: Run, other: Run) -> None:
    ours, theirs = law_of(first.config), law_of(other.config)
    if ours == theirs:
        return
    name = "distribution.name"
    keys = differing(theirs, ours) if theirs[name] == ours[name] else [name]
    settings = "; ".join(f"{key} is {theirs.get(key)!r}, not {ours.get(key)!r}" for key in keys)
    raise UserError(
        f"{other.path or 'a run'}: expected a run on the tasks of {first.path or 'the first'}, got one on "
        f"others: {settings}. Compare runs on one law, or use `rl2meta evaluate DIR distribution.KEY=VALUE` "
        "on each"
    )


def _of_length(config: RunConfig, num_episodes: int) -> RunConfig:
    """Return the experiment with ``num_episodes`` episodes in each trial of an evaluation."""
    settings = config.settings
    evaluation = settings.evaluation.model_copy(update={"episodes_per_trial": num_episodes})
    return replace(config, settings=settings.model_copy(update={"evaluation": evaluation}))
