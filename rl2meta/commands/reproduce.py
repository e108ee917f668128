"""``rl2meta reproduce``: fill a published table with our own figures."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rl2meta.commands.evaluate import evaluate_run
from rl2meta.commands.progress import say
from rl2meta.commands.train import resume_run, start_run
from rl2meta.devices import resolve_device
from rl2meta.errors import UserError
from rl2meta.experiments import checkpoints
from rl2meta.experiments.components import read_config
from rl2meta.experiments.config import RunConfig, differing
from rl2meta.experiments.papers import Cell, Paper, chosen_cells, load_paper
from rl2meta.experiments.restore import load_run_config
from rl2meta.experiments.run_folder import RunFolder
from rl2meta.files import read_file, reading, write_atomically, writing

_Count = Annotated[int, Field(ge=0, lt=2**63)]
_Number = Annotated[float, Field(ge=-1e100, le=1e100, allow_inf_nan=False)]


class _Judged(BaseModel):
    """What evaluation.json must say of an agent."""

    model_config = ConfigDict(strict=True)

    mean_return: _Number
    return_standard_error: _Number
    constants: dict[str, _Count | _Number] = {}


class _Said(BaseModel):
    """What evaluation.json must say to fill a cell; whatever it says beyond that is ignored."""

    model_config = ConfigDict(strict=True)

    agents: dict[str, _Judged]
    num_tasks: _Count
    seed: _Count
    update: _Count
    env_steps: _Count
    trained_with: dict[str, Any]
    bayes_optimal_return: _Number | None
    oracle_return: _Number | None


class _Experiment(NamedTuple):
    """A cell, ready for training: its name, its config, its overrides and its run folder."""

    cell: str
    source: str
    overrides: list[str]
    config: RunConfig
    run_dir: Path


def reproduce(
    name: str,
    *,
    cells: Sequence[str],
    budget: float | None,
    tasks: int | None,
    out: Path | None,
    device: str,
    threads: int | None = None,
) -> int:
    """Train each cell or reuse its run, evaluate all columns on the same tasks, write the table.

    The table is written again after each cell. A second call continues where the first one stopped. Returns
    the exit code.
    """
    paper = load_paper(name)
    folder = Path("runs") / name if out is None else out
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--out: expected a folder, or none yet, got the file {folder}")
    resolve_device(device)
    common = [f"device={device}", *([] if threads is None else [f"threads={threads}"])]
    # All cells are checked first: a mistake in the last cell must not appear after hours of training.
    if tasks is not None:
        common.append(f"evaluation.tasks={tasks}")
    wanted = chosen_cells(paper, list(cells)).items()
    experiments = [_experiment(label, cell, budget, common, folder) for label, cell in wanted]
    num_tasks = {each.cell: each.config.settings.evaluation.tasks for each in experiments}
    for number, experiment in enumerate(experiments, start=1):
        say(f"[{number}/{len(experiments)}] {name} {experiment.cell}")
        code = _train(experiment)
        if code:
            say(f"then continue this table with the same command; it continues with {experiment.cell}")
            return code
        if _evaluation(paper, experiment.run_dir, num_tasks[experiment.cell]) is None:
            _evaluate(paper, experiment, device, threads)
        _write_table(paper, folder, num_tasks)
    say(f"wrote {folder / 'table.md'} and table.json")
    return 0


def _experiment(
    label: str, cell: Cell, budget: float | None, common: Sequence[str], folder: Path
) -> _Experiment:
    """Return the cell's experiment; ``budget`` limits its environment steps and so its updates."""
    overrides = [*cell.overrides, *common]
    config = read_config(cell.config, overrides)
    if budget is not None:
        training = config.settings.training
        steps = training.trials_per_update * training.episodes_per_trial * config.distribution.horizon
        if not math.isfinite(budget) or budget < steps:
            raise UserError(
                f"--budget: expected at least the {steps:,} environment steps of one update, got {budget:g}"
            )
        overrides.append(f"training.updates={int(budget // steps)}")
        config = read_config(cell.config, overrides)
    experiment = _Experiment(label, cell.config, overrides, config, folder / label)
    _refuse_another_run(experiment)
    return experiment


def _refuse_another_run(experiment: _Experiment) -> None:
    if not _has_run(experiment.run_dir):
        return
    there = load_run_config(RunFolder.open(experiment.run_dir)).identity()
    wanted = experiment.config.identity()
    changed = [f"{key} is {there.get(key)!r}, not {wanted.get(key)!r}" for key in differing(there, wanted)]
    if changed:
        raise UserError(
            f"{experiment.run_dir}: expected the run of this cell, got one with other settings: "
            f"{'; '.join(changed)}. Give the --budget that it was started with, or another --out"
        )


def _has_run(run_dir: Path) -> bool:
    return (run_dir / "config.yaml").exists()


def _train(experiment: _Experiment) -> int:
    """Start the run, or continue it with the settings it was started with; do nothing if it is finished."""
    if not _has_run(experiment.run_dir):
        return start_run(experiment.source, experiment.overrides, experiment.run_dir)
    saved = checkpoints.newest(RunFolder.open(experiment.run_dir).checkpoints_path, say)
    if saved is not None and saved.update >= experiment.config.settings.training.updates:
        return 0
    return resume_run(experiment.run_dir, None, ())


def _evaluate(paper: Paper, experiment: _Experiment, device: str, threads: int | None) -> None:
    settings = experiment.config.settings.evaluation
    evaluate_run(
        experiment.run_dir,
        [],
        tasks=settings.tasks,
        seed=settings.seed,
        against=",".join(list(paper.agents)[1:]),
        device=device,
        threads=threads,
    )


def _evaluation(paper: Paper, run_dir: Path, tasks: int | None) -> _Said | None:
    """Return the newest evaluation of the finished run with all columns and the config's seed, or None.

    Args:
        paper: names the columns.
        run_dir: the run folder; it may be missing.
        tasks: the number of tasks that the evaluation must have; None: any number.
    """
    if not _has_run(run_dir):
        return None
    settings = load_run_config(RunFolder.open(run_dir)).settings
    with reading(run_dir):
        paths = sorted(run_dir.glob("evaluation*/evaluation.json"), key=lambda p: p.lstat().st_mtime)
    for path in reversed(paths):
        said = _read(path)
        if said is None or not set(paper.agents) <= said.agents.keys():
            continue
        final = (settings.training.updates, settings.evaluation.seed) == (said.update, said.seed)
        if final and not said.trained_with and tasks in (None, said.num_tasks):
            return said
    return None


def _read(path: Path) -> _Said | None:
    """Return what an evaluation says; None, with a warning, if its file is damaged."""
    try:
        return _Said.model_validate_json(read_file(path, times=10))
    except (OSError, ValidationError) as error:
        say(f"warning: {path}: expected an evaluation, got something else ({_first(error)}); it is ignored")
        return None


def _first(error: OSError | ValidationError) -> str:
    """Return the first fault in one line."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    fault = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(map(str, fault["loc"]))
    return f"{where}: {fault['msg']}" if where else fault["msg"]


def _write_table(paper: Paper, folder: Path, num_tasks: Mapping[str, int]) -> None:
    """Write table.md and table.json with every cell that was evaluated so far, in this call or before."""
    known = {cell: _evaluation(paper, folder / cell, num_tasks.get(cell)) for cell in paper.cells}
    cells = {cell: _filled(paper, cell, said) for cell, said in known.items() if said is not None}
    data = {"source": paper.source, "notes": paper.notes, "cells": cells}
    with writing(folder):
        write_atomically(folder / "table.json", json.dumps(data, indent=2, ensure_ascii=False) + "\n")
        write_atomically(folder / "table.md", "\n".join(_markdown(paper, cells)) + "\n")


def _filled(paper: Paper, cell: str, said: _Said) -> dict[str, Any]:
    published = paper.cells[cell].published
    rows = {
        name: {
            "column": column,
            "published": None if column is None else published[column],
            "mean_return": said.agents[name].mean_return,
            "standard_error": said.agents[name].return_standard_error,
            "constants": said.agents[name].constants,
        }
        for name, column in paper.agents.items()
    }
    facts = ("num_tasks", "seed", "update", "env_steps", "bayes_optimal_return", "oracle_return")
    return {**said.model_dump(include=set(facts)), "agents": rows}


def _markdown(paper: Paper, cells: dict[str, dict[str, Any]]) -> Iterator[str]:
    yield f"# {paper.source}\n"
    yield from (f"- {note}" for note in paper.notes)
    for cell, filled in cells.items():
        yield f"\n## {cell}\n"
        yield (
            f"{filled['num_tasks']:,} held-out tasks (seed {filled['seed']}), the same for every row; "
            f"trained on {filled['env_steps']:,} environment steps.\n"
        )
        yield from _rows(filled)


def _rows(filled: dict[str, Any]) -> Iterator[str]:
    bayes, oracle = filled["bayes_optimal_return"], filled["oracle_return"]
    ceiling = oracle if bayes is None else bayes
    kind = "task known" if bayes is None else "Bayes-optimal"
    yield f"| agent | published | ours | s.e. | ceiling ({kind}) | share | constants |"
    yield "| --- | ---: | ---: | ---: | ---: | ---: | --- |"
    for name, row in filled["agents"].items():
        shown = "" if row["published"] is None else f"{row['published']:.1f}"
        share = f"{row['mean_return'] / ceiling:.1%}" if ceiling else ""
        bound = ("", "") if ceiling is None else (f"{ceiling:.2f}", share)
        constants = ", ".join(f"{key}={value:g}" for key, value in row["constants"].items())
        label = name if row["column"] is None else f"{name} ({row['column']})"
        yield (
            f"| {label} | {shown} | {row['mean_return']:.2f} | {row['standard_error']:.2f} | {bound[0]} | "
            f"{bound[1]} | {constants} |"
        )
