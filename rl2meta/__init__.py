"""rl2meta: agents that learn to learn, trained and judged on tasks they have never seen.

    run = rl2meta.train("rl2_bandit", {"agent.core.hidden_size": 64}, run_dir="runs/wide")
    evaluation = rl2meta.evaluate(run, tasks=10_000, against=["gittins", "thompson"])

Importing this package loads nothing heavy: each public name is imported when it is first used. What is public
is written in ``__init__.pyi``, which editors and type checkers read too.
"""

import ast as _ast
from importlib import import_module as _import_module
from pathlib import Path as _Path
from typing import Any as _Any

__version__ = "0.1.0"


def _public() -> dict[str, str]:
    """Return the module of each public name."""
    stub = _ast.parse(_Path(__file__).with_suffix(".pyi").read_text(encoding="utf-8"))
    imports = [node for node in stub.body if isinstance(node, _ast.ImportFrom)]
    return {alias.name: str(node.module) for node in imports for alias in node.names}


_MODULES = _public()
__all__ = sorted(_MODULES)


def __getattr__(name: str) -> _Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'rl2meta' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(_import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
