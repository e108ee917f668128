"""What ``rl2meta check`` asks of a family of single environments."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, NamedTuple

import gymnasium as gym
import torch

from rl2meta.envs.checking.case import CPU, Case, Step, as_json, play_on, same_stream
from rl2meta.experiments.config import RunConfig
from rl2meta.experiments.rehearsal import draw
from rl2meta.tasks import MappingTasks, Split
from rl2meta.workers.family import EMITTED, SingleFamily, Task
from rl2meta.workers.plugged_in import PluggedIn

TASKS = 8  # of each split
_MOST_STEPS = 200  # in which tasks have to show
_SPLITS: tuple[Split, ...] = ("train", "test")


class Finding(NamedTuple):
    """Something that a check has to say.

    Attributes:
        kind: a ``FAULT`` must change, a ``note`` is worth knowing, ``unfit`` is an agent that is for others.
        words: what was expected, and what came.
    """

    kind: Literal["FAULT", "note", "unfit"]
    words: str


Check = Callable[[RunConfig], Iterator[Finding]]


def plugin_checks(config: RunConfig) -> Iterator[tuple[str, Check]]:
    """Yield the name of each check and what it does; each presumes those before it."""
    steps = Case(config.law, 2 * TASKS, config.settings.seed).num_steps
    yield f"{2 * TASKS} tasks from sample()", _sample
    yield f"{steps} random steps in worker processes, {2 * TASKS} tasks", _play
    yield "the same seed, the same trial", _repeat
    yield "tasks that make a difference", _tell_apart
    yield "what the info of a step tells", _inform


def here(law: PluggedIn) -> PluggedIn:
    """Return a law whose environments are in this process."""
    return PluggedIn(law.family, law.workers.model_copy(update={"processes": 0}))


def _sample(config: RunConfig) -> Iterator[Finding]:
    drawn = _drawn(config)
    if len({as_json(drawn[i : i + 1]) for i in range(len(drawn))}) == 1:
        yield Finding(
            "FAULT",
            f"sample: expected tasks that differ, got {drawn.entries[0]!s:.200} {len(drawn)} times; draw "
            "what makes a task from the generator that sample() is given",
        )


def _drawn(config: RunConfig) -> MappingTasks:
    """Return tasks of both splits."""
    splits = (draw(config.law, TASKS, config.settings.seed, split) for split in _SPLITS)
    return MappingTasks(tuple(task for tasks in splits for task in tasks.entries))


def _play(config: RunConfig) -> Iterator[Finding]:
    """Step environments of train and test tasks in worker processes, where one that hangs or dies shows."""
    law = PluggedIn(config.law.family, config.law.workers.model_copy(update={"max_restarts": 0}))
    _played(law, _drawn(config), config.settings.seed, trials=1)
    yield from ()


def _played(law: PluggedIn, tasks: MappingTasks, seed: int, trials: int) -> list[list[Step]]:
    envs = law.make_envs(len(tasks), CPU)
    try:
        return [play_on(envs, Case(law, len(tasks), seed).actions(), tasks, seed) for _ in range(trials)]
    finally:
        envs.close()


class _Kept:
    """A family whose environments are kept for the next trial, on the same task."""

    def __init__(self, family: SingleFamily) -> None:
        self.horizon, self.make_env, self.sample = family.horizon, family.make_env, family.sample
        self.set_task = getattr(family, "set_task", lambda env, task: None)


def _repeat(config: RunConfig) -> Iterator[Finding]:
    """Play a trial again, in new environments and in used ones: a seed has to bring it back."""
    law, seed = config.law, config.settings.seed
    tasks = draw(law, TASKS, seed, "train")
    (once,) = _played(here(law), tasks, seed, trials=1)
    used = PluggedIn(_Kept(law.family), here(law).workers)
    for where, streams in (
        ("a new environment", _played(here(law), tasks, seed, trials=1)),
        ("an environment that was played in and reset", _played(used, tasks, seed, trials=2)),
    ):
        if words := _difference(once, streams[-1], tasks):
            yield Finding("FAULT", words.format(where=where))
            return


def _difference(once: list[Step], again: list[Step], tasks: MappingTasks) -> str | None:
    """Return where two games on the same tasks part, with a place for where the second was played."""
    names = {
        "before": "observation",
        "reward": "reward",
        "terminated": "terminated",
        "truncated": "truncated",
    }
    for number, (then, now) in enumerate(zip(once, again, strict=True)):
        for field, name in names.items():
            a, b = getattr(then, field), getattr(now, field)
            if not torch.equal(a, b):
                lane = int((a != b).reshape(len(a), -1).any(dim=1).long().argmax())
                task = f"{tasks.entries[lane]!s:.200}".replace("{", "{{").replace("}", "}}")
                return (
                    f"environment {lane} (task {task}), step {number}: expected the same from the same task, "
                    f"seed and actions, got the {name} {a[lane].tolist()!s:.100}, and "
                    f"{b[lane].tolist()!s:.100} in {{where}}; let all randomness come from self.np_random, "
                    "which super().reset(seed=seed) seeds, not from global generators or clocks, and let "
                    "reset() put back all that steps have changed"
                )
    return None


def _tell_apart(config: RunConfig) -> Iterator[Finding]:
    """Play several tasks with the luck and the actions of one: what differs is the task's doing."""
    law, seed = here(config.law), config.settings.seed
    tasks = draw(law, TASKS, seed, "train")
    envs, actions = law.make_envs(1, CPU), Case(law, 1, seed).actions()[:_MOST_STEPS]
    first, *others = [play_on(envs, actions, tasks[i : i + 1], seed) for i in range(len(tasks))]
    envs.close()
    if not all(same_stream(first, other) for other in others):
        return
    rewards = {float(step.reward) for step in first}
    words = f"{len(tasks)} tasks, one seed and the same {len(actions)} actions: expected observations or "
    words += "rewards that differ, got the same from every task"
    if len(rewards) == 1:
        yield Finding("note", f"{words}, with a reward of {rewards.pop():g} throughout; are rewards rare?")
    else:
        yield Finding("FAULT", f"{words}; let make_env() hand on the task, and reset() keep it")


def _inform(config: RunConfig) -> Iterator[Finding]:
    """Look for what is told in the info of some steps but not of the first: it would be ignored."""
    law, seed = config.law, config.settings.seed
    for task in draw(law, TASKS, seed, "train").entries:
        infos = _infos(law.family, task, min(law.horizon, _MOST_STEPS), seed)
        late = [(name, step) for step, info in enumerate(infos) for name in EMITTED if name in info]
        for name, step in (told for told in late if told[0] not in law.described.emits):
            words = f"task {task!s:.200}, step {step}: expected {name!r} in the info of every step or of none"
            yield Finding("FAULT", f"{words}, got it here, and not at the first step")
            return


def _infos(family: SingleFamily, task: Task, num_steps: int, seed: int) -> Iterator[Mapping[str, Any]]:
    env: gym.Env[Any, Any] = family.make_env(task)
    try:
        env.action_space.seed(seed)
        env.reset(seed=seed)
        for _ in range(num_steps):
            *_, terminated, truncated, info = env.step(env.action_space.sample())
            yield info
            if terminated or truncated:
                return
    finally:
        env.close()
