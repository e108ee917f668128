"""Agents on held-out tasks: what they earned and what it cost them not to know the task."""

import csv
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rl2meta.errors import UserError
from rl2meta.files import write_atomically, writing
from rl2meta.randomness import derive
from rl2meta.rollout import RolloutWorker
from rl2meta.statistics import Interval, mean_interval, paired_difference
from rl2meta.tasks import TaskDistribution, Tasks, TensorTasks, sample_tasks
from rl2meta.trial import Agent, Trial

Array = NDArray[np.float32]
TENSORS_TOGETHER, SINGLES_TOGETHER = 2_500, 100
"""Tasks that are evaluated together, on streams of their own: tensors, and single environments."""
_ADAPTATION = ("episode", "mean", "low", "high", "regret_mean", "regret_low", "regret_high")
_OPTIMUM_SAMPLE, _OPTIMUM_CHUNKS = 2**16, 64


@dataclass(frozen=True)
class AgentResult:
    """One agent on held-out tasks, episode by episode.

    Attributes:
        rewards: [num_tasks, episodes], the sum of the expected rewards of each episode's steps where the
            family emits them, else of the sampled ones.
        regrets: [num_tasks, episodes], the expected regret, or None where no optimum is known.
        steps: [num_tasks, episodes], how many steps there were.
        seconds: how long it took.
        episodes_per_block: consecutive episodes that were lived with the same knowledge: the agent adapts
            between such blocks.
        constants: the constants of the agent that were chosen for it, by name.
    """

    rewards: Array
    regrets: Array | None
    steps: Array
    seconds: float
    episodes_per_block: int = 1
    constants: Mapping[str, float] = field(default_factory=dict)

    def returns(self) -> NDArray[np.float64]:
        """Return the sum of all rewards of each trial, [num_tasks]."""
        return np.asarray(self.rewards.sum(axis=1, dtype=np.float64))

    def per_block(self, values: Array) -> NDArray[np.float64]:
        """Return the mean of ``values``, [num_tasks, episodes], in each block, [num_tasks, blocks]."""
        blocks = values.reshape(len(values), -1, self.episodes_per_block)
        return np.asarray(blocks.mean(axis=2, dtype=np.float64))


@dataclass(frozen=True)
class Ceilings:
    """What no agent can beat, for a trial.

    Attributes:
        oracle_return: the mean of the best expected return with the task known, over the evaluation's tasks,
            or None.
        bayes_optimal_return: the best that an agent which knows only the law can reach on average over the
            law, or None.
        bayes_optimal_regret: the regret of that agent, or None.
    """

    oracle_return: float | None
    bayes_optimal_return: float | None
    bayes_optimal_regret: float | None


def evaluate(
    agent: Agent[Any], worker: RolloutWorker, tasks: Tasks, num_episodes: int, seed: int
) -> AgentResult:
    """Run one trial on every task and keep expected reward and regret of each episode.

    Tasks run in batches of a fixed size, each on the streams of ``seed`` and of the number of its first task.
    Nothing else decides the streams: agents that are given the same seed are paired in tasks and, where their
    environments draw in the same order, in luck; the first batches of more tasks are the same; and no memory
    bound, number of worker processes or of lanes moves them. Every interaction counts, those before an
    adaptation too.

    The trials of one batch are held in memory, at the end twice: a step of a task takes about 40 bytes, 4 for
    each number in an action, and what its observation takes. So 2,500 trials of 1,000 steps take some 150 MB,
    and 100 trials of 1,000 pictures of 84 × 84 × 3 bytes take 2 GB; 100 tasks on 20 lanes of environments
    of 1.2 MB take 2.4 GB in the workers.
    """
    began = time.perf_counter()
    parts = list(_batches(agent, worker, tasks, num_episodes, seed))
    whole = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    seconds = time.perf_counter() - began
    block = (agent.phase.episodes or 1) * agent.phase.lanes_per_task
    return AgentResult(whole["rewards"], whole.get("regrets"), whole["steps"], seconds, block)


def ceilings(distribution: TaskDistribution, tasks: Tasks, num_episodes: int, seed: int = 0) -> Ceilings:
    """Return the exact values that an evaluation on ``tasks`` is measured against, where they are known."""
    optimum = distribution.optimal_return(tasks)
    oracle = None if optimum is None else num_episodes * float(optimum.double().mean())
    bayes = distribution.bayes_optimal_return(num_episodes)
    if bayes is None:
        return Ceilings(oracle, None, None)
    # The Bayes-optimal return is a mean over the law, so its regret needs the optimum's mean over the law,
    # not over the few tasks at hand: their luck can exceed the regret.
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
        evaluations: by name, the trained agent first; all on the same tasks, or on the first of them.
        ceilings: the exact values beside them.
        facts: what else ``evaluation.json`` says (num_tasks, seed, ...).

    Raises:
        UserError: if the folder has something in it, or the disk refuses.
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
    curves = {name: (value, evaluations[name].steps) for name, value in values.items()}
    with writing(folder):
        with open(folder / "arrays.npz", "wb") as file:
            np.savez_compressed(file, allow_pickle=False, **arrays)
        _write_curves(folder / ("regret.csv" if regrets else "returns.csv"), curves)
        _write_adaptation(folder / "adaptation.csv", agents)
        write_atomically(folder / "evaluation.json", json.dumps(report, indent=2) + "\n")


def difference(evaluation: AgentResult, subject: AgentResult) -> Interval:
    """Return how much more than ``subject`` an agent earned on the tasks that both were put on."""
    both = min(len(evaluation.rewards), len(subject.rewards))
    return paired_difference(evaluation.returns()[:both], subject.returns()[:both])


def adaptation(evaluation: AgentResult) -> list[dict[str, float]]:
    """Return what an episode brought in each block, with 95 % intervals over tasks.

    Each block has ``episode``, the episodes lived through before it, and ``mean``, ``low`` and ``high`` of
    the return per episode; where it is known also ``regret_mean``, ``regret_low`` and ``regret_high``.
    """
    known = {"": evaluation.rewards, "regret_": evaluation.regrets}
    columns: dict[str, NDArray[np.float64]] = {}
    for prefix, values in known.items():
        if values is not None:
            band = mean_interval(evaluation.per_block(values))
            columns |= {prefix + end: np.asarray(getattr(band, end)) for end in ("mean", "low", "high")}
    return [
        {"episode": block * evaluation.episodes_per_block, **dict(zip(columns, map(float, row), strict=True))}
        for block, row in enumerate(zip(*columns.values(), strict=True))
    ]


def _batches(
    agent: Agent[Any], worker: RolloutWorker, tasks: Tasks, num_episodes: int, seed: int
) -> Iterator[dict[str, Array]]:
    """Yield what is kept of each batch; its trial, by far the larger, is not kept."""
    together = TENSORS_TOGETHER if isinstance(tasks, TensorTasks) else SINGLES_TOGETHER
    for start in range(0, len(tasks), together):
        part = tasks[start : start + together]
        yield _per_episode(worker.run(agent, part, num_episodes, derive(seed, "evaluate", start)))


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
    """Means with standard errors, and the paired difference to the first agent in the report."""
    returns = mean_interval(evaluation.returns())
    summary: dict[str, Any] = {
        "num_tasks": len(evaluation.rewards),
        "mean_return": float(returns.mean),
        "return_standard_error": float(returns.standard_error),
        "mean_regret": None,
        "regret_standard_error": None,
        "seconds": evaluation.seconds,
    }
    if evaluation.regrets is not None:
        regret = mean_interval(evaluation.regrets.sum(axis=1, dtype=np.float64))
        summary |= {
            "mean_regret": float(regret.mean),
            "regret_standard_error": float(regret.standard_error),
        }
    if evaluation is not subject:
        gap = difference(evaluation, subject)
        summary["return_minus_first"] = {
            "mean": float(gap.mean),
            "low": float(gap.low),
            "high": float(gap.high),
        }
    if evaluation.constants:
        summary["constants"] = dict(evaluation.constants)
    steps = {"episodes_per_block": evaluation.episodes_per_block, "adaptation": adaptation(evaluation)}
    return summary | steps


def _write_curves(path: Path, curves: Mapping[str, tuple[Array, Array]]) -> None:
    """Write the cumulative curve of each agent over episodes with a 95 % interval over tasks.

    The column ``step`` is the number of interactions so far, in the mean over tasks.
    """
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["agent", "episode", "step", "mean", "low", "high"])
        for name, (values, steps) in curves.items():
            band = mean_interval(np.cumsum(values, axis=1, dtype=np.float64))
            interactions = np.cumsum(steps.mean(axis=0, dtype=np.float64))
            columns = np.stack([interactions, band.mean, band.low, band.high], axis=1)
            for episode, row in enumerate(columns, start=1):
                writer.writerow([name, episode, *(f"{value:.6g}" for value in row)])


def _write_adaptation(path: Path, agents: Mapping[str, Mapping[str, Any]]) -> None:
    """Write what an episode brought each agent after so many episodes; empty where no regret is known."""
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["agent", "block", *_ADAPTATION])
        for name, said in agents.items():
            for block, row in enumerate(said["adaptation"]):
                values = (f"{row[key]:.6g}" if key in row else "" for key in _ADAPTATION[1:])
                writer.writerow([name, block, row["episode"], *values])
