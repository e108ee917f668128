"""What an agent sees and says in a trial, and what a trial leaves behind.

A *trial* is everything that an agent lives through on one task: several episodes, during which it keeps
what it has learnt. What it has learnt so far is its *carry*. Acting reads the carry (and may advance it),
adapting replaces it, and only ``begin`` creates it.
"""

from collections.abc import Callable
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
        log_prob: log π(action), float [B]; 0 for agents without a density.
        mode: the action that the agent deems best, like ``action``; for use without exploration noise.
        value: what the agent expects to come of it, float [B], in units of the agent's own; None for agents
            that expect nothing.
    """

    action: Tensor
    log_prob: Tensor
    mode: Tensor
    value: Tensor | None = None


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


@dataclass(frozen=True)
class Trajectory:
    """One phase in B = num_tasks × lanes environments, time-major: every tensor [T, B, ...].

    Attributes:
        inputs: the TimeStep seen before each action.
        action: the actions taken.
        log_prob: their log-probabilities when they were taken.
        reward: r_t as sampled.
        last: bool, the step ended its episode, by termination or truncation.
        mask: bool, false on the padding that follows an environment's last episode of the phase.
        expected_reward: E[r_t | task, state, action], or None where the family does not know it.
        regret: the expected loss against the optimum, >= 0, or None where no optimum is known.
        target: the action that would have been right, which a family of regression tasks reveals after the
            act, as ``action``; or None.
        value: what the agent expected when it acted, see ``Choice``; or None.
        horizon: the steps that an episode may take, an int; or None where it is not known.
    """

    inputs: TimeStep
    action: Tensor
    log_prob: Tensor
    reward: Tensor
    last: Tensor
    mask: Tensor
    expected_reward: Tensor | None
    regret: Tensor | None
    target: Tensor | None = None
    value: Tensor | None = None
    horizon: int | None = None

    def steps_left(self) -> Tensor:
        """Return the steps that the phase may still take, the present one included; 0 on padding, [T, B].

        An agent that counts knows them, unlike those that it will take: how long an episode lasts may be
        its own doing, and then a baseline that knows it explains away what the agent did.

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

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Trajectory":
        inputs = TimeStep(*(change(field) for field in self.inputs))
        others: dict[str, Any] = {
            name: change(value) for name, value in vars(self).items() if isinstance(value, Tensor)
        }
        return replace(self, inputs=inputs, **others)


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
        """Return a field of every phase as [num_tasks, steps of the trial], 0 on padding, or None.

        Lanes that ran side by side are laid one after another: every interaction with a task counts.
        """
        fields = [getattr(phase, name) for phase in self.phases]
        if fields[0] is None:
            return None
        rows = [self._rows(field, phase.mask) for field, phase in zip(fields, self.phases, strict=True)]
        return torch.cat(rows, dim=1)

    def per_episode(self, name: str) -> Tensor | None:
        """Return a field of every phase summed over each episode, float [num_tasks, episodes], or None.

        The field ``mask`` gives the steps in each episode. Lanes are laid one after another.
        """
        fields = [getattr(phase, name) for phase in self.phases]
        if fields[0] is None:
            return None
        sums = [
            _sum_episodes((field * phase.mask).float(), phase.last & phase.mask)
            for field, phase in zip(fields, self.phases, strict=True)
        ]
        return torch.cat([each.reshape(len(self.tasks), -1) for each in sums], dim=1)

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

    def begin(self, num_tasks: int, generator: torch.Generator) -> Carry:
        """Return the carry of ``num_tasks`` new trials; all the agent's draws come from ``generator``."""
        ...

    def act(self, carry: Carry, step: TimeStep) -> tuple[Choice, Carry]:
        """Choose an action in each of num_tasks × lanes rows."""
        ...

    def adapt(self, carry: Carry, trajectory: Trajectory) -> Carry:
        """Learn from the phase that just ended; not called after a trial's last, as nothing follows."""
        ...
