from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from rl2meta.agents.references.bandits import bernoulli_references
from rl2meta.envs.bandits import BernoulliBandits
from rl2meta.rollout import RolloutWorker
from rl2meta.tasks import Split, TensorTasks
from rl2meta.training import Budget, TrainingDiverged, meta_train
from rl2meta.trial import Trial

BANDITS = BernoulliBandits(num_arms=3)
BUDGET = Budget(updates=5, trials_per_update=4, episodes_per_trial=6)


class Listener:
    """A learner that changes nothing and remembers what it was given."""

    def __init__(self, loss: float = 0.5) -> None:
        self.agent = bernoulli_references(3, 6)["thompson"].build()
        self.heard: list[tuple[Tensor, Tensor, float, int]] = []
        self.loss = loss

    def update(self, trial: Trial, progress: float, generator: torch.Generator) -> Mapping[str, float]:
        means = trial.tasks.parameters["means"]  # type: ignore[attr-defined]
        draw = int(torch.randint(10**9, (), generator=generator))
        self.heard.append((means, trial.per_task("reward"), progress, draw))  # type: ignore[arg-type]
        return {"loss": self.loss}

    def state_dict(self) -> dict[str, Tensor]:
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        pass


def _run(
    start: int = 0, seed: int = 0, stop_at: int = 99, **kwargs: Any
) -> tuple[Listener, list[dict[str, Any]]]:
    learner, rows = Listener(**kwargs), []

    def record(row: dict[str, Any]) -> bool:
        rows.append(row)
        return row["update"] == stop_at

    meta_train(learner, BANDITS, RolloutWorker(BANDITS), BUDGET, seed, record, start, start * 24)
    return learner, rows


def test_metrics_of_an_update() -> None:
    learner, rows = _run()
    assert [row["update"] for row in rows] == [1, 2, 3, 4, 5]
    assert [row["env_steps"] for row in rows] == [24, 48, 72, 96, 120]
    assert [row["loss"] for row in rows] == [0.5] * 5
    for row, (_, reward, _, _) in zip(rows, learner.heard, strict=True):
        assert row["mean_return"] == pytest.approx(float(reward.sum(dim=1).mean()))
        assert row["env_steps_per_second"] == pytest.approx(24 / row["seconds"])


def test_progress_runs_from_zero_towards_one() -> None:
    learner, _ = _run()
    assert [progress for _, _, progress, _ in learner.heard] == [0.0, 0.2, 0.4, 0.6, 0.8]


def test_a_later_start_hears_what_the_whole_run_heard() -> None:
    whole, rows = _run()
    rest, later = _run(start=3)
    assert [row["env_steps"] for row in later] == [row["env_steps"] for row in rows[3:]]
    for ours, theirs in zip(whole.heard[3:], rest.heard, strict=True):
        assert torch.equal(ours[0], theirs[0]) and torch.equal(ours[1], theirs[1]) and ours[2:] == theirs[2:]


def test_every_update_has_new_tasks_and_every_seed_its_own() -> None:
    means = [means for seed in (0, 1) for means, _, _, _ in _run(seed=seed)[0].heard]
    assert len(torch.stack(means).flatten().unique()) == 2 * 5 * 4 * 3


def test_training_draws_training_tasks_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    splits: list[str] = []

    class Watched(BernoulliBandits):
        def sample(self, num_tasks: int, generator: torch.Generator, split: Split) -> TensorTasks:
            splits.append(split)
            return super().sample(num_tasks, generator, split)

    watched = Watched(num_arms=3)
    meta_train(Listener(), watched, RolloutWorker(watched), BUDGET, 0, lambda row: False)
    assert set(splits) == {"train"}


def test_every_update_has_its_own_streams() -> None:
    heard = _run()[0].heard
    assert len({draw for _, _, _, draw in heard}) == 5
    assert len({tuple(reward.flatten().tolist()) for _, reward, _, _ in heard}) == 5


def test_record_can_stop_the_run() -> None:
    _, rows = _run(stop_at=2)
    assert len(rows) == 2


def test_a_metric_that_is_not_finite_stops_the_run() -> None:
    with pytest.raises(TrainingDiverged, match=r"update 1: expected finite metrics, got \{'loss': nan\}"):
        _run(loss=float("nan"))
