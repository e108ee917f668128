"""Whether agent, spaces and flat observations fit together."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from rl2meta.counted import is_counted, sizes_of

Array = NDArray[Any]
_SPACES = "give the spaces of training, run.distribution.observation_space and .action_space"


@contextmanager
def fitting(observation_space: gym.Space[Any], action_space: gym.Space[Any]) -> Iterator[None]:
    """Turn errors about sizes, of an agent that acts in the block, into one about the spaces.

    Raises:
        ValueError: with the space of observations and the space of actions.
    """
    try:
        yield
    except (RuntimeError, IndexError, ValueError) as error:  # what torch raises for sizes that do not fit
        raise ValueError(
            f"expected the spaces that the agent was made for, got {observation_space} and {action_space}, "
            f"on which it raised {type(error).__name__}: {error}; {_SPACES}"
        ) from error


def first_step(observation_space: gym.Space[Any], sizes: Sequence[int]) -> Array:
    """Return a flat observation of a trial's first step.

    It holds the last element of a Discrete space, which an agent of fewer elements does not know, or the
    element of a Box that is nearest to 0.

    Args:
        observation_space: of one environment.
        sizes: of the parts of a flat observation.
    """
    flat = np.zeros(sum(sizes), np.float32)
    if isinstance(observation_space, gym.spaces.Box):
        flat[: sizes[0]] = np.clip(0, observation_space.low, observation_space.high).ravel()
    else:
        flat[sizes[0] - 1] = 1
    flat[-1] = 1
    return flat


def check_action(action: Tensor, space: gym.Space[Any]) -> None:
    """Refuse an action that is none of the space; only the bounds of a Box do not matter.

    Raises:
        ValueError: for another shape, or a number that a Discrete space does not have.
    """
    other = tuple(action.shape) != (space.shape or ())
    if other or (isinstance(space, gym.spaces.Discrete) and not 0 <= int(action) < space.n):
        raise ValueError(
            f"expected an action of {space} from the agent, got {action.tolist()!s:.200}; it was made for "
            f"another space: {_SPACES}"
        )


def check_flat(batch: Array) -> None:
    """Refuse flat observations whose last entry, 1 where an episode begins, is neither 0 nor 1.

    A wrapper that scales observations changes this entry as well.

    Args:
        batch: flat observations, [num_envs, size].

    Raises:
        ValueError: for the first row that is wrong.
    """
    mark = batch[:, -1]
    wrong = (mark != 0) & (mark != 1)
    if wrong.any():
        raise ValueError(
            "expected observations as TrialEnv gives them, which end in 1 where an episode begins, else in "
            f"0, got {mark[wrong][0]:g} at the end of row {int(wrong.argmax())}; use VecNormalize with "
            "norm_obs=False, and no other wrapper around TrialEnv that changes observations"
        )


def check_masks(masks: Any, rows: int, space: gym.Space[Any]) -> Array:
    """Return masks of a discrete action ``space`` as bool [rows, A].

    Raises:
        ValueError: for another shape, another space, numbers other than 0 and 1, and a row that leaves an
            entry of an action without a legal value.
    """
    if not is_counted(space):
        raise ValueError(f"action_masks: expected discrete actions, got {space}; leave action_masks out")
    sizes = sizes_of(space)
    given = np.atleast_2d(_as_array(masks))
    if given.shape != (rows, sum(sizes)) or not np.isin(given, (0, 1)).all():
        raise ValueError(
            f"action_masks: expected [{rows}, {sum(sizes)}] of 1 for a legal action and 0 for any other, got "
            f"{list(given.shape)}: {masks!s:.200}"
        )
    some = np.logical_or.reduceat(given != 0, np.cumsum([0, *sizes[:-1]]), axis=1).all(axis=1)  # [rows]
    if not some.all():
        row = int((~some).argmax())
        raise ValueError(
            f"action_masks: expected a legal action in every row, got {given[row]} in row {row}; begin a new "
            "episode where none is left"
        )
    return given.astype(bool)


def _as_array(masks: Any) -> Array:
    """Return an array of numbers; empty if there is none."""
    try:
        array = np.asarray(masks)
    except ValueError:  # rows of different lengths
        return np.empty(0)
    return array if array.dtype.kind in "biuf" else np.empty(0)
