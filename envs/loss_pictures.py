"""Pictures of trials that train a network: the loss of each batch on a logarithmic scale, and grids."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from rl2meta.envs import pictures
from rl2meta.envs.pictures import Box

_LEAST = 1e-6


def draw_losses(figure: Figure, box: Box, losses: NDArray[Any], per_batch: int, name: str) -> None:
    """Draw the mean loss of each whole batch so far.

    Args:
        figure: to draw into.
        box: where.
        losses: of each example so far, [examples].
        per_batch: number of examples in a batch.
        name: of the loss.
    """
    means = batch_means(losses, per_batch)
    heights = np.log10(np.clip(means, _LEAST, None))
    low, high = (np.floor(heights.min()), np.ceil(heights.max())) if len(means) else (-2.0, 1.0)
    panel = pictures.Panel(figure, box, (0, max(10, len(means))), (float(low), float(max(high, low + 1))))
    panel.line(np.arange(len(means)), heights, color=pictures.NOW, lw=2)
    if len(means):
        panel.line(len(means) - 1, heights[-1], marker="o", ms=7, color=pictures.NOW, mec="white")
    panel.ruled(f"log₁₀ of the {name}", pictures.whole_numbers(*panel.x), "batches before")


def batch_means(losses: NDArray[Any], per_batch: int) -> NDArray[Any]:
    """Return the mean of each whole batch of losses [examples], [batches]."""
    whole = len(losses) // per_batch
    means: NDArray[Any] = losses[: whole * per_batch].reshape(whole, per_batch).mean(axis=1)
    return means


def draw_grid(figure: Figure, box: Box, numbers: NDArray[Any], largest: float, words: str = "") -> None:
    """Draw a matrix as squares, from −``largest`` (blue) over 0 (white) to ``largest`` (orange)."""
    rows, columns = numbers.shape
    panel = pictures.Panel(figure, box, (0, columns), (rows, 0))
    across, down = np.meshgrid(np.arange(columns), np.arange(rows))
    corners = pictures.rectangles(across.ravel(), down.ravel(), 0.92, 0.92)
    amounts = numbers.ravel() / largest
    colours = np.where(
        amounts[:, None] > 0, pictures.shades(pictures.NOW, amounts), pictures.shades(pictures.SEEN, -amounts)
    )
    panel.shapes(corners, facecolors=colours)
    panel.words(columns / 2, -0.35, words, va="bottom")


def told(losses: NDArray[Any], per_batch: int, name: str) -> str:
    """Return a line about the examples so far."""
    means: Sequence[float] = batch_means(losses, per_batch).tolist()
    last = f" · {name} of the last batch {means[-1]:.3g}" if means else ""
    return f"{len(losses)} examples, {per_batch} in a batch{last}"
