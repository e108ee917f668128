"""Checks of the law and of drawn tasks."""

import json
import random
from collections.abc import Iterator
from itertools import count
from typing import get_args

import gymnasium as gym
import numpy as np
import torch

from rl2meta.envs.checking.case import CPU, Case, Check, as_json, same_stream
from rl2meta.envs.checking.chance import Untold, always_equal, has_several
from rl2meta.randomness import derive, generator
from rl2meta.tasks import Split, Tasks, sample_tasks


def check_attributes(case: Case) -> Iterator[str]:
    """Check that the family has everything that the other checks need."""
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


def _check_sampling(case: Case) -> Iterator[str]:
    tasks = case.tasks()
    if len(tasks) != case.num_tasks:
        yield f"sample: expected {case.num_tasks} tasks, got {len(tasks)}"
    if as_json(tasks) != as_json(case.tasks()):
        yield "sample: expected the same tasks from generators of the same seed, got different ones"
    if seeds := always_equal((tasks, other) for other in _other_tasks(case)):
        words = "sample: expected different tasks from generators of different seeds, got the same"
        if has_several(tasks):
            yield f"{words}, {seeds} times"
        else:
            yield Untold(f"{words} one task {seeds * len(tasks)} times; is it the only one for training?")
    if seeds := always_equal(_splits(case)):
        yield f"sample: expected test tasks unlike the train tasks, got the same from {seeds} seeds"


def _other_tasks(case: Case) -> Iterator[Tasks]:
    """Draw training tasks from other seeds, without end."""
    for number in count():
        names = ("other tasks",) if number == 0 else ("other tasks", number)
        yield case.distribution.sample(case.num_tasks, generator(case.seed, *names), "train")


def _splits(case: Case) -> Iterator[tuple[Tasks, Tasks]]:
    """Draw train and test tasks of one seed after another, without end."""
    for number in count():
        seed = case.seed if number == 0 else derive(case.seed, "splits", number)
        train, test = (
            sample_tasks(case.distribution, case.num_tasks, seed, split) for split in get_args(Split)
        )
        yield train, test


def _check_global_randomness(case: Case) -> Iterator[str]:
    torch_state, numpy_state = torch.get_rng_state(), repr(np.random.get_state())
    python_state = random.getstate()
    case.play()
    untouched = {
        "torch": torch.equal(torch_state, torch.get_rng_state()),
        "numpy": numpy_state == repr(np.random.get_state()),
        "random": python_state == random.getstate(),
    }
    for name in (name for name, kept in untouched.items() if not kept):
        yield f"randomness: expected draws only from the given generators, got {name}'s global generator used"


def _check_tasks(case: Case) -> Iterator[str]:
    tasks = case.tasks()
    if len(tasks[1:]) != case.num_tasks - 1:
        yield f"tasks[1:]: expected {case.num_tasks - 1} of {case.num_tasks} tasks, got {len(tasks[1:])}"
    index = torch.tensor([1, 0, 1])
    picked = [as_json(tasks[index][i : i + 1]) for i in range(3)]
    if len(tasks[index]) != 3 or picked != [as_json(tasks[i : i + 1]) for i in (1, 0, 1)]:
        yield "tasks[tensor([1, 0, 1])]: expected tasks 1, 0 and 1 in this order, got others"
    if as_json(tasks.to(CPU)) != as_json(tasks):
        yield "tasks.to(cpu): expected the same tasks, got others"


def _check_json(case: Case) -> Iterator[str]:
    tasks = case.tasks()
    revived = type(tasks).from_dict(json.loads(as_json(tasks)))
    if as_json(revived) != as_json(tasks):
        yield "tasks: expected to_dict -> JSON -> from_dict to be equal to the bit, got other tasks"
    elif not same_stream(case.play(tasks), case.play(revived)):
        yield "tasks: expected tasks from JSON to give the same steps as the originals, got other steps"


CHECKS: tuple[Check, ...] = (
    _check_sampling,
    _check_global_randomness,
    _check_tasks,
    _check_json,
)
