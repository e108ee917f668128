"""``rl2meta list``: what there is to train, to train on, and to compare with."""

from collections.abc import Mapping
from typing import Any

from pydantic.fields import FieldInfo
from rich.console import Console
from rich.table import Table

from rl2meta.errors import UserError
from rl2meta.experiments.components import AGENTS, DISTRIBUTIONS, default_references, shipped_configs
from rl2meta.experiments.papers import papers
from rl2meta.experiments.plugins import GROUP, load, offered
from rl2meta.experiments.sections import TrainingConfig
from rl2meta.workers.settings import WorkerSettings


def print_components() -> None:
    """Print agents, task distributions, their references, and shipped configs."""
    _print("agents", {name: _summary(kind.learner) for name, kind in AGENTS.items()})
    _print("task distributions", {name: _summary(family) for name, family in DISTRIBUTIONS.items()})
    _print(f"task distributions of other packages (entry points {GROUP})", _offered())
    for name, family in DISTRIBUTIONS.items():
        _print(f"settings of {name}", _settings(family.__pydantic_fields__))
    for name, known in default_references().items():
        _print(f"references on {name}", {key: reference.description for key, reference in known.items()})
    for name, kind in AGENTS.items():
        _print(f"settings of agent {name}", _settings(kind.config.model_fields))
    _print("settings of training", _settings(TrainingConfig.model_fields))
    _print(
        "settings of workers, for environments that are not batched", _settings(WorkerSettings.model_fields)
    )
    configs = {name: text.split("\n")[0].lstrip("# ") for name, text in shipped_configs().items()}
    _print("configs", configs)
    _print("tables to reproduce", {name: text.split("\n")[0].lstrip("# ") for name, text in papers().items()})


def _offered() -> dict[str, str]:
    """Return what each family that a package offers is, or why it cannot be imported."""
    said = {}
    for name, point in sorted(offered().items()):
        try:
            said[name] = f"{_summary(load(point.value))} ({point.value})".lstrip()
        except UserError as error:
            said[name] = f"cannot be imported: {error}"
    return said or {"none": "see docs/your_own_environment.md"}


def _settings(fields: Mapping[str, FieldInfo]) -> dict[str, str]:
    """Return what each key of a section means, and its default."""
    return {
        name: f"{field.description or ''} ({'required' if field.is_required() else field.default})".lstrip()
        for name, field in fields.items()
    }


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
