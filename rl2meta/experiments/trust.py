"""What a run folder may import: a stranger's folder runs nothing.

Importing a module runs its code. The config of a run folder may name modules, as ``module:name``; they are
imported only if this user trained the folder, or if the user names them, too. See SECURITY.md.
"""

import hashlib
import hmac
import logging
import os
import secrets
import shlex
import stat
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rl2meta.errors import UserError
from rl2meta.experiments.yaml_text import apply_override, parse
from rl2meta.files import read_text, write_atomically

STAMP = ".trained_here"
"""The file of a run folder with the keyed digest of its config.yaml."""
_SECTIONS = ("distribution", "agent")
_BYTES = 32
_log = logging.getLogger("rl2meta")


def modules_in(sections: Any) -> set[str]:
    """Return the modules that a config names: in every text with a colon, what stands before the colon.

    No other text leads to an import of a module: built-in parts and the entry points of installed packages
    have names without a colon.

    Args:
        sections: a config, or a part of it.
    """
    if isinstance(sections, Mapping):
        return {name for pair in sections.items() for part in pair for name in modules_in(part)}
    if isinstance(sections, list | tuple | set):
        return {name for part in sections for name in modules_in(part)}
    if not isinstance(sections, str) or ":" not in sections:
        return set()
    return {sections.partition(":")[0], sections.rpartition(":")[0]}


def modules_named(overrides: Sequence[str]) -> set[str]:
    """Return the modules that overrides name, such as ``distribution.name=module:Class``."""
    raw: dict[str, Any] = {}
    for override in overrides:
        apply_override(raw, override)  # load_config tells of faults
    return modules_in(raw)


def refuse_strangers(path: Path, text: str, trust: Collection[str]) -> None:
    """Refuse the config of a run folder if it names modules that nobody trusts.

    Args:
        path: of config.yaml; the stamp of the folder is beside it.
        text: its content.
        trust: modules that the user trusts, with all that they contain; ``module:name`` trusts the module.

    Raises:
        UserError: with the names of these modules.
    """
    raw = parse(text, str(path))
    named = {name for section in _SECTIONS for name in modules_in(raw.get(section))}
    trusted = {each.partition(":")[0] for each in trust}
    strange = sorted(name for name in named if not trusted & set(_with_packages(name)))
    if strange and not _is_stamped(path, text):
        which = ", ".join(f"{name!r:.80}" for name in strange)
        options = " ".join(f"--trust {shlex.quote(name)}" for name in strange)
        raise UserError(
            f"{path}: expected a folder that you trained, or modules that you trust, got one from elsewhere "
            f"that imports {which}; importing a module runs its code. If you know it, add {options}"
        )


def stamp(folder: Path, text: str) -> None:
    """Mark a run folder as trained by this user; without a secret, warn if the mark will be missed.

    Args:
        folder: of the run.
        text: of its config.yaml.
    """
    raw = parse(text, str(folder))
    if not modules_in([raw.get(section) for section in _SECTIONS]):
        return
    try:
        key = _secret(create=True)
    except (OSError, RuntimeError) as error:  # a RuntimeError: there is no home directory
        _log.warning("%s: to evaluate or resume this run, name its modules with --trust", error)
        return
    if key is not None:
        write_atomically(folder / STAMP, _digest(key, text) + "\n")


def _with_packages(module: str) -> Iterator[str]:
    """Yield the name of a module, and the names of the packages that contain it."""
    parts = module.split(".")
    return (".".join(parts[:count]) for count in range(1, len(parts) + 1))


def _is_stamped(path: Path, text: str) -> bool:
    try:
        key = _secret(create=False)
        found = read_text(path.parent / STAMP, most=1000).strip()
    except (OSError, RuntimeError, ValueError):
        return False
    return key is not None and hmac.compare_digest(found.encode(), _digest(key, text).encode())


def _digest(key: bytes, text: str) -> str:
    return hmac.new(key, text.encode(), hashlib.sha256).hexdigest()


def _secret_path() -> Path:
    """Return the file of this user's secret, in the state directory of the XDG specification."""
    given = os.environ.get("XDG_STATE_HOME", "")
    state = Path(given) if os.path.isabs(given) else Path.home() / ".local" / "state"
    return state / "rl2meta" / "secret"


def _secret(create: bool) -> bytes | None:
    """Return this user's secret; None, with a warning, if others can read it.

    Raises:
        OSError: if there is none, or it cannot be made.
    """
    path = _secret_path()
    if create and not path.exists():
        _make_secret(path)
    mode, key = stat.S_IMODE(path.stat().st_mode), path.read_bytes()
    if mode & 0o077 or len(key) != _BYTES:
        _log.warning(
            "%s: expected %d bytes with mode 600, got %d with mode %o; remove it",
            path,
            _BYTES,
            len(key),
            mode,
        )
        return None
    return key


def _make_secret(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(secrets.token_bytes(_BYTES))
        os.link(temporary, path)  # unlike a rename, it never replaces the secret of another process
    except FileExistsError:
        pass
    finally:
        temporary.unlink()
