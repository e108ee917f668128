"""``rl2meta benchmark``: it refuses options that do not fit, measures, and prints the figures."""

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any, cast, get_args

from rl2meta.devices import Precision, resolve_device, set_precision, set_threads
from rl2meta.errors import UserError
from rl2meta.experiments.config import suggestion
from rl2meta.kernels import resolve_kernels, set_kernels
from rl2meta.speed.checkouts import checked_out, resolved, root
from rl2meta.speed.commit_side import MAKERS
from rl2meta.speed.commits import GUARDED, Plan, comparison_table, guard_report
from rl2meta.speed.learning import learning_table, point_line
from rl2meta.speed.learning_history import add_rows, measured_commit, refuse_page
from rl2meta.speed.measuring import table
from rl2meta.speed.report import (
    LEARNING,
    SHIPPED,
    Callbacks,
    Measurement,
    figure_path,
    make_report,
    write_report,
)

_print = partial(print, flush=True)


def run_benchmark(
    *,
    suite: str,
    seconds: float,
    against: str | None,
    configs: Sequence[str] = (),
    seeds: int | None = None,
    turns: int | None = None,
    device: str,
    precision: str = "float32",
    threads: int | None,
    out: Path | None,
    history: Path | None = None,
    measurement: Measurement = SHIPPED,
) -> None:
    """Measure, print a table for each suite, save all to ``out``, and add what is learnt to ``history``."""
    names = _named(suite, [*measurement.suites, LEARNING])
    _refuse_values(seconds, precision, {"--threads": threads, "--seeds": seeds, "--turns": turns})
    if against is not None:
        _refuse_against(against, names, measurement.rivals)
    _refuse_configs(configs, names, measurement.learning.targets)
    if seeds is not None:
        _refuse_without("--seeds", LEARNING, names, "leave it out")
    if history is not None:
        _refuse_without("--history", LEARNING, names, "leave it out")
        refuse_page(history)
    if out is not None:
        _refuse_out(out, names)
    where = resolve_device(device)
    set_threads(threads)
    set_precision(cast(Precision, precision))
    set_kernels(resolve_kernels(None, where))
    report = make_report(
        names,
        where,
        precision=precision,
        seconds=seconds,
        against=against,
        configs=configs,
        seeds=seeds or 3,
        out=out,
        measurement=measurement if turns is None else replace(measurement, turns=turns),
        callbacks=Callbacks(begun=_print, measured=_print_table, judged=_print_point),
    )
    if history is not None:
        add_rows(history, report, measured_commit(), date.today())


def run_guard(
    revision: str,
    *,
    suite: str | None,
    seconds: float,
    turns: int | None,
    device: str,
    precision: str,
    threads: int | None,
    out: Path | None,
    plan: Plan | None = None,
    folder: Path | None = None,
) -> int:
    """Compare the speed of this checkout with that of another commit; return 1 if it is slower, else 0.

    ``plan`` replaces the usual sizes and workloads, and ``folder`` that of the running package.
    """
    usual = plan or Plan({name: {} for name in GUARDED}, "cpu", 1)
    names = list(usual.suites) if suite is None else _named(suite, list(MAKERS))
    _refuse_values(seconds, precision, {"--threads": threads, "--turns": turns})
    if out is not None:
        _refuse_out(out, names)
    top = root(folder)
    commit = resolved(top, revision)
    where = resolve_device(device)
    chosen = usual._replace(
        suites={name: usual.suites.get(name, {}) for name in names},
        device=str(where),
        threads=set_threads(threads),
        precision=precision,
        seconds=seconds,
        turns=turns or usual.turns,
    )
    what = f"{chosen.clock.replace('cpu', 'CPU')} time, {chosen.threads} threads, {chosen.turns} turns"
    _print(f"the checkout {top} against {commit}, {what}")
    with checked_out(top, commit) as there:
        report = guard_report({"here": top, "there": there}, commit, chosen, _say)
    if out is not None:
        write_report(report, out)
    _print("\n".join(f"  {line}" for line in comparison_table(report["rows"], commit)))
    return int(any(row["verdict"] == "slower" for row in report["rows"]))


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _print_table(name: str, report: Mapping[str, Any]) -> None:
    lines = learning_table(report) if name == LEARNING else table(report)
    _print("\n".join(f"  {line}" for line in lines))


def _print_point(label: str, point: Mapping[str, float]) -> None:
    _print(point_line(label, point))


def _named(suite: str, known: Sequence[str]) -> list[str]:
    names = list(dict.fromkeys(name.strip() for name in suite.split(",")))
    if unknown := [name for name in names if name not in known]:
        raise UserError(f"--suite: unknown suite {unknown[0]!r}{suggestion(unknown[0], known)}")
    return names


def _refuse_values(seconds: float, precision: str, numbers: Mapping[str, int | None]) -> None:
    if not 0 < seconds < math.inf:
        raise UserError(f"--seconds: expected a number more than 0, got {seconds}")
    for option, number in numbers.items():
        if number is not None and number < 1:
            raise UserError(f"{option}: expected at least 1, got {number}")
    if precision not in get_args(Precision):
        raise UserError(f"--precision: expected {' or '.join(get_args(Precision))}, got {precision!r}")


def _refuse_against(against: str, names: Sequence[str], rivals: Mapping[str, Mapping[str, Any]]) -> None:
    if against not in rivals:
        raise UserError(f"--against: expected {' or '.join(map(repr, rivals))}, got {against!r}")
    suites = rivals[against]
    if not set(suites) & set(names):
        known = " or ".join(f"--suite {name}" for name in suites)
        raise UserError(
            f"--against: expected {known} beside it, got {','.join(names)!r}; {against} has no rival for it"
        )


def _refuse_configs(configs: Sequence[str], names: Sequence[str], targets: Mapping[str, float]) -> None:
    for name in configs:
        _refuse_without("--config", LEARNING, names, "leave it out")
        if name not in targets:
            raise UserError(f"--config: no score is stated for {name!r}{suggestion(name, targets)}")


def _refuse_without(option: str, suite: str, names: Sequence[str], advice: str) -> None:
    if suite not in names:
        raise UserError(f"{option}: expected --suite {suite} beside it, got {','.join(names)!r}; {advice}")


def _refuse_out(out: Path, names: Sequence[str]) -> None:
    if out.exists() or not out.parent.is_dir():
        raise UserError(f"--out: expected a new file in a folder that exists, got {out}; choose another")
    if LEARNING in names and ((figure := figure_path(out)) == out or figure.exists()):
        expected = f"expected a new JSON file with room for its figure {figure} beside it"
        raise UserError(f"--out: {expected}, got {out}; choose another")
