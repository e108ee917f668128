"""Writes an evaluation to files: evaluation.json, curves over episodes, and arrays."""

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rl2meta import levels
from rl2meta.errors import UserError
from rl2meta.evaluation import AgentResult, Array, Ceilings
from rl2meta.files import write_atomically, writing
from rl2meta.levels import difference, said

_ADAPTATION = ("episode", "mean", "low", "high", "regret_mean", "regret_low", "regret_high")
_DIGITS = 10  # of a number in a file; with few, a narrow interval around a large mean would have no width


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
    regret = any(evaluation.regrets is not None for evaluation in evaluations.values())
    best = _best_other(evaluations, facts.get("subjects", list(evaluations)[:1]), len(subject.rewards))
    report["best_reference"] = best
    with writing(folder):
        with open(folder / "arrays.npz", "wb") as file:
            np.savez_compressed(file, allow_pickle=False, **_arrays(evaluations))
        _write_curves(folder / ("regret.csv" if regret else "returns.csv"), evaluations, best)
        _write_adaptation(folder / "adaptation.csv", agents)
        write_atomically(folder / "evaluation.json", json.dumps(report, indent=2) + "\n")


def adaptation(evaluation: AgentResult) -> list[dict[str, float]]:
    """Return the mean return of an episode in each block, with 95 % intervals (``rl2meta.levels``).

    Each block has ``episode``, the number of episodes before it, and ``mean``, ``low`` and ``high`` of the
    return per episode; if the regret is known, also ``regret_mean``, ``regret_low`` and ``regret_high``.
    """
    bands = {"": levels.blocks(evaluation, "rewards")}
    if evaluation.regrets is not None:
        bands["regret_"] = levels.blocks(evaluation, "regrets")
    columns = {
        prefix + end: np.asarray(getattr(band, end))
        for prefix, band in bands.items()
        for end in ("mean", "low", "high")
    }
    return [
        {"episode": block * evaluation.episodes_per_block, **dict(zip(columns, map(float, row), strict=True))}
        for block, row in enumerate(zip(*columns.values(), strict=True))
    ]


def _summary(evaluation: AgentResult, subject: AgentResult) -> dict[str, Any]:
    """Return means, standard errors over tasks, intervals, and the paired difference to the first agent."""
    returns = levels.over_tasks(evaluation, levels.of_trials(evaluation))
    summary: dict[str, Any] = {
        "num_tasks": len(evaluation.rewards),
        "mean_return": float(returns.mean),
        "return_standard_error": float(returns.standard_error),
        "mean_regret": None,
        "regret_standard_error": None,
        "seconds": evaluation.seconds,
        **levels.both_levels(evaluation),
    }
    if evaluation.regrets is not None:
        regret = levels.over_tasks(evaluation, levels.of_trials(evaluation, "regrets"))
        summary |= {
            "mean_regret": float(regret.mean),
            "regret_standard_error": float(regret.standard_error),
        }
    if levels.is_group(evaluation):
        summary |= levels.summaries(evaluation, subject)
    if evaluation is not subject:
        summary["return_minus_first"] = said(difference(evaluation, subject))
    if evaluation.constants:
        summary["constants"] = dict(evaluation.constants)
    steps = {"episodes_per_block": evaluation.episodes_per_block, "adaptation": adaptation(evaluation)}
    return summary | steps


def _arrays(evaluations: Mapping[str, AgentResult]) -> dict[str, Array]:
    """Return rewards, regrets and steps by ``name/what``, and those of each seed by ``name/seedK/what``."""
    named = dict(evaluations)
    for name, evaluation in evaluations.items():
        seeds = zip(evaluation.seeds, evaluation.per_seed, strict=False)
        named |= {f"{name}/seed{seed}": result for seed, result in seeds}
    arrays = {
        f"{name}/{what}": getattr(result, what)
        for what in ("rewards", "regrets", "steps")
        for name, result in named.items()
    }
    return {name: array for name, array in arrays.items() if array is not None}


def _write_curves(path: Path, results: Mapping[str, AgentResult], best: str | None) -> None:
    """Write the cumulative curve of each agent over episodes, with its 95 % interval (``rl2meta.levels``).

    It is the regret of the agents whose regret is known, or the return if no regret is known. The column
    ``step`` is the number of steps so far, a mean over tasks. The columns ``gap``, ``gap_low`` and
    ``gap_high`` are the curve minus that of the agent called ``best``, paired in tasks; empty without one.
    """
    known = {name: result for name, result in results.items() if result.regrets is not None}
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["agent", "episode", "step", "mean", "low", "high", "gap", "gap_low", "gap_high"])
        for name, result in (known or results).items():
            band = levels.curve(result, "regrets" if known else "rewards")
            interactions = np.cumsum(result.steps.mean(axis=0, dtype=np.float64))
            gap = _gap(result, None if best is None else results[best])
            columns = np.stack([interactions, band.mean, band.low, band.high, *gap], axis=1)
            for episode, row in enumerate(columns, start=1):
                said = ("" if np.isnan(value) else f"{value:.{_DIGITS}g}" for value in row)
                writer.writerow([name, episode, *said])


def _best_other(results: Mapping[str, AgentResult], subjects: Sequence[str], num_tasks: int) -> str | None:
    """Return the agent of least regret on all tasks that was not trained; None if there is none."""
    finals = {
        name: float(result.regrets.sum(axis=1, dtype=np.float64).mean())
        for name, result in results.items()
        if name not in subjects and result.regrets is not None and len(result.regrets) == num_tasks
    }
    return min(finals, key=lambda name: finals[name], default=None)


def _gap(result: AgentResult, best: AgentResult | None) -> NDArray[np.float64]:
    """Return mean, low and high of an agent's curve minus the best one's, [3, episodes]; NaN without one."""
    if best is None:
        return np.full((3, result.rewards.shape[1]), np.nan)
    return np.stack(levels.curve_of_difference(result, best)[:3])


def _write_adaptation(path: Path, agents: Mapping[str, Mapping[str, Any]]) -> None:
    """Write the mean return of an episode in each block of each agent; unknown regrets stay empty."""
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["agent", "block", *_ADAPTATION])
        for name, said in agents.items():
            for block, row in enumerate(said["adaptation"]):
                values = (f"{row[key]:.{_DIGITS}g}" if key in row else "" for key in _ADAPTATION[1:])
                writer.writerow([name, block, row["episode"], *values])
