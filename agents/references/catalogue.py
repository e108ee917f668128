"""The references of each model of the world; any family that declares a model gets its references."""

from collections.abc import Callable, Mapping
from typing import Any

import gymnasium as gym

from rl2meta.agents.references.anything import random_references
from rl2meta.agents.references.bandits import bernoulli_references, gaussian_references
from rl2meta.agents.references.dependent_bandits import dependent_references
from rl2meta.agents.references.examples import example_references
from rl2meta.agents.references.mazes import hidden_goal_references
from rl2meta.agents.references.points import paying_point_references
from rl2meta.agents.references.reference import Reference
from rl2meta.agents.references.replanning import replanning_references
from rl2meta.agents.references.tabular import tabular_prior, tabular_references
from rl2meta.agents.references.two_step import two_step_references
from rl2meta.models import (
    BernoulliArms,
    DependentArms,
    GaussianArms,
    HiddenGoals,
    LabelledExamples,
    Model,
    PayingPoint,
    TabularMDP,
    TwoStepTask,
)

Factory = Callable[[Any, int], dict[str, Reference]]
_LAW = ("reward_mean", "reward_deviation", "noise", "concentration")


def _of_tabular_mdps(model: TabularMDP, num_episodes: int) -> dict[str, Reference]:
    shape, law = (model.num_states, model.num_actions), {name: getattr(model, name) for name in _LAW}
    at_every_step = replanning_references(tabular_prior(*shape, **law), model.horizon, num_episodes)
    return tabular_references(*shape, model.horizon, **law) | at_every_step


FACTORIES: Mapping[type[Model], Factory] = {
    BernoulliArms: lambda m, episodes: bernoulli_references(m.num_arms, episodes, m.low, m.high),
    GaussianArms: lambda m, episodes: gaussian_references(m.num_arms, episodes, m.mean),
    DependentArms: lambda m, episodes: dependent_references(m.better, episodes),
    TwoStepTask: lambda m, episodes: two_step_references(m.high, m.low, m.switch_probability),
    TabularMDP: _of_tabular_mdps,
    HiddenGoals: lambda m, episodes: hidden_goal_references(
        m.next_cell, m.distances, m.goals, m.num_goals, m.columns
    ),
    PayingPoint: lambda m, episodes: paying_point_references(m),
    LabelledExamples: lambda m, episodes: example_references(m),
}
"""Type of model -> function that builds its references from (model, episodes in a trial)."""


NAMES = (
    *("random", "greedy", "epsilon_greedy", "ucb1", "thompson", "ots", "gittins"),
    *("thompson_independent", "gittins_independent", "model_free"),
    *("psrl", "opsrl", "beb", "ucrl2", "greedy_step", "beb_step", "bonus_step", "fading_bonus_step"),
    *("psrl_resampling", "greedy_mean0", "epsilon_greedy_mean0", "psrl_mean0", "opsrl_mean0", "beb_mean0"),
    "explorer",
    "nearest_neighbour",
)
"""All references; the place of a name gives its colour in figures, so new ones come last."""


def references_on(
    model: Model | None, action_space: gym.Space[Any], num_episodes: int
) -> dict[str, Reference]:
    """Return the references that are defined on a model, by name.

    Args:
        model: the model of the tasks; for None, the only reference is ``random``.
        action_space: of the tasks.
        num_episodes: episodes in a trial of the evaluation; references that plan use this number.
    """
    if model is None:
        return random_references(action_space)
    return FACTORIES[type(model)](model, num_episodes)
