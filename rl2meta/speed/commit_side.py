"""One side of a comparison of two commits: a program that does units of work whenever it is asked to.

    PYTHONPATH=CHECKOUT python -P .../rl2meta/speed/commit_side.py OPTIONS

It imports everything from the checkout on PYTHONPATH, which may not be the one that holds this file. So it
uses only what every commit with this room has: the functions that make suites, and their workloads.
"""

import json
import sys
import time
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.machinery import PathFinder
from typing import Any

MAKERS: Mapping[str, tuple[str, str]] = {
    "train": ("rl2meta.speed.recurrent", "train_suite"),
    "rollout": ("rl2meta.speed.recurrent", "rollout_suite"),
    "maml": ("rl2meta.speed.maml", "maml_suite"),
    "few_shot": ("rl2meta.speed.few_shot", "few_shot_suite"),
    "env": ("rl2meta.speed.envs", "env_suite"),
    "references": ("rl2meta.speed.references", "references_suite"),
    "workers": ("rl2meta.speed.workers", "worker_suite"),
}
"""By the name of a suite: the module and the function that makes it on a device."""
Unit = Callable[[], int]


def begun(threads: int, device: str, precision: str) -> Any:
    """Do what the command line does before it measures; return the device."""
    if _has("memory"):
        import_module("rl2meta.memory").keep_memory()  # before torch is loaded
    devices = import_module("rl2meta.devices")
    where = devices.resolve_device(device)
    devices.set_threads(threads)
    devices.set_precision(precision)
    if _has("kernels"):
        kernels = import_module("rl2meta.kernels")
        kernels.set_kernels(kernels.resolve_kernels(None, where))
    return where


def _has(module: str) -> bool:
    """Return whether the checkout has a module; ``import`` would find an editable installation's, too."""
    return PathFinder.find_spec(f"rl2meta.{module}", import_module("rl2meta").__path__) is not None


def units(suites: Mapping[str, Mapping[str, Any]], device: Any) -> dict[str, dict[str, Unit]]:
    """Return the units of our workloads, by suite and name.

    Args:
        suites: by name, other sizes than the suite's own, as keyword arguments of what makes it.
        device: where the work is done.
    """
    found = {}
    for name, sizes in suites.items():
        module, maker = MAKERS[name]
        suite = getattr(import_module(module), maker)(device, **_sizes(sizes))
        found[name] = {key: each.unit for key, each in suite.workloads.items() if each.rival_of is None}
    return found


def _sizes(sizes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the sizes; those of an RL² update are given as ``base``: trials, pulls and units."""
    base = {"base": import_module("rl2meta.speed.recurrent").Shape(*sizes["base"])} if "base" in sizes else {}
    return {**sizes, **base}


def timed(unit: Unit, seconds: float, device: Any) -> dict[str, float]:
    """Do whole units for so many seconds; return their environment steps, and their seconds by two clocks."""
    finish = import_module("rl2meta.speed.machine").finish
    steps, wall, cpu = 0, time.perf_counter(), time.process_time()
    while not steps or time.perf_counter() - wall < seconds:
        steps += unit()
        finish(device)
    return {"steps": steps, "wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}


def main() -> None:
    """Say which file was imported and which workloads there are; then do one for each line of input."""
    options = json.loads(sys.argv[1])
    device = begun(options["threads"], options["device"], options["precision"])
    known = units(options["suites"], device)
    names = {suite: list(each) for suite, each in known.items()}
    print(json.dumps({"file": import_module("rl2meta").__file__, "workloads": names}), flush=True)
    warm = set()
    for line in sys.stdin:
        suite, name, seconds = json.loads(line)
        unit = known[suite][name]
        if (suite, name) not in warm:  # the first unit allocates, and is slower
            warm.add((suite, name))
            unit()
        print(json.dumps(timed(unit, seconds, device)), flush=True)


if __name__ == "__main__":
    main()
