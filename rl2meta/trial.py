"""What an agent sees and says in a trial, and what a trial leaves behind.

A *trial* is everything that an agent lives through on one task: several episodes, during which it keeps
what it has learnt. What it has learnt so far is its *carry*. Acting reads the carry (and may advance it),
adapting replaces it, and only ``begin`` creates it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from rl2meta.tasks import Tasks

Carry = TypeVar("Carry")


class TimeStep(NamedTuple):
    """What an agent sees before it acts; B rows, one per environment.

    At a trial's start the action is all zero (no action, not action 0), the reward 0 and ``first`` true.

    Attributes:
        observation: o_t, [B, ...] as the environment gave it.
        action: a_{t-1}, float [B, action size]: one-hot for Discrete actions, clipped to a Box's bounds.
        reward: r_{t-1}, float [B], as sampled.
        first: d_{t-1}, bool [B]: o_t begins an episode.
    """

    observation: Tensor
    action: Tensor
    reward: Tensor
    first: Tensor


class Choice(NamedTuple):
    """What an agent does.

    Attributes:
        action: sampled from the agent's policy, [B, ...]; the environment gets it clipped to its bounds.
        mode: the action that the agent deems best, like ``action``; for use without exploration noise.
        notes: what the agent's learner will want to know of this step, by name, [B, ...] each: such as
            ``log_prob``, log π(action), and ``value``, what the agent expects to come of it. The same names
            at every step; they come back in ``Trajectory.notes``.
    """

    action: Tensor
    mode: Tensor
    notes: Mapping[str, Tensor] = {}


class Phase(NamedTuple):
    """How much an agent lives through before each ``adapt``.

    Attributes:
        episodes: episodes one after another in each environment; None for the whole trial. An agent whose
            carry moves while it acts must take the whole trial: where episodes end early, environments
            that are done idle (masked) until the phase ends.
        lanes_per_task: environments side by side on each task; ``act`` then gets num_tasks × lanes rows,
            task-major, and a phase counts episodes × lanes episodes of the trial.
    """

    episodes: int | None = None
    lanes_per_task: int = 1

    def plan(self, num_episodes: int) -> "Plan":
        """Return how a trial of ``num_episodes`` episodes splits into phases.

        Raises:
            ValueError: if it is not a positive multiple of what a phase takes.
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
    """A trial in phases.

    Attributes:
        episodes: in each lane of a phase.
        phases: in the trial.
    """

    episodes: int
    phases: int


class Lived(NamedTuple):
    """One step of B environments: what was seen, done and paid; every tensor [B, ...].

    The attributes are those of ``Trajectory``.
    """

    inputs: TimeStep
    action: Tensor
    reward: Tensor
    last: Tensor
    mask: Tensor
    notes: Mapping[str, Tensor]
    truth: Mapping[str, Tensor]


@dataclass(frozen=True)
class Trajectory:
    """One phase in B = num_tasks × lanes environments, time-major: every tensor [T, B, ...].

    Attributes:
        inputs: the TimeStep seen before each action.
        action: the actions taken.
        reward: r_t as sampled.
        last: bool, the step ended its episode, by termination or truncation.
        mask: bool, false on the padding that follows an environment's last episode of the phase.
        notes: what the agent noted while it acted, by name; see ``Choice``.
        truth: what the family knows and no agent sees, by name; no name where the family does not know it.
            ``expected_reward``: E[r_t | task, state, action]. ``regret``: the expected loss against the
            optimum, >= 0. ``target``: the action that would have been right, as ``action``.
        horizon: the steps that an episode may take; None where it is not known.
        episodes: the episodes of each environment in the phase; None where it is not known.
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
        """Return the trajectory of steps in the order they were lived.

        Raises:
            ValueError: if not every step has the same notes and the same truth.
        """
        stacked: Lived = over_fields(lambda *parts: torch.stack(parts), *steps)  # [B, ...] -> [T, B, ...]
        return cls(**stacked._asdict(), horizon=horizon, episodes=episodes)

    @property
    def most_steps(self) -> int | None:
        """The steps that the phase may take; None where it is not known."""
        return None if self.horizon is None or self.episodes is None else self.horizon * self.episodes

    def steps_left(self) -> Tensor:
        """Return the steps that the phase may still take, the present one included; 0 on padding, [T, B].

        Unlike the actual length, this does not depend on actions, so a baseline may use it: one that knew
        when an episode ends would explain away what the agent did to end it.

        Raises:
            ValueError: if the horizon is not known.
        """
        if self.horizon is None:
            raise ValueError("expected a trajectory whose horizon is known, as RolloutWorker gives them")
        ended = (self.last & self.mask).long()
        to_end = ended.sum(dim=0) - ended.cumsum(dim=0) + ended  # episodes, the present one included
        step = torch.arange(len(ended), device=ended.device).unsqueeze(1)
        begins = torch.cat([torch.ones_like(self.last[:1]), self.last[:-1]])
        elapsed = step - (step * begins).cummax(dim=0).values
        return (to_end * self.horizon - elapsed) * self.mask

    def columns(self, index: slice) -> "Trajectory":
        """Return the same phase in some of the environments."""
        return self._each(lambda field: field[:, index])

    def padded(self, length: int) -> "Trajectory":
        """Return the same phase with steps of zeros, which the mask leaves out, up to ``length``."""
        missing = length - len(self.mask)
        if not missing:
            return self
        return self._each(lambda field: torch.cat([field, field.new_zeros(missing, *field.shape[1:])]))

    def named(self, name: str) -> Tensor | None:
        """Return a part of the truth, or ``reward`` or ``mask``, by name; None if it is not known."""
        return {"reward": self.reward, "mask": self.mask, **self.truth}.get(name)

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Trajectory":
        steps = Lived(*(getattr(self, name) for name in Lived._fields))
        return replace(self, **over_fields(change, steps)._asdict())


def over_fields(change: Callable[..., Tensor], *records: Any) -> Any:
    """Apply ``change`` to the tensors that stand at the same place in records of one shape.

    Args:
        change: as many tensors as there are records -> a tensor.
        records: tensors, mappings of records, or named tuples of records.

    Returns:
        A record of the same shape.

    Raises:
        ValueError: for mappings with different names.
    """
    first = records[0]
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
    """What the agent lived through on each task of a batch.

    Attributes:
        tasks: the tasks.
        phases: the trajectories in the order they were lived.
    """

    tasks: Tasks
    phases: tuple[Trajectory, ...]

    def __post_init__(self) -> None:
        if not self.phases:
            raise ValueError("expected a trial of at least one phase, got none")

    def num_steps(self) -> int:
        """Return the number of environment interactions in all tasks together, padding left out."""
        return sum(int(phase.mask.sum()) for phase in self.phases)

    def per_task(self, name: str) -> Tensor | None:
        """Return what ``Trajectory.named`` gives as [num_tasks, steps of the trial], 0 on padding, or None.

        Lanes that ran side by side are laid one after another: every interaction with a task counts.
        """
        known = [(phase.named(name), phase.mask) for phase in self.phases]
        rows = [self._rows(field, mask) for field, mask in known if field is not None]
        return torch.cat(rows, dim=1) if rows else None  # [num_tasks, steps]

    def per_episode(self, name: str) -> Tensor | None:
        """Return what ``Trajectory.named`` gives, summed over each episode, [num_tasks, episodes], or None.

        ``mask`` gives the steps in each episode. Lanes are laid one after another.
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
    """[T, B] -> [B, episodes], where every environment ends equally many episodes."""
    ended = last.cumsum(dim=0)
    episodes = int(ended[-1].max())
    index = (ended - last.long()).clamp(max=episodes - 1)  # padding is 0 and may fall anywhere
    sums = torch.zeros(values.shape[1], episodes, dtype=values.dtype, device=values.device)
    return sums.scatter_add(1, index.T, values.T)


class Agent(Protocol[Carry]):
    """Something that learns within a trial; holds no randomness and no state of any trial."""

    @property
    def phase(self) -> Phase:
        """How much the agent lives through before each ``adapt``."""
        ...

    def begin(self, num_tasks: int, generator: torch.Generator, num_steps: int | None = None) -> Carry:
        """Return the carry of ``num_tasks`` new trials.

        Args:
            num_tasks: tasks, each with the lanes of the agent's phase.
            generator: of all that the agent draws.
            num_steps: the steps that a trial may take in each lane; None where nobody knows.
        """
        ...

    def act(self, carry: Carry, step: TimeStep) -> tuple[Choice, Carry]:
        """Choose an action in each of num_tasks × lanes rows."""
        ...

    def adapt(self, carry: Carry, trajectory: Trajectory) -> Carry:
        """Learn from the phase that just ended; not called after a trial's last, as nothing follows."""
        ...
