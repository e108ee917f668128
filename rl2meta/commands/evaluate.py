"""``rl2meta evaluate``: a trained agent on held-out tasks, beside the references of its family."""

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from rich import box
from rich.console import Console
from rich.table import Table

from rl2meta.agents.references.reference import Reference
from rl2meta.checkpoints import Checkpoint
from rl2meta.commands.components import chosen_references
from rl2meta.commands.restore import load_run_config, restore
from rl2meta.config import RunConfig
from rl2meta.devices import resolve_device, set_threads
from rl2meta.errors import UserError
from rl2meta.evaluation import Benchmarks, Evaluation, benchmarks, evaluate, write_evaluation
from rl2meta.plotting import plot_evaluation
from rl2meta.randomness import derive
from rl2meta.rollout import RolloutWorker
from rl2meta.run_folder import RunFolder
from rl2meta.statistics import Interval, mean_interval, paired_difference
from rl2meta.tasks import sample_tasks
from rl2meta.trial import Agent

TUNING_TASKS = 10_000
_MOST_TASKS = 10**7
_TABLE_WIDTH = 100


def evaluate_run(
    run_dir: Path, *, tasks: int | None, seed: int | None, against: str | None, out: Path | None, device: str
) -> None:
    """Evaluate the newest checkpoint of a run; write files and figure, print a table."""
    folder = RunFolder.open(run_dir)
    config = load_run_config(folder)
    defaults = config.settings.evaluation
    num_tasks = _within("--tasks", defaults.tasks if tasks is None else tasks, 2, _MOST_TASKS)
    seed = _within("--seed", defaults.seed if seed is None else seed, 0, 2**63 - 1)
    references = chosen_references(config, None if against is None else against.split(","))
    bench = _Bench(config, RolloutWorker(config.distribution, resolve_device(device)), seed, num_tasks)
    set_threads(config.settings.threads)
    learner, saved = restore(folder, config, bench.worker.device)
    with folder.new_evaluation_folder(out) as target:
        print(f"evaluating {config.agent_name} on {bench.worker.device} ...", flush=True)
        results = {config.agent_name: bench.evaluate(learner.agent)}
        for name, reference in references.items():
            print(f"evaluating {name} ...", flush=True)
            results[name] = bench.evaluate_reference(reference)
        ceilings = benchmarks(config.distribution, bench.held_out, bench.episodes)
        write_evaluation(target, results, ceilings, bench.facts(saved))
        figure = plot_evaluation(target)
    _print_table(results, ceilings, bench)
    print(f"wrote {target} (figure: {figure})")


class _Bench:
    """Held-out tasks, and the same luck for every agent that is put on them."""

    def __init__(self, config: RunConfig, worker: RolloutWorker, seed: int, num_tasks: int) -> None:
        self.config, self.worker, self.seed = config, worker, seed
        self.episodes = config.settings.training.episodes_per_trial
        self.held_out = sample_tasks(config.distribution, num_tasks, seed, "test")

    def evaluate(self, agent: Agent[Any]) -> Evaluation:
        return evaluate(agent, self.worker, self.held_out, self.episodes, self.seed)

    def evaluate_reference(self, reference: Reference) -> Evaluation:
        """Choose the reference's constants on training tasks, then evaluate it on the held-out ones."""
        grid = list(_constants(reference))
        best = grid[0] if len(grid) == 1 else self._tuned(reference, grid)
        return replace(self.evaluate(reference.build(**best)), constants=best)

    def _tuned(self, reference: Reference, grid: list[dict[str, Any]]) -> dict[str, Any]:
        seed = self.config.settings.seed
        tuning = sample_tasks(self.config.distribution, TUNING_TASKS, seed, "train")

        def score(constants: dict[str, Any]) -> float:
            agent = reference.build(**constants)
            luck = derive(seed, "tuning")  # not that of the held-out evaluation, whatever its seed
            return float(evaluate(agent, self.worker, tuning, self.episodes, luck).returns().mean())

        return max(grid, key=score)

    def facts(self, saved: Checkpoint) -> dict[str, Any]:
        return {
            "num_tasks": len(self.held_out),
            "seed": self.seed,
            "pulls_or_episodes": self.episodes,
            "distribution": str(self.config.distribution),
            "device": str(self.worker.device),
            "update": saved.update,
            "env_steps": saved.state["env_steps"],
        }


def _within(option: str, value: int, low: int, high: int) -> int:
    if not low <= value <= high:
        raise UserError(f"{option}: expected a number from {low} to {high}, got {value}")
    return value


def _constants(reference: Reference) -> Iterator[dict[str, Any]]:
    for values in itertools.product(*reference.grid.values()):
        yield dict(zip(reference.grid, values, strict=True))


class _Line(NamedTuple):
    agent: str
    returns: str
    regret: str = ""
    gap: str = ""
    constants: str = ""


def _print_table(results: Mapping[str, Evaluation], ceilings: Benchmarks, bench: _Bench) -> None:
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
    print(
        f"{bench.config.distribution}: {len(bench.held_out):,} held-out tasks, {bench.episodes} episodes each"
    )
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
