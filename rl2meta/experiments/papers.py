"""The published tables that ``rl2meta reproduce`` fills; ``configs/papers`` holds their data."""

from importlib.resources import files

from pydantic import BaseModel, ConfigDict

from rl2meta.errors import UserError
from rl2meta.experiments.config import suggestion
from rl2meta.experiments.yaml_text import parse


class Cell(BaseModel):
    """One experiment of a table.

    Attributes:
        config, overrides: the config of the experiment, and changes of it.
        published: the paper's name of a column -> its mean return.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    config: str
    overrides: list[str]
    published: dict[str, float]


class Paper(BaseModel):
    """A published table.

    Attributes:
        source: the paper and the table.
        notes: what a reader must know before comparing the figures.
        agents: our name -> the paper's, or None if the paper has no such column; the trained agent is first.
        cells: by name.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str
    notes: list[str]
    agents: dict[str, str | None]
    cells: dict[str, Cell]


def papers() -> dict[str, str]:
    """Return the text of each table's file, by name."""
    folder = files("rl2meta.configs").joinpath("papers")
    paths = sorted((path for path in folder.iterdir() if path.name.endswith(".yaml")), key=lambda p: p.name)
    return {path.name.removesuffix(".yaml"): path.read_text(encoding="utf-8") for path in paths}


def load_paper(name: str) -> Paper:
    """Return the table called ``name``.

    Raises:
        UserError: if there is no such table.
    """
    known = papers()
    if name not in known:
        raise UserError(f"unknown table {name!r}{suggestion(name, known)}")
    return Paper(**parse(known[name], name))


def chosen_cells(paper: Paper, names: list[str]) -> dict[str, Cell]:
    """Return the named cells, or all if no name is given, in the order of the table.

    Raises:
        UserError: if the table has no cell of one of the names; the message names it.
    """
    wanted = [name.replace(" ", "") for name in names]
    for name in wanted:
        if name not in paper.cells:
            raise UserError(f"--cells: unknown cell {name!r}{suggestion(name, paper.cells)}")
    return {name: cell for name, cell in paper.cells.items() if not wanted or name in wanted}
