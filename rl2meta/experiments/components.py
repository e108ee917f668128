"""The composition root: which names stand for which parts."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch
from pydantic import BaseModel

from rl2meta.agents.maml_regression import MAMLRegressionConfig, MAMLRegressionLearner
from rl2meta.agents.maml_trpo import MAMLTRPOConfig, MAMLTRPOLearner
from rl2meta.agents.references.catalogue import references_on
from rl2meta.agents.references.reference import Reference
from rl2meta.agents.rl2 import RL2Config, RL2Learner
from rl2meta.cuda_graphs import GraphWorker
from rl2meta.envs.bandits import BernoulliBandits, GaussianBandits
from rl2meta.envs.dependent_bandits import DependentBandits
from rl2meta.envs.gym_tasks import GymnasiumTasks
from rl2meta.envs.locomotion import AntDirections, AntVelocities, CheetahDirections, CheetahVelocities
from rl2meta.envs.mazes import DarkRooms, KeyToDoor
from rl2meta.envs.navigation import PointNavigation
from rl2meta.envs.sinusoids import Sinusoids
from rl2meta.envs.tabular import TabularMDPs
from rl2meta.envs.task_conventions import BenchmarkTasks, SetTaskEnvs
from rl2meta.envs.two_step import TwoStep
from rl2meta.errors import UserError
from rl2meta.experiments.config import Components, RunConfig, load_config, suggestion
from rl2meta.experiments.plugins import Families
from rl2meta.models import model_of, said_model
from rl2meta.randomness import derive
from rl2meta.rollout import RolloutWorker
from rl2meta.tasks import TaskDistribution
from rl2meta.training import Learner
from rl2meta.workers.plugged_in import AT_ONCE, PluggedIn

LearnerFactory = Callable[[gym.Space[Any], gym.Space[Any], Any, torch.device, int], Learner]


@dataclass(frozen=True)
class AgentKind:
    """An agent that can be trained.

    Attributes:
        config: the class of its config.
        learner: builds its learner.
        at_test: the keys of its config that may be others when it is judged than when it was trained.
    """

    config: type[BaseModel]
    learner: LearnerFactory
    at_test: tuple[str, ...] = ()


DISTRIBUTIONS: Mapping[str, Any] = {
    "bernoulli_bandits": BernoulliBandits,
    "gaussian_bandits": GaussianBandits,
    "dependent_bandits": DependentBandits,
    "two_step": TwoStep,
    "tabular_mdps": TabularMDPs,
    "dark_rooms": DarkRooms,
    "key_to_door": KeyToDoor,
    "point_navigation": PointNavigation,
    "sinusoids": Sinusoids,
    "gymnasium": GymnasiumTasks,
    "set_task_envs": SetTaskEnvs,
    "benchmark_tasks": BenchmarkTasks,
    "cheetah_directions": CheetahDirections,
    "cheetah_velocities": CheetahVelocities,
    "ant_directions": AntDirections,
    "ant_velocities": AntVelocities,
}

_INNER = ("episodes_per_phase", "inner_learning_rates", "inner_steps", "support_phases")
AGENTS: Mapping[str, AgentKind] = {
    "rl2": AgentKind(RL2Config, RL2Learner),
    "maml_trpo": AgentKind(MAMLTRPOConfig, MAMLTRPOLearner, _INNER),
    "maml_regression": AgentKind(MAMLRegressionConfig, MAMLRegressionLearner, _INNER),
}

FAMILIES = Families(DISTRIBUTIONS)
COMPONENTS = Components(FAMILIES, {name: kind.config for name, kind in AGENTS.items()})


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


def make_training_worker(config: RunConfig, device: torch.device) -> RolloutWorker:
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
    """Return the references that are defined on the model of the experiment's family, by name.

    None where the task is revealed: they read the family's own observations. A family that says no model has
    ``random``, which reads nothing.

    Raises:
        UserError: for a model that does not fit the family.
    """
    if config.settings.reveal_task:
        return {}
    return references_on(model_of(config.law), config.law.action_space, num_episodes)


def default_references() -> dict[str, dict[str, Reference]]:
    """Return the references on each built-in family that says a model, at its default settings."""
    ready = {name: family() for name, family in DISTRIBUTIONS.items() if not _required_keys(family)}
    laws = {name: family for name, family in ready.items() if said_model(family) is not None}
    return {name: references_on(model_of(law), law.action_space, 1) for name, law in laws.items()}


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


def shipped_configs() -> dict[str, str]:
    """Return the text of each shipped config, by name."""
    folder = files("rl2meta.configs")
    paths = sorted((path for path in folder.iterdir() if path.name.endswith(".yaml")), key=lambda p: p.name)
    return {path.name.removesuffix(".yaml"): path.read_text(encoding="utf-8") for path in paths}


def read_config(source: str, overrides: list[str]) -> RunConfig:
    """Return the experiment called ``source``: a YAML file, or the name of a shipped config.

    Raises:
        UserError: if there is no such config, or it has faults.
    """
    return load_config(_config_text(source), source, overrides, COMPONENTS)


def _required_keys(family: Any) -> list[str]:
    return [name for name, key in family.__pydantic_fields__.items() if key.is_required()]


def _config_text(source: str) -> str:
    shipped = shipped_configs()
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
