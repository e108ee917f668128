"""``rl2meta list zoo``: the trained agents that come with the package; ``rl2meta zoo``, by which they are made."""

from pathlib import Path
from typing import Annotated

import typer

from rl2meta.experiments.text_tables import aligned
from rl2meta.experiments.zoo import PREFIX, ZOO, located
from rl2meta.experiments.zoo_page import Page, document, facts_of, page, pages

LIST = PREFIX.removesuffix(":")
zoo_app = typer.Typer(help="For maintainers: make the entries of the zoo.", no_args_is_help=True)


def print_zoo(name: str = LIST) -> None:
    """Print one line for each agent of the zoo, and what can be done with them."""
    head = ["agent", "a trial's", "score", "best reference", "what it is"]
    print(aligned([head, *(_row(each) for each in pages())]))
    print(f"\nrl2meta evaluate {PREFIX}NAME            plays it on held-out tasks")
    print(f"rl2meta list {PREFIX}NAME                tells all about one")
    print(f"rl2meta train CONFIG --from {PREFIX}NAME begins a training with its weights")


def print_entry(path: str) -> None:
    """Print all about the agent ``zoo:NAME``.

    Raises:
        UserError: for an unknown name.
    """
    each = page(located(path).name)
    print(f"{path}: {each.entry.line}\n{each.law}\n")
    print("\n".join(f"{name}: {said}" for name, said in facts_of(each).items()).replace("`", ""))
    rows = [[name, str(claim), claim.of] for name, claim in each.claims.items()]
    print(f"\nmean of a trial on {each.evaluation['num_tasks']:,} held-out tasks ± 95 % over tasks:")
    print(aligned([["agent", "mean", "of"], *rows]))
    print(f"\nfiles: {located(path)}")


def _row(each: Page) -> list[str]:
    best = "" if each.best is None else f"{each.best[0]} {each.best[1]}"
    return [PREFIX + each.name, each.subject.of, str(each.subject), best, each.entry.line]


@zoo_app.command()
def add(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN...", help="A group, or runs that differ in the seed alone; all finished."),
    ],
    name: Annotated[str, typer.Option(help="The name of the new entry.")],
    config: Annotated[
        str | None, typer.Option(help="The shipped config of the runs; default: the one called NAME.")
    ] = None,
    tasks: Annotated[
        int | None, typer.Option(help="Number of held-out tasks; default: as in the config.")
    ] = None,
    into: Annotated[Path, typer.Option(metavar="DIR", help="The folder of the zoo.")] = ZOO,
) -> None:
    """Evaluate runs and make an entry from the one with the median score."""
    from rl2meta.commands.progress import TrialProgress
    from rl2meta.experiments.zoo_building import add_entry

    with TrialProgress() as progress:
        folder = add_entry(
            name, runs, config=config, tasks=tasks, into=into, say=progress.say, watch=progress.watch
        )
    print(f"wrote {folder}; next: rl2meta zoo document")


@zoo_app.command("document")
def write_document(
    out: Annotated[Path, typer.Option(metavar="FILE", help="The page to write.")] = Path("docs/zoo.md"),
) -> None:
    """Write the page about the zoo from its entries."""
    from rl2meta.files import write_atomically, writing

    with writing(out):
        write_atomically(out, document())
    print(f"wrote {out}")
