"""What the names in a config stand for, and the parts of an experiment that are made of them."""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from rl2meta.agents.references.anything import random_references
from rl2meta.agents.references.bandits import bernoulli_references, gaussian_references
from rl2meta.agents.references.dependent_bandits import dependent_references
from rl2meta.agents.references.mazes import dark_room_references, key_to_door_references
from rl2meta.agents.references.reference import Reference
from rl2meta.agents.references.tabular import tabular_references
from rl2meta.agents.references.two_step import two_step_references
from rl2meta.cuda_graphs import GraphWorker
from rl2meta.errors import UserError
from rl2meta.experiments import catalogue
from rl2meta.experiments.config import Components, RunConfig, load_config, suggestion
from rl2meta.experiments.plugins import Parts, load_agent, load_family
from rl2meta.experiments.yaml_text import text_of
from rl2meta.randomness import derive
from rl2meta.rollout import RolloutWorker, Worker
from rl2meta.tasks import TaskDistribution
from rl2meta.training import AgentKind, Learner
from rl2meta.workers.plugged_in import AT_ONCE, PluggedIn

FAMILIES: Parts[Any] = Parts(catalogue.DISTRIBUTIONS, catalogue.FAMILY_GROUP, load_family)
AGENTS: Parts[AgentKind] = Parts(catalogue.AGENTS, catalogue.AGENT_GROUP, load_agent)
COMPONENTS = Components(FAMILIES, AGENTS)

ReferenceFactory = Callable[[Any, int], dict[str, Reference]]
REFERENCES: Mapping[str, ReferenceFactory] = {
    "bernoulli_bandits": lambda d, episodes: bernoulli_references(
        d.num_arms, episodes, uniform_prior=(d.low, d.high) == (0, 1)
    ),
    "gaussian_bandits": lambda d, episodes: gaussian_references(d.num_arms, episodes, d.mean),
    "dependent_bandits": lambda d, episodes: dependent_references(d.law, episodes),
    "two_step": lambda d, episodes: two_step_references(d.high, d.low, d.switch_probability),
    "tabular_mdps": lambda d, episodes: tabular_references(
        d.num_states,
        d.num_actions,
        d.horizon,
        reward_mean=d.reward_mean,
        reward_deviation=d.reward_deviation,
        noise=d.noise,
        concentration=d.concentration,
    ),
    "dark_rooms": lambda d, episodes: dark_room_references(*d.layout_tables()[:3]),
    "key_to_door": lambda d, episodes: key_to_door_references(*d.layout_tables()[:3]),
}


def make_learner(config: RunConfig, device: torch.device) -> Learner:
    """Return the untrained learner of an experiment; its weights depend on the seed alone."""
    distribution: TaskDistribution = config.distribution
    seed = derive(config.settings.seed, "parameters")
    make = AGENTS[config.agent_name].learner
    return make(distribution.observation_space, distribution.action_space, config.agent, device, seed)


def make_worker(config: RunConfig, device: torch.device) -> RolloutWorker:
    """Return the worker that plays an experiment's tasks; ``close`` it when there is nothing left to play."""
    most = AT_ONCE if isinstance(config.law, PluggedIn) else None
    return RolloutWorker(config.distribution, device, most)


def make_training_worker(config: RunConfig, device: torch.device) -> Worker:
    """Return the worker of an experiment's training: one that replays a CUDA graph where it is to.

    Raises:
        UserError: if it is to and cannot.
    """
    if not config.settings.cuda_graphs:
        return make_worker(config, device)
    if device.type != "cuda":
        raise UserError(f"cuda_graphs: expected a GPU, got device {device}; set cuda_graphs=false")
    return GraphWorker(config.distribution, device)


def judged_episodes(config: RunConfig) -> int:
    """Return how many episodes a trial has when the agent is judged: as in training by default."""
    settings = config.settings
    return settings.evaluation.episodes_per_trial or settings.training.episodes_per_trial


def references_of(config: RunConfig, num_episodes: int) -> dict[str, Reference]:
    """Return the references that are defined on the experiment's family, by name.

    None where the task is revealed: they read the family's own observations. A family without any of its
    own has ``random``, which reads nothing.
    """
    if config.settings.reveal_task:
        return {}
    factory = REFERENCES.get(config.distribution_name)
    if factory is None:
        return random_references(config.law.action_space)
    return factory(config.law, num_episodes)


def chosen_references(config: RunConfig, against: Sequence[str] | None = None) -> dict[str, Reference]:
    """Return the references that ``against`` names, or the config's evaluation; 'all' and 'none' are words.

    Raises:
        UserError: naming every reference that is not known.
    """
    known = references_of(config, judged_episodes(config))
    wanted, source = (
        (config.settings.evaluation.against, "evaluation.against")
        if against is None
        else (against, "--against")
    )
    names = [name.strip() for name in wanted if name.strip()]
    unknown = [name for name in names if name not in known and name not in ("all", "none")]
    if unknown:
        faults = "; ".join(f"unknown reference {name!r}{suggestion(name, known)}" for name in unknown)
        raise UserError(f"{source}: {faults}")
    if "all" in names:
        return dict(known)
    return {name: known[name] for name in dict.fromkeys(names) if name != "none"}


def read_config(source: str | Path | Mapping[str, Any], overrides: Sequence[str] = ()) -> RunConfig:
    """Return the experiment called ``source``: a shipped config, a YAML file, or its sections.

    Raises:
        UserError: if there is no such config, or it has faults.
    """
    if isinstance(source, Mapping):
        return load_config(text_of(source), "config", overrides, COMPONENTS)
    return load_config(_config_text(str(source)), str(source), overrides, COMPONENTS)


def _config_text(source: str) -> str:
    shipped = catalogue.shipped_configs()
    if source in shipped:
        return shipped[source]
    path = Path(source)
    if not os.path.exists(path):  # not Path.exists, which raises for names that are too long
        raise UserError(
            f"config {source!r}: expected a YAML file or a shipped config, got neither"
            f"{suggestion(source, shipped)}"
        )
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"config {source!r}: expected a readable text file, got: {error}") from None
