"""Families of single environments, importable as a person's own modules are, and looks at processes."""

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

FAMILIES = Path(__file__).parent / "families"
sys.path.append(str(FAMILIES))  # workers get it with the rest of the path


def processes_of(sessions: set[int]) -> dict[int, str]:
    """Return what still runs in the sessions of some workers: number -> state and command."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            stat = (folder / "stat").read_text()
            command = (folder / "cmdline").read_text()
        except OSError:
            continue
        state, _, _, session = stat.rpartition(")")[2].split()[:4]
        if int(session) in sessions and state not in "ZX":  # a zombie is its parent's to bury
            found[int(folder.name)] = f"{state} {command}"
    return found


def wait_until(condition: Callable[[], Any], seconds: float) -> Any:
    """Return the first true value of ``condition``, or the last one there was time for."""
    until = time.monotonic() + seconds
    while not (value := condition()) and time.monotonic() < until:
        time.sleep(0.02)
    return value


@pytest.fixture
def gone() -> Callable[..., None]:
    """Assert that nothing of some workers' sessions is left within a few seconds."""

    def check(pids: Any, seconds: float = 2.0) -> None:
        assert pids
        assert wait_until(lambda: not processes_of(set(pids)), seconds), processes_of(set(pids))

    return check


@pytest.fixture
def alive() -> Callable[..., dict[int, str]]:
    """Return what runs in some sessions."""
    return lambda pids: processes_of(set(pids))


@pytest.fixture
def until() -> Callable[..., Any]:
    """Return the first true value of a condition."""
    return wait_until


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch shares its cores with the workers."""
    monkeypatch.setenv("OMP_NUM_THREADS", os.environ.get("OMP_NUM_THREADS", "1"))
