"""MAML through the command line: trained, resumed, judged, compared with RL² on the same tasks."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rl2meta.commands.evaluate import compare_runs, evaluate_run
from rl2meta.commands.train import resume_run, start_run
from rl2meta.errors import UserError

LITTLE = ["training.updates=2", "training.trials_per_update=4", "threads=1", "agent.hidden_sizes=[8]"]
NAVIGATION = [*LITTLE, "distribution.horizon=6", "agent.episodes_per_phase=4"]


def _said(folder: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((folder / "evaluation.json").read_text())
    return report


def _judge(run: Path, *overrides: str, **more: Any) -> None:
    options = {"tasks": 12, "seed": 1, "against": "none", "out": None, "device": "cpu", "threads": 1}
    evaluate_run(run, overrides, **{**options, **more})


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    episodes = "training.episodes_per_trial=8"
    start_run("maml_navigation", [*NAVIGATION, episodes], folder / "maml")
    start_run("pretrained_navigation", [*NAVIGATION, "training.episodes_per_trial=4"], folder / "pretrained")
    start_run("oracle_navigation", [*NAVIGATION, "training.episodes_per_trial=4"], folder / "oracle")
    rl2 = ["training.updates=2", "training.trials_per_update=4", "threads=1", "agent.core.hidden_size=8"]
    start_run("rl2_navigation", [*rl2, "agent.minibatches=2", "distribution.horizon=6"], folder / "rl2")
    bandit = ["training.updates=2", "training.trials_per_update=8", "threads=1"]
    start_run("maml_bandit", [*bandit, "agent.hidden_sizes=[8]"], folder / "maml_bandit")
    start_run(
        "smoke", [*bandit, "training.episodes_per_trial=10", "distribution.num_arms=5"], folder / "rl2b"
    )
    return folder


def test_more_steps_and_other_rates_than_in_training(runs: Path, tmp_path: Path) -> None:
    rates = "agent.inner_learning_rates=[0.3,0.1,0.05]"
    _judge(runs / "maml", "evaluation.episodes_per_trial=20", rates, out=tmp_path / "more")
    said = _said(tmp_path / "more")
    points = said["agents"]["maml_trpo"]["adaptation"]
    assert [point["episode"] for point in points] == [0, 4, 8, 12, 16]  # after 0, 1, 2, 3, 4 steps
    assert all(point["low"] <= point["mean"] <= point["high"] for point in points)
    assert said["trained_with"]["agent.inner_learning_rates"] == [0.2, 0.1]
    _judge(runs / "maml", "evaluation.episodes_per_trial=20", out=tmp_path / "same")
    again = _said(tmp_path / "same")["agents"]["maml_trpo"]["adaptation"]
    assert again[0] == points[0]  # before a step, rates mean nothing
    assert again[1] != points[1]


@pytest.mark.usefixtures("rendered")
def test_everything_about_navigation_in_one_figure(runs: Path, tmp_path: Path) -> None:
    """Episodes that end early, four kinds of agents, and PPO from scratch, on one axis of interactions."""
    paths = [runs / name for name in ("maml", "pretrained", "oracle", "rl2")]
    out = tmp_path / "all"
    options: dict[str, Any] = {"tasks": 8, "seed": 0, "episodes": 16, "against": "none", "device": "cpu"}
    compare_runs(paths, **options, out=out, threads=1, scratch=2)
    said = _said(out)
    assert list(said["agents"]) == ["maml", "pretrained", "oracle", "rl2", "PPO from scratch"]
    arrays = np.load(out / "arrays.npz")
    assert arrays["maml/regrets"].shape == (8, 16)  # support episodes are regret too
    first = arrays["maml/regrets"][:, :4].sum()
    assert first > 0
    assert (out / "regret.png").stat().st_size > 10_000 and (out / "adaptation.png").exists()


def test_rl2_and_maml_pull_the_same_bandits(runs: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"tasks": 30, "seed": 0, "episodes": None, "device": "cpu", "threads": 1}
    compare_runs([runs / "rl2b", runs / "maml_bandit"], **options, against="thompson", out=tmp_path / "both")
    said = _said(tmp_path / "both")
    assert list(said["agents"]) == ["rl2b", "maml_bandit", "thompson"]
    arrays = np.load(tmp_path / "both" / "arrays.npz")
    for name in said["agents"]:  # every pull counts: return and regret make up the oracle's
        together = (arrays[f"{name}/rewards"] + arrays[f"{name}/regrets"]).sum(axis=1).mean()
        assert together == pytest.approx(said["oracle_return"], rel=1e-5)


def test_what_maml_is_cannot_change_after_training(runs: Path) -> None:
    with pytest.raises(UserError, match=r"agent\.inner_learning_rates="):
        _judge(runs / "maml", "agent.hidden_sizes=[16]")
    with pytest.raises(UserError, match="not a positive multiple of the 4 episodes"):
        _judge(runs / "maml", "evaluation.episodes_per_trial=10")


def test_regression_wants_targets(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="expected predictions"):
        start_run("maml_sinusoid", ["distribution.name=bernoulli_bandits"], tmp_path / "run")
    start_run("maml_sinusoid", [*LITTLE], tmp_path / "curves")
    _judge(tmp_path / "curves", out=tmp_path / "judged")
    assert len(_said(tmp_path / "judged")["agents"]["maml_regression"]["adaptation"]) == 11


def test_a_resumed_run_ends_as_the_undisturbed_one(runs: Path, tmp_path: Path) -> None:
    little = [
        *NAVIGATION,
        "training.episodes_per_trial=8",
        "training.updates=4",
        "training.checkpoint_every=2",
    ]
    start_run("maml_navigation", little, tmp_path / "whole")
    start_run("maml_navigation", little, tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut" / "checkpoints" / "update_00000004")  # as if it died after update 2
    resume_run(tmp_path / "cut", None, [])
    ours, theirs = (
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("whole", "cut")
    )
    timing = {"seconds", "env_steps_per_second"}
    assert len(ours) == 4
    for one, other in zip(ours, theirs, strict=True):
        assert {k: v for k, v in one.items() if k not in timing} == {
            k: v for k, v in other.items() if k not in timing
        }


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["training.episodes_per_trial=9"], "training.episodes_per_trial: num_episodes=9 is not a positive"),
        (["evaluation.episodes_per_trial=9"], "evaluation.episodes_per_trial: num_episodes=9 is not a posi"),
        (
            ["agent.query_weights=[1.0,1.0,1.0]", "training.episodes_per_trial=8"],
            "agent.query_weights: expected at most 2",
        ),
        (["distribution.horizon=1", "agent.episodes_per_phase=1"], "expected more than one step in a phase"),
    ],
)
def test_what_does_not_fit_together_shows_before_anything_is_written(
    overrides: list[str], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        start_run("maml_navigation", [*NAVIGATION, *overrides], tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_agent_that_adapts_itself_to_pieces_is_said_to(runs: Path, tmp_path: Path) -> None:
    start_run("maml_sinusoid", [*LITTLE], tmp_path / "curves")
    with pytest.raises(
        UserError, match="maml_regression: expected finite rewards, got infinite or NaN rewards from episode"
    ):
        _judge(tmp_path / "curves", "agent.inner_learning_rates=[100000.0]", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_was_trained_otherwise_is_said(runs: Path, tmp_path: Path) -> None:
    _judge(runs / "maml", "evaluation.episodes_per_trial=8", out=tmp_path / "same")
    assert _said(tmp_path / "same")["trained_with"] == {}
    _judge(runs / "maml", out=tmp_path / "longer")  # the config judges in trials of 80
    assert _said(tmp_path / "longer")["trained_with"] == {"training.episodes_per_trial": 8}


def test_each_run_of_a_comparison_may_adapt_with_rates_of_its_own(runs: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"tasks": 8, "seed": 0, "episodes": 12, "against": "none", "device": "cpu"}
    paths, rates = [runs / "maml", runs / "pretrained"], "agent.inner_learning_rates=[0.5]"
    compare_runs(paths, **options, out=tmp_path / "as_they_are")
    compare_runs(paths, **options, out=tmp_path / "tuned", settings=[f"pretrained:{rates}"])
    before, after = (_said(tmp_path / name)["agents"] for name in ("as_they_are", "tuned"))
    assert before["maml"]["adaptation"] == after["maml"]["adaptation"]
    assert before["pretrained"]["adaptation"][0] == after["pretrained"]["adaptation"][0]
    assert before["pretrained"]["adaptation"][1] != after["pretrained"]["adaptation"][1]
    for fault in (f"other:{rates}", rates, "maml:distribution.side=2"):
        with pytest.raises(UserError, match=r"expected NAME:agent\.KEY=VALUE .* one of maml, pretrained"):
            compare_runs(paths, **options, out=tmp_path / "none", settings=[fault])
    with pytest.raises(UserError, match="the agent itself cannot change after training"):
        compare_runs(paths, **options, out=tmp_path / "none", settings=["maml:agent.hidden_sizes=[3]"])


def test_the_rule_may_change_after_training_unless_it_was_learnt(tmp_path: Path) -> None:
    sinusoid = [*LITTLE, "training.trials_per_update=3"]
    for rule in ("sgd", "meta_sgd"):
        assert start_run("maml_sinusoid", [*sinusoid, f"agent.rule={rule}"], tmp_path / rule) == 0
    short = "evaluation.episodes_per_trial=15"
    _judge(tmp_path / "sgd", short, "agent.rule={name: adam, beta1: 0.5}", out=tmp_path / "adam")
    said = _said(tmp_path / "adam")
    assert said["trained_with"]["agent.rule.name"] == "sgd"
    first, second, _ = said["agents"]["maml_regression"]["adaptation"]
    assert first["mean"] != second["mean"]
    with pytest.raises(UserError, match="expected agent settings that fit what was trained"):
        _judge(tmp_path / "meta_sgd", short, "agent.rule=adam", out=tmp_path / "none")
