"""The evaluation protocol: the same held-out tasks and the same luck for every agent."""

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from rl2meta.agents.references.reference import Reference
from rl2meta.distinct import same_tasks
from rl2meta.evaluation import AgentResult, Ceilings, ceilings, evaluate
from rl2meta.experiments.components import judged_episodes
from rl2meta.experiments.config import RunConfig
from rl2meta.randomness import derive
from rl2meta.ranks import ONE, Ranks
from rl2meta.rollout import RolloutWorker
from rl2meta.tasks import sample_tasks
from rl2meta.trial import Agent

TUNING_TASKS = 10_000
FEWEST_TUNING_TASKS = 1_000  # the minimum when an evaluation has fewer than TUNING_TASKS tasks
_TUNING_STEPS = 1_000_000  # for each choice of constants: with long trials, fewer tasks are enough


class Contest:
    """Agents side by side: each gets the same held-out tasks and the same luck.

    Args:
        config: gives the distribution, the number of episodes in a trial, and the seed of the tuning.
        worker: plays that distribution.
        seed: of the held-out tasks and of the luck.
        num_tasks: the number of held-out tasks.
        scratch: the number of these tasks on which an agent learns from scratch.
        tuning_tasks: the most training tasks on which constants are chosen; None for ``TUNING_TASKS``.
        ranks: the processes that share the tasks.
    """

    def __init__(
        self,
        config: RunConfig,
        worker: RolloutWorker,
        seed: int,
        num_tasks: int,
        scratch: int = 0,
        *,
        tuning_tasks: int | None = None,
        ranks: Ranks = ONE,
    ) -> None:
        self.ranks = ranks
        self._tuning_tasks = TUNING_TASKS if tuning_tasks is None else tuning_tasks
        self.config, self.worker, self.seed, self.scratch = config, worker, seed, scratch
        self.episodes = judged_episodes(config)
        self.played: Callable[[int], None] = lambda trials: None  # called after each batch of trials
        self.held_out = sample_tasks(config.distribution, num_tasks, seed, "test")
        self.labels = same_tasks(self.held_out)  # [num_tasks]

    def evaluate(self, agent: Agent[Any], worker: RolloutWorker | None = None) -> AgentResult:
        """Run the agent on the held-out tasks, with its own ``worker`` if it observes them differently."""
        given = agent, worker or self.worker, self.held_out, self.episodes, self.seed
        result = evaluate(*given, self.played, self.ranks)
        return replace(result, labels=self.labels)

    def num_trials(self, reference: Reference) -> int:
        """Return the number of trials that ``evaluate_reference`` takes, tuning included."""
        choices = len(list(_constants(reference)))
        return len(self.held_out) + (self._num_tuning_tasks() * choices if choices > 1 else 0)

    def evaluate_reference(self, reference: Reference) -> AgentResult:
        """Choose the reference's constants on training tasks, then evaluate it on the held-out tasks."""
        grid = list(_constants(reference))
        best = grid[0] if len(grid) == 1 else self._tuned(reference, grid)
        return replace(self.evaluate(reference.build(**best)), constants=best)

    def ceilings(self) -> Ceilings:
        """Return the exact values that no agent can beat here."""
        return ceilings(self.config.distribution, self.held_out, self.episodes)

    def _tuned(self, reference: Reference, grid: list[dict[str, Any]]) -> dict[str, Any]:
        seed = self.config.settings.seed
        tuning = sample_tasks(self.config.distribution, self._num_tuning_tasks(), seed, "train")

        def score(constants: dict[str, Any]) -> float:
            agent = reference.build(**constants)
            luck = derive(seed, "tuning")  # differs from the luck of the evaluation, for any seed
            result = evaluate(agent, self.worker, tuning, self.episodes, luck, self.played, self.ranks)
            mean = float(result.returns().mean())
            return mean if math.isfinite(mean) else -math.inf  # some constants make an agent diverge

        return max(grid, key=score)

    def _num_tuning_tasks(self) -> int:
        most: int = max(100, _TUNING_STEPS // (self.episodes * self.config.distribution.horizon))
        return min(most, self._tuning_tasks, max(FEWEST_TUNING_TASKS, len(self.held_out)))


def _constants(reference: Reference) -> Iterator[dict[str, Any]]:
    for values in itertools.product(*reference.grid.values()):
        yield dict(zip(reference.grid, values, strict=True))
