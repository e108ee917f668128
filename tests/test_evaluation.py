import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rl2meta.agents.references.bandits import bernoulli_references, gaussian_references
from rl2meta.envs.bandits import BernoulliBandits, GaussianBandits
from rl2meta.errors import UserError
from rl2meta.evaluation import (
    TENSORS_TOGETHER,
    AgentResult,
    Ceilings,
    ceilings,
    evaluate,
)
from rl2meta.evaluation_files import write_evaluation
from rl2meta.rollout import RolloutWorker
from rl2meta.tasks import sample_tasks
from rl2meta.trial import Agent

BANDITS = BernoulliBandits(num_arms=5)
REFERENCES = bernoulli_references(5, 10)


def _evaluate(name: str, tasks: int = 300, seed: int = 3) -> AgentResult:
    held_out = sample_tasks(BANDITS, tasks, 0, "test")
    return evaluate(REFERENCES[name].build(), RolloutWorker(BANDITS), held_out, 10, seed)


def test_return_and_regret_add_up_to_the_oracle() -> None:
    held_out = sample_tasks(BANDITS, 300, 0, "test")
    result = _evaluate("thompson")
    assert result.regrets is not None and (result.regrets >= 0).all()
    total = result.rewards.sum(axis=1, dtype=np.float64) + result.regrets.sum(axis=1, dtype=np.float64)
    np.testing.assert_allclose(total, 10 * held_out.parameters["means"].amax(dim=1).double(), atol=1e-5)
    ceiling = ceilings(BANDITS, held_out, 10)
    assert ceiling.oracle_return == pytest.approx(total.mean(), abs=1e-6)


def test_rewards_are_expectations_and_the_same_seed_gives_the_same() -> None:
    first, again, other = _evaluate("greedy"), _evaluate("greedy"), _evaluate("greedy", seed=4)
    assert np.array_equal(first.rewards, again.rewards)
    assert not np.array_equal(first.rewards, other.rewards)
    assert set(np.unique(first.rewards)) != {0.0, 1.0}


def test_the_first_batches_of_more_tasks_are_the_same() -> None:
    tasks, worker = sample_tasks(BANDITS, 2 * TENSORS_TOGETHER + 5, 0, "test"), RolloutWorker(BANDITS)
    for name in ("thompson", "greedy"):
        more = evaluate(REFERENCES[name].build(), worker, tasks, 10, 3)
        first = evaluate(REFERENCES[name].build(), worker, tasks[:TENSORS_TOGETHER], 10, 3)
        assert more.rewards.shape == (len(tasks), 10)
        assert np.array_equal(more.rewards[:TENSORS_TOGETHER], first.rewards)


def test_every_batch_has_luck_of_its_own() -> None:
    one = sample_tasks(BANDITS, 1, 0, "test")
    same = one[torch.zeros(2 * TENSORS_TOGETHER, dtype=torch.int64)]
    rewards = evaluate(REFERENCES["thompson"].build(), RolloutWorker(BANDITS), same, 10, 3).rewards
    assert not np.array_equal(rewards[:TENSORS_TOGETHER], rewards[TENSORS_TOGETHER:])


def test_ceilings_of_the_demo() -> None:
    ceiling = ceilings(BANDITS, sample_tasks(BANDITS, 100, 0, "test"), 10)
    assert ceiling.bayes_optimal_return == pytest.approx(6.660, abs=5e-4)
    assert ceiling.bayes_optimal_regret == pytest.approx(10 * 5 / 6 - 6.660, abs=5e-3)


def test_ceilings_are_none_where_they_are_not_known() -> None:
    gaussian = GaussianBandits(num_arms=3)
    ceiling = ceilings(gaussian, sample_tasks(gaussian, 100, 0, "test"), 10)
    assert ceiling.oracle_return is not None
    assert ceiling.bayes_optimal_return is None and ceiling.bayes_optimal_regret is None


def _write(folder: Path, results: dict[str, AgentResult]) -> dict[str, Any]:
    write_evaluation(folder, results, Ceilings(8.3, 6.66, 1.67), {"num_tasks": 300, "seed": 0})
    report: dict[str, Any] = json.loads((folder / "evaluation.json").read_text())
    return report


def test_what_is_written(tmp_path: Path) -> None:
    results = {name: _evaluate(name) for name in ("thompson", "greedy")}
    report = _write(tmp_path, results)
    assert (report["oracle_return"], report["bayes_optimal_return"]) == (8.3, 6.66)
    assert list(report["agents"]) == ["thompson", "greedy"]
    for name, result in results.items():
        said, returns = report["agents"][name], result.returns()
        assert said["mean_return"] == pytest.approx(returns.mean())
        assert said["return_standard_error"] == pytest.approx(returns.std(ddof=1) / 300**0.5)
        assert result.regrets is not None
        assert said["mean_regret"] == pytest.approx(result.regrets.sum(axis=1).mean(), rel=1e-5)
    gap = report["agents"]["greedy"]["return_minus_first"]
    difference = results["greedy"].returns() - results["thompson"].returns()
    assert gap["mean"] == pytest.approx(difference.mean()) and gap["low"] < gap["mean"] < gap["high"]
    arrays = np.load(tmp_path / "arrays.npz")  # allow_pickle is off by default
    assert np.array_equal(arrays["greedy/regrets"], results["greedy"].regrets)
    assert np.array_equal(arrays["thompson/rewards"], results["thompson"].rewards)


def test_the_curve_is_the_cumulative_mean_with_its_interval(tmp_path: Path) -> None:
    result = _evaluate("thompson")
    _write(tmp_path, {"thompson": result})
    rows = list(csv.DictReader((tmp_path / "regret.csv").read_text().splitlines()))
    assert [int(row["episode"]) for row in rows] == list(range(1, 11))
    assert [float(row["step"]) for row in rows] == list(range(1, 11))
    assert result.regrets is not None
    cumulative = result.regrets.cumsum(axis=1)
    for row, column in zip(rows, cumulative.T, strict=True):
        margin = 1.968 * column.std(ddof=1) / 300**0.5  # Student's t, 299 degrees of freedom
        want = (column.mean(), column.mean() - margin, column.mean() + margin)
        got = tuple(float(row[key]) for key in ("mean", "low", "high"))
        assert got == pytest.approx(want, rel=1e-3)


def test_a_family_without_a_known_optimum_reports_returns_and_null_regret(tmp_path: Path) -> None:
    result = _evaluate("thompson")
    report = _write(tmp_path, {"thompson": AgentResult(result.rewards, None, result.steps, 1.0)})
    assert report["agents"]["thompson"]["mean_regret"] is None
    assert not (tmp_path / "regret.csv").exists()
    rows = list(csv.DictReader((tmp_path / "returns.csv").read_text().splitlines()))
    assert float(rows[-1]["mean"]) == pytest.approx(result.returns().mean(), rel=1e-4)


def test_gaussian_references_beat_chance_on_held_out_tasks() -> None:
    gaussian = GaussianBandits(num_arms=5)
    held_out, worker = sample_tasks(gaussian, 1000, 0, "test"), RolloutWorker(gaussian)
    returns = {
        name: evaluate(reference.build(), worker, held_out, 20, 0).returns().mean()
        for name, reference in gaussian_references(5, 20).items()
    }
    assert all(value > returns["random"] + 5 for name, value in returns.items() if name != "random")
    assert torch.tensor(list(returns.values())).isfinite().all()


def test_nothing_is_written_over(tmp_path: Path) -> None:
    (tmp_path / "arrays.npz").write_text("precious")
    with pytest.raises(UserError, match="expected an empty folder"):
        _write(tmp_path, {"greedy": _evaluate("greedy")})
    assert (tmp_path / "arrays.npz").read_text() == "precious"


Lanes = Callable[[int], Agent[Any]]


def _in_blocks(agent: Agent[Any], tasks: int = 50) -> AgentResult:
    return evaluate(agent, RolloutWorker(BANDITS), sample_tasks(BANDITS, tasks, 0, "test"), 6, 3)


def test_a_block_is_what_an_agent_lives_through_before_it_adapts(next_arm: Lanes) -> None:
    means = sample_tasks(BANDITS, 50, 0, "test").parameters["means"].numpy()  # type: ignore[attr-defined]
    result = _in_blocks(next_arm(2))
    assert result.episodes_per_block == 2
    np.testing.assert_allclose(result.rewards, np.repeat(means[:, :3], 2, axis=1))
    np.testing.assert_allclose(result.per_block(result.rewards), means[:, :3], rtol=1e-6)
    assert _evaluate("greedy", tasks=3).episodes_per_block == 1


def test_what_an_episode_brings_after_so_many_is_written(tmp_path: Path, next_arm: Lanes) -> None:
    results = {"lanes": _in_blocks(next_arm(2)), "greedy": _in_blocks(REFERENCES["greedy"].build())}
    report = _write(tmp_path, results)
    rows = list(csv.DictReader((tmp_path / "adaptation.csv").read_text().splitlines()))
    assert list(rows[0]) == [
        "agent",
        "block",
        "episode",
        "mean",
        "low",
        "high",
        "regret_mean",
        "regret_low",
        "regret_high",
    ]
    lanes = [row for row in rows if row["agent"] == "lanes"]
    assert [(row["block"], row["episode"]) for row in lanes] == [("0", "0"), ("1", "2"), ("2", "4")]
    assert [row["episode"] for row in rows if row["agent"] == "greedy"] == list("012345")
    assert report["episodes"] == 6
    assert [report["agents"][name]["episodes_per_block"] for name in results] == [2, 1]
    means = sample_tasks(BANDITS, 50, 0, "test").parameters["means"].numpy()  # type: ignore[attr-defined]
    for k, (row, said) in enumerate(zip(lanes, report["agents"]["lanes"]["adaptation"], strict=True)):
        column = means[:, k]
        margin = 2.00958 * column.std(ddof=1) / 50**0.5  # Student's t, 49 degrees of freedom
        want = (column.mean(), column.mean() - margin, column.mean() + margin)
        assert (said["mean"], said["low"], said["high"]) == pytest.approx(want, rel=1e-4)
        assert tuple(float(row[key]) for key in ("mean", "low", "high")) == pytest.approx(want, rel=1e-4)
        lost = (means.max(axis=1) - column).mean()
        assert float(row["regret_mean"]) == pytest.approx(lost, rel=1e-4)
        assert said["regret_low"] < said["regret_mean"] < said["regret_high"]


def test_where_no_regret_is_known_its_columns_are_empty(tmp_path: Path) -> None:
    result = _evaluate("thompson")
    report = _write(tmp_path, {"thompson": AgentResult(result.rewards, None, result.steps, 1.0)})
    row = next(csv.DictReader((tmp_path / "adaptation.csv").read_text().splitlines()))
    assert row["mean"] and (row["regret_mean"], row["regret_low"], row["regret_high"]) == ("", "", "")
    assert report["agents"]["thompson"]["adaptation"][0].keys() == {"episode", "mean", "low", "high"}


@pytest.mark.parametrize("few", [0, 1])
def test_an_agent_may_be_put_on_the_first_tasks_alone(tmp_path: Path, next_arm: Lanes, few: int) -> None:
    whole, part = _in_blocks(REFERENCES["greedy"].build()), _in_blocks(next_arm(2), 20)
    results = {"part": part, "whole": whole} if few == 0 else {"whole": whole, "part": part}
    agents = _write(tmp_path, results)["agents"]
    assert (agents["whole"]["num_tasks"], agents["part"]["num_tasks"]) == (50, 20)
    first, second = (result.returns()[:20] for result in results.values())
    gap = list(agents.values())[1]["return_minus_first"]
    assert gap["mean"] == pytest.approx((second - first).mean())
    error = part.returns().std(ddof=1) / 20**0.5
    assert agents["part"]["return_standard_error"] == pytest.approx(error)
