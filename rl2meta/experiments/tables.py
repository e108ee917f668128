"""An evaluation as text: tasks, return and regret of each agent, and how they changed in the trial."""

import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from rl2meta import levels
from rl2meta.drawing import short
from rl2meta.evaluation import AgentResult, Ceilings
from rl2meta.reports import alike, listed, said_tasks, trained_elsewhere, was, what_intervals_are_over
from rl2meta.statistics import Interval

_WIDTH = 100
_MANY_SEEDS = 10  # from here on a bootstrap over seeds covers over 91 %


class _Line(NamedTuple):
    agent: str
    returns: str
    over_tasks: str = ""
    interquartile_mean: str = ""
    regret: str = ""
    gap: str = ""
    constants: str = ""


def tables(
    results: Mapping[str, AgentResult], ceilings: Ceilings, facts: Mapping[str, Any], iqm: bool = False
) -> str:
    """Return the tasks, the return and regret of each agent, and how they changed in the trial, as text.

    Args:
        results: by name; all others are compared with the first.
        ceilings: the exact values beside them.
        facts: the facts about the evaluation in evaluation.json.
        iqm: add the interquartile mean of the returns, with its 95 % interval.
    """
    return "\n".join(_lines(results, ceilings, facts, iqm))


def _lines(
    results: Mapping[str, AgentResult], ceilings: Ceilings, facts: Mapping[str, Any], iqm: bool
) -> Iterator[str]:
    yield f"{facts['distribution']}: {said_tasks(facts)}, {facts['episodes']} episodes each"
    yield from what_intervals_are_over(facts)
    yield from _other_laws(results, facts)
    for name, result in results.items():
        if len(result.rewards) < facts["num_tasks"]:
            yield f"{name} was put on the first {len(result.rewards):,} of the tasks"
    yield from _of_groups(results)
    yield _as_text(_main_table(results, ceilings, iqm))
    if ceilings.bayes_optimal_return is not None:
        yield "Bayes-optimal is exact, a mean over the whole law; the other rows are over the tasks above."
    adapting = {name: result for name, result in results.items() if _num_adaptations(result) > 0}
    if adapting:
        yield "return per episode ± 95 %, after so many blocks of episodes:"
        yield _as_text(_adaptation_table(adapting))


def _of_groups(results: Mapping[str, AgentResult]) -> Iterator[str]:
    """Yield what the intervals are over, if some are over training seeds."""
    groups = {name: result for name, result in results.items() if levels.is_group(result)}
    for name, result in groups.items():
        means = levels.of_trials(result).mean(axis=1)
        each = ", ".join(f"{seed}: {value:.3f}" for seed, value in zip(result.seeds, means, strict=True))
        yield f"{name}: {len(result.seeds)} training seeds, mean return of each {each}"
    if few := [name for name, result in groups.items() if len(result.seeds) < _MANY_SEEDS]:
        yield (
            f"{', '.join(few)}: with so few seeds the interval over seeds is too narrow; over 3 seeds it is "
            "one of 77 to 89 %, over 5 of 85 to 92 % (docs/results.md, two levels of sampling)."
        )
    if groups:
        yield (
            f"± of {', '.join(groups)}: over training seeds and tasks, what the method earns if it is "
            "trained again; '± over tasks': what these agents earn. The other rows are over tasks."
        )


def _other_laws(results: Mapping[str, AgentResult], facts: Mapping[str, Any]) -> Iterator[str]:
    """Yield who was trained with other settings; on another law, also what each reference knows of it."""
    changed = trained_elsewhere(facts)
    said = {
        name: ", ".join(f"{key}={value}" for key, value in each.items()) for name, each in changed.items()
    }
    for settings, names in alike(said).items():
        yield f"{listed(names)} {was(names)} trained with {settings}"
    if not any(key.startswith("distribution.") for each in changed.values() for key in each):
        return
    priors: Mapping[str, str] = facts.get("priors", {})
    if priors:
        yield "no reference keeps the law of that training; each"
    for prior in dict.fromkeys(priors.values()):
        yield f"  {prior}: {', '.join(name for name in priors if priors[name] == prior)}"
    if tuned := [name for name, result in results.items() if result.constants]:
        yield f"  has constants that were tuned on these tasks' law: {', '.join(tuned)}"


def _main_table(results: Mapping[str, AgentResult], ceilings: Ceilings, iqm: bool) -> Table:
    first = next(iter(results))
    gap = f"minus {short(first)} ± 95 %"
    table = _table(
        ["agent"],
        ["return ± 95 %", "± over tasks", "IQM of returns ± 95 %", "regret ± 95 %", gap],
        ["constants"],
    )
    for name, result in results.items():
        table.add_row(*_line(short(name), result, None if name == first else results[first], iqm))
    if ceilings.bayes_optimal_return is not None:
        regret = ceilings.bayes_optimal_regret
        known = "" if regret is None else f"{regret:.3f}"
        bayes = _Line("Bayes-optimal", f"{ceilings.bayes_optimal_return:.3f}", regret=known)
        table.add_row(*bayes, style="dim")
    if ceilings.oracle_return is not None:
        oracle = _Line("task known", f"{ceilings.oracle_return:.3f}", regret="0.000")
        table.add_row(*oracle, style="dim")
    return table


def _line(name: str, result: AgentResult, first: AgentResult | None, iqm: bool) -> _Line:
    gap = None if first is None else levels.difference(result, first)
    returns = levels.of_trials(result)
    regrets = None if result.regrets is None else levels.of_trials(result, "regrets")
    tasks = levels.over_tasks(result, returns)
    return _Line(
        name,
        _with_margin(levels.interval(result, returns)),
        f"{_margin(tasks):.3f}" if levels.is_group(result) else "",
        _with_margin(levels.interquartile_mean(result)) if iqm else "",
        "" if regrets is None else _with_margin(levels.interval(result, regrets)),
        "" if gap is None else f"{gap.mean:+.3f} ± {_margin(gap):.3f}",
        ", ".join(f"{key}={value:g}" for key, value in result.constants.items()),
    )


def _num_adaptations(result: AgentResult) -> int:
    """Return how often an agent adapts, if its blocks have several episodes; 0 for other agents."""
    block = result.episodes_per_block
    return result.rewards.shape[1] // block - 1 if block > 1 else 0


def _adaptation_table(results: Mapping[str, AgentResult]) -> Table:
    """Return a table of as many first blocks as fit the width, and the last block of each agent."""
    cells = {name: _adaptation_cells(result) for name, result in results.items()}
    each = (
        max(len("after 100"), *(len(cell) for row in cells.values() for cell in row)) + 3
    )  # with its padding
    room = _WIDTH - max(len("agent"), *(len(short(name)) for name in cells)) - len("block") - 7
    shown = min(max(2, room // each), *map(len, cells.values())) - 1
    ends = {len(row) - 1 for row in cells.values()}
    last = f"after {ends.pop()}" if len(ends) == 1 else "at last"
    table = _table(["agent"], ["block", *(f"after {column}" for column in range(shown)), last], [])
    for name, row in cells.items():
        table.add_row(short(name), str(results[name].episodes_per_block), *row[:shown], row[-1])
    return table


def _adaptation_cells(result: AgentResult) -> list[str]:
    blocks = levels.blocks(result, "rewards")
    return [_with_margin(Interval(*block)) for block in np.stack(blocks, axis=1)]


def _table(names: Sequence[str], numbers: Sequence[str], words: Sequence[str]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1))
    for column in (*names, *numbers, *words):
        table.add_column(column, justify="right" if column in numbers else "left", no_wrap=True)
    return table


def _as_text(table: Table) -> str:
    """Return a table without empty columns in its full width: cut numbers would be worse than long lines."""
    table.columns = [column for column in table.columns if any(column.cells)]
    console = Console(file=io.StringIO(), width=1000)
    width = max(_WIDTH, Measurement.get(console, console.options, table).maximum)
    with console.capture() as captured:
        console.print(table, width=width)
    return "\n".join(line.rstrip() for line in captured.get().rstrip("\n").split("\n"))


def _with_margin(interval: Interval) -> str:
    return f"{interval.mean:.3f} ± {_margin(interval):.3f}"


def _margin(interval: Interval) -> float:
    """Return half the width of an interval, which a bootstrap does not centre on the mean."""
    return float(interval.high - interval.low) / 2
