"""Makes the report of a benchmark: it measures suites one after the other, and says where and when."""

import json
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from rl2meta.files import write_atomically, writing
from rl2meta.kernels import chosen
from rl2meta.speed.envs import env_suite
from rl2meta.speed.few_shot import few_shot_suite
from rl2meta.speed.jax_rivals import maml_beside_jax, train_beside_jax
from rl2meta.speed.learning import Judged, LearningSuite, measure_learning
from rl2meta.speed.learning_figure import plot_learning
from rl2meta.speed.maml import maml_suite
from rl2meta.speed.measuring import Instruments, measure
from rl2meta.speed.recurrent import rollout_suite, train_suite
from rl2meta.speed.references import references_suite
from rl2meta.speed.suites import Suite
from rl2meta.speed.workers import worker_suite

SUITES: Mapping[str, Callable[..., Suite]] = {
    "env": env_suite,
    "rollout": rollout_suite,
    "train": train_suite,
    "maml": maml_suite,
    "few_shot": few_shot_suite,
    "references": references_suite,
    "workers": worker_suite,
}
"""By name: makes the suite on a device."""
RIVALS: Mapping[str, Mapping[str, Callable[..., Suite]]] = {
    "sb3": {"train": partial(train_suite, against="sb3")},
    "jax": {"train": train_beside_jax, "maml": maml_beside_jax},
}
"""By the name of a rival: the suites that have it."""
LEARNING = "learning"
"""The name of the suite that measures whole trainings, and not speed."""


@dataclass(frozen=True)
class Measurement:
    """What a benchmark can measure, and how; the defaults are those of ``rl2meta benchmark``.

    Attributes:
        suites: as ``SUITES``.
        rivals: as ``RIVALS``.
        learning: the suite called ``LEARNING``.
        turns: how many turns each workload has.
        instruments: what measures time, memory and the machine.
    """

    suites: Mapping[str, Callable[..., Suite]] = field(default_factory=lambda: SUITES)
    rivals: Mapping[str, Mapping[str, Callable[..., Suite]]] = field(default_factory=lambda: RIVALS)
    learning: LearningSuite = field(default_factory=LearningSuite)
    turns: int = 5
    instruments: Instruments = field(default_factory=Instruments)


SHIPPED = Measurement()
"""What ``rl2meta benchmark`` measures."""


def _ignore(*what: Any) -> None:
    """Do nothing."""


@dataclass(frozen=True)
class Callbacks:
    """What is called while a report is made.

    Attributes:
        begun: with the title of a suite, before it is measured.
        measured: with the name of a suite and its part of the report, after it was measured.
        judged: with a run's label and a point of its curve, whenever ``LEARNING`` has judged an agent.
    """

    begun: Callable[[str], None] = _ignore
    measured: Callable[[str, Mapping[str, Any]], None] = _ignore
    judged: Judged = _ignore


def make_report(
    names: Sequence[str],
    device: torch.device,
    *,
    precision: str = "float32",
    seconds: float = 30.0,
    against: str | None = None,
    configs: Sequence[str] = (),
    seeds: int = 3,
    out: Path | None = None,
    measurement: Measurement = SHIPPED,
    callbacks: Callbacks = Callbacks(),
) -> dict[str, Any]:
    """Measure suites one after the other, and return the report.

    Torch computes with the threads and the precision that it has been given; this function changes neither.

    Args:
        names: of the measurement's suites, and ``LEARNING``.
        device: where everything runs.
        precision: of products on a GPU, for the report.
        seconds: how long each workload is measured in all its turns together.
        against: the name of a rival in the suites that have it.
        configs: what ``LEARNING`` trains; all of its targets if there are none.
        seeds: how often ``LEARNING`` trains each of them.
        out: the JSON file that the report is saved to, after every suite and after every training; the
            figure of ``LEARNING`` is drawn beside it.
        measurement: what can be measured, and how.
        callbacks: what is called on the way.

    Returns:
        ``device``, ``threads``, ``busy`` (the load average of the last minute), ``torch`` (its version),
        ``processor``, ``precision``, and ``suites``: by name, what ``measure`` or ``measure_learning``
        returns.

    Raises:
        UserError: if a file cannot be written, a rival is not installed, or a training diverges.
    """
    report = {**circumstances(device), "precision": precision, "suites": {}}

    def save(name: str, part: Mapping[str, Any]) -> None:
        report["suites"][name] = part
        _write(report, out)

    for name in names:
        if name == LEARNING:
            suite = measurement.learning
            callbacks.begun(suite.title)
            chosen = list(dict.fromkeys(configs or suite.targets))
            keep = partial(save, name)
            measure_learning(chosen, seeds, device, suite=suite, save=keep, judged=callbacks.judged)
        else:
            save(name, _measured(name, device, seconds, against, measurement, callbacks))
        callbacks.measured(name, report["suites"][name])
    return report


def figure_path(out: Path) -> Path:
    """Return where the figure of ``LEARNING`` is drawn if the report is saved to ``out``."""
    return out.with_suffix(".png")


def _measured(
    name: str,
    device: torch.device,
    seconds: float,
    against: str | None,
    measurement: Measurement,
    callbacks: Callbacks,
) -> dict[str, Any]:
    rivals = measurement.rivals[against] if against is not None else {}
    suite = rivals.get(name, measurement.suites[name])(device)
    callbacks.begun(suite.title)
    return measure(suite, device, seconds, turns=measurement.turns, instruments=measurement.instruments)


def write_report(report: Mapping[str, Any], out: Path) -> None:
    """Save a report as a JSON file.

    Raises:
        UserError: if it cannot be written.
    """
    with writing(out):
        write_atomically(out, json.dumps(report, indent=1) + "\n")


def _write(report: Mapping[str, Any], out: Path | None) -> None:
    """Save the report so far, and draw what there is of ``LEARNING``."""
    if out is None:
        return
    write_report(report, out)
    if LEARNING in report["suites"]:
        plot_learning(report["suites"][LEARNING], figure_path(out))


def circumstances(device: torch.device) -> dict[str, Any]:
    """Return where the figures are taken, and how busy the machine is."""
    return {
        "device": _named_device(device),
        "threads": torch.get_num_threads(),
        "kernels": chosen(),
        "busy": os.getloadavg()[0],
        "torch": torch.__version__,
        "processor": _processor(),
    }


def _processor() -> str:
    """Return the name of the CPU, as Linux tells it; elsewhere its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def _named_device(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu, {platform.machine()}"
