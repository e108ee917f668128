"""``rl2meta evaluate``: a trained agent on held-out tasks, beside the references of its family."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich import box
from rich.console import Console
from rich.table import Table

from rl2meta.checkpoints import Checkpoint
from rl2meta.commands.bench import Bench
from rl2meta.commands.components import COMPONENTS, chosen_references
from rl2meta.commands.restore import load_run_config, restore
from rl2meta.config import RunConfig, differing, load_config
from rl2meta.devices import resolve_device, set_threads
from rl2meta.errors import UserError
from rl2meta.evaluation import Benchmarks, Evaluation, write_evaluation
from rl2meta.plotting import plot_evaluation
from rl2meta.rollout import RolloutWorker
from rl2meta.run_folder import RunFolder
from rl2meta.statistics import Interval, mean_interval, paired_difference
from rl2meta.tasks import shares_tasks

_MAY_CHANGE = ("distribution.", "training.episodes_per_trial=")
_MOST_TASKS = 10**7
_TABLE_WIDTH = 100


def evaluate_run(
    run_dir: Path,
    overrides: Sequence[str],
    *,
    tasks: int | None,
    seed: int | None,
    against: str | None,
    out: Path | None,
    device: str,
    threads: int | None = None,
) -> None:
    """Evaluate the newest checkpoint of a run; write files and figure, print a table."""
    folder = RunFolder.open(run_dir)
    trained = load_run_config(folder)
    config = _judged(folder, trained, overrides)
    defaults = config.settings.evaluation
    num_tasks = _within("--tasks", defaults.tasks if tasks is None else tasks, 2, _MOST_TASKS)
    seed = _within("--seed", defaults.seed if seed is None else seed, 0, 2**63 - 1)
    references = chosen_references(config, None if against is None else against.split(","))
    bench = Bench(config, RolloutWorker(config.distribution, resolve_device(device)), seed, num_tasks)
    set_threads(config.settings.threads if threads is None else _within("--threads", threads, 1, 1024))
    learner, saved = restore(folder, trained, bench.worker.device)
    with folder.new_evaluation_folder(out) as target:
        print(f"evaluating {config.agent_name} on {bench.worker.device} ...", flush=True)
        results = {config.agent_name: bench.evaluate(learner.agent)}
        for name, reference in references.items():
            choices = math.prod(map(len, reference.grid.values()))
            first = f", its constants tuned first ({choices} choices)" if choices > 1 else ""
            print(f"evaluating {name}{first} ...", flush=True)
            results[name] = bench.evaluate_reference(reference)
        ceilings, facts = bench.ceilings(), _facts(bench, trained, saved)
        write_evaluation(target, results, ceilings, facts)
        figure = plot_evaluation(target)
    _print_table(results, ceilings, facts)
    print(f"wrote {target} (figure: {figure})")


def _judged(folder: RunFolder, trained: RunConfig, overrides: Sequence[str]) -> RunConfig:
    """Return the experiment on another test distribution, one that the trained agent can play."""
    refused = [override for override in overrides if not override.startswith(_MAY_CHANGE)]
    if refused:
        raise UserError(
            f"{refused[0]!r}: expected an override of what the agent is judged on, such as "
            f"distribution.KEY=VALUE or {_MAY_CHANGE[1]}N; what it is cannot change after training"
        )
    config = load_config(folder.config_text(), str(folder.config_path), overrides, COMPONENTS)
    for name in ("observation_space", "action_space"):
        ours, theirs = getattr(trained.distribution, name), getattr(config.distribution, name)
        if ours != theirs:
            raise UserError(
                f"{' '.join(overrides)}: expected tasks with the {name} of the agent's training, {ours}, got "
                f"{theirs}; overrides may change the law of the tasks, not their shape"
            )
    return config


def _facts(bench: Bench, trained: RunConfig, saved: Checkpoint) -> dict[str, Any]:
    then, now = trained.flat(), bench.config.flat()
    return {
        "num_tasks": len(bench.held_out),
        "seed": bench.seed,
        "episodes": bench.episodes,
        "distribution": str(bench.config.distribution),
        "shared_with_training": shares_tasks(
            trained.distribution, bench.config.distribution, bench.seed, min(512, len(bench.held_out))
        ),
        "trained_with": {key: then[key] for key in differing(then, now) if key in then},
        "device": str(bench.worker.device),
        "update": saved.update,
        "env_steps": saved.state["env_steps"],
    }


def _within(option: str, value: int, low: int, high: int) -> int:
    if not low <= value <= high:
        raise UserError(f"{option}: expected a number from {low} to {high}, got {value}")
    return value


class _Line(NamedTuple):
    agent: str
    returns: str
    regret: str = ""
    gap: str = ""
    constants: str = ""


def _print_table(results: Mapping[str, Evaluation], ceilings: Benchmarks, facts: Mapping[str, Any]) -> None:
    first = next(iter(results))
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1))
    for column in ("agent", "return ± 95 %", "regret ± 95 %", f"minus {first} ± 95 %", "constants"):
        table.add_column(
            column, justify="left" if column in ("agent", "constants") else "right", no_wrap=True
        )
    for name, result in results.items():
        table.add_row(*_line(name, result, None if name == first else results[first]))
    if ceilings.bayes_optimal_return is not None:
        regret = ceilings.bayes_optimal_regret
        known = "" if regret is None else f"{regret:.3f}"
        table.add_row(*_Line("Bayes-optimal", f"{ceilings.bayes_optimal_return:.3f}", known), style="dim")
    if ceilings.oracle_return is not None:
        table.add_row(*_Line("task known", f"{ceilings.oracle_return:.3f}", "0.000"), style="dim")
    held_out = "tasks, of which training had some," if facts["shared_with_training"] else "held-out tasks"
    print(f"{facts['distribution']}: {facts['num_tasks']:,} {held_out}, {facts['episodes']} episodes each")
    if facts["trained_with"]:
        said = ", ".join(f"{key}={value}" for key, value in facts["trained_with"].items())
        print(f"{first} was trained with {said}; the references were tuned on tasks of the law above")
    console = Console()
    console.width = max(console.width, _TABLE_WIDTH)  # figures that are cut off are worse than long lines
    console.print(table)
    if ceilings.bayes_optimal_return is not None:
        print("Bayes-optimal is exact, a mean over the whole law; the other rows are over the tasks above.")


def _with_margin(interval: Interval) -> str:
    return f"{interval.mean:.3f} ± {interval.high - interval.mean:.3f}"


def _line(name: str, result: Evaluation, first: Evaluation | None) -> _Line:
    gap = None if first is None else paired_difference(result.returns(), first.returns())
    return _Line(
        name,
        _with_margin(mean_interval(result.returns())),
        "" if result.regrets is None else _with_margin(mean_interval(result.regrets.sum(axis=1))),
        "" if gap is None else f"{gap.mean:+.3f} ± {gap.high - gap.mean:.3f}",
        ", ".join(f"{key}={value:g}" for key, value in result.constants.items()),
    )
