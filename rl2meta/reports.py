"""Reads the files of an evaluation, for figures."""

import csv
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rl2meta.colours import colours_of
from rl2meta.errors import UserError
from rl2meta.files import read_text
from rl2meta.statistics import t_quantile


class AgentReport(NamedTuple):
    """What the files say of one agent.

    Attributes:
        name: the name in the files.
        place: 0, 1, 2, … in the order of the files, where the trained agents come first.
        colour: the same in every figure.
        is_subject: whether the evaluation is about this agent; it is compared with the others.
        episodes_per_block: how many episodes the agent plays with the same knowledge.
        mean_return: the mean over tasks.
        margin: half the width of the 95 % interval of ``mean_return``.
        step: the points of the curve on the horizontal axis: interactions so far, or episodes.
        mean, low, high: the curve and its 95 % interval at those points.
        gap, gap_low, gap_high: the curve minus that of the best reference, paired in tasks; NaN if unknown.
    """

    name: str
    place: int
    colour: str
    is_subject: bool
    episodes_per_block: int
    mean_return: float
    margin: float
    step: NDArray[np.float64]
    mean: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    gap: NDArray[np.float64]
    gap_low: NDArray[np.float64]
    gap_high: NDArray[np.float64]


class EvaluationReport(NamedTuple):
    """What the files say of an evaluation.

    Attributes:
        title, subtitle: they say how many tasks there are, and which law they come from.
        oracle, bayes, bayes_regret: the ceilings of the reported values; None where they are not known.
        best: the name of the best reference; None if there is none, or no regret is known.
        agents: the agents in the order of the files.
    """

    title: str
    subtitle: str
    oracle: float | None
    bayes: float | None
    bayes_regret: float | None
    best: str | None
    agents: list[AgentReport]


def knows_regret(folder: Path) -> bool:
    """Return whether every agent's regret is known.

    Raises:
        UserError: if there is no evaluation in ``folder``.
    """
    with _said(folder) as said:
        return all(agent["mean_regret"] is not None for agent in said["agents"].values())


def is_loss(folder: Path) -> bool:
    """Return whether the optimum of the tasks is 0 and no return is above it: returns are minus losses.

    Raises:
        UserError: if there is no evaluation in ``folder``.
    """
    with _said(folder) as said:
        returns = [block["mean"] for agent in said["agents"].values() for block in agent["adaptation"]]
        return bool(said["oracle_return"] == 0 and max(returns) < 0)


def read_evaluation(folder: Path, curves: str) -> EvaluationReport:
    """Return what evaluation.json and the cumulative curves in the file called ``curves`` say.

    Raises:
        UserError: if a file is missing or not as expected.
    """
    rows = _read_rows(folder / curves, "step")
    with _said(folder) as said:
        return EvaluationReport(
            said_tasks(said),
            _subtitle(said),
            said["oracle_return"],
            said["bayes_optimal_return"],
            said["bayes_optimal_regret"],
            said.get("best_reference"),
            _agents(said, {name: [[0.0] * 7, *points] for name, points in rows.items()}),
        )


def read_adaptation(folder: Path) -> EvaluationReport:
    """Return what evaluation.json and adaptation.csv say about the return of each episode of a trial.

    Raises:
        UserError: if a file is missing or not as expected.
    """
    rows = _read_rows(folder / "adaptation.csv", "episode")
    with _said(folder) as said:
        oracle = said["oracle_return"]
        each = None if oracle is None else oracle / said["episodes"]
        return EvaluationReport(
            said_tasks(said), _subtitle(said), each, None, None, None, _agents(said, rows)
        )


def said_tasks(said: Mapping[str, Any]) -> str:
    """Return how many tasks an evaluation has, and what to call them."""
    trials, distinct = said["num_tasks"], said.get("distinct_tasks", said["num_tasks"])
    if said.get("shared_with_training"):
        kind = "task, which training had too" if distinct == 1 else "tasks, of which training had some"
    else:
        kind = "held-out task" if distinct == 1 else "held-out tasks"
    return f"{trials:,} {kind}" if distinct == trials else f"{trials:,} trials on {distinct:,} {kind}"


def what_intervals_are_over(said: Mapping[str, Any]) -> Iterator[str]:
    """Yield a line about the intervals of an evaluation whose tasks repeat."""
    trials, distinct = said["num_tasks"], said.get("distinct_tasks", said["num_tasks"])
    if distinct == 1:
        yield "intervals are over the trials: a single task says nothing about other tasks"
    elif distinct < trials:
        yield f"intervals are over the {distinct:,} different tasks, whose trials are taken together"


def trained_elsewhere(said: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return by agent the settings with which it was trained and not judged; leave out agents without any."""
    runs = {name: run["trained_with"] for name, run in said.get("runs", {}).items()}
    runs |= {_subjects(said)[0]: said["trained_with"]} if said.get("trained_with") else {}
    return {name: changed for name, changed in runs.items() if changed}


def _subjects(said: Mapping[str, Any]) -> list[str]:
    return said.get("subjects") or [next(iter(said["agents"]))]


def _agents(said: Mapping[str, Any], rows: Mapping[str, list[list[float]]]) -> list[AgentReport]:
    colours = colours_of(_subjects(said), [name for name in said["agents"] if name not in _subjects(said)])
    colours |= said.get("colours", {})
    return [
        AgentReport(
            name,
            place,
            colours[name],
            name in _subjects(said),
            int(entry.get("episodes_per_block", 1)),
            float(entry["mean_return"]),
            _margin(said, entry),
            *np.array(rows[name]).T,
        )
        for place, (name, entry) in enumerate(said["agents"].items())
    ]


def _num_tasks(said: Mapping[str, Any], entry: Mapping[str, Any]) -> int:
    """Return the number of tasks that an agent played: all of them unless its entry says otherwise."""
    return int(entry.get("num_tasks", said["num_tasks"]))


def _subtitle(said: Mapping[str, Any]) -> str:
    """Say the law in words; then which agents were trained with other settings, or played fewer tasks."""
    name, settings = _law_in_words(said["distribution"])
    law = ", ".join(f"{key} {value}" for key, value in settings.items())
    parts = [f"{name}: {law}" if law else name]
    if "episodes" in said:
        parts[0] += f"; {said['episodes']:,} episodes a trial"
    here = {**settings, "episodes per trial": said.get("episodes")}
    trained = {agent: _differences(changed, here) for agent, changed in trained_elsewhere(said).items()}
    for changes, agents in alike(trained).items():
        parts.append(f"{_together(agents, said)} {was(agents)} trained with {changes}")
    parts += _over_seeds(said)
    for agent, entry in said["agents"].items():
        if _num_tasks(said, entry) < said["num_tasks"]:
            parts.append(f"{agent} on the first {_num_tasks(said, entry):,} of the tasks")
    return "; ".join(parts)


def _over_seeds(said: Mapping[str, Any]) -> list[str]:
    """Return what the intervals are over, if some agents are groups of training seeds."""
    seeds = {name: entry.get("over_seeds", {}).get("seeds", []) for name, entry in said["agents"].items()}
    means = {name: f"mean of {len(each)} training seeds" for name, each in seeds.items() if len(each) > 1}
    groups = [f"{_together(names, said)}: {mean}" for mean, names in alike(means).items()]
    others = " (others: over tasks)" if len(means) < len(seeds) else ""
    return [f"{', '.join(groups)}, intervals over seeds and tasks{others}"] if groups else []


def was(agents: Sequence[str]) -> str:
    """Return the verb that goes with so many agents."""
    return "was" if len(agents) == 1 else "were"


def alike(notes: Mapping[str, str]) -> dict[str, list[str]]:
    """Return by note the agents that have it."""
    agents: dict[str, list[str]] = {}
    for agent, note in notes.items():
        agents.setdefault(note, []).append(agent)
    return agents


def _together(agents: Sequence[str], said: Mapping[str, Any]) -> str:
    """Return some agents in words."""
    if len(agents) > 2 and {*agents} == {*_subjects(said)}:
        return "all but the references" if len(_subjects(said)) < len(said["agents"]) else "all agents"
    return listed(agents)


def listed(names: Sequence[str]) -> str:
    """Return names, at least one, with commas and an "and"."""
    return f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else names[0]


def _law_in_words(law: str) -> tuple[str, dict[str, str]]:
    """Return the name and the settings that the text of a law holds, both in words; or the text as it is."""
    found = re.fullmatch(r"(\w+)\((.*)\)", law)
    if found is None:
        return law, {}
    name = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", found[1])
    pairs = re.findall(r"(\w+)=((?:[^,()\[\]{}]|\([^)]*\)|\[[^\]]*\]|\{[^}]*\})+)", found[2])
    return name, {_words(key): _value(value) for key, value in pairs}


def _differences(changed: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    said = []
    for key, value in changed.items():
        name = _words(key.split(".")[-1])
        now = f" (here {_value(str(here[name]))})" if here.get(name) is not None else ""
        said.append(f"{name} {_value(str(value))}{now}")
    return ", ".join(said)


def _words(key: str) -> str:
    return key.replace("_", " ")


def _value(text: str) -> str:
    """Return a value as people write it: 1 for 1.0, and no quotes."""
    text = text.strip().strip("'")
    return text.removesuffix(".0") if re.fullmatch(r"-?\d+\.0", text) else text


@contextmanager
def _said(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield what evaluation.json says; raise a UserError if the block does not find what it reads."""
    path = folder / "evaluation.json"
    with _expecting("an evaluation", path):
        yield json.loads(read_text(path, times=10))


def _read_rows(path: Path, across: str) -> dict[str, list[list[float]]]:
    """Return agent -> points of (``across``, mean, low, high, gap, gap_low, gap_high); NaN if unknown."""
    curves: dict[str, list[list[float]]] = {}
    with _expecting(f"the columns agent,{across},mean,low,high", path):
        for row in csv.DictReader(io.StringIO(read_text(path, times=10))):
            point = [float(row[key]) for key in (across, "mean", "low", "high")]
            point += [float(row.get(key) or "nan") for key in ("gap", "gap_low", "gap_high")]
            curves.setdefault(row["agent"], []).append(point)
    return curves


def _margin(said: Mapping[str, Any], entry: Mapping[str, Any]) -> float:
    """Return half the width of the 95 % interval of the mean return, as the table shows it.

    Files of earlier versions hold only a standard error; 0 for a single task, which says nothing about it.
    """
    level = next((each for each in ("over_seeds", "over_tasks") if each in entry), None)
    if level is not None:
        interval = entry[level]["return"]
        return (float(interval["high"]) - float(interval["low"])) / 2
    standard_error, n = entry["return_standard_error"], _num_tasks(said, entry)
    return 0.0 if standard_error is None or n < 2 else t_quantile(n) * standard_error


@contextmanager
def _expecting(what: str, path: Path) -> Iterator[None]:
    """Raise a UserError if the file at ``path`` is missing or does not contain ``what``."""
    try:
        yield
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, csv.Error) as error:
        raise UserError(
            f"expected {what} in {path}, got {error!r}; give a folder that `rl2meta evaluate` wrote"
        ) from error
