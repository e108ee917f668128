"""What an agent's own files may import."""

import ast
import inspect
import sys
from collections.abc import Iterator
from types import ModuleType

from rl2meta.experiments.agent_case import AgentCase

_TERMINAL = ("rl2meta.commands", "rl2meta.cli")


def check_source(case: AgentCase) -> Iterator[str]:
    """Read the files of the agent: what is private may be gone tomorrow."""
    names = {getattr(part, "__module__", None) for part in (case.kind.learner, case.kind.config)}
    for module in (sys.modules[name] for name in sorted(filter(None, names)) if name in sys.modules):
        for line, name in _private(module):
            yield (
                f"{module.__name__}, line {line}: expected public names of rl2meta alone, got {name}; "
                "docs/new_agent.md says what is there for agents"
            )


def _private(module: ModuleType) -> Iterator[tuple[int, str]]:
    """Yield line and name of each import that is not public."""
    try:
        tree = ast.parse(inspect.getsource(module))
    except (OSError, TypeError, SyntaxError):  # typed in, or compiled
        return
    ours: set[str] = set()
    for node in ast.walk(tree):
        for path, bound in _imported(node):
            ours.add(bound)
            if path.startswith(_TERMINAL) or any(map(_hidden, path.split("."))):
                yield node.lineno, path  # type: ignore[attr-defined]
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and _hidden(node.attr) and _root(node) in ours:
            yield node.lineno, ast.unparse(node)


def _imported(node: ast.AST) -> Iterator[tuple[str, str]]:
    """Yield what an import statement takes from rl2meta, and the name that it gets."""
    if isinstance(node, ast.Import):
        found = [(alias.name, alias.asname or alias.name.split(".")[0]) for alias in node.names]
    elif isinstance(node, ast.ImportFrom) and not node.level:
        found = [(f"{node.module}.{alias.name}", alias.asname or alias.name) for alias in node.names]
    else:
        found = []
    return (each for each in found if each[0].split(".")[0] == "rl2meta")


def _hidden(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def _root(node: ast.expr) -> str | None:
    """Return the name that a chain of attributes begins with."""
    while isinstance(node, ast.Attribute):
        node = node.value
    return node.id if isinstance(node, ast.Name) else None
