"""Starts ranks quickly: a process that has imported everything once forks each of them.

It reads requests from its standard input, one JSON object a line, and answers with the ids of the processes;
the request ``{"wait": [ids]}`` is answered with their exit codes. Each rank runs the code that the request
gives for it, and then the command line as ``python -m rl2meta`` would.
"""

import importlib
import json
import os
import sys
import traceback
from typing import Any

import torch

IMPORTED = (
    *("stable_baselines3.common.logger", "torch.distributed", "torch.utils.tensorboard"),
    *("rl2meta.cli", "rl2meta.commands.train", "rl2meta.experiments.evaluations"),
    *("rl2meta.agents.rl2", "rl2meta.agents.maml_trpo", "rl2meta.agents.maml_regression"),
)
"""What a rank would import otherwise, which takes seconds."""


def main() -> None:
    """Serve until the input ends."""
    _import_everything()
    for line in sys.stdin:
        request = json.loads(line)
        answer = [_exit_code(pid) for pid in request["wait"]] if "wait" in request else _started(request)
        print(json.dumps(answer), flush=True)


def _import_everything() -> None:
    for name in IMPORTED:
        importlib.import_module(name)
    torch.set_num_threads(1)
    # what the first use imports
    torch.func.grad(lambda x: torch.func.vmap(torch.sin)(x).sum())(torch.ones(2))


def _started(request: dict[str, Any]) -> list[int]:
    pids = []
    for rank in request["ranks"]:
        if (pid := os.fork()) == 0:
            code = 70
            try:
                code = _run(rank)
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        pids.append(pid)
    return pids


def _run(rank: dict[str, Any]) -> int:
    from rl2meta.cli import main

    for number, path in ((0, os.devnull), (1, rank["out"]), (2, rank["err"])):
        os.dup2(os.open(path, os.O_RDWR | os.O_CREAT), number)
    os.environ |= rank["env"]
    sys.argv = ["rl2meta", *rank["argv"]]
    try:
        exec(rank["first"], {})
        main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def _exit_code(pid: int) -> int:
    _, status, used = os.wait4(pid, 0)
    if "SAY" in os.environ:
        print(f"rank {pid}: {used.ru_utime + used.ru_stime:.2f} s", file=sys.stderr)
    return os.waitstatus_to_exitcode(status)


if __name__ == "__main__":
    main()
