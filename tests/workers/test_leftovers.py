"""However a session with workers ends, nothing of it is left: no process, no file."""

import gc
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from faulty import ChattyWalks, Parents
from walks import Walks

from rl2meta.workers.plugged_in import PluggedIn, PluggedVectorEnv
from rl2meta.workers.settings import WorkerSettings

FAMILIES = str(Path(__file__).parent / "families")
SCRIPT = """
import torch
from faulty import FaultyWalks, Parents
from rl2meta.tasks import MappingTasks
from rl2meta.workers.plugged_in import PluggedIn
from rl2meta.workers.settings import WorkerSettings

family = {family}
envs = PluggedIn(family, WorkerSettings(processes=2)).make_envs(3, torch.device("cpu"))
tasks = MappingTasks(tuple({{"drift": 0.0, "end": 0.0, "lane": lane}} for lane in range(3)))
envs.reset(seed=0, options={{"tasks": tasks}})
print(*envs._stepper.pids, flush=True)
for _ in range(5):
    envs.step(torch.zeros(3, dtype=torch.int64))
"""
CONFIG = """
distribution: {name: 'faulty:FaultyWalks', horizon: 4, %s}
agent: {name: rl2, hidden_size: 8, epochs: 1, minibatches: 1}
training: {updates: 100000, trials_per_update: 4, episodes_per_trial: 2}
workers: {processes: 2}
device: cpu
threads: 1
"""


def make(family: Any, processes: int = 2) -> PluggedVectorEnv:
    envs = PluggedIn(family, WorkerSettings(processes=processes)).make_envs(3, torch.device("cpu"))
    envs.reset(seed=0)
    envs.step(torch.zeros(3, dtype=torch.int64))
    return envs


def pids_of(envs: PluggedVectorEnv) -> list[int]:
    pids: list[int] = envs._stepper.pids  # type: ignore[attr-defined]
    return pids


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start Python in a session of its own, with a temporary folder of its own."""
    started = []
    (tmp_path / "temporary").mkdir()
    path = os.pathsep.join([FAMILIES, *filter(None, [os.environ.get("PYTHONPATH")])])
    settings = {"PYTHONPATH": path, "TMPDIR": str(tmp_path / "temporary"), "OMP_NUM_THREADS": "1"}

    def start(*words: str) -> subprocess.Popen[str]:
        pipe = subprocess.PIPE
        process = subprocess.Popen(
            [sys.executable, *words],
            stdout=pipe,
            stderr=pipe,
            text=True,
            cwd=tmp_path,
            env={**os.environ, **settings},
            start_new_session=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("polite", [True, False])
def test_close_ends_the_workers_and_what_environments_started(
    polite: bool, gone: Callable[..., None], alive: Callable[..., dict[int, str]]
) -> None:
    envs = make(Parents(polite=polite))
    pids = pids_of(envs)
    assert len(alive(pids)) == 2 + 3 * 2  # a program and a fork of each environment
    began = time.monotonic()
    envs.close()
    assert time.monotonic() - began < 2.0  # children that cannot be terminated would keep a polite one
    gone(pids, 1.0)


def test_what_nobody_closes_ends_with_its_last_reference(gone: Callable[..., None]) -> None:
    envs = make(Parents())
    pids = pids_of(envs)
    del envs
    gc.collect()
    gone(pids, 1.0)


def test_descriptors_are_given_back(gone: Callable[..., None]) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(2):
        envs = make(Walks())
        os.kill(pids_of(envs)[0], signal.SIGKILL)
        envs.step(torch.zeros(3, dtype=torch.int64))
        envs.close()
    del envs
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before


ENDINGS = {
    "killed": "import time; time.sleep(1000)",
    "killed while an environment hangs": "",
    "not closed": """
class Family(Parents):
    pass
try:
    PluggedIn(Family()).make_envs(3, torch.device("cpu"))
except Exception as error:
    print(error)
""",
    "raised": "raise RuntimeError('no luck')",
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_script_without_a_guard_leaves_nothing_behind(
    ending: str, run: Callable[..., Any], gone: Callable[..., None], tmp_path: Path
) -> None:
    hanging = f"FaultyWalks(folder={str(tmp_path)!r}, how='hang in C')"
    family = hanging if "hangs" in ending else "Parents()"
    (tmp_path / "script.py").write_text(SCRIPT.format(family=family) + ENDINGS[ending])
    process = run("script.py")
    pids = [int(word) for word in process.stdout.readline().split()]
    assert len(pids) == 2
    if ending.startswith("killed"):
        time.sleep(0.5)
        used = "".join(Path(f"/proc/{pid}/maps").read_text() for pid in (process.pid, *pids))
        assert "memfd:rl2meta" in used and "/dev/shm" not in used
        process.kill()
    said, error = process.communicate(timeout=20)
    gone(pids)
    if ending == "not closed":  # a family that only the script has
        assert "the family cannot be set up in a worker process: raised AttributeError" in said
        assert "put it into a file of its own, or set workers.processes=0" in said
    else:
        assert said == ""  # the workers did not run the script again
    assert ("RuntimeError: no luck" in error) == (ending == "raised")
    assert error.count("Traceback") == (ending == "raised")
    assert not list((tmp_path / "temporary").iterdir())


def test_a_signal_to_all_saves_and_no_worker_complains(
    run: Callable[..., Any], gone: Callable[..., None], until: Callable[..., Any], tmp_path: Path
) -> None:
    (tmp_path / "config.yaml").write_text(CONFIG % "times: 0")
    process = run("-m", "rl2meta", "train", "config.yaml", "--run-dir", "run")
    rows = tmp_path / "run" / "metrics.jsonl"
    assert until(lambda: rows.exists() and rows.read_text(), 60)
    pids = workers_of(process.pid)
    os.killpg(process.pid, signal.SIGINT)  # as the terminal does it
    for pid in pids:  # as a scheduler may do it
        os.kill(pid, signal.SIGTERM)
    said, error = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "stopped and saved at update" in said and "--resume --run-dir run" in said
    assert "Traceback" not in error and "starts again" not in error
    gone(pids)


def test_a_second_signal_does_not_wait_for_an_environment_that_hangs(
    run: Callable[..., Any], gone: Callable[..., None], until: Callable[..., Any], tmp_path: Path
) -> None:
    folder = tmp_path / "run" / "tensorboard"  # is there once the training begins
    (tmp_path / "config.yaml").write_text(CONFIG % f"folder: {folder}, how: hang, lane: -1, at: 1")
    process = run("-m", "rl2meta", "train", "config.yaml", "--run-dir", "run")
    assert until(lambda: (folder / "0").exists(), 60)
    pids = workers_of(process.pid)
    process.terminate()
    time.sleep(0.5)
    assert process.poll() is None  # it waits for the update
    process.terminate()
    began = time.monotonic()
    said, error = process.communicate(timeout=20)
    assert time.monotonic() - began < 5.0
    assert process.returncode == 143 and "stopped at once" in said and "Traceback" not in error
    gone(pids)


def workers_of(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    assert len(children) == 2
    return [int(child) for child in children]


def test_environments_that_print_ask_and_have_threads(
    capfd: pytest.CaptureFixture[str], gone: Callable[..., None]
) -> None:
    """What they print is seen; standard input has ended; a thread that stays keeps nothing open."""
    envs = make(ChattyWalks())
    pids = pids_of(envs)
    observation, *_ = envs.step(torch.zeros(3, dtype=torch.int64))
    assert not observation.any()
    began = time.monotonic()
    envs.close()
    assert time.monotonic() - began < 2.0
    gone(pids)
    envs = make(ChattyWalks(), 1)
    envs.close()
