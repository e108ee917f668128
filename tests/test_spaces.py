import gymnasium as gym
import numpy as np
import pytest
import torch

from rl2meta.spaces import bounded, encoding


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
    with pytest.raises(TypeError, match=r"expected a Discrete or Box space, got MultiBinary\(3\)"):
        encoding(gym.spaces.MultiBinary(3))


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
