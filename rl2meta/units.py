"""Units: a network sees observations, actions and rewards on a scale of about 1, whatever their own unit is.

    x → (x − centre) / scale

Bounds give centre (their middle) and scale (half of their width) where they are finite. Otherwise they are
measured in training, and do not change at test.
"""

import logging
from collections.abc import Sequence
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import torch
from pydantic import BaseModel, Field
from torch import Tensor, nn

from rl2meta.images import is_image
from rl2meta.shards import ALONE, Shards
from rl2meta.trial import Trajectory

_LARGEST = 10.0  # units; an observation or a reward further away is seen as this far away
_UNBOUNDED = 1e6  # bounds beyond this say nothing about the size of observations
_NEAR = (1 / 3, 3.0)  # half widths and bounds of observations that need no other unit
_log = logging.getLogger("rl2meta")


class UnitsConfig(BaseModel):
    """The settings of an agent about units."""

    action_units: Literal["normalised", "raw"] = Field(
        "normalised",
        description="unit of the policy's continuous actions: normalised (−1 and 1 are the bounds of the "
        "action; entries without finite bounds keep their unit) or raw",
    )
    observation_units: Literal["normalised", "raw"] = Field(
        "normalised",
        description="unit of the observations that the network sees: normalised (by their bounds, or by mean "
        "and standard deviation in training where they have none) or raw",
    )
    reward_units: Literal["measured", "raw"] = Field(
        "measured",
        description="unit and zero of rewards, for the network's input and for the loss: measured on the "
        "first batch, or raw",
    )


UNITS = tuple(UnitsConfig.model_fields)
FORMER_UNITS = dict.fromkeys(UNITS, "raw")
"""The settings of runs from before these settings existed."""
RAW = UnitsConfig(action_units="raw", observation_units="raw", reward_units="raw")
"""Everything stays as it is."""


def action_units(space: gym.Space[Any], config: UnitsConfig) -> tuple[Tensor, Tensor] | None:
    """Return centre and scale of each entry of an action, [A] each; 0 and 1 without finite bounds.

    The result is None if actions stay as they are: discrete and raw actions, and bounds of −1 and 1.
    """
    if config.action_units == "raw" or not isinstance(space, gym.spaces.Box):
        return None
    low, high = (torch.as_tensor(bound, dtype=torch.float64).flatten() for bound in (space.low, space.high))
    finite = (low > -1e30) & (high < 1e30) & (high > low)
    centre = torch.where(finite, low / 2 + high / 2, 0.0)
    scale = torch.where(finite, high / 2 - low / 2, 1.0)
    return None if bool((centre == 0).all() and (scale == 1).all()) else (centre.float(), scale.float())


class ActionUnits(nn.Module):
    """Turns encoded actions, [..., A], into the policy's units.

    Args:
        units: centre and scale, [A] each; None: actions stay as they are.
    """

    centre: Tensor
    scale: Tensor

    def __init__(self, units: tuple[Tensor, Tensor] | None) -> None:
        super().__init__()
        self.active = units is not None
        for name, value in zip(("centre", "scale"), units or (torch.zeros(1), torch.ones(1)), strict=True):
            self.register_buffer(name, value, persistent=False)

    def forward(self, action: Tensor) -> Tensor:
        """Return the action in the policy's units, [..., A]."""
        return (action - self.centre) / self.scale if self.active else action


class ObservationUnits(nn.Module):
    """Turns encoded observations, [..., size], into units of the network.

    Entries whose finite bounds are far from 1 get the unit of their bounds. Entries without bounds get mean
    and deviation of all that ``measure`` was called with; before the first call they stay as they are.

    Args:
        space: of the observations; images and discrete observations stay as they are.
        normalised: false: all observations stay as they are.
    """

    open: Tensor  # bool [size]: whether an entry has no bounds
    centre: Tensor
    scale: Tensor
    count: Tensor
    mean: Tensor
    square: Tensor

    def __init__(self, space: gym.Space[Any], normalised: bool) -> None:
        super().__init__()
        box = space if isinstance(space, gym.spaces.Box) and not is_image(space) else None
        low, high = _bounds(box)
        bounded = (low >= -_UNBOUNDED) & (high <= _UNBOUNDED) & (high > low)
        low, high = np.where(bounded, low, -1.0), np.where(bounded, high, 1.0)
        half, furthest = (high - low) / 2, np.maximum(abs(low), abs(high))
        far = bounded & ((half < _NEAR[0]) | (furthest > _NEAR[1]))
        self.measured = normalised and bool((~bounded).any())
        self.active = self.measured or (normalised and bool(far.any()))
        self.register_buffer("open", torch.as_tensor(~bounded), persistent=False)
        fixed = [np.where(far, low / 2 + high / 2, 0.0), np.where(far, half, 1.0)]
        for name, values in zip(("centre", "scale"), fixed, strict=True):
            self.register_buffer(name, torch.as_tensor(values, dtype=torch.float64), persistent=self.measured)
        for name, size in (("count", ()), ("mean", low.shape), ("square", low.shape)):
            if self.measured:
                self.register_buffer(name, torch.zeros(size, dtype=torch.float64))

    def forward(self, observation: Tensor) -> Tensor:
        """Return observations in units of the network, [..., size]."""
        if not self.active:
            return observation
        seen = (observation - self.centre) / self.scale  # float64: the centre may be large
        if self.measured:
            seen = torch.where(self.open, seen.clamp(-_LARGEST, _LARGEST), seen)
        return seen.to(observation.dtype)

    @torch.no_grad()
    def measure(
        self, observations: Sequence[Tensor], masks: Sequence[Tensor], shards: Shards = ALONE
    ) -> None:
        """Add observations [..., size] where the masks [...] are true; mean and deviation are those of all.

        Args:
            observations: [..., size], one for each own shard.
            masks: [...], one for each own shard.
            shards: of the batch.
        """
        if not self.measured:
            return
        pairs = zip(observations, masks, strict=True)
        for moments in shards.gather([_moments(*pair) for pair in pairs]):
            self._add(*moments)

    def _add(self, number: Tensor, mean: Tensor, square: Tensor) -> None:
        """Add ``number`` observations with their mean and their sum of squares around it, [size] each.

        Source: Chan, Golub & LeVeque 1979, *Updating Formulae and a Pairwise Algorithm for Computing Sample
        Variances*, equation 2.1.
        """
        count = self.count + number[0]
        difference = mean - self.mean
        self.square += square
        self.square += difference.square() * self.count * number / count
        self.mean += difference * number / count
        self.count.copy_(count)  # in place, as all of them: a recorded rollout reads this memory
        deviation = (self.square / count).sqrt()
        self.centre.copy_(torch.where(self.open, self.mean, self.centre))
        self.scale.copy_(torch.where(self.open & (deviation > 0), deviation, self.scale))


class RewardUnits(nn.Module):
    """Centre and scale of rewards, measured once: mean and standard deviation of the first batch that pays.

    Constant rewards have their size as scale. Before the measurement ``scale`` is 0, and so is every reward.
    """

    centre: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("centre", torch.zeros((), dtype=torch.float64))
        self.register_buffer("scale", torch.zeros((), dtype=torch.float64))

    def forward(self, reward: Tensor) -> Tensor:
        """Return rewards in their unit, [...]."""
        inverse = torch.where(self.scale > 0, 1 / self.scale, 0.0)
        seen = ((reward - self.centre) * inverse).clamp(-_LARGEST, _LARGEST)
        return seen.to(reward.dtype)

    @torch.no_grad()
    def measure(self, rewards: Sequence[Tensor], masks: Sequence[Tensor], shards: Shards = ALONE) -> None:
        """Measure rewards [...] where the masks are true; a second measurement changes nothing."""
        set_once(self.centre, self.scale, rewards, masks, shards)


@torch.no_grad()
def set_once(
    centre: Tensor,
    scale: Tensor,
    rewards: Sequence[Tensor],
    masks: Sequence[Tensor],
    shards: Shards = ALONE,
) -> None:
    """Set centre and scale in place to mean and deviation of rewards, unless the scale is set already.

    Args:
        centre: [].
        scale: [], 0 if it is not set.
        rewards: [...], one for each own shard; constant rewards have their size as scale.
        masks: [...], true where rewards count.
        shards: of the batch.
    """
    paid = [reward[mask].double() for reward, mask in zip(rewards, masks, strict=True)]  # [n] each
    mean, deviation = _level(paid, shards)
    constant = deviation <= 1e-9 * mean.abs()  # but for the rounding of the mean
    size = torch.where(constant, mean.abs(), deviation)
    new = (scale == 0) & (size > 0)
    centre.copy_(torch.where(new, mean, centre))
    scale.copy_(torch.where(new, size, scale))


def _moments(observation: Tensor, mask: Tensor) -> Tensor:
    """Return number, mean and sum of squares around the mean of observations, [3, size]."""
    new = observation[mask].double()  # [n, size]
    mean = new.mean(dim=0)
    return torch.stack([torch.full_like(mean, len(new)), mean, (new - mean).square().sum(dim=0)])


def _level(paid: Sequence[Tensor], shards: Shards) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of the rewards of all shards, [n] each."""
    if shards.total == 1:
        return paid[0].mean(), paid[0].std(correction=0)
    counts = [torch.full((), len(each), dtype=each.dtype, device=each.device) for each in paid]
    mean = shards.mean([each.mean() for each in paid], counts)
    return mean, shards.mean([(each - mean).square().mean() for each in paid], counts).sqrt()


def warn_of_clipped(phases: Sequence[Trajectory], space: gym.spaces.Box, told: set[int]) -> None:
    """Warn of each entry of an action that lies outside of its bounds in most steps of an update.

    The environment gets a clipped action then, so the policy learns little from such steps.

    Args:
        phases: of the trials of an update.
        space: of the actions.
        told: the entries that were told of before; new ones are added.
    """
    taken = torch.cat([phase.action[phase.mask].flatten(1) for phase in phases])  # [n, A]
    low, high = (torch.as_tensor(bound, device=taken.device).flatten() for bound in (space.low, space.high))
    shares = ((taken < low) | (taken > high)).double().mean(dim=0).tolist()
    for entry, share in enumerate(shares):
        if share > 0.5 and entry not in told:
            told.add(entry)
            _log.warning(
                "entry %d of the actions lay outside of its bounds [%g, %g] in %.0f %% of the steps and was "
                "clipped; use agent.action_units=normalised or a smaller agent.initial_deviation",
                entry,
                low[entry],
                high[entry],
                100 * share,
            )


def _bounds(box: gym.spaces.Box | None) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    if box is None:
        return -np.ones(1), np.ones(1)
    return box.low.astype(np.float64).ravel(), box.high.astype(np.float64).ravel()
