"""Begin a training with the weights of another run."""

import logging
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from rl2meta.errors import UserError
from rl2meta.experiments.components import AGENTS, COMPONENTS, make_learner
from rl2meta.experiments.config import RunConfig, load_config
from rl2meta.experiments.run import Origin, Run
from rl2meta.experiments.yaml_text import parse, text_of
from rl2meta.experiments.zoo import said_path

_OPTION = "--from (start_from)"
_MOST = 8  # weights in a message
_SHAPING = ("agent", "distribution", "reveal_task")  # sections of a config that shapes may depend on
_log = logging.getLogger("rl2meta")

Section = dict[str, Any]


def begin_with(run: Run, other: Run) -> Origin:
    """Load the weights of another run into a run that has not begun; return where they come from.

    All named tensors of the other learner's state are carried over but the moments of its optimisers, which
    begin anew. That includes the units that it measured (of rewards and of observations): the weights were
    learnt in these units. What only training needs (``AgentKind.training_only``) is carried over if both
    runs have it; if only one has it, it begins anew or is left out, and a warning says so.

    Raises:
        UserError: if the runs have different agents, or the weights have other shapes; the message names the
            weights and the settings that decide their shapes. Also if only the shapes are the same, and the
            networks compute different functions of these weights (``AgentKind.network``).
    """
    _refuse_another_agent(run, other)
    extras = AGENTS[run.config.agent_name].training_only
    ours = without_moments(run.learner.state_dict(), extras)
    theirs = without_moments(other.learner.state_dict(), extras)
    weights = _with_same_extras(ours, theirs, extras, _place(other))
    try:
        run.learner.load_state_dict(weights)
    except (RuntimeError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise _misfit(run.config, other, _shapes(ours), _shapes(weights), error) from None
    _refuse_another_network(run.config, other)
    return Origin(None if other.path is None else said_path(other.path), other.update)


def _place(other: Run) -> str:
    return "the other run" if other.path is None else said_path(other.path)


def _refuse_another_agent(run: Run, other: Run) -> None:
    wanted, given = run.config.agent_name, other.config.agent_name
    if wanted != given and AGENTS[wanted] != AGENTS[given]:  # the same agent may have two names
        raise UserError(
            f"{_OPTION}: expected a run of agent {wanted}, got {_place(other)} of {given}; give a run of the "
            f"same agent, or train with agent.name={given}"
        )


def _refuse_another_network(config: RunConfig, other: Run) -> None:
    """Refuse weights of the right shapes that mean something else in this network."""
    ours, theirs = (_shaping(each) for each in (config, other.config))
    keys = AGENTS[config.agent_name].network
    odd = [path for path in _differences(ours, theirs) if path[0] == "agent" and path[1] in keys]
    if odd:
        said = "; ".join(_said(path, ours, theirs) for path in odd)
        raise UserError(
            f"{_OPTION}: expected weights of a network that computes the same, got those of {_place(other)}, "
            f"which have the same shapes and another meaning: {said}. Use the same settings in both runs"
        )


def without_moments(state: Mapping[str, Tensor], extras: tuple[str, ...]) -> dict[str, Tensor]:
    """Return a state without the moments of the optimisers of the learner and of its extras."""
    moments = ("optimizer.", *(f"{extra}.optimizer." for extra in extras))
    return {name: tensor for name, tensor in state.items() if not name.startswith(moments)}


def _with_same_extras(
    ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], extras: tuple[str, ...], place: str
) -> dict[str, Tensor]:
    """Return their state with the extras that we have: theirs if they have them, else our own."""
    weights = dict(theirs)
    for extra in extras:
        mine, yours = ([name for name in state if name.startswith(f"{extra}.")] for state in (ours, theirs))
        if mine and not yours:
            _log.warning("%s has no %s; that of the new run begins anew", place, extra)
            weights |= {name: ours[name] for name in mine}
        elif yours and not mine:
            _log.warning("the new run has no %s; that of %s is left out", extra, place)
            weights = {name: tensor for name, tensor in weights.items() if name not in yours}
    return weights


def _misfit(
    config: RunConfig,
    other: Run,
    wanted: Mapping[str, list[int]],
    given: Mapping[str, list[int]],
    error: Exception,
) -> UserError:
    """Return an error with the weights that do not fit, and the settings that decide their shapes."""
    odd = [name for name in {**wanted, **given} if wanted.get(name) != given.get(name)]
    lines = [
        f"  {name}: expected {wanted.get(name, 'none')}, got {given.get(name, 'none')}"
        for name in odd[:_MOST]
    ]
    if len(odd) > _MOST:
        lines.append(f"  and {len(odd) - _MOST} more")
    count = f"{len(odd)} of which do not fit" if odd else f"which do not fit ({error})"
    head = f"{_OPTION}: expected weights of the shapes of this run, got those of {_place(other)}, {count}"
    said = list(_deciding(config, other.config, wanted, odd))
    cause = f"their shapes depend on {'; '.join(said)}. U" if said else "u"
    return UserError("\n".join([head, *lines, f"{cause}se the same settings in both runs"]))


def _deciding(
    config: RunConfig, other: RunConfig, wanted: Mapping[str, list[int]], odd: list[str]
) -> Iterator[str]:
    """Yield the settings that differ and decide the shape of a weight that does not fit.

    A setting decides it if the shape changes as soon as our config has this one setting of the other run.
    """
    ours, theirs = (_shaping(each) for each in (config, other))
    for path in _differences(ours, theirs):
        changed = _shapes_with(config, path, theirs)
        if changed is None or any(changed.get(name) != wanted.get(name) for name in odd):
            yield _said(path, ours, theirs)


def _shaping(config: RunConfig) -> Section:
    """Return the sections of a config that the shapes of a network may depend on."""
    raw = parse(config.to_yaml(), "config")
    return {name: raw[name] for name in _SHAPING}


def _differences(ours: Section, theirs: Section, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield the paths of values that differ; sections of another name differ as a whole."""
    for key in {**ours, **theirs}:
        mine, yours = ours.get(key), theirs.get(key)
        if isinstance(mine, dict) and isinstance(yours, dict) and mine.get("name") == yours.get("name"):
            yield from _differences(mine, yours, (*path, key))
        elif mine != yours:
            yield (*path, key)


def _shapes_with(config: RunConfig, path: tuple[str, ...], theirs: Section) -> dict[str, list[int]] | None:
    """Return the shapes with one setting of the other run; None if the others do not allow it."""
    raw = parse(config.to_yaml(), "config")
    section = raw
    for key in path[:-1]:
        section, theirs = section[key], theirs[key]
    section[path[-1]] = theirs.get(path[-1])
    try:
        learner = make_learner(load_config(text_of(raw), "config", (), COMPONENTS), torch.device("cpu"))
    except (UserError, ValueError):
        return None
    return _shapes(learner.state_dict())


def _said(path: tuple[str, ...], ours: Section, theirs: Section) -> str:
    """Return the setting at a path with its two values; of a section, its name."""
    mine, yours = _at(ours, path), _at(theirs, path)
    key = ".".join(path)
    if isinstance(mine, dict) and isinstance(yours, dict):
        key, mine, yours = f"{key}.name", mine.get("name"), yours.get("name")
    return f"{key}, which is {mine} here and {yours} there"


def _at(section: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        section = section.get(key) if isinstance(section, dict) else None
    return section


def _shapes(state: Mapping[str, Tensor]) -> dict[str, list[int]]:
    return {name: list(tensor.shape) for name, tensor in state.items()}
