"""Needs what is not installed."""

from electricity_of_tomorrow import Lamps

__all__ = ["Lamps"]
