"""The picture of a trial in which a network is trained: the loss of each batch, on a logarithmic scale."""

from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from rl2meta.envs import pictures

_LEAST = 1e-6


def draw_losses(figure: Figure, title: str, losses: NDArray[Any], per_batch: int, what: str) -> None:
    """Draw the mean loss of each whole batch so far, and that of all examples in the subtitle.

    Args:
        figure: an empty figure.
        title: of the picture.
        losses: of each example so far, [examples].
        per_batch: number of examples in a batch.
        what: the name of the loss.
    """
    whole = len(losses) // per_batch
    means = losses[: whole * per_batch].reshape(whole, per_batch).mean(axis=1)  # [batches]
    last = f" · {what} of the last batch {means[-1]:.3g}" if whole else ""
    pictures.heading(figure, title, f"{len(losses)} examples, {per_batch} in a batch{last}")
    heights = np.log10(np.clip(means, _LEAST, None))
    low, high = (np.floor(heights.min()), np.ceil(heights.max())) if whole else (-2.0, 1.0)
    panel = pictures.Panel(
        figure, (0.085, 0.13, 0.885, 0.62), (0, max(10, whole)), (float(low), float(max(high, low + 1)))
    )
    panel.line(np.arange(whole), heights, color=pictures.NOW, lw=2)
    if whole:
        panel.line(whole - 1, heights[-1], marker="o", ms=7, color=pictures.NOW, mec="white")
    panel.ruled(f"log₁₀ of the {what}", pictures.whole_numbers(*panel.x), "batches before")
