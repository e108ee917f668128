"""The published tables that ``rl2meta reproduce`` fills; ``configs/papers`` holds their data."""

from collections.abc import Mapping
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from rl2meta.errors import UserError
from rl2meta.experiments.catalogue import shipped_papers
from rl2meta.experiments.config import suggestion
from rl2meta.experiments.yaml_text import parse


class Training(BaseModel):
    """How the agent of a cell is trained.

    Attributes:
        config, overrides: the config of the experiment, and changes of it.
        begins_from: ``from`` in the file: the cell whose trained weights this training begins with; None for
            weights of its own seed.
        judged_with: changes of the config for the evaluation alone.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", validate_by_name=True)

    config: str
    overrides: list[str] = []
    begins_from: str | None = Field(None, alias="from")
    judged_with: list[str] = []


class Cell(Training):
    """One experiment of a table.

    Attributes:
        published: the paper's name of a column -> its mean return.
        heading: cells with the same tasks have the same; of tables with ``blocks``.
    """

    published: dict[str, float] = {}
    heading: str = ""


class Paper(BaseModel):
    """A published table.

    Attributes:
        source: the paper and the table.
        notes: what a reader must know before comparing the figures.
        agents: our name -> the paper's, or None if the paper has no such column; the trained agent is first.
        core: the core of the agent in the configs of ``cells``; "" for agents without one.
        cells: by name.
        cores: another core -> how the cells are trained with it, by name.
        blocks: a table for each ``heading`` has one row for each agent of each cell, with the mean reward of
            an episode after so many blocks of episodes; empty for a table of returns for each cell.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str
    notes: list[str]
    agents: dict[str, str | None]
    core: str = ""
    cells: dict[str, Cell]
    cores: dict[str, dict[str, Training]] = {}
    blocks: list[int] = []

    @model_validator(mode="after")
    def _origins_stand_before(self) -> Self:
        """Refuse a cell that begins from one that does not stand before it; so there is no cycle."""
        tables: list[Mapping[str, Training]] = [self.cells, *self.cores.values()]
        for trainings in tables:
            names = list(trainings)
            for place, (name, training) in enumerate(trainings.items()):
                if training.begins_from not in (None, *names[:place]):
                    raise ValueError(
                        f"{name}: from: expected a cell that stands before it, got {training.begins_from}"
                    )
        return self


def papers() -> dict[str, str]:
    """Return the text of each table's file, by name."""
    return shipped_papers()


def load_paper(name: str) -> Paper:
    """Return the table called ``name``.

    Raises:
        UserError: if there is no such table.
    """
    known = papers()
    if name not in known:
        raise UserError(f"unknown table {name!r}{suggestion(name, known)}")
    return Paper(**parse(known[name], name))


def with_core(paper: Paper, core: str) -> Paper:
    """Return the table with cells whose agent has the core called ``core``.

    Raises:
        UserError: if the table has no configs for this core.
    """
    if core == paper.core:
        return paper
    if not paper.core:
        raise UserError(f"--core: expected none, because agents of this table have no core, got {core!r}")
    if core not in paper.cores:
        raise UserError(f"--core: unknown core {core!r}{suggestion(core, [paper.core, *paper.cores])}")
    cells = {
        name: Cell(**training.model_dump(), published=paper.cells[name].published)
        for name, training in paper.cores[core].items()
    }
    return paper.model_copy(update={"core": core, "cells": cells})


def with_origins(paper: Paper, wanted: Mapping[str, Cell]) -> dict[str, Cell]:
    """Return the wanted cells and those whose weights they begin with, in the order of the table."""
    needed = set(wanted)
    for name, cell in reversed(paper.cells.items()):  # an origin stands before the cells that need it
        if name in needed and cell.begins_from is not None:
            needed.add(cell.begins_from)
    return {name: cell for name, cell in paper.cells.items() if name in needed}


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
