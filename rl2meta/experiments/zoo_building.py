"""Make an entry of the zoo from trained runs that differ in the seed alone; for maintainers.

An entry is a run folder with what a reader needs: the weights without the optimiser's moments, the config,
some rows of the metrics, the evaluation without its arrays, and a record of how the agent was trained and
chosen. Of several seeds it is the one with the median score: the best one would promise what another training
does not give.
"""

import json
import re
import shlex
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rl2meta.errors import UserError
from rl2meta.evaluation import AgentResult
from rl2meta.evaluation_files import write_evaluation
from rl2meta.experiments import catalogue, checkpoints
from rl2meta.experiments.checkpoint_files import Checkpoint
from rl2meta.experiments.comparing import together
from rl2meta.experiments.components import AGENTS, read_config
from rl2meta.experiments.config import differing
from rl2meta.experiments.entry import load_run
from rl2meta.experiments.evaluations import Evaluation, evaluate
from rl2meta.experiments.groups import Group
from rl2meta.experiments.inheriting import without_moments
from rl2meta.experiments.judging import Say, Watch, silent, unwatched
from rl2meta.experiments.recorder import checkpoint_of
from rl2meta.experiments.run import Run
from rl2meta.experiments.run_folder import RunFolder
from rl2meta.experiments.yaml_text import parse, text_of
from rl2meta.experiments.zoo import RECORD, ZOO, ZooEntry
from rl2meta.experiments.zoo_page import size_of
from rl2meta.files import make_folder, write_atomically, writing

LARGEST = 1_000_000
"""The largest size of an entry in bytes."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,59}")
_ROWS = 60  # of the metrics that an entry keeps


def add_entry(
    name: str,
    runs: Sequence[str | Path],
    *,
    config: str | None = None,
    tasks: int | None = None,
    against: str | None = None,
    into: Path = ZOO,
    say: Say = silent,
    watch: Watch = unwatched,
) -> Path:
    """Make the entry ``name`` from trained runs, or from a group; return its folder.

    The runs are evaluated here, so that the entry claims what the present version of the package plays.

    Args:
        name: of the entry.
        runs: folders of finished runs that differ in the seed alone, or of a group of them.
        config: the shipped config that they were trained with; None: the one called ``name``.
        tasks: number of held-out tasks; None: as in the config.
        against: names of references; None: as in the config.
        into: the folder of the zoo.
        say: called with one line of text before each step.
        watch: called after each batch of trials.

    Raises:
        UserError: for runs that are not finished or differ in more than the seed, a config that they were not
            trained with, an entry that is there already, and one that is too large or says where it was made.
    """
    if not _NAME.fullmatch(name):
        raise UserError(f"--name: expected at most 60 letters, digits and any of _ . -, got {name!a:.80}")
    folder = into / name
    if folder.exists():
        raise UserError(f"--name: expected a new entry, got {folder}; remove that folder to replace it")
    group = _group(runs)
    command = command_of(group, name if config is None else config, name)
    evaluation = evaluate(group, tasks=tasks, against=against, say=say, watch=watch)
    place, record = _chosen(group, evaluation, command, catalogue.list_configs()[config or name])
    with _beside(folder) as new:
        _write(new, group.runs[place], place, evaluation, record)
        _refuse_private(new, [Path(run.path) for run in group.runs if run.path is not None])
        _refuse_large(new)
    return folder


def _group(paths: Sequence[str | Path]) -> Group:
    """Return the runs as one group without a folder, so that nothing is written into theirs."""
    loaded = [load_run(path) for path in paths]
    _, found = together([each if isinstance(each, Group) else Group([each], each.path) for each in loaded])
    if len(found) != 1:
        raise UserError(f"RUN: expected runs that differ in the seed alone, got {len(found)} kinds of runs")
    if not found[0].finished:
        raise UserError("RUN: expected finished trainings; `rl2meta train --resume` finishes one")
    return Group(found[0].runs)


def command_of(group: Group, config: str, name: str) -> str:
    """Return the command that trains a group: a shipped config and what differs from it.

    Raises:
        UserError: if there is no such config, or no settings of it give this group.
    """
    if config not in catalogue.shipped_configs():
        raise UserError(f"--config: expected the shipped config of these runs, got {config!r}; name it")
    run = group.runs[0]
    ours, shipped = run.config.identity(), read_config(config).identity()
    changed = [key for key in differing(ours, shipped) if key in ours and key != "seed"]
    overrides = [f"{key}={json.dumps(ours[key])}" for key in changed]
    odd = [key for key in changed if key in ("distribution.name", "agent.name")]
    if not odd:
        given = read_config(config, [*overrides, f"seed={run.config.settings.seed}"])
        odd = differing(given.identity(), ours)
    if odd:
        raise UserError(f"--config: expected the config of these runs, got {config}: {', '.join(odd)} differ")
    origin = "" if run.origin is None else f" --from runs/{_short_place(run.origin.path)}"
    words = [*overrides, f"threads={run.config.settings.threads or 1}"]
    return (
        f"rl2meta train {config} {shlex.join(words)} --seeds {_said_seeds(group.seeds)}{origin} "
        f"--run-dir runs/{name}"
    )


def _said_seeds(seeds: Sequence[int]) -> str:
    first, last = seeds[0], seeds[-1]
    whole = list(seeds) == list(range(first, last + 1)) and len(seeds) > 1
    return f"{first}-{last}" if whole else ",".join(map(str, seeds))


def _chosen(group: Group, evaluation: Evaluation, command: str, line: str) -> tuple[int, ZooEntry]:
    """Return the place of the run with the median score, and the record of the entry."""
    scores = [_means(result) for result in _by_seed(evaluation)]
    loss = [score.get("regret", -score["return"]) for score in scores]
    order = sorted(range(len(loss)), key=lambda place: loss[place])
    place = order[len(order) // 2]  # of two in the middle, the worse one
    said = [{"seed": seed, **score} for seed, score in zip(group.seeds, scores, strict=True)]
    day = _day(group.runs[place])
    return place, ZooEntry(line, command, day, group.seeds[place], said, evaluation.facts["num_tasks"])


def _by_seed(evaluation: Evaluation) -> Sequence[AgentResult]:
    subject = next(iter(evaluation.results.values()))
    return subject.per_seed or (subject,)


def _means(result: AgentResult) -> dict[str, float]:
    """Return the mean return and, if it is known, the mean regret of a trial."""
    means = {"return": float(result.returns().mean())}
    if result.regrets is not None:
        means["regret"] = float(result.regrets.sum(axis=1, dtype=float).mean())
    return {name: round(value, 6) for name, value in means.items()}


def _day(run: Run) -> str:
    """Return the day on which the newest checkpoint of a run was written."""
    assert run.path is not None  # of runs that were loaded from folders
    newest = max((run.path / "checkpoints").glob("update_*/state.json"))
    return datetime.fromtimestamp(newest.stat().st_mtime, UTC).date().isoformat()


@contextmanager
def _beside(folder: Path) -> Iterator[Path]:
    """Make a folder beside the place of the entry, and rename it if the block writes all of it."""
    with writing(folder):
        make_folder(folder.parent)
        new = Path(tempfile.mkdtemp(prefix=".new-", dir=folder.parent))
    try:
        yield new
        with writing(folder):
            new.chmod(0o755)
            new.rename(folder)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _write(folder: Path, run: Run, place: int, evaluation: Evaluation, record: ZooEntry) -> None:
    new = RunFolder(folder)
    checkpoints.save(new.checkpoints_path, _weights_of(run))
    for row in _thinned(run.metrics):
        new.append_metrics(row)
    with writing(folder):
        (folder / "evaluation").mkdir()
    _write_evaluation(folder / "evaluation", run, place, evaluation)
    with writing(folder):
        write_atomically(folder / RECORD, text_of(asdict(record)))
        write_atomically(new.config_path, _config_text(run))


def _weights_of(run: Run) -> Checkpoint:
    """Return the newest checkpoint of a run without the moments of its optimisers."""
    saved = checkpoint_of(run.config, run.learner, run.update, run.env_steps)
    extras = AGENTS[run.config.agent_name].training_only
    return replace(saved, tensors=without_moments(saved.tensors, extras))


def _thinned(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return rows at about equal distances; those with scores on held-out tasks come first, and the last."""
    judged = [row for row in rows if "held_out_return" in row]
    kept = judged if len(judged) > 1 else list(rows)
    every = -(-len(kept) // _ROWS)  # rounded up
    return [row for place, row in enumerate(kept, 1) if place % every == 0 or row is kept[-1]]


def _write_evaluation(folder: Path, run: Run, place: int, evaluation: Evaluation) -> None:
    """Write the evaluation of one seed, beside the references of the group."""
    name, *others = evaluation.results
    chosen = replace(_by_seed(evaluation)[place], seeds=(run.config.settings.seed,))
    facts = {key: value for key, value in evaluation.facts.items() if key not in ("seeds", "updates")}
    facts |= {"update": run.update, "env_steps": run.env_steps}
    results = {name: chosen, **{other: evaluation.results[other] for other in others}}
    write_evaluation(folder, results, evaluation.ceilings, facts)
    (folder / "arrays.npz").unlink()


def _config_text(run: Run) -> str:
    """Return the config of a run with all defaults of today, and its origin without a place on a disk."""
    assert run.path is not None  # of runs that were loaded from folders
    said = parse(RunFolder(run.path).config_text(), "config.yaml")
    more: dict[str, Any] = {"device": "cpu", "kernels": None, "cuda_graphs": False}
    more["versions"] = said.get("versions", {})
    if run.origin is not None:
        more["started_from"] = {"path": _short_place(run.origin.path), "update": run.origin.update}
    return run.config.to_yaml(**more)


def _short_place(path: str | None) -> str | None:
    """Return the name of a run folder; of a run in a group, with that of the group."""
    if path is None:
        return None
    parts = Path(path).parts
    return "/".join(parts[-2:] if parts[-1].startswith("seed") else parts[-1:])


def _refuse_private(folder: Path, sources: Sequence[Path]) -> None:
    """Refuse an entry that says where it was made."""
    places = {str(path.resolve().parent) for path in sources} | {str(Path.home())}
    for path in filter(Path.is_file, folder.rglob("*")):
        found = [place for place in places if len(place) > 1 and place.encode() in path.read_bytes()]
        if found:
            raise UserError(
                f"{path.name}: expected an entry without paths of a machine, got {found[0]} in it"
            )


def _refuse_large(folder: Path) -> None:
    if (size := size_of(folder)) > LARGEST:
        raise UserError(
            f"expected an entry of at most {LARGEST:,} bytes, got {size:,}; use a smaller network"
        )
