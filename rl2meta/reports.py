"""What the files of an evaluation say, read back for figures."""

import csv
import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rl2meta.errors import UserError
from rl2meta.statistics import t_quantile


class AgentReport(NamedTuple):
    """What the files say of one agent.

    Attributes:
        name: as in the files.
        place: 0 for the trained agent, then 1, 2, ….
        mean_return: over tasks.
        margin: half the width of its 95 % interval.
        step: interactions so far at the points of the curve, from 0 on.
        mean, low, high: the cumulative curve and its 95 % interval at those points.
    """

    name: str
    place: int
    mean_return: float
    margin: float
    step: NDArray[np.float64]
    mean: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]


class EvaluationReport(NamedTuple):
    """What the files say of an evaluation.

    Attributes:
        title, subtitle: how many tasks, and of which law.
        oracle, bayes, bayes_regret: the ceilings, None where they are not known.
        agents: in the order of the files.
    """

    title: str
    subtitle: str
    oracle: float | None
    bayes: float | None
    bayes_regret: float | None
    agents: list[AgentReport]


def knows_regret(folder: Path) -> bool:
    """Return whether every agent's regret is known.

    Raises:
        UserError: if there is no evaluation in ``folder``.
    """
    path = folder / "evaluation.json"
    with _expecting("an evaluation", path):
        agents = json.loads(path.read_text(encoding="utf-8"))["agents"]
        return all(agent["mean_regret"] is not None for agent in agents.values())


def read_evaluation(folder: Path, curves: str) -> EvaluationReport:
    """Return what evaluation.json and the file called ``curves`` say.

    Raises:
        UserError: if a file is missing or not as expected.
    """
    path = folder / "evaluation.json"
    rows = _read_rows(folder / curves)
    with _expecting("an evaluation", path):
        said = json.loads(path.read_text(encoding="utf-8"))
        agents = [
            AgentReport(
                name,
                place,
                float(entry["mean_return"]),
                _margin(entry["return_standard_error"], said["num_tasks"]),
                *rows[name].T,
            )
            for place, (name, entry) in enumerate(said["agents"].items())
        ]
        return EvaluationReport(
            f"{said['num_tasks']:,} {_kind(said)}",
            _subtitle(said),
            said["oracle_return"],
            said["bayes_optimal_return"],
            said["bayes_optimal_regret"],
            agents,
        )


def _kind(said: Any) -> str:
    return "tasks, of which training had some" if said.get("shared_with_training") else "held-out tasks"


def _subtitle(said: Any) -> str:
    """Say what was played, and what the agent was trained on if that was something else."""
    changed = said.get("trained_with", {})
    trained = ", ".join(f"{key.split('.')[-1]}={value}" for key, value in changed.items())
    name = next(iter(said["agents"]))
    return f"{said['distribution']}{f'; {name} was trained with {trained}' if trained else ''}"


def _read_rows(path: Path) -> dict[str, NDArray[np.float64]]:
    """Return agent -> [1 + num_steps, 4]: step, mean, low, high, from the origin on."""
    curves: dict[str, list[list[float]]] = {}
    with _expecting("the columns agent,step,mean,low,high", path):
        for row in csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))):
            point = [float(row[key]) for key in ("step", "mean", "low", "high")]
            curves.setdefault(row["agent"], [[0.0] * 4]).append(point)
    return {name: np.array(points) for name, points in curves.items()}


def _margin(standard_error: float | None, n: int) -> float:
    """Return half the width of the 95 % interval; 0 where a single task tells nothing about it."""
    return 0.0 if standard_error is None or n < 2 else t_quantile(n) * standard_error


@contextmanager
def _expecting(what: str, path: Path) -> Iterator[None]:
    """Tell a file that is missing or holds something else than ``what`` as the user's matter."""
    try:
        yield
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(
            f"expected {what} in {path}, got {error!r}; give a folder that `rl2meta evaluate` wrote"
        ) from error
