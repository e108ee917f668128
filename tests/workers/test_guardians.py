"""Processes that are killed and programs that run away: the numbers stay, and no process does."""

import gc
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from faulty import FaultyWalks
from fugitive import Fugitives
from walks import Walks

from rl2meta.workers.faults import EnvironmentFault
from rl2meta.workers.plugged_in import PluggedIn, PluggedVectorEnv
from rl2meta.workers.settings import WorkerSettings

FAMILIES = str(Path(__file__).parent / "families")
SCRIPT = """
import os, sys, time
from pathlib import Path
import torch
from fugitive import Fugitives
from rl2meta.workers.plugged_in import PluggedIn
from rl2meta.workers.settings import WorkerSettings

envs = PluggedIn(Fugitives(folder=sys.argv[1]), WorkerSettings(processes=1)).make_envs(1, torch.device("cpu"))
envs.reset(seed=0)
reward = envs.step(torch.zeros(1, dtype=torch.int64))[1]
Path("result.new").write_text(repr(float(reward)))
os.rename("result.new", "result")
time.sleep(1000)
"""
ONE = torch.zeros(1, dtype=torch.int64)
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="needs a process that adopts orphans")


def make(family: Any, processes: int = 1) -> PluggedVectorEnv:
    return PluggedIn(family, WorkerSettings(processes=processes)).make_envs(1, torch.device("cpu"))


def state(pid: int) -> list[str]:
    """Return the state of a process and the number of its parent; nothing if there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:2]
    except OSError:
        return []


def line(pid: int) -> list[int]:
    """Return a worker, its second and its first guardian."""
    second = int(state(pid)[1])
    return [pid, second, int(state(second)[1])]


def running(pids: Any) -> list[int]:
    return [pid for pid in pids if state(pid)[:1] not in ([], ["Z"])]


def fugitives(folder: Path) -> list[int]:
    return [int(path.name) for path in folder.iterdir()]


def rewards(envs: PluggedVectorEnv, before: Callable[[int], None] = lambda step: None) -> list[float]:
    envs.reset(seed=3)
    found = []
    for step in range(4):
        before(step)
        found.append(float(envs.step(ONE)[1]))
    return found


@linux_only
def test_whoever_is_killed_the_numbers_stay_and_no_program(tmp_path: Path, until: Callable[..., Any]) -> None:
    """Before step 1 the worker is killed, before step 2 its second guardian, before step 3 the first."""
    envs = make(Fugitives(folder=str(tmp_path)))
    all_pids = set[int]()

    def kill(step: int) -> None:
        pids = line(envs._stepper.pids[0])  # type: ignore[attr-defined]
        assert len(running(fugitives(tmp_path))) == 2  # those of the environment that is stepped now
        all_pids.update(pids)
        if step:
            os.kill(pids[step - 1], signal.SIGKILL)
            assert until(lambda: not running([*pids, *fugitives(tmp_path)]), 2.0)

    assert rewards(envs, kill) == rewards(make(Walks(), 0))
    assert len(fugitives(tmp_path)) == 2 * 5  # of the first look, of four workers
    envs.close()
    assert not running([*all_pids, *fugitives(tmp_path)])  # at once


@pytest.fixture
def script(tmp_path: Path) -> Iterator[Callable[[str], subprocess.Popen[bytes]]]:
    """Start the script with a shell's redirections."""
    started = []
    (tmp_path / "script.py").write_text(SCRIPT)
    (tmp_path / "folder").mkdir()
    path = os.pathsep.join([FAMILIES, *filter(None, [os.environ.get("PYTHONPATH")])])

    def start(redirections: str) -> subprocess.Popen[bytes]:
        command = f"exec {sys.executable} script.py folder {redirections}"
        process = subprocess.Popen(
            ["sh", "-c", command], cwd=tmp_path, env={**os.environ, "PYTHONPATH": path}
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


@linux_only
def test_closed_standard_descriptors_and_a_main_process_that_is_killed(
    script: Callable[[str], subprocess.Popen[bytes]], tmp_path: Path, until: Callable[..., Any]
) -> None:
    process = script("<&- >&- 2>&-")
    assert until((tmp_path / "result").exists, 60)
    (first,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert len(running(fugitives(tmp_path / "folder"))) == 2
    assert float((tmp_path / "result").read_text()) == pytest.approx(alone())
    for number in range(3):
        assert os.readlink(f"/proc/{process.pid}/fd/{number}") == os.devnull
    process.kill()
    process.wait()
    assert until(lambda: not running([int(first), *fugitives(tmp_path / "folder")]), 2.0)


def alone() -> float:
    envs = make(Walks(), 0)
    envs.reset(seed=0)
    return float(envs.step(ONE)[1])


def test_a_first_look_that_is_killed_is_taken_again_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def look(times: int, folder: Path) -> Any:
        folder.mkdir()
        family = FaultyWalks(folder=str(folder), how="kill", where="make_env", lane=-1, times=times)
        return PluggedIn(family, WorkerSettings(processes=1)).described

    assert look(1, tmp_path / "once").emits == ("expected_reward", "regret")
    (record,) = caplog.records
    assert "killed by SIGKILL; the first look at an environment starts again" in record.message
    with pytest.raises(EnvironmentFault, match=r"make_env: the worker process was killed by SIGKILL"):
        look(2, tmp_path / "twice")


def test_few_descriptors_end_in_a_message() -> None:
    """However many there are: the first look or the crew says so, and neither leaves anything open."""
    import resource

    before, limit = len(os.listdir("/proc/self/fd")), resource.getrlimit(resource.RLIMIT_NOFILE)
    said = []
    for room in range(9):
        resource.setrlimit(resource.RLIMIT_NOFILE, (before + room, limit[1]))
        try:
            make(Walks()).close()
        except EnvironmentFault as error:
            said.append(str(error))
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limit)
        assert len(os.listdir("/proc/self/fd")) <= before  # what other tests left may be collected
    assert len(said) > 5 and all("cannot start 1 worker processes: [Errno 24]" in words for words in said)


def test_a_file_of_the_current_folder_is_not_imported_by_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("json", "ctypes", "signal", "numpy"):
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'w')")
    monkeypatch.chdir(tmp_path)
    make(Walks()).close()
    assert not (tmp_path / "executed").exists()


def test_a_worker_that_stands_still_is_ended_too(until: Callable[..., Any]) -> None:
    envs = make(Walks())
    pids = line(envs._stepper.pids[0]) if sys.platform == "linux" else envs._stepper.pids  # type: ignore[attr-defined]
    for pid in reversed(pids):
        os.kill(pid, signal.SIGSTOP)
    del envs
    gc.collect()
    assert not running(pids)
