"""``rl2meta plot``: what a person sees of learning curves."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import cast

from rl2meta.commands.progress import say
from rl2meta.experiments.learning_curves import Of, Over
from rl2meta.experiments.plots import plot


def plot_runs(
    runs: Sequence[Path], *, over: str, of: str | None, out: Path | None, trust: Collection[str]
) -> None:
    """Draw the learning curves of runs and groups; print where the figure is."""
    figure = plot(runs, over=cast(Over, over), of=cast(Of | None, of), out=out, trust=trust, say=say)
    print(f"wrote {figure.path}")
