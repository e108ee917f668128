"""Workers that step the environments of a family together, and outlive each other."""

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
from rl2meta.workers.block import Array, Arrays, layout_of, mapped, nameless_memory, views
from rl2meta.workers.child import Setup
from rl2meta.workers.family import Described, SingleFamily, Task
from rl2meta.workers.faults import EnvironmentFault, Failed, Fault
from rl2meta.workers.process import WorkerProcess
from rl2meta.workers.scout import pickled, refuse_start
from rl2meta.workers.settings import WorkerSettings

_log = logging.getLogger("rl2meta.workers")


class Stepper(Protocol):
    """B environments that step together; what they are to do and what came of it stands in ``arrays``."""

    arrays: Arrays

    def begin(self, tasks: Sequence[Task], seeds: Sequence[int], episodes: int) -> None:
        """Begin a trial on each task; ``episodes`` until the next reset, below 0 for as many as there are."""
        ...

    def reset(self, episodes: int) -> None:
        """Begin another episode everywhere, on the same tasks."""
        ...

    def step(self) -> None:
        """Do ``arrays.action``."""
        ...

    def close(self) -> None:
        """Close the environments; nothing is left behind."""
        ...


class _Order(NamedTuple):
    """Something that all workers were told to do since the trial began."""

    command: str
    arguments: tuple[Any, ...] = ()
    action: Array | None = None


class Crew:
    """Worker processes, each with a block of neighbouring environments.

    Every environment has a task and a seed of its own, so that which worker steps it changes nothing. A
    worker that raises, dies or hangs is replaced, and its environments live through the trial so far again:
    the same tasks, seeds and actions. That this led to where the trial stood is checked by a sum over all
    observations, rewards and flags.

    Args:
        family: makes the environments; must be picklable.
        described: what each of them looks like.
        num_envs: B.
        settings: how many workers, and how patient to be with them.

    Raises:
        EnvironmentFault: (later) when there were too many restarts, a worker failed twice at one point, or
            a trial that was lived through again led elsewhere.
    """

    def __init__(
        self, family: SingleFamily, described: Described, num_envs: int, settings: WorkerSettings
    ) -> None:
        self._settings = settings
        bounds = _bounds(num_envs, settings.processes)
        layout, size = layout_of(described, num_envs, len(bounds))
        self._memory = nameless_memory(size)
        self.arrays = views(mapped(self._memory), layout)
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
            self._finalizer()  # a traceback may keep what has failed alive for long
            raise

    @property
    def pids(self) -> list[int]:
        """The numbers of the worker processes."""
        return [worker.pid for worker in self._workers]

    def begin(self, tasks: Sequence[Task], seeds: Sequence[int], episodes: int) -> None:
        """Begin a trial on each task."""
        self._orders, self._last_fault = [], None
        if not self._idle:
            self._launch()
        self._sums = [0] * len(self._workers)
        self._order(_Order("begin", (list(tasks), list(seeds), episodes)))

    def reset(self, episodes: int) -> None:
        """Begin another episode everywhere."""
        self._order(_Order("reset", (episodes,)))

    def step(self) -> None:
        """Do ``arrays.action``."""
        self._order(_Order("step", action=self.arrays.action.copy()))

    def close(self) -> None:
        """Close the environments and end the workers; one that does not close is killed, and reported."""
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
        """Start every worker, in place of those that are there."""
        while self._workers:
            self._workers.pop().kill()
        for worker in range(len(self._setups)):
            self._workers.append(self._start(worker))
        self._await(WorkerProcess.started)
        self._idle = True

    def _start(self, worker: int) -> WorkerProcess:
        mark = self._parts[worker].mark
        try:
            return WorkerProcess(self._setups[worker], self._memory, mark, self._settings.timeout)
        except OSError as error:
            raise EnvironmentFault(
                f"cannot start {len(self._setups)} worker processes: {error}; set workers.processes lower"
            ) from None

    def _order(self, order: _Order) -> None:
        """Have all workers do something.

        What breaks it off (a fault, Ctrl-C) leaves workers in the midst of it, whose answers would be taken
        for those to the next order: from then on none is idle, and only a new trial helps.
        """
        if not self._idle:
            raise gym.error.ResetNeeded("expected a reset(seed=...) after a call that was broken off")
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
        """Wait for every worker; replace those that fail until they have done what all were told."""
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
        """Bring a new worker to where the trial stands, and have it do what was asked last."""
        own, total = slice(self._setups[worker].first, self._setups[worker].last), 0
        for number, order in enumerate(self._orders):
            if number == len(self._orders) - 1 and total != self._sums[worker]:
                raise EnvironmentFault(
                    f"environments {own.start} to {own.stop - 1} were restarted, and the same tasks, seeds "
                    "and actions led elsewhere than before: expected environments whose randomness comes "
                    "from reset(seed=...) alone; look for global random numbers, clocks, or state that "
                    "outlives reset()"
                )
            if order.action is not None:
                self.arrays.action[own] = order.action[own]
            self._tell(worker, order)
            self._workers[worker].done()
            if number < len(self._orders) - 1:
                total = self._sum(worker, total)

    def _sum(self, worker: int, total: int) -> int:
        part = self._parts[worker]
        for array in (part.observation, part.reward, part.terminated, part.truncated):
            total = zlib.crc32(array.data, total)
        return total

    def _report(self, worker: int, fault: Fault) -> None:
        """Say what failed; stop the run if that was once too often."""
        said, limit, last = self._said(fault), self._settings.max_restarts, self._last_fault
        if fault.slot is not None and last is not None and fault.point == last.point:
            raise EnvironmentFault(f"{said}\nIt failed twice at this point, so that a restart does not help")
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
        _log.warning("%s; worker %d starts again (%s) and lives through %d steps", said, worker, number, past)

    def _said(self, fault: Fault) -> str:
        if not self._orders:
            return fault.said()
        tasks, seeds, _ = self._orders[0].arguments
        return fault.said(tasks, seeds)


def _bounds(num_envs: int, processes: int | None) -> list[tuple[int, int]]:
    """Return the first slot of each worker, and that after its last: as even as can be."""
    count = min(num_envs, processes or cores())
    edges = np.linspace(0, num_envs, count + 1).round().astype(int).tolist()
    return list(pairwise(edges))


def _end(workers: list[WorkerProcess], memory: int) -> None:
    for worker in workers:
        worker.kill()
    os.close(memory)
