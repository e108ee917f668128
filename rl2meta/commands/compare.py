"""``rl2meta compare``: several trained agents on the same held-out tasks, beside the references."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rl2meta.commands.judging import SCRATCH, Subject, judge, load_subject, make_contest, names_of, within
from rl2meta.errors import UserError
from rl2meta.experiments.components import chosen_references, judged_episodes
from rl2meta.experiments.config import RunConfig, differing
from rl2meta.experiments.overrides import judged as as_judged
from rl2meta.experiments.restore import load_run_config
from rl2meta.experiments.run_folder import RunFolder, new_folder

_LONGEST_NAME = 120  # of a folder; file systems take 255 bytes


def compare_runs(
    run_dirs: Sequence[Path],
    *,
    tasks: int | None,
    seed: int | None,
    episodes: int | None,
    against: str,
    out: Path | None,
    device: str,
    threads: int | None = None,
    scratch: int = 0,
    settings: Sequence[str] = (),
) -> None:
    """Evaluate the newest checkpoints of several runs side by side; write files and figures, print tables.

    What the options leave out is as in the first run's config, but the trial is the longest of the runs'.
    """
    _refuse_too_few(run_dirs)
    folders = [RunFolder.open(path) for path in run_dirs]
    configs = [load_run_config(folder) for folder in folders]
    for folder, config in zip(folders[1:], configs[1:], strict=True):
        _refuse_another_law(folders[0], configs[0], folder, config)
    longest = max(map(judged_episodes, configs)) if episodes is None else episodes
    num_episodes = within("--episodes", longest, 1, 2**31 - 1)
    chosen = _by_run(settings, [_last_name(path) for path in run_dirs])
    judged = [
        _of_length(as_judged(folder, config, chosen[_last_name(folder.path)]), num_episodes)
        for folder, config in zip(folders, configs, strict=True)
    ]
    common = replace(judged[0], settings=judged[0].settings.model_copy(update={"reveal_task": False}))
    references = chosen_references(common, names_of(against))
    contest = make_contest(common, tasks=tasks, seed=seed, device=device, threads=threads, scratch=scratch)
    subjects = {
        name: load_subject(name, folder, config, then, contest)
        for name, folder, config, then in zip(
            _names(run_dirs, {*references, SCRATCH}), folders, configs, judged, strict=True
        )
    }
    with new_folder(_default_folder(run_dirs), out) as target:
        judge(target, contest, subjects, references, {"runs": _runs(subjects, run_dirs)})


def _by_run(settings: Sequence[str], names: Sequence[str]) -> dict[str, list[str]]:
    """Return the overrides of each run from what stands as ``NAME:KEY=VALUE``."""
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


def law_of(config: RunConfig) -> dict[str, Any]:
    """Return the settings of the law of an experiment's tasks, whatever its agent is told of them."""
    return {key: value for key, value in config.flat().items() if key.startswith("distribution.")}


def _refuse_too_few(run_dirs: Sequence[Path]) -> None:
    if len(run_dirs) < 2:
        raise UserError("DIR: expected two run folders or more, got one; use `rl2meta evaluate` for it")
    if len({path.resolve() for path in run_dirs}) < len(run_dirs):
        said = " ".join(map(str, run_dirs))
        raise UserError(
            f"DIR: expected different run folders, got one of them twice in {said}; name each once"
        )


def _refuse_another_law(first: RunFolder, ours: RunConfig, other: RunFolder, theirs: RunConfig) -> None:
    if law_of(ours) == law_of(theirs):
        return
    a, b = law_of(theirs), law_of(ours)
    name = "distribution.name"
    keys = differing(a, b) if a[name] == b[name] else [name]
    settings = "; ".join(f"{key} is {a.get(key)!r}, not {b.get(key)!r}" for key in keys)
    raise UserError(
        f"{other.path}: expected a run on the tasks of {first.path}, got one on others: {settings}. Compare "
        "runs on one law, or use `rl2meta evaluate DIR distribution.KEY=VALUE` on each"
    )


def _of_length(config: RunConfig, num_episodes: int) -> RunConfig:
    """Return the experiment with evaluations of ``num_episodes`` episodes a trial."""
    settings = config.settings
    evaluation = settings.evaluation.model_copy(update={"episodes_per_trial": num_episodes})
    return replace(config, settings=settings.model_copy(update={"evaluation": evaluation}))


def _last_name(path: Path) -> str:
    return path.name if path.name not in ("", "..") else path.resolve().name


def _names(run_dirs: Sequence[Path], taken: Collection[str]) -> list[str]:
    """Return a name for each run: its folder's, or the path as given where two folders share theirs."""
    last = [_last_name(path) for path in run_dirs]
    names = [name if last.count(name) == 1 else str(path) for name, path in zip(last, run_dirs, strict=True)]
    return [f"{name} (run)" if name in taken else name for name in names]


def _default_folder(run_dirs: Sequence[Path]) -> Path:
    """Return ``compare-NAME1-NAME2`` beside the first run."""
    first, *others = map(_last_name, run_dirs)
    name = "-".join(["compare", first, *others])
    if len(name) > _LONGEST_NAME:
        name = f"compare-{first[:_LONGEST_NAME]}-and-{len(others)}-more"
    beside = run_dirs[0] if run_dirs[0].name not in ("", "..") else run_dirs[0].resolve()
    return beside.parent / name


def _runs(subjects: Mapping[str, Subject], run_dirs: Sequence[Path]) -> dict[str, Any]:
    return {
        name: {"path": str(path), "agent": subject.trained.agent_name, **subject.facts()}
        for (name, subject), path in zip(subjects.items(), run_dirs, strict=True)
    }
