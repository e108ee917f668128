"""What a core is: a network that reads a trial one step at a time, or a whole trial at once."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor


class Position(NamedTuple):
    """Where in its trial a single step stands.

    Attributes:
        previous_observation: o_{t-1}, encoded, [B, size]; zeros at a trial's start.
        episode_step: steps taken in the episode so far, int64 [B].
        trial_step: steps taken in the trial so far, the same in every row.
    """

    previous_observation: Tensor
    episode_step: Tensor
    trial_step: int


@dataclass(frozen=True)
class Seen:
    """What a core may look at: one step of B trials, or all T steps of them.

    Attributes:
        observation: o_t, encoded as a float vector, [B, size], or [T, B, size] for whole trials.
        action: a_{t-1}, encoded, [..., action size]; zeros at a trial's start.
        reward: r_{t-1}, float [...].
        first: o_t begins an episode, bool [...].
        trial_length: the steps that the trial may take; None where nobody knows.
        position: where a single step stands; None for whole trials, which tell it themselves.
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
        """Steps taken in the episode before o_t is acted on, int64 [...]."""
        if self.position is not None:
            return self.position.episode_step
        step = torch.arange(len(self.first), device=self.first.device).unsqueeze(1)  # [T, 1]
        return step - (step * self.first).cummax(dim=0).values  # [T, B]

    @cached_property
    def trial_step(self) -> Tensor:
        """Steps taken in the trial before o_t is acted on, int64, [] or [T, 1]."""
        device = self.first.device
        if self.position is not None:
            return torch.full((), self.position.trial_step, device=device)
        return torch.arange(len(self.first), device=device).unsqueeze(1)


class Output(NamedTuple):
    """What a core gives for each step.

    Attributes:
        features: of the trial so far, [..., out_features].
        parameters: of the policy's distribution (logits; or means and log standard deviations), [..., P];
            None from a core that leaves them to a linear layer on its features.
    """

    features: Tensor
    parameters: Tensor | None = None


class Core(Protocol):
    """A network that reads trials: one step after another by ``step``, or all steps at once by calling it.

    Both are the same function. A core is a ``torch.nn.Module``, built from the observation space, the action
    space and the core's own config.
    """

    @property
    def out_features(self) -> int:
        """The length of the features that it gives."""
        ...

    @property
    def gives_parameters(self) -> bool:
        """Whether it gives the parameters of the policy's distribution too."""
        ...

    def begin(self, rows: int, steps: int | None) -> Any:
        """Return the state at the start of ``rows`` trials of at most ``steps`` steps, None if not known."""
        ...

    def step(self, seen: Seen, state: Any) -> tuple[Output, Any]:
        """Read one step of every trial, [B, ...]; return what it gives, and the next state."""
        ...

    def __call__(self, seen: Seen) -> Output:
        """Read whole trials from their starts, [T, B, ...]."""
        ...
