"""Checks of episodes and resets."""

from collections.abc import Callable, Iterable, Iterator
from itertools import islice, pairwise
from typing import Any

import torch
from torch import Tensor

from rl2meta.envs.checking.case import Case, Check, Step, as_json, legal_after, play_on
from rl2meta.envs.checking.chance import Untold, log_chance, sure
from rl2meta.randomness import derive
from rl2meta.tasks import Tasks, TaskVectorEnv

_FRESH = 4  # new environments at first
_ROUNDS = 32  # at most; in each one more new environment, and one more game
_LOOKS = 16  # four marks after four calls
Marks = dict[str, Tensor]
"""The values of a first step by name, [B, ...] each."""
Later = Callable[[int], Iterable[tuple[Marks, Tensor]]]
"""The number of a round -> first steps that must be like fresh ones, and in which lanes, bool [B]."""


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

    def restarts(number: int) -> Iterator[tuple[Marks, Tensor]]:
        steps = play_on(case.envs(), [probe] * case.num_steps, tasks, _seed(case, number))
        return ((_marks(after), last.last) for last, after in pairwise(steps))

    yield from _moved("restart", case, tasks, restarts)
    play_on(envs, [probe] * case.num_steps, tasks, case.seed)
    yield from _exposed("restart", envs, tasks)


def _check_reset(case: Case) -> Iterator[str]:
    tasks, others = case.tasks(), case.tasks("test")
    calls: dict[str, tuple[dict[str, Any], Tasks]] = {
        "reset(seed, tasks)": ({"options": {"tasks": tasks}}, tasks),
        "reset()": ({}, tasks),
        "reset(tasks)": ({"options": {"tasks": others}}, others),
    }
    probe, everywhere = case.actions()[0], torch.ones(case.num_tasks, dtype=torch.bool)

    def after(number: int, most: int) -> tuple[TaskVectorEnv, Step]:
        """Return the environments, and their last step, after the first ``most`` calls."""
        envs, steps, seed = case.envs(), list[Step](), _seed(case, number)
        for arguments, _ in islice(calls.values(), most):
            observation, info = envs.reset(seed=None if steps else seed, **arguments)
            legal = legal_after(info, probe, envs)
            steps.append(Step(observation, legal, *envs.step(legal)))
        return envs, steps[-1]

    for most, (call, (_, expected)) in enumerate(calls.items(), start=1):

        def later(number: int, most: int = most) -> list[tuple[Marks, Tensor]]:
            return [(_marks(after(number, most)[1]), everywhere)]

        yield from _moved(call, case, expected, later)
        yield from _exposed(call, after(0, most)[0], expected)


def _check_number_of_tasks(case: Case) -> Iterator[str]:
    try:
        case.envs().reset(seed=case.seed, options={"tasks": case.tasks()[1:]})
    except Exception:
        return  # any error is good: each family words its own
    yield f"reset: expected an error for {case.num_tasks - 1} tasks in {case.num_tasks} envs, got none"


def _marks(step: Step) -> Marks:
    """Return the values of the first step of an episode that can depend on its task."""
    marks = {"first observation": step.before, "reward": step.reward}
    for name in ("expected_reward", "regret"):
        if name in step.info:
            marks[name] = step.info[name]
    return marks


def _moved(what: str, case: Case, tasks: Tasks, later: Later) -> Iterator[str]:
    """Say where first steps differ from those of the same tasks in new environments, beyond chance.

    A task whose first steps are equal in a few new environments may still depend on chance (an arm that
    seldom pays), so a difference is followed by more new environments and more calls, until one of them shows
    that it was chance, or that no chance can do it.
    """
    if not case.steady:
        return
    fresh, seen = [_fresh(case, tasks, number) for number in range(_FRESH)], list[tuple[Marks, Tensor]]()
    for number in range(_ROUNDS):
        seen += later(number)
        found = {name: _deviations(name, fresh, seen) for name in fresh[0]}
        odd = {name: counts for name, counts in found.items() if counts[0].any()}
        looks = _ROUNDS * _LOOKS
        certain = [n for n, (d, r) in odd.items() if sure(log_chance(d, r, len(fresh)), len(d), looks)]
        yield from (_said(what, name, fresh[0], seen) for name in certain)
        if certain or not odd:
            return
        fresh.append(_fresh(case, tasks, len(fresh)))
    seldom = " and ".join(odd)
    yield Untold(f"{what}: could not tell whether tasks are kept: {seldom} of a first step seldom differ")


def _fresh(case: Case, tasks: Tasks, number: int) -> Marks:
    """Return the marks of tasks in new environments."""
    return _marks(play_on(case.envs(), [case.actions()[0]], tasks, derive(case.seed, number))[0])


def _seed(case: Case, number: int) -> int:
    return case.seed if number == 0 else derive(case.seed, "again", number)


def _deviations(name: str, fresh: list[Marks], seen: list[tuple[Marks, Tensor]]) -> tuple[Tensor, Tensor]:
    """Return how many values deviate, and of how many, where no fresh one does: int64 [B] each."""
    usual = fresh[0][name]
    steady = ~_sum([_differs(marks[name], usual) for marks in fresh]).bool()  # [B]
    there = [where & steady for _, where in seen]
    odd = [_differs(marks[name], usual) & where for (marks, _), where in zip(seen, there, strict=True)]
    return _sum(odd, len(usual)), _sum(there, len(usual))


def _sum(flags: list[Tensor], size: int = 1) -> Tensor:
    """Return how many of the flags hold in each lane, int64 [B]."""
    return torch.stack(flags).sum(dim=0) if flags else torch.zeros(size, dtype=torch.int64)


def _differs(some: Tensor, others: Tensor) -> Tensor:
    """Return in which lanes two marks differ, bool [B]."""
    return (some != others).reshape(len(some), -1).any(dim=1)


def _said(what: str, name: str, usual: Marks, seen: list[tuple[Marks, Tensor]]) -> str:
    marks, where = next(each for each in seen if (_differs(each[0][name], usual[name]) & each[1]).any())
    return (
        f"{what}: expected its tasks, whose {name} at an episode's first step is "
        f"{usual[name][where].tolist()}, got {marks[name][where].tolist()}"
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
