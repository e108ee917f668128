"""The figure of losses shows minus the returns on a logarithmic scale, where the optimum is 0."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rl2meta.errors import UserError
from rl2meta.evaluation import AgentResult, Ceilings
from rl2meta.evaluation_files import write_evaluation
from rl2meta.loss_plot import plot_loss
from rl2meta.reports import is_loss

FACTS = {"num_tasks": 20, "seed": 0, "distribution": "Bowls(dimension=2)", "trained_with": {}}


def result(rate: float, block: int = 2, blocks: int = 10) -> AgentResult:
    """Losses that fall by a rate in each block of episodes, with a spread over tasks."""
    factors = rate ** np.repeat(np.arange(blocks), block)
    losses = np.outer(np.linspace(1, 3, 20), factors).astype(np.float32)
    return AgentResult(-losses, losses, np.ones_like(losses), 0.0, block)


def written(folder: Path, oracle: float | None = 0.0, **agents: AgentResult) -> Path:
    folder.mkdir()
    write_evaluation(folder, agents, Ceilings(oracle, None, None), FACTS)
    return folder


def test_curves_are_losses_over_adaptations(tmp_path: Path, drawn: Any) -> None:
    folder = written(tmp_path / "a", learned=result(0.5), adam=result(0.8))
    assert plot_loss(folder) == folder / "loss.png"
    (axes,) = drawn[0].axes
    learned, adam = [line for line in axes.lines if len(line.get_xdata()) == 10]
    assert list(learned.get_xdata()) == list(range(10)) and axes.get_yscale() == "log"
    assert learned.get_ydata() == pytest.approx(2 * 0.5 ** np.arange(10), rel=1e-5)
    assert adam.get_ydata() == pytest.approx(2 * 0.8 ** np.arange(10), rel=1e-5)
    assert [text.get_text() for text in axes.texts] == ["learned  0.00391", "adam  0.268"]
    heights = [text.get_position()[1] for text in axes.texts]  # labels stand at the ends of the curves
    assert heights[0] == pytest.approx(np.log(1.3) / np.log(1.3 * 1.3 * 2 / (2 * 0.5**9)), abs=0.01)
    assert "adaptations" in axes.get_xlabel() and axes.get_xlim() == (0, 9)


def test_a_mean_that_diverges_leaves_the_axis_and_the_others_stay_legible(tmp_path: Path, drawn: Any) -> None:
    plot_loss(written(tmp_path / "a", learned=result(0.5), sgd=result(3.0)))
    (axes,) = drawn[0].axes
    assert axes.get_ylim()[1] == pytest.approx(2 * 2 * 1.3)  # twice the first loss, and the margin
    assert [text.get_text() for text in axes.texts] == ["learned  0.00391", "sgd  39366 ↑"]


def test_agents_of_different_blocks_share_an_axis_of_episodes(tmp_path: Path, drawn: Any) -> None:
    plot_loss(written(tmp_path / "a", learned=result(0.5), other=result(0.8, 4, 5)))
    (axes,) = drawn[0].axes
    learned, other = [line for line in axes.lines if len(line.get_xdata()) >= 5]
    assert list(learned.get_xdata()) == list(range(0, 20, 2)) and list(other.get_xdata()) == [0, 4, 8, 12, 16]
    assert "episodes" in axes.get_xlabel()


@pytest.mark.parametrize("oracle", [None, 5.0])
def test_returns_that_are_no_losses_are_refused(tmp_path: Path, oracle: float | None) -> None:
    folder = written(tmp_path / "a", oracle, learned=result(0.5))
    assert not is_loss(folder)
    with pytest.raises(UserError, match="expected an evaluation on tasks whose optimum is 0"):
        plot_loss(folder)


def test_a_return_above_zero_is_no_loss(tmp_path: Path) -> None:
    good = result(0.5)
    lucky = replace(good, rewards=np.abs(good.rewards))
    assert is_loss(written(tmp_path / "a", learned=good))
    assert not is_loss(written(tmp_path / "b", learned=good, lucky=lucky))
