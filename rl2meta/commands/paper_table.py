"""The table of ``rl2meta reproduce``: reads the evaluations of its cells, writes table.md and table.json."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rl2meta.commands.progress import say
from rl2meta.experiments.components import row_name
from rl2meta.experiments.config import RunConfig
from rl2meta.experiments.group_folder import first_run, is_group, members
from rl2meta.experiments.judging import trained_with
from rl2meta.experiments.overrides import judged
from rl2meta.experiments.papers import Paper
from rl2meta.experiments.restore import load_run_config
from rl2meta.experiments.run_folder import RunFolder, has_run
from rl2meta.files import read_file, reading, write_atomically, writing

_Count = Annotated[int, Field(ge=0, lt=2**63)]
_Number = Annotated[float, Field(ge=-1e100, le=1e100, allow_inf_nan=False)]


class _Ends(BaseModel):
    """A 95 % interval."""

    low: _Number
    high: _Number


class _OverSeeds(BaseModel):
    """What evaluation.json says of the level of training seeds."""

    model_config = ConfigDict(populate_by_name=True)

    seeds: list[_Count]
    returns: _Ends = Field(alias="return")


class _Block(BaseModel):
    """The mean reward of an episode in a block of episodes, with its 95 % interval."""

    mean: _Number
    low: _Number
    high: _Number


class _Judged(BaseModel):
    """What evaluation.json must say of an agent."""

    model_config = ConfigDict(strict=True)

    mean_return: _Number
    return_standard_error: _Number
    constants: dict[str, _Count | _Number] = {}
    adaptation: list[_Block] = []
    over_seeds: _OverSeeds | None = None


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


def evaluation(paper: Paper, run_dir: Path, tasks: int | None) -> _Said | None:
    """Return the newest evaluation of the finished run with all columns and the config's seed, or None.

    Args:
        paper: names the columns.
        run_dir: the run folder; it may be missing.
        tasks: the number of tasks that the evaluation must have; None: any number.
    """
    if not has_run(first_run(run_dir)):
        return None
    config = load_run_config(RunFolder.open(first_run(run_dir)))
    settings = config.settings
    wanted = trained_with(config, judged(config, paper.cells[run_dir.name].judged_with))
    with reading(run_dir):
        paths = sorted(run_dir.glob("evaluation*/evaluation.json"), key=lambda p: p.lstat().st_mtime)
    for path in reversed(paths):
        read = _read(path)
        said = None if read is None else _with_columns(read, paper, config)
        if said is None:
            continue
        final = (settings.training.updates, settings.evaluation.seed) == (said.update, said.seed)
        whole = not is_group(run_dir) or _seeds_of(said) == _begun(run_dir)
        if final and whole and said.trained_with == wanted and tasks in (None, said.num_tasks):
            return said
    return None


def _seeds_of(said: _Said) -> list[int]:
    """Return the training seeds of the agent that an evaluation is about."""
    level = next(iter(said.agents.values())).over_seeds
    return [] if level is None else level.seeds


def _begun(group: Path) -> list[int]:
    """Return the seeds of a group whose training has begun; more may have come since an evaluation."""
    return [seed for seed, place in members(group).items() if has_run(place)]


def _with_columns(said: _Said, paper: Paper, config: RunConfig) -> _Said | None:
    """Return an evaluation with the agents of the table in its order, or None if it lacks one of them."""
    trained, *references = paper.agents
    row = row_name(config)
    found = next((name for name in (row, trained) if name in said.agents), None)  # older files say no variant
    if found is None or not set(references) <= said.agents.keys():
        return None
    agents = {row: said.agents[found], **{name: said.agents[name] for name in references}}
    return said.model_copy(update={"agents": agents})


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


def write_table(paper: Paper, folder: Path, num_tasks: Mapping[str, int]) -> None:
    """Write table.md and table.json with every cell that was evaluated so far, in this call or before."""
    known = {cell: evaluation(paper, folder / cell, num_tasks.get(cell)) for cell in paper.cells}
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
            "mean_return": judged.mean_return,
            "standard_error": judged.return_standard_error,
            "constants": judged.constants,
            **_at_blocks(paper, judged),
            **_of_seeds(judged.over_seeds),
        }
        for (name, judged), column in zip(said.agents.items(), paper.agents.values(), strict=True)
    }
    facts = ("num_tasks", "seed", "update", "env_steps", "bayes_optimal_return", "oracle_return")
    return {**said.model_dump(include=set(facts)), "from": paper.cells[cell].begins_from, "agents": rows}


def _at_blocks(paper: Paper, said: _Judged) -> dict[str, Any]:
    """Return the blocks of the table by their numbers, those that the trial has; nothing for other tables."""
    known = {block: said.adaptation[block] for block in paper.blocks if block < len(said.adaptation)}
    return {"blocks": {block: each.model_dump() for block, each in known.items()}} if paper.blocks else {}


def _of_seeds(level: _OverSeeds | None) -> dict[str, Any]:
    """Return the training seeds of a group and the interval over them; nothing for a single run."""
    if level is None or len(level.seeds) < 2:
        return {}
    return {"seeds": level.seeds, "over_seeds": {"low": level.returns.low, "high": level.returns.high}}


def _markdown(paper: Paper, cells: dict[str, dict[str, Any]]) -> Iterator[str]:
    yield f"# {paper.source}\n"
    yield from (f"- {note}" for note in paper.notes)
    if paper.blocks:
        for heading in dict.fromkeys(paper.cells[cell].heading for cell in cells):
            same = {cell: each for cell, each in cells.items() if paper.cells[cell].heading == heading}
            yield from [f"\n## {heading}"] if heading else []
            yield from _by_block(paper, same)
        return
    for cell, filled in cells.items():
        begun = "" if filled["from"] is None else f", and began with the trained weights of {filled['from']}"
        yield f"\n## {cell}\n"
        yield (
            f"{filled['num_tasks']:,} held-out tasks (seed {filled['seed']}), the same for every row; "
            f"trained on {filled['env_steps']:,} environment steps{begun}.\n"
        )
        yield from _rows(filled)
        yield from _groups(filled)


def _by_block(paper: Paper, cells: dict[str, dict[str, Any]]) -> Iterator[str]:
    """Yield one table of cells; a reference with the same figures in several of them has one row."""
    tasks = sorted({f"{filled['num_tasks']:,}" for filled in cells.values()})
    over = f"{' or '.join(tasks)} held-out tasks"
    yield f"\nMean reward of an episode ± 95 % over {over}, after so many blocks of episodes.\n"
    yield f"| agent | environment steps | {' | '.join(map(str, paper.blocks))} |"
    yield f"| --- | ---: |{' ---: |' * len(paper.blocks)}"
    seen: set[str] = set()
    for cell, filled in cells.items():
        for place, (name, row) in enumerate(filled["agents"].items()):
            label, steps = (cell, f"{filled['env_steps']:,}") if place == 0 else (name, "0")
            line = f"| {label} | {steps} | {' | '.join(_said_blocks(paper, row['blocks']))} |"
            if line not in seen:
                yield line
            seen.add(line)


def _said_blocks(paper: Paper, blocks: dict[int, dict[str, float]]) -> Iterator[str]:
    for block in paper.blocks:
        each = blocks.get(block)
        yield "" if each is None else f"{each['mean']:.3f} ± {(each['high'] - each['low']) / 2:.3f}"


def _groups(filled: dict[str, Any]) -> Iterator[str]:
    for name, row in filled["agents"].items():
        if "seeds" in row:
            low, high = row["over_seeds"]["low"], row["over_seeds"]["high"]
            yield (
                f"\n{name}: a mean over {len(row['seeds'])} training seeds; 95 % over seeds and tasks: "
                f"{low:.2f} to {high:.2f}."
            )


def _rows(filled: dict[str, Any]) -> Iterator[str]:
    bayes, oracle = filled["bayes_optimal_return"], filled["oracle_return"]
    ceiling = oracle if bayes is None else bayes
    kind = "task known" if bayes is None else "Bayes-optimal"
    yield f"| agent | published | ours | standard error | ceiling ({kind}) | share | constants |"
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
