"""Pictures of a trial, small enough for a page."""

import base64
import io
import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence

from PIL import Image

from rl2meta.experiments.watch_replay import Replay
from rl2meta.experiments.watched_trial import WatchedTrial
from rl2meta.rendering import can_draw, frame
from rl2meta.tasks import MappingTasks, TaskDistribution, Tasks
from rl2meta.workers.plugged_in import PluggedIn

Pictures = Mapping[int, Image.Image]
"""By the number of steps before it."""
Draw = Callable[[Collection[int]], Pictures]
"""Numbers of steps -> the pictures after them."""
SIZE = (480, 360)
MOST = 210  # of all agents of a page together
SECONDS = 4.0  # tunable: for all pictures of a page, after which there are only those that there are
MOST_BYTES = 2_000_000  # of all pictures of a page, encoded
_SHRINKING = (1.0, 0.75, 0.5, 0.35)


def drawing(law: TaskDistribution, task: Tasks, watched: WatchedTrial) -> Draw | None:
    """Return what draws a trial on one task: its law, or environments that render; None for neither."""
    if isinstance(law, PluggedIn) and isinstance(task, MappingTasks):
        return Replay(law, task, watched, SIZE)
    if not can_draw(law):
        return None
    places = watched.places

    def draw(steps: Collection[int]) -> Pictures:
        histories = {step: watched.history(places, step) for step in steps}
        return {step: Image.fromarray(frame(law, task, 0, each, SIZE)) for step, each in histories.items()}

    return draw


def pictures_of(draws: Sequence[Draw | None], lengths: Sequence[int]) -> tuple[list[Pictures], list[int]]:
    """Draw all agents of a page after every step, or after every 2nd, 4th, 8th, ... step if that takes long.

    Args:
        draws: for each agent, what draws its trial; None for one that is not drawn.
        lengths: number of steps of each trial.

    Returns:
        The pictures of each agent, and the numbers of steps after which all are drawn; those beyond an
        agent's trial are its end.
    """
    longest, began = max(lengths), time.perf_counter()
    stride = 2 ** math.ceil(math.log2(max(1, longest / 16)))
    pictures: list[dict[int, Image.Image]] = [{} for _ in draws]
    while True:
        at = [*range(0, longest, stride), longest]
        for draw, length, found in zip(draws, lengths, pictures, strict=True):
            if draw is not None:
                found |= draw({min(step, length) for step in at} - found.keys())
        twice = 2 * (time.perf_counter() - began)
        if stride == 1 or 2 * len(at) * len(draws) > MOST or twice > SECONDS:
            return list(pictures), at
        stride //= 2


def encoded(pictures: Sequence[Pictures]) -> list[dict[int, str]]:
    """Return the pictures of each agent as data URIs, smaller ones if they are too many bytes together."""
    first = next((each for of_one in pictures for each in of_one.values()), None)
    save = _exactly if first is None else min(_exactly, _roughly, key=lambda each: len(each(first)))
    for share in _SHRINKING:
        found = [{step: save(_smaller(each, share)) for step, each in of_one.items()} for of_one in pictures]
        if sum(len(each) for of_one in found for each in of_one.values()) <= MOST_BYTES:
            break
    return [{step: _uri(each) for step, each in of_one.items()} for of_one in found]


def _smaller(picture: Image.Image, share: float) -> Image.Image:
    size = (round(picture.width * share), round(picture.height * share))
    return picture if share == 1 else picture.resize(size, Image.Resampling.LANCZOS)


def _exactly(picture: Image.Image) -> bytes:
    """Encode a drawing, of which this keeps every pixel in few bytes."""
    return _saved(picture, lossless=True)


def _roughly(picture: Image.Image) -> bytes:
    """Encode a photograph."""
    return _saved(picture, quality=70)


def _saved(picture: Image.Image, **options: object) -> bytes:
    content = io.BytesIO()
    picture.save(content, "webp", method=2, **options)
    return content.getvalue()


def _uri(content: bytes) -> str:
    return "data:image/webp;base64," + base64.b64encode(content).decode()
