"""The outer loop: sample tasks, run trials, learn, call a callback."""

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol, runtime_checkable

import gymnasium as gym
import torch
from pydantic import BaseModel
from torch import Tensor

from rl2meta.errors import UserError
from rl2meta.kernels import denormals_flushed
from rl2meta.randomness import derive, generator
from rl2meta.rollout import Worker
from rl2meta.shards import ALONE, Shards
from rl2meta.tasks import TaskDistribution, sample_tasks
from rl2meta.trial import Agent, Trial
from rl2meta.units import warn_of_clipped


def linear(start: float, end: float | None, progress: float) -> float:
    """Interpolate between ``start`` and ``end`` at a fraction ``progress`` of training; None: constant."""
    return start if end is None else start + (end - start) * progress


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Take ``rate`` as the learning rate of all weights."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def clip_gradients(weights: Sequence[Tensor], largest: float) -> Tensor:
    """Scale all gradients by min(1, largest / ‖g‖), and return their joint norm ‖g‖, [].

    The numbers are those of ``torch.nn.utils.clip_grad_norm_`` to the bit. All weights are on one device and
    of one type, so the gradients need not be sorted by these, which takes most of its time.
    """
    gradients = [weight.grad for weight in weights if weight.grad is not None]
    norm: Tensor = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
    torch._foreach_mul_(gradients, (largest / (norm + 1e-6)).clamp(max=1.0))
    return norm


class Learner(Protocol):
    """Trains an agent: changes it between trials."""

    @property
    def agent(self) -> Agent[Any]:
        """The agent in training."""
        ...

    def update(self, trial: Trial, progress: float, generator: torch.Generator) -> Mapping[str, float]:
        """Learn from one trial on every task of a batch; return the metrics of the update.

        Args:
            trial: the record of the trials of the present agent.
            progress: the completed fraction of training, in [0, 1), for schedules.
            generator: a CPU generator for all random draws of the update.
        """
        ...

    def state_dict(self) -> dict[str, Tensor]:
        """Return the complete state for resuming a run, as named tensors."""
        ...

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Load a state from ``state_dict``."""
        ...


@runtime_checkable
class ShardedLearner(Learner, Protocol):
    """A learner that can learn from a batch in shards, of which other processes own some."""

    def update_shards(
        self,
        trials: Sequence[Trial],
        progress: float,
        generators: Sequence[torch.Generator],
        shards: Shards,
    ) -> Mapping[str, float]:
        """Learn from the shards of a batch as ``update`` learns from a whole one.

        Afterwards the learner is the same to the bit in all processes, and so are the metrics.

        Args:
            trials: one record for each own shard.
            progress: the completed fraction of training, in [0, 1).
            generators: one CPU generator for each own shard.
            shards: adds up what the shards of all processes contribute.
        """
        ...


class WholeIsOneShard(ABC):
    """A base of learners in shards: ``update`` learns from a whole batch as from one shard."""

    def update(self, trial: Trial, progress: float, generator: torch.Generator) -> dict[str, float]:
        """Learn from one trial on every task of a batch; see ``Learner`` and ``update_shards``."""
        return self.update_shards([trial], progress, [generator], ALONE)

    @abstractmethod
    def update_shards(
        self,
        trials: Sequence[Trial],
        progress: float,
        generators: Sequence[torch.Generator],
        shards: Shards,
    ) -> dict[str, float]:
        """Learn from the shards of a batch; see ``ShardedLearner``."""


def refuse_shards(learner: Learner, shards: Shards) -> None:
    """Refuse shards for a learner that cannot learn from them.

    Raises:
        UserError: with the number of shards.
    """
    if shards.total > 1 and not isinstance(learner, ShardedLearner):
        raise UserError(
            f"training.shards: expected 1 for {type(learner).__name__}, which learns from whole batches, got "
            f"{shards.total}; train in one process, or write its update_shards (rl2meta.training)"
        )


def _no_variant(config: Any) -> str:
    return ""


def _no_references(
    observation_space: gym.Space[Any], action_space: gym.Space[Any], config: Any
) -> Mapping[str, Any]:
    return {}


def _nothing_compiled(config: Any) -> bool:
    return False


@dataclass(frozen=True)
class AgentKind:
    """A trainable agent, which a config selects by ``agent.name``.

    Attributes:
        line: description in one line.
        config: the class of its config, a pydantic model.
        learner: (observation space, action space, config, device, seed) -> its learner; the initial weights
            depend only on the seed.
        at_test: the keys of its config that may change after training.
        former: the values of new keys for runs from before there were these keys, so that old run folders
            keep their meaning where the default is another.
        training_only: first words of the names of tensors in the learner's state that no agent needs to act,
            such as ``("critic",)`` for ``critic.…``; a run may begin with the weights of a run without them.
        variant: config -> a word for tables and figures that tells a variant of the agent from the usual one,
            such as ``"slot"``; "" for the usual one.
        network: the keys of its config that decide what the network computes from its weights, even where no
            shape depends on them, such as ``("core",)``; a run may begin only with the weights of a run that
            has the same values of them.
        references: (observation space, action space, config) -> references that need the agent's config, by
            name, such as ones that train the same network; beside those that the family's model has.
        compiled: config -> whether compiled kernels (``rl2meta.kernels``) compute most of a training, as far
            as the config can tell.
    """

    line: str
    config: type[BaseModel]
    learner: Callable[[gym.Space[Any], gym.Space[Any], Any, torch.device, int], Learner]
    at_test: tuple[str, ...] = ()
    former: Mapping[str, Any] = field(default_factory=dict)
    training_only: tuple[str, ...] = ()
    variant: Callable[[Any], str] = _no_variant
    network: tuple[str, ...] = ()
    references: Callable[[gym.Space[Any], gym.Space[Any], Any], Mapping[str, Any]] = _no_references
    compiled: Callable[[Any], bool] = _nothing_compiled


@dataclass(frozen=True)
class Budget:
    """The length of a training and the size of its batches.

    Attributes:
        updates: number of updates of the learner in the whole run.
        trials_per_update: number of tasks for each update, with one trial each.
        episodes_per_trial: number of episodes in a trial.
    """

    updates: int
    trials_per_update: int
    episodes_per_trial: int

    def __post_init__(self) -> None:
        if min(self.updates, self.trials_per_update, self.episodes_per_trial) < 1:
            raise ValueError(f"expected numbers >= 1, got {self}")


class TrainingDiverged(Exception):
    """A metric of an update is not finite."""


@denormals_flushed()
def meta_train(
    learner: Learner,
    distribution: TaskDistribution,
    worker: Worker,
    budget: Budget,
    seed: int,
    callback: Callable[[dict[str, Any]], bool],
    start: int = 0,
    env_steps: int = 0,
    shards: Shards = ALONE,
) -> None:
    """Train ``learner`` on tasks from the training branch of ``seed``.

    The random streams of update u have names with (seed, u), and with the shard if there are several. So a
    run that starts at ``start``, with the learner's state after that update, continues exactly like a run
    without interruption. Denormal numbers count as 0 (``kernels.denormals_flushed``).

    Args:
        learner: in training.
        distribution: the task distribution.
        worker: runs the trials.
        budget: number of updates, trials and episodes.
        seed: of the whole run.
        callback: called after each update with its metrics: ``update`` (counted from 1), ``env_steps``,
            ``seconds``, ``env_steps_per_second``, ``mean_return`` and those of the learner; returns true to
            stop.
        start: number of updates already done.
        env_steps: number of environment steps already made.
        shards: of each batch; each has the same part of the trials of an update.

    Raises:
        TrainingDiverged: if a metric is not finite; the callback is not called for this update.
        UserError: if the learner cannot learn from shards.
    """
    refuse_shards(learner, shards)
    told_of_clipped: set[int] = set()
    for update in range(start, budget.updates):
        began = time.perf_counter()
        # A rank whose environments fail says so here, where no learner has changed yet.
        trials = shards.together(partial(_lived, learner, worker, budget, seed, update, shards))
        metrics = _learnt(learner, trials, update / budget.updates, seed, update, shards)
        if isinstance(distribution.action_space, gym.spaces.Box):
            phases = [phase for trial in trials for phase in trial.phases]
            warn_of_clipped(phases, distribution.action_space, told_of_clipped)
        steps, mean_return = _count(trials, shards)
        seconds = time.perf_counter() - began
        env_steps += steps
        row = {"update": update + 1, "env_steps": env_steps, "mean_return": mean_return, **metrics}
        _refuse_non_finite(row)
        if callback({**row, "seconds": seconds, "env_steps_per_second": steps / seconds}):
            return


def _lived(
    learner: Learner, worker: Worker, budget: Budget, seed: int, update: int, shards: Shards
) -> list[Trial]:
    """Return a trial on every task of each own shard."""
    trials, num_tasks = [], budget.trials_per_update // shards.total
    for name in shards.names:
        path = ("train", update, *name)
        tasks = sample_tasks(worker.distribution, num_tasks, derive(seed, *path), "train")
        length = budget.episodes_per_trial
        trials.append(worker.run(learner.agent, tasks, length, derive(seed, *path, "rollout")))
    return trials


def _learnt(
    learner: Learner, trials: Sequence[Trial], progress: float, seed: int, update: int, shards: Shards
) -> Mapping[str, float]:
    """Let the learner learn from the own shards; return its metrics."""
    streams = [generator(seed, "train", update, *name, "learner") for name in shards.names]
    if shards.total == 1:
        return learner.update(trials[0], progress, streams[0])
    assert isinstance(learner, ShardedLearner)  # refuse_shards
    return learner.update_shards(trials, progress, streams, shards)


def _count(trials: Sequence[Trial], shards: Shards) -> tuple[int, float]:
    """Return the number of environment steps, and the mean return, of all shards."""
    facts = [torch.tensor([trial.num_steps(), _mean_return(trial)], dtype=torch.float64) for trial in trials]
    steps, returns = torch.stack(shards.gather(facts)).unbind(dim=1)  # [V, 2] -> [V] each
    return int(steps.sum()), float(returns.mean())


def _mean_return(trial: Trial) -> float:
    """Return the sum of the sampled rewards of a trial, as a mean over tasks."""
    rewards = trial.per_task("reward")
    assert rewards is not None  # every trajectory has rewards
    return float(rewards.sum(dim=1).mean())


def _refuse_non_finite(row: Mapping[str, float]) -> None:
    bad = {name: value for name, value in row.items() if not math.isfinite(value)}
    if bad:
        raise TrainingDiverged(
            f"update {row['update']}: expected finite metrics, got {bad}; "
            "lower the learning rate or look for non-finite rewards in the environment"
        )
