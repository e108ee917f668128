"""Image observations: which spaces are images, and the encoder from flat pixels to features."""

from typing import Any, TypeGuard

import gymnasium as gym
import numpy as np
from torch import Tensor, nn

_CHANNELS = (16, 32, 32)
_FEATURES = 64


def is_image(space: gym.Space[Any]) -> TypeGuard[gym.spaces.Box]:
    """Return whether the elements of ``space`` are images.

    A Box contains images if it has uint8 within 0..255 in two or three axes, or floats in three axes. Any
    other Box is flattened to a vector: floats in two axes are a matrix, and other integers or other bounds
    may be codes instead of brightness.
    """
    if not isinstance(space, gym.spaces.Box):
        return False
    if space.dtype == np.uint8:
        return len(space.shape) in (2, 3) and bool((space.low == 0).all() and (space.high == 255).all())
    return len(space.shape) == 3 and np.issubdtype(space.dtype, np.floating)


class ImageEncoder(nn.Module):
    """Flat pixels, as from ``spaces.encoding``, -> features: three convolutions and a linear layer.

    An image of two axes has one channel. With three axes, the smaller of the first and the last is the
    channel axis, and the first if they are equal, as in Stable-Baselines3. Brightness in uint8 is scaled to
    0..1; floats are not scaled. Each convolution halves height and width, rounded up, so no image is too
    small.

    Weights are orthogonal with gain √2, which keeps the scale of activations through the ReLU. Biases are
    PyTorch's default and not 0, so a black image has a gradient.

    Args:
        space: of one image.

    Raises:
        ValueError: for a space that ``is_image`` refuses.
    """

    def __init__(self, space: gym.spaces.Box) -> None:
        super().__init__()
        if not is_image(space):
            raise ValueError(
                "expected a Box of images (uint8 within 0..255 in two or three axes, or floats in three), "
                f"got {space}; use its flat encoding without an encoder"
            )
        self.out_features = _FEATURES
        self._axes = space.shape if len(space.shape) == 3 else (1, *space.shape)
        first, second, third = self._axes
        channels_first = first <= third
        self._channel_axis = 1 if channels_first else 3
        self._white = 255.0 if space.dtype == np.uint8 else 1.0
        self.layers = _layers(*((first, second, third) if channels_first else (third, first, second)))

    def forward(self, pixels: Tensor) -> Tensor:
        """Return features [..., out_features] of flat pixels [..., H × W × C] in the space's own order."""
        leading = pixels.shape[:-1]
        # [..., H × W × C] -> [rows, C, H, W]
        pictures = pixels.reshape(leading.numel(), *self._axes).movedim(self._channel_axis, 1)
        features: Tensor = self.layers(pictures / self._white)  # [rows, out_features]
        return features.reshape(*leading, self.out_features)  # [..., out_features]


def _layers(channels: int, height: int, width: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for out_channels in _CHANNELS:
        layers += [nn.Conv2d(channels, out_channels, kernel_size=3, stride=2, padding=1), nn.ReLU()]
        channels, height, width = out_channels, (height + 1) // 2, (width + 1) // 2
    layers += [nn.Flatten(), nn.Linear(channels * height * width, _FEATURES), nn.ReLU()]
    for layer in layers:
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.orthogonal_(layer.weight, 2**0.5)
    return nn.Sequential(*layers)
