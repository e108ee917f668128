"""The conformance suite of task families: whoever adds one runs ``check_distribution`` on it.

Each check plays the family and yields what it found wrong, as "what: expected, got".
"""

import json
import math
import random
from collections.abc import Callable, Iterable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from rl2meta.randomness import derive, generator
from rl2meta.tasks import Split, TaskDistribution, Tasks, TaskVectorEnv, sample_tasks

_MOST_REPLAYS = 20  # zero-regret play costs (actions × steps²) env steps: both are cut here
_TOLERANCE = 1e-4
_SEEDS_OF_STEADINESS = 4
_CPU = torch.device("cpu")


class ConformanceError(AssertionError):
    """A family breaks the contract of ``rl2meta.tasks``; the message lists everything that was found."""


def check_distribution(distribution: TaskDistribution, *, num_tasks: int = 8, seed: int = 0) -> None:
    """Check that a family keeps the contract of ``TaskDistribution``, ``Tasks`` and ``TaskVectorEnv``.

    Plays a few episodes on the CPU: seconds, not minutes. What a family does not know (regret, optima) is
    not asked of it. Where the spaces, the horizon or a method are missing, nothing else is checked.

    Args:
        distribution: the family.
        num_tasks: tasks, and environments side by side, >= 2.
        seed: of everything that is drawn.

    Raises:
        ConformanceError: if anything is wrong; lists every failure, not only the first.
        ValueError: for fewer than two tasks.
    """
    if num_tasks < 2:
        raise ValueError(f"expected num_tasks >= 2 (tasks are compared with each other), got {num_tasks}")
    case = _Case(distribution, num_tasks, seed)
    failures = _failures(_check_attributes, case)
    if not failures:
        failures = [failure for check in _CHECKS for failure in _failures(check, case)]
    if failures:
        lines = "".join(f"\n- {failure}" for failure in failures)
        raise ConformanceError(f"{type(distribution).__name__} has {len(failures)} failures:{lines}")


class _Step(NamedTuple):
    before: Tensor  # the observation that was acted on
    observation: Tensor
    reward: Tensor
    terminated: Tensor
    truncated: Tensor
    info: dict[str, Any]

    @property
    def last(self) -> Tensor:
        return self.terminated | self.truncated

    def tensors(self) -> dict[str, Tensor]:
        return {**self._asdict(), **self.info, "info": torch.empty(0)}


@dataclass(frozen=True)
class _Case:
    distribution: TaskDistribution
    num_tasks: int
    seed: int

    @property
    def num_steps(self) -> int:
        """More than one episode, and all of the longest one."""
        return self.distribution.horizon + min(self.distribution.horizon + 1, 200)

    def tasks(self, split: Split = "train") -> Tasks:
        return sample_tasks(self.distribution, self.num_tasks, self.seed, split)

    def envs(self) -> TaskVectorEnv:
        return self.distribution.make_envs(self.num_tasks, _CPU)

    def actions(self) -> list[Tensor]:
        space = deepcopy(self.distribution.action_space)  # seeding the family's own would leave a trace
        space.seed(self.seed)
        rows = [[space.sample() for _ in range(self.num_tasks)] for _ in range(self.num_steps)]
        return [torch.as_tensor(np.stack(row)) for row in rows]

    def play(self, tasks: Tasks | None = None, actions: list[Tensor] | None = None) -> list[_Step]:
        tasks = self.tasks() if tasks is None else tasks
        return _play(self.envs(), self.actions() if actions is None else actions, tasks, self.seed)


_Check = Callable[[_Case], Iterator[str]]


def _failures(check: _Check, case: _Case) -> list[str]:
    found = []
    try:
        for message in check(case):
            found.append(message)  # one by one: what was found before an error must not be lost
    except Exception as error:
        name = check.__name__.removeprefix("_check_").replace("_", " ")
        found.append(f"{name}: expected no error, got {type(error).__name__}: {error}")
    return found


def _play(envs: TaskVectorEnv, actions: list[Tensor], tasks: Tasks | None, seed: int) -> list[_Step]:
    observation, _ = envs.reset(seed=seed, options=None if tasks is None else {"tasks": tasks})
    steps: list[_Step] = []
    for action in actions:
        steps.append(_Step(observation, *envs.step(action)))
        observation = steps[-1].observation
    return steps


def _same(some: list[_Step], others: list[_Step]) -> bool:
    pairs = [(a.tensors(), b.tensors()) for a, b in zip(some, others, strict=True)]
    return all(a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a) for a, b in pairs)


def _json(tasks: Tasks) -> str:
    return json.dumps(tasks.to_dict(), sort_keys=True)


# What the law and the draw promise.


def _check_attributes(case: _Case) -> Iterator[str]:
    family = case.distribution
    for name in ("observation_space", "action_space"):
        space = getattr(family, name, None)
        if not isinstance(space, gym.Space):
            yield f"{name}: expected a gymnasium Space, got {space!r}"
    horizon = getattr(family, "horizon", None)
    if not isinstance(horizon, int) or isinstance(horizon, bool) or horizon < 1:
        yield f"horizon: expected an int >= 1, got {horizon!r}"
    for name in ("sample", "make_envs", "optimal_return", "bayes_optimal_return"):
        if not callable(getattr(family, name, None)):
            yield f"{name}: expected a method, got {getattr(family, name, None)!r}"


def _check_sampling(case: _Case) -> Iterator[str]:
    tasks = case.tasks()
    if len(tasks) != case.num_tasks:
        yield f"sample: expected {case.num_tasks} tasks, got {len(tasks)}"
    if _json(tasks) != _json(case.tasks()):
        yield "sample: expected the same tasks from generators of the same seed, got different ones"
    other = case.distribution.sample(case.num_tasks, generator(case.seed, "other tasks"), "train")
    if _json(tasks) == _json(other):
        yield "sample: expected different tasks from generators of different seeds, got the same"
    if _json(tasks) == _json(case.tasks("test")):
        yield "sample: expected test tasks unlike the train tasks, got the same"


def _check_global_randomness(case: _Case) -> Iterator[str]:
    torch_state, numpy_state = torch.get_rng_state(), repr(np.random.get_state())
    python_state = random.getstate()
    case.play()
    untouched = {
        "torch": torch.equal(torch_state, torch.get_rng_state()),
        "numpy": numpy_state == repr(np.random.get_state()),
        "random": python_state == random.getstate(),
    }
    for name in (name for name, kept in untouched.items() if not kept):
        yield f"randomness: expected all draws from the generators handed over, got {name}'s global one used"


def _check_tasks(case: _Case) -> Iterator[str]:
    tasks = case.tasks()
    if len(tasks[1:]) != case.num_tasks - 1:
        yield f"tasks[1:]: expected {case.num_tasks - 1} of {case.num_tasks} tasks, got {len(tasks[1:])}"
    index = torch.tensor([1, 0, 1])
    picked = [_json(tasks[index][i : i + 1]) for i in range(3)]
    if len(tasks[index]) != 3 or picked != [_json(tasks[i : i + 1]) for i in (1, 0, 1)]:
        yield "tasks[tensor([1, 0, 1])]: expected tasks 1, 0 and 1 in this order, got others"
    if _json(tasks.to(_CPU)) != _json(tasks):
        yield "tasks.to(cpu): expected the same tasks, got others"


def _check_json(case: _Case) -> Iterator[str]:
    tasks = case.tasks()
    revived = type(tasks).from_dict(json.loads(_json(tasks)))
    if _json(revived) != _json(tasks):
        yield "tasks: expected to_dict -> JSON -> from_dict to be equal to the bit, got other tasks"
    elif not _same(case.play(tasks), case.play(revived)):
        yield "tasks: expected tasks from JSON to play as the originals do, got another stream"


# What one step promises.


def _check_spaces(case: _Case) -> Iterator[str]:
    envs = case.envs()
    if envs.num_envs != case.num_tasks:
        yield f"num_envs: expected {case.num_tasks}, got {envs.num_envs}"
    if envs.device != _CPU:
        yield f"device: expected {_CPU}, got {envs.device}"
    for split in ("train", "test"):
        envs.reset(seed=case.seed, options={"tasks": case.tasks(split)})
        for name in ("observation_space", "action_space"):
            expected, got = getattr(case.distribution, name), getattr(envs, f"single_{name}", None)
            if got != expected:
                yield f"single_{name} on {split} tasks: expected the family's {expected}, got {got}"


def _check_observations(case: _Case) -> Iterator[str]:
    space, steps = case.distribution.observation_space, case.play()
    yield from islice(_odd_observations("observation", space, case, (step.before for step in steps)), 1)
    finals = (step.info["final_obs"] for step in steps if "final_obs" in step.info)
    yield from islice(_odd_observations("final_obs", space, case, finals), 1)
    for step in (step for step in steps if "final_obs" in step.info):
        if not torch.equal(step.info["final_obs"][~step.last], step.observation[~step.last]):
            yield "final_obs: expected the observation itself where no episode ended, got another"
            return


def _odd_observations(
    name: str, space: gym.Space[Any], case: _Case, batches: Iterable[Tensor]
) -> Iterator[str]:
    shape = (case.num_tasks, *(space.shape or ()))
    for batch in batches:
        array = batch.numpy()
        if array.shape != shape or array.dtype != space.dtype:
            yield f"{name}: expected {space.dtype} {list(shape)}, got {array.dtype} {list(array.shape)}"
        else:
            yield from (f"{name}: expected one of {space}, got {x}" for x in array if x not in space)


def _check_numbers(case: _Case) -> Iterator[str]:
    steps = case.play()
    yield from islice(_odd_numbers("reward", case, (step.reward for step in steps)), 1)
    for name in ("expected_reward", "regret"):
        known = (step.info[name] for step in steps if name in step.info)
        yield from islice(_odd_numbers(name, case, known), 1)


def _odd_numbers(name: str, case: _Case, batches: Iterable[Tensor]) -> Iterator[str]:
    for batch in batches:
        if batch.shape != (case.num_tasks,) or not batch.is_floating_point():
            yield f"{name}: expected float [{case.num_tasks}], got {batch.dtype} {list(batch.shape)}"
        elif not batch.isfinite().all():
            yield f"{name}: expected finite numbers, got {batch}"


def _check_flags(case: _Case) -> Iterator[str]:
    step = case.play()[0]
    for name, flag in (("terminated", step.terminated), ("truncated", step.truncated)):
        if flag.shape != (case.num_tasks,) or flag.dtype != torch.bool:
            yield f"{name}: expected bool [{case.num_tasks}], got {flag.dtype} {list(flag.shape)}"


def _check_info(case: _Case) -> Iterator[str]:
    keys = [sorted(step.info) for step in case.play()]
    if "final_obs" not in keys[0]:
        yield f"info: expected final_obs among the keys, got {keys[0]}"
    for other in islice((other for other in keys if other != keys[0]), 1):
        yield f"info: expected the same keys at every step, got {keys[0]}, later {other}"


def _check_seeds(case: _Case) -> Iterator[str]:
    envs, tasks, actions = case.envs(), case.tasks(), case.actions()
    stream = _play(envs, actions, tasks, case.seed)
    if not _same(stream, _play(case.envs(), actions, tasks, case.seed)):
        yield "reset: expected one stream from one seed, tasks and actions, got another in new environments"
    if not _same(stream, _play(envs, actions, tasks, case.seed)):
        yield "reset: expected one stream from one seed, tasks and actions, got another in used environments"
    if not _same(*(_play(envs, actions, None, case.seed) for _ in range(2))):
        yield "reset: expected the same tasks and stream from reset(seed=...) alone, got another"


def _check_fresh_tensors(case: _Case) -> Iterator[str]:
    envs, (first, *actions) = case.envs(), case.actions()
    step = _play(envs, [first], case.tasks(), case.seed)[0]
    kept = deepcopy(step.tensors())
    for action in actions:
        envs.step(action)
    for name in (name for name, tensor in step.tensors().items() if not torch.equal(tensor, kept[name])):
        yield f"{name}: expected what a step returned to stay as it was, got it changed by later steps"


# What episodes and resets promise.


def _check_horizon(case: _Case) -> Iterator[str]:
    elapsed = torch.zeros(case.num_tasks, dtype=torch.int64)
    for step in case.play():
        elapsed = elapsed + 1
        if (elapsed[~step.last] >= case.distribution.horizon).any():
            yield f"horizon: expected episodes of at most {case.distribution.horizon} steps, got a longer one"
            return
        elapsed = torch.where(step.last, 0, elapsed)


def _check_restart(case: _Case) -> Iterator[str]:
    tasks, envs, probe = case.tasks(), case.envs(), case.actions()[0]
    steady = _steady_marks(case, tasks)
    steps = _play(envs, [probe] * case.num_steps, tasks, case.seed)
    yield from islice((f for a, b in pairwise(steps) for f in _moved("restart", steady, b, a.last)), 1)
    yield from _exposed("restart", envs, tasks)


def _check_reset(case: _Case) -> Iterator[str]:
    envs, tasks, others = case.envs(), case.tasks(), case.tasks("test")
    probe, everywhere = case.actions()[0], torch.ones(case.num_tasks, dtype=torch.bool)
    calls: list[tuple[str, dict[str, Any], Tasks]] = [
        ("reset(seed, tasks)", {"seed": case.seed, "options": {"tasks": tasks}}, tasks),
        ("reset()", {}, tasks),
        ("reset(tasks)", {"options": {"tasks": others}}, others),
    ]
    for call, arguments, expected in calls:
        observation, _ = envs.reset(**arguments)
        step = _Step(observation, *envs.step(probe))
        yield from _moved(call, _steady_marks(case, expected), step, everywhere)
        yield from _exposed(call, envs, expected)


def _check_number_of_tasks(case: _Case) -> Iterator[str]:
    try:
        case.envs().reset(seed=case.seed, options={"tasks": case.tasks()[1:]})
    except Exception:
        return  # any error will do: its words are the family's own
    yield f"reset: expected an error for {case.num_tasks - 1} tasks in {case.num_tasks} envs, got none"


def _marks(step: _Step) -> dict[str, Tensor]:
    """What the first step of an episode can show of its task."""
    marks = {"first observation": step.before, "reward": step.reward}
    for name in ("expected_reward", "regret"):
        if name in step.info:
            marks[name] = step.info[name]
    return marks


def _steady_marks(case: _Case, tasks: Tasks) -> dict[str, Tensor]:
    """Return the marks that chance does not move: equal under several seeds on the same tasks."""
    probe, seeds = case.actions()[0], [derive(case.seed, i) for i in range(_SEEDS_OF_STEADINESS)]
    first, *others = [_marks(_play(case.envs(), [probe], tasks, seed)[0]) for seed in seeds]
    return {name: mark for name, mark in first.items() if all(torch.equal(mark, o[name]) for o in others)}


def _moved(what: str, steady: dict[str, Tensor], step: _Step, where: Tensor) -> Iterator[str]:
    marks = _marks(step)
    for name, expected in steady.items():
        if not torch.equal(marks[name][where], expected[where]):
            yield (
                f"{what}: expected its tasks, whose {name} at an episode's first step is "
                f"{expected[where].tolist()}, got {marks[name][where].tolist()}"
            )


def _exposed(what: str, envs: TaskVectorEnv, expected: Tasks) -> Iterator[str]:
    tasks = getattr(envs, "tasks", None)
    if tasks is not None and _json(tasks) != _json(expected):
        yield f"{what}: expected its tasks in the environments' attribute tasks, got others"


# What the optimum promises, where it is known.


def _check_regret(case: _Case) -> Iterator[str]:
    least = [float(step.info["regret"].min()) for step in case.play() if "regret" in step.info]
    if least and min(least) < 0:
        yield f"regret: expected >= 0 at every step, got {min(least)}"


def _check_zero_regret(case: _Case) -> Iterator[str]:
    space, played = case.distribution.action_space, list[Tensor]()
    if not isinstance(space, gym.spaces.Discrete) or space.n > _MOST_REPLAYS:
        return
    for _ in range(min(case.distribution.horizon, _MOST_REPLAYS)):
        regrets = _regrets(case, played, space)
        if not regrets:
            return
        least, best = torch.stack(regrets).min(dim=0)
        if (least > _TOLERANCE).any():
            yield (
                "regret: expected 0 for some action in every state, "
                f"got at least {float(least.max()):.4g} after {len(played)} best actions"
            )
            return
        played.append(best + int(space.start))


def _regrets(case: _Case, played: list[Tensor], space: gym.spaces.Discrete) -> list[Tensor]:
    """Return the regret of each action after the same past, which the same seed brings back."""
    tried = [torch.full((case.num_tasks,), int(space.start) + i) for i in range(int(space.n))]
    ends = [case.play(actions=[*played, action])[-1] for action in tried]
    return [end.info["regret"] for end in ends if "regret" in end.info]


def _check_optimal_return(case: _Case) -> Iterator[str]:
    tasks = case.tasks()
    optimum = case.distribution.optimal_return(tasks)
    if optimum is None:
        return
    yield from _odd_numbers("optimal_return", case, [optimum])
    if case.distribution.horizon > 1:
        return  # what a longer episode pays depends on chance; its regret is checked state by state
    for step in case.play(tasks):
        if {"expected_reward", "regret"} <= step.info.keys():
            total = step.info["expected_reward"] + step.info["regret"]
            if not torch.allclose(total, optimum, atol=_TOLERANCE):
                yield f"expected_reward + regret: expected optimal_return {optimum}, got {total}"
                return


def _check_bayes_optimal_return(case: _Case) -> Iterator[str]:
    value = case.distribution.bayes_optimal_return(1)
    if value is None:
        return
    if not isinstance(value, float) or not math.isfinite(value):
        yield f"bayes_optimal_return(1): expected a finite float or None, got {value!r}"
        return
    optimum = case.distribution.optimal_return(sample_tasks(case.distribution, 1000, case.seed, "train"))
    if optimum is None:
        return
    most = float(optimum.mean() + 5 * optimum.std() / math.sqrt(len(optimum)) + _TOLERANCE)
    if value > most:
        yield f"bayes_optimal_return(1): expected at most mean optimal_return {most:.4g}, got {value:.4g}"


_CHECKS: tuple[_Check, ...] = (
    _check_sampling,
    _check_global_randomness,
    _check_tasks,
    _check_json,
    _check_spaces,
    _check_observations,
    _check_numbers,
    _check_flags,
    _check_info,
    _check_seeds,
    _check_fresh_tensors,
    _check_horizon,
    _check_restart,
    _check_reset,
    _check_number_of_tasks,
    _check_regret,
    _check_zero_regret,
    _check_optimal_return,
    _check_bayes_optimal_return,
)
