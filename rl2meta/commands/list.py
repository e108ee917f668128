"""``rl2meta list``: what there is to train, to train on, and to compare with."""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel
from rich.console import Console
from rich.table import Table

from rl2meta.commands.components import AGENTS, DISTRIBUTIONS, read_config, references_of, shipped_configs
from rl2meta.commands.papers import papers
from rl2meta.config import TrainingConfig


def print_components() -> None:
    """Print agents, task distributions, their references, and shipped configs."""
    _print("agents", {name: _summary(kind.learner) for name, kind in AGENTS.items()})
    _print("task distributions", {name: _summary(family) for name, family in DISTRIBUTIONS.items()})
    for family, references in _references().items():
        _print(f"references on {family}", references)
    for name, kind in AGENTS.items():
        _print(f"settings of agent {name}", _settings(kind.config))
    _print("settings of training", _settings(TrainingConfig))
    configs = {name: text.split("\n")[0].lstrip("# ") for name, text in shipped_configs().items()}
    _print("configs", configs)
    _print("tables to reproduce", {name: text.split("\n")[0].lstrip("# ") for name, text in papers().items()})


def _references() -> dict[str, dict[str, str]]:
    """Return the references of each family that a shipped config trains on, with their descriptions."""
    configs = [read_config(name, []) for name in shipped_configs()]
    return {
        config.distribution_name: {
            name: reference.description for name, reference in references_of(config, 1).items()
        }
        for config in configs
    }


def _settings(config: type[BaseModel]) -> dict[str, str]:
    """Return what each key of a config means, and its default."""
    return {
        name: f"{field.description or ''} ({'required' if field.is_required() else field.default})"
        for name, field in config.model_fields.items()
    }


def _print(title: str, rows: Mapping[str, str]) -> None:
    table = Table(title=title, title_justify="left", show_header=False, box=None, padding=(0, 2))
    for name, description in rows.items():
        table.add_row(name, description)
    console = Console()
    console.print(table)
    console.print()


def _summary(thing: Any) -> str:
    """Return the first line of a docstring."""
    return (thing.__doc__ or "").split("\n")[0]
