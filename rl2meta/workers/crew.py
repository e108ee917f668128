"""Worker processes that step the environments of a family together, and are replaced when they fail."""

import logging
import os
import pickle
import weakref
import zlib
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple, Protocol

import gymnasium as gym
import numpy as np

from rl2meta.devices import cores
from rl2meta.workers.block import Array, Arrays, layout_of, shared_memory, views
from rl2meta.workers.child import Setup
from rl2meta.workers.family import Described, SingleFamily, Task
from rl2meta.workers.faults import EnvironmentFault, Failed, Fault
from rl2meta.workers.process import WorkerProcess, room_for
from rl2meta.workers.scout import pickled, refuse_start
from rl2meta.workers.settings import WorkerSettings

_log = logging.getLogger("rl2meta.workers")


class Stepper(Protocol):
    """B environments that step together; ``arrays`` holds their actions and the results."""

    arrays: Arrays

    def begin(self, tasks: Sequence[Task], seeds: Sequence[int], episodes: int) -> None:
        """Begin a trial on each task, with ``episodes`` episodes until the next reset; below 0: no limit."""
        ...

    def reset(self, episodes: int) -> None:
        """Begin another episode in every environment, on the same tasks."""
        ...

    def step(self) -> None:
        """Take one step with ``arrays.action``."""
        ...

    def close(self) -> None:
        """Close the environments; nothing is left behind."""
        ...


class _Order(NamedTuple):
    """One command to all workers since the trial began."""

    command: str
    arguments: tuple[Any, ...] = ()
    action: Array | None = None


class Crew:
    """Worker processes, each with a block of neighbouring environments.

    Every environment has its own task and seed, so results do not depend on which worker steps it. A worker
    that raises, dies or hangs is replaced. The new worker plays the trial so far again, with the same tasks,
    seeds and actions. A checksum over all observations, rewards and flags tests that this gives the same
    results.

    Args:
        family: makes the environments; must be picklable.
        described: the spaces and the emitted values of every environment.
        num_envs: B.
        settings: the number of workers, the time limit and the maximum number of restarts.

    Raises:
        EnvironmentFault: (later) after too many restarts, if a worker failed twice at the same point, or if
            a repeated trial gave other results.
    """

    def __init__(
        self, family: SingleFamily, described: Described, num_envs: int, settings: WorkerSettings
    ) -> None:
        self._settings = settings
        bounds = _bounds(num_envs, settings.processes)
        layout, size = layout_of(described, num_envs, len(bounds))
        with room_for(len(bounds)):
            self._memory, block = shared_memory(size)
        self.arrays = views(block, layout)
        parts = pickled(family), pickle.dumps(described)
        self._setups = [
            Setup(*parts, layout, first, last, worker) for worker, (first, last) in enumerate(bounds)
        ]
        self._parts = [
            self.arrays.slots(slice(first, last), worker) for worker, (first, last) in enumerate(bounds)
        ]
        self._workers: list[WorkerProcess] = []
        self._finalizer = weakref.finalize(self, _end, self._workers, self._memory)
        self._orders: list[_Order] = []
        self._sums = [0] * len(bounds)
        self._restarts = 0
        self._last_fault: Fault | None = None
        self._idle = False
        try:
            self._launch()
        except BaseException:
            self._finalizer()  # now: a traceback may keep this object alive for long
            raise

    @property
    def pids(self) -> list[int]:
        """The process ids of the workers."""
        return [worker.pid for worker in self._workers]

    def begin(self, tasks: Sequence[Task], seeds: Sequence[int], episodes: int) -> None:
        """Begin a trial on each task."""
        self._orders, self._last_fault = [], None
        if not self._idle:
            self._launch()
        self._sums = [0] * len(self._workers)
        self._order(_Order("begin", (list(tasks), list(seeds), episodes)))

    def reset(self, episodes: int) -> None:
        """Begin another episode in every environment."""
        self._order(_Order("reset", (episodes,)))

    def step(self) -> None:
        """Take one step with ``arrays.action``."""
        self._order(_Order("step", action=self.arrays.action.copy()))

    def close(self) -> None:
        """Close the environments and end the workers; a worker that does not close is reported and killed."""
        if self._finalizer.alive and self._idle:
            self._close_environments()
        self._finalizer()

    def _close_environments(self) -> None:
        for worker in self._workers:
            worker.send(pickle.dumps(("close", ())))
        for worker in self._workers:
            try:
                worker.done()
            except Failed as failure:
                _log.warning("%s; the worker is killed", self._said(failure.fault))

    def _launch(self) -> None:
        """Start every worker; end those that exist before."""
        while self._workers:
            self._workers.pop().kill()
        for worker in range(len(self._setups)):
            self._workers.append(self._start(worker))
        self._await(WorkerProcess.started)
        self._idle = True

    def _start(self, worker: int) -> WorkerProcess:
        mark = self._parts[worker].mark
        with room_for(len(self._setups)):
            return WorkerProcess(self._setups[worker], self._memory, mark, self._settings.timeout)

    def _order(self, order: _Order) -> None:
        """Send a command to all workers and wait until it is done.

        After an interruption (a fault, Ctrl-C) some workers are still busy. Their answers would be mistaken
        for answers to the next command. So the workers no longer count as idle, and only a new trial helps.
        """
        if not self._idle:
            raise gym.error.ResetNeeded("expected a reset(seed=...) after a call that was interrupted")
        self._idle = False
        self._orders.append(order)
        for worker in range(len(self._workers)):
            self._tell(worker, order)
        self._await(WorkerProcess.done)
        self._idle = True

    def _tell(self, worker: int, order: _Order) -> None:
        if order.command == "step":
            self._workers[worker].send(b"step")
            return
        arguments = order.arguments
        if order.command == "begin":
            own = slice(self._setups[worker].first, self._setups[worker].last)
            tasks, seeds, episodes = arguments
            arguments = tasks[own], seeds[own], episodes
        self._workers[worker].send(pickle.dumps((order.command, arguments)))

    def _await(self, wait: Callable[[WorkerProcess], None]) -> None:
        """Wait for every worker; replace each one that fails until it has done the last command."""
        for worker in range(len(self._workers)):
            try:
                wait(self._workers[worker])
            except Failed as failure:
                self._replace(worker, failure.fault)
            self._sums[worker] = self._sum(worker, self._sums[worker])

    def _replace(self, worker: int, fault: Fault) -> None:
        while True:
            self._report(worker, fault)
            self._workers[worker].kill()
            self._workers[worker] = self._start(worker)
            try:
                self._workers[worker].started()
                self._relive(worker)
            except Failed as failure:
                fault = failure.fault
            else:
                return

    def _relive(self, worker: int) -> None:
        """Play the trial so far again in a new worker, the last command included."""
        own, total = slice(self._setups[worker].first, self._setups[worker].last), 0
        for number, order in enumerate(self._orders):
            if number == len(self._orders) - 1 and total != self._sums[worker]:
                raise EnvironmentFault(
                    f"environments {own.start} to {own.stop - 1} were restarted, and the same tasks, seeds "
                    "and actions gave other results than before: expected environments whose randomness "
                    "comes only from reset(seed=...); look for global random numbers, clocks, or state that "
                    "reset() does not clear"
                )
            if order.action is not None:
                self.arrays.action[own] = order.action[own]
            self._tell(worker, order)
            self._workers[worker].done()
            if number < len(self._orders) - 1:
                total = self._sum(worker, total)

    def _sum(self, worker: int, total: int) -> int:
        part = self._parts[worker]
        for array in (part.observation, part.reward, part.terminated, part.truncated, part.legal):
            total = zlib.crc32(array.data, total)
        return total

    def _report(self, worker: int, fault: Fault) -> None:
        """Log the failure; stop the run if there were too many."""
        said, limit, last = self._said(fault), self._settings.max_restarts, self._last_fault
        if fault.slot is not None and last is not None and fault.point == last.point:
            raise EnvironmentFault(f"{said}\nIt failed twice at this point, so a restart does not help")
        refuse_start(fault)
        if self._restarts >= limit:
            times = f"\nWorkers were restarted {limit} times (workers.max_restarts)" if limit else ""
            raise EnvironmentFault(f"{said}{times}")
        self._restarts += 1
        self._last_fault = fault
        if fault.slot is None:
            setup = self._setups[worker]
            said = f"environments {setup.first} to {setup.last - 1}: {said}"
        number, past = f"restart {self._restarts} of at most {limit}", max(0, len(self._orders) - 1)
        _log.warning("%s; worker %d starts again (%s) and replays %d steps", said, worker, number, past)

    def _said(self, fault: Fault) -> str:
        if not self._orders:
            return fault.said()
        tasks, seeds, _ = self._orders[0].arguments
        return fault.said(tasks, seeds)


def _bounds(num_envs: int, processes: int | None) -> list[tuple[int, int]]:
    """Return the first slot of each worker and the slot after its last; parts are as equal as possible."""
    count = min(num_envs, processes or cores())
    edges = np.linspace(0, num_envs, count + 1).round().astype(int).tolist()
    return list(pairwise(edges))


def _end(workers: list[WorkerProcess], memory: int) -> None:
    for worker in workers:
        worker.kill()
    os.close(memory)
