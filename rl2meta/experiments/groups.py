"""Groups of runs that differ in the seed alone: train them, continue them, load them.

One training says what one agent earns. A method has a spread over its training seeds, and a group shows it.
"""

import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rl2meta.errors import UserError
from rl2meta.experiments import restore, trainings
from rl2meta.experiments.components import COMPONENTS, chosen_references, read_config
from rl2meta.experiments.config import RECORDED, WHERE, RunConfig, differing, load_config
from rl2meta.experiments.group import Group as Group  # for those who import it from here
from rl2meta.experiments.group_folder import GroupFolder, is_group
from rl2meta.experiments.group_origins import known_origin, origins_of, refuse_misfits, said_origin
from rl2meta.experiments.jobs import Watch, train_side_by_side
from rl2meta.experiments.members import Member, train_member
from rl2meta.experiments.rehearsal import rehearse
from rl2meta.experiments.run import Callback, Run
from rl2meta.experiments.run_folder import has_run
from rl2meta.experiments.trainings import Config, Overrides
from rl2meta.experiments.trust import modules_in, refuse_strangers
from rl2meta.experiments.yaml_text import overrides_of, parse, text_of

_MOST_SEEDS = 10_000
_log = logging.getLogger("rl2meta")


class _Unwatched:
    """Watches nothing."""

    stopping = False

    def begun(self, seed: int, update: int, updates: int) -> None:
        pass

    def after_update(self, seed: int, row: Mapping[str, Any]) -> None:
        pass


def train_group(
    config: Config,
    overrides: Overrides | None = None,
    *,
    seeds: Iterable[int],
    run_dir: str | Path | None = None,
    jobs: int = 1,
    start_from: Run | Group | str | Path | None = None,
    callbacks: Sequence[Callback] = (),
    on_start: Callable[[Run], None] | None = None,
    trust: Collection[str] = (),
    watch: Watch | None = None,
) -> Group:
    """Train runs that differ in the seed alone, or go on with those of the same group.

    Every run computes with as many CPU threads as the config says, and with one if it says none. So neither
    ``jobs`` nor interruptions change a bit of the results.

    Args:
        config: as for ``train``.
        overrides: as for ``train``; none of them is the seed.
        seeds: of the runs; a group that is there may get more of them.
        run_dir: the folder of the group, new or from an earlier call, with a run folder ``seed0``, ... for
            each seed; None: write nothing.
        jobs: the number of trainings at a time. With one they run in this process, one after the other; with
            more, in processes of their own.
        start_from: as for ``train``; of a group, each run begins with the weights of the run of its seed.
        callbacks: as for ``train``, with one job only.
        on_start: as for ``train``, with one job only.
        trust: as for ``train``.
        watch: is told how it goes, and may stop all.

    Returns:
        The runs of ``seeds``, without those that ``watch`` stopped before they began.

    Raises:
        UserError: for a config with faults, or a folder that holds something else. If the training of a seed
            fails, the others are trained, and the error at the end says which failed.
    """
    chosen = _chosen(seeds)
    trainings.refuse_callbacks(callbacks)
    _refuse_jobs(jobs, run_dir, bool(callbacks) or on_start is not None)
    given = overrides_of(overrides)
    _refuse_seed(given)
    wanted = _single_threaded(read_config(config, given, trust))
    experiment, text, device = trainings.settled(wanted)
    rehearse(experiment, device)  # before there are folders, and once for all seeds
    chosen_references(experiment)
    trusted = sorted({*trust, *modules_in(experiment.flat())})
    origins = origins_of(start_from, chosen, jobs)
    if run_dir is None or not is_group(run_dir):
        refuse_misfits(experiment, device, list(origins.values()), trusted)
    settings = _without_seed(text) | said_origin(start_from)
    folder = None if run_dir is None else _folder(Path(run_dir), settings, experiment, chosen, trusted)
    members = [_member(seed, settings, folder, origins[seed], trusted) for seed in chosen]
    return _trained(members, folder, jobs, experiment, callbacks, on_start, watch or _Unwatched())


def resume_group(
    run_dir: str | Path,
    *,
    jobs: int = 1,
    callbacks: Sequence[Callback] = (),
    on_start: Callable[[Run], None] | None = None,
    trust: Collection[str] = (),
    watch: Watch | None = None,
) -> Group:
    """Continue all runs of the group in a folder; see ``train_group``."""
    trainings.refuse_callbacks(callbacks)
    _refuse_jobs(jobs, run_dir, bool(callbacks) or on_start is not None)
    folder = GroupFolder.open(Path(run_dir))
    text = folder.text()
    refuse_strangers(folder.settings_path, text, trust)
    settings, seeds = folder.settings(), list(folder.members())
    experiment = load_config(
        text_of(_with_seed(settings, seeds[0])), str(folder.settings_path), (), COMPONENTS
    )
    trusted = sorted({*trust, *modules_in(experiment.flat())})
    origins = origins_of(known_origin(folder), seeds, jobs)
    members = [_member(seed, settings, folder, origins[seed], trusted) for seed in seeds]
    return _trained(members, folder, jobs, experiment, callbacks, on_start, watch or _Unwatched())


def load_group(path: str | Path, device: str = "cpu", trust: Collection[str] = ()) -> Group:
    """Return the group in a folder, each run in the state of its newest complete checkpoint.

    A warning names the seeds whose training has not begun.

    Raises:
        UserError: as for ``load_run``; and if no training has begun.
    """
    folder = GroupFolder.open(Path(path))
    begun = {seed: place for seed, place in folder.members().items() if has_run(place)}
    missing = [seed for seed in folder.members() if seed not in begun]
    if not begun:
        raise UserError(
            f"{folder.path}: expected a run of at least one seed, got none; train the group first"
        )
    if missing:
        _log.warning("%s: the training of seed %s has not begun", folder.path, ", ".join(map(str, missing)))
    return Group([restore.load_run(place, device, trust) for place in begun.values()], folder.path)


def _trained(
    members: Sequence[Member],
    folder: GroupFolder | None,
    jobs: int,
    experiment: RunConfig,
    callbacks: Sequence[Callback],
    on_start: Callable[[Run], None] | None,
    watch: Watch,
) -> Group:
    if folder is None or jobs == 1:
        runs, faults = _one_by_one(members, folder, callbacks, on_start, watch)
        _refuse_faults(faults, folder)
        return Group(runs, None if folder is None else folder.path)
    with folder.locked():
        faults = train_side_by_side(members, jobs, experiment.settings.training.updates, watch)
    _refuse_faults(faults, folder)
    begun = [member.path for member in members if member.path is not None and has_run(member.path)]
    device = experiment.settings.device
    return Group([restore.load_run(path, device, members[0].trust) for path in begun], folder.path)


def _one_by_one(
    members: Sequence[Member],
    folder: GroupFolder | None,
    callbacks: Sequence[Callback],
    on_start: Callable[[Run], None] | None,
    watch: Watch,
) -> tuple[list[Run], dict[int, str]]:
    """Train runs in this process; return those without faults, and the faults of the others by seed."""
    if folder is not None:
        with folder.locked():
            return _one_by_one(members, None, callbacks, on_start, watch)
    runs, faults = [], dict[int, str]()
    for member in members:
        if watch.stopping:
            break
        try:
            runs.append(_watched(member, callbacks, on_start, watch))
        except UserError as error:
            faults[member.seed] = str(error)
    return runs, faults


def _watched(
    member: Member, callbacks: Sequence[Callback], on_start: Callable[[Run], None] | None, watch: Watch
) -> Run:
    def begun(run: Run) -> None:
        watch.begun(member.seed, run.update, run.config.settings.training.updates)
        if on_start is not None:
            on_start(run)

    def after(run: Run, row: dict[str, Any]) -> bool:
        watch.after_update(member.seed, row)
        return not watch.stopping

    return train_member(member, [*callbacks, after], begun)


def _refuse_faults(faults: Mapping[int, str], folder: GroupFolder | None) -> None:
    if not faults:
        return
    said = "\n".join(f"  seed {seed}: {text}" for seed, text in sorted(faults.items()))
    kept = "" if folder is None else f"; the other runs are in {folder.path}"
    raise UserError(f"expected every seed to be trained, got faults in {len(faults)}{kept}:\n{said}")


def _refuse_jobs(jobs: int, run_dir: str | Path | None, called_back: bool) -> None:
    if jobs < 1:
        raise UserError(f"jobs: expected at least 1, got {jobs}")
    if jobs > 1 and run_dir is None:
        raise UserError("jobs: expected 1 for a group without a folder; give run_dir, too")
    if jobs > 1 and called_back:
        raise UserError("callbacks: expected none with several jobs, which are other processes; use jobs=1")


def _chosen(seeds: Iterable[int]) -> list[int]:
    if isinstance(seeds, int | str):
        raise UserError(f"seeds: expected several integers, such as range(5), got {seeds!r}")
    chosen = list(seeds)
    if not chosen or len(chosen) > _MOST_SEEDS or len(set(chosen)) < len(chosen):
        raise UserError(f"seeds: expected 1 to {_MOST_SEEDS:,} different integers, got {chosen!r:.100}")
    for seed in chosen:
        if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63:
            raise UserError(f"seeds: expected integers from 0 to 2⁶³ − 1, got {seed!r:.100}")
    return chosen


def _refuse_seed(overrides: Sequence[str]) -> None:
    if any(override.startswith("seed=") for override in overrides):
        raise UserError("seed: expected none beside --seeds (seeds); leave one of them out")


def _single_threaded(config: RunConfig) -> RunConfig:
    """Return the experiment with one thread if it says no number, whatever this machine has."""
    settings = config.settings
    return replace(config, settings=settings.model_copy(update={"threads": settings.threads or 1}))


def _without_seed(text: str) -> dict[str, Any]:
    return {key: value for key, value in parse(text, "config").items() if key != "seed"}


def _with_seed(settings: Mapping[str, Any], seed: int) -> dict[str, Any]:
    return {"seed": seed, **{key: value for key, value in settings.items() if key not in RECORDED}}


def _folder(
    path: Path,
    settings: Mapping[str, Any],
    experiment: RunConfig,
    seeds: Sequence[int],
    trust: Collection[str],
) -> GroupFolder:
    """Return the group's folder, new or with the same settings."""
    if is_group(path):
        there = GroupFolder(path)
        refuse_strangers(there.settings_path, there.text(), trust)  # to compare imports what it names
        _refuse_others(there, settings, experiment)
    return GroupFolder.create(path, settings, seeds)


def _refuse_others(folder: GroupFolder, settings: Mapping[str, Any], experiment: RunConfig) -> None:
    known = folder.settings()
    text = text_of(_with_seed(known, experiment.settings.seed))
    there = load_config(text, str(folder.settings_path), (), COMPONENTS).flat()
    there["started_from"] = known.get("started_from")
    wanted = {**experiment.flat(), "started_from": settings.get("started_from")}
    changed = [
        f"{key} is {there.get(key)!r}, not {wanted.get(key)!r}"
        for key in differing(there, wanted)
        if not key.startswith(WHERE)
    ]
    if changed:
        raise UserError(
            f"{folder.path}: expected the settings of this group, got others: {'; '.join(changed)}. Give the "
            "settings that it was started with, or another --run-dir"
        )


def _member(
    seed: int,
    settings: Mapping[str, Any],
    folder: GroupFolder | None,
    start_from: Run | Path | None,
    trust: Sequence[str],
) -> Member:
    path = None if folder is None else folder.members()[seed]
    return Member(seed, _with_seed(settings, seed), path, start_from, tuple(trust))
