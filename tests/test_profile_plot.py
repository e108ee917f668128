"""The figure of performance profiles shows the shares it is given, in every method's own colour, and fits."""

import numpy as np
import pytest
from matplotlib.image import imread

from rl2meta.profile_plot import ProfileFigure, common_thresholds, plot_profile, profile_of

QUICK = {"resamples": 50}


def scores(seeds, shift=0.0, tasks=40):
    return np.random.default_rng(seeds).normal(size=(seeds, tasks)) + shift


def figure_of(methods, subjects=1, **said):
    """A figure of scores by name, of which the first are trained."""
    thresholds = common_thresholds(methods.values(), 50)
    profiles = [
        profile_of(name, x, thresholds, place < subjects, f"#0000{place:02d}", **QUICK)
        for place, (name, x) in enumerate(methods.items())
    ]
    given = {"title": "40 held-out tasks", "subtitle": "a law", "score": "return", "higher_is_better": True}
    return ProfileFigure(**{**given, "thresholds": thresholds, "profiles": profiles, **said})


def legend(figure):
    return [text.get_text() for text in figure.axes[0].get_legend().get_texts()]


def test_the_curves_are_shares_of_scores(tmp_path, drawn):
    methods = {"mine": scores(3), "one": scores(1, 1.0), "random": scores(1, -2.0)}
    path = plot_profile(figure_of(methods, subjects=2), tmp_path)
    assert path == tmp_path / "profile.png" and imread(path).shape[:2] == (735, 1800)
    (axes,) = drawn[0].axes
    curves = [line for line in axes.lines if len(line.get_xdata()) == 50]
    for line, x in zip(curves, methods.values(), strict=True):
        shares = [sum(score > tau for score in x.ravel()) / x.size for tau in line.get_xdata()]
        assert line.get_ydata() == pytest.approx(shares, abs=1e-9)
    assert len({line.get_color() for line in curves}) == 3
    assert [line.get_linewidth() > 3 for line in curves] == [True, True, False]


def test_the_legend_ranks_by_median_and_counts_seeds(tmp_path, drawn):
    methods = {"mine": np.full((3, 2), 2.0), "one": np.full((1, 2), 30.0), "random": np.full((1, 2), 1.0)}
    plot_profile(figure_of(methods, subjects=2), tmp_path)
    assert legend(drawn[0]) == ["one  30.0 (1 seed)", "mine  2.0 (3 seeds)", "random  1.0"]
    plot_profile(figure_of(methods, subjects=2, score="regret", higher_is_better=False), tmp_path)
    assert legend(drawn[1]) == ["random  1.0", "mine  2.0 (3 seeds)", "one  30.0 (1 seed)"]
    axes = drawn[1].axes[0]
    assert axes.get_title(loc="left") == "Share of regrets above τ (lower is better)"
    assert "with one seed or none, over tasks" in axes.get_xlabel()


def test_the_band_holds_the_curve(tmp_path, drawn):
    shown = figure_of({"mine": scores(5)})
    plot_profile(shown, tmp_path)
    (band,) = drawn[0].axes[0].collections
    corners = band.get_paths()[0].vertices
    low, high = corners[:, 1].min(), corners[:, 1].max()
    assert low >= 0 and high <= 1
    inside = (shown.profiles[0].fraction.low <= shown.profiles[0].fraction.mean) & (
        shown.profiles[0].fraction.mean <= shown.profiles[0].fraction.high
    )
    assert inside.mean() > 0.95
    assert "over seeds and tasks)" in drawn[0].axes[0].get_xlabel()


@pytest.mark.parametrize("count", [1, 12])
def test_nothing_leaves_the_figure(tmp_path, drawn, count):
    names = ["runs/" + "w" * 60 + "/maml", *(f"method {i}" for i in range(count - 1))]
    methods = {name: 1000 * scores(3, shift) for shift, name in enumerate(names)}
    plot_profile(figure_of(methods, subjects=count), tmp_path)
    (axes,) = drawn[0].axes
    width, height = drawn[0].canvas.get_width_height()
    boxes = [text.get_window_extent() for text in (*axes.get_legend().get_texts(), axes.xaxis.label)]
    assert all(box.x0 >= 0 and box.x1 <= width and box.y0 >= 0 and box.y1 <= height for box in boxes)
    assert not [(a, b) for i, a in enumerate(boxes) for b in boxes[:i] if a.overlaps(b)]
    assert len(legend(drawn[0])) == count
