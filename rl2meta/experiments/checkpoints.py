"""Checkpoints that survive a kill at any moment, detect damage, and run no code when they are loaded.

One checkpoint is a folder ``update_00000100/`` with two files: ``tensors.safetensors``, and ``state.json``
with everything else and the digests of both files.
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


def save(folder: Path, checkpoint: Checkpoint) -> Path:
    """Write ``checkpoint`` into a new folder inside ``folder`` and return its path.

    After a kill or a power cut at any moment there is either the whole checkpoint or leftovers, which
    ``newest`` ignores and the next ``save`` removes. A different checkpoint of the same update is replaced,
    and it is removed only after the new one is in place. Only one process may save at a time
    (``RunFolder.locked``).

    Raises:
        ValueError: if the update is negative or the state holds values that JSON cannot give back.
        UserError: if it cannot be written to the disk; all earlier checkpoints are then still there.
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
    """Return the checkpoint at ``path`` with its tensors on ``device``; every byte is verified first.

    Raises:
        CorruptCheckpoint: if a file is missing, cut short or altered, or the format is unknown.
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
    """Return the newest undamaged checkpoint in ``folder``, or None if none was ever saved.

    Args:
        folder: the folder that ``save`` wrote into.
        warn: called with a message for each damaged checkpoint that is skipped.
        device: the device for the tensors.

    Raises:
        UserError: if there are checkpoints but all are damaged; a fresh start would hide the loss.
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
    """Remove all checkpoints that are older than the ``keep`` newest undamaged ones.

    Damaged checkpoints among the newest are not removed: they are evidence, and a resumed run replaces them.

    Raises:
        ValueError: if ``keep`` < 1.
        UserError: if the disk does not allow it.
    """
    if keep < 1:
        raise ValueError(f"expected to keep at least 1 checkpoint, got keep={keep}")
    found = _found(folder)
    paths = iter(found)
    whole = (path for path in paths if _is_whole(path))
    if keep > len(found) or next(itertools.islice(whole, keep - 1, None), None) is None:
        return  # there are fewer than ``keep`` undamaged ones
    with writing(folder):
        for path in paths:
            _remove(path)


def only_first(folder: Path) -> bool:
    """Return whether a folder holds nothing but the checkpoint of update 0, or less."""
    return folder.is_dir() and all(path.name.startswith(_name(0)) for path in folder.iterdir())


def tidy(folder: Path) -> None:
    """Remove what a killed ``save`` or ``prune`` left; only the process that holds the run's lock may.

    Raises:
        UserError: if the disk does not allow it.
    """
    with writing(folder):
        _clean(folder)


def _name(update: int) -> str:
    if update < 0:
        raise ValueError(f"expected an update >= 0, got {update}")
    return f"update_{update:08d}"


def _encode(checkpoint: Checkpoint) -> dict[str, bytes]:
    """Return the content of the checkpoint's files; the same checkpoint gives the same bytes."""
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
    except ValueError:  # the file holds NaN or Infinity, which Python can read, but which save never writes
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
    """Write to a temporary folder beside ``target`` and rename it; an old target is renamed first."""
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
    """Remove what a killed ``save`` or ``prune`` left, and restore a checkpoint that was being replaced."""
    for path in folder.glob("update_*.tmp"):
        shutil.rmtree(path)
    for replaced in folder.glob("update_*.replaced"):
        target = replaced.with_suffix("")
        if target.exists():
            _remove(replaced)
        else:
            replaced.rename(target)


def _remove(path: Path) -> None:
    # Renamed first: a kill during rmtree would otherwise leave what looks like a damaged checkpoint.
    temporary = _beside(path, ".removed.tmp")
    path.rename(temporary)
    shutil.rmtree(temporary)


def _beside(path: Path, ending: str) -> Path:
    return path.with_name(path.name + ending)


def _found(folder: Path) -> list[Path]:
    """Return the paths that look like checkpoints, newest first; a replaced one follows its replacement."""
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
