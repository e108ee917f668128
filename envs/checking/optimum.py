"""Checks of the optimum, if the family knows it."""

import math
from collections.abc import Iterator

import gymnasium as gym
import torch
from torch import Tensor

from rl2meta.envs.checking.case import Case, Check, Step
from rl2meta.envs.checking.steps import odd_numbers
from rl2meta.randomness import derive
from rl2meta.tasks import sample_tasks

_MOST_REPLAYS, _MOST_STEPS = 400, 20  # the search for zero regret plays the past once per action and step
_TOLERANCE = 1e-4
_DRAWS = 20  # of 1000 tasks


def _check_regret(case: Case) -> Iterator[str]:
    least = [float(step.info["regret"].min()) for step in case.play() if "regret" in step.info]
    if least and min(least) < 0:
        yield f"regret: expected >= 0 at every step, got {min(least)}"


def _check_zero_regret(case: Case) -> Iterator[str]:
    space, played = case.distribution.action_space, list[Tensor]()
    if not isinstance(space, gym.spaces.Discrete) or space.n > _MOST_REPLAYS:
        return
    for _ in range(min(case.distribution.horizon, _MOST_STEPS, _MOST_REPLAYS // int(space.n))):
        ends = _ends(case, played, space)
        if "regret" not in ends[0].info:
            return
        regrets = torch.stack([end.info["regret"] for end in ends])  # [A, B]
        least, best = regrets.min(dim=0)
        after = len(played)
        found = [*_unlike_replays(ends, after, int(space.start)), *_no_best(least, regrets, after)]
        yield from found
        if found:
            return
        played.append(best + int(space.start))


def _ends(case: Case, played: list[Tensor], space: gym.spaces.Discrete) -> list[Step]:
    """Return the step of each action after the same past; the same seed gives the same past."""
    tried = [torch.full((case.num_tasks,), int(space.start) + i) for i in range(int(space.n))]
    return [case.play(actions=[*played, action])[-1] for action in tried]


def _no_best(least: Tensor, regrets: Tensor, after: int) -> Iterator[str]:
    if (least > _tolerance(regrets)).any():
        yield (
            "regret: expected 0 for some action in every state, "
            f"got at least {float(least.max()):.4g} after {after} best actions"
        )


def _unlike_replays(ends: list[Step], after: int, start: int) -> Iterator[str]:
    """Compare the regrets of all actions with the regret of each; ``ends`` differ in the last action."""
    shape = (len(ends[0].action), len(ends))  # [B, A]
    if any(not _reveals(end, shape) for end in ends):
        return
    regret = torch.stack([end.info["regret"] for end in ends], dim=1)  # [B, A]
    action = torch.stack([end.action for end in ends], dim=1) - start  # [B, A]; each once, if all are legal
    regrets = torch.stack([end.info["regrets"] for end in ends])  # [A, B, A]
    if off := _apart(regrets.gather(2, action.expand_as(regrets)), regret):
        yield (
            "regrets: expected the regret of each action as its replay has it, got a difference of "
            f"{off:.4g} after {after} best actions"
        )


def _check_regrets(case: Case) -> Iterator[str]:
    space, steps = case.distribution.action_space, case.play()
    if not isinstance(space, gym.spaces.Discrete):
        return
    if any(not _reveals(step, (case.num_tasks, int(space.n))) for step in steps):
        return
    regrets = torch.stack([step.info["regrets"] for step in steps])  # [T, B, A]
    if regrets.min() < 0:
        yield f"regrets: expected >= 0 of every action, got {float(regrets.min()):.4g}"
    least = float(regrets.amin(dim=2).max())
    if least > _tolerance(regrets):
        yield f"regrets: expected 0 for the best action of every state, got at least {least:.4g}"
    action = torch.stack([step.action for step in steps]) - int(space.start)  # [T, B]
    regret = torch.stack([step.info["regret"] for step in steps])
    if off := _apart(regrets.gather(2, action.unsqueeze(2)).squeeze(2), regret):
        yield f"regrets: expected regret at the action taken, got a difference of {off:.4g}"


def _reveals(step: Step, shape: tuple[int, int]) -> bool:
    """Return whether a step has the regrets of all actions; other checks tell of wrong shapes."""
    return {"regret", "regrets"} <= step.info.keys() and step.info["regrets"].shape == shape


def _apart(some: Tensor, others: Tensor) -> float:
    """Return the largest difference if it is more than rounding, else 0."""
    off = float((some - others).abs().max())
    return off if not off <= _tolerance(others) else 0.0  # NaN too is no rounding


def _check_target_regret(case: Case) -> Iterator[str]:
    """Play the target of the first step as its action: the same seed gives the same first state."""
    first = case.play(actions=case.actions()[:1])[0]
    if not {"target", "regret"} <= first.info.keys():
        return
    regret = case.play(actions=[first.info["target"]])[0].info["regret"]
    if (regret > _tolerance(first.info["regret"])).any():
        yield f"target: expected no regret from it, got {float(regret.max()):.4g}"


def _check_optimal_return(case: Case) -> Iterator[str]:
    tasks = case.tasks()
    optimum = case.distribution.optimal_return(tasks)
    if optimum is None:
        return
    yield from odd_numbers("optimal_return", case, [optimum])
    if case.distribution.horizon > 1:
        return  # the return of a longer episode depends on chance; another check tests its regrets
    for step in case.play(tasks):
        if {"expected_reward", "regret"} <= step.info.keys():
            total = step.info["expected_reward"] + step.info["regret"]
            if not torch.allclose(total, optimum, atol=_TOLERANCE):
                yield f"expected_reward + regret: expected optimal_return {optimum}, got {total}"
                return


def _check_bayes_optimal_return(case: Case) -> Iterator[str]:
    value = case.distribution.bayes_optimal_return(1)
    if value is None:
        return
    if not isinstance(value, float) or not math.isfinite(value):
        yield f"bayes_optimal_return(1): expected a finite float or None, got {value!r}"
        return
    bounds = list[float]()
    for number in range(_DRAWS):  # many, as rare good tasks are in no single one
        seed = case.seed if number == 0 else derive(case.seed, "optimum", number)
        optimum = case.distribution.optimal_return(sample_tasks(case.distribution, 1000, seed, "train"))
        if optimum is None:
            return
        error = 5 * optimum.std() / math.sqrt(len(optimum))
        bounds.append(float(optimum.mean() + error + _tolerance(optimum)))
        if value <= bounds[-1]:
            return
    yield f"bayes_optimal_return(1): expected at most mean optimal_return {bounds[0]:.4g}, got {value:.4g}"


def _tolerance(values: Tensor) -> float:
    """Return how far numbers of float32 may be off, in the unit of ``values``."""
    return _TOLERANCE * max(1.0, float(values.abs().max()))


CHECKS: tuple[Check, ...] = (
    _check_regret,
    _check_zero_regret,
    _check_regrets,
    _check_target_regret,
    _check_optimal_return,
    _check_bayes_optimal_return,
)
