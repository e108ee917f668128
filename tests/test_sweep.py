"""``rl2meta sweep``: a grid of settings, trained and evaluated."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from rl2meta import Evaluation, UserError, evaluate, load_run
from rl2meta.cli import app
from rl2meta.commands.train_group import seeds_of
from rl2meta.experiments import sweeps, trainings
from rl2meta.experiments.sweeps import folder_names, split_axes, sweep_table

TINY = ["training.updates=2", "training.trials_per_update=4", "device=cpu", "evaluation.tasks=20"]
TINY += ["agent.epochs=1", "agent.minibatches=1"]


@pytest.fixture(autouse=True)
def without_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Evaluations draw figures, which takes longer than all else here."""
    monkeypatch.setattr(Evaluation, "figure", lambda self, name="regret": None)


def swept(folder: Path, *words: str) -> list[str]:
    return ["sweep", "smoke", *TINY, *words, "--run-dir", str(folder)]


def test_a_grid_is_trained_evaluated_and_not_trained_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "s"
    words = swept(folder, "agent.core.hidden_size=[4,8]", "agent.discount=[1.0]", "--seeds", "0-1")
    said = CliRunner().invoke(app, words, catch_exceptions=False)
    assert said.exit_code == 0, said.output
    content = json.loads((folder / "sweep.json").read_text())
    assert [point["folder"] for point in content["points"]] == [
        "hidden_size=4,discount=1.0",
        "hidden_size=8,discount=1.0",
    ]
    run = load_run(folder / "hidden_size=8,discount=1.0" / "seed1")
    config = run.config
    assert (
        config.agent.model_dump()["core"]["hidden_size"] == 8 and config.settings.seed == 1 and run.finished
    )
    assert config.settings.threads == 1
    for point in content["points"]:
        report = json.loads((folder / point["folder"] / "evaluation" / "evaluation.json").read_text())
        (agent,) = report["agents"].values()
        assert agent["over_seeds"]["seeds"] == [0, 1]
        assert point["return"] == agent["over_seeds"]["return"]
        assert point["regret"] == agent["over_seeds"]["regret"]
        assert point["interval_over"] == "seeds and tasks"

    def refuse(*given: Any, **more: Any) -> None:
        raise AssertionError("trained or evaluated again")

    monkeypatch.setattr(trainings, "_train", refuse)
    monkeypatch.setattr(sweeps, "evaluate", refuse)
    again = CliRunner().invoke(app, words, catch_exceptions=False)
    assert again.exit_code == 0 and json.loads((folder / "sweep.json").read_text()) == content
    assert "hidden_size  discount" in again.output and "over training seeds" in again.output


def test_a_score_is_of_the_seeds_that_it_names(tmp_path: Path) -> None:
    words = swept(tmp_path / "s", "agent.core.hidden_size=[4]")
    scores = []
    for seeds in ("0-1", "0"):
        assert CliRunner().invoke(app, [*words, "--seeds", seeds], catch_exceptions=False).exit_code == 0
        (point,) = json.loads((tmp_path / "s" / "sweep.json").read_text())["points"]
        scores.append(point["return"])
    alone = evaluate(tmp_path / "s" / "hidden_size=4" / "seed0", against="none", out=tmp_path / "alone")
    (result,) = alone.results.values()
    assert scores[1]["mean"] == pytest.approx(result.returns().mean())
    assert scores[0] != scores[1]


def test_a_sweep_goes_on_with_a_run_that_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = swept(tmp_path / "s", "agent.discount=[0.9,1.0]")
    with monkeypatch.context() as patch:
        patch.setattr(sweeps, "_go_on", lambda run, row: False)  # after the first update
        CliRunner().invoke(app, words, catch_exceptions=False)
    assert load_run(tmp_path / "s" / "discount=0.9").update == 1
    assert json.loads((tmp_path / "s" / "sweep.json").read_text())["points"][0]["return"] is None
    assert CliRunner().invoke(app, words, catch_exceptions=False).exit_code == 0
    assert load_run(tmp_path / "s" / "discount=0.9").finished
    points = json.loads((tmp_path / "s" / "sweep.json").read_text())["points"]
    assert all(point["interval_over"] == "tasks" for point in points)
    assert points[0]["return"]["low"] < points[0]["return"]["mean"] < points[0]["return"]["high"]


def test_a_point_that_fails_is_told_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train = sweeps.train

    def fails(source: str, overrides: list[str], **more: Any) -> Any:
        if "agent.discount=0.9" in overrides:
            raise UserError("training diverged")
        return train(source, overrides, **more)

    monkeypatch.setattr(sweeps, "train", fails)
    said = CliRunner().invoke(app, swept(tmp_path / "s", "agent.discount=[0.9,1.0]"), catch_exceptions=False)
    assert said.exit_code == 1 and "discount=0.9: training diverged" in said.output
    assert "0.9       failed" in said.output
    assert json.loads((tmp_path / "s" / "sweep.json").read_text())["points"][1]["return"]["mean"] > 0


def test_a_point_that_cannot_be_judged_is_told_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge, words = sweeps.evaluate, swept(tmp_path / "s", "agent.discount=[0.9,1.0]")

    def fails(group: Any, **more: Any) -> Any:
        if group.runs[0].config.agent.discount == 0.9:
            raise UserError("the environment raised ZeroDivisionError")
        return judge(group, **more)

    with monkeypatch.context() as patch:
        patch.setattr(sweeps, "evaluate", fails)
        said = CliRunner().invoke(app, words, catch_exceptions=False)
    assert said.exit_code == 1 and "discount=0.9: the environment raised" in said.output
    first, second = json.loads((tmp_path / "s" / "sweep.json").read_text())["points"]
    assert first["return"] is None and second["return"]["mean"] > 0
    (tmp_path / "s" / "discount=1.0" / "scores.json").write_text("")  # is made again
    assert CliRunner().invoke(app, words, catch_exceptions=False).exit_code == 0
    first, again = json.loads((tmp_path / "s" / "sweep.json").read_text())["points"]
    assert first["return"]["mean"] > 0 and again == second


def test_an_axis_may_be_the_number_of_threads_or_complete_the_config(tmp_path: Path) -> None:
    said = CliRunner().invoke(app, swept(tmp_path / "s", "threads=[1,2]"), catch_exceptions=False)
    assert said.exit_code == 0
    assert [load_run(tmp_path / "s" / f"threads={n}").config.settings.threads for n in (1, 2)] == [1, 2]
    config = "distribution: {name: bernoulli_bandits, num_arms: 2}\nagent: {name: rl2}\n"
    config += "training: {trials_per_update: 4, episodes_per_trial: 5}\n"
    (tmp_path / "c.yaml").write_text(config)
    words = ["sweep", str(tmp_path / "c.yaml"), "training.updates=[1,2]", *TINY[2:]]
    said = CliRunner().invoke(app, [*words, "--run-dir", str(tmp_path / "t")], catch_exceptions=False)
    assert said.exit_code == 0, said.output
    assert [load_run(tmp_path / "t" / f"updates={n}").update for n in (1, 2)] == [1, 2]


def test_another_config_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    CliRunner().invoke(app, swept(tmp_path / "s", "agent.discount=[1.0]"), catch_exceptions=False)
    words = swept(tmp_path / "s", "agent.discount=[1.0]", "agent.clip_range=0.1")
    said = CliRunner().invoke(app, words, catch_exceptions=False)
    assert said.exit_code == 1 and "agent.clip_range is 0.2, not 0.1" in said.output


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["agent.discount=0.9"], "a setting with a list"),
        (["agent.discount=[]"], "at least one value"),
        (["agent.discount=[1,1]"], "twice"),
        (["agent.discount=[1.0]", "agent.discount=[0.9]"], "one list for each setting"),
        (["agent.discuont=[0.9]"], "did you mean 'discount'"),
        (["agent.discount=[0.9,2.0]"], "less than or equal to 1"),
        (["agent.discount=[0.9]", "--seeds", "2-1"], "from low to high"),
        (["agent.discount=[0.9]", "--jobs", "0"], "--jobs"),
        (["seed=[1,2]", "--seeds", "0-1"], "none beside --seeds"),
        (["agent.discount=[0.9]", "seed=3", "--seeds", "0-1"], "none beside --seeds"),
    ],
)
def test_a_sweep_with_a_fault_trains_nothing(words: list[str], message: str, tmp_path: Path) -> None:
    said = CliRunner().invoke(app, swept(tmp_path / "s", *words))
    assert isinstance(said.exception, UserError) and message in str(said.exception)
    assert not (tmp_path / "s").exists()


def test_axes_and_the_names_of_folders() -> None:
    axes, others = split_axes(["a.size=[1,2]", "b.size=[x/y,z]", "c=[[3,4]]", "d=5"])
    assert others == ["d=5"] and axes == {"a.size": (1, 2), "b.size": ("x/y", "z"), "c": ([3, 4],)}
    names = [name for _, name in folder_names(axes)]
    assert names == [f"a.size={a},b.size={b},c=3-4" for a in (1, 2) for b in ("x_y", "z")]
    with pytest.raises(UserError, match="twice"):
        folder_names({"b": ("x/y", "x_y")})


def test_seeds_are_read() -> None:
    assert seeds_of("0-3") == [0, 1, 2, 3] and seeds_of("7,0,3-4") == [7, 0, 3, 4]
    for text in ("", "a", "1-", "3-1", "-1", "1,,2", "1,1-2"):
        with pytest.raises(UserError, match="--seeds"):
            seeds_of(text)


def test_the_best_point_stands_first_and_failed_ones_last() -> None:
    def row(size: int, mean: float | None) -> dict[str, Any]:
        score = None if mean is None else {"mean": mean, "low": mean - 1, "high": mean + 1}
        return {"settings": {"agent.size": size}, "return": score, "regret": None}

    table = sweep_table([row(1, 2.0), row(2, None), row(3, 5.0)])
    assert [line[0] for line in table] == ["size", "3", "1", "2"]
    assert table[1][1] == "5.000 [4.000, 6.000]" and table[3][1:] == ["failed", "unknown"]
