"""The agent is judged on held-out tasks while it trains, and the training does not notice."""

import json
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import rl2meta
from rl2meta.envs.mazes import DarkRooms
from rl2meta.errors import UserError
from rl2meta.experiments import held_out
from rl2meta.experiments.components import read_config
from rl2meta.experiments.held_out import HeldOut, held_out_of
from rl2meta.randomness import derive
from rl2meta.rollout import RolloutWorker
from rl2meta.tasks import Tasks, sample_tasks
from rl2meta.workers.faults import EnvironmentFault

CPU = torch.device("cpu")
TIMING = {"seconds", "env_steps_per_second"}
JUDGED = {"held_out_return", "held_out_regret"}
CONFIG: dict[str, Any] = {
    "distribution": {"name": "bernoulli_bandits", "num_arms": 2},
    "agent": {"name": "rl2", "core": {"name": "lstm", "hidden_size": 4}},
    "training": {
        "updates": 5,
        "trials_per_update": 4,
        "episodes_per_trial": 3,
        "checkpoint_every": 2,
        "evaluate_every": 2,
        "evaluation_tasks": 50,
    },
    "evaluation": {"episodes_per_trial": 4},
    "device": "cpu",
    "threads": 1,
}
NEVER = {"training.evaluate_every": None}


class Killed(Exception):
    """Ends a training as a kill does: nothing is saved."""


def die_at(update: int) -> Any:
    def die(run: rl2meta.Run, row: dict[str, Any]) -> None:
        if row["update"] == update:
            raise Killed

    return die


def told(run: rl2meta.Run, without: set[str] = TIMING) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key not in without} for row in run.metrics]


def refuse_other_weights(run: rl2meta.Run, other: rl2meta.Run) -> None:
    ours, theirs = run.learner.state_dict(), other.learner.state_dict()
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name


def texts(tasks: Tasks) -> set[str]:
    return {json.dumps(tasks[i : i + 1].to_dict()) for i in range(len(tasks))}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> rl2meta.Run:
    return rl2meta.train(CONFIG, run_dir=tmp_path_factory.mktemp("undisturbed") / "run")


def test_the_agent_is_judged_after_every_so_many_updates_and_after_the_last(undisturbed: rl2meta.Run) -> None:
    rows = undisturbed.metrics
    assert [row["update"] for row in rows if row.keys() >= JUDGED] == [2, 4, 5]
    assert not any(JUDGED & row.keys() for row in rows if row["update"] in (1, 3))


def test_return_and_regret_add_up_to_the_best_return_of_the_held_out_tasks(
    undisturbed: rl2meta.Run,
) -> None:
    """Of a bandit, and in trials of the evaluation, which are longer than those of the training."""
    tasks = held_out_of(undisturbed.config, CPU).tasks
    best = 4 * float(tasks.parameters["means"].max(dim=1).values.mean())
    assert len(tasks) == 50
    for row in undisturbed.metrics:
        if row.keys() >= JUDGED:
            assert row["held_out_return"] + row["held_out_regret"] == pytest.approx(best, abs=1e-5)


def test_the_training_does_not_notice_bit_for_bit(undisturbed: rl2meta.Run) -> None:
    alone = rl2meta.train(CONFIG, NEVER)
    assert not any(JUDGED & row.keys() for row in alone.metrics)
    assert told(alone) == told(undisturbed, TIMING | JUDGED)
    refuse_other_weights(alone, undisturbed)


def test_a_killed_run_goes_on_to_the_same_bits_and_the_same_curve(
    undisturbed: rl2meta.Run, tmp_path: Path
) -> None:
    with pytest.raises(Killed):
        rl2meta.train(CONFIG, run_dir=tmp_path / "run", callbacks=[die_at(3)])
    run = rl2meta.resume(tmp_path / "run")
    assert told(run) == told(undisturbed)
    refuse_other_weights(run, undisturbed)


def test_a_resumed_run_may_be_judged_more_often_and_nothing_else_may_change(
    undisturbed: rl2meta.Run, tmp_path: Path
) -> None:
    with pytest.raises(Killed):
        rl2meta.train(CONFIG, NEVER, run_dir=tmp_path / "run", callbacks=[die_at(3)])
    with pytest.raises(UserError, match="evaluate_every"):
        rl2meta.resume(tmp_path / "run", overrides=["training.updates=9"])
    run = rl2meta.resume(tmp_path / "run", overrides=["training.evaluate_every=1"])
    assert [row["update"] for row in run.metrics if row.keys() >= JUDGED] == [3, 4, 5]
    assert told(run, TIMING | JUDGED) == told(undisturbed, TIMING | JUDGED)
    assert rl2meta.load_run(tmp_path / "run").finished  # the settings are not of the run's identity


def test_its_time_is_not_of_the_training(monkeypatch: pytest.MonkeyPatch) -> None:
    judge = HeldOut.judge

    def slowly(self: HeldOut, agent: Any) -> Any:
        time.sleep(0.3)
        return judge(self, agent)

    monkeypatch.setattr(HeldOut, "judge", slowly)
    began: list[float] = []
    run = rl2meta.train(CONFIG, on_start=lambda run: began.append(time.perf_counter()))
    assert sum(row["seconds"] for row in run.metrics) <= time.perf_counter() - began[0] - 3 * 0.3
    for row in run.metrics:
        assert row["env_steps_per_second"] == pytest.approx(4 * 3 / row["seconds"])


def test_no_task_is_of_the_training_or_of_the_final_evaluation(undisturbed: rl2meta.Run) -> None:
    law, tasks = undisturbed.distribution, texts(held_out_of(undisturbed.config, CPU).tasks)
    seen = [texts(sample_tasks(law, 4, derive(0, "train", update), "train")) for update in range(5)]
    assert len(tasks) == 50
    assert tasks.isdisjoint(set().union(*seen))
    assert tasks.isdisjoint(texts(sample_tasks(law, 10_000, 0, "test")))


def test_each_training_seed_has_tasks_of_its_own(undisturbed: rl2meta.Run) -> None:
    another = read_config(CONFIG, ["seed=1"])
    assert texts(held_out_of(another, CPU).tasks).isdisjoint(
        texts(held_out_of(undisturbed.config, CPU).tasks)
    )


def test_a_finite_family_gives_tasks_of_its_test_part() -> None:
    rooms = {"name": "dark_rooms"}
    config = read_config({**CONFIG, "distribution": rooms})
    tasks = texts(held_out_of(config, CPU).tasks)
    assert isinstance(config.law, DarkRooms)
    assert tasks <= texts(config.law.tasks_of("test"))
    assert tasks.isdisjoint(texts(config.law.tasks_of("train")))


@pytest.fixture
def workers(monkeypatch: pytest.MonkeyPatch) -> Iterator[list["Counted"]]:
    made: list[Counted] = []
    monkeypatch.setattr(held_out, "RolloutWorker", lambda *given: made.append(Counted(*given)) or made[-1])
    yield made


class Counted(RolloutWorker):
    """A worker that knows whether it was closed."""

    closed = 0

    def close(self) -> None:
        super().close()
        self.closed += 1


def test_one_worker_serves_the_whole_training_and_is_closed(workers: list[Counted]) -> None:
    rl2meta.train(CONFIG)
    assert [worker.closed for worker in workers] == [1]


def test_the_worker_is_closed_when_a_training_breaks_off(workers: list[Counted]) -> None:
    with pytest.raises(Killed):
        rl2meta.train(CONFIG, callbacks=[die_at(4)])
    assert [worker.closed for worker in workers] == [1]


def test_a_training_that_is_never_judged_makes_no_worker(workers: list[Counted]) -> None:
    rl2meta.train(CONFIG, NEVER)
    assert not workers


def test_a_run_whose_held_out_environments_fail_is_saved_with_its_row(
    undisturbed: rl2meta.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: HeldOut, agent: Any) -> Any:
        raise EnvironmentFault("it fell over")

    with monkeypatch.context() as broken:
        broken.setattr(HeldOut, "judge", fail)
        with pytest.raises(UserError, match=r"it fell over(.|\n)*update 2/5"):
            rl2meta.train(CONFIG, run_dir=tmp_path / "run")
    run = rl2meta.load_run(tmp_path / "run")
    assert run.update == len(run.metrics) == 2
    mended = rl2meta.resume(tmp_path / "run")
    assert told(mended, TIMING | JUDGED) == told(undisturbed, TIMING | JUDGED)


def test_a_finished_training_that_was_not_judged_says_how_to_judge_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: HeldOut, agent: Any) -> Any:
        raise EnvironmentFault("it fell over")

    monkeypatch.setattr(HeldOut, "judge", fail)
    with pytest.raises(
        UserError, match=r"complete and saved, but its agent was not judged(.|\n)*evaluate .*run"
    ):
        rl2meta.train(CONFIG, ["training.evaluate_every=5"], run_dir=tmp_path / "run")
    assert rl2meta.load_run(tmp_path / "run").finished


def test_a_score_that_is_no_number_is_left_out_with_a_warning(
    undisturbed: rl2meta.Run, caplog: pytest.LogCaptureFixture
) -> None:
    def judged(*given: Any) -> Any:
        result = rl2meta_evaluate(*given)
        result.rewards[0] = float("nan")
        return result

    rl2meta_evaluate = held_out.evaluate
    watch = HeldOut(undisturbed.distribution, CPU, 5, 3, 0, judged)
    with caplog.at_level(logging.WARNING, "rl2meta"):
        assert watch.metrics(undisturbed.agent).keys() == {"held_out_regret"}
    assert "expected a finite return" in caplog.text
    watch.close()


def test_tensorboard_has_the_curves_over_steps_and_the_hyper_parameters(undisturbed: rl2meta.Run) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams import plugin_data_pb2

    assert undisturbed.path is not None
    events = EventAccumulator(str(undisturbed.path / "tensorboard"))
    events.Reload()
    names = set(events.Tags()["scalars"])
    assert {"held_out/return", "held_out/regret", "train/learning_rate", "train/clip_fraction"} <= names
    assert {"train/explained_variance", "train/mean_return"} <= names
    assert not {"train/update", "train/env_steps", "train/held_out_return"} & names
    judged = [row for row in undisturbed.metrics if row.keys() >= JUDGED]
    curve = events.Scalars("held_out/regret")
    assert [event.step for event in curve] == [row["env_steps"] for row in judged]
    assert [event.value for event in curve] == pytest.approx([row["held_out_regret"] for row in judged])
    said = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    start = plugin_data_pb2.HParamsPluginData.FromString(said).session_start_info
    assert start.hparams["agent.core.hidden_size"].number_value == 4
    assert start.hparams["distribution.name"].string_value == "bernoulli_bandits"
