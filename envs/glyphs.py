"""Letters of the DejaVu fonts that matplotlib brings along: classes of images without a download.

Twelve styles (Sans, Sans Mono and Serif; each upright and slanted, regular and bold) share 1,357 letters of
five scripts. Every letter is a class, and its styles are its images.
"""

import functools
import io
import os
import sys
import unicodedata
from pathlib import Path
from typing import NamedTuple
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from rl2meta.files import read_file, write_atomically

SIDE = 28
"""Height and width of a letter, in pixels."""
HELD_OUT = ("GREEK", "ARMENIAN", "GEORGIAN")
"""The scripts that no training task has letters of."""
_SCRIPTS = ("LATIN", "CYRILLIC", *HELD_OUT)
_STYLES = (
    *(f"DejaVu{face}{style}" for face in ("Sans", "SansMono") for style in ("", "-Bold", "-Oblique")),
    *(f"DejaVu{face}-BoldOblique" for face in ("Sans", "SansMono")),
    *(f"DejaVuSerif{style}" for style in ("", "-Bold", "-Italic", "-BoldItalic")),
)
_UPRIGHT = tuple(_STYLES.index(name) for name in ("DejaVuSans", "DejaVuSansMono", "DejaVuSerif"))
_ALIKE = 0.96
_POINTS = 44  # size of the font on a canvas of 2 · SIDE pixels, into which nearly every letter fits
_FORMAT = 1  # part of the name of the file; a change of what is drawn needs a new number


class Glyphs(NamedTuple):
    """The letters, script after script, without those that look like an earlier one.

    Attributes:
        images: uint8 [letters, 12, 28, 28]; ink is 255.
        letters: the code point of each, int64 [letters].
        held_out: bool [letters], whether its script is one of ``HELD_OUT``.
    """

    images: Tensor
    letters: Tensor
    held_out: Tensor


@functools.cache
def glyphs() -> Glyphs:
    """Return the letters; they are drawn once, in some seconds, and kept in the user's cache.

    A file that is damaged, or cannot be written, costs only the seconds.
    """
    path = cache_folder() / f"glyphs-{_FORMAT}-matplotlib-{_matplotlib_version()}.npz"
    try:
        with np.load(io.BytesIO(read_file(path, times=10)), allow_pickle=False) as file:
            images, letters = torch.from_numpy(file["images"]), torch.from_numpy(file["letters"])
    except (OSError, ValueError, KeyError, EOFError, BadZipFile):
        images, letters = _drawn()
        _keep(path, images, letters)
    held = torch.tensor([script_of(code) in HELD_OUT for code in letters.tolist()])  # [letters]
    return Glyphs(images, letters, held)


def script_of(code: int) -> str:
    """Return the script of a code point, the first word of its Unicode name; "" if it has none."""
    return unicodedata.name(chr(code), "").partition(" ")[0]


def cache_folder() -> Path:
    """Return the folder for files that can be made again: that of the system's user cache."""
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "rl2meta"


def unlike(images: Tensor, alike: float = _ALIKE) -> Tensor:
    """Return the positions of the images that look like no earlier one that is kept.

    Two images look alike if their cosine, ⟨a, b⟩ / |a||b|, is at least ``alike``.

    Args:
        images: [classes, ...].
        alike: cosine from which on two images are taken for the same.
    """
    flat = torch.nn.functional.normalize(images.flatten(1).float(), dim=1)  # [classes, pixels]
    close = (flat @ flat.T >= alike).tril(-1)  # [classes, classes], true for an earlier one
    kept = torch.ones(len(images), dtype=torch.bool)
    for place in range(len(images)):  # whether one is dropped depends on all before it
        kept[place] = not bool((close[place] & kept).any())
    return kept.nonzero().squeeze(1)


def _drawn() -> tuple[Tensor, Tensor]:
    codes = _shared_letters()
    images = torch.from_numpy(np.stack([_in_style(style, codes) for style in _STYLES], axis=1))
    kept = unlike(images[:, list(_UPRIGHT)])
    return images[kept].contiguous(), torch.tensor(codes)[kept]


def _shared_letters() -> list[int]:
    """Return the code points of the letters that every style has, in the order of their scripts."""
    from matplotlib.ft2font import FT2Font

    shared = set.intersection(*(set(FT2Font(str(_font(style))).get_charmap()) for style in _STYLES))
    letters = [code for code in sorted(shared) if unicodedata.category(chr(code)) in ("Lu", "Ll", "Lt", "Lo")]
    return [code for script in _SCRIPTS for code in letters if script_of(code) == script]


def _in_style(style: str, codes: list[int]) -> np.ndarray:
    """Return the letters in one style, centred, uint8 [letters, 28, 28]."""
    from PIL import Image, ImageDraw, ImageFont

    font, side = ImageFont.truetype(str(_font(style)), _POINTS), 2 * SIDE
    images = []
    for code in codes:
        left, top, right, bottom = font.getbbox(chr(code))
        image = Image.new("L", (side, side))
        place = ((side - left - right) / 2, (side - top - bottom) / 2)
        ImageDraw.Draw(image).text(place, chr(code), fill=255, font=font)
        images.append(np.asarray(image.reduce(2)))  # four pixels become one, which keeps thin strokes
    return np.stack(images)


def _font(style: str) -> Path:
    import matplotlib

    return Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{style}.ttf"


def _matplotlib_version() -> str:
    import matplotlib

    return matplotlib.__version__


def _keep(path: Path, images: Tensor, letters: Tensor) -> None:
    content = io.BytesIO()
    np.savez(content, images=images.numpy(), letters=letters.numpy())
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content.getvalue())
    except OSError:
        pass  # a home that is read-only: the next process draws again
