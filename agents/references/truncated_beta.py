"""Draws from Beta distributions that are truncated to an interval, for all tasks at once."""

from typing import NamedTuple

import torch
from torch import Tensor

_ROUNDS = 8  # tunable: each accepts at least six of seven proposals, for every s and f (measured)
_TINY = 1e-300  # avoids a division by a slope of 0


def sample_truncated_beta(
    successes: Tensor, failures: Tensor, low: float, high: float, num_samples: int, generator: torch.Generator
) -> Tensor:
    """Draw from the density proportional to p^s (1 − p)^f on [low, high].

    The method is rejection sampling. (Draws from the Beta distribution on [0, 1] would almost always be
    rejected if the interval is far from s / (s + f).) The logarithm h of the density is concave, so three of
    its tangents bound it: the flat tangent at its mode m, and one on each side, at a distance that fits the
    width of the density. Proposals are drawn from this bound by inversion. All rounds always run, so nothing
    is read back from the device; a draw that no round accepts, at most one in a million, keeps its last
    proposal.

    Args:
        successes: s >= 0, [B, k].
        failures: f >= 0, [B, k].
        low: lower bound of p.
        high: upper bound of p.
        num_samples: number of draws for each arm.
        generator: random stream of the draws.

    Returns:
        [num_samples, B, k], in the type of ``successes``.

    Source: Gilks & Wild 1992, "Adaptive rejection sampling for Gibbs sampling", with fixed tangents.
    """
    s, f = successes.double(), failures.double()
    bound = _bound(s, f, low, high)
    draw, accepted = bound.mode.expand(num_samples, *s.shape), torch.zeros_like(s, dtype=torch.bool)
    for _ in range(_ROUNDS):
        chance = torch.rand(
            (3, num_samples, *s.shape), generator=generator, device=s.device, dtype=torch.float64
        )
        proposal, height = _propose(bound, chance[0], chance[1])
        proposal = proposal.clamp(low, high)
        fits = chance[2].log() < _log_density(s, f, proposal) - bound.top - height
        draw, accepted = torch.where(accepted, draw, proposal), accepted | fits
    return draw.to(successes.dtype)


class _Bound(NamedTuple):
    """An upper bound of h: a flat top, and a falling line on each side; every tensor [B, k].

    Attributes:
        mode: m.
        top: h(m).
        left, right: the ends of the flat top.
        left_slope, right_slope: absolute slopes of the two lines, >= 0.
        left_length, right_length: distances from the ends of the top to the ends of the interval.
    """

    mode: Tensor
    top: Tensor
    left: Tensor
    right: Tensor
    left_slope: Tensor
    right_slope: Tensor
    left_length: Tensor
    right_length: Tensor


def _bound(s: Tensor, f: Tensor, low: float, high: float) -> _Bound:
    mode = (s / (s + f).clamp(min=1)).clamp(low, high)
    top = _log_density(s, f, mode)
    curvature = _share(s, mode.square()) + _share(f, (1 - mode).square())  # −h''(m)
    # √2 standard deviations for a normal density, one scale length for an exponential density.
    away = 1 / (_slope(s, f, mode).abs() + (curvature / 2).sqrt())
    left, left_slope = _touch(s, f, top, mode - torch.minimum(away, (mode - low) / 2), low)
    right, right_slope = _touch(s, f, top, mode + torch.minimum(away, (high - mode) / 2), high)
    left, right = torch.minimum(left, mode), torch.maximum(right, mode)
    return _Bound(mode, top, left, right, left_slope, right_slope, left - low, high - right)


def _touch(s: Tensor, f: Tensor, top: Tensor, point: Tensor, end: float) -> tuple[Tensor, Tensor]:
    """Return where the tangent at ``point`` meets the top (``end`` if it is flat), and its absolute slope."""
    slope = _slope(s, f, point)
    meets = point + (top - _log_density(s, f, point)) / slope
    return torch.where(slope == 0, end, meets), slope.abs()


def _propose(bound: _Bound, piece: Tensor, place: Tensor) -> tuple[Tensor, Tensor]:
    """Return draws from the bound, and the bound at each draw minus h(m); it is at least h − h(m)."""
    left_mass, right_mass = (
        -torch.expm1(-slope * length) / slope.clamp(min=_TINY)
        for slope, length in (
            (bound.left_slope, bound.left_length),
            (bound.right_slope, bound.right_length),
        )
    )
    flat = bound.right - bound.left
    piece = piece * (left_mass + flat + right_mass)
    is_left, is_right = piece < left_mass, piece >= left_mass + flat
    slope = torch.where(is_left, bound.left_slope, bound.right_slope)
    length = torch.where(is_left, bound.left_length, bound.right_length)
    out = -torch.log1p(place * torch.expm1(-slope * length)) / slope.clamp(min=_TINY)
    on_top = bound.left + place * flat
    proposal = torch.where(is_left, bound.left - out, torch.where(is_right, bound.right + out, on_top))
    return proposal, torch.where(is_left | is_right, -slope * out, 0.0)


def _log_density(s: Tensor, f: Tensor, p: Tensor) -> Tensor:
    """Return h(p) = s ln p + f ln(1 − p), where 0 ln 0 = 0."""
    log_density: Tensor = torch.xlogy(s, p) + torch.special.xlog1py(f, -p)
    return log_density


def _slope(s: Tensor, f: Tensor, p: Tensor) -> Tensor:
    """Return h'(p) = s / p − f / (1 − p)."""
    return _share(s, p) - _share(f, 1 - p)


def _share(count: Tensor, of: Tensor) -> Tensor:
    """Return count / of, where 0 / 0 = 0."""
    return torch.where(count > 0, count / of, 0.0)
