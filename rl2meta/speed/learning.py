"""How many seconds of training a shipped config needs until it reaches a stated score on held-out tasks."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any

import torch

from rl2meta.errors import UserError
from rl2meta.evaluation import AgentResult, evaluate
from rl2meta.experiments.components import make_learner, read_config
from rl2meta.experiments.composition import train_learner
from rl2meta.experiments.config import RunConfig
from rl2meta.experiments.held_out import HeldOut
from rl2meta.statistics import Interval, mean_interval
from rl2meta.training import TrainingDiverged

TARGETS: Mapping[str, float] = {
    "rl2_bandit": 6.593,  # 99 % of the Bayes-optimal 6.660
    "rl2_bandit_n100_k5": 78.0,
    "rl2_mdp_n10": 156.2,
    "slot_mdp_n10": 160.0,
    "slot_mdp_n25": 450.0,
    "maml_navigation": -1200.0,  # of 60 episodes, of which 20 come before each gradient step
    "rl2_cartpole": 370.0,  # of two episodes of at most 200
}
"""By the config's name: the mean return over held-out tasks that its agent is to reach."""
FEWER_TASKS: Mapping[str, int] = {
    "slot_mdp_n10": 2_000,
    "slot_mdp_n25": 1_000,
    "maml_navigation": 200,
    "rl2_cartpole": 200,
}
"""By the config's name: how many tasks its agent is judged on, where a trial takes long."""


@dataclass(frozen=True)
class LearningSuite:
    """Which score each config is to reach, and how its agent is judged while it trains.

    The agent is judged as soon as ``first_seconds`` have passed; then whenever ``more_seconds`` have passed
    and the seconds have grown by the factor ``growth``; and after the last update.

    Attributes:
        targets: by config, the mean return that its agent is to reach. A config is the name of a shipped one
            or a YAML file.
        overrides: settings that are changed in every config, such as "training.updates=20".
        tasks: the number of held-out tasks that the agent is judged on.
        fewer_tasks: by config, other numbers of them.
        seed: the seed of these tasks and of every evaluation.
        first_seconds: seconds of training before the first evaluation.
        more_seconds: the fewest seconds from one evaluation to the next.
        growth: the smallest ratio of the seconds at two evaluations.
        evaluate: judges an agent.
        update_seconds: returns the seconds of an update from its metrics.
    """

    targets: Mapping[str, float] = field(default_factory=lambda: TARGETS)
    overrides: Sequence[str] = ()
    tasks: int = 10_000
    fewer_tasks: Mapping[str, int] = field(default_factory=lambda: FEWER_TASKS)
    seed: int = 0
    first_seconds: float = 1.0
    more_seconds: float = 1.0
    growth: float = 1.15
    evaluate: Callable[..., AgentResult] = evaluate
    update_seconds: Callable[[Mapping[str, Any]], float] = itemgetter("seconds")

    @property
    def title(self) -> str:
        """One line that says what is measured."""
        return f"seconds of training to a mean return on {self.tasks:,} held-out tasks"

    def tasks_of(self, config: str) -> int:
        """Return the number of held-out tasks that the agent of a config is judged on."""
        return self.fewer_tasks.get(config, self.tasks)


Judged = Callable[[str, Mapping[str, float]], None]
"""Is called with the run's label, such as "rl2_bandit seed 0", and the newest point of its curve."""


def measure_learning(
    configs: Sequence[str],
    seeds: int,
    device: torch.device,
    *,
    suite: LearningSuite = LearningSuite(),
    save: Callable[[Mapping[str, Any]], None] = lambda report: None,
    judged: Judged = lambda label, point: None,
) -> dict[str, Any]:
    """Train each config once for each of the training seeds 0, 1, ..., and return how its score grew.

    Seconds are seconds of training: the clock stands still while the agent is judged. Torch computes with the
    threads that it has been given; the configs' own numbers of threads are ignored.

    Args:
        configs: names in the suite's ``targets``.
        seeds: the number of runs of each config, at least 1.
        device: where agents are trained and judged.
        suite: which scores the configs are to reach, and how their agents are judged.
        save: is called with the report so far after every run.
        judged: is called after every evaluation.

    Returns:
        By config: ``target``; ``setting`` with its sections ``agent`` and ``training``, ``threads`` and the
        number of ``tasks`` it is judged on; and ``runs``. Each run has ``seed``; ``curve``, a list of
        points with ``seconds``, ``update``, ``env_steps``, ``score`` (the mean return over tasks) and
        ``standard_error``; ``seconds_to_score`` and ``env_steps_to_score`` of the first point at the target
        or above, None if no point is; ``seconds`` in all, ``final_score`` and ``final_standard_error``.

    Raises:
        UserError: if a run diverges.
    """
    report: dict[str, Any] = {}
    for name in configs:
        for seed in range(seeds):
            config = read_config(name, [*suite.overrides, f"seed={seed}"])
            setting, target = _setting(config, suite.tasks_of(name)), suite.targets[name]
            said = report.setdefault(name, {"target": target, "setting": setting, "runs": []})
            said["runs"].append(summary(seed, _curve(name, config, device, suite, judged), target))
            save(report)
    return report


def learning_table(report: Mapping[str, Any]) -> list[str]:
    """Return one line for each config: seconds to its target, seconds in all and final scores, seed by seed.

    A final score is a mean over tasks, with its standard error in brackets.
    """
    width = max(len(name) for name in report)
    return [f"{name:{width}}  {_line(said)}" for name, said in report.items()]


def point_line(label: str, point: Mapping[str, float]) -> str:
    """Return one line that says what ``judged`` was called with."""
    score = f"{point['score']:.3f} (standard error {point['standard_error']:.3f})"
    return f"{label}: {point['seconds']:.1f} s, {point['env_steps'] / 1e6:.1f} M steps, {score}"


def _line(said: Mapping[str, Any]) -> str:
    runs = said["runs"]
    times = [run["seconds_to_score"] for run in runs]
    reached = ", ".join("not reached" if time is None else f"{time:.1f} s" for time in times)
    totals = ", ".join(f"{run['seconds']:.1f} s" for run in runs)
    finals = ", ".join(f"{run['final_score']:.3f} ({run['final_standard_error']:.3f})" for run in runs)
    return f"{said['target']:g}: {reached}; in all {totals}: {finals}"


def _setting(config: RunConfig, tasks: int) -> dict[str, Any]:
    return {
        "agent": {"name": config.agent_name, **config.agent.model_dump()},
        "training": config.settings.training.model_dump(),
        "threads": torch.get_num_threads(),
        "tasks": tasks,
    }


def summary(seed: int, curve: Sequence[Mapping[str, float]], target: float) -> dict[str, Any]:
    """Return what the report says of one run: its curve, and when the curve first reached ``target``.

    Args:
        seed: the training seed.
        curve: points as ``measure_learning`` describes them, at least one.
        target: the score to reach.
    """
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


def _curve(
    name: str, config: RunConfig, device: torch.device, suite: LearningSuite, judged: Judged
) -> list[dict[str, float]]:
    """Train, and return the points at which the agent was judged, at least that of the last update."""
    settings, law = config.settings, config.distribution
    learner = make_learner(config, device)
    episodes = settings.training.episodes_per_trial
    held_out = HeldOut(law, device, suite.tasks_of(name), episodes, suite.seed, suite.evaluate)

    def judge() -> Interval:
        return mean_interval(held_out.judge(learner.agent).returns())

    label = f"{name} seed {settings.seed}"
    watch = _Watch(settings.training.updates, suite, judge, lambda point: judged(label, point))
    try:
        train_learner(config, learner, device, watch.record)
    except TrainingDiverged as error:
        raise UserError(f"{label}: training diverged at {error}") from None
    finally:
        held_out.close()
    return watch.curve


class _Watch:
    """Adds up the seconds of a run's updates, and has its agent judged when the suite says so.

    Args:
        updates: how many updates the run has.
        suite: says when the agent is judged.
        judge: returns the interval of the agent's mean return.
        judged: is called with each new point.
    """

    def __init__(
        self,
        updates: int,
        suite: LearningSuite,
        judge: Callable[[], Interval],
        judged: Callable[[Mapping[str, float]], None],
    ) -> None:
        self.curve: list[dict[str, float]] = []
        self._updates, self._suite, self._judge, self._judged = updates, suite, judge, judged
        self._seconds, self._due = 0.0, suite.first_seconds

    def record(self, row: Mapping[str, Any]) -> bool:
        """Take the metrics of an update; return False, so that the run goes on."""
        self._seconds += self._suite.update_seconds(row)
        if self._seconds >= self._due or row["update"] == self._updates:
            more, growth = self._suite.more_seconds, self._suite.growth
            self._due = max(self._seconds + more, self._seconds * growth)
            self._add(row)
        return False

    def _add(self, row: Mapping[str, Any]) -> None:
        score = self._judge()
        point = {
            "seconds": self._seconds,
            "update": row["update"],
            "env_steps": row["env_steps"],
            "score": float(score.mean),
            "standard_error": float(score.standard_error),
        }
        self.curve.append(point)
        self._judged(point)
