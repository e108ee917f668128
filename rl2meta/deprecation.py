"""What will go: said once, with its successor."""

import functools
import logging

_log = logging.getLogger("rl2meta")


@functools.cache
def deprecated(former: str, successor: str) -> None:
    """Say, once in a process, that ``former`` is deprecated and what takes its place."""
    _log.warning("%s is deprecated; use %s", former, successor)
