import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rl2meta import evaluation
from rl2meta.agents.references.bandits import bernoulli_references, gaussian_references
from rl2meta.envs.bandits import BernoulliBandits, GaussianBandits
from rl2meta.errors import UserError
from rl2meta.evaluation import Benchmarks, Evaluation, benchmarks, evaluate, write_evaluation
from rl2meta.rollout import RolloutWorker
from rl2meta.tasks import sample_tasks

BANDITS = BernoulliBandits(num_arms=5)
REFERENCES = bernoulli_references(5, 10)


def _evaluate(name: str, tasks: int = 300, seed: int = 3) -> Evaluation:
    held_out = sample_tasks(BANDITS, tasks, 0, "test")
    return evaluate(REFERENCES[name].build(), RolloutWorker(BANDITS), held_out, 10, seed)


def test_return_and_regret_add_up_to_the_oracle() -> None:
    held_out = sample_tasks(BANDITS, 300, 0, "test")
    result = _evaluate("thompson")
    assert result.regrets is not None and (result.regrets >= 0).all()
    total = result.rewards.sum(axis=1, dtype=np.float64) + result.regrets.sum(axis=1, dtype=np.float64)
    np.testing.assert_allclose(total, 10 * held_out.parameters["means"].amax(dim=1).double(), atol=1e-5)
    ceiling = benchmarks(BANDITS, held_out, 10)
    assert ceiling.oracle_return == pytest.approx(total.mean(), abs=1e-6)


def test_rewards_are_expectations_and_the_same_seed_gives_the_same() -> None:
    first, again, other = _evaluate("greedy"), _evaluate("greedy"), _evaluate("greedy", seed=4)
    assert np.array_equal(first.rewards, again.rewards)
    assert not np.array_equal(first.rewards, other.rewards)
    assert set(np.unique(first.rewards)) != {0.0, 1.0}


def test_chunks_change_what_runs_side_by_side_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = _evaluate("greedy")
    monkeypatch.setattr(evaluation, "CHUNK", 128)
    parts = _evaluate("greedy")
    assert parts.rewards.shape == whole.rewards.shape
    assert np.array_equal(parts.rewards[:, 0], whole.rewards[:, 0])  # first pulls: arm 0 on every task
    assert abs(parts.returns().mean() - whole.returns().mean()) < 0.2


def test_ceilings_of_the_demo() -> None:
    ceiling = benchmarks(BANDITS, sample_tasks(BANDITS, 100, 0, "test"), 10)
    assert ceiling.bayes_optimal_return == pytest.approx(6.660, abs=5e-4)
    assert ceiling.bayes_optimal_regret == pytest.approx(10 * 5 / 6 - 6.660, abs=5e-3)


def test_ceilings_are_none_where_they_are_not_known() -> None:
    gaussian = GaussianBandits(num_arms=3)
    ceiling = benchmarks(gaussian, sample_tasks(gaussian, 100, 0, "test"), 10)
    assert ceiling.oracle_return is not None
    assert ceiling.bayes_optimal_return is None and ceiling.bayes_optimal_regret is None


def _write(folder: Path, results: dict[str, Evaluation]) -> dict[str, Any]:
    write_evaluation(folder, results, Benchmarks(8.3, 6.66, 1.67), {"num_tasks": 300, "seed": 0})
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
    report = _write(tmp_path, {"thompson": Evaluation(result.rewards, None, result.steps, 1.0)})
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
