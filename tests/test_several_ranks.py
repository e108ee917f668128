"""Several processes train and judge together: the bits of one process, and no rank that waits for ever.

The ranks are real processes with real sockets, forked from one that has imported torch (``rank_server.py``).
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from rl2meta.ranks import TIMEOUT

SMALL = ("device=cpu", "training.shards=4", "training.updates=3", "training.trials_per_update=8")
HERE = Path(__file__).parent


class Ended(NamedTuple):
    """How a rank ended: its exit code, and what it said."""

    code: int
    out: str
    err: str


class Server:
    """Starts ranks, as ``torchrun`` would on one machine."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._count = folder, 0
        command = [sys.executable, str(HERE / "rank_server.py")]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self._process = subprocess.Popen(command, cwd=HERE.parent, env=os.environ | {"OMP_NUM_THREADS": "1"}, **pipes)

    def start(self, size: int, *argv: object, first: dict[int, str] | None = None, more: dict[int, list[str]] | None = None, seconds: float = 60) -> tuple[list[int], list[Path]]:
        """Start ranks; ``first`` is code that a rank runs before the command, ``more`` arguments of one."""
        self._count += 1
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        group = {"WORLD_SIZE": str(size), "MASTER_ADDR": "localhost", "MASTER_PORT": str(port), TIMEOUT: str(seconds)}
        said = [self._folder / f"{self._count}.{rank}" for rank in range(size)]
        ranks = [
            {
                "argv": [*map(str, argv), *(more or {}).get(rank, [])],
                "env": (group if size > 1 else {}) | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
                "first": (first or {}).get(rank, ""),
                "out": str(said[rank].with_suffix(".out")) , "err": str(said[rank].with_suffix(".err")),
            }
            for rank in range(size)
        ]
        for rank, path in enumerate(said):
            ranks[rank] |= {"out": f"{path}.out", "err": f"{path}.err"}
        return self._ask({"ranks": ranks}), said

    def wait(self, started: tuple[list[int], list[Path]]) -> list[Ended]:
        pids, said = started
        codes = self._ask({"wait": pids})
        return [Ended(code, Path(f"{path}.out").read_text(), Path(f"{path}.err").read_text()) for code, path in zip(codes, said, strict=True)]

    def run(self, size: int, *argv: object, **options: Any) -> list[Ended]:
        return self.wait(self.start(size, *argv, **options))

    def _ask(self, request: Any) -> Any:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    made = Server(tmp_path_factory.mktemp("said"))
    yield made
    made.close()


def bits(run: Path) -> tuple[bytes, list[dict[str, Any]]]:
    """Return the tensors of the newest checkpoint, and the metrics without durations."""
    newest = max((run / "checkpoints").iterdir())
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    kept = [{name: value for name, value in row.items() if "second" not in name} for row in rows]
    return (newest / "tensors.safetensors").read_bytes(), kept


CASES = {
    "rl2": ("smoke", "agent.reward_units=measured", "training.evaluate_every=2", "training.evaluation_tasks=6", "training.episodes_per_trial=3"),
    "all_actions": ("smoke", "agent.surrogate=all_actions", "agent.critic=privileged", "training.episodes_per_trial=3"),
    "maml_trpo": ("maml_bandit", "agent.hidden_sizes=[8]", "agent.line_searches=3", "agent.conjugate_gradients=3", "training.episodes_per_trial=2", "agent.curvature_fraction=0.5"),
    "maml_units": ("maml_navigation", "training.updates=2", "distribution.horizon=3", "training.episodes_per_trial=4", "agent.episodes_per_phase=2", "agent.reward_units=measured", "agent.conjugate_gradients=2"),
    "maml_regression": ("maml_sinusoid", "agent.hidden_sizes=[8]"),
}


@pytest.mark.parametrize("name", CASES)
def test_bits(server: Server, tmp_path: Path, name: str) -> None:
    for size in (1, 2, 4):
        t = time.time()
        ended = server.run(size, "train", CASES[name][0], *SMALL, *CASES[name][1:], "--run-dir", tmp_path / str(size))
        print(size, time.time() - t)
        assert [each.code for each in ended] == [0] * size, ended
    one, two, four = (bits(tmp_path / str(size)) for size in (1, 2, 4))
    assert one == two == four
