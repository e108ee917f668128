"""Task families from elsewhere: by import path, and through the entry-point group."""

import importlib
import os
from collections.abc import Iterator, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from rl2meta.errors import UserError
from rl2meta.experiments.config import suggestion
from rl2meta.workers.faults import told

GROUP = "rl2meta.task_distributions"
"""The entry-point group in whose name a package offers families: ``name = my_package.my_module:MyTasks``."""


class Families(Mapping[str, Any]):
    """Every family that a config may name: the built-in ones, those that packages offer, ``module:Class``.

    Iterating yields the first two kinds. What cannot be imported is a ``UserError`` when it is asked for.

    Args:
        built_in: by name; they win over a package's of the same name.
    """

    def __init__(self, built_in: Mapping[str, Any]) -> None:
        self.built_in = built_in

    def __getitem__(self, name: str) -> Any:
        if name in self.built_in:
            return self.built_in[name]
        if name in (found := offered()):
            return load(found[name].value)
        if ":" in name:
            return load(name)
        raise KeyError(name)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and (":" in name or name in self.built_in or name in offered())

    def __iter__(self) -> Iterator[str]:
        return iter({**self.built_in, **offered()})

    def __len__(self) -> int:
        return len({**self.built_in, **offered()})


def offered() -> dict[str, EntryPoint]:
    """Return the families that installed packages offer, by name."""
    return {point.name: point for point in entry_points(group=GROUP)}


def load(path: str) -> Any:
    """Return what ``module:Class`` names.

    Raises:
        UserError: if there is no such thing, with the reason.
    """
    module_name, _, attribute = path.partition(":")
    if not module_name or not attribute or module_name.startswith("."):
        raise UserError(f"{path!r}: expected module:Class, such as my_package.my_module:MyTasks")
    found: Any = _imported(module_name, path)
    for part in attribute.split("."):
        if not hasattr(found, part):
            known = [name for name, thing in vars(found).items() if _is_its_own(thing, name, module_name)]
            raise UserError(f"{path}: {module_name} has no {part!r}{suggestion(part, known)}")
        found = getattr(found, part)
    if not callable(found):
        raise UserError(f"{path}: expected a class, got {type(found).__name__} {found!r:.80}")
    if isinstance(found, type) and not callable(getattr(found, "sample", None)) and hasattr(found, "step"):
        raise UserError(
            f"{path}: expected a family of tasks, got an environment, {found.__name__}; name a class with "
            "sample() and make_env(), or distribution.name=gymnasium and the environment's id"
        )
    return found


def _imported(module_name: str, path: str) -> Any:
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{module_name}.".startswith(f"{error.name}."):
            raise UserError(
                f"{path}: expected a module that can be imported, got none of the name {error.name}; install "
                f"its package, or run rl2meta in the folder that holds it (now {os.getcwd()})"
            ) from None
        raise _fault(error, module_name, path) from None
    except (Exception, SystemExit) as error:
        raise _fault(error, module_name, path) from None


def _fault(error: BaseException, module_name: str, path: str) -> UserError:
    """Say why an import failed, without our frames and those of the import system."""
    frame = error.__traceback__
    while frame is not None and _is_machinery(frame.tb_frame.f_code.co_filename):
        frame = frame.tb_next
    return UserError(f"{path}: importing {module_name} {told(error.with_traceback(frame))}")


def _is_machinery(file: str) -> bool:
    return file in (__file__, importlib.__file__) or file.startswith("<frozen importlib")


def _is_its_own(thing: Any, name: str, module_name: str) -> bool:
    """Return whether a name of a module is public, can be called, and was not imported from elsewhere."""
    return callable(thing) and not name.startswith("_") and getattr(thing, "__module__", None) == module_name
