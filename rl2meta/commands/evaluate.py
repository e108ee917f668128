"""``rl2meta evaluate``: a trained agent on held-out tasks, beside the references of its family."""

import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from rl2meta import checkpoints
from rl2meta.agents.references.bandits import Reference
from rl2meta.commands.components import COMPONENTS, make_learner, references_of
from rl2meta.config import RunConfig, load_config, suggestion
from rl2meta.devices import resolve_device, set_threads
from rl2meta.errors import UserError
from rl2meta.evaluation import Benchmarks, Evaluation, benchmarks, evaluate, write_evaluation
from rl2meta.plotting import plot_evaluation
from rl2meta.rollout import RolloutWorker
from rl2meta.run_folder import RunFolder
from rl2meta.statistics import mean_interval
from rl2meta.tasks import Tasks, sample_tasks

TUNING_TASKS = 10_000


def evaluate_run(
    run_dir: Path, *, tasks: int | None, seed: int | None, against: str | None, out: Path | None, device: str
) -> None:
    """Evaluate the newest checkpoint of a run; write files and figure, print a table."""
    folder = RunFolder.open(run_dir)
    config = load_config(folder.config_text(), str(folder.config_path), (), COMPONENTS)
    num_tasks = config.settings.evaluation.tasks if tasks is None else tasks
    seed = config.settings.evaluation.seed if seed is None else seed
    if num_tasks < 2:
        raise UserError(f"--tasks: expected at least 2 (an interval needs two), got {num_tasks}")
    if seed < 0:
        raise UserError(f"--seed: expected a number >= 0, got {seed}")
    where = resolve_device(device)
    set_threads(config.settings.threads)
    episodes = config.settings.training.episodes_per_trial
    references = _chosen(
        references_of(config, episodes), against or ",".join(config.settings.evaluation.against)
    )
    learner = make_learner(config, where)
    saved = checkpoints.newest(folder.checkpoints_path, _warn, where)
    if saved is None:
        raise UserError(f"{run_dir}: expected a checkpoint to evaluate, got none; train first")
    learner.load_state_dict(saved.tensors)

    worker = RolloutWorker(config.distribution, where)
    held_out = sample_tasks(config.distribution, num_tasks, seed, "test")
    results = {config.agent_name: evaluate(learner.agent, worker, held_out, episodes, seed)}
    for name, reference in references.items():
        print(f"evaluating {name} ...", flush=True)
        results[name] = _evaluate_reference(reference, config, worker, held_out, seed)
    ceilings = benchmarks(config.distribution, held_out, episodes)
    target = folder.new_evaluation_folder(out)
    facts = {
        "num_tasks": num_tasks,
        "seed": seed,
        "pulls_or_episodes": episodes,
        "distribution": str(config.distribution),
        "update": saved.update,
        "env_steps": saved.state["env_steps"],
    }
    write_evaluation(target, results, ceilings, facts)
    figure = plot_evaluation(target)
    _print_table(
        results, ceilings, f"{config.distribution}, {num_tasks:,} held-out tasks, {episodes} episodes each"
    )
    print(f"wrote {target} (figure: {figure})")


def _chosen(known: Mapping[str, Reference], against: str) -> dict[str, Reference]:
    """Return the references that a comma-separated list names; 'all' and 'none' are words of it."""
    names = [name.strip() for name in against.split(",") if name.strip()]
    if "all" in names:
        return dict(known)
    unknown = [name for name in names if name not in known and name != "none"]
    if unknown:
        faults = "; ".join(f"unknown reference {name!r}{suggestion(name, known)}" for name in unknown)
        raise UserError(f"--against: {faults}")
    return {name: known[name] for name in dict.fromkeys(names) if name != "none"}


def _evaluate_reference(
    reference: Reference, config: RunConfig, worker: RolloutWorker, held_out: Tasks, seed: int
) -> Evaluation:
    """Choose the reference's constants on training tasks, then evaluate it on the held-out ones."""
    episodes = config.settings.training.episodes_per_trial
    grid = list(_constants(reference))
    best = grid[0]
    if len(grid) > 1:
        tuning = sample_tasks(config.distribution, TUNING_TASKS, config.settings.seed, "train")
        tuning_seed = config.settings.seed
        best = max(
            grid, key=lambda constants: _score(reference, constants, worker, tuning, episodes, tuning_seed)
        )
    result = evaluate(reference.build(**best), worker, held_out, episodes, seed)
    return Evaluation(result.rewards, result.regrets, result.seconds, best)


def _constants(reference: Reference) -> Iterator[dict[str, Any]]:
    for values in itertools.product(*reference.grid.values()):
        yield dict(zip(reference.grid, values, strict=True))


def _score(
    reference: Reference,
    constants: Mapping[str, Any],
    worker: RolloutWorker,
    tuning: Tasks,
    episodes: int,
    seed: int,
) -> float:
    return float(evaluate(reference.build(**constants), worker, tuning, episodes, seed).returns().mean())


def _print_table(results: Mapping[str, Evaluation], ceilings: Benchmarks, title: str) -> None:
    table = Table(title=title)
    for column in ("agent", "mean return", "± 95 %", "mean regret", "seconds", "constants"):
        table.add_column(column, justify="left" if column in ("agent", "constants") else "right")
    for name, result in results.items():
        table.add_row(*_row(name, result))
    for name, value in (
        ("Bayes-optimal (ceiling)", ceilings.bayes_optimal_return),
        ("oracle (task known)", ceilings.oracle_return),
    ):
        if value is not None:
            table.add_row(name, f"{value:.3f}", "", "", "", "", style="dim")
    Console().print(table)


def _row(name: str, result: Evaluation) -> tuple[str, ...]:
    returns = mean_interval(result.returns())
    regret = "" if result.regrets is None else f"{result.regrets.sum(axis=1).mean():.3f}"
    constants = ", ".join(f"{key}={value:g}" for key, value in result.constants.items())
    half_width = f"{returns.high - returns.mean:.3f}"
    return name, f"{returns.mean:.3f}", half_width, regret, f"{result.seconds:.1f}", constants


def _warn(message: str) -> None:
    print(f"warning: {message}", flush=True)
