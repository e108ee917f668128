"""Measures workloads in turns within one run, so that a machine that slows down for a while slows all."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from rl2meta.speed.machine import Peaks, finish, peak_memory, peaks
from rl2meta.speed.suites import Suite, Workload
from rl2meta.speed.work import Work, work_of


@dataclass(frozen=True)
class Instruments:
    """What measures a workload.

    Attributes:
        clock: returns the time in seconds.
        peaks: measures what the machine can do.
        memory: does a unit's work and returns the most bytes that it took, or None where nobody can tell.
    """

    clock: Callable[[], float] = time.perf_counter
    peaks: Callable[[torch.device], Peaks] = peaks
    memory: Callable[[Callable[[], int], torch.device], int | None] = peak_memory


def measure(
    suite: Suite,
    device: torch.device,
    seconds: float,
    *,
    turns: int = 5,
    instruments: Instruments = Instruments(),
) -> dict[str, Any]:
    """Measure every workload of a suite in turns, and return the figures.

    What the machine can do is measured before each turn of a workload. A turn lasts at least one whole unit.

    Args:
        suite: what is measured.
        device: where its workloads run.
        seconds: how long each workload is measured in all its turns together.
        turns: how many turns each workload has.
        instruments: what measures time, memory and the machine.

    Returns:
        ``setting`` of the suite; ``machine``, with a list of figures for each turn of each workload;
        ``contestants``, the figures of each workload by its name, lists with one figure per turn; and
        ``ratios``, by the name of each rival the speed of ours over the rival's, turn by turn.
    """
    work = {name: work_of(each.unit) for name, each in suite.workloads.items() if each.countable}
    memory = {name: _memory(each, device, instruments) for name, each in suite.workloads.items()}
    machine: dict[str, list[Peaks]] = {name: [] for name in suite.workloads}
    speeds: dict[str, list[float]] = {name: [] for name in suite.workloads}
    for _ in range(turns):
        for name, each in suite.workloads.items():
            machine[name].append(instruments.peaks(device))
            speeds[name].append(_speed(each, device, seconds / turns, instruments.clock))
    figures = {
        name: {
            "setting": dict(each.setting),
            "env_steps_per_second": speeds[name],
            **_used(work.get(name), speeds[name], machine[name]),
            "peak_memory_bytes": memory[name],
        }
        for name, each in suite.workloads.items()
    }
    return {
        "setting": dict(suite.setting),
        "machine": _seen([peak for each in machine.values() for peak in each]),
        "contestants": figures,  # what workloads are called in files of this format
        "ratios": _ratios(suite.workloads, speeds),
    }


def _seen(machine: list[Peaks]) -> dict[str, list[float]]:
    return {
        "matrix_product_flops_per_second": [peak.product for peak in machine],
        "onednn_matrix_product_flops_per_second": [peak.onednn for peak in machine],
        "copy_bytes_per_second": [peak.copy for peak in machine],
    }


def _memory(workload: Workload, device: torch.device, instruments: Instruments) -> int | None:
    if workload.here:
        return instruments.memory(workload.unit, device)
    workload.unit()  # once, as all others: it may have something to compile
    return None


def _speed(workload: Workload, device: torch.device, seconds: float, clock: Callable[[], float]) -> float:
    steps, began = 0, clock()
    while not steps or clock() - began < seconds:
        steps += workload.unit()
        finish(device)
    return steps / (clock() - began)


def _used(work: Work | None, speeds: list[float], machine: list[Peaks]) -> dict[str, Any]:
    if work is None:
        return {}
    turns = list(zip(speeds, machine, strict=True))
    return {
        "flops_per_step": work.flops,
        "fraction_of_matrix_product": [work.flops * speed / peak.product for speed, peak in turns],
        "fraction_of_best_matrix_product": [work.flops * speed / peak.best for speed, peak in turns],
        "bytes_per_step": work.moved,
        "fraction_of_copy": [work.moved * speed / peak.copy for speed, peak in turns],
    }


def _ratios(workloads: Mapping[str, Workload], speeds: Mapping[str, list[float]]) -> dict[str, list[float]]:
    pairs = {name: each.rival_of for name, each in workloads.items() if each.rival_of is not None}
    return {
        name: [a / b for a, b in zip(speeds[ours], speeds[name], strict=True)] for name, ours in pairs.items()
    }


def table(report: Mapping[str, Any]) -> list[str]:
    """Return what ``measure`` returned as lines of text, with the medians of the turns."""
    machine = {name: statistics.median(values) for name, values in report["machine"].items()}
    product, onednn, copy = machine.values()
    width = max(len(name) for name in report["contestants"])
    head = f"{'':{width}}  {'steps/s':>14} {'(min – max)':>31} {'kFLOP/step':>11} {'of peak':>8} {'MiB':>7}"
    lines = [
        f"matrix products: {product / 1e9:,.0f} GFLOP/s (torch.mm), {onednn / 1e9:,.0f} (oneDNN); "
        f"copies: {copy / 1e9:,.1f} GB/s",
        head,
        *(_line(name, each, width) for name, each in report["contestants"].items()),
    ]
    for name, values in report["ratios"].items():
        low, middle, high = (_ratio(of(values)) for of in (min, statistics.median, max))
        lines.append(f"rl2meta / {name}, turn by turn: {middle} (min {low}, max {high})")
    return lines


def _ratio(value: float) -> str:
    """Return a ratio with a digit after the point, a small one with two digits that count."""
    return f"{value:.1f}" if value >= 0.95 else f"{value:.2g}"


def _line(name: str, figures: Mapping[str, Any], width: int) -> str:
    speeds = figures["env_steps_per_second"]
    spread = f"({min(speeds):,.0f} – {max(speeds):,.0f})"
    flops, fraction = "", ""
    if figures.get("flops_per_step"):
        flops = f"{figures['flops_per_step'] / 1e3:,.1f}"
        fraction = f"{statistics.median(figures['fraction_of_best_matrix_product']):.0%}"
    memory = figures["peak_memory_bytes"]
    used = "" if memory is None else f"{memory / 2**20:,.0f}"
    middle = f"{statistics.median(speeds):,.0f}"
    return f"{name:{width}}  {middle:>14} {spread:>31} {flops:>11} {fraction:>8} {used:>7}"
