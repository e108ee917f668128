"""Warnings about deprecated names, each only once."""

import functools
import logging

_log = logging.getLogger("rl2meta")


@functools.cache
def deprecated(former: str, successor: str) -> None:
    """Warn, once in a process, that ``former`` is deprecated and ``successor`` replaces it."""
    _log.warning("%s is deprecated; use %s", former, successor)
