"""One trial of an agent on one task, step by step, with what the agent told at each step."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rl2meta.beliefs import TellingAgent, Told
from rl2meta.history import History, history_at
from rl2meta.randomness import derive
from rl2meta.rollout import RolloutWorker
from rl2meta.tasks import Tasks
from rl2meta.trial import Agent, Choice, Phase, TimeStep, Trajectory, Trial, over_fields


class Change(NamedTuple):
    """What an adaptation changed: what the agent tells about a phase's first step before it and after it.

    Attributes:
        step: number of steps before the adaptation.
        observation: of the first step, [lanes, ...].
        before, after: told, with a row for each lane.
    """

    step: int
    observation: Tensor
    before: Told
    after: Told


class Place(NamedTuple):
    """Where a step of the trial is: in which phase, in which of its lanes, at which time."""

    phase: int
    lane: int
    time: int


@dataclass(frozen=True)
class WatchedTrial:
    """A trial on one task. The lanes of a phase, which are parallel, count one after another.

    Attributes:
        trial: the record of the worker.
        told: by phase and time, with a row for each lane.
        changes: one for each adaptation after a phase of more than one episode.
        env_seed: of the environments' random stream.
    """

    trial: Trial
    told: list[list[Told]]
    changes: list[Change]
    env_seed: int

    @property
    def lanes(self) -> int:
        """Number of lanes of each phase."""
        return self.trial.phases[0].mask.shape[1]

    @property
    def places(self) -> list[Place]:
        """The place of each step, without padding."""
        return [
            Place(number, lane, time)
            for number, phase in enumerate(self.trial.phases)
            for lane, time in phase.mask.T.nonzero().tolist()
        ]

    def summary(self) -> str:
        """Return in one line what the agent earned: sampled rewards and, if it is known, the regret."""
        reward, regret = self.known("reward"), self.known("regret")
        assert reward is not None  # every trajectory has rewards
        said = f"{len(reward)} steps, reward {float(reward.double().sum()):.2f}"
        return said if regret is None else f"{said}, regret {float(regret.double().sum()):.2f} (expected)"

    def steps(self, part: Callable[[Trajectory], Tensor]) -> Tensor:
        """Return a part of the trajectories, [T, lanes, ...], in the order of the steps, [N, ...]."""
        return torch.cat([part(phase).transpose(0, 1)[phase.mask.T] for phase in self.trial.phases])

    def known(self, name: str) -> Tensor | None:
        """Return ``Trajectory.named`` in the order of the steps, [N, ...], or None."""
        if any(phase.named(name) is None for phase in self.trial.phases):
            return None
        return self.steps(lambda phase: {"reward": phase.reward, **phase.truth}[name])

    def history(self, places: list[Place], step: int) -> History:
        """Return what has happened after ``step`` steps at ``places``."""
        phases = self.trial.phases
        if step == 0:
            return history_at(phases[:1], 0, 0)
        now = places[step - 1]
        before = [
            episode
            for lane in self._lanes_before(now)
            for episode in history_at(phases[lane.phase : lane.phase + 1], lane.lane, lane.time).episodes
        ]
        present = history_at(phases[now.phase : now.phase + 1], now.lane, now.time + 1)
        return History((*before, *present.episodes), phases[0].horizon)

    def _lanes_before(self, now: Place) -> list[Place]:
        """Return all lanes before that of ``now``, each with its number of steps as the time."""
        return [
            Place(number, lane, steps)
            for number, phase in enumerate(self.trial.phases[: now.phase + 1])
            for lane, steps in enumerate(phase.mask.sum(dim=0).tolist())
            if (number, lane) < now[:2]
        ]


def watch_trial(
    worker: RolloutWorker, agent: Agent[Any], task: Tasks, num_episodes: int, seed: int
) -> WatchedTrial:
    """Run one trial on one task and keep what the agent tells.

    The trial is that of ``rl2meta.evaluation.evaluate`` on this task alone with the same seed.

    Args:
        worker: runs the trial.
        agent: is watched; one that is no ``TellingAgent`` tells nothing.
        task: one task.
        num_episodes: number of episodes in the trial, in all lanes together.
        seed: of the random streams.
    """
    listener = _Listener(agent)
    of_batch = derive(seed, "evaluate", 0)
    trial = worker.run(listener, task, num_episodes, of_batch)
    return WatchedTrial(trial, listener.told, listener.changes, derive(of_batch, "envs"))


@dataclass
class _Listener:
    """An agent that acts like ``agent``, draw for draw, and keeps what it tells."""

    agent: Agent[Any]
    told: list[list[Told]] = field(default_factory=lambda: [[]])
    changes: list[Change] = field(default_factory=list)
    _steps: int = 0
    _source: torch.Generator | None = None

    @property
    def phase(self) -> Phase:
        return self.agent.phase

    def begin(self, num_tasks: int, generator: torch.Generator, num_steps: int | None = None) -> Any:
        self._source = generator
        return self.agent.begin(num_tasks, generator, num_steps)

    def act(self, carry: Any, step: TimeStep) -> tuple[Choice, Any]:
        choice, carry, told = self._told(carry, step)
        self.told[-1].append(told)
        return choice, carry

    def adapt(self, carry: Any, trajectory: Trajectory) -> Any:
        adapted = self.agent.adapt(carry, trajectory)
        self.told.append([])
        self._steps += int(trajectory.mask.sum())
        if trajectory.episodes != 1 or trajectory.mask.shape[1] > 1:
            first: TimeStep = over_fields(lambda part: part[0], trajectory.inputs)
            before, after = (self._asked(each, first) for each in (carry, adapted))
            self.changes.append(Change(self._steps, first.observation, before, after))
        return adapted

    def _told(self, carry: Any, step: TimeStep) -> tuple[Choice, Any, Told]:
        if isinstance(self.agent, TellingAgent):
            return self.agent.act_and_tell(carry, step)
        return *self.agent.act(carry, step), {}

    def _asked(self, carry: Any, step: TimeStep) -> Told:
        """Return what the agent would tell; the random stream stays where it is."""
        assert self._source is not None  # a trial begins before it adapts
        state = self._source.get_state()
        told = self._told(carry, step)[2]
        self._source.set_state(state)
        return told
