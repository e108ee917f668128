"""Evaluate agents on held-out tasks: returns, and regret against the optimum of each task."""

import csv
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rl2meta.distinct import Labels, repeated
from rl2meta.errors import UserError
from rl2meta.files import write_atomically, writing
from rl2meta.randomness import derive
from rl2meta.rollout import RolloutWorker
from rl2meta.statistics import Interval, mean_interval, paired_difference
from rl2meta.tasks import TaskDistribution, Tasks, TensorTasks, sample_tasks
from rl2meta.trial import Agent, Trial

Array = NDArray[np.float32]
TENSORS_TOGETHER, SINGLES_TOGETHER = 2_500, 100
"""Tasks in a batch of an evaluation, for tensor tasks and for single environments; each has its own seed."""
_ADAPTATION = ("episode", "mean", "low", "high", "regret_mean", "regret_low", "regret_high")
_DIGITS = 10  # of a number in a file; with few, a narrow interval around a large mean would have no width
_OPTIMUM_SAMPLE, _OPTIMUM_CHUNKS = 2**16, 64


@dataclass(frozen=True)
class AgentResult:
    """Results of one agent on held-out tasks, by task and episode.

    Attributes:
        rewards: [num_tasks, episodes], the sum over the steps of an episode of the expected rewards, or of
            the
            sampled rewards if the family provides no expected rewards.
        regrets: [num_tasks, episodes], the expected regret, or None if the optimum is unknown.
        steps: [num_tasks, episodes], number of steps.
        seconds: duration of the evaluation.
        episodes_per_block: number of consecutive episodes between two adaptations of the agent.
        constants: tuned constants of the agent, by name.
        labels: [num_tasks], equal exactly for equal tasks (``rl2meta.distinct``); None if all differ.
    """

    rewards: Array
    regrets: Array | None
    steps: Array
    seconds: float
    episodes_per_block: int = 1
    constants: Mapping[str, float] = field(default_factory=dict)
    labels: Labels | None = None

    def returns(self) -> NDArray[np.float64]:
        """Return the sum of all rewards of each trial, [num_tasks]."""
        return np.asarray(self.rewards.sum(axis=1, dtype=np.float64))

    def interval(self, values: Array | NDArray[np.float64]) -> Interval:
        """Return the mean of ``values``, [num_tasks, ...], with its 95 % interval over distinct tasks."""
        return mean_interval(values, clusters=self.clusters(len(values)))

    def clusters(self, num_tasks: int) -> Labels | None:
        """Return the labels of the first tasks if some of them are the same task, else None."""
        return None if self.labels is None else repeated(self.labels[:num_tasks])

    def per_block(self, values: Array) -> NDArray[np.float64]:
        """Return the mean of ``values``, [num_tasks, episodes], in each block, [num_tasks, blocks]."""
        blocks = values.reshape(len(values), -1, self.episodes_per_block)
        return np.asarray(blocks.mean(axis=2, dtype=np.float64))


@dataclass(frozen=True)
class Ceilings:
    """Values of a trial that no agent can beat.

    Attributes:
        oracle_return: the best expected return if the task is known, a mean over the tasks of the evaluation;
            or None.
        bayes_optimal_return: the best expected return for an agent that knows only the law, a mean over the
            law; or None.
        bayes_optimal_regret: the regret of that agent, or None.
    """

    oracle_return: float | None
    bayes_optimal_return: float | None
    bayes_optimal_regret: float | None


def evaluate(
    agent: Agent[Any],
    worker: RolloutWorker,
    tasks: Tasks,
    num_episodes: int,
    seed: int,
    played: Callable[[int], None] = lambda trials: None,
) -> AgentResult:
    """Run one trial on every task and keep the expected reward and the regret of each episode.

    Tasks run in batches of a fixed size. The random streams of a batch depend only on ``seed`` and on the
    number of its first task. So agents with the same seed have the same tasks and, if their environments make
    draws in the same order, the same luck. With more tasks, the first batches stay the same. Memory limits,
    worker processes and lanes do not change the streams. All steps count, also those before an adaptation.

    Memory holds the trials of one batch, and twice as much at its end: a step of a task takes about 40 bytes,
    4 bytes for each number in an action, and its observation. So 2,500 trials of 1,000 steps take about
    150 MB, and 100 trials of 1,000 images of 84 × 84 × 3 bytes take 2 GB; 100 tasks on 20 lanes of
    environments of 1.2 MB take 2.4 GB in the workers.

    After each batch, ``played`` is called with its number of trials.
    """
    began = time.perf_counter()
    parts = list(_batches(agent, worker, tasks, num_episodes, seed, played))
    whole = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    seconds = time.perf_counter() - began
    block = (agent.phase.episodes or 1) * agent.phase.lanes_per_task
    return AgentResult(whole["rewards"], whole.get("regrets"), whole["steps"], seconds, block)


def ceilings(distribution: TaskDistribution, tasks: Tasks, num_episodes: int, seed: int = 0) -> Ceilings:
    """Return the ceilings of an evaluation on ``tasks``; None where they are unknown."""
    optimum = distribution.optimal_return(tasks)
    oracle = None if optimum is None else num_episodes * float(optimum.double().mean())
    bayes = distribution.bayes_optimal_return(num_episodes)
    if bayes is None:
        return Ceilings(oracle, None, None)
    # The Bayes-optimal return is a mean over the law, so its regret needs the mean optimum over the law. With
    # the few tasks of the evaluation, sampling noise could be larger than the regret.
    optima = [
        distribution.optimal_return(sample_tasks(distribution, _OPTIMUM_SAMPLE, derive(seed, chunk), "test"))
        for chunk in range(_OPTIMUM_CHUNKS)
    ]
    means = [float(each.double().mean()) for each in optima if each is not None]
    return Ceilings(oracle, bayes, num_episodes * sum(means) / len(means) - bayes if means else None)


def write_evaluation(
    folder: Path, evaluations: Mapping[str, AgentResult], ceilings: Ceilings, facts: Mapping[str, Any]
) -> None:
    """Write evaluation.json, regret.csv (or returns.csv), adaptation.csv and arrays.npz into ``folder``.

    Args:
        folder: an empty folder.
        evaluations: by name, the trained agent first; all on the same tasks, or on the first ones of them.
        ceilings: the exact values beside them.
        facts: further entries of ``evaluation.json`` (num_tasks, seed, ...).

    Raises:
        UserError: if the folder is not empty, or writing fails.
    """
    if any(folder.iterdir()):
        raise UserError(f"expected an empty folder for the evaluation, got {folder} with something in it")
    subject = next(iter(evaluations.values()))
    agents = {name: _summary(evaluation, subject) for name, evaluation in evaluations.items()}
    report = {"episodes": subject.rewards.shape[1], **facts, **ceilings.__dict__, "agents": agents}
    arrays = {f"{name}/rewards": evaluation.rewards for name, evaluation in evaluations.items()}
    known = {name: evaluation.regrets for name, evaluation in evaluations.items()}
    regrets = {name: regret for name, regret in known.items() if regret is not None}
    arrays |= {f"{name}/regrets": regret for name, regret in regrets.items()}
    arrays |= {f"{name}/steps": evaluation.steps for name, evaluation in evaluations.items()}
    values = regrets or {name: evaluation.rewards for name, evaluation in evaluations.items()}
    best = _best_other(regrets, facts.get("subjects", list(evaluations)[:1]), len(subject.rewards))
    report["best_reference"] = best
    with writing(folder):
        with open(folder / "arrays.npz", "wb") as file:
            np.savez_compressed(file, allow_pickle=False, **arrays)
        _write_curves(folder / ("regret.csv" if regrets else "returns.csv"), values, evaluations, best)
        _write_adaptation(folder / "adaptation.csv", agents)
        write_atomically(folder / "evaluation.json", json.dumps(report, indent=2) + "\n")


def difference(evaluation: AgentResult, subject: AgentResult) -> Interval:
    """Return the difference between an agent's return and that of ``subject``, on their common tasks."""
    both = min(len(evaluation.rewards), len(subject.rewards))
    clusters = subject.clusters(both)
    return paired_difference(evaluation.returns()[:both], subject.returns()[:both], clusters=clusters)


def adaptation(evaluation: AgentResult) -> list[dict[str, float]]:
    """Return the mean return of an episode in each block, with 95 % intervals over tasks.

    Each block has ``episode``, the number of episodes before it, and ``mean``, ``low`` and ``high`` of the
    return per episode; if the regret is known, also ``regret_mean``, ``regret_low`` and ``regret_high``.
    """
    known = {"": evaluation.rewards, "regret_": evaluation.regrets}
    columns: dict[str, NDArray[np.float64]] = {}
    for prefix, values in known.items():
        if values is not None:
            band = evaluation.interval(evaluation.per_block(values))
            columns |= {prefix + end: np.asarray(getattr(band, end)) for end in ("mean", "low", "high")}
    return [
        {"episode": block * evaluation.episodes_per_block, **dict(zip(columns, map(float, row), strict=True))}
        for block, row in enumerate(zip(*columns.values(), strict=True))
    ]


def _batches(
    agent: Agent[Any],
    worker: RolloutWorker,
    tasks: Tasks,
    num_episodes: int,
    seed: int,
    played: Callable[[int], None],
) -> Iterator[dict[str, Array]]:
    """Yield the results of each batch; its trial, which is much larger, is not kept."""
    together = TENSORS_TOGETHER if isinstance(tasks, TensorTasks) else SINGLES_TOGETHER
    for start in range(0, len(tasks), together):
        part = tasks[start : start + together]
        yield _per_episode(worker.run(agent, part, num_episodes, derive(seed, "evaluate", start)))
        played(len(part))


def _per_episode(trial: Trial) -> dict[str, Array]:
    emits_expectation = trial.phases[0].named("expected_reward") is not None
    fields = {
        "rewards": "expected_reward" if emits_expectation else "reward",
        "regrets": "regret",
        "steps": "mask",
    }
    sums = {ours: trial.per_episode(theirs) for ours, theirs in fields.items()}
    return {name: each.float().cpu().numpy() for name, each in sums.items() if each is not None}


def _summary(evaluation: AgentResult, subject: AgentResult) -> dict[str, Any]:
    """Return means with standard errors and intervals, and the paired difference to the first agent."""
    returns = evaluation.interval(evaluation.returns())
    summary: dict[str, Any] = {
        "num_tasks": len(evaluation.rewards),
        "mean_return": float(returns.mean),
        "return_standard_error": float(returns.standard_error),
        "mean_regret": None,
        "regret_standard_error": None,
        "seconds": evaluation.seconds,
        "over_tasks": {"return": _ends(returns), "regret": None},
    }
    if evaluation.regrets is not None:
        regret = evaluation.interval(evaluation.regrets.sum(axis=1, dtype=np.float64))
        summary["over_tasks"]["regret"] = _ends(regret)
        summary |= {
            "mean_regret": float(regret.mean),
            "regret_standard_error": float(regret.standard_error),
        }
    if evaluation is not subject:
        summary["return_minus_first"] = _ends(difference(evaluation, subject))
    if evaluation.constants:
        summary["constants"] = dict(evaluation.constants)
    steps = {"episodes_per_block": evaluation.episodes_per_block, "adaptation": adaptation(evaluation)}
    return summary | steps


def _ends(interval: Interval) -> dict[str, float]:
    return {key: float(getattr(interval, key)) for key in ("mean", "low", "high")}


def _write_curves(
    path: Path, curves: Mapping[str, Array], results: Mapping[str, AgentResult], best: str | None
) -> None:
    """Write the cumulative curve of each agent over episodes, with a 95 % interval over tasks.

    The column ``step`` is the number of steps so far, a mean over tasks. The columns ``gap``, ``gap_low`` and
    ``gap_high`` are the curve minus that of the agent called ``best``, paired in tasks; empty without one.
    """
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["agent", "episode", "step", "mean", "low", "high", "gap", "gap_low", "gap_high"])
        for name, values in curves.items():
            band = results[name].interval(np.cumsum(values, axis=1, dtype=np.float64))
            interactions = np.cumsum(results[name].steps.mean(axis=0, dtype=np.float64))
            columns = np.stack([interactions, *band[:3], *_gap(curves, results, name, best)], axis=1)
            for episode, row in enumerate(columns, start=1):
                known = ("" if np.isnan(value) else f"{value:.{_DIGITS}g}" for value in row)
                writer.writerow([name, episode, *known])


def _best_other(regrets: Mapping[str, Array], subjects: Sequence[str], num_tasks: int) -> str | None:
    """Return the agent of least regret on all tasks that was not trained; None if there is none."""
    finals = {
        name: float(regret.sum(axis=1, dtype=np.float64).mean())
        for name, regret in regrets.items()
        if name not in subjects and len(regret) == num_tasks
    }
    return min(finals, key=lambda name: finals[name], default=None)


def _gap(
    curves: Mapping[str, Array], results: Mapping[str, AgentResult], name: str, best: str | None
) -> NDArray[np.float64]:
    """Return mean, low and high of an agent's curve minus the best one's, [3, episodes]; NaN without one."""
    if best is None:
        return np.full((3, curves[name].shape[1]), np.nan)
    both = min(len(curves[name]), len(curves[best]))
    apart = curves[name][:both].astype(np.float64) - curves[best][:both]  # [both, episodes]
    return np.stack(results[best].interval(np.cumsum(apart, axis=1))[:3])


def _write_adaptation(path: Path, agents: Mapping[str, Mapping[str, Any]]) -> None:
    """Write the mean return of an episode in each block of each agent; unknown regrets stay empty."""
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["agent", "block", *_ADAPTATION])
        for name, said in agents.items():
            for block, row in enumerate(said["adaptation"]):
                values = (f"{row[key]:.{_DIGITS}g}" if key in row else "" for key in _ADAPTATION[1:])
                writer.writerow([name, block, row["episode"], *values])
