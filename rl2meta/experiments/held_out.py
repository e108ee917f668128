"""Judge the agent on held-out tasks while it trains, beside the training and not within it."""

import logging
import math
from collections.abc import Callable
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch

from rl2meta.evaluation import AgentResult, evaluate
from rl2meta.experiments.components import judged_episodes
from rl2meta.experiments.config import RunConfig
from rl2meta.experiments.sections import TrainingConfig
from rl2meta.randomness import derive
from rl2meta.ranks import ONE, Ranks
from rl2meta.rollout import RolloutWorker
from rl2meta.tasks import TaskDistribution, Tasks, sample_tasks
from rl2meta.trial import Agent

HELD_OUT = "held_out_"
"""How the names of the metrics begin that rows have only where the agent was judged."""
_log = logging.getLogger("rl2meta")


class HeldOut:
    """A fixed set of held-out tasks, and a worker of its own that plays them with the agent in training.

    The agent is the same at every call but for its weights, and so are tasks and luck: the differences
    between two points of a curve are learning. The training keeps its worker, and no random draw of it
    depends on whether its agent is judged. Tasks and worker are made at the first use.

    Args:
        law: of the tasks, as the agent sees them.
        device: of the environments and the agent.
        num_tasks: the number of held-out tasks, at least 2.
        num_episodes: in a trial.
        seed: of the held-out tasks and of the luck.
        evaluate: judges an agent.
    """

    def __init__(
        self,
        law: TaskDistribution,
        device: torch.device,
        num_tasks: int,
        num_episodes: int,
        seed: int,
        evaluate: Callable[..., AgentResult] = evaluate,
    ) -> None:
        self._law, self._device, self._evaluate = law, device, evaluate
        self._num_tasks, self._num_episodes, self._seed = num_tasks, num_episodes, seed
        self._worker: RolloutWorker | None = None

    @cached_property
    def tasks(self) -> Tasks:
        """The held-out tasks."""
        return sample_tasks(self._law, self._num_tasks, self._seed, "test")

    def judge(self, agent: Agent[Any]) -> AgentResult:
        """Run the agent through one trial on every held-out task."""
        if self._worker is None:
            self._worker = RolloutWorker(self._law, self._device)
        return self._evaluate(agent, self._worker, self.tasks, self._num_episodes, self._seed)

    def metrics(self, agent: Agent[Any]) -> dict[str, float]:
        """Return ``held_out_return`` and, where the optimum is known, ``held_out_regret``.

        Both are sums over a trial, as means over tasks. A number that is not finite is left out, with a
        warning: the training goes on as it would without these evaluations.
        """
        found = self.judge(agent)
        means = {"return": float(found.returns().mean())}
        if found.regrets is not None:
            means["regret"] = float(found.regrets.sum(axis=1, dtype=np.float64).mean())
        for name, mean in means.items():
            if not math.isfinite(mean):
                _log.warning("held-out tasks: expected a finite %s, got %s; it is left out", name, mean)
        return {HELD_OUT + name: mean for name, mean in means.items() if math.isfinite(mean)}

    def close(self) -> None:
        """Close the environments."""
        if self._worker is not None:
            self._worker.close()
            self._worker = None


def held_out_of(config: RunConfig, device: torch.device, ranks: Ranks = ONE) -> HeldOut:
    """Return the held-out tasks of a training, ``training.evaluation_tasks`` ones.

    They come from the test branch of a seed s = derive(seed, "held_out"), where ``seed`` is that of the run.
    So no training task is among them: training tasks come from the train branch. The final evaluation draws
    its tasks from the test branch of the seed that it is given, which is s with probability 2⁻⁶³ only; in
    families of infinitely many tasks, two such draws have no task in common. A finite family has only the
    tasks of its test part: there both evaluations draw from the same few tasks, which training never sees;
    and a family too small to hold any out, such as one of two tasks, has the same tasks everywhere.

    Each training seed has tasks of its own, so an interval over seeds also covers the luck of the tasks.

    Args:
        config: the experiment; a trial has as many episodes as in its evaluation.
        device: of the environments and the agent.
        ranks: the processes that share the tasks.
    """
    judge = evaluate if ranks.size == 1 else partial(evaluate, ranks=ranks)
    num_tasks, seed = config.settings.training.evaluation_tasks, derive(config.settings.seed, "held_out")
    return HeldOut(config.distribution, device, num_tasks, judged_episodes(config), seed, judge)


def is_due(training: TrainingConfig, update: int) -> bool:
    """Return whether the agent is judged after an update: after every N-th and after the last one."""
    every = training.evaluate_every
    return every is not None and (update % every == 0 or update >= training.updates)
