"""Trainings whose workers are killed, or whose environments fail for a while: they end with the same bits."""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from walks import Walks

from rl2meta import cli
from rl2meta.commands.train import start_run
from rl2meta.workers.crew import Crew
from rl2meta.workers.plugged_in import PluggedIn, PluggedVectorEnv
from rl2meta.workers.settings import WorkerSettings

RESTART_LIMIT = 2.0  # seconds, from the death of a worker to the return of the step
RL2 = "agent: {name: rl2, hidden_size: 8, epochs: 1, minibatches: 1}"
MAML = "agent: {name: maml_trpo, hidden_sizes: [8], episodes_per_phase: 2, inner_learning_rates: [0.1]}"
WALKS = "distribution: {name: 'walks:Walks', horizon: 4}"
POLES = """
distribution:
  name: gymnasium
  id: CartPole-v1
  horizon: 8
  vary_attributes: {length: [0.25, 1.5], gravity: {log_uniform: [5, 20]}}
"""
TIMING = ("seconds", "env_steps_per_second")


def write(path: Path, *parts: str, updates: int = 3, episodes: int = 2) -> str:
    training = f"training: {{updates: {updates}, trials_per_update: 4, episodes_per_trial: {episodes}}}"
    path.write_text("\n".join([*parts, training, "device: cpu", "threads: 1"]))
    return str(path)


def metrics(run: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name not in TIMING} for row in rows]


def trained(source: str, run: Path, processes: int) -> list[dict[str, Any]]:
    assert start_run(source, [f"workers.processes={processes}"], run) == 0
    return metrics(run)


@pytest.mark.parametrize(("agent", "episodes"), [(RL2, 2), (MAML, 4)])
def test_the_number_of_processes_changes_no_metric(agent: str, episodes: int, tmp_path: Path) -> None:
    source = write(tmp_path / "walks.yaml", WALKS, agent, episodes=episodes)
    alone, *others = (trained(source, tmp_path / str(processes), processes) for processes in (0, 1, 2))
    assert len(alone) == 3
    assert others == [alone, alone]


class Killer:
    """Stands in for ``Crew.step``: kills a worker before some of the steps, and takes the time."""

    def __init__(self, steps: set[int], monkeypatch: pytest.MonkeyPatch) -> None:
        self.steps, self.taken, self.killed = steps, 0, list[float]()
        self._choose, self._step = random.Random(0), Crew.step
        monkeypatch.setattr(Crew, "step", lambda crew: self(crew))

    def __call__(self, crew: Crew) -> None:
        due = self.taken in self.steps
        self.taken += 1
        began = time.monotonic()
        if due:
            os.kill(self._choose.choice(crew.pids), signal.SIGKILL)
        self._step(crew)
        if due:
            self.killed.append(time.monotonic() - began)


def test_workers_killed_at_twenty_steps_of_a_training_change_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write(tmp_path / "poles.yaml", POLES, RL2, updates=5)
    expected = trained(source, tmp_path / "undisturbed", 2)
    killer = Killer(set(random.Random(3).sample(range(16, 96), 20)), monkeypatch)  # 0 to 15 are rehearsed
    assert trained(source, tmp_path / "disturbed", 2) == expected
    assert len(killer.killed) == 20
    assert max(killer.killed) < RESTART_LIMIT


def test_environments_that_kill_their_own_process_change_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Busy workers: half way through a step, at points that a run comes to once."""
    source = write(tmp_path / "deadly.yaml", "distribution: {name: 'deadly:DeadlyWalks', horizon: 4}", RL2)
    expected = trained(source, tmp_path / "undisturbed", 0)
    (tmp_path / "folder").mkdir()
    again = [f"distribution.folder={tmp_path / 'folder'}", "workers.processes=2"]
    assert start_run(source, again, tmp_path / "disturbed") == 0
    assert metrics(tmp_path / "disturbed") == expected
    deaths = len(list((tmp_path / "folder").iterdir()))
    assert 3 <= deaths == sum("killed by SIGKILL" in record.message for record in caplog.records)


def play(envs: PluggedVectorEnv, disturbed: dict[int, list[int]]) -> torch.Tensor:
    """Return all rewards of a trial, before some of whose steps workers are killed."""
    envs.reset(seed=1)
    rewards = []
    for step in range(6):
        pids = [envs._stepper.pids[worker] for worker in disturbed.get(step, [])]  # type: ignore[attr-defined]
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        rewards.append(envs.step(torch.ones(6, dtype=torch.int64))[1])
    envs.close()
    return torch.stack(rewards)


def test_two_and_all_workers_killed_at_once() -> None:
    def envs(processes: int) -> PluggedVectorEnv:
        settings = WorkerSettings(processes=processes)
        return PluggedIn(Walks(), settings).make_envs(6, torch.device("cpu"))

    expected = play(envs(0), {})
    assert torch.equal(play(envs(3), {2: [0, 2], 3: [0, 1, 2], 5: [1]}), expected)


def test_a_worker_killed_again_while_it_starts_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first three that start in its place are killed at once, before they are ready or while they are."""
    settings = WorkerSettings(processes=2)
    law = PluggedIn(Walks(), settings)
    expected = play(PluggedIn(Walks(), WorkerSettings(processes=0)).make_envs(6, torch.device("cpu")), {})
    envs, start, pauses = law.make_envs(6, torch.device("cpu")), Crew._start, [0.0, 0.05, 0.2]

    def killed(crew: Crew, worker: int) -> Any:
        new = start(crew, worker)
        if pauses:
            time.sleep(pauses.pop())
            os.kill(new.pid, signal.SIGKILL)
        return new

    monkeypatch.setattr(Crew, "_start", killed)
    assert torch.equal(play(envs, {3: [1]}), expected)
    assert not pauses


def _command(*words: str) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["rl2meta", *words])
        with pytest.raises(SystemExit) as ended:
            cli.main()
    return int(ended.value.code or 0)


def test_too_many_restarts_save_the_training_and_it_goes_on_once_all_is_mended(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state, run = tmp_path / "state", tmp_path / "run"
    state.mkdir()
    (state / "count").touch()
    where = f"folder: {state}, metrics: {run / 'metrics.jsonl'}, horizon: 4"
    tired = f"distribution: {{name: 'faulty:TiredWalks', {where}}}"
    workers = "workers: {processes: 2, max_restarts: 2}"
    source = write(tmp_path / "tired.yaml", tired, RL2, workers, updates=4)
    assert _command("train", source, "--run-dir", str(run)) == 2
    said = capsys.readouterr().err
    assert "raised ValueError: tired" in said and "restarted 2 times (workers.max_restarts)" in said
    assert "stopped and saved at update 2/4; mend the environment and continue with:" in said
    assert f"rl2meta train --resume --run-dir {run}" in said
    assert [path.name for path in (run / "checkpoints").iterdir() if "2" in path.name]
    assert len(metrics(run)) == 2
    (state / "mended").touch()
    assert _command("train", "--resume", "--run-dir", str(run)) == 0
    assert metrics(run) == trained(source, tmp_path / "undisturbed", 2)
