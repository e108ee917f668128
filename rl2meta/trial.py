"""The interface between agents and workers in a trial, and the record of a trial.

A *trial* is a sequence of episodes of an agent on one task; the agent keeps what it learns during the trial.
The *carry* holds what it has learnt so far. Acting reads the carry (and may advance it), adapting replaces
it, and only ``begin`` creates it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from rl2meta.tasks import Tasks

Carry = TypeVar("Carry")


class TimeStep(NamedTuple):
    """The input of an agent before it acts; B rows, one per environment.

    At a trial's start the action is all zero (no action, not action 0), the reward 0 and ``first`` true.

    Attributes:
        observation: o_t, [B, ...], as the environment returns it.
        action: a_{t-1}, float [B, action size]: one-hot for Discrete actions, clipped to a Box's bounds.
        reward: r_{t-1}, float [B], the sampled reward.
        first: d_{t-1}, bool [B], true if o_t begins an episode.
        legal: bool [B, action size], true for the actions that may be taken now (for MultiDiscrete the values
            of the first entry, then those of the second, and so on); [B, 0] or None if all always may.
    """

    observation: Tensor
    action: Tensor
    reward: Tensor
    first: Tensor
    legal: Tensor | None = None


class Choice(NamedTuple):
    """The output of an agent in a step.

    Attributes:
        action: sampled from the agent's policy, [B, ...]; the environment gets it clipped to its bounds.
        mode: the agent's best action, without exploration noise, in the shape of ``action``.
        notes: tensors for the agent's learner, by name, [B, ...] each; such as ``log_prob``, log π(action),
            and ``value``, the expected return. Names are the same at every step; ``Trajectory.notes`` holds
            them.
    """

    action: Tensor
    mode: Tensor
    notes: Mapping[str, Tensor] = {}


class Phase(NamedTuple):
    """The episodes of an agent before each ``adapt``.

    Attributes:
        episodes: number of consecutive episodes in each environment; None for the whole trial. An agent whose
            carry changes while it acts must take the whole trial, because environments whose episodes end
            early idle (masked) until the phase ends; unless each episode's first step undoes such changes.
        lanes_per_task: number of parallel environments on each task; ``act`` then gets num_tasks × lanes
            rows, grouped by task, and a phase has episodes × lanes episodes of the trial.
    """

    episodes: int | None = None
    lanes_per_task: int = 1

    def plan(self, num_episodes: int) -> "Plan":
        """Divide a trial of ``num_episodes`` episodes into phases.

        Raises:
            ValueError: if ``num_episodes`` is not a positive multiple of the episodes in a phase.
        """
        lanes = self.lanes_per_task
        episodes = self.episodes if self.episodes is not None else max(1, num_episodes // lanes)
        per_phase = episodes * lanes
        if num_episodes < 1 or num_episodes % per_phase:
            below = num_episodes // per_phase * per_phase
            near = f"{below} or {below + per_phase}" if below > 0 else f"{per_phase}"
            raise ValueError(
                f"num_episodes={num_episodes} is not a positive multiple of the {per_phase} episodes of the "
                f"agent's phase; use {near}"
            )
        return Plan(episodes, num_episodes // per_phase)


class Plan(NamedTuple):
    """The division of a trial into phases.

    Attributes:
        episodes: number of episodes in each lane of a phase.
        phases: number of phases in the trial.
    """

    episodes: int
    phases: int


class Lived(NamedTuple):
    """The record of one step of B environments; every tensor [B, ...].

    The attributes are those of ``Trajectory``.
    """

    inputs: TimeStep
    action: Tensor
    reward: Tensor
    last: Tensor
    mask: Tensor
    notes: Mapping[str, Tensor]
    truth: Mapping[str, Tensor]


class TrialLength(int):
    """The maximum number of steps of a trial in each lane, an int that also knows how long episodes are.

    Attributes:
        horizon: maximum number of steps in an episode; None if unknown.
    """

    horizon: int | None

    def __new__(cls, steps: int, horizon: int | None = None) -> "TrialLength":
        """Return ``steps`` with its horizon; what is computed from it is a plain int."""
        length = super().__new__(cls, steps)
        length.horizon = horizon
        return length


@dataclass(frozen=True)
class Trajectory:
    """One phase in B = num_tasks × lanes environments, time-major: every tensor [T, B, ...].

    Attributes:
        inputs: the TimeStep before each action.
        action: the agent's actions, before clipping.
        reward: r_t, the sampled reward.
        last: bool, true if the step ends its episode, by termination or truncation.
        mask: bool, false on the padding after an environment's last episode of the phase.
        notes: the agent's notes, by name; see ``Choice``.
        truth: what the family knows and no agent sees, by name; it has only names that the family knows.
            ``expected_reward``: E[r_t | task, state, action]. ``regret``: the expected loss against the
            optimum, V*(s_t) − Q*(s_t, a_t) >= 0. ``regrets``: the same for each of A discrete actions,
            V*(s_t) − Q*(s_t, ·), [T, B, A], in which the best action has 0. ``target``: the correct action,
            in the shape of ``action``.
        horizon: maximum number of steps in an episode; None if unknown.
        episodes: number of episodes of each environment in the phase; None if unknown.
    """

    inputs: TimeStep
    action: Tensor
    reward: Tensor
    last: Tensor
    mask: Tensor
    notes: Mapping[str, Tensor]
    truth: Mapping[str, Tensor]
    horizon: int | None = None
    episodes: int | None = None

    @classmethod
    def of(
        cls, steps: Sequence[Lived], horizon: int | None = None, episodes: int | None = None
    ) -> "Trajectory":
        """Stack steps, in their order of time, to a trajectory.

        Raises:
            ValueError: if notes or truth do not have the same names in all steps.
        """
        stacked: Lived = over_fields(lambda *parts: torch.stack(parts), *steps)  # [B, ...] -> [T, B, ...]
        return cls(**stacked._asdict(), horizon=horizon, episodes=episodes)

    @property
    def most_steps(self) -> TrialLength | None:
        """Maximum number of steps in the phase; None if unknown."""
        if self.horizon is None or self.episodes is None:
            return None
        return TrialLength(self.horizon * self.episodes, self.horizon)

    def steps_left(self) -> Tensor:
        """Return the maximum number of remaining steps, including the present one, [T, B]; 0 on padding.

        Unlike the actual length, this does not depend on actions, so a baseline may use it. A baseline that
        knew the actual end of an episode would hide the effect of the actions that ended it.

        Raises:
            ValueError: if the horizon is unknown.
        """
        if self.horizon is None:
            raise ValueError("expected a trajectory whose horizon is known, as RolloutWorker gives them")
        ended = (self.last & self.mask).long()
        to_end = ended.sum(dim=0) - ended.cumsum(dim=0) + ended  # [T, B], episodes including the present one
        step = torch.arange(len(ended), device=ended.device).unsqueeze(1)  # [T, 1]
        begins = torch.cat([torch.ones_like(self.last[:1]), self.last[:-1]])  # [T, B]
        elapsed = step - (step * begins).cummax(dim=0).values  # [T, B]
        return (to_end * self.horizon - elapsed) * self.mask

    def columns(self, index: slice) -> "Trajectory":
        """Return the same phase for a slice of the environments."""
        return self._each(lambda field: field[:, index])

    def padded(self, length: int) -> "Trajectory":
        """Return the same phase padded to ``length`` with steps of zeros, which the mask excludes."""
        missing = length - len(self.mask)
        if not missing:
            return self
        return self._each(lambda field: torch.cat([field, field.new_zeros(missing, *field.shape[1:])]))

    def named(self, name: str) -> Tensor | None:
        """Return ``reward``, ``mask`` or a part of the truth by name; None if it is unknown."""
        return {"reward": self.reward, "mask": self.mask, **self.truth}.get(name)

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Trajectory":
        steps = Lived(*(getattr(self, name) for name in Lived._fields))
        return replace(self, **over_fields(change, steps)._asdict())


def over_fields(change: Callable[..., Tensor], *records: Any) -> Any:
    """Apply ``change`` to the tensors at the same place in records of the same structure.

    Args:
        change: one tensor from each record -> a tensor.
        records: tensors, mappings of records, named tuples of records, or None.

    Returns:
        A record of the same structure.

    Raises:
        ValueError: for mappings with different names.
    """
    first = records[0]
    if first is None:
        return None
    if isinstance(first, Tensor):
        return change(*records)
    if isinstance(first, Mapping):
        if any(record.keys() != first.keys() for record in records):
            names = sorted({tuple(record) for record in records})
            raise ValueError(f"expected the same names at every step, got {', then '.join(map(str, names))}")
        return {name: over_fields(change, *(record[name] for record in records)) for name in first}
    return type(first)(*(over_fields(change, *parts) for parts in zip(*records, strict=True)))


@dataclass(frozen=True)
class Trial:
    """The record of one trial on each task of a batch.

    Attributes:
        tasks: the tasks.
        phases: the trajectories of the phases, in their order of time.
    """

    tasks: Tasks
    phases: tuple[Trajectory, ...]

    def __post_init__(self) -> None:
        if not self.phases:
            raise ValueError("expected a trial of at least one phase, got none")

    def num_steps(self) -> int:
        """Return the number of environment steps in all tasks together, without padding."""
        return sum(int(phase.mask.sum()) for phase in self.phases)

    def per_task(self, name: str) -> Tensor | None:
        """Return ``Trajectory.named`` as [num_tasks, steps of the trial], 0 on padding, or None.

        Parallel lanes are concatenated, because every step on a task counts.
        """
        known = [(phase.named(name), phase.mask) for phase in self.phases]
        rows = [self._rows(field, mask) for field, mask in known if field is not None]
        return torch.cat(rows, dim=1) if rows else None  # [num_tasks, steps]

    def per_episode(self, name: str) -> Tensor | None:
        """Return ``Trajectory.named`` summed over each episode, [num_tasks, episodes], or None.

        ``mask`` gives the number of steps in each episode. Parallel lanes are concatenated.
        """
        known = [(phase.named(name), phase) for phase in self.phases]
        sums = [
            _sum_episodes((field * phase.mask).float(), phase.last & phase.mask)  # [B, episodes of the phase]
            for field, phase in known
            if field is not None
        ]
        return torch.cat([each.reshape(len(self.tasks), -1) for each in sums], dim=1) if sums else None

    def _rows(self, field: Tensor, mask: Tensor) -> Tensor:
        """[T, num_tasks × lanes] -> [num_tasks, lanes × T]."""
        return (field * mask).T.reshape(len(self.tasks), -1)


def _sum_episodes(values: Tensor, last: Tensor) -> Tensor:
    """Sum [T, B] over episodes, [B, episodes]; every environment has the same number of episodes."""
    ended = last.cumsum(dim=0)
    episodes = int(ended[-1].max())
    index = (ended - last.long()).clamp(max=episodes - 1)  # values on padding are 0, so any episode will do
    sums = torch.zeros(values.shape[1], episodes, dtype=values.dtype, device=values.device)
    return sums.scatter_add(1, index.T, values.T)


class Agent(Protocol[Carry]):
    """An agent that learns within a trial; it holds no random stream and no state of a trial."""

    @property
    def phase(self) -> Phase:
        """The episodes of the agent before each ``adapt``."""
        ...

    def begin(self, num_tasks: int, generator: torch.Generator, num_steps: int | None = None) -> Carry:
        """Return the carry of ``num_tasks`` new trials.

        Args:
            num_tasks: number of tasks, each with the lanes of the agent's phase.
            generator: random stream of all the agent's draws.
            num_steps: maximum number of steps of a trial in each lane; None if unknown. Workers give a
                ``TrialLength``, which has the horizon of the episodes too.
        """
        ...

    def act(self, carry: Carry, step: TimeStep) -> tuple[Choice, Carry]:
        """Choose an action in each of num_tasks × lanes rows."""
        ...

    def adapt(self, carry: Carry, trajectory: Trajectory) -> Carry:
        """Learn from the phase that just ended; not called after the last phase of a trial."""
        ...
