"""Look up the names in a config, and build the parts of an experiment from them."""

import logging
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from rl2meta.agents.references.catalogue import references_on
from rl2meta.agents.references.reference import Reference
from rl2meta.cuda_graphs import GraphWorker
from rl2meta.errors import UserError
from rl2meta.experiments import catalogue
from rl2meta.experiments.config import Components, RunConfig, known_keys, load_config, suggestion, with_former
from rl2meta.experiments.plugins import Parts, load_agent, load_family
from rl2meta.experiments.run_folder import LARGEST_CONFIG, is_of_a_run
from rl2meta.experiments.trust import modules_named, refuse_strangers
from rl2meta.experiments.yaml_text import parse, text_of
from rl2meta.files import read_text
from rl2meta.models import model_of, said_model
from rl2meta.randomness import derive
from rl2meta.rollout import RolloutWorker, Worker
from rl2meta.tasks import TaskDistribution
from rl2meta.training import AgentKind, Learner

FAMILIES: Parts[Any] = Parts(catalogue.DISTRIBUTIONS, catalogue.FAMILY_GROUP, load_family)
AGENTS: Parts[AgentKind] = Parts(catalogue.AGENTS, catalogue.AGENT_GROUP, load_agent)
COMPONENTS = Components(FAMILIES, AGENTS)
_log = logging.getLogger("rl2meta")


def make_learner(config: RunConfig, device: torch.device) -> Learner:
    """Return the untrained learner of an experiment; its weights depend only on the seed."""
    distribution: TaskDistribution = config.distribution
    seed = derive(config.settings.seed, "parameters")
    make = AGENTS[config.agent_name].learner
    return make(distribution.observation_space, distribution.action_space, config.agent, device, seed)


def row_name(config: RunConfig) -> str:
    """Return what tables and figures call the agent: its name in configs, and its variant in brackets."""
    variant = AGENTS[config.agent_name].variant(config.agent)
    return f"{config.agent_name} ({variant})" if variant else config.agent_name


def make_worker(config: RunConfig, device: torch.device) -> RolloutWorker:
    """Return a worker for an experiment's tasks; call ``close`` after its last use."""
    return RolloutWorker(config.distribution, device)


def make_training_worker(config: RunConfig, device: torch.device, shards: int = 1) -> Worker:
    """Return the worker of an experiment's training; with ``cuda_graphs``, it replays a CUDA graph.

    Args:
        config: the experiment.
        device: of the environments.
        shards: number of shards of this process, each with a trial that lasts as long as an update.

    Raises:
        UserError: if the config asks for CUDA graphs and the device is no GPU, or there are several shards.
    """
    if not config.settings.cuda_graphs:
        return make_worker(config, device)
    if device.type != "cuda":
        raise UserError(f"cuda_graphs: expected a GPU, got device {device}; set cuda_graphs=false")
    if shards > 1:  # a replay would overwrite the trial of the shard before
        raise UserError(
            f"cuda_graphs: expected one shard in each process, got {shards}; start as many ranks as "
            "training.shards, or set cuda_graphs=false"
        )
    return GraphWorker(config.distribution, device)


def judged_episodes(config: RunConfig) -> int:
    """Return the number of episodes in a trial of the evaluation; by default the same as in training."""
    settings = config.settings
    return settings.evaluation.episodes_per_trial or settings.training.episodes_per_trial


def references_of(config: RunConfig, num_episodes: int) -> dict[str, Reference]:
    """Return the references of the experiment, by name: those of its family's model, and of its agent's kind.

    The result is empty if the task is revealed, because references read the family's own observations. For a
    family without a model the first are ``random``, which ignores observations.

    Raises:
        UserError: for a model that does not fit the family.
    """
    if config.settings.reveal_task:
        return {}
    law = config.law
    of_kind = AGENTS[config.agent_name].references(law.observation_space, law.action_space, config.agent)
    return references_on(model_of(law), law.action_space, num_episodes) | dict(of_kind)


def references_of_family(family: Any) -> dict[str, Reference] | None:
    """Return the references of a family at its default settings; None if it needs some to have a model."""
    if not hasattr(family, "__pydantic_fields__") or _required_keys(family):
        return None
    law = family()
    model = model_of(law) if callable(getattr(law, "make_envs", None)) else said_model(law)
    space: Any = getattr(law, "action_space", None)  # only rollouts need it
    return references_on(model, space, 1)


def chosen_references(config: RunConfig, against: Sequence[str] | None = None) -> dict[str, Reference]:
    """Return the references that ``against`` names, or the config if it is None; 'all' and 'none' also work.

    'all' leaves out those whose phases do not fill the trial, with a warning.

    Raises:
        UserError: if references are unknown; the message names all of them. If the phases of one that is
            named do not fill the trial.
    """
    episodes = judged_episodes(config)
    known = references_of(config, episodes)
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
    chosen = (
        known if "all" in names else {name: known[name] for name in dict.fromkeys(names) if name != "none"}
    )
    for name in [name for name in chosen if not chosen[name].fits(episodes)]:
        said = f"{name}: expected a multiple of {chosen[name].episodes} episodes in a trial, got {episodes}"
        if name in names:
            raise UserError(f"{source}: {said}; change evaluation.episodes_per_trial, or leave it out")
        _log.warning("%s; it is left out", said)
    return {name: reference for name, reference in chosen.items() if reference.fits(episodes)}


def read_config(
    source: str | Path | Mapping[str, Any], overrides: Sequence[str] = (), trust: Collection[str] = ()
) -> RunConfig:
    """Return the experiment of ``source``: the name of a shipped config, a YAML file, or sections.

    Args:
        source: the config.yaml of a run folder, which may be from elsewhere, may only import modules that the
            user trusts.
        overrides: ``key.subkey=value``; the user trusts the modules that they name.
        trust: other modules that the user trusts.

    Raises:
        UserError: if there is no such config, or it has faults.
    """
    if isinstance(source, Mapping):
        return load_config(text_of(source), "config", overrides, COMPONENTS)
    text = _config_text(str(source))
    if is_of_a_run(path := Path(source)):
        refuse_strangers(path, text, {*trust, *modules_named(overrides)})
    if "versions" in parse(text, str(source)):  # a run wrote it; a user's config.yaml has today's defaults
        text = with_former(text, COMPONENTS)
    return load_config(text, str(source), overrides, COMPONENTS)


def known_to(source: str) -> list[str]:
    """Return the dotted keys of a config, of its agent and family too; those of any config if it is none."""
    try:
        raw = parse(_config_text(source), source)
    except UserError:
        raw = {"agent": {"name": "rl2"}}
    return known_keys(raw, COMPONENTS)


def _config_text(source: str) -> str:
    shipped = catalogue.shipped_configs()
    if source in shipped:
        return shipped[source]
    path = Path(source)
    if not os.path.exists(path):  # Path.exists raises for names that are too long
        raise UserError(
            f"config {source!r}: expected a YAML file or a shipped config, got neither"
            f"{suggestion(source, shipped)}"
        )
    try:
        return read_text(path, LARGEST_CONFIG)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"config {source!r}: expected a readable text file, got: {error}") from None


def _required_keys(family: Any) -> list[str]:
    return [name for name, key in family.__pydantic_fields__.items() if key.is_required()]
