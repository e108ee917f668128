"""Checkpoints that survive a kill at any moment, tell when they are damaged, and run no code on load.

One checkpoint is a folder ``update_00000100/`` of two files: ``tensors.safetensors``, and ``state.json``
with the rest and the digests of both.
"""

import hashlib
import itertools
import json
import math
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as decode_tensors
from safetensors.torch import save as encode_tensors
from torch import Tensor

from rl2meta.errors import UserError
from rl2meta.files import sync_folder, write_durably, writing

FORMAT = 1
TENSORS = "tensors.safetensors"
STATE = "state.json"
_NAME = re.compile(r"update_(\d{8,})(\.replaced)?")


class CorruptCheckpoint(UserError):
    """A checkpoint that is not what was saved; the message names its path and what is wrong."""


@dataclass(frozen=True)
class Checkpoint:
    """All that a run needs to go on.

    Attributes:
        update: the number of meta-updates that the run has behind it, >= 0.
        tensors: weights and optimiser moments by name; they may share memory and live on any device.
        state: what JSON can give back: None, bools, ints, finite floats, strings, lists, dicts keyed by
            strings.
    """

    update: int
    tensors: dict[str, Tensor]
    state: dict[str, Any]


def save(folder: Path, checkpoint: Checkpoint) -> Path:
    """Write ``checkpoint`` below ``folder`` and return its path.

    A kill or a power cut at any moment leaves either the whole checkpoint or leftovers that ``newest``
    ignores and the next ``save`` removes. A different checkpoint of the same update is replaced, and
    is not lost before the new one is in place. One process saves at a time (``RunFolder.locked``).

    Raises:
        ValueError: if the update is negative or the state is more than JSON can give back.
        UserError: if the disk refuses; what was saved before is then still there.
    """
    target = folder / _name(checkpoint.update)
    files = _encode(checkpoint)
    with writing(target):
        folder.mkdir(parents=True, exist_ok=True)
        _clean(folder)
        if not _holds(target, files):
            _put(target, files)
    return target


def load(path: Path, device: torch.device | str = "cpu") -> Checkpoint:
    """Return the checkpoint at ``path`` with its tensors on ``device``, after verifying every byte.

    Raises:
        CorruptCheckpoint: if a file is missing, cut short or altered, or the format is not known.
    """
    saved = _read_state(path)
    data = _read(path, TENSORS)
    if _sha256(data) != saved["tensors_sha256"]:
        raise CorruptCheckpoint(
            f"{path}: {TENSORS} ({len(data)} bytes) does not match its digest: cut short or altered"
        )
    try:
        tensors = decode_tensors(data)
    except SafetensorError as error:
        raise CorruptCheckpoint(f"{path}: {TENSORS} cannot be read: {error}") from error
    return Checkpoint(
        saved["update"], {name: tensor.to(device) for name, tensor in tensors.items()}, saved["state"]
    )


def newest(
    folder: Path, warn: Callable[[str], None], device: torch.device | str = "cpu"
) -> Checkpoint | None:
    """Return the newest checkpoint below ``folder`` that is whole, or None if none was ever saved.

    Args:
        folder: where ``save`` wrote.
        warn: is told of each damaged checkpoint that is passed over.
        device: where the tensors shall live.

    Raises:
        UserError: if there are checkpoints but none is whole; a fresh start would hide the loss.
    """
    paths = _found(folder)
    for path in paths:
        try:
            return load(path, device)
        except CorruptCheckpoint as error:
            warn(f"{error}; looking for an older checkpoint")
    if paths:
        raise UserError(
            f"expected a whole checkpoint in {folder}, got {len(paths)} damaged; restore one from a copy or "
            "start again in another --run-dir"
        )
    return None


def prune(folder: Path, keep: int) -> None:
    """Remove what is older than the ``keep`` newest whole checkpoints; with fewer than that, nothing.

    Damaged ones among the newest stay: they are evidence, and a resumed run replaces them.

    Raises:
        ValueError: if ``keep`` < 1.
        UserError: if the disk refuses.
    """
    if keep < 1:
        raise ValueError(f"expected to keep at least 1 checkpoint, got keep={keep}")
    found = _found(folder)
    paths = iter(found)
    whole = (path for path in paths if _is_whole(path))
    if keep > len(found) or next(itertools.islice(whole, keep - 1, None), None) is None:
        return  # fewer than ``keep``
    with writing(folder):
        for path in paths:
            _remove(path)


def _name(update: int) -> str:
    if update < 0:
        raise ValueError(f"expected an update >= 0, got {update}")
    return f"update_{update:08d}"


def _encode(checkpoint: Checkpoint) -> dict[str, bytes]:
    """Return the content of the checkpoint's files; the same checkpoint gives the same bytes."""
    for where in _not_json(checkpoint.state, "state"):
        raise ValueError(f"expected what JSON can give back, got {where}")
    # A fresh copy of each: safetensors refuses tensors that share memory, which tied weights do.
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
    """Yield the places in ``value`` that JSON would refuse or give back as something else."""
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
    raw = _read(path, STATE)
    try:
        saved = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise CorruptCheckpoint(f"{path}: {STATE} is not JSON, cut short or altered: {error}") from error
    if not isinstance(saved, dict) or saved.get("format") != FORMAT:
        found = saved.get("format") if isinstance(saved, dict) else None
        raise CorruptCheckpoint(f"{path}: {STATE} has the unknown format {found!r}, expected {FORMAT}")
    body = {name: saved.get(name) for name in ("format", "update", "state", "tensors_sha256")}
    if not _is_sealed(raw, body):
        raise CorruptCheckpoint(f"{path}: {STATE} does not match its digest: altered")
    return body


def _is_sealed(raw: bytes, body: dict[str, Any]) -> bool:
    try:
        return raw == _sealed(body)
    except ValueError:  # Python reads NaN and Infinity, which save never writes
        return False


def _read(path: Path, name: str) -> bytes:
    try:
        return (path / name).read_bytes()
    except FileNotFoundError:
        raise CorruptCheckpoint(f"{path}: {name} is missing") from None
    except OSError as error:
        raise CorruptCheckpoint(f"{path}: {name} cannot be read: {error.strerror}") from error


def _holds(target: Path, files: dict[str, bytes]) -> bool:
    try:
        return all(_read(target, name) == data for name, data in files.items())
    except CorruptCheckpoint:
        return False


def _put(target: Path, files: dict[str, bytes]) -> None:
    """Write beside ``target`` and rename into place; a folder in the way waits under another name."""
    temporary, replaced = _beside(target, ".tmp"), _beside(target, ".replaced")
    try:
        temporary.mkdir()
        for name, data in files.items():
            write_durably(temporary / name, data)
        sync_folder(temporary)
        if target.exists():
            target.rename(replaced)
        temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    sync_folder(target.parent)
    if replaced.exists():
        _remove(replaced)


def _clean(folder: Path) -> None:
    """Remove what a killed ``save`` or ``prune`` left, and put back what was about to be replaced."""
    for path in folder.glob("update_*.tmp"):
        shutil.rmtree(path)
    for replaced in folder.glob("update_*.replaced"):
        target = replaced.with_suffix("")
        if target.exists():
            _remove(replaced)
        else:
            replaced.rename(target)


def _remove(path: Path) -> None:
    # Renamed first: a kill inside rmtree would leave something that looks like a damaged checkpoint.
    temporary = _beside(path, ".removed.tmp")
    path.rename(temporary)
    shutil.rmtree(temporary)


def _beside(path: Path, ending: str) -> Path:
    return path.with_name(path.name + ending)


def _found(folder: Path) -> list[Path]:
    """Return what looks like a checkpoint, newest first; one about to be replaced after its replacement."""
    if not folder.is_dir():
        return []
    matches = [(match, path) for path in folder.iterdir() if (match := _NAME.fullmatch(path.name))]
    matches.sort(key=lambda pair: (-int(pair[0][1]), pair[0][2] is not None))
    return [path for _, path in matches]


def _is_whole(path: Path) -> bool:
    try:
        load(path)
    except CorruptCheckpoint:
        return False
    return True
