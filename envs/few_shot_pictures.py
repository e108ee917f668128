"""The picture of a few-shot task: a row for each class, with its support, and its queries with guesses."""

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.image import BboxImage
from matplotlib.transforms import Bbox, TransformedBbox

from rl2meta.envs import pictures
from rl2meta.history import History
from rl2meta.tasks import Tasks

if TYPE_CHECKING:
    from rl2meta.envs.few_shot import FewShot

_ROOM = (0.085, 0.03, 0.885, 0.76)  # of the rows: left, bottom, width and height, as shares of the figure
_MOST_ROWS, _MOST_SHOTS = 10, 5
_CELL = 0.13  # the largest height of an image
_GAP = 0.86  # the part of a cell that the image takes


def draw_examples(law: "FewShot", figure: Figure, tasks: Tasks, row: int, history: History) -> None:
    """Draw what was shown of each class, and the image of now."""
    labels = _labels(law, tasks, row, len(history.episodes))
    guesses = history.actions.reshape(-1).astype(int)
    right = guesses == labels[: len(guesses)]
    support = law.ways * law.shots
    asked = max(0, len(guesses) - support)
    share = f" · {right[support:].mean():.0%} of {asked} queries right" if asked else ""
    kind = f"{law.ways}-way {law.shots}-shot"
    title = f"{kind}: {min(len(guesses), support)} of {support} examples shown{share}"
    pictures.heading(figure, "Classes from a few examples", title)
    for place, (episode, cell) in enumerate(_cells(law, figure, labels, support)):
        if cell is None:
            continue
        record = history.episodes[episode]
        _image(figure, record.observations[0], cell)
        if place < len(guesses) and episode >= support:
            _frame(figure, cell, bool(right[episode]), int(guesses[episode]))
        elif not record.ended:
            _frame(figure, cell, None, None)
    _names(law, figure)


def _labels(law: "FewShot", tasks: Tasks, row: int, episodes: int) -> Any:
    """Return the number of the class of each episode so far, [episodes]."""
    support, queries = law.ways * law.shots, law.ways * law.queries
    number = np.arange(episodes)
    example = np.where(number < support, number, support + (number - support) % queries)
    return pictures.parameter(tasks, "label", row)[example]


def _cells(law: "FewShot", figure: Figure, labels: Any, support: int) -> Any:
    """Yield the number of each episode and where its image stands, a box, or None if it has no room."""
    width, height = figure.get_size_inches()
    tall = min(_CELL, _ROOM[3] / min(law.ways, _MOST_ROWS))
    wide = tall * height / width
    shots = min(law.shots, _MOST_SHOTS)
    most = int(_ROOM[2] / wide - shots - 0.5)  # queries beside each other
    for episode, label in enumerate(labels):
        before = int((labels[support if episode >= support else 0 : episode] == label).sum())
        later = int((labels[episode + 1 :] == label).sum())
        column = before if episode < support else shots + 0.5 + before - max(0, before + later + 1 - most)
        seen = column >= shots if episode >= support else column < shots
        bottom = _ROOM[1] + _ROOM[3] - (label + 1) * tall
        box = (_ROOM[0] + column * wide, bottom, wide, tall)
        yield episode, box if seen and label < _MOST_ROWS else None


def _image(figure: Figure, pixels: Any, cell: pictures.Box) -> None:
    """Draw an image [channels, size, size], ink as black."""
    left, bottom, width, height = cell
    box = Bbox.from_bounds(left, bottom, width * _GAP, height * _GAP)
    image = BboxImage(TransformedBbox(box, figure.transFigure), interpolation="nearest", cmap="gray_r")
    grey = np.asarray(pixels, float)
    image.set_data(np.moveaxis(grey, 0, -1) if len(grey) == 3 else grey[0])
    image.set_clim(0, 1)
    figure.add_artist(image)


def _frame(figure: Figure, cell: pictures.Box, right: bool | None, guess: int | None) -> None:
    """Draw a frame: whether the guess was right, and a wrong guess beside it; None for an image of now."""
    left, bottom, width, height = cell
    colour = pictures.NOW if right is None else (pictures.GOOD if right else pictures.OTHER)
    panel = pictures.Panel(figure, (0, 0, 1, 1), (0, 1), (0, 1))
    x, y = left + width * _GAP, bottom + height * _GAP
    panel.line([left, x, x, left, left], [bottom, bottom, y, y, bottom], color=colour, lw=1.6)
    if right is None or not right:
        words = "?" if guess is None else str(guess)
        panel.words(x - 0.004, y - 0.006, words, ha="right", va="top", color=colour, weight="bold")


def _names(law: "FewShot", figure: Figure) -> None:
    panel = pictures.Panel(figure, (0, 0, 1, 1), (0, 1), (0, 1))
    rows = min(law.ways, _MOST_ROWS)
    tall = min(_CELL, _ROOM[3] / rows)
    for number in range(rows):
        height = _ROOM[1] + _ROOM[3] - (number + 0.55) * tall
        panel.words(pictures.LEFT + 0.02, height, str(number), ha="center", va="center")
    pictures.key(
        figure,
        (pictures.LEFT, 0.825),
        [
            ("query, right", {"color": pictures.GOOD, "lw": 2}),
            ("wrong, and the guess", {"color": pictures.OTHER, "lw": 2}),
            ("image of now, in the row of its class", {"color": pictures.NOW, "lw": 2}),
        ],
        row=True,
    )
