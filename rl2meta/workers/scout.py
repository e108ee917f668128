"""A first look at an environment in a process of its own, which may hang or die without other harm."""

import logging
import os
import pickle
from contextlib import ExitStack

import numpy as np

from rl2meta.workers.block import shared_memory
from rl2meta.workers.child import Probe
from rl2meta.workers.family import Described, SingleFamily, Task
from rl2meta.workers.faults import CALLS, EnvironmentFault, Failed, Fault, cut, fault_of, words_of
from rl2meta.workers.looking import look
from rl2meta.workers.process import WorkerProcess, room_for
from rl2meta.workers.settings import WorkerSettings

_MARK_BYTES = 32
_log = logging.getLogger("rl2meta.workers")


def first_look(family: SingleFamily, task: Task, settings: WorkerSettings) -> Described:
    """Return the spaces of the environment of a task, and the values that it emits.

    Raises:
        EnvironmentFault: if the environment fails, breaks a rule, hangs or dies.
    """
    try:
        return _here(family, task) if settings.processes == 0 else _again(family, task, settings)
    except Failed as failure:
        raise EnvironmentFault(failure.fault.said([task], [0])) from None


def pickled(family: SingleFamily) -> bytes:
    """Return the family as bytes for the worker processes.

    Raises:
        EnvironmentFault: if it cannot be pickled.
    """
    try:
        return pickle.dumps(family)
    except Exception as error:
        raise EnvironmentFault(
            "expected a family that can be pickled, to be sent to worker processes, got "
            f"{cut(words_of(error))}; keep environments, files and lambdas out of it, or set "
            "workers.processes=0"
        ) from None


def refuse_start(fault: Fault) -> None:
    """Raise ``EnvironmentFault`` for a failing import, which would fail in a new worker, too."""
    if fault.call == "import" and not fault.killed:
        raise EnvironmentFault(
            f"the family cannot be set up in a worker process: {fault.said()}\nExpected a class of a module "
            "that can be imported; put it into a file of its own, or set workers.processes=0"
        )


def _here(family: SingleFamily, task: Task) -> Described:
    mark = np.zeros(4, np.int64)
    try:
        return look(family, task, mark)
    except (Exception, SystemExit) as error:
        raise Failed(fault_of(error, CALLS[mark[2]], 0, 0)) from None


def _again(family: SingleFamily, task: Task, settings: WorkerSettings) -> Described:
    """Look a second time if the process was killed from outside."""
    try:
        return _elsewhere(family, task, settings)
    except Failed as failure:
        if not failure.fault.killed:
            raise
        _log.warning("%s; the first look at an environment starts again", failure.fault.said([task], [0]))
    return _elsewhere(family, task, settings)


def _elsewhere(family: SingleFamily, task: Task, settings: WorkerSettings) -> Described:
    probe = Probe(pickled(family), task)
    with ExitStack() as ended:
        with room_for(1):
            memory, block = shared_memory(_MARK_BYTES)
            ended.callback(os.close, memory)
            mark = np.frombuffer(block, np.int64)
            worker = WorkerProcess(probe, memory, mark, settings.timeout)
        ended.callback(worker.kill)
        try:
            worker.started()
            worker.done()
            found: Described = pickle.loads(worker.result())
            return found
        except Failed as failure:
            refuse_start(failure.fault)
            raise
