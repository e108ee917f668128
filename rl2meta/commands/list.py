"""``rl2meta list``: what there is to train, to train on, and to compare with."""

from rich.console import Console
from rich.table import Table

from rl2meta.commands.components import AGENTS, DISTRIBUTIONS, REFERENCES, shipped_configs


def print_components() -> None:
    """Print agents, task distributions with their references, and shipped configs."""
    console = Console()
    for title, rows in (
        ("agents", _described(AGENTS_BY_CONFIG)),
        ("task distributions", _described(DISTRIBUTIONS)),
        ("references", [(name, _reference_names(name)) for name in REFERENCES]),
        ("configs", [(name, _first_comment(text)) for name, text in shipped_configs().items()]),
    ):
        table = Table(title=title, title_justify="left", show_header=False, box=None, padding=(0, 2))
        for name, description in rows:
            table.add_row(name, description)
        console.print(table)
        console.print()


AGENTS_BY_CONFIG = {name: kind.learner for name, kind in AGENTS.items()}


def _described(things: dict) -> list[tuple[str, str]]:
    return [(name, (thing.__doc__ or "").split("\n")[0]) for name, thing in things.items()]
