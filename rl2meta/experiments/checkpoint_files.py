"""One checkpoint as files that show every damage, and that run no code when they are loaded.

It is a folder ``update_00000100/`` with two files: ``tensors.safetensors``, and ``state.json`` with all other
values and the digests of both files.
"""

import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as decode_tensors
from safetensors.torch import save as encode_tensors
from torch import Tensor

from rl2meta.errors import UserError
from rl2meta.files import read_file

FORMAT = 1
TENSORS = "tensors.safetensors"
STATE = "state.json"
REPLACED = ".replaced"
"""The ending of a checkpoint's name while another one takes its place."""
_TIMES = {TENSORS: 3, STATE: 10}  # the memory of the content in all its forms, in sizes of the file
# Beside SafetensorError, for a content that was sealed and yet is none: a kind of number, or a shape.
_NO_TENSORS = (SafetensorError, LookupError, TypeError, ValueError, RuntimeError)


class CorruptCheckpoint(UserError):
    """A checkpoint differs from what was saved; the message names its path and says what is wrong."""


@dataclass(frozen=True)
class Checkpoint:
    """Everything that a run needs to continue.

    Attributes:
        update: the number of meta-updates done, >= 0.
        tensors: weights and optimiser moments by name; they may share memory and be on any device.
        state: values that JSON can give back: None, bools, ints, finite floats, strings, lists, and dicts
            with strings as keys.
    """

    update: int
    tensors: dict[str, Tensor]
    state: dict[str, Any]


def load(path: Path, device: torch.device | str = "cpu") -> Checkpoint:
    """Return the checkpoint at ``path`` with its tensors on ``device``; every byte is verified first.

    Raises:
        CorruptCheckpoint: if a file is missing, cut short, altered, or too large for the memory, the format
            is unknown, or the folder has the name of another update.
    """
    saved = _read_state(path)
    _refuse_another_name(path, saved["update"])
    data = read(path, TENSORS)
    if _sha256(data) != saved["tensors_sha256"]:
        raise CorruptCheckpoint(
            f"{path}: {TENSORS} ({len(data)} bytes) does not match its digest: cut short or altered"
        )
    try:
        tensors = decode_tensors(data)
    except _NO_TENSORS as error:
        raise CorruptCheckpoint(f"{path}: {TENSORS} cannot be read: {error}") from error
    except MemoryError:
        raise CorruptCheckpoint(f"{path}: {TENSORS} is too large for the memory") from None
    return Checkpoint(
        saved["update"], {name: tensor.to(device) for name, tensor in tensors.items()}, saved["state"]
    )


def name_of(update: int) -> str:
    """Return the name of a checkpoint's folder.

    Raises:
        ValueError: if the update is negative.
    """
    if update < 0:
        raise ValueError(f"expected an update >= 0, got {update}")
    return f"update_{update:08d}"


def encode(checkpoint: Checkpoint) -> dict[str, bytes]:
    """Return the content of the checkpoint's files; the same checkpoint gives the same bytes.

    Raises:
        ValueError: if the state holds values that JSON cannot give back.
    """
    for where in _not_json(checkpoint.state, "state"):
        raise ValueError(f"expected what JSON can give back, got {where}")
    # Copies, because safetensors does not accept tensors that share memory, and tied weights share memory.
    copies = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in checkpoint.tensors.items()
    }
    data = encode_tensors(copies)
    body = {
        "format": FORMAT,
        "update": checkpoint.update,
        "state": checkpoint.state,
        "tensors_sha256": _sha256(data),
    }
    return {TENSORS: data, STATE: _sealed(body)}


def _not_json(value: Any, where: str) -> Iterator[str]:
    """Yield the places in ``value`` that JSON cannot hold or would give back as something else."""
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                yield f"the key {key!r} in {where}"
            yield from _not_json(item, f"{where}[{key!r}]")
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _not_json(item, f"{where}[{index}]")
    elif not isinstance(value, str | int | float | None) or (
        isinstance(value, float) and not math.isfinite(value)
    ):
        yield f"{value!r} ({type(value).__name__}) at {where}"


def _canonical(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode()


def _sealed(body: dict[str, Any]) -> bytes:
    return _canonical({**body, "sha256": _sha256(_canonical(body))})


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _read_state(path: Path) -> dict[str, Any]:
    raw = read(path, STATE)
    try:
        saved = json.loads(raw)
    except (ValueError, RecursionError, MemoryError) as error:
        raise CorruptCheckpoint(f"{path}: {STATE} is not JSON, cut short or altered: {error}") from error
    if not isinstance(saved, dict) or repr(saved.get("format")) != repr(FORMAT):  # 1.0 and True equal 1, too
        found = saved.get("format") if isinstance(saved, dict) else None
        raise CorruptCheckpoint(f"{path}: {STATE} has the unknown format {found!r}, expected {FORMAT}")
    body = {name: saved.get(name) for name in ("format", "update", "state", "tensors_sha256")}
    if not _is_sealed(raw, body):
        raise CorruptCheckpoint(f"{path}: {STATE} does not match its digest: altered")
    for odd in _odd(body):
        raise CorruptCheckpoint(f"{path}: {STATE} holds {odd}")
    return body


def _odd(body: dict[str, Any]) -> Iterator[str]:
    """Yield what ``save`` never writes, in a file that matches its digest all the same."""
    if type(body["update"]) is not int or body["update"] < 0:
        yield f"the update {body['update']!r:.80}, expected a number >= 0"
    for name, kind in (("state", dict), ("tensors_sha256", str)):
        if not isinstance(body[name], kind):
            yield f"{name} as {type(body[name]).__name__}, expected {kind.__name__}"


def _refuse_another_name(path: Path, update: int) -> None:
    """Refuse a copy under the name of another update, which would be taken for a newer or an older one."""
    name = path.name.removesuffix(REPLACED)
    if name.startswith("update_") and name != name_of(update):
        raise CorruptCheckpoint(f"{path}: it holds update {update}, expected the name {name_of(update)}")


def _is_sealed(raw: bytes, body: dict[str, Any]) -> bool:
    try:
        return raw == _sealed(body)
    except (ValueError, RecursionError):  # it holds what Python can read and save never writes, such as NaN
        return False


def read(path: Path, name: str) -> bytes:
    """Return the content of a file of the checkpoint at ``path``.

    Raises:
        CorruptCheckpoint: if it cannot be read.
    """
    try:
        return read_file(path / name, times=_TIMES[name])
    except FileNotFoundError:
        raise CorruptCheckpoint(f"{path}: {name} is missing") from None
    except OSError as error:
        raise CorruptCheckpoint(f"{path}: {name} cannot be read: {error.strerror or error}") from error
