"""``rl2meta reproduce``: a published table, filled with our own figures."""

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rl2meta.commands.components import read_config
from rl2meta.commands.evaluate import evaluate_run
from rl2meta.commands.papers import Cell, Paper, chosen_cells, load_paper
from rl2meta.commands.progress import say
from rl2meta.commands.restore import load_run_config
from rl2meta.commands.train import resume_run, start_run
from rl2meta.config import differing
from rl2meta.errors import UserError
from rl2meta.files import write_atomically, writing
from rl2meta.run_folder import RunFolder


def reproduce(
    name: str, *, cells: Sequence[str], budget: float | None, tasks: int | None, out: Path | None, device: str
) -> int:
    """Train or reuse each cell, evaluate every column on the same tasks, write the table; return exit code.

    The table is written anew after each cell. Called again it continues where it stopped.
    """
    paper = load_paper(name)
    wanted = chosen_cells(paper, list(cells))
    folder = Path("runs") / name if out is None else out
    # All of it is read first: a mistake in the last cell shall not show after the first one's hours.
    experiments = {cell: _experiment(paper.cells[cell], budget, device) for cell in wanted}
    for number, (cell, overrides) in enumerate(experiments.items(), start=1):
        say(f"[{number}/{len(wanted)}] {name} {cell}")
        run_dir = folder / cell
        code = _train(paper.cells[cell].config, overrides, run_dir)
        if code:
            say(f"and then this table with the same command, which goes on with {cell}")
            return code
        if _evaluation(paper, run_dir, tasks) is None:
            against = ",".join(list(paper.agents)[1:])
            evaluate_run(run_dir, [], tasks=tasks, seed=None, against=against, out=None, device=device)
        _write_table(paper, folder, tasks)
    say(f"wrote {folder / 'table.md'} and table.json")
    return 0


def _experiment(cell: Cell, budget: float | None, device: str) -> list[str]:
    """Return the cell's overrides; with a budget, as many updates as its environment steps pay for."""
    overrides = [*cell.overrides, f"device={device}"]
    config = read_config(cell.config, overrides)
    if budget is None:
        return overrides
    training = config.settings.training
    steps = training.trials_per_update * training.episodes_per_trial * config.distribution.horizon
    if not math.isfinite(budget) or budget < steps:
        raise UserError(
            f"--budget: expected the {steps:,} environment steps of an update or more, got {budget:g}"
        )
    return [*overrides, f"training.updates={int(budget // steps)}"]


def _train(source: str, overrides: list[str], run_dir: Path) -> int:
    if not (run_dir / "config.yaml").exists():
        return start_run(source, overrides, run_dir)
    there, wanted = (
        load_run_config(RunFolder.open(run_dir)).identity(),
        read_config(source, overrides).identity(),
    )
    changed = [f"{key} is {there.get(key)!r}, not {wanted.get(key)!r}" for key in differing(there, wanted)]
    if changed:
        raise UserError(
            f"{run_dir}: expected the run of this cell, got one with other settings: {'; '.join(changed)}. "
            "Give the --budget that it was begun with, or another --out"
        )
    return resume_run(run_dir, None, ())


def _evaluation(paper: Paper, run_dir: Path, tasks: int | None) -> dict[str, Any] | None:
    """Return the newest evaluation of the trained run that has all columns, on ``tasks`` if that is given."""
    for path in sorted(run_dir.glob("evaluation*/evaluation.json"), key=lambda p: p.stat().st_mtime)[::-1]:
        said: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        whole = set(paper.agents) <= said["agents"].keys() and not said["trained_with"]
        if whole and _is_final(run_dir, said) and tasks in (None, said["num_tasks"]):
            return said
    return None


def _is_final(run_dir: Path, said: dict[str, Any]) -> bool:
    rows = RunFolder.open(run_dir).read_metrics()
    return bool(rows) and said["update"] == rows[-1]["update"]


def _write_table(paper: Paper, folder: Path, tasks: int | None) -> None:
    """Write table.md and table.json of every cell that has been evaluated so far."""
    known = {
        cell: _evaluation(paper, folder / cell, tasks) for cell in paper.cells if (folder / cell).is_dir()
    }
    cells = {cell: _filled(paper, cell, said) for cell, said in known.items() if said is not None}
    data = {"source": paper.source, "notes": paper.notes, "cells": cells}
    with writing(folder):
        write_atomically(folder / "table.json", json.dumps(data, indent=2, ensure_ascii=False) + "\n")
        write_atomically(folder / "table.md", "\n".join(_markdown(paper, cells)) + "\n")


def _filled(paper: Paper, cell: str, said: dict[str, Any]) -> dict[str, Any]:
    published = paper.cells[cell].published
    rows = {
        name: {
            "column": column,
            "published": None if column is None else published[column],
            "mean_return": said["agents"][name]["mean_return"],
            "standard_error": said["agents"][name]["return_standard_error"],
            "constants": said["agents"][name].get("constants", {}),
        }
        for name, column in paper.agents.items()
    }
    facts = ("num_tasks", "seed", "update", "env_steps", "bayes_optimal_return", "oracle_return")
    return {**{fact: said[fact] for fact in facts}, "agents": rows}


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
        bound = ("", "") if ceiling is None else (f"{ceiling:.2f}", f"{row['mean_return'] / ceiling:.1%}")
        constants = ", ".join(f"{key}={value:g}" for key, value in row["constants"].items())
        label = name if row["column"] is None else f"{name} ({row['column']})"
        yield (
            f"| {label} | {shown} | {row['mean_return']:.2f} | {row['standard_error']:.2f} | {bound[0]} | "
            f"{bound[1]} | {constants} |"
        )
