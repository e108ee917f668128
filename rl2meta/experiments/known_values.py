"""Horizontal lines for learning curves: the exact ceilings of a law, and references of an evaluation."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rl2meta.evaluation import Ceilings, ceilings
from rl2meta.experiments.config import RunConfig
from rl2meta.files import read_text
from rl2meta.learning_plot import Level
from rl2meta.tasks import TaskDistribution, sample_tasks

BAYES, ORACLE = "Bayes-optimal", "task known"
_TASKS = 2_500  # for the mean of the best return if the task is known
_A_FEW = 2


def levels_of(config: RunConfig, folders: Sequence[Path], num_episodes: int, regret: bool) -> list[Level]:
    """Return the lines that belong to an experiment, the ceilings first.

    Ceilings and references are those of the newest evaluation.json of the folders that is about the same law
    and the same length of a trial. Without one, the ceilings are computed from the law.

    Args:
        config: the experiment.
        folders: of runs and groups, in which evaluations may lie.
        num_episodes: in a trial.
        regret: whether the lines are of the regret of a trial, or of its return.
    """
    law = config.law  # without revealed tasks, as in an evaluation
    said = next(_evaluations(folders, str(config.distribution), num_episodes), None)
    if said is None:
        return _ceiling_levels(_computed(law, num_episodes), regret)
    known = Ceilings(*(said.get(name) for name in Ceilings.__dataclass_fields__))
    return _ceiling_levels(known, regret) + _references(said, regret)


def _ceiling_levels(known: Ceilings, regret: bool) -> list[Level]:
    """Return the ceilings that are known; the regret if the task is known is 0, and needs no line."""
    values = {BAYES: known.bayes_optimal_regret if regret else known.bayes_optimal_return}
    if not regret:
        values[ORACLE] = known.oracle_return
    return [Level(name, value, True) for name, value in values.items() if value is not None]


def _computed(law: TaskDistribution, num_episodes: int) -> Ceilings:
    """Return the exact values of a law."""
    if law.optimal_return(sample_tasks(law, _A_FEW, 0, "test")) is None:
        return Ceilings(None, law.bayes_optimal_return(num_episodes), None)
    return ceilings(law, sample_tasks(law, _TASKS, 0, "test"), num_episodes)


def _references(said: Mapping[str, Any], regret: bool) -> list[Level]:
    subjects = said.get("subjects", [])
    values = {
        name: _score(entry, "regret" if regret else "return")
        for name, entry in said["agents"].items()
        if name not in subjects
    }
    return [Level(name, value, False) for name, value in values.items() if value is not None]


def _score(entry: Mapping[str, Any], kind: str) -> float | None:
    """Return the mean return or regret of an agent in evaluation.json; None if it is not known."""
    value = entry.get(f"mean_{kind}")
    return None if value is None else float(value)


def _evaluations(folders: Sequence[Path], law: str, num_episodes: int) -> Iterator[Mapping[str, Any]]:
    """Yield what the evaluations of a law in ``folders`` say, the newest first."""
    paths = [path for folder in folders for path in folder.glob("evaluation*/evaluation.json")]
    for path in sorted(paths, key=lambda path: path.stat().st_mtime, reverse=True):
        try:
            said = json.loads(read_text(path, times=10))
            if said["distribution"] == law and said["episodes"] == num_episodes and said["agents"]:
                yield said
        except (OSError, ValueError, LookupError, TypeError):  # it is damaged; the figure does without it
            continue
