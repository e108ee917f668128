"""Named random streams: every random draw of a run depends only on one seed and on its purpose."""

import zlib

import numpy as np
import torch

Path = str | int


def derive(seed: int, *path: Path) -> int:
    """Return the seed of the random stream that ``path`` names under ``seed``.

    Streams of different paths are independent, and different seeds share no streams (unlike ``seed +
    index``). No stream depends on draws from other streams, so a run that is resumed at update 500 makes the
    same draws as a run without interruption.

    Args:
        seed: the seed of the whole run, >= 0.
        path: the purpose of the draws, from general to specific, such as ``("train", 12, "tasks")``.

    Returns:
        An integer in [0, 2⁶³).

    Raises:
        ValueError: if ``seed`` or a number in ``path`` is negative.
    """
    if seed < 0:
        raise ValueError(f"expected a seed >= 0, got {seed}")
    sequence = np.random.SeedSequence(entropy=seed, spawn_key=tuple(_words(path)))
    return int(sequence.generate_state(1, np.uint64)[0] >> np.uint64(1))


def generator(seed: int, *path: Path, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a generator on ``device`` at the start of the stream that ``path`` names under ``seed``."""
    return torch.Generator(device=device).manual_seed(derive(seed, *path))


def _words(path: tuple[Path, ...]) -> list[int]:
    """Encode a path for SeedSequence; a leading 0 marks a number, a leading 1 a name."""
    words: list[int] = []
    for part in path:
        words += [0, part] if isinstance(part, int) else [1, zlib.crc32(part.encode())]
    return words
