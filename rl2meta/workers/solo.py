"""Environments that are stepped in the main process."""

import logging
from collections.abc import Callable, Sequence
from typing import Any

from rl2meta.workers.block import layout_of, views
from rl2meta.workers.family import Described, SingleFamily, Task
from rl2meta.workers.faults import EnvironmentFault, Failed
from rl2meta.workers.slots import Slots

_log = logging.getLogger("rl2meta.workers")


class Solo:
    """Environments in the main process, for debuggers and notebooks: a failure ends the run."""

    def __init__(self, family: SingleFamily, described: Described, num_envs: int) -> None:
        layout, size = layout_of(described, num_envs, 1)
        self.arrays = views(bytearray(size), layout)
        self._slots = Slots(family, described, self.arrays.slots(slice(num_envs), 0))
        self._tasks: Sequence[Task] | None = None
        self._seeds: Sequence[int] | None = None

    def begin(self, tasks: Sequence[Task], seeds: Sequence[int], episodes: int) -> None:
        """Begin a trial on each task."""
        self._tasks, self._seeds = tasks, seeds
        self._do(self._slots.begin, tasks, seeds, episodes)

    def reset(self, episodes: int) -> None:
        """Begin another episode in every environment."""
        self._do(self._slots.reset, episodes)

    def step(self) -> None:
        """Take one step with ``arrays.action``."""
        self._do(self._slots.step)

    def close(self) -> None:
        """Close the environments; a failure to close is only logged."""
        try:
            self._slots.close()
        except Failed as failure:
            _log.warning("%s", failure.fault.said(self._tasks, self._seeds))

    def _do(self, what: Callable[..., None], *arguments: Any) -> None:
        try:
            what(*arguments)
        except Failed as failure:
            raise EnvironmentFault(failure.fault.said(self._tasks, self._seeds)) from None
