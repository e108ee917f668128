"""Checks of episodes and resets."""

from collections.abc import Iterator
from itertools import islice, pairwise
from typing import Any

import torch
from torch import Tensor

from rl2meta.envs.checking.case import Case, Check, Step, as_json, play_on
from rl2meta.randomness import derive
from rl2meta.tasks import Tasks, TaskVectorEnv

_SEEDS_OF_STEADINESS = 4


def _check_horizon(case: Case) -> Iterator[str]:
    elapsed = torch.zeros(case.num_tasks, dtype=torch.int64)
    for step in case.play():
        elapsed = elapsed + 1
        if (elapsed[~step.last] >= case.distribution.horizon).any():
            yield f"horizon: expected episodes of at most {case.distribution.horizon} steps, got a longer one"
            return
        elapsed = torch.where(step.last, 0, elapsed)


def _check_restart(case: Case) -> Iterator[str]:
    tasks, envs, probe = case.tasks(), case.envs(), case.actions()[0]
    steady = _steady_marks(case, tasks)
    steps = play_on(envs, [probe] * case.num_steps, tasks, case.seed)
    yield from islice((f for a, b in pairwise(steps) for f in _moved("restart", steady, b, a.last)), 1)
    yield from _exposed("restart", envs, tasks)


def _check_reset(case: Case) -> Iterator[str]:
    envs, tasks, others = case.envs(), case.tasks(), case.tasks("test")
    probe, everywhere = case.actions()[0], torch.ones(case.num_tasks, dtype=torch.bool)
    calls: list[tuple[str, dict[str, Any], Tasks]] = [
        ("reset(seed, tasks)", {"seed": case.seed, "options": {"tasks": tasks}}, tasks),
        ("reset()", {}, tasks),
        ("reset(tasks)", {"options": {"tasks": others}}, others),
    ]
    for call, arguments, expected in calls:
        observation, _ = envs.reset(**arguments)
        step = Step(observation, *envs.step(probe))
        yield from _moved(call, _steady_marks(case, expected), step, everywhere)
        yield from _exposed(call, envs, expected)


def _check_number_of_tasks(case: Case) -> Iterator[str]:
    try:
        case.envs().reset(seed=case.seed, options={"tasks": case.tasks()[1:]})
    except Exception:
        return  # any error is good: each family words its own
    yield f"reset: expected an error for {case.num_tasks - 1} tasks in {case.num_tasks} envs, got none"


def _marks(step: Step) -> dict[str, Tensor]:
    """Return the values of the first step of an episode that can depend on its task."""
    marks = {"first observation": step.before, "reward": step.reward}
    for name in ("expected_reward", "regret"):
        if name in step.info:
            marks[name] = step.info[name]
    return marks


def _steady_marks(case: Case, tasks: Tasks) -> dict[str, Tensor]:
    """Return the marks that do not depend on chance: equal for several seeds on the same tasks."""
    if not case.steady:
        return {}
    probe, seeds = case.actions()[0], [derive(case.seed, i) for i in range(_SEEDS_OF_STEADINESS)]
    first, *others = [_marks(play_on(case.envs(), [probe], tasks, seed)[0]) for seed in seeds]
    return {name: mark for name, mark in first.items() if all(torch.equal(mark, o[name]) for o in others)}


def _moved(what: str, steady: dict[str, Tensor], step: Step, where: Tensor) -> Iterator[str]:
    marks = _marks(step)
    for name, expected in steady.items():
        if not torch.equal(marks[name][where], expected[where]):
            yield (
                f"{what}: expected its tasks, whose {name} at an episode's first step is "
                f"{expected[where].tolist()}, got {marks[name][where].tolist()}"
            )


def _exposed(what: str, envs: TaskVectorEnv, expected: Tasks) -> Iterator[str]:
    tasks = getattr(envs, "tasks", None)
    if tasks is not None and as_json(tasks) != as_json(expected):
        yield f"{what}: expected its tasks in the environments' attribute tasks, got other tasks"


CHECKS: tuple[Check, ...] = (
    _check_horizon,
    _check_restart,
    _check_reset,
    _check_number_of_tasks,
)
