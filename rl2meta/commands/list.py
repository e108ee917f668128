"""``rl2meta list``: what there is to train and to train on; ``rl2meta list NAME``: all about one of them.

The short list loads no torch, unless other packages offer parts. What tells all about one part loads it.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, get_args

from rich.console import Console
from rich.table import Table

from rl2meta.errors import UserError
from rl2meta.experiments import catalogue

if TYPE_CHECKING:  # they take a second to load
    from pydantic.fields import FieldInfo

SETTINGS = "settings"
ZOO = "zoo"


def print_components() -> None:
    """Print agents, task distributions, configs and tables, each with one line, and how to see more."""
    _print("agents", {name: entry.line for name, entry in catalogue.AGENTS.items()})
    _print("task distributions", {name: entry.line for name, entry in catalogue.DISTRIBUTIONS.items()})
    for kind, group in (("agents", catalogue.AGENT_GROUP), ("task distributions", catalogue.FAMILY_GROUP)):
        _print(f"{kind} of other packages (entry points {group})", _offered(group))
    _print("configs", catalogue.list_configs())
    papers = catalogue.shipped_papers()
    _print("tables to reproduce", {name: catalogue.first_line(text) for name, text in papers.items()})
    more = {
        "rl2meta list NAME": "all about one of them: its settings, its references, or its text",
        f"rl2meta list {SETTINGS}": "the settings of every config: training, evaluation, device, workers",
        f"rl2meta list {ZOO}": "trained agents that come with the package",
    }
    _print("more", more)


def print_one(name: str) -> None:
    """Print the settings and references of an agent or a family, the text of a config or a table, or the zoo.

    Raises:
        UserError: for an unknown name.
    """
    from rl2meta.commands import list_zoo  # with YAML, which the short list does without
    from rl2meta.experiments.zoo import PREFIX

    printers: dict[str, Callable[[str], None]] = {SETTINGS: _print_settings, ZOO: list_zoo.print_zoo}
    if name.startswith(PREFIX):
        printers |= {name: list_zoo.print_entry}
    printers |= dict.fromkeys({**catalogue.shipped_papers(), **catalogue.shipped_configs()}, _print_text)
    families = {*catalogue.DISTRIBUTIONS, *catalogue.offered(catalogue.FAMILY_GROUP)}
    printers |= dict.fromkeys(families, _print_family)
    printers |= dict.fromkeys({*catalogue.AGENTS, *catalogue.offered(catalogue.AGENT_GROUP)}, _print_agent)
    if name not in printers:
        from rl2meta.experiments.config import suggestion

        raise UserError(f"NAME: nothing is called {name!r}{suggestion(name, printers)}")
    printers[name](name)


def _print_text(name: str) -> None:
    print({**catalogue.shipped_papers(), **catalogue.shipped_configs()}[name], end="")


def _print_agent(name: str) -> None:
    from rl2meta.experiments.components import AGENTS

    kind = AGENTS[name]
    _print(name, {"": kind.line})
    for title, fields in _sections(f"settings (agent.KEY=VALUE) of {name}", kind.config):
        _print(title, _settings(fields))


def _print_family(name: str) -> None:
    from rl2meta.experiments.components import FAMILIES, references_of_family

    family = FAMILIES[name]
    _print(name, {"": _summary(family)})
    fields = getattr(family, "__pydantic_fields__", {})
    _print(f"settings (distribution.KEY=VALUE) of {name}", _settings(fields) or {"none": ""})
    references = references_of_family(family)
    if references is None:
        _print(f"references on {name}", {"": "they depend on its settings; `rl2meta evaluate` names them"})
    else:
        _print(f"references on {name}", {key: each.description for key, each in references.items()})


def _print_settings(name: str) -> None:
    from rl2meta.experiments.sections import EvaluationConfig, RunSettings, TrainingConfig
    from rl2meta.workers.settings import WorkerSettings

    sections: dict[str, Any] = {"training": TrainingConfig, "evaluation": EvaluationConfig}
    sections["workers"] = WorkerSettings
    top = {key: field for key, field in RunSettings.model_fields.items() if key not in sections}
    _print("settings (KEY=VALUE)", _settings(top))
    for key, section in sections.items():
        _print(f"settings of {key} ({key}.KEY=VALUE)", _settings(section.model_fields))


def _offered(group: str) -> dict[str, str]:
    """Return what each part that a package offers is, or why it cannot be imported."""
    points = catalogue.offered(group)
    if not points:
        return {}
    from rl2meta.experiments.components import AGENTS, FAMILIES

    parts: Mapping[str, Any] = AGENTS if group == catalogue.AGENT_GROUP else FAMILIES
    return {name: f"{_line_of(parts, name)} ({point.value})" for name, point in sorted(points.items())}


def _line_of(parts: Mapping[str, Any], name: str) -> str:
    try:
        part = parts[name]
    except UserError as error:
        return f"cannot be imported: {error}"
    return str(getattr(part, "line", None) or _summary(part))


def _sections(title: str, config: Any) -> Iterator[tuple[str, Mapping[str, "FieldInfo"]]]:
    """Yield the settings of a config, then those of each part that it has a choice of."""
    yield title, config.model_fields
    for key, field in config.model_fields.items():
        parts: tuple[Any, ...] = get_args(field.annotation)
        for part in parts:
            if hasattr(part, "model_fields"):
                name = part.model_fields["name"].default
                yield f"settings of {key} {name} (agent.{key}.name={name})", part.model_fields


def _settings(fields: Mapping[str, "FieldInfo"]) -> dict[str, str]:
    """Return what each key of a section means, and its default."""
    return {name: f"{field.description or ''} ({_default(field)})".lstrip() for name, field in fields.items()}


def _default(field: "FieldInfo") -> Any:
    default = "required" if field.is_required() else field.get_default(call_default_factory=True)
    return getattr(default, "name", default) if hasattr(type(default), "model_fields") else default


def _print(title: str, rows: Mapping[str, str]) -> None:
    """Print a title and rows under it; nothing if there are none."""
    if not rows:
        return
    table = Table(show_header=False, box=None, padding=(0, 2))
    for name, description in rows.items():
        table.add_row(*([name] if name else []), description)
    console = Console(markup=False)  # U[low, high] is no style
    console.print(title, style="bold")
    console.print(table)
    console.print()


def _summary(thing: Any) -> str:
    """Return the first line of a docstring."""
    return (thing.__doc__ or "").split("\n")[0]
