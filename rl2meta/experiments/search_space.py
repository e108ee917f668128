"""What tuning and sweeps vary: settings of a config, each with a range or a list of values."""

import json
import math
import os
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from rl2meta.errors import UserError
from rl2meta.experiments.components import read_config
from rl2meta.experiments.config import RunConfig, suggestion
from rl2meta.experiments.run_folder import LARGEST_CONFIG
from rl2meta.experiments.yaml_text import overrides_of, parse, read
from rl2meta.files import read_text, reading

_RANGE = re.compile(r"(?P<low>.+?)\.\.(?P<high>.+?)(?P<marks>(\[[^\]]*\])*)\Z")
_MARKS = ("log", "int")
_FORMS = "LOW..HIGH, LOW..HIGH[log], LOW..HIGH[int], LOW..HIGH[int,log] or [A,B,C]"
_TUNED = ("agent.", "training.")
_MOST_OF_ALL = ("training.checkpoint_every", "training.keep_checkpoints")


@dataclass(frozen=True)
class Range:
    """All numbers between two ends, which belong to it.

    Attributes:
        low, high: the ends, low < high.
        log: whether the logarithm of the number is searched evenly.
        whole: whether only whole numbers are in it.
    """

    low: float
    high: float
    log: bool = False
    whole: bool = False

    def ends(self) -> list[Any]:
        """Return values that show whether a config takes the range."""
        return [self.low, self.high]

    def __str__(self) -> str:
        marks = [mark for mark, there in (("int", self.whole), ("log", self.log)) if there]
        return f"{self.low:.12g}..{self.high:.12g}" + (f"[{','.join(marks)}]" if marks else "")


@dataclass(frozen=True)
class Values:
    """A list of values.

    Attributes:
        values: at least one; numbers, text, booleans, None, or lists and mappings of them.
    """

    values: tuple[Any, ...]

    def ends(self) -> list[Any]:
        """Return values that show whether a config takes the list: all of them."""
        return list(self.values)

    def __str__(self) -> str:
        return json.dumps(list(self.values))


Space = dict[str, Range | Values]
"""What is varied, by the dotted key of the setting."""


def parse_dimension(key: str, said: Any, source: str) -> Range | Values:
    """Return what ``said`` describes: a list, or a text such as ``1e-4..1e-2[log]``.

    Raises:
        UserError: for anything else, and for a range without numbers between its ends.
    """
    if isinstance(said, list):
        return _values(key, said, source)
    match = _RANGE.match(said) if isinstance(said, str) else None
    if match is None:
        raise UserError(f"{source}: {key}: expected {_FORMS}, got {said!r:.100}")
    return _range(key, match, source)


def _values(key: str, said: list[Any], source: str) -> Values:
    if not said:
        raise UserError(f"{source}: {key}: expected at least one value, got an empty list")
    twice = [value for place, value in enumerate(said) if _is_in(value, said[:place])]
    if twice:
        raise UserError(f"{source}: {key}: expected different values, got {twice[0]!r} twice; remove one")
    return Values(tuple(said))


def _is_in(value: Any, others: Sequence[Any]) -> bool:
    return any(type(value) is type(other) and value == other for other in others)  # True is not 1 here


def _range(key: str, match: re.Match[str], source: str) -> Range:
    marks = {mark.strip() for mark in re.split(r"[\[\],]+", match["marks"]) if mark.strip()}
    if unknown := sorted(marks - {*_MARKS}):
        raise UserError(f"{source}: {key}: unknown mark [{unknown[0]}]{suggestion(unknown[0], _MARKS)}")
    low, high = (_number(key, match[end], source) for end in ("low", "high"))
    whole, log = "int" in marks, "log" in marks
    if low >= high:
        raise UserError(f"{source}: {key}: expected low < high, got {low:g}..{high:g}; swap the ends")
    if log and low <= 0:
        raise UserError(f"{source}: {key}: expected low > 0 for [log], got {low:g}; leave [log] out")
    if whole and not (low.is_integer() and high.is_integer()):
        raise UserError(f"{source}: {key}: expected whole ends for [int], got {low:g}..{high:g}")
    return Range(int(low), int(high), log, True) if whole else Range(low, high, log)


def _number(key: str, text: str, source: str) -> float:
    number = read(text, f"{source}: {key}")
    if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number):
        raise UserError(f"{source}: {key}: expected a number at each end of the range, got {text!r:.100}")
    return float(number)


def shipped_spaces() -> dict[str, str]:
    """Return the text of each shipped search space, by the name of its agent."""
    paths = files("rl2meta.configs").joinpath("search").iterdir()
    return {path.name.removesuffix(".yaml"): path.read_text(encoding="utf-8") for path in paths}


def read_space(searches: Sequence[str], config: RunConfig) -> Space:
    """Return the search space that the options say; without options, the shipped one of the config's agent.

    Args:
        searches: each the name of a shipped space, a YAML file with ``key: range`` lines, or ``key=range``;
            of a key that is there twice, the last range counts.
        config: the experiment whose settings are varied.

    Raises:
        UserError: if there is no such file, a range has a fault, or the space is empty.
    """
    shipped = shipped_spaces()
    if not searches and config.agent_name not in shipped:
        raise UserError(
            f"--search: expected a search space for the agent {config.agent_name}, got none, and none is "
            "shipped; give key=low..high or a file"
        )
    space: Space = {}
    for search in searches or [config.agent_name]:
        space |= _said_by(search, shipped)
    if not space:
        raise UserError("--search: expected at least one setting to vary, got an empty search space")
    return space


def _said_by(search: str, shipped: Mapping[str, str]) -> Space:
    if "=" in search and not os.path.exists(search):  # unlike Path.exists, False for a name that is too long
        key, _, text = search.partition("=")
        said = {key.strip(): read(text, f"--search {key}") if text.lstrip().startswith("[") else text.strip()}
    else:
        said = parse(_text_of(search, shipped), search)
    return {str(key): parse_dimension(str(key), value, "--search") for key, value in said.items()}


def _text_of(search: str, shipped: Mapping[str, str]) -> str:
    if search in shipped:
        return shipped[search]
    path = Path(search)
    if not path.is_file():
        raise UserError(
            f"--search {search!r}: expected a YAML file, key=low..high, or a shipped search space, got "
            f"neither{suggestion(search, shipped)}"
        )
    with reading(path):
        return read_text(path, LARGEST_CONFIG)


def refuse_misfits(
    space: Mapping[str, Range | Values],
    source: Any,
    overrides: Sequence[str],
    config: RunConfig,
    trust: Collection[str] = (),
) -> None:
    """Refuse settings that the config lacks, and ranges whose ends it does not take.

    Raises:
        UserError: if there are some; the message names the first.
    """
    known = [key for key in config.flat() if key.startswith(_TUNED) and key not in _MOST_OF_ALL]
    for key, dimension in space.items():
        if not key.startswith(_TUNED):
            raise UserError(
                f"--search: {key}: expected a setting of the agent or of training{_near(key, known)}"
            )
        if key not in known:
            raise UserError(f"--search: unknown key {key}{_near(key, known)}")
        for value in dimension.ends():
            _refuse_misfit(
                key, value, dimension, lambda more: read_config(source, [*overrides, *more], trust)
            )
    _refuse_longer_trials(space, config)


def _near(key: str, known: Sequence[str]) -> str:
    """Return a suggestion for a key, also for one whose sections are left out."""
    ends = {name.rpartition(".")[2]: name for name in reversed(known)}
    last = key.rpartition(".")[2]
    return f"; did you mean {ends[last]!r}?" if last in ends else suggestion(key, known)


def _refuse_misfit(
    key: str, value: Any, dimension: Range | Values, read: Callable[[list[str]], RunConfig]
) -> None:
    try:
        read(overrides_of({key: value}))
    except UserError as error:
        whole = isinstance(dimension, Range) and not dimension.whole and "integer" in str(error)
        hint = "\n  for whole numbers, write [int] after the range" if whole else ""
        raise UserError(f"--search: {key}={dimension}: {error}{hint}") from None


def _refuse_longer_trials(space: Mapping[str, Any], config: RunConfig) -> None:
    """Refuse to vary the trial that an agent is judged by: returns of longer trials are larger."""
    key = "training.episodes_per_trial"
    if key in space and config.settings.evaluation.episodes_per_trial is None:
        raise UserError(
            f"--search: {key}: expected one length of the trials that agents are judged by, got one for "
            "each; set evaluation.episodes_per_trial, too"
        )


def settings_text(settings: Mapping[str, Any]) -> list[str]:
    """Return settings as overrides; what names a part, such as ``agent.core.name``, comes first."""
    ordered = sorted(settings.items(), key=lambda item: not item[0].endswith(".name"))
    return overrides_of(dict(ordered))
