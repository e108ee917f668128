"""What ``rl2meta.train``, ``resume`` and ``load_run`` do, for one run and for a group of several seeds."""

from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import overload

from rl2meta.errors import UserError
from rl2meta.experiments import groups, restore, trainings
from rl2meta.experiments.group_folder import is_group
from rl2meta.experiments.groups import Group
from rl2meta.experiments.run import Callback, Run
from rl2meta.experiments.trainings import Config, Overrides
from rl2meta.ranks import ONE, Ranks


@overload
def train(
    config: Config,
    overrides: Overrides | None = None,
    *,
    seeds: None = None,
    jobs: int = 1,
    run_dir: str | Path | None = None,
    start_from: Run | Group | str | Path | None = None,
    callbacks: Sequence[Callback] = (),
    on_start: Callable[[Run], None] | None = None,
    trust: Collection[str] = (),
    ranks: Ranks = ONE,
) -> Run: ...


@overload
def train(
    config: Config,
    overrides: Overrides | None = None,
    *,
    seeds: Iterable[int],
    jobs: int = 1,
    run_dir: str | Path | None = None,
    start_from: Run | Group | str | Path | None = None,
    callbacks: Sequence[Callback] = (),
    on_start: Callable[[Run], None] | None = None,
    trust: Collection[str] = (),
    ranks: Ranks = ONE,
) -> Group: ...


def train(
    config: Config,
    overrides: Overrides | None = None,
    *,
    seeds: Iterable[int] | None = None,
    jobs: int = 1,
    run_dir: str | Path | None = None,
    start_from: Run | Group | str | Path | None = None,
    callbacks: Sequence[Callback] = (),
    on_start: Callable[[Run], None] | None = None,
    trust: Collection[str] = (),
    ranks: Ranks = ONE,
) -> Run | Group:
    """Train the agent of an experiment, once or with several seeds.

    This sets torch's number of CPU threads and its precision to those of the config, because the exact
    numbers of a run depend on them; with ``seeds`` it is one thread unless the config says another number.

    Args:
        config: the name of a shipped config, a YAML file, or its sections as a mapping.
        overrides: settings to change, by dotted key: ``{"agent.core.hidden_size": 64}``; or as text,
            ``["agent.core.hidden_size=64"]``.
        seeds: of the runs of a group, such as ``range(5)``; None: one run, with the seed of the config.
        jobs: number of trainings of a group at a time; more than one run in processes of their own and
            need ``run_dir``.
        run_dir: a new folder for config, metrics, TensorBoard events and checkpoints; None: write nothing.
            For a group, a folder with one of these for each seed; if it is there already, the group goes on.
        start_from: another run of the same agent, whose weights are the initial weights of this one; what is
            carried over says ``inheriting.begin_with``. Of another group, each run takes those of its seed;
            ``zoo:NAME`` is an agent that comes with the package.
        callbacks: each is called after each update with the run and the update's metrics; if one returns
            False, the training saves a checkpoint and stops.
        on_start: called with the run before its first update.
        trust: modules that ``start_from`` may import beyond those of ``config``, if it was trained elsewhere;
            also those of a ``config`` that is the config.yaml of a run folder.
        ranks: the processes that train one run together; see ``rl2meta.ranks.joined``.

    Returns:
        The run, or the group; unfinished if a callback stopped it.

    Raises:
        UserError: for a config with faults, a folder that is in use, weights that do not fit, or a training
            that diverges.
    """
    if seeds is not None:
        _refuse_ranks(ranks)
        return groups.train_group(
            config,
            overrides,
            seeds=seeds,
            run_dir=run_dir,
            jobs=jobs,
            start_from=start_from,
            callbacks=callbacks,
            on_start=on_start,
            trust=trust,
        )
    if jobs != 1:
        raise UserError(
            f"jobs: expected seeds beside it, got jobs={jobs} for a single run; give seeds=range(5)"
        )
    return trainings.train(
        config,
        overrides,
        run_dir=run_dir,
        start_from=_single(start_from),
        callbacks=callbacks,
        on_start=on_start,
        trust=trust,
        ranks=ranks,
    )


def resume(
    run_dir: Run | Group | str | Path,
    config: Config | None = None,
    overrides: Overrides | None = None,
    *,
    jobs: int = 1,
    callbacks: Sequence[Callback] = (),
    on_start: Callable[[Run], None] | None = None,
    trust: Collection[str] = (),
    ranks: Ranks = ONE,
) -> Run | Group:
    """Continue the run or the group in a folder from its newest checkpoints; a finished one stays as it is.

    Args:
        run_dir: the run folder, or the folder of a group; or a run or a group with a folder.
        config: the config that the run was started with, to check that it is the same; None: no check.
        overrides: settings of the workers, which change no result; with ``config``, also those of the start.
        jobs: as for ``train``.
        callbacks: as for ``train``.
        on_start: called with the run before its next update; not called for a finished run.
        trust: modules that a folder from elsewhere may import, beyond those that ``config`` names.
        ranks: as for ``train``.

    Raises:
        UserError: if there is no such run, it is in use, or a setting differs from the start of the run.
    """
    where = run_dir.path if isinstance(run_dir, Run | Group) else run_dir
    if where is None:
        raise UserError(f"resume: expected a run with a folder, got {run_dir!r}; train it with run_dir")
    if not is_group(where):
        return trainings.resume(
            where, config, overrides, callbacks=callbacks, on_start=on_start, trust=trust, ranks=ranks
        )
    _refuse_ranks(ranks)
    if config is not None or overrides:
        raise UserError(
            "resume: expected no config for a group; to check it, call train(..., seeds=...) again"
        )
    return groups.resume_group(where, jobs=jobs, callbacks=callbacks, on_start=on_start, trust=trust)


def load_run(path: str | Path, device: str = "cpu", trust: Collection[str] = ()) -> Run | Group:
    """Return the run in a folder, or the group, in the state of the newest complete checkpoints.

    Args:
        path: the run folder, the folder of a group, or ``zoo:NAME`` for an agent that comes with the package.
        device: of the agent.
        trust: the modules that a folder from elsewhere may import, such as ``["my_package.my_module"]``; a
            folder that this user trained imports what it names.

    Raises:
        UserError: if there is no such run, it has no complete checkpoint, or it names other modules.
    """
    load = groups.load_group if is_group(path) else restore.load_run
    return load(path, device, trust)


def _refuse_ranks(ranks: Ranks) -> None:
    """Refuse ranks for a group, whose runs are trained side by side without them.

    Raises:
        UserError: with the number of ranks.
    """
    if ranks.size > 1:
        raise UserError(
            f"--seeds: expected one process for a group of runs, got {ranks.size} ranks; train each seed "
            "alone, or the group without torchrun"
        )


def _single(start_from: Run | Group | str | Path | None) -> Run | str | Path | None:
    """Return a run and refuse a group, whose weights are several.

    Raises:
        UserError: for a group.
    """
    if isinstance(start_from, Group) or (isinstance(start_from, str | Path) and is_group(start_from)):
        raise UserError(
            "--from (start_from): expected one run, got a group; name one of its runs, such as GROUP/seed0, "
            "or train with several seeds"
        )
    return start_from
