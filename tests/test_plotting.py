"""Figures come from files alone, show what the files say, and say what is wrong with them."""

import csv
import json
import subprocess
import sys

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.image import imread

from rl2meta import drawing
from rl2meta.colours import colours_of
from rl2meta.errors import UserError
from rl2meta.plotting import plot_adaptation, plot_evaluation, plot_regret

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


def texts(axes):
    return [text.get_text() for text in axes.texts]


def test_the_regret_figure_shows_what_the_files_say(tmp_path, drawn):
    path = plot_regret(write_evaluation(tmp_path))
    assert path == tmp_path / "regret.png"
    (figure,) = drawn
    left, right = figure.axes
    assert texts(figure) == ["Regret on 1,000 held-out tasks", "Bernoulli Bandits: num arms 5"]
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


@pytest.mark.usefixtures("rendered")
def test_the_picture_is_there_and_not_blank(tmp_path):
    picture = imread(plot_regret(write_evaluation(tmp_path)))
    assert picture.shape[:2] == (735, 1800)
    trained = np.array(to_rgb(colours_of(["rl2"], [])["rl2"]))
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
    said = "Bernoulli Bandits: num arms 5; rl2 was trained with low 0.5, high 1"
    assert drawn[0].texts[1].get_text() == said


def test_no_two_agents_have_one_colour(tmp_path, drawn):
    plot_regret(write_evaluation(tmp_path, {f"agent{i}": 10.0 + i for i in range(22)}))
    lines = [line for line in drawn[0].axes[0].lines if len(line.get_xdata()) == 22]
    assert len({line.get_color() for line in lines}) == 22


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
    write_adaptation(tmp_path, dict.fromkeys(FINALS, 1), regret=False, bayes=None, oracle=None)
    assert plot_evaluation(tmp_path) == tmp_path / "returns.png"
    left, right = drawn[0].axes
    assert left.get_title(loc="left") == "Return per episode after so many episodes (higher is better)"
    assert len(texts(left)) == 4 and left.get_xlim() == (0, 11)
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
        places = np.array(drawing.spread(list(heights), 0.07))
        ordered = places[np.argsort(heights, kind="stable")]
        assert np.all(np.diff(ordered) >= 0.07 - 1e-12)
        assert ordered[0] >= 0
        assert ordered[-1] <= 1 + 1e-12
    assert drawing.spread([0.2, 0.9, 0.5], 0.07) == pytest.approx([0.2, 0.9, 0.5])  # room enough: none moves
    assert drawing.spread([0.5, 0.5], 0.1) == pytest.approx([0.45, 0.55])


def test_the_drawing_leaves_no_axes_unlabelled(tmp_path, drawn):
    plot_regret(write_evaluation(tmp_path))
    left, right = drawn[0].axes
    assert isinstance(left, Axes)
    assert left.get_xlabel() == "interactions with a new task (bands: 95 %)"
    assert right.get_title(loc="left") == "Mean return (higher is better)"


# Several trained agents, and agents that adapt after more than one episode


def say(folder, **more):
    """Change what evaluation.json says; ``agents`` adds to what it says of each."""
    path = folder / "evaluation.json"
    said = json.loads(path.read_text())
    for name, entry in more.pop("agents", {}).items():
        said["agents"][name].update(entry)
    path.write_text(json.dumps({**said, **more}))


def write_adaptation(folder, blocks, **more):
    """An evaluation of agents in which episode t brings t + 1 on average, in blocks of so many episodes."""
    kinds = {key: more.pop(key) for key in ("regret", "bayes", "oracle") if key in more}
    write_evaluation(folder, dict.fromkeys(blocks, 9.9), **kinds)
    say(folder, episodes=12, agents={name: {"episodes_per_block": size} for name, size in blocks.items()})
    say(folder, **more)
    with (folder / "adaptation.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["agent", "block", "episode", "mean", "low", "high"])
        for name, size in blocks.items():
            writer.writerows([name, k, t, t + 1, t, t + 2] for k, t in enumerate(range(0, 12, size)))
    return folder


def curves(axes, at_least=2):
    return [line for line in axes.lines if len(line.get_xdata()) >= at_least and line.get_linestyle() == "-"]


def test_the_adaptation_figure_shows_blocks_as_steps(tmp_path, drawn):
    path = plot_adaptation(write_adaptation(tmp_path, {"lanes": 4, "greedy": 1}))
    assert path == tmp_path / "adaptation.png"
    (axes,) = drawn[0].axes
    lanes, greedy = curves(axes, at_least=6)
    assert list(lanes.get_xdata()) == [0, 4, 4, 8, 8, 12] and list(lanes.get_ydata()) == [1, 1, 5, 5, 9, 9]
    assert list(greedy.get_xdata()) == list(range(12)) and list(greedy.get_ydata()) == list(range(1, 13))
    assert axes.get_xlim() == (0, 12)
    assert texts(drawn[0])[0] == "Return per episode on 1,000 held-out tasks"
    # The optimum with the task known, 83.3 in twelve episodes, is 6.94 in each.
    assert texts(axes) == ["lanes  9.0", "greedy  12.0", "task known  6.9"]


def test_one_episode_and_no_ceiling_can_be_drawn(tmp_path, drawn):
    plot_adaptation(write_adaptation(tmp_path, {"rl2": 12, "other": 12}, oracle_return=None))
    (axes,) = drawn[0].axes
    assert texts(axes) == ["rl2  1.00", "other  1.00"] and axes.get_xlim() == (0, 12)


def test_without_the_file_there_is_no_adaptation_figure(tmp_path):
    with pytest.raises(UserError, match=r"the columns agent,episode,mean,low,high in .*adaptation\.csv"):
        plot_adaptation(write_evaluation(tmp_path))


def test_all_trained_agents_are_bold_and_in_colours_of_their_own(tmp_path, drawn):
    folder = write_evaluation(tmp_path)
    say(folder, subjects=["rl2", "thompson"])
    plot_regret(folder)
    left, right = drawn[0].axes
    weights = [text.get_weight() for text in left.texts]
    assert weights == ["bold", "bold", "normal", "normal", "normal"]
    assert [label.get_weight() for label in right.get_yticklabels()] == ["normal", "normal", "bold", "bold"]
    lines = [line for line in left.lines if len(line.get_xdata()) == 22]
    assert len({line.get_linewidth() for line in lines[:2]}) == 1 != len({line.get_color() for line in lines})


def test_every_run_of_a_comparison_says_how_it_was_trained(tmp_path, drawn):
    folder = write_evaluation(tmp_path)
    runs = {"rl2": {"trained_with": {}}, "ucb1": {"trained_with": {"training.episodes_per_trial": 5}}}
    say(folder, runs=runs, subjects=list(runs), agents={"thompson": {"num_tasks": 100}})
    plot_regret(folder)
    assert drawn[0].texts[1].get_text() == (
        "Bernoulli Bandits: num arms 5; ucb1 was trained with episodes per trial 5; "
        "thompson on the first 100 of the tasks"
    )


def test_a_margin_is_of_the_agents_own_number_of_tasks(tmp_path, drawn):
    folder = write_evaluation(tmp_path)
    say(folder, agents={"rl2": {"num_tasks": 3}})
    plot_regret(folder)
    assert texts(drawn[0].axes[1])[-1] == "73.4 ± 2.2"  # t(2) = 4.303 standard errors of 0.5


def test_a_curve_that_ends_early_is_joined_to_its_label_from_its_end(tmp_path, drawn):
    folder = write_evaluation(tmp_path)
    rows = (tmp_path / "regret.csv").read_text().splitlines()
    early = [row for row in rows if not row.startswith("rl2") or int(row.split(",")[1]) <= 40]
    (tmp_path / "regret.csv").write_text("\n".join(early))
    plot_regret(folder)
    left = drawn[0].axes[0]
    assert left.get_xlim() == (0, 100)
    final = 9.9 * 0.4**0.7
    assert f"rl2  {final:.1f}" in texts(left)
    height = final / left.get_ylim()[1]
    (dot,) = [line for line in left.lines if line.get_marker() == "o"]
    assert (dot.get_xdata()[0], dot.get_ydata()[0]) == pytest.approx((0.4, height))
    (leader,) = [line for line in left.lines if list(line.get_xdata()) == [pytest.approx(0.4), 1.005]]
    assert list(leader.get_ydata()) == pytest.approx([height, height])


def test_wide_figures_stay_inside(tmp_path, drawn):
    folder = write_evaluation(tmp_path, {"maml": 83.3 + 40730.0, "random": 83.3 + 50000.0})
    say(folder, agents={"maml": {"return_standard_error": 600}})
    plot_regret(folder)
    figure = drawn[0]
    right = figure.axes[1]
    assert texts(right) == ["-50000.0 ± 1.0", "-40730 ± 1177"]
    assert max(text.get_window_extent().x1 for text in right.texts) <= figure.canvas.get_width_height()[0]


def test_a_long_name_is_cut_at_its_start_and_stays_inside(tmp_path, drawn):
    folder = write_adaptation(tmp_path, {"runs/" + "x" * 60 + "/maml": 4, "random": 1})
    plot_adaptation(folder)
    figure = drawn[0]
    label = figure.axes[0].texts[0]
    assert label.get_text().startswith("…xxx") and "/maml" in label.get_text()
    assert label.get_window_extent().x1 <= figure.canvas.get_width_height()[0]


def test_a_narrow_interval_beside_a_wide_one_keeps_its_digits(tmp_path, drawn):
    folder = write_evaluation(tmp_path, {"rl2": 83.3 + 40730.0, "random": 83.3 + 50000.0})
    for name, half in (("rl2", 600.0), ("random", 0.175)):
        mean = json.loads((folder / "evaluation.json").read_text())["agents"][name]["mean_return"]
        interval = {"mean": mean, "low": mean - half, "high": mean + half}
        say(folder, agents={name: {"over_tasks": {"return": interval}}})
    plot_regret(folder)
    assert texts(drawn[0].axes[1]) == ["-50000.0 ± 0.2", "-40730 ± 600"]


def write_gaps(folder, finals, best):
    """Add to regret.csv the curves minus that of the best reference, with an interval of ±0.1."""
    say(folder, best_reference=best)
    rows = list(csv.DictReader((folder / "regret.csv").read_text().splitlines()))
    curve = {row["step"]: float(row["mean"]) for row in rows if row["agent"] == best}
    for row in rows:
        gap = float(row["mean"]) - curve[row["step"]]
        row |= {"gap": gap, "gap_low": gap - 0.1, "gap_high": gap + 0.1}
    with (folder / "regret.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def test_curves_that_meet_get_a_closer_look(tmp_path, drawn):
    finals = {"rl2": 9.9, "gittins": 10.0, "ucb1": 10.1, "random": 33.3}
    write_gaps(write_evaluation(tmp_path, finals), finals, "gittins")
    plot_regret(tmp_path)
    *_, closer = drawn[0].axes
    assert len(drawn[0].axes) == 3
    assert closer.get_title(loc="left").startswith("A closer look: regret minus that of gittins")
    assert texts(closer) == ["rl2  -0.100", "gittins  +0.000", "ucb1  +0.100"]  # random is far away
    left, ends = (
        {line.get_color(): line.get_ydata()[-1] for line in axes.lines if len(line.get_xdata()) == 22}
        for axes in (drawn[0].axes[0], closer)
    )
    assert all(left[colour] - 10.0 == pytest.approx(end) for colour, end in ends.items())
    assert np.diff(closer.get_ylim()) < 1


@pytest.mark.parametrize("finals", [{"rl2": 9.9, "ucb1": 17.0}, {"rl2": 30.0, "best": 3.0, "random": 30.1}])
def test_where_a_closer_look_shows_no_more_there_is_none(tmp_path, drawn, finals):
    best = min(set(finals) - {"rl2"}, key=finals.get)
    write_gaps(write_evaluation(tmp_path, finals), finals, best)
    plot_regret(tmp_path)
    assert len(drawn[0].axes) == 2


def test_a_long_subtitle_is_wrapped_and_not_cut(tmp_path, drawn):
    folder = write_evaluation(tmp_path)
    changed = {f"distribution.some_rather_long_setting_{i}": i for i in range(8)}
    say(folder, trained_with=changed)
    plot_regret(folder)
    figure = drawn[0]
    lines = texts(figure)[1:]
    assert len(lines) > 1 and "some rather long setting 7 7" in " ".join(lines) and "…" not in "".join(lines)
    boxes = [text.get_window_extent() for text in figure.texts] + [figure.axes[0].title.get_window_extent()]
    boxes.append(figure.axes[0]._left_title.get_window_extent())
    assert all(box.x1 <= figure.canvas.get_width_height()[0] for box in boxes)
    assert not [(a, b) for i, a in enumerate(boxes[:-2]) for b in boxes[:i] if a.overlaps(b)]
    assert min(box.y0 for box in boxes[:-2]) > boxes[-1].y1 - 2


def test_the_subtitle_says_once_what_agents_share(tmp_path, drawn):
    names = ["a", "b", "c"]
    folder = write_evaluation(tmp_path, dict.fromkeys([*names, "random"], 9.0))
    say(
        folder,
        subjects=names,
        runs={name: {"trained_with": {"distribution.low": 0.5}} for name in names},
        agents={
            name: {"over_seeds": {"seeds": [0, 1, 2], "return": {"low": 8.0, "high": 10.0}}}
            for name in ("a", "b")
        },
    )
    plot_regret(folder)
    assert "all but the references were trained with low 0.5; a and b: mean of 3 training seeds, " in (
        drawn[0].texts[1].get_text().replace("\n", " ")
    )


def test_the_subtitle_says_what_differs_in_words(tmp_path, drawn):
    folder = write_evaluation(tmp_path, trained_with={"distribution.reward_mean": 1.0})
    say(folder, distribution="TabularMDPs(num_states=10, reward_mean=3.0, sizes=(1, 2))", episodes=10)
    plot_regret(folder)
    assert drawn[0].texts[1].get_text() == (
        "Tabular MDPs: num states 10, reward mean 3, sizes (1, 2); 10 episodes a trial; "
        "rl2 was trained with reward mean 1 (here 3)"
    )


def test_repeated_tasks_are_said_in_the_title(tmp_path, drawn):
    folder = write_evaluation(tmp_path, num_tasks=200)
    say(folder, distinct_tasks=16)
    plot_regret(folder)
    assert texts(drawn[0])[0] == "Regret in 200 trials on 16 held-out tasks"


def test_a_dozen_agents_have_labels_that_do_not_overlap(tmp_path, drawn):
    plot_regret(write_evaluation(tmp_path, {f"agent{i}": 10.0 + 0.1 * i for i in range(13)}))
    (figure,) = drawn
    boxes = [text.get_window_extent() for axes in figure.axes for text in axes.texts]
    assert not [(a, b) for i, a in enumerate(boxes) for b in boxes[:i] if a.overlaps(b)]
    height = figure.canvas.get_width_height()[1]
    assert all(box.y0 >= 0 and box.y1 <= height for box in boxes)
