"""Pictures of a trial, small enough for a page."""

import base64
import io
import math
from collections.abc import Mapping, Sequence

from PIL import Image

from rl2meta.experiments.watched_trial import WatchedTrial
from rl2meta.rendering import can_draw, frame
from rl2meta.tasks import TaskDistribution, Tasks

Pictures = Mapping[int, Image.Image]
"""By the number of steps before it."""
SIZE = (480, 360)
MOST = 104  # tunable: of all agents of a page together; a picture takes about a tenth of a second
MOST_BYTES = 2_000_000  # of all pictures of a page, encoded
_SHRINKING = (1.0, 0.75, 0.5, 0.35)


def stops(lengths: Sequence[int]) -> list[int]:
    """Return the numbers of steps at which every trial is drawn: all, if there are not too many.

    Args:
        lengths: number of steps of each trial.
    """
    longest, each = max(lengths), max(2, MOST // len(lengths))
    stride = math.ceil((longest + 1) / each)
    return [*range(0, longest, stride), longest]


def pictures_of(law: TaskDistribution, task: Tasks, watched: WatchedTrial, at: Sequence[int]) -> Pictures:
    """Return pictures of a trial, drawn by its law; none for a law that cannot draw.

    Args:
        law: of the task.
        task: one task.
        watched: the trial on it.
        at: numbers of steps; those beyond the trial are its end.
    """
    if not can_draw(law):
        return {}
    places = watched.places
    chosen = sorted({min(step, len(places)) for step in at})
    return {
        step: Image.fromarray(frame(law, task, 0, watched.history(places, step), SIZE)) for step in chosen
    }


def encoded(pictures: Sequence[Pictures]) -> list[dict[int, str]]:
    """Return the pictures of each agent as data URIs, smaller ones if they are too many bytes together."""
    for share in _SHRINKING:
        found = [{step: _webp(each, share) for step, each in of_one.items()} for of_one in pictures]
        if sum(len(each) for of_one in found for each in of_one.values()) <= MOST_BYTES:
            break
    return [{step: _uri(each) for step, each in of_one.items()} for of_one in found]


def _webp(picture: Image.Image, share: float) -> bytes:
    """Return the smaller of two encodings: the exact one suits drawings, the other one photographs."""
    size = (round(picture.width * share), round(picture.height * share))
    small = picture if share == 1 else picture.resize(size, Image.Resampling.LANCZOS)
    return min((_saved(small, lossless=True), _saved(small, quality=70)), key=len)


def _saved(picture: Image.Image, **options: object) -> bytes:
    content = io.BytesIO()
    picture.save(content, "webp", method=3, **options)
    return content.getvalue()


def _uri(content: bytes) -> str:
    return "data:image/webp;base64," + base64.b64encode(content).decode()
