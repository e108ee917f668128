"""Putting agents side by side, shared by the commands that do: play, write, draw, print."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rl2meta.agents.references.reference import Reference
from rl2meta.commands.tables import print_tables
from rl2meta.devices import resolve_device, set_precision, set_threads
from rl2meta.errors import UserError
from rl2meta.evaluation import Evaluation, write_evaluation
from rl2meta.experiments.checkpoints import Checkpoint
from rl2meta.experiments.components import judged_episodes, make_worker
from rl2meta.experiments.config import RunConfig, differing
from rl2meta.experiments.contest import Contest
from rl2meta.experiments.rehearsal import fill
from rl2meta.experiments.restore import restore
from rl2meta.experiments.run_folder import RunFolder
from rl2meta.plotting import plot_adaptation, plot_evaluation
from rl2meta.tasks import shares_tasks
from rl2meta.trial import Agent

_MOST_TASKS = 10**7
SCRATCH = "PPO from scratch"


class Subject(NamedTuple):
    """A trained agent that is judged.

    Attributes:
        trained, judged: its experiment as it was trained, and as it is judged.
        agent: as its newest whole checkpoint has it.
        saved: that checkpoint.
    """

    trained: RunConfig
    judged: RunConfig
    agent: Agent[Any]
    saved: Checkpoint

    def facts(self) -> dict[str, Any]:
        """Return how far it was trained, and with which settings that it is not judged with."""
        return {
            "trained_with": _trained_with(self.trained, self.judged),
            "update": self.saved.update,
            "env_steps": self.saved.state["env_steps"],
        }


def make_contest(
    config: RunConfig,
    *,
    tasks: int | None,
    seed: int | None,
    device: str,
    threads: int | None,
    scratch: int,
) -> Contest:
    """Return the contest that the options ask for, what they leave out as in the config.

    Raises:
        UserError: naming the option that is out of range.
    """
    defaults = config.settings.evaluation
    num_tasks = within("--tasks", defaults.tasks if tasks is None else tasks, 2, _MOST_TASKS)
    seed = within("--seed", defaults.seed if seed is None else seed, 0, 2**63 - 1)
    if scratch:  # of one task alone there is no interval
        within("--scratch", scratch, 2, num_tasks)
    worker = make_worker(config, resolve_device(device))
    contest = Contest(config, worker, seed, num_tasks, scratch)
    set_precision(config.settings.precision)
    set_threads(config.settings.threads if threads is None else within("--threads", threads, 1, 1024))
    return contest


def load_subject(
    name: str, folder: RunFolder, trained: RunConfig, judged: RunConfig, contest: Contest
) -> Subject:
    """Return the trained agent of a run, with the settings that it is judged with.

    Raises:
        UserError: if there is no whole checkpoint, or the trial does not split into the agent's phases.
    """
    learner, saved = restore(folder, trained, contest.worker.device, agent=judged.agent)
    key = f"{name} ({folder.path}): evaluation.episodes_per_trial, or --episodes of `rl2meta compare`"
    fill(learner.agent.phase, contest.episodes, key)
    return Subject(trained, judged, learner.agent, saved)


def judge(
    target: Path,
    contest: Contest,
    subjects: Mapping[str, Subject],
    references: Mapping[str, Reference],
    facts: Mapping[str, Any],
) -> None:
    """Evaluate subjects and references; write files and figures to ``target``, print tables.

    Args:
        target: an empty folder.
        contest: what they are put on.
        subjects: by the name they shall have; differences are to the first.
        references: by name, other than the subjects'.
        facts: what evaluation.json says of the subjects beside what it says of every evaluation.
    """
    ceilings = contest.ceilings()  # first: what fails here shall not do so after all was played
    try:
        results = _results(contest, subjects, references)
    finally:
        contest.worker.close()
    facts = {**_facts(contest, subjects), **facts}
    write_evaluation(target, results, ceilings, facts)
    figures = (plot_evaluation(target), plot_adaptation(target))
    print_tables(results, ceilings, facts)
    print(f"wrote {target} (figures: {', '.join(figure.name for figure in figures)})")


def _results(
    contest: Contest, subjects: Mapping[str, Subject], references: Mapping[str, Reference]
) -> dict[str, Evaluation]:
    results = {name: _play(name, subject, contest) for name, subject in subjects.items()}
    for name, reference in references.items():
        choices = math.prod(map(len, reference.grid.values()))
        first = f", its constants tuned first ({choices} choices)" if choices > 1 else ""
        print(f"evaluating {name}{first} ...", flush=True)
        results[name] = contest.evaluate_reference(reference)
    if contest.scratch:
        results[SCRATCH] = _learn(contest)
    return results


def within(option: str, value: int, low: int, high: int) -> int:
    """Return ``value``.

    Raises:
        UserError: naming the option, if the value is not from ``low`` to ``high``.
    """
    if not low <= value <= high:
        raise UserError(f"{option}: expected a number from {low} to {high}, got {value}")
    return value


def names_of(against: str | None) -> Sequence[str] | None:
    """Return the references that an option names, or None where it is not given."""
    return None if against is None else against.split(",")


def _play(name: str, subject: Subject, contest: Contest) -> Evaluation:
    print(f"evaluating {name} on {contest.worker.device} ...", flush=True)
    worker = make_worker(subject.judged, contest.worker.device)
    try:
        result = contest.evaluate(subject.agent, worker)
    finally:
        worker.close()
    if not np.isfinite(result.rewards).all():
        first = int(np.isfinite(result.rewards).all(axis=0).argmin())
        raise UserError(
            f"{name}: expected finite rewards, got others from episode {first} of the trial on; lower the "
            "step sizes that the agent adapts with, or look for such rewards in the environment"
        )
    return result


def _learn(contest: Contest) -> Evaluation:
    from rl2meta.experiments.scratch import learn_from_scratch  # loads Stable-Baselines3, which takes a while

    tasks, law = contest.held_out[: contest.scratch], contest.config.distribution

    def say(done: int) -> None:
        print(f"\r  {done}/{len(tasks)} tasks", end="" if done < len(tasks) else "\n", flush=True)

    print(f"training {SCRATCH}, SB3's, on each of {len(tasks)} tasks ...", flush=True)
    return learn_from_scratch(law, tasks, contest.episodes, contest.seed, say)


def _facts(contest: Contest, subjects: Mapping[str, Subject]) -> dict[str, Any]:
    played, num_tasks = contest.config.distribution, len(contest.held_out)
    return {
        "num_tasks": num_tasks,
        "seed": contest.seed,
        "episodes": contest.episodes,
        "distribution": str(played),
        "shared_with_training": any(
            shares_tasks(subject.trained.distribution, played, contest.seed, min(512, num_tasks))
            for subject in subjects.values()
        ),
        "device": str(contest.worker.device),
        "subjects": list(subjects),
    }


def _trained_with(trained: RunConfig, judged: RunConfig) -> dict[str, Any]:
    """Return the settings of training that are others when the agent is judged, as they were then."""
    then, now = trained.flat(), judged.flat()
    changed = [key for key in differing(then, now) if key in then and not key.startswith("evaluation.")]
    if trained.settings.training.episodes_per_trial != judged_episodes(judged):
        changed.append("training.episodes_per_trial")
    return {key: then[key] for key in changed}
