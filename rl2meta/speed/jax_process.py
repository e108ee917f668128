"""A JAX program in a process of its own, which has as many threads as torch has here.

    python -m rl2meta.speed.jax_process NAME OPTIONS    # for each line of input an update

JAX reads its number of threads when it starts, and two libraries that compute in one process share what
neither expects to share. So the process gets that many CPUs, and waits while something else is measured.
"""

import json
import os
import subprocess
import sys
import weakref
from collections.abc import Callable
from typing import Any

import torch

from rl2meta.errors import UserError


class JaxProcess:
    """A program that does an update whenever it is asked to.

    Args:
        name: "rl2" or "maml".
        device: where it computes.
        options: of ``PROGRAMS[name]``.

    Raises:
        UserError: if JAX is not installed, or the program cannot run; with the last line that it said.
    """

    def __init__(self, name: str, device: torch.device, **options: Any) -> None:
        command = [sys.executable, "-m", "rl2meta.speed.jax_process", name, json.dumps(options)]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **_settings(device, torch.get_num_threads())},
        )
        weakref.finalize(self, _end, self._process)

    def unit(self) -> int:
        """Do one update; return the number of its environment steps. The first one compiles the program."""
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write("\n")
            self._process.stdin.flush()
            return int(self._process.stdout.readline())
        except (OSError, ValueError):
            raise UserError(self._failure()) from None

    def _failure(self) -> str:
        assert self._process.stderr is not None
        said = self._process.stderr.read().strip().splitlines() or ["nothing"]
        return (
            "--against jax: expected a program of JAX that runs, got: "
            f"{said[-1]:.200}; install it with: pip install -c constraints.txt -e '.[benchmark]'"
        )


def _settings(device: torch.device, threads: int) -> dict[str, str]:
    """Return what makes JAX compute on the device, on a CPU with that many threads."""
    flags = os.environ.get("XLA_FLAGS", "")
    if threads == 1:
        flags += " --xla_cpu_multi_thread_eigen=false"
    return {
        "JAX_PLATFORMS": "cuda" if device.type == "cuda" else "cpu",
        "XLA_FLAGS": flags.strip(),
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # else it takes three quarters of a GPU that is ours too
        "RL2META_CPUS": str(threads),
    }


def _end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream is not None:
            stream.close()


def _take_cpus() -> None:
    """Stay on as many CPUs as there are to be threads: XLA starts one for each that it may use."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: int(os.environ["RL2META_CPUS"])])


def _rl2(law: str, trials: int, pulls: int, hidden_size: int, epochs: int, minibatches: int) -> Any:
    from rl2meta.speed.jax_rl2 import bandits, make_program, mdps

    tasks = bandits(5) if law == "bandits" else mdps(10, 5, 10)
    program = make_program(
        tasks,
        hidden_size=hidden_size,
        trials=trials,
        episodes=pulls,
        epochs=epochs,
        minibatches=minibatches,
    )
    return program, trials * pulls * tasks.horizon


def _maml(tasks: int, episodes: int, horizon: int, hidden_sizes: list[int], curvature_fraction: float) -> Any:
    from rl2meta.speed.jax_maml import make_program

    program = make_program(
        tasks=tasks,
        lanes=episodes,
        horizon=horizon,
        hidden_sizes=tuple(hidden_sizes),
        curvature_fraction=curvature_fraction,
    )
    return program, 2 * tasks * episodes * horizon


PROGRAMS: dict[str, Callable[..., Any]] = {"rl2": _rl2, "maml": _maml}
"""By name: (options) -> the program, and the environment steps of an update."""


def main() -> None:
    """Do an update for each line of standard input, until it ends."""
    _take_cpus()
    program, steps = PROGRAMS[sys.argv[1]](**json.loads(sys.argv[2]))
    state = program.begin(0)
    for _ in sys.stdin:
        state, mean = program.update(state)
        mean.block_until_ready()
        print(steps, flush=True)


if __name__ == "__main__":
    main()
