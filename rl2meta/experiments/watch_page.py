"""A trial as one page of HTML that needs no other file and no network."""

import html
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from rl2meta.beliefs import Told, constants, numbers
from rl2meta.experiments.watched_trial import Change, Place, WatchedTrial

_TEMPLATE = Path(__file__).with_name("watch.html")
MOST_POSITIONS = 2000  # of the slider


@dataclass(frozen=True)
class Player:
    """One agent of the page.

    Attributes:
        name, about, colour: what the page says of it, and its colour as ``#rrggbb``.
        watched: its trial.
        pictures: by number of steps, each as a data URI; none if the tasks cannot be drawn.
    """

    name: str
    about: str
    colour: str
    watched: WatchedTrial
    pictures: Mapping[int, str] = field(default_factory=dict)


def positions(num_steps: int, drawn: Sequence[int]) -> list[int]:
    """Return the numbers of steps at which the slider stops.

    Args:
        num_steps: of the longest trial; all are positions, if they are not too many.
        drawn: those with a picture; they are positions in any case.
    """
    stride = math.ceil(num_steps / MOST_POSITIONS)
    return sorted({*range(0, num_steps, stride), num_steps, *drawn})


def page(data: Mapping[str, Any], title: str) -> str:
    """Return the page; nothing in ``data`` or ``title`` can become markup or code.

    Raises:
        ValueError: for a number that JSON cannot hold.
    """
    before, _, rest = _TEMPLATE.read_text(encoding="utf-8").partition("@@TITLE@@")
    between, _, after = rest.partition("@@DATA@@")
    text = json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    return "".join([before, html.escape(title), between, text, after])


def player_data(player: Player, at: Sequence[int]) -> dict[str, Any]:
    """Return what the page knows of an agent, as data for JSON.

    Args:
        player: the agent.
        at: the positions of the slider, from 0 to the length of the longest trial on the page or more.
    """
    watched = player.watched
    places = watched.places
    stops = [*(step for step in at if step < len(places)), len(places)]
    here = [places[step] for step in stops[:-1]]  # where the next step is
    reward, regret = watched.known("reward"), watched.known("regret")
    expected = watched.known("expected_reward")
    assert reward is not None  # every trajectory has rewards
    shown = sorted(player.pictures)
    return {
        "name": player.name,
        "about": player.about,
        "colour": player.colour,
        "steps": len(places),
        "last": len(stops) - 1,
        "episode": _at(watched.steps(_episode_of).cumsum(0) - 1, stops),
        "lane": [place.lane for place in here] if watched.lanes > 1 else None,
        "action": _at(watched.steps(lambda phase: phase.action), stops),
        "reward": _at(reward, stops),
        "observation": _observations(watched, stops),
        "total": _sums(reward, stops),
        "expected": None if expected is None else _sums(expected, stops),
        "curve": _sums(reward if regret is None else regret, stops),
        "beliefs": _beliefs(watched, here),
        "changes": [_change(change) for change in watched.changes],
        "drawn": shown,
        "pictures": [player.pictures[step] for step in shown],
        "picture": [sum(step >= other for other in shown) - 1 for step in stops] if shown else [],
    }


def _episode_of(phase: Any) -> Tensor:
    """Return 1 where an episode begins, [T, lanes]."""
    first = phase.inputs.first.clone()
    first[0] = True
    return first.long()  # type: ignore[no-any-return]


def _observations(watched: WatchedTrial, stops: Sequence[int]) -> list[Any] | None:
    """Return the observation before each step; None if they are too large to be read."""
    seen = watched.steps(lambda phase: phase.inputs.observation)
    return _at(seen, stops) if seen[0].numel() <= 12 else None


def _at(values: Tensor, stops: Sequence[int]) -> list[Any]:
    """Return the values of the steps that follow each position but the last."""
    return [_short(values[step].tolist()) for step in stops[:-1]]


def _sums(values: Tensor, stops: Sequence[int]) -> list[float]:
    """Return the sums over all steps before each position."""
    sums = [0.0, *values.double().cumsum(0).tolist()]
    return [sums[step] for step in stops]


def _beliefs(watched: WatchedTrial, here: Sequence[Place]) -> list[dict[str, Any]]:
    """Return what the agent told; at the end of the trial, what it told last."""
    told = [(watched.told[place.phase][place.time], place.lane) for place in [*here, here[-1]]]
    return [
        {"name": name, **constants(first), "at": [_short(numbers(each[name], lane)) for each, lane in told]}
        for name, first in told[0][0].items()
    ]


def _change(change: Change) -> dict[str, Any]:
    """Return what an adaptation changed, for the first lane; of single numbers, for all lanes."""
    return {"step": change.step, "beliefs": [_both(name, change) for name in change.before]}


def _both(name: str, change: Change) -> dict[str, Any]:
    before, after = (_row_or_column(told, name) for told in (change.before, change.after))
    single = _is_single(change.before, name)
    labels = {"labels": [_label(each) for each in change.observation.tolist()]} if single else {}
    return {"name": name, **constants(change.before[name]), **labels, "before": before, "after": after}


def _is_single(told: Told, name: str) -> bool:
    """Return whether there is one number for each lane, so that lanes can be shown side by side."""
    return all(not isinstance(part, Tensor) or part.shape[1:] == (1,) for part in told[name])


def _row_or_column(told: Told, name: str) -> Any:
    if not _is_single(told, name):
        return _short(numbers(told[name], 0))
    return [_short(part.squeeze(1).tolist()) for part in told[name] if isinstance(part, Tensor)]


def _label(observation: Any) -> str:
    first = observation[0] if isinstance(observation, list) and len(observation) == 1 else observation
    return f"at {first:.3g}" if isinstance(first, int | float) else ""


def _short(value: Any) -> Any:
    """Return numbers with four digits, which are enough to see."""
    if isinstance(value, list):
        return [_short(each) for each in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value
