"""How many seconds of training a shipped config needs to a stated score on held-out tasks."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from rl2meta.errors import UserError
from rl2meta.evaluation import evaluate
from rl2meta.experiments.components import make_learner, read_config
from rl2meta.experiments.composition import train_learner
from rl2meta.experiments.config import RunConfig
from rl2meta.rollout import RolloutWorker
from rl2meta.statistics import Interval, mean_interval
from rl2meta.tasks import sample_tasks
from rl2meta.training import TrainingDiverged

TARGETS: Mapping[str, float] = {
    "rl2_bandit": 6.593,  # 99 % of the Bayes-optimal 6.660
    "rl2_bandit_n100_k5": 78.0,
    "rl2_mdp_n10": 156.2,
}
"""The mean return over held-out tasks that a config's agent is to reach, by the config's name."""
TASKS, SEED = 10_000, 0  # of every evaluation
_FIRST, _STEP, _GROWTH = 1.0, 1.0, 1.15  # seconds before the first evaluation; to the next, whichever is more


def measure_learning(
    configs: Sequence[str],
    seeds: int,
    device: torch.device,
    threads: int,
    save: Callable[[Mapping[str, Any]], None],
) -> dict[str, Any]:
    """Train each config once for each of the training seeds 0, 1, ..., and return how its score grew.

    Seconds are those of training: the clock stands still while the agent is judged, which happens after one
    second, then whenever 15 % more have passed and at least one, and after the last update.

    Args:
        configs: names in ``TARGETS``.
        seeds: how many runs of each, at least 1.
        device: where to train and judge.
        threads: the CPU threads that torch has been given, for the record; what the configs say of them does
            not count.
        save: called with the report so far after every run.

    Returns:
        By config: ``target``; ``setting`` with its sections ``agent`` and ``training``, ``threads`` and the
        number of ``tasks`` it is judged on; and ``runs``. Each of these has ``seed``; ``curve``, a list of
        points with ``seconds``, ``update``, ``env_steps``, ``score`` (the mean return over tasks) and
        ``standard_error``; ``seconds_to_score`` and ``env_steps_to_score`` of the first point at the target
        or above, None if there is none; ``seconds`` in all, ``final_score`` and ``final_standard_error``.

    Raises:
        UserError: if a run diverges.
    """
    report: dict[str, Any] = {}
    for name in configs:
        for seed in range(seeds):
            config = read_config(name, [f"seed={seed}"])
            said = report.setdefault(
                name, {"target": TARGETS[name], "setting": _setting(config, threads), "runs": []}
            )
            said["runs"].append(_summary(seed, _curve(name, config, device), said["target"]))
            save(report)
    return report


def learning_table(report: Mapping[str, Any]) -> list[str]:
    """Return a line for each config: seconds to its score and in all, and final scores, seed by seed.

    Final scores are means over tasks ± standard errors.
    """
    width = max(len(name) for name in report)
    return [f"{name:{width}}  {_line(said)}" for name, said in report.items()]


def _line(said: Mapping[str, Any]) -> str:
    runs = said["runs"]
    times = [run["seconds_to_score"] for run in runs]
    reached = ", ".join("not reached" if time is None else f"{time:.1f} s" for time in times)
    totals = ", ".join(f"{run['seconds']:.1f} s" for run in runs)
    finals = ", ".join(f"{run['final_score']:.3f} ± {run['final_standard_error']:.3f}" for run in runs)
    return f"{said['target']:g}: {reached}; in all {totals}: {finals}"


def _setting(config: RunConfig, threads: int) -> dict[str, Any]:
    return {
        "agent": {"name": config.agent_name, **config.agent.model_dump()},
        "training": config.settings.training.model_dump(),
        "threads": threads,
        "tasks": TASKS,
    }


def _summary(seed: int, curve: Sequence[Mapping[str, float]], target: float) -> dict[str, Any]:
    first = next((point for point in curve if point["score"] >= target), {})
    last = curve[-1]
    return {
        "seed": seed,
        "seconds_to_score": first.get("seconds"),
        "env_steps_to_score": first.get("env_steps"),
        "seconds": last["seconds"],
        "final_score": last["score"],
        "final_standard_error": last["standard_error"],
        "curve": list(curve),
    }


def _curve(name: str, config: RunConfig, device: torch.device) -> list[dict[str, float]]:
    """Train, and return the points at which the agent was judged; there is at least the last update's."""
    settings, law = config.settings, config.distribution
    learner = make_learner(config, device)
    held_out = sample_tasks(law, TASKS, SEED, "test")
    judging = RolloutWorker(law, device)  # another one, so that training keeps its environments

    def judge() -> Interval:
        episodes = settings.training.episodes_per_trial
        return mean_interval(evaluate(learner.agent, judging, held_out, episodes, SEED).returns())

    watch = _Watch(f"{name} seed {settings.seed}", settings.training.updates, judge)
    try:
        train_learner(config, learner, device, watch.record)
    except TrainingDiverged as error:
        raise UserError(f"{name} seed {settings.seed}: training diverged at {error}") from None
    finally:
        judging.close()
    return watch.curve


class _Watch:
    """Adds up the seconds of a run's updates and has its agent judged at intervals that grow.

    Args:
        label: what the run is called.
        updates: how many it has.
        judge: returns the agent's mean return.
    """

    def __init__(self, label: str, updates: int, judge: Callable[[], Interval]) -> None:
        self.curve: list[dict[str, float]] = []
        self._label, self._updates, self._judge = label, updates, judge
        self._seconds, self._due = 0.0, _FIRST

    def record(self, row: Mapping[str, Any]) -> bool:
        """Take note of an update; never stop the run."""
        self._seconds += row["seconds"]
        if self._seconds >= self._due or row["update"] == self._updates:
            self._due = max(self._seconds + _STEP, self._seconds * _GROWTH)
            self._add(row)
        return False

    def _add(self, row: Mapping[str, Any]) -> None:
        score = self._judge()
        mean, error, steps = float(score.mean), float(score.standard_error), row["env_steps"]
        self.curve.append(
            {
                "seconds": self._seconds,
                "update": row["update"],
                "env_steps": steps,
                "score": mean,
                "standard_error": error,
            }
        )
        said = f"{self._seconds:.1f} s, {steps / 1e6:.1f} M steps, {mean:.3f} ± {error:.3f}"
        print(f"{self._label}: {said}", flush=True)
