"""Checks of single steps."""

from collections.abc import Iterable, Iterator
from copy import deepcopy
from itertools import islice
from typing import Any

import gymnasium as gym
import torch
from torch import Tensor

from rl2meta.envs.checking.case import CPU, Case, Check, legal_after, play_on, same_stream


def _check_spaces(case: Case) -> Iterator[str]:
    envs = case.envs()
    if envs.num_envs != case.num_tasks:
        yield f"num_envs: expected {case.num_tasks}, got {envs.num_envs}"
    if envs.device != CPU:
        yield f"device: expected {CPU}, got {envs.device}"
    for split in ("train", "test"):
        envs.reset(seed=case.seed, options={"tasks": case.tasks(split)})
        for name in ("observation_space", "action_space"):
            expected, got = getattr(case.distribution, name), getattr(envs, f"single_{name}", None)
            if got != expected:
                yield f"single_{name} on {split} tasks: expected the family's {expected}, got {got}"


def _check_observations(case: Case) -> Iterator[str]:
    space, steps = case.distribution.observation_space, case.play()
    yield from islice(_outside("observation", space, case, (step.before for step in steps)), 1)
    finals = (step.info["final_obs"] for step in steps if "final_obs" in step.info)
    yield from islice(_outside("final_obs", space, case, finals), 1)
    for step in (step for step in steps if "final_obs" in step.info):
        if not torch.equal(step.info["final_obs"][~step.last], step.observation[~step.last]):
            yield "final_obs: expected the next observation where no episode ended, got another value"
            return


def _outside(name: str, space: gym.Space[Any], case: Case, batches: Iterable[Tensor]) -> Iterator[str]:
    """Yield messages for batches that are not one element of ``space`` per task."""
    shape = (case.num_tasks, *(space.shape or ()))
    for batch in batches:
        array = batch.numpy()
        if array.shape != shape or array.dtype != space.dtype:
            yield f"{name}: expected {space.dtype} {list(shape)}, got {array.dtype} {list(array.shape)}"
        else:
            yield from (f"{name}: expected one of {space}, got {x}" for x in array if x not in space)


def _check_numbers(case: Case) -> Iterator[str]:
    steps = case.play()
    yield from islice(odd_numbers("reward", case, (step.reward for step in steps)), 1)
    for name in ("expected_reward", "regret"):
        known = (step.info[name] for step in steps if name in step.info)
        yield from islice(odd_numbers(name, case, known), 1)


def _check_form_of_regrets(case: Case) -> Iterator[str]:
    space = case.distribution.action_space
    steps = [step for step in case.play() if "regrets" in step.info]
    if any("regret" not in step.info for step in steps):
        yield "regrets: expected regret beside them in the info, got regrets alone"
    known = (step.info["regrets"] for step in steps)
    if isinstance(space, gym.spaces.Discrete):
        yield from islice(odd_numbers("regrets", case, known, (int(space.n),)), 1)
    else:
        yield from (
            f"regrets: expected them for Discrete actions only, got {space}" for _ in islice(known, 1)
        )


def _check_target(case: Case) -> Iterator[str]:
    space = case.distribution.action_space
    known = (step.info["target"] for step in case.play() if "target" in step.info)
    yield from islice(_outside("target", space, case, known), 1)


def odd_numbers(
    name: str, case: Case, batches: Iterable[Tensor], shape: tuple[int, ...] = ()
) -> Iterator[str]:
    """Yield messages for batches that are not finite floats of a shape per task."""
    expected = [case.num_tasks, *shape]
    for batch in batches:
        if list(batch.shape) != expected or not batch.is_floating_point():
            yield f"{name}: expected float {expected}, got {batch.dtype} {list(batch.shape)}"
        elif not batch.isfinite().all():
            yield f"{name}: expected finite numbers, got {batch}"


def _check_flags(case: Case) -> Iterator[str]:
    step = case.play()[0]
    for name, flag in (("terminated", step.terminated), ("truncated", step.truncated)):
        if flag.shape != (case.num_tasks,) or flag.dtype != torch.bool:
            yield f"{name}: expected bool [{case.num_tasks}], got {flag.dtype} {list(flag.shape)}"


def _check_info(case: Case) -> Iterator[str]:
    keys = [sorted(step.info) for step in case.play()]
    if "final_obs" not in keys[0]:
        yield f"info: expected final_obs among the keys, got {keys[0]}"
    for other in islice((other for other in keys if other != keys[0]), 1):
        yield f"info: expected the same keys at every step, got {keys[0]}, later {other}"


def _check_seeds(case: Case) -> Iterator[str]:
    envs, tasks, actions = case.envs(), case.tasks(), case.actions()
    stream = play_on(envs, actions, tasks, case.seed)
    if not same_stream(stream, play_on(case.envs(), actions, tasks, case.seed)):
        yield "reset: expected the same steps for the same seed, tasks and actions, got others in new envs"
    if not same_stream(stream, play_on(envs, actions, tasks, case.seed)):
        yield "reset: expected the same steps for the same seed, tasks and actions, got others in used envs"
    if not same_stream(*(play_on(envs, actions, None, case.seed) for _ in range(2))):
        yield "reset: expected the same tasks and steps from the same reset(seed=...), got others"


def _check_fresh_tensors(case: Case) -> Iterator[str]:
    envs, (first, *actions) = case.envs(), case.actions()
    step = play_on(envs, [first], case.tasks(), case.seed)[0]
    kept = deepcopy(step.tensors())
    info = step.info
    for action in actions:
        info = envs.step(legal_after(info, action, envs))[-1]
    for name in (name for name, tensor in step.tensors().items() if not torch.equal(tensor, kept[name])):
        yield f"{name}: expected later steps not to change what a step returned, got a change"


CHECKS: tuple[Check, ...] = (
    _check_spaces,
    _check_observations,
    _check_numbers,
    _check_form_of_regrets,
    _check_target,
    _check_flags,
    _check_info,
    _check_seeds,
    _check_fresh_tensors,
)
