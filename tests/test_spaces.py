from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from rl2meta.errors import UserError
from rl2meta.spaces import bounded, encoding, input_encoding, num_looked_up


def test_discrete_is_one_hot_as_gymnasium_flattens_it() -> None:
    space = gym.spaces.Discrete(4, start=2)
    encoded = encoding(space)
    assert encoded.size == 4
    for element in (2, 3, 5):
        want = gym.spaces.flatten(space, np.int64(element))
        assert encoded.encode(torch.tensor([element]))[0].tolist() == want.tolist()
    assert encoded.encode(torch.full((7, 3), 2)).shape == (7, 3, 4)


def test_box_is_flattened_and_float() -> None:
    encoded = encoding(gym.spaces.Box(0, 255, (2, 3), np.uint8))
    assert encoded.size == 6
    x = torch.arange(12, dtype=torch.uint8).reshape(2, 2, 3)
    assert encoded.encode(x).dtype == torch.float32
    assert encoded.encode(x)[1].tolist() == [6, 7, 8, 9, 10, 11]


def test_an_unsupported_space_is_named() -> None:
    with pytest.raises(TypeError, match=r"expected a Discrete, Box, MultiDiscrete .* space, got Text"):
        encoding(gym.spaces.Text(3))


@pytest.mark.parametrize(
    "space",
    [
        gym.spaces.MultiDiscrete([2, 4, 3]),
        gym.spaces.MultiDiscrete([[2, 4], [3, 1]], start=[[5, -1], [0, 2]]),
        gym.spaces.MultiBinary(3),
        gym.spaces.MultiBinary([2, 2]),
    ],
    ids=str,
)
def test_several_entries_are_one_hot_one_after_another_as_gymnasium_flattens_them(space: Any) -> None:
    encoded, binary = encoding(space), isinstance(space, gym.spaces.MultiBinary)
    space.seed(0)
    elements = [space.sample() for _ in range(20)]
    vectors = encoded.encode(torch.as_tensor(np.stack(elements)))
    assert vectors.shape == (20, encoded.size)
    for vector, element in zip(vectors, elements, strict=True):
        flat = gym.spaces.flatten(space, element)
        want = np.stack([1 - flat, flat], axis=1).ravel() if binary else flat  # (no, yes) of every entry
        assert vector.tolist() == want.tolist()


def test_many_values_are_counted_instead_of_one_hot() -> None:
    few, many = gym.spaces.Discrete(1024, start=3), gym.spaces.Discrete(1025, start=3)
    assert (num_looked_up(few), num_looked_up(many)) == (0, 1026)
    assert input_encoding(few).size == 1024
    counted = input_encoding(many)
    assert counted.size == 1  # 0 is for no observation
    assert counted.encode(torch.tensor([[3, 4], [1027, 5]])).tolist() == [[[1], [2]], [[1025], [3]]]
    with pytest.raises(UserError, match=r"expected at most 1,000,000 discrete observations, .* got Discrete"):
        input_encoding(gym.spaces.Discrete(10**7))


def test_actions_are_clipped_to_a_box_entry_by_entry() -> None:
    space = gym.spaces.Box(np.array([-1, 0], np.float32), np.array([1, 0.5], np.float32))
    clip = bounded(space)
    assert clip(torch.tensor([[2.0, 2.0], [-3.0, -3.0], [0.5, 0.25]])).tolist() == [
        [1, 0.5],
        [-1, 0],
        [0.5, 0.25],
    ]
    arms = torch.tensor([3, 1])
    assert bounded(gym.spaces.Discrete(4))(arms) is arms
