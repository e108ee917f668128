"""``rl2meta benchmark``: speed, contestants in turns within one run; and how soon training gets somewhere."""

import json
import math
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast, get_args

import torch

from rl2meta.devices import Precision, resolve_device, set_precision, set_threads
from rl2meta.errors import UserError
from rl2meta.experiments.config import suggestion
from rl2meta.files import write_atomically, writing
from rl2meta.speed.envs import env_suite
from rl2meta.speed.learning import TARGETS, TASKS, learning_table, measure_learning
from rl2meta.speed.learning_figure import plot_learning
from rl2meta.speed.maml import maml_suite
from rl2meta.speed.measuring import measure, table
from rl2meta.speed.recurrent import rollout_suite, train_suite
from rl2meta.speed.references import references_suite
from rl2meta.speed.suites import Suite
from rl2meta.speed.workers import worker_suite

SUITES: Mapping[str, Callable[[torch.device, str | None], Suite]] = {
    "env": env_suite,
    "rollout": rollout_suite,
    "train": train_suite,
    "maml": maml_suite,
    "references": references_suite,
    "workers": worker_suite,
}
LEARNING = "learning"
"""Beside these: what measures no speed, but whole trainings."""
_SEEDS = 3


def run_benchmark(
    *,
    suite: str,
    seconds: float,
    against: str | None,
    configs: Sequence[str] = (),
    seeds: int | None = None,
    device: str,
    precision: str = "float32",
    threads: int | None,
    out: Path | None,
) -> None:
    """Measure, print a table for each suite, and write all figures to ``out``.

    ``learning`` writes them after every run, and draws them beside ``out``.
    """
    names = _named(suite)
    _refuse_numbers(seconds, threads)
    if precision not in get_args(Precision):
        raise UserError(f"--precision: expected {' or '.join(get_args(Precision))}, got {precision!r}")
    _refuse_against(against, names)
    _refuse_learning(configs, seeds, names)
    _refuse_out(out, names)
    where, used_threads = resolve_device(device), set_threads(threads)
    set_precision(cast(Precision, precision))
    report = {**_circumstances(where, used_threads), "precision": precision, "suites": {}}

    def save(name: str, suite_report: Mapping[str, Any]) -> None:
        report["suites"][name] = suite_report
        _write(report, out)

    for name in names:
        if name == LEARNING:
            chosen = list(dict.fromkeys(configs or TARGETS))
            _learn(chosen, seeds or _SEEDS, where, used_threads, partial(save, name))
        else:
            save(name, _measure(SUITES[name](where, against), where, seconds))


def _measure(suite: Suite, device: torch.device, seconds: float) -> dict[str, Any]:
    print(suite.title, flush=True)
    report = measure(suite, device, seconds)
    _print_table(table(report))
    return report


def _learn(
    configs: Sequence[str],
    seeds: int,
    device: torch.device,
    threads: int,
    save: Callable[[Mapping[str, Any]], None],
) -> None:
    print(f"seconds of training to a mean return on {TASKS:,} held-out tasks", flush=True)
    _print_table(learning_table(measure_learning(configs, seeds, device, threads, save)))


def _print_table(lines: Sequence[str]) -> None:
    print("\n".join(f"  {line}" for line in lines), flush=True)


def _write(report: Mapping[str, Any], out: Path | None) -> None:
    """Write what there is so far, and draw it if there is something learnt."""
    if out is None:
        return
    with writing(out):
        write_atomically(out, json.dumps(report, indent=1) + "\n")
    if LEARNING in report["suites"]:
        plot_learning(report["suites"][LEARNING], _figure(out))


def _figure(out: Path) -> Path:
    return out.with_suffix(".png")


def _circumstances(device: torch.device, threads: int) -> dict[str, Any]:
    """Return where and beside what the figures are taken."""
    return {
        "device": _named_device(device),
        "threads": threads,
        "busy": os.getloadavg()[0],
        "torch": torch.__version__,
    }


def _named_device(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu, {platform.machine()}"


def _named(suite: str) -> list[str]:
    names = list(dict.fromkeys(name.strip() for name in suite.split(",")))
    known = (*SUITES, LEARNING)
    for name in names:
        if name not in known:
            raise UserError(f"--suite: unknown suite {name!r}{suggestion(name, known)}")
    return names


def _refuse_numbers(seconds: float, threads: int | None) -> None:
    if not 0 < seconds < math.inf:
        raise UserError(f"--seconds: expected a number more than 0, got {seconds}")
    if threads is not None and threads < 1:
        raise UserError(f"--threads: expected at least 1, got {threads}")


def _refuse_against(against: str | None, names: Sequence[str]) -> None:
    if against not in (None, "sb3"):
        raise UserError(f"--against: expected 'sb3', got {against!r}")
    if against is not None and "train" not in names:
        raise UserError(
            f"--against: expected --suite train beside it, got {','.join(names)!r}; sb3 has no rival for it"
        )


def _refuse_learning(configs: Sequence[str], seeds: int | None, names: Sequence[str]) -> None:
    for option, given in (("--config", bool(configs)), ("--seeds", seeds is not None)):
        if given and LEARNING not in names:
            raise UserError(
                f"{option}: expected --suite {LEARNING} beside it, got {','.join(names)!r}; leave it out"
            )
    if seeds is not None and seeds < 1:
        raise UserError(f"--seeds: expected at least 1, got {seeds}")
    for name in configs:
        if name not in TARGETS:
            raise UserError(f"--config: no score is stated for {name!r}{suggestion(name, TARGETS)}")


def _refuse_out(out: Path | None, names: Sequence[str]) -> None:
    if out is None:
        return
    if out.exists() or not out.parent.is_dir():
        raise UserError(f"--out: expected a new file in a folder that exists, got {out}; choose another")
    if LEARNING in names and (_figure(out) == out or _figure(out).exists()):
        raise UserError(
            f"--out: expected a new JSON file with room for its figure {_figure(out)} beside it, got {out}; "
            "choose another"
        )
