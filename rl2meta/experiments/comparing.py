"""Several runs on one task distribution: their names in a comparison, and the length of their trials."""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import Any, TypeVar

from rl2meta.errors import UserError
from rl2meta.experiments.components import judged_episodes, row_name
from rl2meta.experiments.config import RunConfig, differing
from rl2meta.experiments.group_folder import is_group, members
from rl2meta.experiments.groups import Group
from rl2meta.experiments.judging import SCRATCH, Method, folder_name, within
from rl2meta.experiments.overrides import judged
from rl2meta.experiments.run import Run
from rl2meta.experiments.zoo import said_path, zoo_name

_LONGEST_NAME = 120  # of a folder; file systems allow 255 bytes


@dataclass(frozen=True)
class Field:
    """The runs and groups of a comparison.

    Attributes:
        labels: name or path of each, as the caller gave it.
        groups: in the same order; a single run is a group of one.
        configs: for each the experiments of its runs in the evaluation, all with the same length of trials.
    """

    labels: Sequence[str]
    groups: Sequence[Group]
    configs: Sequence[Sequence[RunConfig]]

    @property
    def common(self) -> RunConfig:
        """The first run's experiment, without revealing the tasks to the agent."""
        first = self.configs[0][0]
        return replace(first, settings=first.settings.model_copy(update={"reveal_task": False}))

    def named(self, taken: Collection[str]) -> dict[str, tuple[Group, Sequence[RunConfig]]]:
        """Return each group and its experiments in the evaluation by a name that is not in ``taken``."""
        short = [_short(label, group) for label, group in zip(self.labels, self.groups, strict=True)]
        names = [
            name if short.count(name) == 1 else label for name, label in zip(short, self.labels, strict=True)
        ]
        names = [f"{name} (run)" if name in {*taken, SCRATCH} else name for name in names]
        names = _distinct(names)  # a new group may be called as a run is
        return dict(zip(names, zip(self.groups, self.configs, strict=True), strict=True))

    def facts(self, methods: Mapping[str, Method]) -> dict[str, Any]:
        """Return the facts that evaluation.json holds for each run or group."""
        return {
            name: {"path": _path(group), "agent": row_name(method.first.trained), **method.facts()}
            for (name, method), group in zip(methods.items(), self.groups, strict=True)
        }

    def default_folder(self) -> Path | None:
        """Return ``compare-NAME1-NAME2`` beside the first run; None if the first run has no folder.

        Beside a zoo agent there is no place for it: it is then in the current folder.
        """
        path = self.groups[0].path or self.groups[0].runs[0].path
        if path is None:
            return None
        first, *others = (_short(label, group) for label, group in zip(self.labels, self.groups, strict=True))
        name = "-".join(["compare", first, *others])
        if len(name) > _LONGEST_NAME:
            name = f"compare-{first[:_LONGEST_NAME]}-and-{len(others)}-more"
        beside = path if path.name not in ("", "..") else path.resolve()
        parent = beside.parent if zoo_name(path) is None else Path()
        return parent / name.replace("/", "-")


def together(groups: Sequence[Group]) -> tuple[list[str | None], list[Group]]:
    """Return groups in which runs that differ in the seed alone are one, and a name for each new group.

    Groups that have a folder stay as they are.
    """
    _refuse_same(groups)
    alike = [_but_for_the_seed(group.runs[0]) for group in groups]
    seeds = [group.runs[0].config.settings.seed for group in groups]
    gathered: dict[str, list[Run]] = {}
    for number, (key, seed, group) in enumerate(zip(alike, seeds, groups, strict=True)):
        twice = list(zip(alike, seeds, strict=True)).count((key, seed)) > 1  # copies of a run are no group
        key = f"group {number}" if len(group.runs) > 1 or twice else key
        gathered.setdefault(key, []).extend(group.runs)
    by_first = {id(group.runs[0]): group for group in groups}
    found = [(by_first[id(runs[0])], runs) for runs in gathered.values()]
    apart = [group if len(runs) == len(group.runs) else Group(_by_seed(runs)) for group, runs in found]
    return _distinct(
        [None if group.path or len(group.runs) == 1 else _common_name(group) for group in apart]
    ), apart


def field_of(
    labels: Sequence[str | None], groups: Sequence[Group], episodes: int | None, settings: Sequence[str]
) -> Field:
    """Return the groups with their names and their experiments in the comparison.

    Args:
        labels: name of each group; None for one that is named after its folder.
        groups: the groups; a single run is a group of one.
        episodes: episodes in a trial; None for the longest trial of the runs.
        settings: changes to the agent of a run, as ``NAME:agent.KEY=VALUE``.

    Raises:
        UserError: for fewer than two runs, the same run twice, different task distributions, or a bad
        setting.
    """
    _refuse_too_few(groups)
    for other in groups[1:]:
        refuse_another_law(groups[0].runs[0], other.runs[0])
    said = [_label(label, group, i) for i, (label, group) in enumerate(zip(labels, groups, strict=True))]
    short = [_short(label, group) for label, group in zip(said, groups, strict=True)]
    longest = max(judged_episodes(group.config) for group in groups) if episodes is None else episodes
    num_episodes = within("--episodes", longest, 1, 2**31 - 1)
    chosen = _by_run(settings, short)
    configs = [
        [of_length(judged(run.config, chosen[name]), num_episodes) for run in group.runs]
        for group, name in zip(groups, short, strict=True)
    ]
    return Field(said, groups, configs)


def law_of(config: RunConfig) -> dict[str, Any]:
    """Return the settings of an experiment's task distribution, without ``reveal_task``."""
    return {key: value for key, value in config.flat().items() if key.startswith("distribution.")}


def _label(label: str | None, group: Group, place: int) -> str:
    if label is not None:
        return label
    return f"run {place + 1}" if group.path is None else said_path(group.path)


def _short(label: str, group: Group) -> str:
    """Return the label of a group, or the name of its folder if the label is the folder's path."""
    return label if group.path is None or label != said_path(group.path) else folder_name(group.path)


def _path(group: Group) -> str | list[str | None] | None:
    """Return the folder of a run or group; of runs that only the comparison put together, all folders."""
    if group.path is None and len(group.runs) > 1:
        return [None if run.path is None else str(run.path) for run in group.runs]
    return None if group.path is None else said_path(group.path)


def _but_for_the_seed(run: Run) -> str:
    """Return a text that is equal for runs that differ in the seed alone; a zoo agent stands for itself."""
    settings = {key: value for key, value in run.config.identity().items() if key != "seed"}
    return json.dumps([settings, run.update, _origin(run), zoo_name(run.path)], sort_keys=True)


def _origin(run: Run) -> str | None:
    """Return the run whose weights a run began with; of those of a group, each of its seed, the group."""
    if run.origin is None or run.origin.path is None:
        return None
    path = Path(run.origin.path)
    return str(path.parent if path == _members(path.parent).get(run.config.settings.seed) else path)


def _members(path: Path) -> dict[int, Path]:
    """Return the runs of a group; none if the folder is that of no group."""
    return members(path) if is_group(path) else {}


def _by_seed(runs: Sequence[Run]) -> list[Run]:
    return sorted(runs, key=lambda run: run.config.settings.seed)


def _common_start(names: Sequence[str]) -> str:
    pairs = zip(min(names, default=""), max(names, default=""), strict=False)
    return "".join(a for a, _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def _common_name(group: Group) -> str:
    """Return what the names of the folders have in common at their beginning, or those of their parents.

    If neither have anything in common, it is the name of the first folder and a count.
    """
    paths = [run.path for run in group.runs if run.path is not None]
    names = [folder_name(path) for path in paths]
    parents = [path.resolve().parent.name for path in paths]
    common = (_common_start(each).removesuffix("seed").rstrip("-_. ") for each in (names, parents))
    return next(filter(None, common), f"{names[0] if names else 'run'} and {len(group.runs) - 1} more")


_Name = TypeVar("_Name", str, str | None)


def _distinct(names: Sequence[_Name]) -> list[_Name]:
    """Return names, with a number behind each that stood before; None stays."""
    before = [list(names[:place]).count(name) for place, name in enumerate(names)]
    return [
        f"{name} ({count + 1})" if name is not None and count else name
        for name, count in zip(names, before, strict=True)
    ]


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


def _refuse_too_few(groups: Sequence[Group]) -> None:
    if sum(len(group.runs) for group in groups) < 2:
        raise UserError("DIR: expected at least two run folders, got one; use `rl2meta evaluate` for it")
    _refuse_same(groups)


def _refuse_same(groups: Sequence[Group]) -> None:
    paths = [run.path for group in groups for run in group.runs if run.path is not None]
    if len({path.resolve() for path in paths}) < len(paths):
        said = " ".join(map(str, paths))
        raise UserError(
            f"DIR: expected different run folders, got the same one twice in {said}; name each only once"
        )


def refuse_another_law(first: Run, other: Run) -> None:
    """Raise UserError if two runs differ in their task distribution."""
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


def of_length(config: RunConfig, num_episodes: int) -> RunConfig:
    """Return the experiment with ``num_episodes`` episodes in each trial of an evaluation."""
    settings = config.settings
    evaluation = settings.evaluation.model_copy(update={"episodes_per_trial": num_episodes})
    return replace(config, settings=settings.model_copy(update={"evaluation": evaluation}))
