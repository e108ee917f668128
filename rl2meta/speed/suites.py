"""What a benchmark measures: contestants that do a piece of work again and again."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from rl2meta.rollout import RolloutWorker
from rl2meta.tasks import TaskDistribution
from rl2meta.training import Budget, Learner, meta_train


class Contestant(NamedTuple):
    """One thing to measure.

    Attributes:
        unit: does one whole piece of work, such as an update with its rollout, and returns the environment
            steps in it.
        setting: in what it differs from the suite's setting.
        rival: whether the first contestant of the suite is to be compared with it.
        countable: whether its work can be counted: it is made of torch's operations.
    """

    unit: Callable[[], int]
    setting: Mapping[str, Any] = {}
    rival: bool = False
    countable: bool = True


class Suite(NamedTuple):
    """Contestants that are measured in turns.

    Attributes:
        title: what they do, in a line.
        setting: the same as data.
        contestants: by name, ours first.
    """

    title: str
    setting: Mapping[str, Any]
    contestants: Mapping[str, Contestant]


def training(
    learner: Learner, distribution: TaskDistribution, worker: RolloutWorker, trials: int, episodes: int
) -> Callable[[], int]:
    """Return a unit that trains a learner of ours by one whole update, its rollout included."""
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
