"""``rl2meta benchmark --suite learning``: seconds to a score, counted while training and at no other time."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.image import imread

from rl2meta import cli, drawing, training
from rl2meta.errors import UserError
from rl2meta.evaluation import evaluate
from rl2meta.experiments.components import make_learner, make_worker, read_config, shipped_configs
from rl2meta.speed import learning
from rl2meta.speed.learning import TARGETS, learning_table, measure_learning
from rl2meta.speed.learning_figure import plot_learning
from rl2meta.tasks import sample_tasks
from rl2meta.training import TrainingDiverged, meta_train

CPU = torch.device("cpu")
UPDATES, UPDATE_SECONDS, STEPS = 20, 0.5, 8 * 5
BRIEF = [f"training.updates={UPDATES}", "training.trials_per_update=8", "agent.epochs=1", "threads=7"]
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run ``rl2meta benchmark ARGS`` in this process -> (exit code, stdout, stderr)."""

    def call(*args: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["rl2meta", "benchmark", *map(str, args)])
        code: Any = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = stop.code or 0
        return code, *capsys.readouterr()

    return call


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Little to do, and updates of exactly half a second by a clock that judging puts forward an hour."""
    now = SimpleNamespace(seconds=0.0, judged=0)

    def tick() -> float:
        now.seconds += UPDATE_SECONDS
        return float(now.seconds)

    def judged(*args: Any) -> Any:
        now.seconds += 3600
        now.judged += 1
        return evaluate(*args)

    monkeypatch.setattr(training, "time", SimpleNamespace(perf_counter=tick))
    monkeypatch.setattr(learning, "evaluate", judged)
    monkeypatch.setattr(learning, "read_config", lambda name, more: read_config("smoke", [*BRIEF, *more]))
    monkeypatch.setattr(learning, "TASKS", 50)
    monkeypatch.setitem(TARGETS, "easy", 0.5)
    monkeypatch.setitem(TARGETS, "impossible", 5.5)  # of five pulls
    return now


def measured(*configs: str, seeds: int = 1) -> dict[str, Any]:
    return measure_learning(configs, seeds, CPU, 1, lambda report: None)


# What is measured


def test_the_clock_stands_still_while_the_agent_is_judged(clock: SimpleNamespace) -> None:
    (run,) = measured("easy")["easy"]["runs"]
    # At one second, then a second or 15 % later, whichever is later, in updates of half a second; at the end.
    want = [1, 2, 3, 4, 5, 6, 7, 8.5, 10]
    assert [point["seconds"] for point in run["curve"]] == want
    assert clock.judged == len(want) and clock.seconds > 3600
    assert run["seconds"] == UPDATES * UPDATE_SECONDS
    assert [point["update"] for point in run["curve"]] == [2 * seconds for seconds in want]
    assert [point["env_steps"] for point in run["curve"]] == [2 * seconds * STEPS for seconds in want]


def test_the_last_update_is_judged_once_and_however_soon_it_comes(
    monkeypatch: pytest.MonkeyPatch, clock: SimpleNamespace
) -> None:
    for updates, want in ((1, [0.5]), (4, [1, 2]), (5, [1, 2, 2.5])):
        config = read_config("smoke", [*BRIEF, f"training.updates={updates}"])
        monkeypatch.setattr(learning, "read_config", lambda name, more, config=config: config)
        (run,) = measured("easy")["easy"]["runs"]
        assert [point["seconds"] for point in run["curve"]] == want


def test_a_score_is_the_held_out_return_of_an_agent_that_was_trained_undisturbed() -> None:
    runs = measured("easy", seeds=2)["easy"]["runs"]
    assert [run["seed"] for run in runs] == [0, 1]
    for run in runs:
        config = read_config("smoke", [*BRIEF, f"seed={run['seed']}"])
        law, learner, worker = config.distribution, make_learner(config, CPU), make_worker(config, CPU)
        budget = config.settings.training.budget()
        meta_train(learner, law, worker, budget, run["seed"], lambda row: False)
        held_out = sample_tasks(law, 50, 0, "test")
        returns = evaluate(learner.agent, worker, held_out, 5, 0).returns()
        assert run["final_score"] == pytest.approx(returns.mean(), rel=1e-9)
        assert run["final_standard_error"] == pytest.approx(returns.std(ddof=1) / 50**0.5, rel=1e-9)


def test_seconds_to_the_score_are_those_of_the_first_point_at_it_or_above(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scores = [point["score"] for point in measured("easy")["easy"]["runs"][0]["curve"]]
    best = scores.index(max(scores))
    monkeypatch.setitem(TARGETS, "exactly", scores[best])
    report = measured("easy", "impossible", "exactly")
    easy, impossible, exactly = (report[name]["runs"][0] for name in report)
    assert (easy["seconds_to_score"], easy["env_steps_to_score"]) == (1.0, 2 * STEPS)
    assert impossible["seconds_to_score"] is None and impossible["env_steps_to_score"] is None
    assert exactly["seconds_to_score"] == exactly["curve"][best]["seconds"]


def test_what_was_measured_is_said_and_saved_after_every_run(capsys: pytest.CaptureFixture[str]) -> None:
    saved: list[dict[str, int]] = []
    before = torch.get_num_threads()

    def save(report: Any) -> None:
        json.dumps(report)
        saved.append({name: len(said["runs"]) for name, said in report.items()})

    report = measure_learning(["easy", "impossible"], 2, CPU, 1, save)
    assert saved == [{"easy": 1}, {"easy": 2}, {"easy": 2, "impossible": 1}, {"easy": 2, "impossible": 2}]
    setting = report["easy"]["setting"]
    assert setting["agent"]["name"] == "rl2" and setting["agent"]["hidden_size"] == 16
    assert setting["training"]["updates"] == UPDATES
    assert setting["threads"] == 1 and torch.get_num_threads() == before  # not the seven of the config
    first = report["easy"]["runs"][0]["curve"][0]
    said = capsys.readouterr().out.splitlines()
    assert said[0] == f"easy seed 0: 1.0 s, 0.0 M steps, {first['score']:.3f} ± {first['standard_error']:.3f}"
    assert len(said) == 4 * 9


def test_a_run_that_diverges_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def diverge(*args: Any) -> None:
        raise TrainingDiverged("update 3: nan")

    monkeypatch.setattr(learning, "meta_train", diverge)
    with pytest.raises(UserError, match="easy seed 0: training diverged at update 3: nan"):
        measured("easy")


def test_every_target_is_of_a_shipped_config(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert TARGETS.keys() <= shipped_configs().keys()
    for name, target in TARGETS.items():
        config = read_config(name, [])
        ceiling = config.distribution.bayes_optimal_return(config.settings.training.episodes_per_trial)
        assert ceiling is None or 0.97 * ceiling < target < ceiling


# What is shown


def run_of(times: list[float], scores: list[float], target: float) -> dict[str, Any]:
    curve = [
        {"seconds": at, "update": 1, "env_steps": 1, "score": score, "standard_error": 0.02}
        for at, score in zip(times, scores, strict=True)
    ]
    return learning._summary(0, curve, target)


@pytest.fixture
def report() -> dict[str, Any]:
    slow, quick, poor = [1.0, 5.0, 20.0], [1.0, 4.0, 12.04], [1.0, 3.0, 30.0]
    runs = [run_of(slow, [4, 6, 6.7], 6.5), run_of(quick, [4, 6.5, 6.6], 6.5), run_of(poor, [4, 5, 6], 6.5)]
    never = [run_of(slow, [4, 6, 6.7], 7.0)]
    return {"rl2_bandit": {"target": 6.5, "runs": runs}, "other": {"target": 7.0, "runs": never}}


def test_the_table_has_a_line_for_each_config(report: dict[str, Any]) -> None:
    assert learning_table(report) == [
        "rl2_bandit  6.5: 20.0 s, 4.0 s, not reached; in all 20.0 s, 12.0 s, 30.0 s: "
        "6.700 ± 0.020, 6.600 ± 0.020, 6.000 ± 0.020",
        "other       7: not reached; in all 20.0 s: 6.700 ± 0.020",
    ]


def test_the_figure_shows_what_the_report_says(
    report: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures: list[Any] = []
    save = drawing.save

    def keep(figure: Any, path: Path) -> Path:
        figures.append(figure)
        return save(figure, path)

    monkeypatch.setattr(drawing, "save", keep)
    path = plot_learning(report, tmp_path / "x.png")
    picture = imread(path)
    trained = np.array([0xD5, 0x5E, 0x00]) / 255
    assert (np.abs(picture[..., :3] - trained).max(axis=-1) < 0.02).sum() > 500
    left, right = figures[0].axes
    assert [axes.get_title(loc="left") for axes in (left, right)] == ["rl2_bandit", "other"]
    assert [text.get_text() for axes in (left, right) for text in axes.texts] == ["target 6.5", "target 7"]
    assert left.get_xlabel() == "seconds of training\ntarget after 4.0 – 20 s (2 of 3 seeds)"
    assert right.get_xlabel() == "seconds of training\ntarget not reached"
    curves = [line for line in left.lines if len(line.get_xdata()) == 3]
    assert [list(line.get_ydata()) for line in curves] == [[4, 6, 6.7], [4, 6.5, 6.6], [4, 5, 6]]
    assert left.get_xscale() == "log" and left.get_xlim()[0] < 1 and left.get_xlim()[1] > 30
    assert 3.5 < left.get_ylim()[0] < 5 and left.get_ylim()[1] > 6.7 and right.get_ylim()[1] > 7
    boxes = [
        text.get_window_extent()
        for axes in (left, right)
        for text in (*axes.texts, axes.title, axes.xaxis.label)
    ]
    boxes += [text.get_window_extent() for text in figures[0].texts]
    assert not [(a, b) for i, a in enumerate(boxes) for b in boxes[:i] if a.overlaps(b)]


def test_a_run_of_one_point_can_be_drawn(tmp_path: Path) -> None:
    said = {"target": 4.0, "runs": [run_of([0.3], [4.0], 4.0)]}
    assert plot_learning({"smoke": said}, tmp_path / "x.png").stat().st_size > 10_000


# The command


def test_the_command_writes_after_every_run_and_draws(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "x.json"
    seen: list[int] = []

    def first(name: str, overrides: list[str]) -> Any:  # what is there when the next run begins
        runs = json.loads(out.read_text())["suites"]["learning"]["easy"]["runs"] if out.exists() else []
        assert (tmp_path / "x.png").exists() == bool(runs)
        seen.append(len(runs))
        return read_config("smoke", [*BRIEF, *overrides])

    monkeypatch.setattr(learning, "read_config", first)
    options = ("--suite", "learning", "--config", "easy", "--seeds", 2, "--device", "cpu", "--threads", 1)
    code, said, err = run(*options, "--out", out)
    assert (code, err) == (0, "") and seen == [0, 1]
    assert "easy seed 1: 10.0 s" in said and "  easy  0.5: 1.0 s, 1.0 s; in all 10.0 s, 10.0 s: " in said
    report = json.loads(out.read_text())
    assert report["threads"] == 1 and list(report["suites"]) == ["learning"]
    assert [each["seed"] for each in report["suites"]["learning"]["easy"]["runs"]] == [0, 1]
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")


def test_all_targets_and_three_seeds_unless_told_otherwise(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from rl2meta.commands import benchmark

    asked: list[Any] = []

    def measure(configs: Any, seeds: int, *rest: Any) -> dict[str, Any]:
        asked.append((list(configs), seeds))
        return {"easy": {"target": 1.0, "runs": []}}

    monkeypatch.setattr(benchmark, "measure_learning", measure)
    assert run("--suite", "learning", "--threads", 1)[0] == 0
    assert run("--suite", "learning", "--threads", 1, *["--config", "easy"] * 2, "--seeds", 1)[0] == 0
    assert asked == [(list(TARGETS), 3), (["easy"], 1)]


def test_what_does_not_fit_is_refused_before_anything_is_measured(
    run: Run, tmp_path: Path, clock: SimpleNamespace
) -> None:
    (tmp_path / "drawn.png").write_text("mine")
    learning_suite = ("--suite", "learning")
    cases: list[tuple[tuple[object, ...], str]] = [
        (("--config", "easy"), "--config: expected --suite learning beside it, got 'train'"),
        (("--suite", "env,maml", "--seeds", 2), "--seeds: expected --suite learning beside it"),
        ((*learning_suite, "--seeds", 0), "--seeds: expected at least 1, got 0"),
        (
            (*learning_suite, "--config", "easy", "--config", "rl2_bandi"),
            "--config: no score is stated for 'rl2_bandi'; did you mean 'rl2_bandit'?",
        ),
        (("--suite", "lerning"), "unknown suite 'lerning'; did you mean 'learning'?"),
        ((*learning_suite, "--out", tmp_path / "x.png"), "--out: expected a new JSON file"),
        ((*learning_suite, "--out", tmp_path / "drawn.json"), "room for its figure"),
    ]
    for options, message in cases:
        code, said, err = run(*options)
        assert (code, said) == (2, "") and message in " ".join(err.split()), (options, err)
    assert clock.judged == 0 and [path.name for path in tmp_path.iterdir()] == ["drawn.png"]
