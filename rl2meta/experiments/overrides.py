"""Settings that may change after training."""

from collections.abc import Sequence

from rl2meta.errors import UserError
from rl2meta.experiments.components import AGENTS, COMPONENTS
from rl2meta.experiments.config import WORKERS, RunConfig, load_config

_EPISODES = "evaluation.episodes_per_trial="
_TRAINING_EPISODES = "training.episodes_per_trial="


def judged(trained: RunConfig, overrides: Sequence[str]) -> RunConfig:
    """Return the experiment as it is judged, on tasks that the trained agent can play."""
    _refuse_others(trained, overrides)
    config = load_config(trained.to_yaml(), "the run's config", overrides, COMPONENTS)
    for name in ("observation_space", "action_space"):
        ours, theirs = getattr(trained.distribution, name), getattr(config.distribution, name)
        if ours != theirs:
            raise UserError(
                f"{' '.join(overrides)}: expected tasks with the {name} of the agent's training, {ours}, got "
                f"{theirs}; overrides may change the law of the tasks, not their shape"
            )
    return config


def _refuse_others(trained: RunConfig, overrides: Sequence[str]) -> None:
    """Of an agent that is trained, only what it is judged on may change, and what its kind allows."""
    settings = [f"agent.{key}=" for key in AGENTS[trained.agent_name].at_test]
    for override in overrides:
        if override.startswith(_TRAINING_EPISODES):
            raise UserError(
                f"{override!r}: expected the length of the trials that the agent is judged in, got that of "
                f"its training; use {_EPISODES}{override.removeprefix(_TRAINING_EPISODES)}"
            )
        if not override.startswith(("distribution.", _EPISODES, WORKERS, *settings)):
            known = ", ".join(f"{key}VALUE" for key in ("distribution.KEY=", *settings))
            raise UserError(
                f"{override!r}: expected an override of what the agent is judged on, such as {known} or "
                f"{_EPISODES}N; what it is cannot change after training"
            )
