"""``rl2meta plot``: curves of runs and groups, with the statistics and lines that they should have."""

import gc
import json
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import rl2meta
from rl2meta import cli, drawing, evaluation
from rl2meta.envs.bandits import BernoulliBandits
from rl2meta.errors import UserError
from rl2meta.experiments.components import read_config
from rl2meta.experiments.known_values import _computed
from rl2meta.experiments.run_folder import RunFolder

CONFIG: dict[str, Any] = {
    "distribution": {"name": "bernoulli_bandits", "num_arms": 2},
    "agent": {"name": "rl2", "core": {"name": "lstm", "hidden_size": 4}},
    "training": {
        "updates": 40,
        "trials_per_update": 4,
        "episodes_per_trial": 2,
        "evaluate_every": 2,
        "evaluation_tasks": 50,
    },
    "device": "cpu",
    "threads": 1,
}
STEPS, SECONDS = 8, 0.5  # of an update
BAYES, KNOWN = 13 / 12, 4 / 3
"""Of two pulls of two arms. The first pays 1/2; after a success the same arm pays 2/3, else the other 1/2. If
the task is known, both pay E max(p₁, p₂) = 2/3."""
LAW = "BernoulliBandits(num_arms=2, low=0.0, high=1.0)"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer draws for the regret of the Bayes-optimal agent."""
    monkeypatch.setattr(evaluation, "_OPTIMUM_CHUNKS", 1)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Axes]:
    """The axes of the figures that are written."""
    kept: list[Axes] = []
    save = drawing.save

    def keep(figure: Figure, *where: Any) -> Path:
        kept.append(figure.axes[0])
        return save(figure, *where)

    monkeypatch.setattr(drawing, "save", keep)
    return kept


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """Run ``rl2meta plot ARGS`` in this process -> (exit code, stdout, stderr)."""

    def call(*args: object) -> tuple[Any, str, str]:
        monkeypatch.setattr(sys, "argv", ["rl2meta", "plot", *map(str, args)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        return stop.value.code or 0, *capsys.readouterr()

    return call


def regret_at(update: int, seed: int) -> float:
    return 1.0 / (1 + update / 10) + 0.02 * seed**2


def write_run(path: Path, seed: int = 0, updates: int = 40, judged: bool = True, **overrides: Any) -> Path:
    """Write a run folder whose seed s is judged after every second update, with a regret by a formula."""
    settings = [f"{key.replace('__', '.')}={value}" for key, value in overrides.items()]
    folder = RunFolder.create(path, read_config(CONFIG, [f"seed={seed}", *settings]).to_yaml())
    for update in range(1, updates + 1):
        row = {"update": update, "env_steps": STEPS * update, "mean_return": update / 40, "seconds": SECONDS}
        if judged and update % 2 == 0:
            regret = regret_at(update, seed)
            row |= {"held_out_return": KNOWN - regret, "held_out_regret": regret}
        folder.append_metrics(row)
    return path


def write_group(path: Path, updates: Sequence[int] = (40, 40, 40), **settings: Any) -> Path:
    path.mkdir()
    (path / "group.yaml").write_text(f"seeds: {list(range(len(updates)))}\n")
    for seed, number in enumerate(updates):
        write_run(path / f"seed{seed}", seed, number, **settings)
    return path


def write_evaluation(folder: Path, name: str = "evaluation", **changed: Any) -> Path:
    agents = {
        "rl2": {"mean_return": 0.9, "mean_regret": 0.4},
        "thompson": {"mean_return": 1.05, "mean_regret": 0.28},
    }
    said = {
        "distribution": LAW,
        "episodes": 2,
        "oracle_return": 1.4,
        "bayes_optimal_return": 1.1,
        "bayes_optimal_regret": 0.3,
        "subjects": ["rl2"],
        "agents": agents,
        **changed,
    }
    (folder / name).mkdir()
    path = folder / name / "evaluation.json"
    path.write_text(json.dumps(said))
    return path


def texts(axes: Axes) -> list[str]:
    return [text.get_text() for text in axes.texts]


def titles(axes: Axes) -> list[str]:
    return [text.get_text() for text in axes.figure.texts]


def bold(axes: Axes) -> list[Any]:
    """The curves of the runs and groups, in their order."""
    return [line for line in axes.lines if line.get_linewidth() == 2.6]


def test_a_run_is_a_line_without_a_band(tmp_path: Path, drawn: list[Axes], run: Callable[..., Any]) -> None:
    path = write_run(tmp_path / "one")
    code, out, err = run(path)
    assert (code, err) == (0, "") and out == f"wrote {path / 'learning.png'}\n"
    (axes,), (curve,) = drawn, bold(drawn[0])
    np.testing.assert_array_equal(curve.get_xdata(), STEPS * np.arange(2, 41, 2))
    np.testing.assert_allclose(curve.get_ydata(), [regret_at(update, 0) for update in range(2, 41, 2)])
    assert not axes.collections and "one  0.200" in texts(axes)
    assert titles(axes)[0] == "Regret on held-out tasks during training"
    assert "50 held-out tasks; one training seed" in titles(axes)[1]
    assert "trial of 2 episodes (lower is better)" in axes.get_title(loc="left")


def test_a_group_is_a_mean_with_students_band_over_what_all_seeds_have(
    tmp_path: Path, drawn: list[Axes]
) -> None:
    rl2meta.plot(write_group(tmp_path / "wide", (40, 20, 30)))
    (axes,), (curve,) = drawn, bold(drawn[0])
    updates = np.arange(2, 21, 2)
    np.testing.assert_array_equal(curve.get_xdata(), STEPS * updates)
    values = np.array([[regret_at(update, seed) for update in updates] for seed in range(3)])
    np.testing.assert_allclose(curve.get_ydata(), values.mean(axis=0))
    low, high = scipy.stats.t.interval(0.95, 2, values.mean(axis=0), scipy.stats.sem(values, axis=0))
    edge = axes.collections[0].get_paths()[0].vertices
    for x, *ends in zip(STEPS * updates, low, high, strict=True):
        at = edge[edge[:, 0] == x, 1]
        np.testing.assert_allclose([at.min(), at.max()], ends)
    thin = [line for line in axes.lines if line.get_linewidth() == 0.8]
    assert [line.get_xdata()[-1] for line in thin] == [STEPS * 40, STEPS * 20, STEPS * 30]
    assert any(text.startswith("wide (3 seeds)") for text in texts(axes))


def test_seeds_that_were_judged_at_other_steps_are_interpolated(tmp_path: Path, drawn: list[Axes]) -> None:
    """The mean of two straight lines between points is exact at the points of both."""
    group = write_group(tmp_path / "wide", ())
    (group / "group.yaml").write_text("seeds: [0, 1]\n")
    for seed, at in enumerate(((1, 5, 9), (2, 4, 10))):
        folder = RunFolder.create(group / f"seed{seed}", read_config(CONFIG, [f"seed={seed}"]).to_yaml())
        for update in at:
            score = {"held_out_regret": 1.0 + seed + 3.0 * update, "held_out_return": 0.0}
            folder.append_metrics({"update": update, "env_steps": update, "seconds": 1.0, **score})
    rl2meta.plot(group, over="updates")
    (curve,) = bold(drawn[0])
    assert list(curve.get_xdata()) == [2, 4, 5, 9]
    np.testing.assert_allclose(curve.get_ydata(), [1.5 + 3 * update for update in (2, 4, 5, 9)])


def test_over_seconds_counts_those_of_the_updates(tmp_path: Path, drawn: list[Axes]) -> None:
    rl2meta.plot(write_run(tmp_path / "one"), over="seconds")
    (curve,) = bold(drawn[0])
    np.testing.assert_allclose(curve.get_xdata(), SECONDS * np.arange(2, 41, 2))
    assert drawn[0].get_xlabel().startswith("seconds of training")


def test_seconds_of_updates_without_a_row_are_those_of_the_next(tmp_path: Path, drawn: list[Axes]) -> None:
    """The zoo keeps some rows only; a run may have lost some."""
    folder = RunFolder.create(tmp_path / "one", read_config(CONFIG, ["seed=0"]).to_yaml())
    for update in (4, 8, 20):
        score = {"held_out_return": 0.0, "held_out_regret": regret_at(update, 0)}
        folder.append_metrics({"update": update, "env_steps": update, "seconds": SECONDS, **score})
    rl2meta.plot(tmp_path / "one", over="seconds")
    (curve,) = bold(drawn[0])
    np.testing.assert_allclose(curve.get_xdata(), [4 * SECONDS, 8 * SECONDS, 20 * SECONDS])


def test_ceilings_of_a_law_that_cannot_be_hashed() -> None:
    class Unhashable(BernoulliBandits):
        __hash__ = None  # type: ignore[assignment]

    assert _computed(Unhashable(num_arms=2), 3) == _computed(BernoulliBandits(num_arms=2), 3)


@pytest.mark.usefixtures("rendered")
def test_ceilings_are_computed_from_the_law(tmp_path: Path, drawn: list[Axes]) -> None:
    path = write_run(tmp_path / "one")
    rl2meta.plot(path, of="return")
    rl2meta.plot(path)
    dashed = [[line.get_ydata()[0] for line in axes.lines if len(line.get_xdata()) == 2] for axes in drawn]
    assert any(value == pytest.approx(BAYES, abs=1e-6) for value in dashed[0])
    assert any(value == pytest.approx(KNOWN, abs=0.03) for value in dashed[0])
    assert any(value == pytest.approx(KNOWN - BAYES, abs=0.01) for value in dashed[1])
    assert any(text.startswith("Bayes-optimal  0.25") for text in texts(drawn[1]))


def test_lines_come_from_the_newest_evaluation_on_the_same_tasks(tmp_path: Path, drawn: list[Axes]) -> None:
    group = write_group(tmp_path / "wide")
    write_evaluation(group)
    newer = write_evaluation(group, "evaluation_2", bayes_optimal_regret=0.31)
    other = write_evaluation(group, "evaluation_3", distribution="another law", bayes_optimal_regret=0.7)
    longer = write_evaluation(group, "evaluation_4", episodes=20, bayes_optimal_regret=0.8)
    (damaged := group / "evaluation_5").mkdir()
    (damaged / "evaluation.json").write_text("{")
    for age, path in enumerate((newer, other, longer), start=1):
        os.utime(path, (2_000_000_000 + age,) * 2)
    rl2meta.plot(group)
    assert "Bayes-optimal  0.310" in texts(drawn[0]) and "thompson  0.280" in texts(drawn[0])
    assert not any(text.startswith("rl2 ") for text in texts(drawn[0]))


def test_without_held_out_scores_the_training_return_is_drawn_and_said(
    tmp_path: Path, drawn: list[Axes]
) -> None:
    path, other = write_run(tmp_path / "blind", judged=False), write_run(tmp_path / "judged")
    rl2meta.plot([path, other])
    assert titles(drawn[0])[0].startswith("Return on the training tasks")
    assert "a mean over up to 2 updates" in titles(drawn[0])[1]
    curve, _ = bold(drawn[0])
    assert len(curve.get_xdata()) == 25
    assert np.all(np.diff(curve.get_ydata()) > 0)  # its rows lie on a line, and so do their means
    np.testing.assert_allclose(curve.get_ydata(), curve.get_xdata() / STEPS / 40)
    with pytest.raises(UserError, match="expected runs with held-out regrets, got blind without"):
        rl2meta.plot([other, path], of="regret")


def test_several_are_drawn_beside_the_first_with_names_that_tell_them_apart(
    tmp_path: Path, drawn: list[Axes], run: Callable[..., Any]
) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    group, one = write_group(tmp_path / "a" / "wide"), write_run(tmp_path / "b" / "wide", seed=1)
    code, out, _ = run(group, one)
    assert code == 0 and out == f"wrote {tmp_path / 'a' / 'plot-wide-wide.png'}\n"
    assert [text.split("  ")[0] for text in texts(drawn[0])[:2]] == ["a/wide (3 seeds)", "b/wide"]
    assert len({line.get_color() for line in bold(drawn[0])}) == 2


@pytest.mark.usefixtures("rendered")
def test_it_replaces_its_own_figure_and_no_other_file(tmp_path: Path, run: Callable[..., Any]) -> None:
    path = write_run(tmp_path / "one")
    assert run(path)[0] == 0
    first = (path / "learning.png").read_bytes()
    code, out, _ = run(path)
    assert code == 0 and "replacing the earlier figure" in out
    assert (path / "learning.png").read_bytes() == first
    for mine in (tmp_path / "mine.png", path / "config.yaml"):
        mine.touch()
        before = mine.read_bytes()
        code, _, err = run(path, "--out", mine)
        assert code == 2 and "choose another file" in err
        assert mine.read_bytes() == before
    code, out, err = run(path, "--of", "score")
    assert code == 2 and "expected regret or return" in err and "replacing" not in out
    assert run(path, "--out", tmp_path / "new" / "figure.png")[0] == 0


def test_what_cannot_be_drawn_is_refused_in_words(tmp_path: Path, run: Callable[..., Any]) -> None:
    one = write_run(tmp_path / "one")
    longer = write_run(tmp_path / "longer", evaluation__episodes_per_trial=6)
    arms = write_run(tmp_path / "arms", distribution__num_arms=3)
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "group.yaml").write_text("seeds: [0, 1]\n")
    for args, said in (
        ((one, arms), "distribution.num_arms is 3, not 2"),
        ((one, one.parent / "." / one.name), "twice; give it once"),
        ((one, "--out", tmp_path / "figure.jpg"), "expected a file that ends in .png"),
        ((one, longer), "evaluation.episodes_per_trial is 6, not 2"),
        ((one, "--over", "days"), "expected steps, seconds, updates, got 'days'"),
        ((one, "--of", "luck"), "expected regret or return, got 'luck'"),
        ((tmp_path / "nowhere",), "expected a run folder"),
        ((tmp_path / "none",), "expected a group with runs"),
        ((write_run(tmp_path / "new", updates=0),), "got none yet"),
    ):
        code, _, err = run(*args)
        assert code == 2 and said in err, err


def test_seeds_without_a_score_are_left_out_and_told(
    tmp_path: Path, drawn: list[Axes], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "rl2meta"):
        rl2meta.plot(write_group(tmp_path / "wide", (40, 40, 0)))
    assert "1 of 3 seeds have no held_out_regret yet" in caplog.text
    assert any(text.startswith("wide (2 seeds)") for text in texts(drawn[0]))


@pytest.mark.usefixtures("rendered")
def test_a_run_in_memory_is_drawn_into_a_file_that_lives_as_long_as_the_figure() -> None:
    small = {"training.updates": 2, "training.evaluate_every": 1}
    figure = rl2meta.plot(rl2meta.train(CONFIG, small))
    path = figure.path
    assert path.read_bytes() == figure._repr_png_() and path.read_bytes().startswith(b"\x89PNG")
    del figure
    gc.collect()
    assert not path.exists()


def test_the_axis_cuts_the_first_scores_where_they_would_squash_the_others(
    tmp_path: Path, drawn: list[Axes]
) -> None:
    folder = RunFolder.create(tmp_path / "one", read_config(CONFIG).to_yaml())
    for update in range(1, 41):
        regret = 1000.0 if update == 1 else 1 + 1 / update
        score = {"held_out_regret": regret, "held_out_return": 0.0}
        folder.append_metrics({"update": update, "env_steps": update, "seconds": 1.0, **score})
    rl2meta.plot(tmp_path / "one")
    low, high = drawn[0].get_ylim()
    assert 0 <= low < 0.25 and 1 < high < 3
