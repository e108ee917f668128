"""Run folders that version 0.1 wrote: resumed, evaluated and compared by every later version."""

import json
import logging
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import rl2meta
from rl2meta.deprecation import deprecated

OLD = Path(__file__).parents[1] / "old_runs"
RUNS = ("bandit", "bandit_two_layers", "mdp", "navigation")
TIMING = {"seconds", "env_steps_per_second"}
FORMER = ("embedding_sizes", "hidden_size", "num_layers", "previous_observation")
# Another processor rounds other sums otherwise; the machine that wrote the folders gives the very bits.
# On another one with AVX-512 a loss near zero differed by 2e-7. Conjugate gradients made 8e-4 of the rounding
# in the first update after the resumption, and 3e-2 in the second.
ROUNDING, NEAR_ZERO = 1e-5, 5e-7
BY_CONJUGATE_GRADIENTS = {"navigation": 5e-2}
# The held-out tasks are the same for good, but a later version may draw other luck on them.
STANDARD_ERRORS = 4


def copied(name: str, folder: Path) -> Path:
    ignored = shutil.ignore_patterns("expected_*")
    return Path(shutil.copytree(OLD / name, folder / name, ignore=ignored))


def expected_metrics(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (OLD / name / "expected_metrics.jsonl").read_text().splitlines()]


def refuse_other_scores(said: dict[str, Any], expected: dict[str, Any]) -> None:
    """A mean return is what it was, or, where the luck is another, within its standard errors."""
    both = max(said["return_standard_error"], expected["return_standard_error"])
    mean = expected["mean_return"]
    assert said["mean_return"] == pytest.approx(mean, rel=1e-3, abs=STANDARD_ERRORS * both)


@pytest.mark.parametrize("name", RUNS)
def test_an_old_run_goes_on_to_the_metrics_of_the_undisturbed_one_and_is_judged(
    name: str, tmp_path: Path
) -> None:
    folder, expected = copied(name, tmp_path), expected_metrics(name)
    assert rl2meta.load_run(folder).update == 4  # it stopped there
    run = rl2meta.resume(folder)
    assert run.finished and len(run.metrics) == len(expected) == 6
    rounding = BY_CONJUGATE_GRADIENTS.get(name, ROUNDING)
    for row, want in zip(run.metrics, expected, strict=True):
        assert row.keys() >= want.keys()
        for key in want.keys() - TIMING:
            assert row[key] == pytest.approx(want[key], rel=rounding, abs=NEAR_ZERO), (row["update"], key)
    rl2meta.evaluate(folder, threads=1)
    said, want = (
        json.loads((path / "evaluation.json").read_text())
        for path in (folder / "evaluation", OLD / name / "expected_evaluation")
    )
    for key in ("episodes", "num_tasks", "seed", "distribution", "trained_with", "update", "env_steps"):
        assert said[key] == want[key], key
    for key in ("oracle_return", "bayes_optimal_return", "bayes_optimal_regret"):
        assert said[key] == (want[key] if want[key] is None else pytest.approx(want[key], rel=1e-3)), key
    for agent, before in want["agents"].items():
        refuse_other_scores(said["agents"][agent], before)


def test_old_runs_are_compared(tmp_path: Path) -> None:
    folders = [copied(name, tmp_path) for name in ("bandit", "bandit_two_layers")]
    for folder in folders:
        rl2meta.resume(folder)
    evaluation = rl2meta.compare(folders, against="gittins", threads=1)
    assert list(evaluation.results) == ["bandit", "bandit_two_layers", "gittins"]
    assert evaluation.path == tmp_path / "compare-bandit-bandit_two_layers"
    said = json.loads((evaluation.path / "evaluation.json").read_text())["agents"]
    for name in ("bandit", "bandit_two_layers"):
        expected = json.loads((OLD / name / "expected_evaluation" / "evaluation.json").read_text())["agents"]
        refuse_other_scores(said[name], expected["rl2"])
        refuse_other_scores(said["gittins"], expected["gittins"])


def test_what_is_deprecated_in_them_is_said_once_with_its_successor(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    deprecated.cache_clear()  # another test of this process may have heard of it
    with caplog.at_level(logging.WARNING, "rl2meta"):
        for name in ("bandit", "bandit_two_layers"):
            rl2meta.resume(copied(name, tmp_path))
    said = Counter(record.getMessage() for record in caplog.records)
    assert said == {f"agent.{key} is deprecated; use agent.core.{key}": 1 for key in FORMER}
