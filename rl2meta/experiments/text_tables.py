"""Tables as text, and short names of settings for their columns; imports no torch."""

from collections.abc import Sequence


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Return rows of text as lines with columns; the first row has the names of the columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    return "\n".join(line.rstrip() for line in lines)


def short_keys(keys: Sequence[str]) -> dict[str, str]:
    """Return a short name of each key: its last part, or as many parts as tell it from the others."""
    short = {}
    for key in keys:
        parts = key.split(".")
        ends = [".".join(parts[-count:]) for count in range(1, len(parts) + 1)]
        others = [other for other in keys if other != key]
        told = ends[1:] if parts[-1] == "name" and len(parts) > 1 else ends
        alone = (end for end in told if not any(f".{other}".endswith(f".{end}") for other in others))
        short[key] = next(alone, key)
    return short
