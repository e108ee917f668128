"""``rl2meta benchmark``: training speed, contestants in turns within one run."""

import json
import math
import platform
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from rl2meta.commands.maml_suite import maml_suite
from rl2meta.commands.suites import Contestant, Suite
from rl2meta.commands.train_suite import train_suite
from rl2meta.commands.worker_suite import worker_suite
from rl2meta.config import suggestion
from rl2meta.devices import resolve_device, set_threads
from rl2meta.errors import UserError
from rl2meta.files import write_atomically

TURNS = 5
SUITES: Mapping[str, Callable[[torch.device, str | None], Suite]] = {
    "train": train_suite,
    "maml": maml_suite,
    "workers": worker_suite,
}


def run_benchmark(
    *, suite: str, seconds: float, against: str | None, device: str, threads: int | None, out: Path | None
) -> None:
    """Measure, print the medians and their ratios, and write them to ``out``."""
    names = _named(suite)
    if not 0 < seconds < math.inf:
        raise UserError(f"--seconds: expected a number more than 0, got {seconds}")
    if threads is not None and threads < 1:
        raise UserError(f"--threads: expected at least 1, got {threads}")
    if against not in (None, "sb3"):
        raise UserError(f"--against: expected 'sb3', got {against!r}")
    if against is not None and "train" not in names:
        raise UserError(
            f"--against: expected --suite train beside it, got {suite!r}; sb3 has no rival for it"
        )
    if out is not None and (out.exists() or not out.parent.is_dir()):
        raise UserError(f"--out: expected a new file in a folder that exists, got {out}; choose another")
    where, used_threads = resolve_device(device), set_threads(threads)
    report = {
        "device": str(where),
        "threads": used_threads,
        "processor": platform.machine(),
        "torch": torch.__version__,
        "suites": {name: _measured(SUITES[name](where, against), seconds) for name in names},
    }
    if out is not None:
        write_atomically(out, json.dumps(report, indent=2) + "\n")


def _named(suite: str) -> list[str]:
    names = list(dict.fromkeys(name.strip() for name in suite.split(",")))
    for name in names:
        if name not in SUITES:
            raise UserError(f"--suite: unknown suite {name!r}{suggestion(name, SUITES)}")
    return names


def _measured(suite: Suite, seconds: float) -> dict[str, Any]:
    print(suite.title, flush=True)
    figures = _in_turns(suite.contestants, seconds / TURNS)
    result = {
        "setting": dict(suite.setting),
        "env_steps_per_second": figures,
        "ratios": _ratios(figures),
    }
    _print(result)
    return result


def _in_turns(contestants: Mapping[str, Contestant], seconds: float) -> dict[str, list[float]]:
    """A B A B ...: a machine that slows down for a while slows both."""
    for contestant in contestants.values():
        contestant(min(1.0, seconds))  # warm-up, not counted
    figures: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(TURNS):
        for name, contestant in contestants.items():
            figures[name].append(contestant(seconds))
    return figures


def _ratios(figures: Mapping[str, list[float]]) -> dict[str, list[float]]:
    ours, *others = figures
    return {name: [a / b for a, b in zip(figures[ours], figures[name], strict=True)] for name in others}


def _print(report: Mapping[str, Any]) -> None:
    for name, values in report["env_steps_per_second"].items():
        print(f"  {name}: {_spread(values)} environment steps/s")
    for name, values in report["ratios"].items():
        print(f"  rl2meta / {name}, turn by turn: {_spread(values, '.1f')}")


def _spread(values: list[float], form: str = ",.0f") -> str:
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"median {middle:{form}} (min {low:{form}}, max {high:{form}})"
