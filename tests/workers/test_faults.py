"""Environments that raise, exit, die or hang: what is said of them, and what they cost."""

import logging
import os
import re
import resource
import signal
import sys
import time
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import torch
from faulty import ClockedWalks, FaultyWalks, RetreatingWalks

from rl2meta.randomness import derive
from rl2meta.tasks import MappingTasks, sample_tasks
from rl2meta.workers import process
from rl2meta.workers.faults import EnvironmentFault
from rl2meta.workers.plugged_in import PluggedIn, PluggedVectorEnv
from rl2meta.workers.settings import WorkerSettings

SEED, LANES, STEPS, TIMEOUT = 5, 4, 7, 1.0
ACTIONS = torch.randint(3, (STEPS, LANES), generator=torch.Generator().manual_seed(0))
SAID = {
    "raise": "raised ValueError: no luck",
    "raise anew": r"raised ValueError: no luck with \d+",
    "panic": "raised Panic: no hope",
    "exit": r"called sys.exit\('enough'\)",
    "_exit": "the worker process ended with exit code 3",
    "kill": "the worker process was killed by SIGKILL",
    "orphan": "the worker process was killed by SIGKILL",
    "hang": "did not return within 1 s",
}
AT = {"step": 2, "reset": 5, "make_env": 0}


def make(family: Any, processes: int = 2, **settings: Any) -> PluggedVectorEnv:
    law = PluggedIn(family, WorkerSettings(processes=processes, timeout=TIMEOUT, **settings))
    return law.make_envs(LANES, torch.device("cpu"))


def tasks_of(family: Any) -> MappingTasks:
    """Tasks that know their lane; in lanes 1 and 2 episodes last as long as they may."""
    drawn = sample_tasks(PluggedIn(family), LANES, 0, "train")
    ends = [task["end"] * (lane not in (1, 2)) for lane, task in enumerate(drawn.entries)]
    return MappingTasks(
        tuple({**task, "lane": lane, "end": ends[lane]} for lane, task in enumerate(drawn.entries))
    )


def play(envs: PluggedVectorEnv, family: Any, steps: int = STEPS) -> torch.Tensor:
    """Return all that is seen in a trial, as one tensor."""
    observation, _ = envs.reset(seed=SEED, options={"tasks": tasks_of(family)})
    seen = [observation.flatten()]
    for action in ACTIONS[:steps]:
        observation, reward, terminated, truncated, info = envs.step(action)
        others = (reward, terminated, truncated, *info.values())
        seen.append(torch.cat([value.flatten().float() for value in (observation, *others)]))
    return torch.cat(seen)


@pytest.fixture
def undisturbed() -> torch.Tensor:
    envs = make(FaultyWalks(times=0), 0)
    return play(envs, FaultyWalks())


def where_it_was(lane: int, step: int, call: str) -> str:
    task = re.escape(repr(tasks_of(FaultyWalks()).entries[lane]))
    seed, before = derive(SEED, "trial", 0, lane) >> 32, step - (call == "reset")  # it is part of a step
    return rf"environment {lane} \(task {task}, seed {seed}\), step {before}, {call}: "


CASES = [(how, "step") for how in SAID if how != "raise anew"] + [
    ("raise", "reset"),
    ("hang", "reset"),
    ("_exit", "reset"),
]
CASES += [("raise", "make_env"), ("exit", "make_env"), ("_exit", "make_env"), ("hang", "make_env")]


@pytest.mark.parametrize(("how", "where"), CASES)
def test_what_happens_once_is_survived_and_changes_nothing(
    how: str, where: str, undisturbed: torch.Tensor, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    family = FaultyWalks(folder=str(tmp_path), how=how, where=where, lane=1, at=AT[where])
    envs = make(family)
    pids = envs._stepper.pids  # type: ignore[attr-defined]
    began = time.time()
    assert torch.equal(play(envs, family), undisturbed)
    envs.close()
    (record,) = caplog.records
    assert re.match(where_it_was(1, AT[where], where) + SAID[how], record.message)
    assert re.search(r"restart 1 of at most 20\) and replays \d+ steps", record.message)
    if how == "hang":
        assert record.created - began < TIMEOUT + 1
    assert len(pids) == 2
    if how in ("raise", "panic"):  # the last frame is where the person's code went wrong
        assert re.findall(r'File ".*/(\w+\.py)", line \d+, in (\w+)', record.message)[-1] == (
            "faulty.py",
            "go_wrong",
        )


@pytest.mark.parametrize(
    ("how", "where"), [("hang", "step"), ("raise anew", "reset"), ("_exit", "make_env"), ("kill", "step")]
)
def test_what_happens_again_at_the_same_point_ends_the_run(how: str, where: str, tmp_path: Path) -> None:
    family = FaultyWalks(folder=str(tmp_path), how=how, where=where, lane=2, at=AT[where], times=2)
    envs = make(family)
    message = where_it_was(2, AT[where], where) + SAID[how]
    with pytest.raises(EnvironmentFault, match=rf"{message}[\s\S]*\nIt failed twice at this point") as caught:
        play(envs, family)
    envs.close()
    assert str(caught.value).startswith("environment 2")


@pytest.mark.parametrize("how", ["raise", "exit"])
@pytest.mark.parametrize("where", ["make_env", "reset", "step"])
def test_in_the_main_process_a_fault_ends_the_run(how: str, where: str, tmp_path: Path) -> None:
    family = FaultyWalks(folder=str(tmp_path), how=how, where=where, at=AT[where], in_main=True)
    with pytest.raises(EnvironmentFault, match=where_it_was(1, AT[where], where) + SAID[how]):
        play(make(family, 0), family)


def test_what_is_meant_for_the_main_process_is_not_taken_for_a_fault(tmp_path: Path) -> None:
    family = FaultyWalks(folder=str(tmp_path), how="panic", in_main=True)
    with pytest.raises(BaseException, match="no hope") as caught:
        play(make(family, 0), family)
    assert caught.type.__name__ == "Panic"


def test_a_worker_that_dies_again_while_it_relives_the_trial(
    undisturbed: torch.Tensor, tmp_path: Path
) -> None:
    family = RetreatingWalks(folder=str(tmp_path), how="kill", at=4, times=3)
    envs = make(family)
    assert torch.equal(play(envs, family), undisturbed)
    assert len(list(tmp_path.iterdir())) == 3
    envs.close()


def test_too_many_restarts_end_the_run(tmp_path: Path) -> None:
    family = RetreatingWalks(folder=str(tmp_path), how="raise", at=4, times=3)
    envs = make(family, max_restarts=2)
    with pytest.raises(
        EnvironmentFault, match=where_it_was(1, 2, "step") + r"[\s\S]*restarted 2 times \(workers.max"
    ):
        play(envs, family)
    with pytest.raises(gym.error.ResetNeeded, match="interrupted"):
        envs.step(ACTIONS[0])
    envs.close()


@pytest.mark.parametrize(("how", "processes"), [("hang", 2), ("raise", 2), ("_exit", 2), ("raise", 0)])
def test_what_does_not_close_is_reported(
    how: str, processes: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    family = FaultyWalks(folder=str(tmp_path), how=how, where="close", in_main=True)
    envs = make(family, processes)
    play(envs, family)
    began = time.monotonic()
    envs.close()
    assert time.monotonic() - began < TIMEOUT + 1
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert re.match(where_it_was(1, STEPS, "close") + SAID[how], record.message)
    assert record.message.endswith("; the worker is killed") == (processes == 2)


@pytest.mark.parametrize("how", ["raise", "exit", "_exit", "hang"])
def test_an_import_that_fails_in_workers(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RL2META_TEST_MAIN", str(os.getpid()))
    monkeypatch.setenv("RL2META_TEST_HOW", how)
    monkeypatch.setattr(process, "START_LIMIT", 2.0)
    from broken_import import BrokenWalks

    said = SAID[how].replace("1 s", "2 s")
    with pytest.raises(
        EnvironmentFault, match=rf"cannot be set up in a worker process: {said}.* while it started"
    ) as caught:
        make(BrokenWalks())
    assert "set workers.processes=0" in str(caught.value)
    assert ("faulty.py" in str(caught.value)) == (how in ("raise", "hang"))


def test_luck_from_elsewhere_than_the_seed_is_found_out() -> None:
    envs = make(ClockedWalks())
    play(envs, FaultyWalks(), 3)
    os.kill(envs._stepper.pids[0], signal.SIGKILL)  # type: ignore[attr-defined]
    with pytest.raises(
        EnvironmentFault, match=r"environments 0 to 1 were restarted.*other results than before"
    ):
        envs.step(ACTIONS[3])
    envs.close()


@pytest.mark.parametrize("processes", [1, 0])
@pytest.mark.parametrize("how", ["raise at length", "exit at length"])
def test_of_what_an_environment_says_beginning_and_end_are_told(
    how: str, processes: int, tmp_path: Path
) -> None:
    family = FaultyWalks(folder=str(tmp_path), how=how, in_main=True)
    envs = make(family, processes, max_restarts=0)
    with pytest.raises(EnvironmentFault, match=r"first words x+\[\.\.\. .*\]x+ last words") as caught:
        play(envs, family)
    assert 3000 < len(str(caught.value)) < 10_000
    envs.close()


def test_an_exception_without_words(tmp_path: Path) -> None:
    family = FaultyWalks(folder=str(tmp_path), how="raise without words", in_main=True)
    with pytest.raises(EnvironmentFault, match=r"raised Wordless: \(no text: .*RuntimeError"):
        play(make(family, 0), family)


class Stop(BaseException):
    """What a handler of a signal raises."""


def test_a_call_that_was_broken_off_is_not_mistaken_for_the_next(
    undisturbed: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any) -> None:
        raise Stop

    family = FaultyWalks(folder=str(tmp_path), how="hang")
    envs = PluggedIn(family, WorkerSettings(processes=2)).make_envs(LANES, torch.device("cpu"))
    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, 1.0)
    try:
        with pytest.raises(Stop):
            play(envs, family)
    finally:
        signal.signal(signal.SIGALRM, before)
    with pytest.raises(gym.error.ResetNeeded, match="interrupted"):
        envs.step(ACTIONS[0])
    with pytest.raises(gym.error.ResetNeeded, match="interrupted"):
        envs.reset()
    assert torch.equal(play(envs, family), undisturbed)
    envs.close()


def children() -> set[str]:
    return set(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())


def test_more_workers_than_the_system_has_room_for() -> None:
    there, before = children(), resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 8, before[1]))
    try:
        with pytest.raises(
            EnvironmentFault, match=r"cannot start 4 worker processes: .*set workers.processes"
        ):
            make(FaultyWalks(), LANES)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert children() <= there  # those that had started are gone


def test_what_importing_skips_in_the_path_does_no_harm(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path, tmp_path])
    make(FaultyWalks(), 1).close()
