"""Agents and families for the names in a config: built-in, from packages, or any ``module:name``."""

import importlib
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Generic, TypeVar

from rl2meta.errors import UserError
from rl2meta.experiments.catalogue import Entry, offered
from rl2meta.experiments.config import suggestion
from rl2meta.training import AgentKind
from rl2meta.workers.faults import told

Part = TypeVar("Part")


class Parts(Mapping[str, Part], Generic[Part]):
    """All parts of one kind (agents or families) by name; a lookup imports the part.

    Iteration yields the names of built-in parts and of parts in packages. A lookup raises ``UserError`` if
    the part cannot be imported.

    Args:
        built_in: by name; a built-in part wins over a package's part of the same name.
        group: the entry-point group of packages.
        load: imports and returns the part of ``module:name``.
    """

    def __init__(self, built_in: Mapping[str, Entry], group: str, load: Callable[[str], Part]) -> None:
        self._built_in, self._group, self._load = built_in, group, load

    def __getitem__(self, name: str) -> Part:
        if name in self._built_in:
            return self._load(self._built_in[name].path)
        if name in (found := offered(self._group)):
            return self._load(found[name].value)
        if ":" in name:
            return self._load(name)
        raise KeyError(name)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and (":" in name or name in set(self))

    def __iter__(self) -> Iterator[str]:
        return iter({**self._built_in, **offered(self._group)})

    def __len__(self) -> int:
        return len({**self._built_in, **offered(self._group)})


def load_family(path: str) -> Any:
    """Return the family that ``module:Class`` names.

    Raises:
        UserError: if it cannot be imported or is not a family; the message gives the reason.
    """
    found = load(path, "module:Class, such as my_package.my_module:MyTasks")
    if not isinstance(found, type):
        raise UserError(f"{path}: expected a class, got {type(found).__name__} {found!r:.80}")
    if not any(callable(getattr(found, name, None)) for name in ("make_env", "make_envs")):
        what = f"an environment, {found.__name__}" if hasattr(found, "step") else repr(found)[:80]
        raise UserError(
            f"{path}: expected a family of tasks, got {what}; name a class with "
            "sample() and make_env(), or distribution.name=gymnasium and the environment's id"
        )
    return found


def load_agent(path: str) -> AgentKind:
    """Return the agent that ``module:name`` names, which must be an ``AgentKind``.

    Raises:
        UserError: if it cannot be imported or is not an ``AgentKind``; the message gives the reason.
    """
    found = load(path, "module:name, such as my_package.my_module:MY_AGENT")
    if not isinstance(found, AgentKind):
        raise UserError(
            f"{path}: expected an rl2meta.AgentKind, got {type(found).__name__} {found!r:.80}; write "
            "MY_AGENT = AgentKind(line, config, learner) in the module, and name that"
        )
    return found


def load(path: str, expected: str) -> Any:
    """Return the object that ``module:name`` names.

    Args:
        path: ``module:name``.
        expected: the form of ``path``, for error messages.

    Raises:
        UserError: if there is no such object; the message gives the reason.
    """
    module_name, _, attribute = path.partition(":")
    if not module_name or not attribute or module_name.startswith("."):
        raise UserError(f"{path!r}: expected {expected}")
    found: Any = _imported(module_name, path)
    for part in attribute.split("."):
        if not hasattr(found, part):
            known = [name for name, thing in vars(found).items() if _is_its_own(thing, name, module_name)]
            raise UserError(f"{path}: {module_name} has no {part!r}{suggestion(part, known)}")
        found = getattr(found, part)
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
    """Return the reason of a failed import, without stack frames of this file and of the import system."""
    frame = error.__traceback__
    while frame is not None and _is_machinery(frame.tb_frame.f_code.co_filename):
        frame = frame.tb_next
    return UserError(f"{path}: importing {module_name} {told(error.with_traceback(frame))}")


def _is_machinery(file: str) -> bool:
    return file in (__file__, importlib.__file__) or file.startswith("<frozen importlib")


def _is_its_own(thing: Any, name: str, module_name: str) -> bool:
    """Return whether a name is public and the module defines it, as an agent, a class or a function."""
    own = isinstance(thing, AgentKind) or (
        callable(thing) and getattr(thing, "__module__", None) == module_name
    )
    return own and not name.startswith("_")
