"""``rl2meta benchmark``: speed, contestants in turns within one run."""

import json
import math
import os
import platform
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from rl2meta.commands.benchmarks.envs import env_suite
from rl2meta.commands.benchmarks.maml import maml_suite
from rl2meta.commands.benchmarks.measuring import measure, table
from rl2meta.commands.benchmarks.recurrent import rollout_suite, train_suite
from rl2meta.commands.benchmarks.references import references_suite
from rl2meta.commands.benchmarks.suites import Suite
from rl2meta.commands.benchmarks.workers import worker_suite
from rl2meta.config import suggestion
from rl2meta.devices import resolve_device, set_threads
from rl2meta.errors import UserError
from rl2meta.files import write_atomically

SUITES: Mapping[str, Callable[[torch.device, str | None], Suite]] = {
    "env": env_suite,
    "rollout": rollout_suite,
    "train": train_suite,
    "maml": maml_suite,
    "references": references_suite,
    "workers": worker_suite,
}


def run_benchmark(
    *, suite: str, seconds: float, against: str | None, device: str, threads: int | None, out: Path | None
) -> None:
    """Measure, print a table for each suite, and write all figures to ``out``."""
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
    suites: dict[str, Any] = {}
    report = {
        "device": _named_device(where),
        "threads": used_threads,
        "busy": os.getloadavg()[0],
        "torch": torch.__version__,
        "suites": suites,
    }
    for name in names:
        chosen = SUITES[name](where, against)
        print(chosen.title, flush=True)
        suites[name] = measure(chosen, where, seconds)
        print("\n".join(f"  {line}" for line in table(suites[name])), flush=True)
    if out is not None:
        write_atomically(out, json.dumps(report, indent=1) + "\n")


def _named_device(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu, {platform.machine()}"


def _named(suite: str) -> list[str]:
    names = list(dict.fromkeys(name.strip() for name in suite.split(",")))
    for name in names:
        if name not in SUITES:
            raise UserError(f"--suite: unknown suite {name!r}{suggestion(name, SUITES)}")
    return names
