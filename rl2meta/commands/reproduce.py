"""``rl2meta reproduce``: fill a published table with our own figures."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from rl2meta.commands.evaluate import evaluate_run
from rl2meta.commands.paper_table import evaluation, write_table
from rl2meta.commands.progress import say
from rl2meta.commands.train import resume_run, start_run
from rl2meta.commands.train_group import seeds_of, start_group
from rl2meta.devices import resolve_device
from rl2meta.errors import UserError
from rl2meta.experiments import checkpoints
from rl2meta.experiments.components import read_config
from rl2meta.experiments.config import RunConfig, differing
from rl2meta.experiments.group_folder import first_run, is_group, members
from rl2meta.experiments.overrides import judged
from rl2meta.experiments.papers import Cell, Paper, chosen_cells, load_paper, with_core, with_origins
from rl2meta.experiments.restore import load_run_config, origin_of
from rl2meta.experiments.run_folder import RunFolder, has_run
from rl2meta.experiments.zoo import refuse_results_in_zoo


class _Experiment(NamedTuple):
    """A cell, ready for training.

    Attributes:
        cell: its name.
        source, overrides: the config that it is trained by.
        config: the same with the settings of the evaluation, which never concern the training.
        run_dir: its run folder.
        begins_from: the cell whose trained weights it begins with, or None.
        judged_with: changes of the config for the evaluation.
    """

    cell: str
    source: str
    overrides: list[str]
    config: RunConfig
    run_dir: Path
    begins_from: str | None
    judged_with: list[str]


class _Seeds(NamedTuple):
    """The training seeds of every cell, and how many trainings run at a time."""

    chosen: list[int]
    jobs: int | None


def reproduce(
    name: str,
    *,
    cells: Sequence[str],
    core: str | None = None,
    budget: float | None,
    tasks: int | None,
    out: Path | None,
    device: str,
    threads: int | None = None,
    seeds: str | None = None,
    jobs: int | None = None,
) -> int:
    """Train each cell or reuse its run, evaluate all columns on the same tasks, write the table.

    A cell that begins with the weights of another cell has that one trained first. The table is written again
    after each cell. A second call continues where the first one stopped. Returns the exit code.
    """
    usual = load_paper(name)
    paper = usual if core is None else with_core(usual, core)
    ours = name if paper.core == usual.core else f"{name}-{paper.core}"
    folder = Path("runs") / ours if out is None else out
    refuse_results_in_zoo(folder, "--out")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--out: expected a folder, or none yet, got the file {folder}")
    resolve_device(device)
    if jobs is not None and seeds is None:
        raise UserError(f"--jobs: expected --seeds beside it, got --jobs {jobs} for one run; leave it out")
    group = None if seeds is None else _Seeds(seeds_of(seeds), jobs)
    common = [f"device={device}", *([] if threads is None else [f"threads={threads}"])]
    sized = [] if tasks is None else [f"evaluation.tasks={tasks}"]
    # All cells are checked first: a mistake in the last cell must not appear after hours of training.
    wanted = chosen_cells(paper, list(cells))
    needed = with_origins(paper, wanted).items()
    experiments = [_experiment(label, cell, budget, common, sized, folder) for label, cell in needed]
    if group is None:
        _refuse_groups(experiments)
    else:
        _refuse_unfinished(experiments, group.chosen)
    num_tasks = {
        each.cell: each.config.settings.evaluation.tasks for each in experiments if each.cell in wanted
    }
    for number, experiment in enumerate(experiments, start=1):
        only = "" if experiment.cell in wanted else ", whose weights another cell begins with"
        say(f"[{number}/{len(experiments)}] {name} {experiment.cell}{only}")
        code = _train(experiment) if group is None else _train_group(experiment, group)
        if code:
            say(f"then continue this table with the same command; it continues with {experiment.cell}")
            return code
        if experiment.cell not in wanted:
            continue
        if evaluation(paper, experiment.run_dir, num_tasks[experiment.cell]) is None:
            _evaluate(paper, experiment, device, threads)
        write_table(paper, folder, num_tasks)
    say(f"wrote {folder / 'table.md'} and table.json")
    return 0


def _experiment(
    label: str,
    cell: Cell,
    budget: float | None,
    common: Sequence[str],
    sized: Sequence[str],
    folder: Path,
) -> _Experiment:
    """Return the cell's experiment; ``budget`` limits its environment steps and so its updates."""
    overrides = [*cell.overrides, *common]
    config = read_config(cell.config, [*overrides, *sized])
    if budget is not None:
        training = config.settings.training
        steps = training.trials_per_update * training.episodes_per_trial * config.distribution.horizon
        if not math.isfinite(budget) or budget < steps:
            raise UserError(
                f"--budget: expected at least the {steps:,} environment steps of one update, got {budget:g}"
            )
        overrides.append(f"training.updates={int(budget // steps)}")
        config = read_config(cell.config, [*overrides, *sized])
    place, origin = folder / label, cell.begins_from
    experiment = _Experiment(label, cell.config, overrides, config, place, origin, cell.judged_with)
    judged(config, cell.judged_with)
    _refuse_another_run(experiment)
    return experiment


def _refuse_another_run(experiment: _Experiment) -> None:
    run_dir = first_run(experiment.run_dir)
    if not has_run(run_dir):
        return
    there = load_run_config(RunFolder.open(run_dir)).identity()
    wanted = experiment.config.identity()
    if is_group(experiment.run_dir):
        there["seed"] = wanted["seed"]  # a group has several
    changed = [f"{key} is {there.get(key)!r}, not {wanted.get(key)!r}" for key in differing(there, wanted)]
    begun = _origin(run_dir)
    if begun != experiment.begins_from:
        weights = [f"the weights of {name or 'its own seed'}" for name in (begun, experiment.begins_from)]
        changed.append(f"it began with {weights[0]}, not {weights[1]}")
    if changed:
        raise UserError(
            f"{experiment.run_dir}: expected the run of this cell, got one with other settings: "
            f"{'; '.join(changed)}. Give the --budget that it was started with, or another --out"
        )


def _refuse_groups(experiments: Sequence[_Experiment]) -> None:
    for run_dir in (each.run_dir for each in experiments if is_group(each.run_dir)):
        seeds = ",".join(map(str, members(run_dir)))
        raise UserError(
            f"--seeds: expected those of the group in {run_dir}, got none; add --seeds {seeds}, or give "
            "another --out"
        )


def _refuse_unfinished(experiments: Sequence[_Experiment], seeds: Sequence[int]) -> None:
    """Refuse to leave out seeds of a group that have begun: a cell is filled by finished trainings alone."""
    for each in experiments:
        known = members(each.run_dir) if is_group(each.run_dir) else {}
        if others := [
            s for s, run in known.items() if s not in seeds and has_run(run) and not _done(run, each)
        ]:
            whole = ",".join(map(str, sorted({*seeds, *others})))
            raise UserError(
                f"--seeds: expected also the unfinished seeds {others} of {each.run_dir}, got {list(seeds)}; "
                f"add --seeds {whole}, or give another --out"
            )


def _done(run_dir: Path, experiment: _Experiment) -> bool:
    saved = checkpoints.newest(RunFolder.open(run_dir).checkpoints_path, say)
    return saved is not None and saved.update >= experiment.config.settings.training.updates


def _origin(run_dir: Path) -> str | None:
    """Return the name of the cell whose weights the run of a cell began with, or None."""
    origin = origin_of(RunFolder.open(run_dir))
    if origin is None or origin.path is None:
        return None
    path = Path(origin.path)
    return path.parent.name if is_group(path.parent) else path.name


def _train(experiment: _Experiment) -> int:
    """Start the run, or continue it with the settings it was started with; do nothing if it is finished."""
    if not has_run(experiment.run_dir):
        origin = experiment.begins_from
        start_from = None if origin is None else experiment.run_dir.with_name(origin)
        return start_run(experiment.source, experiment.overrides, experiment.run_dir, start_from)
    if _done(experiment.run_dir, experiment):
        return 0
    return resume_run(experiment.run_dir, None, ())


def _train_group(experiment: _Experiment, seeds: _Seeds) -> int:
    """Start the group of a cell, or continue it."""
    origin = experiment.begins_from
    start_from = None if origin is None else experiment.run_dir.with_name(origin)
    return start_group(
        experiment.source, experiment.overrides, seeds.chosen, experiment.run_dir, seeds.jobs, start_from
    )


def _evaluate(paper: Paper, experiment: _Experiment, device: str, threads: int | None) -> None:
    settings = experiment.config.settings.evaluation
    evaluate_run(
        experiment.run_dir,
        experiment.judged_with,
        tasks=settings.tasks,
        seed=settings.seed,
        against=",".join(list(paper.agents)[1:]),
        device=device,
        threads=threads,
    )
