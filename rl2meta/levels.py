"""The two levels of sampling of an evaluation: held-out tasks, and training seeds with tasks.

An interval over tasks says what these agents earn on the law. An interval over training seeds and tasks says
what the method earns if somebody trains it again; only a group of several seeds has one. A group's intervals
are of this kind unless something else is said.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from rl2meta import aggregates
from rl2meta.distinct import Labels
from rl2meta.evaluation import AgentResult
from rl2meta.statistics import Interval, paired_difference

Values = NDArray[np.float64]
Of = Literal["rewards", "regrets"]


def merged(results: Sequence[AgentResult], seeds: Sequence[int]) -> AgentResult:
    """Return the results of a method: means over its training seeds, and the results of each seed.

    Args:
        results: of the agent of each seed, on the same tasks.
        seeds: of the trainings.
    """
    if len(results) == 1:
        return replace(results[0], seeds=tuple(seeds))
    known = [result.regrets for result in results if result.regrets is not None]
    return replace(
        results[0],
        rewards=_mean([result.rewards for result in results]),
        regrets=_mean(known) if known else None,
        steps=_mean([result.steps for result in results]),
        seconds=sum(result.seconds for result in results),
        seeds=tuple(seeds),
        per_seed=tuple(results),
    )


def is_group(result: AgentResult) -> bool:
    """Return whether a result is of several training seeds."""
    return len(result.per_seed) > 1


def of_trials(result: AgentResult, of: Of = "rewards") -> Values:
    """Return the return or the regret of each trial, [S, T]; S is 1 for anything but a group.

    Args:
        result: of an agent or a group.
        of: ``rewards`` for returns; ``regrets`` only where they are known.
    """
    return np.stack([array.sum(axis=1, dtype=np.float64) for array in _arrays(result, of)])


def interval(result: AgentResult, values: Values) -> Interval:
    """Return the mean of ``values`` with its 95 % interval: over seeds and tasks for a group.

    Args:
        result: says which tasks are the same.
        values: [S, T, ...]; every column has its own interval.
    """
    if len(values) == 1:
        return result.interval(values[0])
    return aggregates.curve_over_seeds(_shares(result, values))


def over_tasks(result: AgentResult, values: Values) -> Interval:
    """Return the mean of ``values``, [S, T, ...], with its 95 % interval over tasks alone."""
    return result.interval(values.mean(axis=0))


def curve(result: AgentResult, of: Of) -> Interval:
    """Return the cumulative curve over episodes with its interval; each field has the shape [episodes]."""
    return interval(result, np.stack([np.cumsum(each, 1, dtype=np.float64) for each in _arrays(result, of)]))


def curve_of_difference(result: AgentResult, other: AgentResult) -> Interval:
    """Return the curve of the regret minus that of an agent that is no group, paired in tasks."""
    both = min(len(result.rewards), len(other.rewards))
    (theirs,) = _arrays(other, "regrets")
    apart = [each[:both].astype(np.float64) - theirs[:both] for each in _arrays(result, "regrets")]
    return interval(result, np.cumsum(np.stack(apart), axis=2))


def blocks(result: AgentResult, of: Of) -> Interval:
    """Return the mean of an episode in each block of episodes with its interval; fields are [blocks]."""
    return interval(result, np.stack([result.per_block(each) for each in _arrays(result, of)]))


def difference(result: AgentResult, subject: AgentResult) -> Interval:
    """Return the difference between an agent's return and that of ``subject``, on their common tasks.

    The difference is paired in tasks. If one of them is a group, the interval is over seeds, too.
    """
    both = min(len(result.rewards), len(subject.rewards))
    ours, theirs = of_trials(result)[:, :both], of_trials(subject)[:, :both]
    if len(ours) == len(theirs) == 1:
        return paired_difference(ours[0], theirs[0], clusters=subject.clusters(both))
    a, b = (_shares(subject, each) for each in (ours, theirs))
    return aggregates.difference_over_seeds(a, b)


def interquartile_mean(result: AgentResult) -> Interval:
    """Return the interquartile mean of the returns with its 95 % interval, for a group over seeds, too."""
    return aggregates.over_seeds(by_task(result, of_trials(result)), aggregates.interquartile_mean)


def by_task(result: AgentResult, values: Values) -> Values:
    """Return means over the trials of each distinct task, [S, G, ...], which the bootstrap draws.

    Args:
        result: says which tasks are the same.
        values: [S, T, ...]
    """
    clusters = result.clusters(values.shape[1])
    if clusters is None:
        return values
    counts = np.bincount(np.unique(clusters, return_inverse=True)[1])
    return np.asarray(_sums(clusters, values) / counts.reshape(1, -1, *[1] * (values.ndim - 2)))


def said(interval: Interval) -> dict[str, float]:
    """Return a single interval for evaluation.json."""
    return {name: float(getattr(interval, name)) for name in ("mean", "low", "high")}


def both_levels(result: AgentResult) -> dict[str, Any]:
    """Return ``over_tasks`` and ``over_seeds`` of an agent for evaluation.json.

    For an agent that is no group, ``over_seeds`` repeats the interval over tasks; its ``seeds`` are one seed,
    or none for a reference, which is not trained.
    """
    known: dict[str, Values | None] = {"return": of_trials(result), "regret": _known_regrets(result)}
    tasks, seeds = (
        {name: None if x is None else said(level(result, x)) for name, x in known.items()}
        for level in (over_tasks, interval)
    )
    seeds |= {"seeds": list(result.seeds)}  # type: ignore[dict-item]
    return {"over_tasks": tasks, "over_seeds": seeds | _per_seed(result, known)}


def summaries(result: AgentResult, subject: AgentResult) -> dict[str, Any]:
    """Return more statistics of a group for evaluation.json; ``rl2meta.aggregates`` has the equations.

    The optimality gap is against the optimum of each task, its return and its regret together.
    """
    x, regrets = of_trials(result), _known_regrets(result)
    tasks = by_task(result, x)
    told: dict[str, Any] = {
        "median": said(aggregates.over_seeds(tasks, aggregates.median)),
        "interquartile_mean": said(interquartile_mean(result)),
    }
    if regrets is not None:
        told["optimality_gap"] = said(interval(result, aggregates.shortfall(x, (x + regrets).mean(axis=0))))
    if result is not subject and len(subject.rewards) == len(result.rewards):
        theirs = by_task(subject, of_trials(subject))
        told["probability_of_improvement"] = said(aggregates.improvement_over_seeds(tasks, theirs))
    return told


def _arrays(result: AgentResult, of: Of) -> list[NDArray[np.float32]]:
    return [getattr(each, of) for each in result.per_seed or (result,)]


def _known_regrets(result: AgentResult) -> Values | None:
    return None if result.regrets is None else of_trials(result, "regrets")


def _shares(result: AgentResult, values: Values) -> Values:
    """Return what each distinct task has to say about the mean over trials, for the bootstrap, [S, G, ...].

    x̄ + G / T · Σ (X_st − x̄) over the trials t of a task, of G distinct tasks. The mean of these is that of
    all trials, and with equal seeds they spread as the sums u_g of ``statistics.mean_interval`` do, also if
    some tasks have more trials than others. Means over the trials of each task would weigh these alike.

    Args:
        result: says which tasks are the same.
        values: [S, T, ...]
    """
    clusters = result.clusters(values.shape[1])
    if clusters is None:
        return values
    mean = values.mean(axis=(0, 1))
    sums = _sums(clusters, values - mean)
    return np.asarray(mean + sums * (sums.shape[1] / values.shape[1]))


def _sums(clusters: Labels, values: Values) -> Values:
    """Return sums over the trials of each distinct task, [S, G, ...]."""
    order = np.argsort(clusters, kind="stable")
    _, starts = np.unique(clusters[order], return_index=True)
    return np.asarray(np.add.reduceat(values[:, order], starts, axis=1))


def _per_seed(result: AgentResult, known: dict[str, Values | None]) -> dict[str, Any]:
    """Return the means of each seed of a group."""
    if not is_group(result):
        return {}
    means = {f"mean_{name}": x.mean(axis=1) for name, x in known.items() if x is not None}
    return {
        "per_seed": [
            {"seed": seed, **{name: float(each[i]) for name, each in means.items()}}
            for i, seed in enumerate(result.seeds)
        ]
    }


def _mean(arrays: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    return np.asarray(np.mean(arrays, axis=0, dtype=np.float64), dtype=np.float32)
