"""A trial as an animation: the task, what the agent believes, and the growing curve, side by side."""

import io
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from rl2meta.experiments.watch_pictures import Pictures

_INK, _FAINT, _LINE, _PAPER = "#1d1d1f", "#6b6b70", "#d5d5da", "#ffffff"
_WIDTH, _TITLE, _ROW, _CURVE, _EDGE = 480, 34, 20, 120, 10  # pixels
_MOST_ROWS = 8
_SECONDS, _FASTEST, _SLOWEST, _REST = 20.0, 70, 600, 2500  # of the whole; milliseconds of a frame


def animation(data: Mapping[str, Any], pictures: Sequence[Pictures], at: Sequence[int]) -> bytes:
    """Return a GIF that repeats for ever.

    Args:
        data: of the page.
        pictures: of each of its agents.
        at: the positions of the slider that become frames.
    """
    frames = [_frame(data, pictures, index) for index in at]
    pace = int(min(_SLOWEST, max(_FASTEST, 1000 * _SECONDS / len(frames))))
    content = io.BytesIO()
    paces = [pace] * (len(frames) - 1) + [_REST]
    frames[0].save(
        content, "gif", save_all=True, append_images=frames[1:], duration=paces, loop=0, optimize=True
    )
    return content.getvalue()


def _frame(data: Mapping[str, Any], pictures: Sequence[Pictures], index: int) -> Image.Image:
    columns = [
        _column(agent, of_one, index, data["at"])
        for agent, of_one in zip(data["agents"], pictures, strict=True)
    ]
    width, height = sum(each.width for each in columns), max(each.height for each in columns)
    whole = Image.new("RGB", (width, height + _CURVE), _PAPER)
    for number, each in enumerate(columns):
        whole.paste(each, (number * _WIDTH, 0))
    _curve(whole, data, index, (0, height, width, height + _CURVE))
    return whole.quantize(64, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)


def _column(agent: Mapping[str, Any], pictures: Pictures, index: int, at: Sequence[int]) -> Image.Image:
    """Return one agent: its name, the task, and its first belief."""
    index = min(index, agent["last"])
    shot = (
        pictures[max(step for step in pictures if step <= min(at[index], agent["steps"]))]
        if pictures
        else None
    )
    height = _TITLE + (0 if shot is None else shot.height)
    belief = next((each for each in agent["beliefs"] if each["kind"] != "number"), None)
    values = [] if belief is None else _levels(belief, index)[:_MOST_ROWS]
    whole = Image.new("RGB", (_WIDTH, height + (len(values) + 2) * _ROW), _PAPER)
    draw = ImageDraw.Draw(whole)
    draw.ellipse((_EDGE, 11, _EDGE + 12, 23), fill=agent["colour"])
    draw.text((_EDGE + 20, 17), agent["name"], _INK, _font(16), anchor="lm")
    if shot is not None:
        whole.paste(shot, ((_WIDTH - shot.width) // 2, _TITLE))
    if belief is not None:
        draw.text((_EDGE, height + _ROW // 2), belief["name"], _INK, _font(13), anchor="lm")
        chosen = agent["action"][index] if belief["of"] == "action" and index < agent["last"] else None
        for row, value in enumerate(values):
            label = f"{belief['of']} {row}"
            _bar(draw, height + (row + 1) * _ROW, label, value, agent["colour"], row == chosen)
    return whole


def _levels(belief: Mapping[str, Any], index: int) -> list[tuple[float, float, str]]:
    """Return for each alternative where its bar begins and ends, as shares of the width, and its text."""
    now = belief["at"][index]
    if belief["kind"] == "probabilities":
        return [(0.0, p, f"{100 * p:.0f} %") for p in now[0]]
    if belief["kind"] == "betas":
        pairs = [
            (a / (a + b), (a * b / (a + b) ** 2 / (a + b + 1)) ** 0.5) for a, b in zip(*now, strict=True)
        ]
        return [(max(0, m - d), min(1, m + d), f"{m:.2f}") for m, d in pairs]
    if belief["kind"] == "normals":
        ends = [(m - d, m + d, m) for each in belief["at"] for m, d in zip(*each, strict=True)]
        low, high = min(end[0] for end in ends), max(end[1] for end in ends)
        pairs = list(zip(*now, strict=True))
        return [(_share(m - d, low, high), _share(m + d, low, high), f"{m:.2f}") for m, d in pairs]
    every = [value for each in belief["at"] for value in each[0]]
    low, high = min(every), max(every)
    return [(_share(v, low, high) - 0.01, _share(v, low, high) + 0.01, f"{v:.2f}") for v in now[0]]


def _share(value: float, low: float, high: float) -> float:
    return (value - low) / (high - low) if high > low else 0.5


def _bar(
    draw: ImageDraw.ImageDraw,
    top: int,
    label: str,
    value: tuple[float, float, str],
    colour: str,
    marked: bool,
) -> None:
    left, right, middle = 90, _WIDTH - 70, top + _ROW // 2
    begin, end = (left + share * (right - left) for share in value[:2])
    draw.text((left - 8, middle), ("> " if marked else "") + label, _INK, _font(12), anchor="rm")
    draw.rectangle((left, top + 3, right, top + _ROW - 4), "#f0f0f2")
    draw.rectangle((begin, top + 3, max(begin + 1, end), top + _ROW - 4), colour)
    draw.text((right + 8, middle), value[2], _INK, _font(12), anchor="lm")


def _curve(whole: Image.Image, data: Mapping[str, Any], index: int, box: tuple[int, int, int, int]) -> None:
    """Draw the curves up to now into a box: left, top, right, bottom."""
    draw = ImageDraw.Draw(whole)
    left, top, right, bottom = box[0] + 50, box[1] + 26, box[2] - 110, box[3] - 14
    values = [value for agent in data["agents"] for value in agent["curve"]]
    low, high, steps = min(0.0, *values), max(0.0, *values), data["at"][-1]

    def place(step: int, value: float) -> tuple[float, float]:
        across = left + (right - left) * min(step, steps) / max(1, steps)
        return across, bottom - (bottom - top) * _share(value, low, high)

    draw.text(
        (_EDGE, box[1] + 12), f"{data['curve']}, step {data['at'][index]}", _INK, _font(13), anchor="lm"
    )
    for value in {low, high, 0.0}:
        draw.line([place(0, value), place(steps, value)], _INK if value == 0 and data["regret"] else _LINE)
        draw.text((left - 6, place(0, value)[1]), f"{value:.3g}", _FAINT, _font(11), anchor="rm")
    for row, agent in enumerate(data["agents"]):
        now = min(index, agent["last"])
        points = [
            place(min(s, agent["steps"]), v)
            for s, v in zip(data["at"], agent["curve"][: now + 1], strict=False)
        ]
        draw.line([points[0], *points], agent["colour"], 3)
        said = f"{agent['name'][:9]} {agent['curve'][now]:.3g}"
        draw.text((right + 8, top + 8 + 18 * row), said, agent["colour"], _font(12), anchor="lm")


@lru_cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    from matplotlib import get_data_path

    return ImageFont.truetype(Path(get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"), size)
