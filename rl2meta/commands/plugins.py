"""Task families from elsewhere: by import path, and through the entry-point group."""

import importlib
from collections.abc import Iterator, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from rl2meta.errors import UserError
from rl2meta.workers.faults import fault_of

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
    if not module_name or not attribute:
        raise UserError(f"{path!r}: expected module:Class, such as my_package.my_module:MyTasks")
    try:
        found: Any = importlib.import_module(module_name)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        fault = fault_of(error, "import", None, 0)
        raise UserError(f"{path}: importing {module_name} {fault.what}{fault.details}") from None
    for part in attribute.split("."):
        if not hasattr(found, part):
            known = ", ".join(name for name in dir(found) if not name.startswith("_"))
            raise UserError(f"{path}: {module_name} has no {part!r}; it has {known:.300}")
        found = getattr(found, part)
    if not callable(found):
        raise UserError(f"{path}: expected a class, got {type(found).__name__} {found!r:.80}")
    return found
