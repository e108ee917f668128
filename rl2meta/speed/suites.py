"""What a benchmark measures: workloads, each of which does one piece of work again and again."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from rl2meta.rollout import RolloutWorker
from rl2meta.tasks import TaskDistribution
from rl2meta.training import Budget, Learner, meta_train


class Workload(NamedTuple):
    """One thing to measure.

    Attributes:
        unit: does one whole piece of work, such as an update with its rollout, and returns the number of
            environment steps in it.
        setting: the values in which this workload differs from the suite's setting.
        rival_of: the name of the workload that is compared with this one, or None.
        countable: whether its operations can be counted, which needs work that consists of torch's
            operations.
        here: whether the work is done in this process, so that its memory can be measured.
    """

    unit: Callable[[], int]
    setting: Mapping[str, Any] = {}
    rival_of: str | None = None
    countable: bool = True
    here: bool = True


class Suite(NamedTuple):
    """Workloads that are measured in turns.

    Attributes:
        title: one line that says what they do.
        setting: the same as data.
        workloads: by name; ours come first.
    """

    title: str
    setting: Mapping[str, Any]
    workloads: Mapping[str, Workload]


def training(
    learner: Learner, distribution: TaskDistribution, worker: RolloutWorker, trials: int, episodes: int
) -> Callable[[], int]:
    """Return a unit that trains one of our learners by one whole update, its rollout included."""
    budget = Budget(updates=10**9, trials_per_update=trials, episodes_per_trial=episodes)
    done = 0

    def unit() -> int:
        nonlocal done
        rows: list[dict[str, Any]] = []

        def record(row: dict[str, Any]) -> bool:
            rows.append(row)
            return True

        meta_train(learner, distribution, worker, budget, 0, record, start=done)
        done += 1
        return int(rows[0]["env_steps"])

    return unit
