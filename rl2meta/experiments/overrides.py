"""Settings that may change after training."""

from collections.abc import Sequence

from rl2meta.errors import UserError
from rl2meta.experiments.components import AGENTS, COMPONENTS
from rl2meta.experiments.config import WORKERS, RunConfig, load_config

_EPISODES = "evaluation.episodes_per_trial="
_TRAINING_EPISODES = "training.episodes_per_trial="


def judged(trained: RunConfig, overrides: Sequence[str]) -> RunConfig:
    """Return the config for the evaluation of a trained agent.

    Raises:
        UserError: for an override of a setting that cannot change after training, or if the spaces of the
            tasks differ from those in training.
    """
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
    """Refuse overrides of anything but the tasks, the trial, the workers and what the agent's kind allows."""
    settings = [f"agent.{key}=" for key in AGENTS[trained.agent_name].at_test]
    for override in overrides:
        if override.startswith(_TRAINING_EPISODES):
            raise UserError(
                f"{override!r}: expected the number of episodes in a trial of the evaluation, got the number "
                f"in training; use {_EPISODES}{override.removeprefix(_TRAINING_EPISODES)}"
            )
        if not override.startswith(("distribution.", _EPISODES, WORKERS, *settings)):
            known = ", ".join(f"{key}VALUE" for key in ("distribution.KEY=", *settings))
            raise UserError(
                f"{override!r}: expected an override of a setting that may change after training, such as "
                f"{known} or {_EPISODES}N; the agent itself cannot change after training"
            )
