"""The performance profiles of an evaluation."""

from collections.abc import Mapping
from typing import Any

from rl2meta import levels
from rl2meta.evaluation import AgentResult
from rl2meta.profile_plot import ProfileFigure, common_thresholds, profile_of
from rl2meta.reports import said_tasks


def profiles_of(results: Mapping[str, AgentResult], facts: Mapping[str, Any]) -> ProfileFigure:
    """Return which share of the trials' returns lies above each value, for each agent.

    Args:
        results: by name.
        facts: the facts about the evaluation in evaluation.json.
    """
    scores = {name: levels.by_task(result, levels.of_trials(result)) for name, result in results.items()}
    thresholds = common_thresholds(scores.values())
    profiles = [
        profile_of(name, x, thresholds, bool(results[name].seeds), facts["colours"][name])
        for name, x in scores.items()
    ]
    return ProfileFigure(said_tasks(facts), facts["distribution"], "return", True, thresholds, profiles)
