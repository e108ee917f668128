"""Numbers in the configs of agents: their kinds, which refuse infinities and slips, and how they move."""

from typing import Annotated

from pydantic import Field

Positive = Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1, le=2**20)]


def linear(start: float, end: float | None, progress: float) -> float:
    """Return the value after a fraction ``progress`` of training; ``start`` all along if ``end`` is None."""
    return start if end is None else start + (end - start) * progress
