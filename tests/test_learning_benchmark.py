"""``rl2meta benchmark --suite learning``: seconds to a score, counted while training and at no other time."""

import json
import re
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.image import imread

from rl2meta import cli, drawing
from rl2meta.commands import benchmark as command
from rl2meta.errors import UserError
from rl2meta.evaluation import AgentResult, evaluate
from rl2meta.experiments.catalogue import shipped_configs
from rl2meta.experiments.components import make_learner, make_worker, read_config
from rl2meta.speed.learning import (
    FEWER_TASKS,
    TARGETS,
    LearningSuite,
    learning_table,
    measure_learning,
    summary,
)
from rl2meta.speed.learning_figure import plot_learning
from rl2meta.speed.learning_history import HEAD
from rl2meta.speed.report import SHIPPED
from rl2meta.tasks import sample_tasks
from rl2meta.training import TrainingDiverged, meta_train

CPU = torch.device("cpu")
UPDATES, UPDATE_SECONDS, STEPS = 20, 0.5, 8 * 5
BRIEF = [f"training.updates={UPDATES}", "training.trials_per_update=8", "agent.epochs=1", "threads=7"]
EASY, IMPOSSIBLE = 0.5, 5.5  # of five pulls
SUITE = LearningSuite(
    {"easy": EASY, "impossible": IMPOSSIBLE},
    overrides=BRIEF,
    tasks=50,
    update_seconds=lambda row: UPDATE_SECONDS,
)
"""Little to do, and a clock by which every update takes half a second."""
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def configs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The shipped smoke test under three more names, in the folder that one works in."""
    folder = tmp_path / "configs"
    folder.mkdir()
    for name in ("easy", "impossible", "exactly"):
        (folder / name).write_text(shipped_configs()["smoke"])
    monkeypatch.chdir(folder)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run ``rl2meta benchmark ARGS`` in this process, on ``suite`` -> (exit code, stdout, stderr)."""
    benchmark = command.run_benchmark

    def call(*args: object, suite: LearningSuite = SUITE) -> tuple[int, str, str]:
        measurement = replace(SHIPPED, learning=suite)
        monkeypatch.setattr(command, "run_benchmark", partial(benchmark, measurement=measurement))
        monkeypatch.setattr(sys, "argv", ["rl2meta", "benchmark", *map(str, args)])
        code: Any = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = stop.code or 0
        return code, *capsys.readouterr()

    return call


def measured(*configs: str, seeds: int = 1, suite: LearningSuite = SUITE) -> dict[str, Any]:
    return measure_learning(configs, seeds, CPU, suite=suite)


# What is measured


def test_an_agent_is_judged_at_one_second_and_then_at_intervals_that_grow() -> None:
    judged: list[AgentResult] = []

    def judge(*args: Any) -> AgentResult:
        judged.append(evaluate(*args))
        return judged[-1]

    (run,) = measured("easy", suite=replace(SUITE, evaluate=judge))["easy"]["runs"]
    # At one second, then a second or 15 % later, whichever is later, in updates of half a second; at the end.
    want = [1, 2, 3, 4, 5, 6, 7, 8.5, 10]
    assert [point["seconds"] for point in run["curve"]] == want
    assert [point["score"] for point in run["curve"]] == [each.returns().mean() for each in judged]
    assert run["seconds"] == UPDATES * UPDATE_SECONDS
    assert [point["update"] for point in run["curve"]] == [2 * seconds for seconds in want]
    assert [point["env_steps"] for point in run["curve"]] == [2 * seconds * STEPS for seconds in want]


def test_the_clock_stands_still_while_the_agent_is_judged() -> None:
    asleep = 0.0

    def judge(*args: Any) -> AgentResult:
        nonlocal asleep
        began = time.perf_counter()
        time.sleep(0.03)
        evaluation = evaluate(*args)
        asleep += time.perf_counter() - began
        return evaluation

    suite = replace(SUITE, evaluate=judge, update_seconds=LearningSuite().update_seconds)
    suite = replace(suite, first_seconds=0.0, more_seconds=0.0, growth=1.0)
    began = time.perf_counter()
    (run,) = measured("easy", suite=suite)["easy"]["runs"]
    awake = time.perf_counter() - began - asleep
    assert len(run["curve"]) == UPDATES and asleep > UPDATES * 0.03
    assert 0 < run["seconds"] < awake


def test_the_last_update_is_judged_once_and_however_soon_it_comes() -> None:
    for updates, want in ((1, [0.5]), (4, [1, 2]), (5, [1, 2, 2.5])):
        suite = replace(SUITE, overrides=[*BRIEF, f"training.updates={updates}"])
        (run,) = measured("easy", suite=suite)["easy"]["runs"]
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


def test_seconds_to_the_score_are_those_of_the_first_point_at_it_or_above() -> None:
    scores = [point["score"] for point in measured("easy")["easy"]["runs"][0]["curve"]]
    best = scores.index(max(scores))
    suite = replace(SUITE, targets={**SUITE.targets, "exactly": scores[best]})
    report = measured("easy", "impossible", "exactly", suite=suite)
    easy, impossible, exactly = (report[name]["runs"][0] for name in report)
    assert (easy["seconds_to_score"], easy["env_steps_to_score"]) == (1.0, 2 * STEPS)
    assert impossible["seconds_to_score"] is None and impossible["env_steps_to_score"] is None
    assert exactly["seconds_to_score"] == exactly["curve"][best]["seconds"]


def test_what_was_measured_is_told_and_saved_after_every_run(capsys: pytest.CaptureFixture[str]) -> None:
    saved: list[dict[str, int]] = []
    told: list[tuple[str, Mapping[str, float]]] = []
    before = torch.get_num_threads()

    def save(report: Any) -> None:
        json.dumps(report)
        saved.append({name: len(said["runs"]) for name, said in report.items()})

    def judged(label: str, point: Mapping[str, float]) -> None:
        told.append((label, point))

    report = measure_learning(["easy", "impossible"], 2, CPU, suite=SUITE, save=save, judged=judged)
    assert saved == [{"easy": 1}, {"easy": 2}, {"easy": 2, "impossible": 1}, {"easy": 2, "impossible": 2}]
    setting = report["easy"]["setting"]
    assert setting["agent"]["name"] == "rl2" and setting["agent"]["core"]["hidden_size"] == 16
    assert setting["training"]["updates"] == UPDATES and setting["tasks"] == 50
    assert setting["threads"] == torch.get_num_threads() == before  # not the seven of the config
    runs = [(name, run) for name, said in report.items() for run in said["runs"]]
    assert told == [(f"{name} seed {run['seed']}", point) for name, run in runs for point in run["curve"]]
    assert len(told) == 4 * 9
    assert capsys.readouterr().out == ""


def test_a_run_that_diverges_is_named() -> None:
    def diverge(*args: Any) -> AgentResult:
        raise TrainingDiverged("update 3: nan")

    with pytest.raises(UserError, match="easy seed 0: training diverged at update 3: nan"):
        measured("easy", suite=replace(SUITE, evaluate=diverge))


def test_every_target_is_of_a_shipped_config() -> None:
    assert LearningSuite().targets == TARGETS and SHIPPED.learning == LearningSuite()
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
    return summary(0, curve, target)


@pytest.fixture
def report() -> dict[str, Any]:
    slow, quick, poor = [1.0, 5.0, 20.0], [1.0, 4.0, 12.04], [1.0, 3.0, 30.0]
    runs = [run_of(slow, [4, 6, 6.7], 6.5), run_of(quick, [4, 6.5, 6.6], 6.5), run_of(poor, [4, 5, 6], 6.5)]
    never = [run_of(slow, [4, 6, 6.7], 7.0)]
    return {"rl2_bandit": {"target": 6.5, "runs": runs}, "other": {"target": 7.0, "runs": never}}


def test_the_table_has_a_line_for_each_config(report: dict[str, Any]) -> None:
    assert learning_table(report) == [
        "rl2_bandit  6.5: 20.0 s, 4.0 s, not reached; in all 20.0 s, 12.0 s, 30.0 s: "
        "6.700 (0.020), 6.600 (0.020), 6.000 (0.020)",
        "other       7: not reached; in all 20.0 s: 6.700 (0.020)",
    ]


@pytest.mark.usefixtures("rendered")
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


@pytest.mark.usefixtures("rendered")
def test_a_run_of_one_point_can_be_drawn(tmp_path: Path) -> None:
    said = {"target": 4.0, "runs": [run_of([0.3], [4.0], 4.0)]}
    assert plot_learning({"smoke": said}, tmp_path / "x.png").stat().st_size > 10_000


# The command


@pytest.mark.usefixtures("rendered")
def test_the_command_writes_after_every_run_and_draws(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "x.json"
    seen: list[int] = []

    def look(*args: Any) -> AgentResult:  # what is there whenever an agent is judged
        runs = json.loads(out.read_text())["suites"]["learning"]["easy"]["runs"] if out.exists() else []
        assert (tmp_path / "x.png").exists() == bool(runs)
        seen.append(len(runs))
        return evaluate(*args)

    options = ("--suite", "learning", "--config", "easy", "--seeds", 2, "--device", "cpu", "--threads", 1)
    code, said, err = run(*options, "--out", out, suite=replace(SUITE, evaluate=look))
    assert (code, err) == (0, "") and seen == [0] * 9 + [1] * 9
    report = json.loads(out.read_text())
    runs = report["suites"]["learning"]["easy"]["runs"]
    first = runs[0]["curve"][0]
    lines = said.splitlines()
    assert lines[0] == "seconds of training to a mean return on 50 held-out tasks"
    score = f"{first['score']:.3f} (standard error {first['standard_error']:.3f})"
    assert lines[1] == f"easy seed 0: 1.0 s, 0.0 M steps, {score}"
    assert "easy seed 1: 10.0 s" in said and "  easy  0.5: 1.0 s, 1.0 s; in all 10.0 s, 10.0 s: " in said
    assert report["threads"] == 1 and list(report["suites"]) == ["learning"]
    assert [each["seed"] for each in runs] == [0, 1]
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")


def test_all_targets_and_three_seeds_unless_told_otherwise(run: Run) -> None:
    suite = replace(SUITE, overrides=[*BRIEF, "training.updates=1"])
    options = ("--suite", "learning", "--device", "cpu", "--threads", 1)
    everything = _labels(run(*options, suite=suite))
    assert everything == [f"{name} seed {seed}" for name in SUITE.targets for seed in range(3)]
    assert _labels(run(*options, *["--config", "easy"] * 2, "--seeds", 1, suite=suite)) == ["easy seed 0"]


def _labels(ran: tuple[int, str, str]) -> list[str]:
    """Return whose curves a command printed points of; every run has one."""
    code, said, _ = ran
    assert code == 0
    return [line.split(":")[0] for line in said.splitlines() if " seed " in line]


def test_what_does_not_fit_is_refused_before_anything_is_measured(run: Run, tmp_path: Path) -> None:
    def refuse(*args: Any) -> AgentResult:
        raise AssertionError("expected nothing to be judged")

    before = sorted(tmp_path.iterdir())
    (tmp_path / "drawn.png").write_text("mine")
    suite = replace(SUITE, targets={**SUITE.targets, **TARGETS}, evaluate=refuse)
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
        code, said, err = run(*options, suite=suite)
        assert (code, said) == (2, "") and message in " ".join(err.split()), (options, err)
    assert sorted(tmp_path.iterdir()) == sorted([*before, tmp_path / "drawn.png"])


# The table by date and commit


def test_every_measurement_adds_a_row_for_each_config(run: Run, tmp_path: Path) -> None:
    page = tmp_path / "history.md"
    page.write_text("# Learning\n\n" + HEAD)
    options = ("--suite", "learning", "--device", "cpu", "--threads", 1, "--seeds", 2, "--history", page)
    for _ in range(2):
        code, _, err = run(*options)
        assert (code, err) == (0, "")
    title, _, head, rule, *rows = page.read_text().splitlines()
    assert title == "# Learning" and len(head.split("|")) == len(rule.split("|")) == 10
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    assert [row[2] for row in cells] == ["`easy`", "`impossible`"] * 2
    today, commit, _, score, seconds, in_all, threads, machine = cells[1]
    assert date.fromisoformat(today) and re.fullmatch(r"[0-9a-f]{7,}\+?|\?", commit)
    assert (score, seconds, threads) == ("5.5", "not reached, not reached", "1") and machine
    assert cells[0][4:6] == ["1.0, 1.0", "10.0, 10.0"] and in_all == "10.0, 10.0"


def test_a_page_without_the_table_is_refused_before_anything_is_trained(run: Run, tmp_path: Path) -> None:
    page = tmp_path / "mine.md"
    page.write_text("# Mine\n")
    code, said, err = run("--suite", "learning", "--history", page)
    assert (code, said) == (2, "") and "--history: expected a new file, or one that ends with a table" in err
    code, _, err = run("--suite", "train", "--history", tmp_path / "new.md")
    assert code == 2 and "--history: expected --suite learning beside it" in err
    assert page.read_text() == "# Mine\n" and not (tmp_path / "new.md").exists()


def test_trials_that_take_long_are_judged_on_fewer_tasks() -> None:
    suite = replace(SUITE, fewer_tasks={"easy": 30})
    said = measured("easy", "impossible", suite=replace(suite, overrides=[*BRIEF, "training.updates=1"]))
    assert [said[name]["setting"]["tasks"] for name in said] == [30, 50]
    assert FEWER_TASKS.keys() <= TARGETS.keys()
