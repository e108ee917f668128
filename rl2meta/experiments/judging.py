"""Evaluate agents side by side on the same held-out tasks."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, SupportsIndex

import numpy as np
import torch

from rl2meta.agents.references.catalogue import NAMES
from rl2meta.agents.references.reference import Reference
from rl2meta.colours import colours_of
from rl2meta.devices import resolve_device, set_precision, set_threads
from rl2meta.errors import UserError
from rl2meta.evaluation import AgentResult, Ceilings
from rl2meta.experiments.components import judged_episodes, make_learner, make_worker
from rl2meta.experiments.config import RunConfig, differing
from rl2meta.experiments.contest import Contest
from rl2meta.experiments.rehearsal import fill
from rl2meta.experiments.run import Run
from rl2meta.experiments.sizes import refuse_evaluation, refuse_tasks, room_on
from rl2meta.kernels import set_kernels
from rl2meta.levels import merged
from rl2meta.ranks import ONE, Ranks
from rl2meta.tasks import shares_tasks
from rl2meta.trial import Agent

_MOST_TASKS = 10**7
SCRATCH = "PPO from scratch"
Say = Callable[[str], None]
"""Called with one line of text about the next step."""


Watch = Callable[[int, int], None]
"""Called after each batch of trials with the number of trials done, and of all."""


def silent(line: str) -> None:
    """Ignore the line."""


def unwatched(done: int, total: int) -> None:
    """Ignore how far the evaluation is."""


class Subject(NamedTuple):
    """A trained agent in an evaluation.

    Attributes:
        trained, judged: its experiment in training, and in the evaluation.
        agent: with the settings of the evaluation.
        update, env_steps: number of updates and environment steps of its training.
    """

    trained: RunConfig
    judged: RunConfig
    agent: Agent[Any]
    update: int
    env_steps: int

    def facts(self) -> dict[str, Any]:
        """Return the length of the training, and the training settings that differ in the evaluation."""
        return {
            "trained_with": trained_with(self.trained, self.judged),
            "update": self.update,
            "env_steps": self.env_steps,
        }


class Method(NamedTuple):
    """What an evaluation judges: a trained agent, or those of a group, which differ in the training seed.

    Attributes:
        subjects: the agents, at least one.
        seeds: of their trainings.
    """

    subjects: tuple[Subject, ...]
    seeds: tuple[int, ...]

    @property
    def first(self) -> Subject:
        """The agent of the first seed; what the law and the settings are is the same for all."""
        return self.subjects[0]

    def facts(self) -> dict[str, Any]:
        """Return the facts of the first seed; for a group, also the seeds and the updates of each."""
        if len(self.subjects) == 1:
            return self.first.facts()
        updates = [subject.update for subject in self.subjects]
        steps = [subject.env_steps for subject in self.subjects]
        fewest = {"update": min(updates), "env_steps": min(steps)}
        return {**self.first.facts(), **fewest, "seeds": list(self.seeds), "updates": updates}


def make_contest(
    config: RunConfig,
    *,
    tasks: int | None,
    seed: int | None,
    device: str,
    threads: int | None,
    scratch: int,
    ranks: Ranks = ONE,
) -> Contest:
    """Return the contest for the options; options that are None are taken from the config.

    Raises:
        UserError: if an option is out of range; the message names it.
    """
    defaults = config.settings.evaluation
    num_tasks = within("--tasks", defaults.tasks if tasks is None else tasks, 2, _MOST_TASKS)
    seed = within("--seed", defaults.seed if seed is None else seed, 0, 2**63 - 1)
    if scratch:  # a single task gives no interval
        scratch = within("--scratch", scratch, 2, num_tasks)
        if ranks.size > 1:
            raise UserError(f"--scratch: expected one process, got {ranks.size} ranks; leave it out")
    where = resolve_device(device, ranks.on_machine)
    refuse_evaluation(config, num_tasks, room_on(where))
    refuse_tasks(config, num_tasks, seed)
    worker = make_worker(config, where)
    contest = Contest(config, worker, seed, num_tasks, scratch, ranks=ranks)
    set_precision(config.settings.precision)
    set_kernels("torch")  # everywhere, so that a result does not depend on what is installed
    set_threads(config.settings.threads if threads is None else within("--threads", threads, 1, 1024))
    return contest


def make_method(name: str, runs: Sequence[Run], judged: Sequence[RunConfig], contest: Contest) -> Method:
    """Return the trained agents of runs that differ in the seed, with the settings of the evaluation.

    Raises:
        UserError: if the trial cannot be divided into the agent's phases.
    """
    pairs = zip(runs, judged, strict=True)
    subjects = tuple(_make_subject(name, run, config, contest) for run, config in pairs)
    return Method(subjects, tuple(run.config.settings.seed for run in runs))


def _make_subject(name: str, run: Run, judged: RunConfig, contest: Contest) -> Subject:
    """Return the trained agent of a run, with the settings of the evaluation.

    Raises:
        UserError: if the trial cannot be divided into the agent's phases, or the settings do not fit the
            trained weights.
    """
    learner = make_learner(replace(run.config, agent=judged.agent), contest.worker.device)
    place = "" if run.path is None else f" ({run.path})"
    try:
        learner.load_state_dict(_moved(run, contest.worker.device))
    except RuntimeError as error:
        lines = " ".join(str(error).split())
        raise UserError(
            f"{name}{place}: expected agent settings that fit what was trained, got some that change which "
            f"weights there are ({lines:.300}); leave these settings as they were, or train with them"
        ) from None
    key = f"{name}{place}: evaluation.episodes_per_trial, or --episodes of `rl2meta compare`"
    fill(learner.agent.phase, contest.episodes, key)
    return Subject(run.config, judged, learner.agent, run.update, run.env_steps)


def _moved(run: Run, device: torch.device) -> dict[str, torch.Tensor]:
    return {name: tensor.to(device) for name, tensor in run.learner.state_dict().items()}


def play(
    contest: Contest,
    methods: Mapping[str, Method],
    references: Mapping[str, Reference],
    say: Say,
    watch: Watch = unwatched,
) -> tuple[dict[str, AgentResult], Ceilings]:
    """Evaluate methods and references on the held-out tasks; return their results and the ceilings.

    Args:
        contest: the held-out tasks and the seed; its environments are closed at the end.
        methods: the trained agents, by their names in the results.
        references: by name; the names differ from those of the methods. One that diverges is left out.
        say: called with one line before each agent.
        watch: called after each batch of trials.
    """
    agents = sum(len(method.subjects) for method in methods.values())
    trials = [len(contest.held_out)] * agents + [contest.num_trials(each) for each in references.values()]
    contest.played = _counted(watch, sum(trials))
    ceilings = contest.ceilings()  # first, so that an error here does not come after the evaluations
    try:
        results = {name: _play_all(name, method, contest, say) for name, method in methods.items()}
        for name, reference in references.items():
            choices = math.prod(map(len, reference.grid.values()))
            first = f", its constants tuned first ({choices} choices)" if choices > 1 else ""
            say(f"evaluating {name}{first} ...")
            result = contest.evaluate_reference(reference)
            if np.isfinite(result.rewards).all():
                results[name] = result
            else:
                say(f"{name} is left out: it earned infinite or NaN rewards")
        if contest.scratch:
            results[SCRATCH] = replace(_learn(contest, say), labels=contest.labels[: contest.scratch])
    finally:
        contest.worker.close()
    return results, ceilings


def _counted(watch: Watch, total: int) -> Callable[[int], None]:
    """Return a function that adds up the trials it is called with, and tells ``watch`` of the sum."""
    done = 0

    def played(trials: int) -> None:
        nonlocal done
        done += trials
        watch(done, total)

    return played


def within(option: str, value: int, low: int, high: int) -> int:
    """Return ``value`` as Python's own number.

    Raises:
        UserError: if the value is no whole number from ``low`` to ``high``; the message names the option.
    """
    if not isinstance(value, SupportsIndex) or not low <= value <= high:  # NumPy has integers, too
        raise UserError(f"{option}: expected a number from {low} to {high}, got {value!r:.80}")
    return value.__index__()


def facts_of(
    contest: Contest, methods: Mapping[str, Method], references: Mapping[str, Reference]
) -> dict[str, Any]:
    """Return the facts that evaluation.json holds for every evaluation."""
    played, num_tasks = contest.config.distribution, len(contest.held_out)
    return {
        "num_tasks": num_tasks,
        "distinct_tasks": len(np.unique(contest.labels)),
        "seed": contest.seed,
        "episodes": contest.episodes,
        "distribution": str(played),
        "shared_with_training": any(
            shares_tasks(method.first.trained.distribution, played, contest.seed, min(512, num_tasks))
            for method in methods.values()
        ),
        "device": str(contest.worker.device),
        "subjects": list(methods),
        "colours": colours_of(list(methods), [*references, *[SCRATCH][: contest.scratch]], NAMES),
        "priors": {name: reference.prior for name, reference in references.items()},
    }


def _play_all(name: str, method: Method, contest: Contest, say: Say) -> AgentResult:
    if len(method.subjects) == 1:
        return merged([_play(name, method.first, contest, say)], method.seeds)
    pairs = zip(method.seeds, method.subjects, strict=True)
    results = [_play(f"{name}, seed {seed},", subject, contest, say) for seed, subject in pairs]
    return merged(results, method.seeds)


def _play(name: str, subject: Subject, contest: Contest, say: Say) -> AgentResult:
    say(f"evaluating {name} on {contest.worker.device} ...")
    worker = make_worker(subject.judged, contest.worker.device)
    try:
        result = contest.evaluate(subject.agent, worker)
    finally:
        worker.close()
    if not np.isfinite(result.rewards).all():
        first = int(np.isfinite(result.rewards).all(axis=0).argmin())
        raise UserError(
            f"{name}: expected finite rewards, got infinite or NaN rewards from episode {first} of the trial "
            "on; lower the agent's inner learning rates, or look for such rewards in the environment"
        )
    return result


def _learn(contest: Contest, say: Say) -> AgentResult:
    from rl2meta.experiments.scratch import learn_from_scratch  # loads Stable-Baselines3, which takes a while

    tasks, law = contest.held_out[: contest.scratch], contest.config.distribution
    say(f"training {SCRATCH} (Stable-Baselines3) on each of {len(tasks)} tasks ...")
    return learn_from_scratch(
        law, tasks, contest.episodes, contest.seed, lambda done: say(f"  {done}/{len(tasks)} tasks")
    )


def trained_with(trained: RunConfig, judged: RunConfig) -> dict[str, Any]:
    """Return the training settings that differ in the evaluation, with their values in training."""
    then, now = trained.flat(), judged.flat()
    changed = [key for key in differing(then, now) if key in then and not key.startswith("evaluation.")]
    if trained.settings.training.episodes_per_trial != judged_episodes(judged):
        changed.append("training.episodes_per_trial")
    return {key: then[key] for key in changed}


def folder_name(path: Path) -> str:
    """Return the name of a run's folder."""
    return path.name if path.name not in ("", "..") else path.resolve().name
