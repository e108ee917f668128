"""``rl2meta compare``: several runs on the same tasks with the same luck, each under its own name."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rl2meta import cli
from rl2meta.commands.evaluate import compare_runs
from rl2meta.commands.train import start_run
from rl2meta.errors import UserError
from rl2meta.experiments.components import read_config

BRIEF = ["training.updates=2", "training.trials_per_update=16", "threads=1"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of a few updates: one, one of another seed and longer trials, one on other tasks."""
    folder = tmp_path_factory.mktemp("runs")
    start_run("smoke", BRIEF, folder / "one")
    start_run("smoke", [*BRIEF, "seed=1", "training.episodes_per_trial=7"], folder / "two")
    start_run("smoke", [*BRIEF, "distribution.low=0.5"], folder / "other")
    return folder


def _compare(*paths: Path, **more: Any) -> None:
    options: dict[str, Any] = {"tasks": 40, "seed": 3, "episodes": None, "against": "greedy", "out": None}
    compare_runs(paths, **{**options, "device": "cpu", "threads": 1, **more})


def _said(folder: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((folder / "evaluation.json").read_text())
    return report


def test_what_a_comparison_holds(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _compare(runs / "one", runs / "two")
    folder = runs / "compare-one-two"
    said = _said(folder)
    assert list(said["agents"]) == ["one", "two", "greedy"] and said["subjects"] == ["one", "two"]
    assert (said["num_tasks"], said["seed"], said["episodes"]) == (40, 3, 7)  # the longer of 5 and 7
    first, second = said["runs"]["one"], said["runs"]["two"]
    assert first == {
        "path": str(runs / "one"),
        "agent": "rl2",
        "trained_with": {"training.episodes_per_trial": 5},
        "update": 2,
        "env_steps": 2 * 16 * 5,
    }
    assert second["trained_with"] == {} and second["env_steps"] == 2 * 16 * 7
    assert said["agents"]["two"]["return_minus_first"].keys() == {"mean", "low", "high"}
    names = {path.name for path in folder.iterdir()}
    figures = {"regret.png", "adaptation.png"}
    assert names == {"evaluation.json", "arrays.npz", "regret.csv", "adaptation.csv"} | figures
    out = capsys.readouterr().out
    assert "one was trained with training.episodes_per_trial=5" in out and "minus one ± 95 %" in out
    _compare(runs / "one", runs / "two", episodes=3, against="none")
    again = _said(runs / "compare-one-two_2")
    assert again["episodes"] == 3 and list(again["agents"]) == ["one", "two"]


def test_a_comparison_says_which_core_a_run_has(runs: Path, tmp_path: Path) -> None:
    start_run("smoke", [*BRIEF, "agent.core={name: slot, slot_size: 4}"], tmp_path / "slots")
    _compare(runs / "one", tmp_path / "slots", out=tmp_path / "out")
    said = _said(tmp_path / "out")
    assert {name: run["agent"] for name, run in said["runs"].items()} == {"one": "rl2", "slots": "rl2 (slot)"}


def test_each_gets_the_tasks_and_the_luck_that_it_gets_alone(runs: Path, tmp_path: Path) -> None:
    twin = Path(shutil.copytree(runs / "one", tmp_path / "twin"))
    _compare(runs / "one", twin, out=tmp_path / "out")
    arrays = np.load(tmp_path / "out" / "arrays.npz")
    assert np.array_equal(arrays["one/rewards"], arrays["twin/rewards"])
    assert _said(tmp_path / "out")["agents"]["twin"]["return_minus_first"]["mean"] == 0


def test_an_oracle_is_compared_with_an_agent_that_must_find_out(runs: Path, tmp_path: Path) -> None:
    start_run("smoke", [*BRIEF, "reveal_task=true", "evaluation.against=[none]"], tmp_path / "oracle")
    _compare(tmp_path / "oracle", runs / "one", out=tmp_path / "out", against="greedy")
    said = _said(tmp_path / "out")
    assert list(said["agents"]) == ["oracle", "one", "greedy"] and said["bayes_optimal_return"] is not None
    assert said["distribution"] == str(read_config("smoke", []).law)


def test_folders_of_one_name_go_by_their_paths(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(runs / "one", tmp_path / "a" / "run")
    shutil.copytree(runs / "two", tmp_path / "b" / "run")
    shutil.copytree(runs / "two", tmp_path / "greedy")
    monkeypatch.chdir(tmp_path)
    _compare(Path("a/run"), Path("b/run"), Path("greedy"))
    said = _said(tmp_path / "a" / "compare-run-run-greedy")
    assert list(said["agents"]) == ["a/run", "b/run", "greedy (run)", "greedy"]


def test_what_cannot_be_compared_is_said(runs: Path, tmp_path: Path) -> None:
    one, two = runs / "one", runs / "two"
    cases: list[tuple[tuple[Path, ...], dict[str, Any], str]] = [
        ((one,), {}, "expected at least two run folders, got one; use `rl2meta evaluate`"),
        ((one, one), {}, "expected different run folders"),
        ((one, runs / "none"), {}, "expected a run folder"),
        ((one, runs / "other"), {}, r"distribution\.low is 0\.5, not 0\.0\. Compare runs on one law"),
        ((one, two), {"episodes": 0}, "--episodes: expected a number from 1"),
        ((one, two), {"tasks": 1}, "--tasks: expected a number from 2"),
        ((one, two), {"against": "gredy"}, "unknown reference 'gredy'; did you mean 'greedy'"),
        ((one, two), {"out": one}, "expected a new folder"),
    ]
    before = sorted(runs.rglob("*"))
    for paths, options, message in cases:
        with pytest.raises(UserError, match=message):
            _compare(*paths, **options)
    assert sorted(runs.rglob("*")) == before


def test_a_trial_must_fill_the_phases_of_every_run(arms_in_turn: str, tmp_path: Path) -> None:
    for name, lanes in {"one": 7, "two": 4, "half": 2}.items():
        agent = [f"agent.name={arms_in_turn}", f"agent.lanes={lanes}"]
        start_run("smoke", [*BRIEF, *agent, f"training.episodes_per_trial={lanes}"], tmp_path / name)
    with pytest.raises(UserError, match=r"^two .*num_episodes=7 .* 4 episodes .*use 4 or 8"):
        _compare(tmp_path / "one", tmp_path / "two")
    _compare(tmp_path / "half", tmp_path / "two", episodes=4, out=tmp_path / "filled")
    blocks = [entry["episodes_per_block"] for entry in _said(tmp_path / "filled")["agents"].values()]
    assert blocks == [2, 4, 1]  # the last is the reference's


def test_the_command_line_compares(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--tasks", "20", "--against", "none", "--out", str(tmp_path / "out"), "--threads", "1"]
    monkeypatch.setattr("sys.argv", ["rl2meta", "compare", str(runs / "one"), str(runs / "two"), *options])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert not stop.value.code
    assert "adaptation.png" in capsys.readouterr().out and (tmp_path / "out" / "regret.csv").exists()


def test_ppo_learns_from_scratch_on_the_first_tasks(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _compare(runs / "one", runs / "two", scratch=3, out=tmp_path / "all")
    said = _said(tmp_path / "all")["agents"]
    assert said["PPO from scratch"]["num_tasks"] == 3 and said["greedy"]["num_tasks"] == 40
    assert "3/3 tasks" in capsys.readouterr().out
    arrays = np.load(tmp_path / "all" / "arrays.npz")
    assert arrays["PPO from scratch/rewards"].shape == (3, 7)
    for number in (1, 41):
        with pytest.raises(UserError, match=f"--scratch: expected a number from 2 to 40, got {number}"):
            _compare(runs / "one", runs / "two", scratch=number)
