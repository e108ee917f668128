"""One trial of a study: the trainings with the settings that it chose, judged on the tuning tasks."""

import math
from dataclasses import dataclass
from typing import Any

from rl2meta.errors import UserError
from rl2meta.experiments.contest import Contest
from rl2meta.experiments.run import Run
from rl2meta.experiments.search_space import settings_text
from rl2meta.experiments.side_by_side import is_orphan
from rl2meta.experiments.trainings import train
from rl2meta.experiments.tuning_plan import Plan
from rl2meta.randomness import derive
from rl2meta.training import TrainingDiverged
from rl2meta.workers.faults import EnvironmentFault


@dataclass(frozen=True)
class Outcome:
    """How a trial ended.

    Attributes:
        value: the mean held-out return over the trainings; None if the trial was pruned.
        said: why it has no value.
    """

    value: float | None
    said: str = ""


class TrialRun:
    """The trainings of a trial, one after the other.

    Optuna is told of the held-out return at several points of the first training, and of the mean over the
    trainings so far after each of the others; it may prune the trial there.

    Args:
        plan: of the study.
        judge: the tuning tasks.
        trial: Optuna's.
        settings: what the trial chose, by dotted key.
    """

    def __init__(self, plan: Plan, judge: Contest, trial: Any, settings: dict[str, Any]) -> None:
        self._plan, self._judge, self._trial = plan, judge, trial
        self._overrides = [*plan.overrides, *settings_text(settings), "threads=1"]
        self._values: list[float] = []  # of the trainings that are finished
        self._steps, self._stopped = 0, False
        self._ended: Outcome | None = None

    def run(self) -> Outcome | None:
        """Train with each seed and return how the trial ended; None if this process is to end.

        Raises:
            UserError: if the environments fail.
        """
        for number in range(self._plan.options.num_seeds):
            try:
                self._train(number)
            except UserError as error:
                return _without_value(error)
            if self._stopped or self._ended:
                return self._ended
        return Outcome(self._mean())

    def _mean(self) -> float:
        return math.fsum(self._values) / len(self._values)

    def _train(self, number: int) -> None:
        seed = derive(self._plan.config().settings.seed, "tuning", "training", number)
        overrides = [*self._overrides, f"seed={seed}"]
        updates = self._plan.config(*self._overrides).settings.training.updates
        points = self._plan.options.n_evaluations
        early = {round(updates * point / points) for point in range(1, points)} if number == 0 else set()

        def after_update(run: Run, row: dict[str, Any]) -> bool:
            self._stopped = is_orphan()
            if not self._stopped and row["update"] in early | {updates}:
                self._look(run, row["update"] == updates)
            return not self._stopped and self._ended is None

        train(self._plan.source, overrides, callbacks=[after_update], trust=self._plan.trust)

    def _look(self, run: Run, at_end: bool) -> None:
        """Judge the agent in training, tell Optuna, and note whether the trial ends here."""
        value = float(self._judge.evaluate(run.agent).returns().mean())
        if not math.isfinite(value):
            self._ended = Outcome(None, "its held-out return is not finite")
            return
        if at_end:
            self._values.append(value)
            value = self._mean()
        self._steps += 1
        self._trial.report(value, self._steps)
        last = len(self._values) == self._plan.options.num_seeds
        if not last and self._trial.should_prune():
            self._ended = Outcome(None, f"pruned at {value:.4g}")


def _without_value(error: UserError) -> Outcome:
    """Return the outcome of a training that these settings do not allow.

    Raises:
        UserError: if the environments are at fault.
    """
    if isinstance(error, EnvironmentFault) or isinstance(error.__context__, EnvironmentFault):
        raise error
    diverged = isinstance(error.__context__, TrainingDiverged)
    return Outcome(None, "diverged" if diverged else f"cannot be trained: {error!s:.200}")
