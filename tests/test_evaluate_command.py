"""What ``rl2meta evaluate`` may look at: held-out tasks for judging, training tasks for tuning."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from rl2meta.agents.references.bandits import IndexAgent
from rl2meta.agents.references.reference import Reference
from rl2meta.commands import bench as command
from rl2meta.commands.components import read_config
from rl2meta.rollout import RolloutWorker
from rl2meta.tasks import Tasks, sample_tasks

CONFIG = read_config("smoke", ["seed=0", "evaluation.seed=0"])


@pytest.fixture
def bench() -> command.Bench:
    return command.Bench(CONFIG, RolloutWorker(CONFIG.distribution), 0, 100)


def _always(arm: float) -> IndexAgent:
    return IndexAgent(2, lambda seen: torch.eye(2)[int(arm)].expand_as(seen.pulls))


def test_the_held_out_tasks_are_test_tasks(bench: command.Bench) -> None:
    want = sample_tasks(CONFIG.distribution, 100, 0, "test")
    assert torch.equal(bench.held_out.parameters["means"], want.parameters["means"])  # type: ignore[attr-defined]


def test_constants_are_tuned_on_training_tasks_with_luck_of_their_own(
    bench: command.Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[torch.Tensor, int]] = []
    original: Callable[..., Any] = command.evaluate

    def watched(agent: Any, worker: Any, tasks: Tasks, episodes: int, seed: int) -> Any:
        calls.append((tasks.parameters["means"], seed))  # type: ignore[attr-defined]
        return original(agent, worker, tasks, episodes, seed)

    monkeypatch.setattr(command, "evaluate", watched)
    bench.evaluate_reference(Reference("pulls one arm", lambda arm: _always(arm), {"arm": (0, 1)}))
    *tuning, judged = calls
    train = sample_tasks(CONFIG.distribution, command.FEWEST_TUNING_TASKS, 0, "train").parameters["means"]  # type: ignore[attr-defined]
    assert len(tuning) == 2 and all(torch.equal(means, train) for means, _ in tuning)
    assert all(seed != judged[1] for _, seed in tuning)


def test_the_better_constant_is_chosen(bench: command.Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    original = command.sample_tasks

    def first_arm_is_better(*args: Any) -> Tasks:
        tasks = original(*args)
        means = tasks.parameters["means"].sort(dim=1, descending=True).values  # type: ignore[attr-defined]
        return type(tasks)({"means": means})  # type: ignore[call-arg]

    monkeypatch.setattr(command, "sample_tasks", first_arm_is_better)
    reference = Reference("pulls one arm", lambda arm: _always(arm), {"arm": (1, 0)})
    assert bench.evaluate_reference(reference).constants == {"arm": 0}


def test_a_run_can_be_loaded_from_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rl2meta.commands.restore import load_run
    from rl2meta.commands.train import start_run

    start_run("smoke", ["training.updates=3", "training.trials_per_update=16"], tmp_path / "run")
    run = load_run(tmp_path / "run")
    assert run.episodes_per_trial == 5 and run.distribution.num_arms == 2  # type: ignore[attr-defined]
    tasks = sample_tasks(run.distribution, 10, 0, "test")
    trial = RolloutWorker(run.distribution).run(run.agent, tasks, 5, 0)
    assert trial.num_steps() == 50
