"""Families by name, with messages that help where an argument of ``gym.make`` is wrong."""

import difflib
import inspect
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any, cast

from pydantic import ValidationError

from rl2meta.errors import UserError
from rl2meta.tasks import TaskDistribution


def built(target: str, arguments: Mapping[str, Any], others: Sequence[str] = ()) -> TaskDistribution:
    """Return the law ``module:Class`` with these arguments.

    Args:
        target: where the class is.
        arguments: of the class.
        others: arguments of ``gym.make`` that are not of the class, for messages.

    Raises:
        UserError: for arguments that the class does not have, or values that it refuses.
    """
    module, name = target.split(":")
    family = getattr(import_module(module), name)
    _check_names(family, arguments, others)
    try:
        return cast(TaskDistribution, family(**arguments))
    except ValidationError as error:
        raise UserError(f"{name}: {'; '.join(_fault(details) for details in error.errors())}") from None


def _check_names(family: Any, arguments: Mapping[str, Any], others: Sequence[str]) -> None:
    parameters = inspect.signature(family).parameters
    if any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters.values()):
        return
    known = [*parameters, *others]
    for name in arguments:
        if name not in parameters:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            did_you_mean = f"; did you mean {near[0]!r}?" if near else ";"
            raise UserError(
                f"{family.__name__}: expected arguments among {', '.join(known)}, got {name!r}{did_you_mean} "
                "rl2meta list shows what they mean"
            )


def _fault(details: Any) -> str:
    """Return one fault that pydantic found, in our words."""
    path = ".".join(map(str, details["loc"]))
    message = details["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
    return f"{path}: expected {message}, got {details['input']!r:.80}" if path else f"expected {message}"
