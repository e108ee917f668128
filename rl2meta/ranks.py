"""Processes that compute one result together: each is a *rank*, and rank 0 leads, writes and prints.

``torchrun``, or a launcher that sets the same variables, starts the ranks. Alone, a process is the only rank,
and no function here communicates.
"""

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor

from rl2meta.errors import UserError
from rl2meta.workers.faults import EnvironmentFault

TIMEOUT = "RANK_TIMEOUT"
"""The environment variable with the seconds that a rank waits for the others."""
Result = TypeVar("Result")
_SECONDS = 600.0
_FAILED, _ALIVE = "failed", "alive"  # keys of the store
_GRACE = 3.0  # seconds until a rank has told the others why it failed
_LONGER = 60.0  # seconds until all others, which may be in the middle of a rollout, have heard of it
_MOST = 5  # differences in a message
_FAULT = "environment: "  # begins what is said of an environment that failed, for which runs are saved


class RankFailed(UserError):
    """Another rank failed, ended, or did not answer; the message says which, and why if it could tell."""


class Ranks:
    """The ranks of a group, as one of them sees them.

    Args:
        number: of this rank, from 0 on.
        size: number of ranks.
        store: holds what a rank says before it fails; None without a group.
        seconds: that a rank waits for the others.
    """

    def __init__(self, number: int = 0, size: int = 1, store: Any = None, seconds: float = _SECONDS) -> None:
        self.number, self.size, self._store, self._seconds = number, size, store, seconds

    @property
    def leads(self) -> bool:
        """Whether this rank writes and prints."""
        return self.number == 0

    @property
    def on_machine(self) -> int | None:
        """The number of this rank among those of its machine; None without a group."""
        return None if self.size == 1 else int(os.environ.get("LOCAL_RANK") or self.number)

    def gather(self, tensor: Tensor) -> list[Tensor]:
        """Return the tensors of all ranks, of the same shape, in the order of the ranks.

        Raises:
            RankFailed: if a rank failed or does not answer.
        """
        if self.size == 1:
            return [tensor]
        from torch import distributed

        mine = tensor.detach().contiguous()
        found = [torch.empty_like(mine) for _ in range(self.size)]
        try:
            distributed.all_gather(found, mine)
        except RuntimeError as error:
            raise RankFailed(self._reason(error)) from None
        return found

    def gather_bytes(self, data: bytes) -> list[bytes]:
        """Return the bytes of all ranks, of any lengths."""
        if self.size == 1:
            return [data]
        lengths = [int(length) for length in self.gather(torch.tensor([len(data)]))]
        if not any(lengths):
            return [b""] * self.size
        padded = torch.frombuffer(bytearray(data.ljust(max(lengths), b"\0")), dtype=torch.uint8)
        rows = zip(self.gather(padded), lengths, strict=True)
        return [row[:length].numpy().tobytes() for row, length in rows]

    def gather_tensors(self, tensors: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
        """Return the named tensors of all ranks, of any names and shapes, on the CPU."""
        if self.size == 1:
            return [dict(tensors)]
        from safetensors.torch import load, save

        mine = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
        return [load(data) for data in self.gather_bytes(save(mine))]

    def of_the_leader(self, make: Callable[[], str]) -> str:
        """Return the text that ``make`` returns on rank 0; it is not called elsewhere."""
        made = self.together(lambda: make() if self.leads else "")
        return self.gather_bytes(made.encode())[0].decode()

    def together(self, call: Callable[[], Result]) -> Result:
        """Return the result of ``call``; if it raises on one rank, all ranks raise an error with its message.

        So every rank is at the same place afterwards: what one of them can do then, all can.

        Raises:
            EnvironmentFault: if an environment failed on another rank.
            RankFailed: for other errors on another rank.
        """
        if self.size == 1:
            return call()
        try:
            result, error = call(), None
        except Exception as raised:
            result, error = None, raised
        if isinstance(error, RankFailed):  # the others are not where they would listen
            raise error
        kind = _FAULT if isinstance(error, EnvironmentFault) else ""
        said = self.gather_bytes(b"" if error is None else f"{kind}{_said(error)}".encode())
        if error is not None:
            raise error
        for number, text in enumerate(each.decode() for each in said):
            if text.startswith(_FAULT):
                raise EnvironmentFault(f"rank {number}: {text.removeprefix(_FAULT)}")
            if text:
                raise RankFailed(f"rank {number}: {text}")
        return result  # type: ignore[return-value]  # without an error there is one

    def largest(self, number: int) -> int:
        """Return the largest of the numbers of all ranks, such as 1 if any of their flags is set."""
        return number if self.size == 1 else max(int(each) for each in self.gather(torch.tensor([number])))

    def agree(self, facts: Mapping[str, Any]) -> None:
        """Refuse ranks that differ in a fact.

        Args:
            facts: name -> what JSON can hold.

        Raises:
            UserError: on every rank, with the facts and their values.
        """
        if self.size == 1:
            return
        every = [json.loads(data) for data in self.gather_bytes(json.dumps(dict(facts)).encode())]
        names = dict.fromkeys(name for each in every for name in each)
        odd = [
            f"{name} is {every[0].get(name)!r:.80} on rank 0, {other.get(name)!r:.80} on rank {number}"
            for name in names
            for number, other in enumerate(every)
            if other.get(name) != every[0].get(name)
        ]
        if odd:
            more = f" (and {len(odd) - _MOST} more)" if len(odd) > _MOST else ""
            raise UserError(
                f"expected the same on every rank, got others: {'; '.join(odd[:_MOST])}{more}; start all "
                "ranks with the same command, files and versions, on equal machines"
            )

    def leave(self, error: BaseException | None = None) -> None:
        """Leave the group; if it is for an error, first leave a message for the ranks that wait for this one.

        Without torchrun, the messages are in the memory of rank 0, which then waits until all have left.
        """
        from torch import distributed

        with suppress(RuntimeError):
            if error is not None and not isinstance(error, RankFailed):
                self._store.set(_FAILED, f"rank {self.number}: {_said(error)}")
            self._store.set(f"{_ALIVE}{self.number}", "")
        distributed.destroy_process_group()  # those who wait for this rank now see that it has gone
        if error is None or not self.leads or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
            return
        with suppress(RuntimeError):
            others = [f"{_ALIVE}{number}" for number in range(self.size)]
            seconds = _GRACE if isinstance(error, RankFailed) else min(_LONGER, self._seconds)
            self._until(lambda: all(self._store.check([other]) for other in others), seconds)

    def _reason(self, error: RuntimeError) -> str:
        """Return why the others do not answer: the message of one, or which of them are missing."""
        missing: list[int] = []
        with suppress(RuntimeError):  # rank 0 may have taken the store with it
            self._store.set(f"{_ALIVE}{self.number}", "")
            if self._until(lambda: self._store.check([_FAILED]), _GRACE):
                return str(self._store.get(_FAILED).decode())
            missing = [each for each in range(self.size) if not self._store.check([f"{_ALIVE}{each}"])]
        which = f"rank {' or '.join(map(str, missing))}" if missing else "another rank"
        late = "imed out" in str(error)
        why = (
            f"it hangs, after {self._seconds:g} s" if late else "it was killed, for lack of memory or by hand"
        )
        return (
            f"expected an answer of every rank, got none of {which}: {why}; continue with --resume "
            f"({str(error).splitlines()[0]:.120})"
        )

    def _until(self, condition: Callable[[], bool], seconds: float) -> bool:
        end = time.monotonic() + seconds
        while not (met := condition()) and time.monotonic() < end:
            time.sleep(0.05)
        return met


ONE = Ranks()
"""The only rank: a process without a group."""


def world_size() -> int:
    """Return how many ranks the launcher of this process has started; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE") or 1)


def restarts() -> int:
    """Return how often ``torchrun --max-restarts`` has started the ranks again."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT") or 0)


@contextmanager
def joined() -> Iterator[Ranks]:
    """Join the other ranks in the block; without a launcher, yield the only rank and do nothing.

    The launcher sets RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT, as ``torchrun`` does. Tensors
    on the CPU go through gloo, and those on a GPU through NCCL.

    Raises:
        UserError: if a variable is missing, or the others do not come.
    """
    if world_size() == 1:
        yield ONE
        return
    ranks = _join()
    try:
        yield ranks
    except BaseException as error:
        ranks.leave(error)
        raise
    ranks.leave()


def _join() -> Ranks:
    from torch import distributed
    from torch.distributed import PrefixStore, rendezvous  # type: ignore[attr-defined]

    seconds = float(os.environ.get(TIMEOUT) or _SECONDS)
    wait = timedelta(seconds=seconds)
    try:
        store, number, size = next(rendezvous("env://", timeout=wait))
        store = PrefixStore(f"attempt {restarts()}", store)  # torchrun keeps what the attempt before wrote
        group = PrefixStore("group", store)
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        distributed.init_process_group(backend, store=group, rank=number, world_size=size, timeout=wait)
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f"expected {world_size()} ranks that find each other within {seconds:g} s, got: "
            f"{str(error).splitlines()[0]}; start them with torchrun (docs/several_machines.md)"
        ) from None
    return Ranks(number, size, PrefixStore("said", store), seconds)


def _said(error: BaseException) -> str:
    plain = isinstance(error, UserError) or not isinstance(error, Exception)  # the latter: a signal
    return str(error) if plain else f"{type(error).__name__}: {error}"
