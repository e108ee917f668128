"""``rl2meta list``: what there is to train, to train on, and to compare with."""

from collections.abc import Iterator, Mapping
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from rich.console import Console
from rich.table import Table

from rl2meta.errors import UserError
from rl2meta.experiments.catalogue import (
    AGENT_GROUP,
    AGENTS,
    DISTRIBUTIONS,
    FAMILY_GROUP,
    list_configs,
    offered,
)
from rl2meta.experiments.components import AGENTS as KINDS
from rl2meta.experiments.components import FAMILIES, default_references
from rl2meta.experiments.papers import papers
from rl2meta.experiments.plugins import Parts
from rl2meta.experiments.sections import TrainingConfig
from rl2meta.workers.settings import WorkerSettings


def print_components() -> None:
    """Print agents, task distributions, their references, and shipped configs."""
    _print("agents", {name: entry.line for name, entry in AGENTS.items()})
    _print(f"agents of other packages (entry points {AGENT_GROUP})", _offered(AGENT_GROUP, KINDS))
    _print("task distributions", {name: entry.line for name, entry in DISTRIBUTIONS.items()})
    title = f"task distributions of other packages (entry points {FAMILY_GROUP})"
    _print(title, _offered(FAMILY_GROUP, FAMILIES))
    for name in DISTRIBUTIONS:
        _print(f"settings of {name}", _settings(FAMILIES[name].__pydantic_fields__))
    for name, known in default_references().items():
        _print(f"references on {name}", {key: reference.description for key, reference in known.items()})
    for name in AGENTS:
        for title, fields in _sections(f"settings of agent {name}", KINDS[name].config):
            _print(title, _settings(fields))
    _print("settings of training", _settings(TrainingConfig.model_fields))
    _print(
        "settings of workers, for environments that are not batched", _settings(WorkerSettings.model_fields)
    )
    _print("configs", list_configs())
    _print("tables to reproduce", {name: text.split("\n")[0].lstrip("# ") for name, text in papers().items()})


def _offered(group: str, parts: Parts[Any]) -> dict[str, str]:
    """Return what each part that a package offers is, or why it cannot be imported."""
    said = {}
    for name, point in sorted(offered(group).items()):
        try:
            part = parts[name]
            said[name] = f"{getattr(part, 'line', None) or _summary(part)} ({point.value})".lstrip()
        except UserError as error:
            said[name] = f"cannot be imported: {error}"
    return said or {"none": "see docs/your_own_environment.md and docs/new_agent.md"}


def _sections(title: str, config: type[BaseModel]) -> Iterator[tuple[str, Mapping[str, FieldInfo]]]:
    """Yield the settings of a config, then those of each part that it has a choice of."""
    yield title, config.model_fields
    for key, field in config.model_fields.items():
        for part in get_args(field.annotation):
            if isinstance(part, type) and issubclass(part, BaseModel):
                yield f"{title}, {key} {part.model_fields['name'].default}", part.model_fields


def _settings(fields: Mapping[str, FieldInfo]) -> dict[str, str]:
    """Return what each key of a section means, and its default."""
    return {name: f"{field.description or ''} ({_default(field)})".lstrip() for name, field in fields.items()}


def _default(field: FieldInfo) -> Any:
    default = "required" if field.is_required() else field.default
    return getattr(default, "name", default) if isinstance(default, BaseModel) else default


def _print(title: str, rows: Mapping[str, str]) -> None:
    table = Table(show_header=False, box=None, padding=(0, 2))
    for name, description in rows.items():
        table.add_row(name, description)
    console = Console(markup=False)  # U[low, high] is no style
    console.print(title, style="bold")
    console.print(table)
    console.print()


def _summary(thing: Any) -> str:
    """Return the first line of a docstring."""
    return (thing.__doc__ or "").split("\n")[0]
