"""Contestants in turns within one run, so that a machine that slows down for a while slows all of them."""

import statistics
import time
from collections.abc import Mapping
from typing import Any

import torch

from rl2meta.speed.machine import Peaks, finish, peak_memory, peaks
from rl2meta.speed.suites import Contestant, Suite
from rl2meta.speed.work import Work, work_of

TURNS = 5


def measure(suite: Suite, device: torch.device, seconds: float) -> dict[str, Any]:
    """Return the suite's figures; each contestant is measured for ``seconds``, in ``TURNS`` turns.

    What the machine can do is measured before each; a turn lasts whole units, at least one.
    """
    work = {name: work_of(each.unit) for name, each in suite.contestants.items() if each.countable}
    memory = {name: peak_memory(each.unit, device) for name, each in suite.contestants.items()}
    machine: dict[str, list[Peaks]] = {name: [] for name in suite.contestants}
    speeds: dict[str, list[float]] = {name: [] for name in suite.contestants}
    for _ in range(TURNS):
        for name, each in suite.contestants.items():
            machine[name].append(peaks(device))
            speeds[name].append(_speed(each, device, seconds / TURNS))
    figures = {
        name: {
            "setting": dict(each.setting),
            "env_steps_per_second": speeds[name],
            **_used(work.get(name), speeds[name], machine[name]),
            "peak_memory_bytes": memory[name],
        }
        for name, each in suite.contestants.items()
    }
    seen = [peak for each in machine.values() for peak in each]
    return {
        "setting": dict(suite.setting),
        "machine": {
            "matrix_product_flops_per_second": [peak.product for peak in seen],
            "onednn_matrix_product_flops_per_second": [peak.onednn for peak in seen],
            "copy_bytes_per_second": [peak.copy for peak in seen],
        },
        "contestants": figures,
        "ratios": _ratios(suite.contestants, speeds),
    }


def _speed(contestant: Contestant, device: torch.device, seconds: float) -> float:
    steps, began = 0, time.perf_counter()
    while not steps or time.perf_counter() - began < seconds:
        steps += contestant.unit()
        finish(device)
    return steps / (time.perf_counter() - began)


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


def _ratios(
    contestants: Mapping[str, Contestant], speeds: Mapping[str, list[float]]
) -> dict[str, list[float]]:
    ours = next(iter(speeds.values()))
    rivals = [name for name, each in contestants.items() if each.rival]
    return {name: [a / b for a, b in zip(ours, speeds[name], strict=True)] for name in rivals}


def table(report: Mapping[str, Any]) -> list[str]:
    """Return the figures as lines of text, medians of the turns."""
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
        low, middle, high = min(values), statistics.median(values), max(values)
        lines.append(f"rl2meta / {name}, turn by turn: {middle:.1f} (min {low:.1f}, max {high:.1f})")
    return lines


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
