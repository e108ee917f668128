"""Which colour an agent has: the same in every figure, and no two agents of a figure have the same."""

import zlib
from collections.abc import Sequence

INK, FAINT, GRID = "#222222", "#8A8A8A", "#E8E8E8"
"""Of text, of what stands behind, and of lines that only help the eye."""
TRAINED = ("#D55E00", "#0072B2", "#009E73", "#B83280", "#6A3D9A", "#6B4226")
"""Of trained agents, strong: Okabe and Ito's, which colour-blind readers can tell apart, and three more."""
OTHERS = (
    *("#8A8A8A", "#56B4E9", "#E69F00", "#2AA6A6", "#7FB800", "#B5835A", "#4D4D4D", "#A9B665"),
    *("#9E9E6B", "#F4A582", "#C77C7C", "#7FC97F", "#6497B1", "#A58FD0", "#A3785E", "#D4B017"),
    *("#8FA8DE", "#74A089", "#B58FC0", "#7FAFD6", "#D9B24C", "#D49A9A", "#8DBF8D", "#8FAEBF"),
    *("#C9A27E", "#5E8C7A"),
)
"""Of all others; references have theirs by their place in the catalogue."""


def colours_of(trained: Sequence[str], others: Sequence[str], order: Sequence[str] = ()) -> dict[str, str]:
    """Return the colour of each agent by name.

    A trained agent has a colour by its name, or the next free one if another agent of the figure has it.
    Colours repeat only if there are more agents than colours.

    Args:
        trained: names of the trained agents.
        others: names of all other agents.
        order: names with a fixed colour, each at its place; no two of them can meet.
    """
    chosen: dict[str, str] = {}
    for name in trained:
        chosen[name] = _free((*TRAINED, *OTHERS), _place(name, len(TRAINED)), chosen)
    for name in sorted(others, key=lambda each: each not in order):  # those with fixed colours first
        place = order.index(name) if name in order else _place(name, len(OTHERS))
        chosen[name] = _free((*OTHERS, *TRAINED), place % len(OTHERS), chosen)
    return chosen


def _place(name: str, number: int) -> int:
    return zlib.crc32(name.encode()) % number


def _free(palette: Sequence[str], start: int, chosen: dict[str, str]) -> str:
    turned = [*palette[start:], *palette[:start]]
    return next((colour for colour in turned if colour not in chosen.values()), turned[0])
