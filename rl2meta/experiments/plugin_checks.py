"""What ``rl2meta check`` asks of a family of single environments."""

import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, Literal, NamedTuple

import gymnasium as gym
import torch
from torch import Tensor

from rl2meta.counted import ACTION_MASK, is_counted
from rl2meta.envs.checking import findings
from rl2meta.envs.checking.case import CPU, Case, Step, legal_after, play_on, same_stream
from rl2meta.envs.checking.chance import Untold, has_several
from rl2meta.experiments.config import RunConfig
from rl2meta.experiments.env_state import same_values
from rl2meta.experiments.pace import TASKS, Pace, pace_of
from rl2meta.experiments.patience import Watch
from rl2meta.experiments.rehearsal import draw
from rl2meta.randomness import derive, generator
from rl2meta.tasks import MappingTasks, Split
from rl2meta.workers.family import EMITTED, Described, SingleFamily, Task
from rl2meta.workers.legal import legal_sample
from rl2meta.workers.plugged_in import PluggedIn

_MOST_STEPS = 200  # in which tasks have to show
_MORE = 1000  # tasks of each split, where a few were equal: a second task with p > 0.7 % shows
_ROUNDS = 8  # games in which tasks have to show
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


def plugin_checks(config: RunConfig, watch: Watch) -> Iterator[tuple[str, Check, bool]]:
    """Yield the name of each check, what it does, and whether nothing can follow if it breaks off."""
    steps = Case(config.law, 2 * TASKS, config.settings.seed).num_steps
    yield f"{2 * TASKS} tasks from sample()", _sample, True
    yield f"{steps} random steps in worker processes, {2 * TASKS} tasks", partial(_play, watch), True
    watch.begin("measuring how fast the environments are")
    pace = pace_of(here(config.law), config.settings.seed)
    yield "the same seed, the same trial", partial(_repeat, pace), False
    yield "tasks that make a difference", partial(_tell_apart, pace), False
    yield "what the info of a step tells", _inform, False
    yield "the contract of task distributions", partial(_conform, pace, watch), False


def here(law: PluggedIn) -> PluggedIn:
    """Return a law whose environments are in this process."""
    return PluggedIn(law.family, law.workers.model_copy(update={"processes": 0}))


def _sample(config: RunConfig) -> Iterator[Finding]:
    drawn = _drawn(config)
    if has_several(drawn):
        return
    few, first = len(drawn), drawn.entries[0]
    if not has_several(MappingTasks((first, *_more(config)))):
        yield Finding(
            "FAULT",
            f"sample: expected tasks that differ, got {first!s:.200} {few} times, and {len(_SPLITS) * _MORE} "
            "times more; draw what makes a task from the generator that sample() is given",
        )


def _drawn(config: RunConfig) -> MappingTasks:
    """Return tasks of both splits."""
    splits = (draw(config.law, TASKS, config.settings.seed, split) for split in _SPLITS)
    return MappingTasks(tuple(task for tasks in splits for task in tasks.entries))


def _more(config: RunConfig) -> tuple[Task, ...]:
    """Return many tasks, the training tasks first."""
    streams = ((generator(config.settings.seed, "more tasks", split), split) for split in _SPLITS)
    drawn = (config.law.sample(_MORE, stream, split) for stream, split in streams)
    return tuple(task for tasks in drawn for task in tasks.entries)


def _play(watch: Watch, config: RunConfig) -> Iterator[Finding]:
    """Step environments of train and test tasks in worker processes, where one that hangs or dies shows."""
    law = PluggedIn(config.law.family, config.law.workers.model_copy(update={"max_restarts": 0}))
    tasks, seed, begun = _drawn(config), config.settings.seed, time.monotonic()
    case, taken = Case(law, len(tasks), seed), 0
    envs = law.make_envs(len(tasks), CPU)
    try:
        info = envs.reset(seed=seed, options={"tasks": tasks})[1]
        for action in case.drawn_actions():
            info = envs.step(legal_after(info, action, envs))[-1]
            taken += 1
            if time.monotonic() - begun > watch.limit / 3:
                break
    finally:
        envs.close()
    if taken < case.num_steps:
        yield Finding(
            "note",
            f"slow: only the first {taken} of {case.num_steps} steps were taken, in "
            f"{time.monotonic() - begun:.0f} s; could not tell what comes later",
        )


def _conform(pace: Pace, watch: Watch, config: RunConfig) -> Iterator[Finding]:
    law = here(config.law)  # for every check makes environments of its own
    full = Case(law, TASKS, config.settings.seed).num_steps
    if pace.tasks < TASKS or (pace.steps or full) < full:
        steps = min(full, pace.steps or full)
        yield Finding("note", f"slow or large: played {steps} of {full} steps, {pace.tasks} of {TASKS} tasks")
    yield from conformance(law, pace, watch, config.settings.seed)


def conformance(law: Any, pace: Pace, watch: Watch, seed: int) -> Iterator[Finding]:
    """Yield what the conformance suite says of a law."""
    title = watch.now

    def say(name: str) -> None:
        watch.begin(f"{title}: {name}")

    for words in findings(law, num_tasks=pace.tasks, seed=seed, most_steps=pace.steps, say=say):
        yield Finding("note" if isinstance(words, Untold) else "FAULT", str(words))


def _played(
    law: PluggedIn, tasks: MappingTasks, seed: int, steps: int | None, trials: int = 1
) -> list[list[Step]]:
    actions = Case(law, len(tasks), seed, most_steps=steps).actions()
    envs = law.make_envs(len(tasks), CPU)
    try:
        return [play_on(envs, actions, tasks, seed) for _ in range(trials)]
    finally:
        envs.close()


class _Kept:
    """A family whose environments are kept for the next trial, on the same task."""

    def __init__(self, family: SingleFamily) -> None:
        self.horizon, self.make_env, self.sample = family.horizon, family.make_env, family.sample
        self.set_task = getattr(family, "set_task", lambda env, task: None)


def _repeat(pace: Pace, config: RunConfig) -> Iterator[Finding]:
    """Play a trial again, in new environments and in used ones: a seed has to bring it back."""
    law, seed = here(config.law), config.settings.seed
    tasks = draw(law, pace.tasks, seed, "train")
    (once,) = _played(law, tasks, seed, pace.steps)
    used = PluggedIn(_Kept(law.family), law.workers)
    for where, kind, trials in (
        ("a new environment", law, 1),
        ("an environment that was played in and reset", used, 2),
    ):
        again = _played(kind, tasks, seed, pace.steps, trials)[-1]
        if words := _difference(once, again, tasks):
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


def _tell_apart(pace: Pace, config: RunConfig) -> Iterator[Finding]:
    """Play several tasks with the luck and the actions of one: what differs is the task's doing."""
    law, seed = here(config.law), config.settings.seed
    tasks = _unequal(config)
    if not has_several(tasks):
        return  # another check says so
    most, rewards = min(_MOST_STEPS, pace.steps or _MOST_STEPS), set[float]()
    actions = Case(law, 1, seed, most_steps=most).actions()
    for number in range(_ROUNDS):
        chance = seed if number == 0 else derive(seed, "again", number)
        rounds = Case(law, 1, chance, most_steps=most).actions()
        if _show(law, rounds, tasks, chance, rewards):
            return
    words = f"{len(tasks)} tasks, one seed and the same {len(actions)} actions: expected observations or "
    words += "rewards that differ, got the same from every task"
    if len(rewards) == 1:
        yield Finding("note", f"{words}, with a reward of {rewards.pop():g} throughout; are rewards rare?")
    elif _alike(law, tasks, len(actions), seed):
        yield Finding("FAULT", f"{words}; let make_env() hand on the task, and reset() keep it")
    else:
        yield Finding(
            "note",
            f"{words}, in {_ROUNDS} games; could not tell whether tasks make a difference: do they show only "
            "in a few places? If not, let make_env() hand on the task, and reset() keep it",
        )


def _unequal(config: RunConfig) -> MappingTasks:
    """Return tasks that are not all equal, if there are any."""
    tasks = draw(config.law, TASKS, config.settings.seed, "train")
    if has_several(tasks):
        return tasks
    first, *others = tasks.entries
    more = (task for task in _more(config) if has_several(MappingTasks((first, task))))
    return MappingTasks((first, *others[1:], next(more, first)))


def _show(law: PluggedIn, actions: list[Tensor], tasks: MappingTasks, seed: int, rewards: set[float]) -> bool:
    """Return whether tasks differ in a game; collect the rewards of the first."""
    envs = law.make_envs(1, CPU)
    try:
        first = play_on(envs, actions, tasks[:1], seed)
        rewards |= {float(step.reward) for step in first}
        others = (play_on(envs, actions, tasks[i : i + 1], seed) for i in range(1, len(tasks)))
        return not all(same_stream(first, other) for other in others)
    finally:
        envs.close()


def _alike(law: PluggedIn, tasks: MappingTasks, num_steps: int, seed: int) -> bool:
    """Return whether the environments of all tasks certainly hold the same values after the same game."""
    envs, described = [law.family.make_env(task) for task in tasks.entries], law.described
    try:
        for env in envs:
            _ = [*_steps(env, num_steps, seed, described)]
        return all(same_values(envs[0], env) for env in envs[1:])
    finally:
        for env in envs:
            env.close()


def _inform(config: RunConfig) -> Iterator[Finding]:
    """Look for what is told in the info of some steps but not of the first: it would be ignored."""
    law, seed = config.law, config.settings.seed
    unseen = [name for name in EMITTED if name not in law.described.emits]
    if is_counted(law.action_space) and not law.described.masks:
        unseen.append(ACTION_MASK)
    for task in draw(law, TASKS, seed, "train").entries:
        infos = _infos(law, task, min(law.horizon, _MOST_STEPS), seed)
        late = [(name, step) for step, info in enumerate(infos) for name in unseen if name in info]
        for name, step in late:
            words = f"task {task!s:.200}, step {step}: expected {name!r} in the info of every step or of none"
            yield Finding("FAULT", f"{words}, got it here, and not at the first step")
            return


def _infos(law: PluggedIn, task: Task, num_steps: int, seed: int) -> Iterator[Mapping[str, Any]]:
    env: gym.Env[Any, Any] = law.family.make_env(task)
    try:
        yield from _steps(env, num_steps, seed, law.described)
    finally:
        env.close()


def _steps(
    env: gym.Env[Any, Any], num_steps: int, seed: int, described: Described
) -> Iterator[Mapping[str, Any]]:
    """Play at most an episode with random legal actions; yield the info of each step."""
    env.action_space.seed(seed)
    came: tuple[Any, ...] = env.reset(seed=seed)
    for _ in range(num_steps):
        came = env.step(legal_sample(described, env.action_space, came))
        *_, terminated, truncated, info = came
        yield info
        if terminated or truncated:
            return
