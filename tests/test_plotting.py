"""Figures come from files alone, show what the files say, and say what is wrong with them."""

import csv
import json
import subprocess
import sys

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.image import imread

from rl2meta import plotting
from rl2meta.errors import UserError
from rl2meta.plotting import plot_evaluation, plot_regret

FINALS = {"rl2": 9.9, "thompson": 11.2, "ucb1": 17.0, "random": 33.3}
ORACLE, BAYES = 83.3, 73.7


def write_evaluation(
    folder, finals=FINALS, regret=True, bayes=BAYES, oracle=ORACLE, num_tasks=1000, trained_with=None
):
    agents = {
        name: {
            "mean_return": ORACLE - final,
            "return_standard_error": 0.5,
            "mean_regret": final if regret else None,
            "regret_standard_error": 0.2 if regret else None,
        }
        for name, final in finals.items()
    }
    summary = {
        "num_tasks": num_tasks,
        "seed": 7,
        "distribution": "BernoulliBandits(num_arms=5)",
        "trained_with": trained_with or {},
        "oracle_return": oracle,
        "bayes_optimal_return": bayes,
        "bayes_optimal_regret": None if bayes is None or oracle is None else oracle - bayes,
        "agents": agents,
    }
    (folder / "evaluation.json").write_text(json.dumps(summary))
    steps = np.arange(0, 101, 5)
    with (folder / ("regret.csv" if regret else "returns.csv")).open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["agent", "step", "mean", "low", "high"])
        for name, final in finals.items():
            writer.writerows([name, t, m := final * (t / 100) ** 0.7, m * 0.9, m * 1.1] for t in steps)
    return folder


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are written, kept for inspection."""
    figures, write = [], plotting._write

    def keep(figure, path):
        figures.append(figure)
        return write(figure, path)

    monkeypatch.setattr(plotting, "_write", keep)
    return figures


def texts(axes):
    return [text.get_text() for text in axes.texts]


def test_the_regret_figure_shows_what_the_files_say(tmp_path, drawn):
    path = plot_regret(write_evaluation(tmp_path))
    assert path == tmp_path / "regret.png"
    (figure,) = drawn
    left, right = figure.axes
    assert texts(figure) == ["Regret on 1,000 held-out tasks", "BernoulliBandits(num_arms=5)"]
    # Oracle 83.3 less Bayes-optimal 73.7 leaves a regret of 9.6 that no agent avoids.
    assert texts(left) == ["rl2  9.9", "thompson  11.2", "ucb1  17.0", "random  33.3", "Bayes-optimal  9.6"]
    curves = [line for line in left.lines if len(line.get_xdata()) == 22]  # 21 steps and the origin
    assert [line.get_ydata()[-1] for line in curves] == list(FINALS.values())
    assert curves[0].get_zorder() > max(line.get_zorder() for line in curves[1:])
    assert curves[0].get_linewidth() > max(line.get_linewidth() for line in curves[1:])
    assert len({line.get_color() for line in curves}) == 4
    assert [label.get_text() for label in right.get_yticklabels()] == ["random", "ucb1", "thompson", "rl2"]
    # The half width is t(999) = 1.962 standard errors of 0.5.
    assert texts(right) == ["50.0 ± 1.0", "66.3 ± 1.0", "72.1 ± 1.0", "73.4 ± 1.0"]
    legend = [text.get_text() for text in right.get_legend().get_texts()]
    assert legend == ["Bayes-optimal  73.7", "task known  83.3"]


def test_the_picture_is_there_and_not_blank(tmp_path):
    picture = imread(plot_regret(write_evaluation(tmp_path)))
    assert picture.shape[:2] == (735, 1800)
    trained = np.array([0xD5, 0x5E, 0x00]) / 255
    assert (np.abs(picture[..., :3] - trained).max(axis=-1) < 0.02).sum() > 1000


def test_nothing_overlaps_and_nothing_leaves_the_figure(tmp_path, drawn):
    plot_regret(write_evaluation(tmp_path, dict.fromkeys(["rl2", "epsilon_greedy", "a", "b", "c"], 9.6)))
    (figure,) = drawn
    boxes = [text.get_window_extent() for axes in figure.axes for text in axes.texts]
    boxes += [label.get_window_extent() for label in figure.axes[1].get_yticklabels()]
    boxes += [axes.title.get_window_extent() for axes in figure.axes] + [
        text.get_window_extent() for text in figure.texts
    ]
    assert not [(a, b) for i, a in enumerate(boxes) for b in boxes[:i] if a.overlaps(b)]
    width, height = figure.canvas.get_width_height()
    assert all(min(box.x0, box.y0) >= 0 and box.x1 <= width and box.y1 <= height for box in boxes)


def test_tasks_of_another_law_than_in_training_are_called_so(tmp_path, drawn):
    plot_regret(write_evaluation(tmp_path, trained_with={"distribution.low": 0.5, "distribution.high": 1}))
    said = "BernoulliBandits(num_arms=5); rl2 was trained with low=0.5, high=1"
    assert drawn[0].texts[1].get_text() == said


def test_agents_of_one_colour_differ_in_their_lines(tmp_path, drawn):
    plot_regret(write_evaluation(tmp_path, {f"agent{i}": 10.0 + i for i in range(14)}))
    lines = [line for line in drawn[0].axes[0].lines if len(line.get_xdata()) == 22]
    assert len({(line.get_color(), line.get_linestyle()) for line in lines}) == 14


def test_a_margin_is_never_rounded_to_zero(tmp_path, drawn):
    folder = write_evaluation(tmp_path, {"rl2": 83.3 - 157.2, "random": 83.3 - 100.0})
    report = json.loads((folder / "evaluation.json").read_text())
    for said in report["agents"].values():
        said["return_standard_error"] = 0.2
    (folder / "evaluation.json").write_text(json.dumps(report))
    plot_regret(folder)
    assert texts(drawn[0].axes[1]) == ["100.0 ± 0.4", "157.2 ± 0.4"]


def test_an_agent_that_would_squash_the_others_leaves_the_axis(tmp_path, drawn):
    plot_regret(write_evaluation(tmp_path, {"rl2": 9.9, "thompson": 12.0, "random": 33.3}))
    left = drawn[0].axes[0]
    assert left.get_ylim() == pytest.approx((0, 1.15 * 12.0))  # 33.3 > 2.5 × 12
    assert "random  33.3 ↑" in texts(left)


@pytest.mark.parametrize("finals", [FINALS, {"rl2": 1.0, "random": 30.0}, {"a": 0.0, "b": 0.0, "c": 1.0}])
def test_otherwise_all_curves_end_inside(tmp_path, drawn, finals):
    plot_regret(write_evaluation(tmp_path, finals))
    left = drawn[0].axes[0]
    assert left.get_ylim()[1] > max(*finals.values(), ORACLE - BAYES)
    assert not any("↑" in text for text in texts(left))


def test_a_family_without_a_known_optimum_shows_returns(tmp_path, drawn):
    write_evaluation(tmp_path, regret=False, bayes=None, oracle=None)
    assert plot_evaluation(tmp_path) == tmp_path / "returns.png"
    left, right = drawn[0].axes
    assert left.get_title(loc="left") == "Cumulative return (higher is better)"
    assert len(texts(left)) == 4
    assert right.get_legend() is None
    with pytest.raises(UserError, match="a family with no known optimum; draw its returns"):
        plot_regret(tmp_path)


def test_a_family_with_a_known_optimum_shows_regret(tmp_path):
    assert plot_evaluation(write_evaluation(tmp_path)) == tmp_path / "regret.png"


def test_without_a_bayes_optimum_no_goal_is_drawn(tmp_path, drawn):
    plot_regret(write_evaluation(tmp_path, bayes=None))
    left, right = drawn[0].axes
    assert not any("Bayes" in text for text in texts(left))
    assert [text.get_text() for text in right.get_legend().get_texts()] == ["task known  83.3"]


def test_one_agent_on_one_task_can_be_drawn(tmp_path, drawn):
    plot_regret(write_evaluation(tmp_path, {"a$b_$": 0.0}, num_tasks=1))
    assert texts(drawn[0].axes[1]) == ["83.3 ± 0.0"]


def test_the_same_files_give_the_same_picture(tmp_path):
    path = plot_regret(write_evaluation(tmp_path))
    first = path.read_bytes()
    plot_regret(tmp_path)
    assert path.read_bytes() == first


SCRIPT = """
import os, sys
from pathlib import Path
import matplotlib
before = matplotlib.rcParams.copy()
from rl2meta.plotting import plot_evaluation
plot_evaluation(Path(sys.argv[1]))
assert "matplotlib.pyplot" not in sys.modules, "pyplot holds global figures"
assert matplotlib.rcParams.copy() == before, "global settings changed"
assert "torch" not in sys.modules, "a figure needs files, not agents"
"""


def test_no_global_state_is_touched(tmp_path):
    command = [sys.executable, "-W", "error", "-c", SCRIPT, write_evaluation(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("evaluation.json", None),
        ("evaluation.json", "{"),
        ("evaluation.json", "[]"),
        ("evaluation.json", '{"agents": {"rl2": {"mean_regret": 1.0}}}'),
        ("regret.csv", None),
        ("regret.csv", "agent,step,mean\nrl2,0,0\n"),
        ("regret.csv", "agent,step,mean,low,high\nrl2,0,zero,0,0\n"),
        ("regret.csv", "agent,step,mean,low,high\nrl2,0,0\n"),
    ],
)
def test_a_file_that_is_not_as_expected_is_named(tmp_path, name, content):
    write_evaluation(tmp_path)
    (tmp_path / name).unlink()
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=f"expected .* in .*{name}, got .*; give a folder"):
        plot_evaluation(tmp_path)


def test_an_agent_without_a_curve_is_named(tmp_path):
    write_evaluation(tmp_path)
    rows = (tmp_path / "regret.csv").read_text().splitlines()
    (tmp_path / "regret.csv").write_text("\n".join(row for row in rows if not row.startswith("ucb1")))
    with pytest.raises(UserError, match=r"got KeyError\('ucb1'\)"):
        plot_regret(tmp_path)


def test_labels_keep_their_order_and_their_distance():
    rng = np.random.default_rng(0)
    for n in (1, 2, 5, 14):
        heights = rng.choice([0.0, 0.4, 0.41, 1.0, 3.0], size=n) + rng.uniform(0, 0.01, size=n)
        places = np.array(plotting._spread(list(heights), 0.07))
        ordered = places[np.argsort(heights, kind="stable")]
        assert np.all(np.diff(ordered) >= 0.07 - 1e-12)
        assert ordered[0] >= 0
        assert ordered[-1] <= 1 + 1e-12
    assert plotting._spread([0.2, 0.9, 0.5], 0.07) == pytest.approx(
        [0.2, 0.9, 0.5]
    )  # room enough: none moves
    assert plotting._spread([0.5, 0.5], 0.1) == pytest.approx([0.45, 0.55])


def test_the_drawing_leaves_no_axes_unlabelled(tmp_path, drawn):
    plot_regret(write_evaluation(tmp_path))
    left, right = drawn[0].axes
    assert isinstance(left, Axes)
    assert left.get_xlabel() == "interactions with a new task (bands: 95 %)"
    assert right.get_title(loc="left") == "Mean return (higher is better)"
