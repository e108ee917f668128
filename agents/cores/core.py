"""The interface of cores: networks that read a trial one step at a time, or a whole trial at once."""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from rl2meta.trial import TrialLength


class Position(NamedTuple):
    """The position of a single step in its trial.

    Attributes:
        previous_observation: o_{t-1}, encoded, [B, size]; zeros at a trial's start.
        episode_step: number of steps so far in the episode, int64 [B].
        trial_step: number of steps so far in the trial, the same in every row.
    """

    previous_observation: Tensor
    episode_step: Tensor
    trial_step: int


@dataclass(frozen=True)
class Seen:
    """The input of a core: one step of B trials, or all T steps of B trials.

    Attributes:
        observation: o_t, encoded as a float vector, [B, size], or [T, B, size] for whole trials.
        action: a_{t-1}, encoded, [..., action size]; zeros at a trial's start.
        reward: r_{t-1}, float [...].
        first: true if o_t begins an episode, bool [...].
        trial_length: maximum number of steps in the trial; a ``TrialLength`` if the horizon of its episodes
            is known too; None if unknown.
        position: of a single step; None for whole trials, where it is computed from the other fields.
    """

    observation: Tensor
    action: Tensor
    reward: Tensor
    first: Tensor
    trial_length: int | None = None
    position: Position | None = None

    @cached_property
    def previous_observation(self) -> Tensor:
        """o_{t-1}, encoded like o_t; zeros at a trial's start."""
        if self.position is not None:
            return self.position.previous_observation
        return torch.cat([torch.zeros_like(self.observation[:1]), self.observation[:-1]])

    @cached_property
    def episode_step(self) -> Tensor:
        """Number of steps in the episode before the action at o_t, int64 [...]."""
        if self.position is not None:
            return self.position.episode_step
        step = torch.arange(len(self.first), device=self.first.device).unsqueeze(1)  # [T, 1]
        return step - (step * self.first).cummax(dim=0).values  # [T, B]

    @cached_property
    def trial_step(self) -> Tensor:
        """Number of steps in the trial before the action at o_t, int64, [] or [T, 1]."""
        device = self.first.device
        if self.position is not None:
            return torch.full((), self.position.trial_step, device=device)
        return torch.arange(len(self.first), device=device).unsqueeze(1)

    @cached_property
    def elapsed(self) -> Tensor:
        """The fractions of the episode and of the trial before the action at o_t: h/H and t/T, [..., 2].

        h and t are ``episode_step`` and ``trial_step``. H is the horizon, T the ``trial_length`` of this
        trial, whatever it was in training: both fractions are in [0, 1), and pass more slowly in a longer
        trial. An H or T that is not known counts as infinite: its fraction stays 0.
        """
        length = self.trial_length
        horizon = length.horizon if isinstance(length, TrialLength) else None
        h = self.episode_step.to(self.reward.dtype) / (horizon or math.inf)
        t = self.trial_step.to(self.reward.dtype) / (length or math.inf)
        return torch.stack([h, t.expand_as(h)], dim=-1)


class Output(NamedTuple):
    """The output of a core for each step.

    Attributes:
        features: of the trial so far, [..., out_features].
        parameters: of the policy's distribution (logits; or means and log standard deviations), [..., P];
            None if a linear layer on the features computes them.
    """

    features: Tensor
    parameters: Tensor | None = None


class Core(Protocol):
    """A network that reads trials: step by step with ``step``, or all steps at once when called.

    Both compute the same function. A core is a ``torch.nn.Module``; its constructor takes the observation
    space, the action space and the core's config.
    """

    @property
    def out_features(self) -> int:
        """The length of the core's features."""
        ...

    @property
    def gives_parameters(self) -> bool:
        """Whether the core also computes the parameters of the policy's distribution."""
        ...

    def begin(self, rows: int, steps: int | None) -> Any:
        """Return the state at the start of ``rows`` trials; ``steps`` is their maximum length, if known."""
        ...

    def step(self, seen: Seen, state: Any) -> tuple[Output, Any]:
        """Read one step of every trial, [B, ...]; return the output and the next state."""
        ...

    def repeated(self, state: Any, times: int) -> Any:
        """Return a state of rows × ``times`` trials: each of ``state``, so many times side by side."""
        ...

    def __call__(self, seen: Seen) -> Output:
        """Read whole trials from their starts, [T, B, ...]."""
        ...
