"""Which tasks are the same, against the tasks written out; and what an evaluation makes of it."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rl2meta.distinct import repeated, same_tasks
from rl2meta.evaluation import AgentResult, Ceilings
from rl2meta.evaluation_files import write_evaluation
from rl2meta.experiments.components import FAMILIES
from rl2meta.experiments.tables import tables
from rl2meta.reports import read_adaptation, read_evaluation
from rl2meta.statistics import mean_interval, paired_difference
from rl2meta.tasks import MappingTasks, TensorTasks, sample_tasks

NUM_TASKS, EPISODES = 60, 3


def _partition(labels: Any) -> set[frozenset[int]]:
    return {frozenset(np.flatnonzero(labels == label).tolist()) for label in np.unique(labels)}


@pytest.mark.parametrize("family", ["dark_rooms", "key_to_door", "two_step", "bernoulli_bandits"])
def test_tasks_are_the_same_if_their_parameters_are(family: str) -> None:
    tasks = sample_tasks(FAMILIES[family](), NUM_TASKS, 0, "test")
    assert isinstance(tasks, TensorTasks)
    flat = torch.cat([each.reshape(NUM_TASKS, -1).double() for each in tasks.parameters.values()], dim=1)
    want = torch.unique(flat, dim=0, return_inverse=True)[1].numpy()
    assert _partition(same_tasks(tasks)) == _partition(want)


def test_tasks_of_single_environments_are_compared_too() -> None:
    tasks = MappingTasks(
        ({"a": 1, "b": 2.0}, {"b": 2.0, "a": 1}, {"a": np.array([1, 2])}, {"a": 1, "b": 2.5})
    )
    assert _partition(same_tasks(tasks)) == {frozenset({0, 1}), frozenset({2}), frozenset({3})}


def test_labels_that_say_nothing_are_left_out() -> None:
    assert repeated(np.array([3, 1, 2])) is None and repeated(np.array([4, 4, 4])) is None
    labels = np.array([0, 1, 0])
    assert repeated(labels) is labels


@pytest.fixture
def results() -> dict[str, AgentResult]:
    """Two agents on seven tasks, each drawn several times; the task makes most of the difference."""
    rng, labels = np.random.default_rng(0), np.arange(NUM_TASKS) % 7
    level = rng.normal(size=7)[labels][:, None]

    def result() -> AgentResult:
        rewards = (1e6 + level + 0.1 * rng.normal(size=(NUM_TASKS, EPISODES))).astype(np.float64)
        steps = np.ones_like(rewards)
        return AgentResult(rewards, 2e6 - rewards, steps, 0.0, labels=labels)  # type: ignore[arg-type]

    return {"first": result(), "second": result()}


FACTS = {"num_tasks": NUM_TASKS, "distinct_tasks": 7, "episodes": EPISODES, "distribution": "Rooms()"}
CEILINGS = Ceilings(None, None, None)


def test_files_tables_and_figures_have_one_interval(results: dict[str, AgentResult], tmp_path: Path) -> None:
    write_evaluation(tmp_path, results, CEILINGS, FACTS)
    said = json.loads((tmp_path / "evaluation.json").read_text())
    text = tables(results, CEILINGS, FACTS)
    report = {agent.name: agent for agent in read_evaluation(tmp_path, "regret.csv").agents}
    labels = results["first"].labels
    assert said["distinct_tasks"] == 7 and "60 trials on 7 held-out tasks" in text
    for name, result in results.items():
        want = mean_interval(result.returns(), clusters=labels)
        entry, margin = said["agents"][name], float(want.high - want.mean)
        assert entry["over_tasks"]["return"] == pytest.approx(
            {"mean": float(want.mean), "low": float(want.low), "high": float(want.high)}
        )
        assert entry["return_standard_error"] == pytest.approx(float(want.standard_error))
        assert report[name].margin == pytest.approx(margin)
        assert f"{want.mean:.3f} ± {margin:.3f}" in text
        band = report[name].high[-1] - report[name].low[-1]  # of a regret of three million
        assert band == pytest.approx(2 * margin, rel=1e-2)
    assert margin > 2 * (mean_interval(result.returns()).high - want.mean)


def test_differences_and_adaptation_are_over_the_distinct_tasks(
    results: dict[str, AgentResult], tmp_path: Path
) -> None:
    write_evaluation(tmp_path, results, CEILINGS, FACTS)
    first, second = (result.returns() for result in results.values())
    gap = paired_difference(second, first, clusters=results["first"].labels)
    said = json.loads((tmp_path / "evaluation.json").read_text())
    assert said["agents"]["second"]["return_minus_first"]["high"] == pytest.approx(float(gap.high))
    rows = list(csv.DictReader((tmp_path / "adaptation.csv").read_text().splitlines()))
    want = mean_interval(results["first"].rewards[:, 0], clusters=results["first"].labels)
    assert float(rows[0]["high"]) == pytest.approx(float(want.high), rel=1e-9)
    assert read_adaptation(tmp_path).title == "60 trials on 7 held-out tasks"


def test_gaps_to_the_best_reference_are_paired_differences(tmp_path: Path) -> None:
    rng, labels = np.random.default_rng(2), np.arange(NUM_TASKS) % 9
    ours, best, worse = (rng.exponential(size=(NUM_TASKS, EPISODES)) + i for i in (0.2, 0, 1))
    results = {
        name: AgentResult(-regret, regret, np.ones_like(regret), 0.0, labels=labels)
        for name, regret in {"ours": ours, "best": best, "worse": worse}.items()
    }
    write_evaluation(tmp_path, results, CEILINGS, {**FACTS, "subjects": ["ours"]})
    assert json.loads((tmp_path / "evaluation.json").read_text())["best_reference"] == "best"
    rows = list(csv.DictReader((tmp_path / "regret.csv").read_text().splitlines()))
    ends = {row["agent"]: row for row in rows if int(row["episode"]) == EPISODES}
    for name, regret in (("ours", ours), ("worse", worse)):
        want = paired_difference(regret.sum(axis=1), best.sum(axis=1), clusters=labels)
        got = [float(ends[name][key]) for key in ("gap", "gap_low", "gap_high")]
        assert got == pytest.approx([float(want.mean), float(want.low), float(want.high)])
    assert float(ends["best"]["gap_high"]) == 0


def test_without_references_there_is_no_gap(tmp_path: Path) -> None:
    regret = np.ones((4, 2), np.float32)
    write_evaluation(tmp_path, {"ours": AgentResult(-regret, regret, regret, 0.0)}, CEILINGS, FACTS)
    assert json.loads((tmp_path / "evaluation.json").read_text())["best_reference"] is None
    (row, _) = csv.DictReader((tmp_path / "regret.csv").read_text().splitlines())
    assert row["gap"] == row["gap_high"] == ""
