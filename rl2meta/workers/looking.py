"""A first look at one environment: its spaces and emitted values, and whether other environments agree."""

from typing import Any

import gymnasium as gym

from rl2meta.counted import ACTION_MASK, is_counted
from rl2meta.workers.block import Array
from rl2meta.workers.elements import kind
from rl2meta.workers.family import EMITTED, Described, SingleFamily, Task, acted, observed
from rl2meta.workers.faults import CALLS, Broken
from rl2meta.workers.legal import legal_sample


def make(family: SingleFamily, task: Task) -> gym.Env[Any, Any]:
    """Return the environment of a task; raise ``Broken`` if it is not a Gymnasium environment."""
    env = family.make_env(task)
    if not isinstance(env, gym.Env):
        raise Broken(f"expected a gymnasium.Env from make_env(), got {kind(env)}")
    for name in ("observation_space", "action_space"):
        if not isinstance(getattr(env, name, None), gym.Space):
            raise Broken(f"expected a gymnasium Space for {name}, got {getattr(env, name, None)!r:.80}")
    return env


def look(family: SingleFamily, task: Task, mark: Array) -> Described:
    """Return the spaces of the environment of a task, and what it emits in its first step.

    Args:
        family: makes the environment.
        task: the task of the environment.
        mark: a row of ``Arrays.mark``; it is kept up to date with the current call.
    """

    def doing(call: str) -> None:
        mark[1:] = 0, CALLS.index(call), 0
        mark[0] += 1

    doing("make_env")
    env = make(family, task)
    _refuse_spaces(env)  # before anything else: this message helps most
    env.action_space.seed(0)
    doing("reset")
    begun = env.reset(seed=0)
    found = Described(env.observation_space, env.action_space, masks=_masks(env, _info(begun)))
    doing("step")
    info = _info(env.step(legal_sample(found, env.action_space, begun)))
    doing("close")
    env.close()
    return found._replace(
        emits=tuple(name for name in EMITTED if name in info), masks=found.masks or _masks(env, info)
    )


def _info(came: Any) -> dict[str, Any]:
    return came[-1] if isinstance(came, tuple) and isinstance(came[-1], dict) else {}


def _masks(env: gym.Env[Any, Any], info: dict[str, Any]) -> str:
    """Return where masks of illegal actions come from."""
    if not is_counted(env.action_space):
        return ""
    inside = (
        isinstance(env.observation_space, gym.spaces.Dict) and ACTION_MASK in env.observation_space.spaces
    )
    return "observation" if inside else "info" if ACTION_MASK in info else ""


def refuse_difference(described: Described, env: gym.Env[Any, Any]) -> None:
    """Raise ``Broken`` if the spaces of an environment differ from those of the family."""
    for name in ("observation_space", "action_space"):
        expected, got = getattr(described, name), getattr(env, name)
        if got != expected:
            raise Broken(f"expected the {name} of the other tasks, {expected}, got {got}")


def _refuse_spaces(env: gym.Env[Any, Any]) -> None:
    for name, usable in (("observation_space", observed), ("action_space", acted)):
        try:
            usable(getattr(env, name))
        except TypeError as error:
            raise Broken(f"{name}: {error}") from None
