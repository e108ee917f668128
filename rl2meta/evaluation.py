"""Evaluate agents on held-out tasks: returns, and regret against the optimum of each task."""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rl2meta.distinct import Labels, repeated
from rl2meta.randomness import derive
from rl2meta.ranks import ONE, Ranks
from rl2meta.rollout import RolloutWorker
from rl2meta.statistics import Interval, mean_interval
from rl2meta.tasks import TaskDistribution, Tasks, TensorTasks, sample_tasks
from rl2meta.trial import Agent, Trial

Array = NDArray[np.float32]
TENSORS_TOGETHER, SINGLES_TOGETHER = 2_500, 100
"""Tasks in a batch of an evaluation, for tensor tasks and for single environments; each has its own seed."""
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
        seeds: the seed of its training, or of each training of a group; none for a reference.
        per_seed: for a group, the results of the agent of each seed; its arrays are then means over these.
    """

    rewards: Array
    regrets: Array | None
    steps: Array
    seconds: float
    episodes_per_block: int = 1
    constants: Mapping[str, float] = field(default_factory=dict)
    labels: Labels | None = None
    seeds: tuple[int, ...] = ()
    per_seed: "tuple[AgentResult, ...]" = ()

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
    ranks: Ranks = ONE,
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

    Ranks share the batches, each of which one of them runs; all return the results of all.
    """
    began = time.perf_counter()
    dealt = _batches(agent, worker, tasks, num_episodes, seed, played, ranks)
    parts = _gathered(ranks.together(lambda: dict(dealt)), ranks)
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


def _batches(
    agent: Agent[Any],
    worker: RolloutWorker,
    tasks: Tasks,
    num_episodes: int,
    seed: int,
    played: Callable[[int], None],
    ranks: Ranks,
) -> Iterator[tuple[int, dict[str, Array]]]:
    """Yield the first task and the results of each batch of this rank; the trial is larger, and not kept."""
    together = TENSORS_TOGETHER if isinstance(tasks, TensorTasks) else SINGLES_TOGETHER
    for number, start in enumerate(range(0, len(tasks), together)):
        part = tasks[start : start + together]
        if number % ranks.size == ranks.number:
            trial = worker.run(agent, part, num_episodes, derive(seed, "evaluate", start))
            yield start, _per_episode(trial)
        played(len(part))


def _gathered(own: Mapping[int, dict[str, Array]], ranks: Ranks) -> list[dict[str, Array]]:
    """Return the results of the batches of all ranks, in the order of the tasks."""
    if ranks.size == 1:
        return list(own.values())
    mine = {f"{start} {name}": torch.from_numpy(x) for start, part in own.items() for name, x in part.items()}
    parts: dict[int, dict[str, Array]] = {}
    for key, tensor in (pair for given in ranks.gather_tensors(mine) for pair in given.items()):
        start, name = key.split(" ")
        parts.setdefault(int(start), {})[name] = tensor.numpy()
    return [parts[start] for start in sorted(parts)]


def _per_episode(trial: Trial) -> dict[str, Array]:
    emits_expectation = trial.phases[0].named("expected_reward") is not None
    fields = {
        "rewards": "expected_reward" if emits_expectation else "reward",
        "regrets": "regret",
        "steps": "mask",
    }
    sums = {ours: trial.per_episode(theirs) for ours, theirs in fields.items()}
    return {name: each.float().cpu().numpy() for name, each in sums.items() if each is not None}
