"""The agent under check: its learners, a trial that it lives through, and the same trial lived again."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import cached_property
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from rl2meta.counted import is_counted, sizes_of
from rl2meta.randomness import derive, generator
from rl2meta.rollout import RolloutWorker
from rl2meta.tasks import TaskDistribution, Tasks, sample_tasks
from rl2meta.training import AgentKind, Learner
from rl2meta.trial import (
    Agent,
    Choice,
    Lived,
    Phase,
    TimeStep,
    Trajectory,
    Trial,
    TrialLength,
    over_fields,
)

CPU = torch.device("cpu")
_PHASES = 3  # of a trial, so that an agent adapts twice


class Misfit(Exception):
    """What an agent did fits no environment; the message says what was expected."""


@dataclass(frozen=True)
class AgentCase:
    """What is checked.

    Attributes:
        kind: the agent.
        law: the law of the tasks that it lives on.
        config: its settings.
        num_tasks: tasks side by side.
        seed: of all that is drawn.
        num_episodes: episodes in a trial; None for a few.
    """

    kind: AgentKind
    law: TaskDistribution
    config: Any
    num_tasks: int
    seed: int
    num_episodes: int | None = None

    def learner(self, name: str = "first") -> Learner:
        """Return a new learner, whose seed the name decides."""
        spaces = self.law.observation_space, self.law.action_space
        return self.kind.learner(*spaces, self.config, CPU, derive(self.seed, "parameters", name))

    def tasks(self) -> Tasks:
        """Draw the tasks: the same at every call."""
        return sample_tasks(self.law, self.num_tasks, self.seed, "train")

    def live(self, learner: Learner, number: int = 0) -> Trial:
        """Let a learner's agent live through a trial on every task; the number decides what chance does.

        Raises:
            Misfit: if the agent does what no environment can take.
        """
        phase = learner.agent.phase
        several = phase.lanes_per_task * (phase.episodes or 1) * _PHASES
        agent = _Watched(learner.agent, self.law.action_space, self.num_tasks * phase.lanes_per_task)
        worker = RolloutWorker(self.law, CPU)
        try:
            return worker.run(
                agent, self.tasks(), self.num_episodes or several, derive(self.seed, "trial", number)
            )
        finally:
            worker.close()

    @cached_property
    def trial(self) -> Trial:
        """What a learner that has learnt nothing lived through."""
        return self.live(self.learner())

    def source(self, number: int = 0) -> torch.Generator:
        """Return a generator for an agent's draws."""
        return generator(self.seed, "agent", number)

    def update(self, learner: Learner, trial: Trial, number: int = 0) -> Mapping[str, float]:
        """Let a learner learn from a trial; the number decides the draws and how far training is."""
        return learner.update(trial, number / 2, generator(self.seed, "update", number))


class _Watched:
    """An agent, whose every choice is looked at before an environment takes it."""

    def __init__(self, agent: Agent[Any], space: gym.Space[Any], rows: int) -> None:
        self.phase, self.begin = agent.phase, agent.begin
        self._agent, self._space, self._rows = agent, space, rows
        self._notes: list[str] | None = None

    def act(self, carry: Any, step: TimeStep) -> tuple[Choice, Any]:
        said = self._agent.act(carry, step)
        if not isinstance(said, tuple) or len(said) != 2 or not isinstance(said[0], Choice):
            raise Misfit(f"act: expected (rl2meta.Choice, carry), got {said!r:.100}; return both")
        for name, action in (("action", said[0].action), ("mode", said[0].mode)):
            self._look_at_action(f"act: {name}", action)
        self._look_at_notes(said[0].notes)
        return said

    def adapt(self, carry: Any, trajectory: Trajectory) -> Any:
        adapted = self._agent.adapt(carry, trajectory)
        if adapted is None and carry is not None:
            raise Misfit("adapt: expected the new carry, got None; return the carry, changed or not")
        return adapted

    def _look_at_action(self, name: str, action: Any) -> None:
        shape = (self._rows, *(self._space.shape or ()))
        whole = is_counted(self._space)
        kind = "integers" if whole else "floats"
        if not isinstance(action, Tensor) or tuple(action.shape) != shape:
            got = list(action.shape) if isinstance(action, Tensor) else f"{action!r:.100}"
            raise Misfit(f"{name}: expected {kind} {list(shape)}, one action a row, got {got}")
        if action.is_floating_point() == whole or action.is_complex() or action.dtype == torch.bool:
            raise Misfit(f"{name}: expected {kind} {list(shape)}, got {action.dtype}")
        if whole:  # a Box's bounds are the worker's to keep
            if (action < 0).any() or (action >= torch.tensor(sizes_of(self._space))).any():
                raise Misfit(f"{name}: expected one of {self._space}, from 0 on, got {action.tolist()}")
        elif not action.isfinite().all():
            raise Misfit(f"{name}: expected finite numbers, got {action.tolist()!s:.200}")

    def _look_at_notes(self, notes: Any) -> None:
        if not isinstance(notes, Mapping):
            raise Misfit(f"act: expected a mapping from names to tensors for notes, got {notes!r:.100}")
        for name, note in notes.items():
            if not isinstance(note, Tensor) or note.dim() < 1 or len(note) != self._rows:
                got = list(note.shape) if isinstance(note, Tensor) else f"{note!r:.100}"
                raise Misfit(f"act: notes[{name!r}]: expected a tensor [{self._rows}, ...], got {got}")
        before, self._notes = self._notes, sorted(notes)
        if before not in (None, self._notes):
            raise Misfit(
                f"act: expected the same names in notes at every step, got {before}, then {self._notes}; "
                "give every name at every step"
            )


@torch.no_grad()
def relive(agent: Agent[Any], trial: Trial, source: torch.Generator) -> Iterator[Choice]:
    """Let an agent see again what a trial showed, and yield what it chooses now at each step."""
    carry = begun(agent, trial, source)
    for number, phase in enumerate(trial.phases):
        if number > 0:
            carry = agent.adapt(carry, trial.phases[number - 1])
        for t in range(len(phase.mask)):
            choice, carry = agent.act(carry, step_at(phase, t))
            yield choice


def begun(agent: Agent[Any], trial: Trial, source: torch.Generator) -> Any:
    """Return the carry of an agent that is about to live through a trial."""
    longest = [phase.most_steps or len(phase.mask) for phase in trial.phases]
    return agent.begin(len(trial.tasks), source, TrialLength(sum(longest), trial.phases[0].horizon))


def step_at(phase: Trajectory, t: int) -> TimeStep:
    """Return what was seen at a step of a phase."""
    step: TimeStep = over_fields(lambda field: field[t], phase.inputs)  # [T, B, ...] -> [B, ...]
    return step


def rearranged(trial: Trial, lanes: int, tasks: Sequence[int]) -> Trial:
    """Return a trial in which row i is what the trial has for task ``tasks[i]``, in all its lanes."""
    chosen = torch.tensor(tasks)
    rows = (chosen.unsqueeze(1) * lanes + torch.arange(lanes)).flatten()  # [len(tasks) × lanes]

    def each(phase: Trajectory) -> Trajectory:
        lived = Lived(*(getattr(phase, name) for name in Lived._fields))
        return replace(phase, **over_fields(lambda field: field[:, rows], lived)._asdict())

    return Trial(trial.tasks[chosen], tuple(each(phase) for phase in trial.phases))


def parts_of(choice: Choice) -> dict[str, Tensor]:
    """Return action, mode and notes by name."""
    return {"action": choice.action, "mode": choice.mode, **{f"note {k}": v for k, v in choice.notes.items()}}


def difference(
    some: Sequence[Choice], others: Sequence[Choice], rows: int | None = None, tolerance: float = 0.0
) -> str | None:
    """Return the first difference between two series of choices, in words, in the first ``rows``."""
    for number, (one, other) in enumerate(zip(some, others, strict=True)):
        for name, here in parts_of(one).items():
            a, b = here[:rows], parts_of(other)[name][:rows]
            if not torch.allclose(a.double(), b.double(), rtol=tolerance, atol=tolerance, equal_nan=True):
                return f"step {number}: {name} {_in_short(a)}, and {_in_short(b)}"
    return None


def _in_short(values: Tensor) -> str:
    return f"{np.array2string(values.numpy(), precision=4, threshold=8, separator=', ')!s:.100}"


def tensors_of(thing: Any) -> list[Tensor]:
    """Return the tensors in a carry of tuples, lists, mappings and dataclasses."""
    if isinstance(thing, Tensor):
        return [thing]
    if isinstance(thing, Mapping):
        parts = list(thing.values())
    elif is_dataclass(thing) and not isinstance(thing, type):
        parts = [getattr(thing, field.name) for field in fields(thing)]
    else:
        parts = list(thing) if isinstance(thing, tuple | list) else []
    return [tensor for part in parts for tensor in tensors_of(part)]


def copied(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return tensors that nobody else will change."""
    return [tensor.detach().clone() for tensor in tensors]


def equal(some: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    """Return whether tensors are equal to the bit."""
    return len(some) == len(others) and all(torch.equal(a, b) for a, b in zip(some, others, strict=True))


def has_phase(agent: Any) -> bool:
    """Return whether an agent says how much it lives through before it adapts."""
    return isinstance(getattr(agent, "phase", None), Phase)
