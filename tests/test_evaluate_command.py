"""What ``rl2meta evaluate`` may look at: held-out tasks for judging, training tasks for tuning."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from rl2meta.agents.references.bandits import IndexAgent
from rl2meta.agents.references.reference import Reference
from rl2meta.agents.rl2 import RL2Config, RL2Learner
from rl2meta.commands import judging, tables
from rl2meta.commands.evaluate import evaluate_run
from rl2meta.commands.train import start_run
from rl2meta.errors import UserError
from rl2meta.evaluation import AgentResult, Ceilings
from rl2meta.experiments import contest as command
from rl2meta.experiments import overrides as overrides_module
from rl2meta.experiments import restore as restore_module
from rl2meta.experiments.components import AgentKind, chosen_references, make_learner, read_config
from rl2meta.rollout import RolloutWorker
from rl2meta.tasks import Tasks, sample_tasks

CONFIG = read_config("smoke", ["seed=0", "evaluation.seed=0"])


@pytest.fixture
def contest() -> command.Contest:
    return command.Contest(CONFIG, RolloutWorker(CONFIG.distribution), 0, 100)


def _always(arm: float) -> IndexAgent:
    return IndexAgent(2, lambda seen: torch.eye(2)[int(arm)].expand_as(seen.pulls))


def test_the_held_out_tasks_are_test_tasks(contest: command.Contest) -> None:
    want = sample_tasks(CONFIG.distribution, 100, 0, "test")
    assert torch.equal(contest.held_out.parameters["means"], want.parameters["means"])  # type: ignore[attr-defined]


def test_constants_are_tuned_on_training_tasks_with_luck_of_their_own(
    contest: command.Contest, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[torch.Tensor, int]] = []
    original: Callable[..., Any] = command.evaluate

    def watched(agent: Any, worker: Any, tasks: Tasks, episodes: int, seed: int) -> Any:
        calls.append((tasks.parameters["means"], seed))  # type: ignore[attr-defined]
        return original(agent, worker, tasks, episodes, seed)

    monkeypatch.setattr(command, "evaluate", watched)
    contest.evaluate_reference(Reference("pulls one arm", lambda arm: _always(arm), {"arm": (0, 1)}))
    *tuning, judged = calls
    train = sample_tasks(CONFIG.distribution, command.FEWEST_TUNING_TASKS, 0, "train").parameters["means"]  # type: ignore[attr-defined]
    assert len(tuning) == 2 and all(torch.equal(means, train) for means, _ in tuning)
    assert all(seed != judged[1] for _, seed in tuning)


def test_the_better_constant_is_chosen(contest: command.Contest, monkeypatch: pytest.MonkeyPatch) -> None:
    original = command.sample_tasks

    def first_arm_is_better(*args: Any) -> Tasks:
        tasks = original(*args)
        means = tasks.parameters["means"].sort(dim=1, descending=True).values  # type: ignore[attr-defined]
        return type(tasks)({"means": means})  # type: ignore[call-arg]

    monkeypatch.setattr(command, "sample_tasks", first_arm_is_better)
    reference = Reference("pulls one arm", lambda arm: _always(arm), {"arm": (1, 0)})
    assert contest.evaluate_reference(reference).constants == {"arm": 0}


def test_a_run_can_be_loaded_from_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rl2meta.experiments.restore import load_run

    start_run("smoke", ["training.updates=3", "training.trials_per_update=16"], tmp_path / "run")
    run = load_run(tmp_path / "run")
    assert run.episodes_per_trial == 5 and run.distribution.num_arms == 2  # type: ignore[attr-defined]
    tasks = sample_tasks(run.distribution, 10, 0, "test")
    trial = RolloutWorker(run.distribution).run(run.agent, tasks, 5, 0)
    assert trial.num_steps() == 50


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a few updates."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    start_run("smoke", ["training.updates=2", "training.trials_per_update=16", "threads=1"], folder)
    return folder


def _judge(run: Path, out: Path, *overrides: str, against: str = "none") -> dict[str, Any]:
    evaluate_run(run, overrides, tasks=40, seed=0, against=against, out=out, device="cpu", threads=1)
    report: dict[str, Any] = json.loads((out / "evaluation.json").read_text())
    return report


def test_an_evaluation_may_be_longer_than_training() -> None:
    longer = read_config("smoke", ["evaluation.episodes_per_trial=9"])
    assert command.Contest(longer, RolloutWorker(longer.distribution), 0, 10).episodes == 9
    assert command.Contest(CONFIG, RolloutWorker(CONFIG.distribution), 0, 10).episodes == 5


def test_references_are_built_for_the_trial_that_is_judged() -> None:
    config = read_config("smoke", ["evaluation.episodes_per_trial=9", "evaluation.against=[all]"])
    assert chosen_references(config)["gittins"].build().rule.keywords["num_pulls"] == 9  # type: ignore[attr-defined]


def test_what_is_written_of_one_trained_agent(trained: Path, tmp_path: Path) -> None:
    report = _judge(trained, tmp_path / "out", "evaluation.episodes_per_trial=8", against="greedy")
    assert report["subjects"] == ["rl2"] and report["episodes"] == 8
    assert report["trained_with"] == {"training.episodes_per_trial": 5}
    assert report["agents"]["rl2"]["episodes_per_block"] == 1
    assert len(report["agents"]["greedy"]["adaptation"]) == 8
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {
        "evaluation.json",
        "arrays.npz",
        "regret.csv",
        "adaptation.csv",
        "regret.png",
        "adaptation.png",
    }


def test_the_length_of_training_is_no_override(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"use evaluation\.episodes_per_trial=20$"):
        _judge(trained, tmp_path / "out", "training.episodes_per_trial=20")


def test_settings_that_its_kind_allows_may_change_after_training(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = AgentKind(RL2Config, RL2Learner, at_test=("clip_range",))
    monkeypatch.setattr(overrides_module, "AGENTS", {"rl2": kind})
    built: list[Any] = []
    monkeypatch.setattr(
        restore_module,
        "make_learner",
        lambda config, device: built.append(config.agent) or make_learner(config, device),
    )
    report = _judge(trained, tmp_path / "out", "agent.clip_range=0.5")
    assert [agent.clip_range for agent in built] == [0.5]
    assert report["trained_with"] == {"agent.clip_range": 0.2}
    with pytest.raises(
        UserError, match=r"such as distribution\.KEY=VALUE, agent\.clip_range=VALUE or evaluation"
    ):
        _judge(trained, tmp_path / "other", "agent.hidden_size=3")


def _restoring(agent: Any) -> Callable[..., Any]:
    """A ``restore`` that finds this agent in every run."""
    saved = SimpleNamespace(update=1, state={"env_steps": 2})
    return lambda *args, **more: (SimpleNamespace(agent=agent), saved)


def test_a_trial_that_does_not_fill_the_agents_phases_is_the_users_matter(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, next_arm: Callable[[int], Any]
) -> None:
    monkeypatch.setattr(judging, "restore", _restoring(next_arm(2)))
    with pytest.raises(UserError, match=r"(?s)^rl2 .*num_episodes=5 .* of the 2 episodes.*use 4 or 6"):
        _judge(trained, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_agent_that_adapts_between_blocks_gets_a_table_of_them(
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    next_arm: Callable[[int], Any],
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(judging, "restore", _restoring(next_arm(2)))
    report = _judge(trained, tmp_path / "out", "evaluation.episodes_per_trial=4", against="greedy")
    said = capsys.readouterr().out.split("return per episode ± 95 %, after so many blocks")[1]
    assert re.search(r"agent +block +after 0 +after 1", said) and "greedy" not in said
    first, second = report["agents"]["rl2"]["adaptation"]
    margins = [f"{block['mean']:.3f} ± {block['high'] - block['mean']:.3f}" for block in (first, second)]
    assert re.search(rf"rl2 +2 +{margins[0]} +{margins[1]}", said)
    _judge(trained, tmp_path / "one", "evaluation.episodes_per_trial=2")
    assert "after so many adaptations" not in capsys.readouterr().out  # it never adapts


def test_a_table_of_many_adaptations_shows_the_first_and_the_last(
    capsys: pytest.CaptureFixture[str],
) -> None:
    rewards = torch.arange(80.0).expand(3, 80).numpy() * 10
    many = AgentResult(rewards, None, rewards, 1.0, 2)
    results = {"a run with quite a long name": many, "b": replace(many, episodes_per_block=4)}
    facts = {"num_tasks": 3, "distribution": "D", "episodes": 80, "shared_with_training": True}
    facts["subjects"] = list(results)
    tables.print_tables(results, Ceilings(None, None, None), facts)
    out = capsys.readouterr().out
    assert "D: 3 tasks, of which training had some, 80 episodes each" in out
    table = out.split("blocks of episodes:")[1].splitlines()
    assert max(map(len, table)) <= 100
    assert re.search(r"after 0 +after 1 .*at last", "\n".join(table))
    assert any(line.split()[0] == "b" and "775.000" in line for line in table if line.split())
