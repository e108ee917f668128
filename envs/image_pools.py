"""Images by class, divided into classes for training and for test: what few-shot tasks are drawn from."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from rl2meta.envs.glyphs import glyphs
from rl2meta.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

_KINDS = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".pgm", ".ppm"}
_TEST_DIGITS = 5


class Pool(NamedTuple):
    """Images of many classes.

    Attributes:
        images: uint8 [images, channels, size, size], those of a class one after another.
        first: the place of the first image of each class, int64 [classes].
        numbers: number of images of each class, int64 [classes].
        train, test: the classes of each split, int64; they share none.
        names: of the classes.
    """

    images: Tensor
    first: Tensor
    numbers: Tensor
    train: Tensor
    test: Tensor
    names: tuple[str, ...]

    def classes(self, split: str) -> Tensor:
        """Return the classes of a split."""
        return self.test if split == "test" else self.train


@functools.lru_cache(maxsize=4)
def pool_of(source: str, path: str | None, size: int, channels: int, test_fraction: float) -> Pool:
    """Return the images of a source; each is read once in a process, and never changed.

    Args:
        source: ``glyphs``, ``digits`` or ``image_folders``.
        path: of the folders of ``image_folders``; None for the others.
        size: height and width of the images, in pixels.
        channels: 1 for grey, 3 for colours.
        test_fraction: share of the classes (or of the groups of classes) in folders that is held out.

    Raises:
        UserError: if there are no such images.
    """
    if source == "glyphs":
        return _of_glyphs(size, channels)
    if source == "digits":
        return _of_digits(size, channels)
    return _of_folders(Path(path or "."), size, channels, test_fraction)


def _of_glyphs(size: int, channels: int) -> Pool:
    known = glyphs()
    letters, styles = known.images.shape[:2]
    images = _resized(known.images.flatten(0, 1), size, channels)  # [letters × styles, channels, size, size]
    names = tuple(map(chr, known.letters.tolist()))
    return _pool(images, [styles] * letters, known.held_out, names)


def _of_digits(size: int, channels: int) -> Pool:
    try:
        from sklearn.datasets import load_digits  # type: ignore[import-not-found, unused-ignore]
    except ImportError:
        raise UserError(
            "distribution.source: expected scikit-learn, which holds the images of 'digits', got none; run "
            "`pip install rl2meta[digits]`, or use source=glyphs"
        ) from None
    data = load_digits()
    order = np.argsort(data.target, kind="stable")
    brightness = torch.from_numpy(data.images[order] / 16 * 255).round().to(torch.uint8)  # [1797, 8, 8]
    counts = np.bincount(data.target).tolist()
    held = torch.arange(len(counts)) >= len(counts) - _TEST_DIGITS
    return _pool(_resized(brightness, size, channels), counts, held, tuple(map(str, range(len(counts)))))


def _of_folders(path: Path, size: int, channels: int, test_fraction: float) -> Pool:
    classes = _class_folders(path)
    names = tuple(str(folder.relative_to(path)) for folder, _ in classes)
    images = torch.cat([_read(files, size, channels) for _, files in classes])
    groups = [str(folder.parent.relative_to(path)) for folder, _ in classes]
    held = _held_out(names if len(set(groups)) == 1 else groups, test_fraction)
    return _pool(images, [len(files) for _, files in classes], held, names)


def _class_folders(path: Path) -> list[tuple[Path, list[Path]]]:
    """Return the folders with images below ``path``, in the order of their names, with their files.

    A class is a folder with images, in ``path`` or, for groups such as alphabets, in a folder of it.
    """
    if not path.is_dir():
        raise UserError(
            f"distribution.path: expected a folder with a folder of images for each class, got {path}; "
            "name one, such as the images_background of Omniglot"
        )
    found = []
    for folder in sorted(each for depth in ("*", "*/*") for each in path.glob(depth) if each.is_dir()):
        if files := sorted(each for each in folder.iterdir() if each.suffix.lower() in _KINDS):
            found.append((folder, files))
    if len(found) < 2:
        raise UserError(
            f"distribution.path: expected at least two folders with images in {path}, or in its folders, got "
            f"{len(found)}; put the images of each class into a folder of its own"
        )
    return found


def _read(files: Sequence[Path], size: int, channels: int) -> Tensor:
    """Return images [files, channels, size, size]."""
    from PIL import Image

    images = []
    for file in files:
        try:
            with Image.open(file) as image:
                images.append(np.asarray(_plain(image, channels).resize((size, size), Image.Resampling.BOX)))
        except OSError as error:
            raise UserError(f"distribution.path: expected an image, got {file}: {error}; remove it") from None
    stacked = torch.from_numpy(np.stack(images))  # [files, size, size] or [files, size, size, 3]
    return stacked.unsqueeze(1) if channels == 1 else stacked.movedim(-1, 1).contiguous()


def _plain(image: "Image.Image", channels: int) -> "Image.Image":
    """Return an image in 8 bits without transparency: what is transparent is a white page."""
    from PIL import Image

    if image.mode.startswith("I"):  # of PNG files with 16 bits, which conversion would cut off at 255
        image = Image.fromarray((np.asarray(image) // 256).astype(np.uint8))
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return image.convert("L" if channels == 1 else "RGB")


def _held_out(groups: Sequence[str], test_fraction: float) -> Tensor:
    """Return which classes are held out, bool [classes]: all of some groups, the same for every seed.

    Groups are taken in an order that their names do not decide, so that related ones do not stay together.
    """
    distinct = sorted(set(groups))
    order = np.random.default_rng(0).permutation(len(distinct))
    number = min(max(1, round(test_fraction * len(distinct))), len(distinct) - 1)
    held = {distinct[place] for place in order[:number]}
    return torch.tensor([group in held for group in groups])


def _resized(images: Tensor, size: int, channels: int) -> Tensor:
    """[images, side, side] -> [images, channels, size, size], by means over areas."""
    grey = images.unsqueeze(1)
    if size != images.shape[-1]:
        grey = torch.nn.functional.adaptive_avg_pool2d(grey.float(), size).round().to(torch.uint8)
    return grey.expand(-1, channels, -1, -1).contiguous()


def _pool(images: Tensor, counts: Sequence[int], held_out: Tensor, names: tuple[str, ...]) -> Pool:
    count = torch.tensor(counts)
    first = count.cumsum(0) - count
    number = torch.arange(len(counts))
    return Pool(images, first, count, number[~held_out], number[held_out], names)
