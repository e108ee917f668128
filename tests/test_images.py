import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3.common.preprocessing import is_image_space, is_image_space_channels_first
from torch import Tensor

from rl2meta.images import ImageEncoder, is_image
from rl2meta.learner_state import seeded
from rl2meta.spaces import encoding


def _space(*shape: int, dtype: type = np.uint8, high: float = 255) -> gym.spaces.Box:
    return gym.spaces.Box(0, high, shape, dtype)


def _encoder(space: gym.spaces.Box, seed: int = 0) -> ImageEncoder:
    return seeded(lambda: ImageEncoder(space), seed)


def _picture(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def _encoded(space: gym.spaces.Box, element: np.ndarray) -> Tensor:
    return _encoder(space)(encoding(space).encode(torch.as_tensor(np.ascontiguousarray(element))))


@pytest.mark.parametrize(
    ("space", "image"),
    [
        (_space(8, 8), True),
        (_space(8, 8, 3), True),
        (_space(3, 8, 8), True),
        (_space(8, 8, 3, dtype=np.float32, high=1), True),
        (_space(8, 8, 3, dtype=np.float64, high=np.inf), True),
        (_space(8, 8, dtype=np.float32, high=1), False),  # a matrix
        (_space(8, 8, 3, dtype=np.int64), False),
        (_space(7, 7, 3, high=10), False),  # codes
        (_space(8), False),
        (_space(2, 8, 8, 3), False),
        (_space(), False),
        (gym.spaces.Discrete(3), False),
        (gym.spaces.MultiDiscrete([256, 256]), False),
    ],
)
def test_what_is_an_image(space: gym.Space[object], image: bool) -> None:
    assert is_image(space) is image
    if not image and isinstance(space, gym.spaces.Box):
        with pytest.raises(ValueError, match=r"expected a Box of images .* use its flat encoding"):
            ImageEncoder(space)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16])
@pytest.mark.parametrize("high", [255, 254])
def test_sb3_calls_the_same_boxes_of_integers_images(dtype: type, high: int) -> None:
    space = _space(8, 9, 3, dtype=dtype, high=high)
    assert is_image(space) == is_image_space(space)


@pytest.mark.parametrize(
    "shape", [(3, 8, 8), (8, 8, 3), (4, 4, 4), (3, 5, 3), (3, 7, 9), (9, 7, 3), (1, 1, 3), (5, 2, 1)]
)
def test_the_channel_axis_is_sb3s(shape: tuple[int, int, int]) -> None:
    space = _space(*shape)
    channels = shape[0] if is_image_space_channels_first(space) else shape[2]
    assert _encoder(space).layers[0].in_channels == channels


def test_of_equal_axes_the_first_is_the_channels() -> None:
    picture = _picture(3, 5, 3)
    channels_first = torch.as_tensor(picture).unsqueeze(0) / 255
    want = _encoder(_space(3, 5, 3)).layers(channels_first)[0]
    torch.testing.assert_close(_encoded(_space(3, 5, 3), picture), want)


@pytest.mark.parametrize(
    "shape", [(1, 1), (1, 7), (2, 3), (8, 8), (84, 84), (1, 1, 1), (5, 9, 3), (3, 17, 16)]
)
@pytest.mark.parametrize("leading", [(), (0,), (2,), (3, 2)])
def test_any_size_and_any_leading_axes(shape: tuple[int, ...], leading: tuple[int, ...]) -> None:
    space = _space(*shape)
    encoder, pixels = _encoder(space), torch.randint(256, (*leading, int(np.prod(shape)))).float()
    features = encoder(pixels)
    assert features.shape == (*leading, encoder.out_features) and features.isfinite().all()
    if len(leading) == 2:
        torch.testing.assert_close(features[2, 1], encoder(pixels[2, 1]))


def test_the_order_of_the_axes_does_not_matter() -> None:
    picture = _picture(6, 9, 3)
    last = _encoded(_space(6, 9, 3), picture)
    first = _encoded(_space(3, 6, 9), picture.transpose(2, 0, 1))
    torch.testing.assert_close(last, first)
    assert not torch.allclose(last, _encoded(_space(6, 9, 3), picture[:, ::-1]))  # but the picture does


def test_two_axes_are_one_channel() -> None:
    grey = _picture(6, 9)
    want = _encoded(_space(6, 9), grey)
    torch.testing.assert_close(want, _encoded(_space(6, 9, 1), grey[..., None]))
    torch.testing.assert_close(want, _encoded(_space(1, 6, 9), grey[None]))
    assert _encoder(_space(3, 9)).layers[0].in_channels == 1  # few rows are no channels


def test_bytes_are_scaled_and_floats_are_not() -> None:
    picture = _picture(5, 4, 3)
    want = _encoded(_space(5, 4, 3), picture)
    share = (picture / np.float32(255)).astype(np.float32)
    torch.testing.assert_close(want, _encoded(_space(5, 4, 3, dtype=np.float32, high=1), share))
    as_it_is = _encoded(_space(5, 4, 3, dtype=np.float32, high=255), picture.astype(np.float32))
    assert not torch.allclose(want, as_it_is)


def _convolved(picture: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """3 × 3, stride 2, padding 1, ReLU, pixel by pixel: [C, H, W] -> [out, ⌈H/2⌉, ⌈W/2⌉]."""
    padded = np.pad(picture, ((0, 0), (1, 1), (1, 1)))
    _, height, width = picture.shape
    out = np.empty((len(bias), -(-height // 2), -(-width // 2)))
    for row in range(out.shape[1]):
        for column in range(out.shape[2]):
            seen = padded[:, 2 * row : 2 * row + 3, 2 * column : 2 * column + 3]
            out[:, row, column] = np.maximum((weight * seen).sum(axis=(1, 2, 3)) + bias, 0)
    return out


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 5, 2), (10, 7, 3)])
def test_features_by_hand(shape: tuple[int, int, int]) -> None:
    """Every pixel of every layer in NumPy."""
    space, picture = _space(*shape), _picture(*shape)
    encoder = _encoder(space)
    parameters = [p.detach().double().numpy() for p in encoder.parameters()]
    assert [len(bias) for bias in parameters[1::2]] == [16, 32, 32, 64]
    x = picture.transpose(2, 0, 1) / 255
    for weight, bias in zip(parameters[0:6:2], parameters[1:6:2], strict=True):
        x = _convolved(x, weight, bias)
    want = np.maximum(parameters[6] @ x.ravel() + parameters[7], 0)
    got = encoder(torch.as_tensor(picture.ravel()).float()).detach().numpy()
    np.testing.assert_allclose(got, want, atol=1e-5)
    assert (want > 0).any()


@pytest.mark.parametrize("brightness", [0, 128, 255])
def test_the_gradient_reaches_every_layer(brightness: int) -> None:
    """Also of a black picture, but for the first weights, which nothing then passes."""
    encoder = _encoder(_space(8, 8, 3))
    encoder(torch.full((4, 192), float(brightness))).square().sum().backward()
    still = {name for name, p in encoder.named_parameters() if p.grad is None or not p.grad.any()}
    assert still == ({"layers.0.weight"} if brightness == 0 else set())


def test_weights_are_the_seeds_and_pixels_stay() -> None:
    space = _space(8, 8)
    a, b, c = (_encoder(space, seed).layers[0].weight for seed in (1, 1, 2))
    assert torch.equal(a, b) and not torch.equal(a, c)
    pixels = torch.full((2, 64), 255.0)
    _encoder(space)(pixels)
    assert (pixels == 255).all()
