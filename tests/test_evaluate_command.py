"""What ``rl2meta evaluate`` may look at: held-out tasks for judging, training tasks for tuning."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import rl2meta
from rl2meta.agents.references.bandits import IndexAgent
from rl2meta.agents.references.reference import Reference
from rl2meta.commands.evaluate import evaluate_run
from rl2meta.commands.train import start_run
from rl2meta.envs.bandits import BernoulliBandits
from rl2meta.errors import UserError
from rl2meta.evaluation import AgentResult, Ceilings
from rl2meta.experiments import components
from rl2meta.experiments.components import chosen_references, read_config, row_name
from rl2meta.experiments.contest import FEWEST_TUNING_TASKS, Contest
from rl2meta.experiments.tables import tables
from rl2meta.reports import read_evaluation
from rl2meta.rollout import RolloutWorker
from rl2meta.tasks import Split, Tasks, TensorTasks, sample_tasks
from rl2meta.trial import Trial

CONFIG = read_config("smoke", ["seed=0", "evaluation.seed=0"])
BRIEF = ["training.updates=2", "training.trials_per_update=16", "threads=1"]


@pytest.fixture
def contest() -> Contest:
    return Contest(CONFIG, RolloutWorker(CONFIG.distribution), 0, 100)


def _always(arm: float) -> IndexAgent:
    return IndexAgent(2, lambda seen: torch.eye(2)[int(arm)].expand_as(seen.pulls))


def test_the_held_out_tasks_are_test_tasks(contest: Contest) -> None:
    want = sample_tasks(CONFIG.distribution, 100, 0, "test")
    assert torch.equal(contest.held_out.parameters["means"], want.parameters["means"])  # type: ignore[attr-defined]


class Watched(RolloutWorker):
    """A worker that remembers the tasks and the seeds that it was given."""

    def __init__(self) -> None:
        super().__init__(CONFIG.distribution)
        self.calls: list[tuple[torch.Tensor, int]] = []

    def run(self, agent: Any, tasks: Tasks, num_episodes: int, seed: int) -> Trial:
        self.calls.append((tasks.parameters["means"], seed))  # type: ignore[attr-defined]
        return super().run(agent, tasks, num_episodes, seed)


def test_constants_are_tuned_on_training_tasks_with_luck_of_their_own() -> None:
    worker = Watched()
    contest = Contest(CONFIG, worker, 0, 100)
    contest.evaluate_reference(Reference("pulls one arm", lambda arm: _always(arm), {"arm": (0, 1)}))
    *tuning, judged = worker.calls
    train = sample_tasks(CONFIG.distribution, FEWEST_TUNING_TASKS, 0, "train").parameters["means"]  # type: ignore[attr-defined]
    assert len(tuning) == 2 and all(torch.equal(means, train) for means, _ in tuning)
    assert all(seed != judged[1] for _, seed in tuning)


class FirstArmIsBetter(BernoulliBandits):
    def sample(self, num_tasks: int, generator: torch.Generator, split: Split) -> TensorTasks:
        means = super().sample(num_tasks, generator, split).parameters["means"]
        return TensorTasks({"means": means.sort(dim=1, descending=True).values})


def test_the_better_constant_is_chosen() -> None:
    config = replace(CONFIG, law=FirstArmIsBetter(num_arms=2))
    contest = Contest(config, RolloutWorker(config.distribution), 0, 100)
    reference = Reference("pulls one arm", lambda arm: _always(arm), {"arm": (1, 0)})
    assert contest.evaluate_reference(reference).constants == {"arm": 0}


def test_a_run_can_be_loaded_from_python(tmp_path: Path) -> None:
    start_run("smoke", ["training.updates=3", "training.trials_per_update=16"], tmp_path / "run")
    run = rl2meta.load_run(tmp_path / "run")
    assert run.episodes_per_trial == 5 and run.distribution.num_arms == 2  # type: ignore[attr-defined]
    tasks = sample_tasks(run.distribution, 10, 0, "test")
    trial = RolloutWorker(run.distribution).run(run.agent, tasks, 5, 0)
    assert trial.num_steps() == 50


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a few updates."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    start_run("smoke", BRIEF, folder)
    return folder


def _judge(run: Path, out: Path, *overrides: str, against: str = "none") -> dict[str, Any]:
    evaluate_run(run, overrides, tasks=40, seed=0, against=against, out=out, device="cpu", threads=1)
    report: dict[str, Any] = json.loads((out / "evaluation.json").read_text())
    return report


def test_an_evaluation_may_be_longer_than_training() -> None:
    longer = read_config("smoke", ["evaluation.episodes_per_trial=9"])
    assert Contest(longer, RolloutWorker(longer.distribution), 0, 10).episodes == 9
    assert Contest(CONFIG, RolloutWorker(CONFIG.distribution), 0, 10).episodes == 5


def test_references_are_built_for_the_trial_that_is_judged() -> None:
    """A Gittins index is computed for the pulls of a trial, and refuses a longer one."""
    config = read_config("smoke", ["evaluation.episodes_per_trial=9"])
    agent = chosen_references(config, ["gittins"])["gittins"].build()
    worker, tasks = RolloutWorker(CONFIG.distribution), sample_tasks(CONFIG.distribution, 10, 0, "test")
    assert worker.run(agent, tasks, 9, 0).num_steps() == 90
    with pytest.raises(ValueError, match="num_pulls=9"):
        worker.run(agent, tasks, 10, 0)


def test_a_reference_whose_phases_do_not_fill_the_trial_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    letters = {"name": "few_shot", "ways": 3, "shots": 1}
    size = {"updates": 1, "trials_per_update": 2, "episodes_per_trial": 10}
    config = read_config({"distribution": letters, "agent": {"name": "rl2"}, "training": size})
    assert list(chosen_references(config)) == ["random"]
    assert (
        "nearest_neighbour: expected a multiple of 3 episodes in a trial, got 10; it is left" in caplog.text
    )
    with pytest.raises(UserError, match="--against: nearest_neighbour: expected a multiple of 3 episodes"):
        chosen_references(config, ["nearest_neighbour"])


@pytest.mark.parametrize("seeds", [None, range(2)])
def test_a_reference_that_diverges_is_left_out(
    seeds: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge, said = Contest.evaluate_reference, list[str]()

    def diverges(self: Contest, reference: Reference) -> AgentResult:
        result = judge(self, reference)
        if reference.description == "the highest posterior mean":
            result.rewards[7, 3] = np.nan
        return result

    monkeypatch.setattr(Contest, "evaluate_reference", diverges)
    run = rl2meta.train("smoke", BRIEF, seeds=seeds, run_dir=tmp_path / "run")
    found = rl2meta.evaluate(run, tasks=20, against=["greedy", "random"], say=said.append)
    assert list(found.results) == ["rl2", "random"]
    assert "greedy is left out: it earned infinite or NaN rewards" in said
    assert list(found.facts["priors"]) == ["random"]


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


@pytest.fixture
def in_turn(arms_in_turn: str, tmp_path: Path) -> Path:
    """A run of an agent that pulls two arms in the two lanes of each phase."""
    agent = [f"agent.name={arms_in_turn}", "agent.lanes=2", "training.episodes_per_trial=4"]
    start_run("smoke", [*BRIEF, *agent], tmp_path / "in_turn")
    return tmp_path / "in_turn"


def test_settings_that_its_kind_allows_may_change_after_training(in_turn: Path, tmp_path: Path) -> None:
    report = _judge(in_turn, tmp_path / "out", "agent.lanes=4")
    assert report["agents"]["arms_in_turn:ARMS_IN_TURN"]["episodes_per_block"] == 4
    assert report["trained_with"] == {"agent.lanes": 2}
    with pytest.raises(UserError, match=r"such as distribution\.KEY=VALUE, agent\.lanes=VALUE or evaluation"):
        _judge(in_turn, tmp_path / "other", "agent.name=rl2")


def test_a_trial_that_does_not_fill_the_agents_phases_is_the_users_matter(
    in_turn: Path, tmp_path: Path
) -> None:
    message = r"(?s)^arms_in_turn:ARMS_IN_TURN .*num_episodes=5 .* of the 2 episodes.*use 4 or 6"
    with pytest.raises(UserError, match=message):
        _judge(in_turn, tmp_path / "out", "evaluation.episodes_per_trial=5")
    assert not (tmp_path / "out").exists()


def test_an_agent_that_adapts_between_blocks_gets_a_table_of_them(
    in_turn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = _judge(in_turn, tmp_path / "out", against="greedy")
    said = capsys.readouterr().out.split("return per episode ± 95 %, after so many blocks")[1]
    assert re.search(r"agent +block +after 0 +after 1", said) and "greedy" not in said
    first, second = report["agents"]["arms_in_turn:ARMS_IN_TURN"]["adaptation"]
    margins = [f"{block['mean']:.3f} ± {block['high'] - block['mean']:.3f}" for block in (first, second)]
    assert re.search(rf"ARMS_IN_TURN +2 +{margins[0]} +{margins[1]}", said)
    _judge(in_turn, tmp_path / "one", "evaluation.episodes_per_trial=2")
    assert "after so many blocks" not in capsys.readouterr().out  # it never adapts


def test_a_table_of_many_adaptations_shows_the_first_and_the_last() -> None:
    rewards = torch.arange(80.0).expand(3, 80).numpy() * 10
    many = AgentResult(rewards, None, rewards, 1.0, 2)
    results = {"a run with quite a long name": many, "b": replace(many, episodes_per_block=4)}
    facts = {"num_tasks": 3, "distribution": "D", "episodes": 80, "shared_with_training": True}
    facts["subjects"] = list(results)
    out = tables(results, Ceilings(None, None, None), facts)
    assert "D: 3 tasks, of which training had some, 80 episodes each" in out
    table = out.split("blocks of episodes:")[1].splitlines()
    assert max(map(len, table)) <= 100
    assert re.search(r"after 0 +after 1 .*at last", "\n".join(table))
    assert any(line.split()[0] == "b" and "775.000" in line for line in table if line.split())


@pytest.mark.parametrize("core", ["lstm", "gru", "slot"])
def test_rows_say_which_core_an_agent_has(
    core: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The LSTM keeps the paper's name."""
    name = "rl2" if core == "lstm" else f"rl2 ({core})"
    start_run("smoke", [f"agent.core={{name: {core}}}", *BRIEF], tmp_path / "run")
    report = _judge(tmp_path / "run", tmp_path / "out", against="greedy")
    assert list(report["agents"]) == [name, "greedy"] and report["subjects"] == [name]
    said = capsys.readouterr().out
    assert f"training {name} on " in said and re.search(rf"^ *{re.escape(name)} +\d", said, re.MULTILINE)
    for file in ("regret.csv", "adaptation.csv"):
        assert f"\n{name}," in (tmp_path / "out" / file).read_text()
    drawn = read_evaluation(tmp_path / "out", "regret.csv").agents
    assert [(agent.name, agent.is_subject) for agent in drawn] == [(name, True), ("greedy", False)]
    assert np.load(tmp_path / "out" / "arrays.npz")[f"{name}/regrets"].shape == (40, 5)


def test_the_agent_says_what_tells_its_variants_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    assert row_name(CONFIG) == "rl2"
    kind = replace(components.AGENTS["rl2"], variant=lambda config: f"of {config.core.hidden_size}")
    monkeypatch.setattr(components, "AGENTS", {"rl2": kind})
    assert row_name(CONFIG) == "rl2 (of 16)"
