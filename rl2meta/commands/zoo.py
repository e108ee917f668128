"""``rl2meta zoo``: maintainers make the entries of the zoo, and the page about them."""

from pathlib import Path
from typing import Annotated

import typer

zoo_app = typer.Typer(help="For maintainers: make the entries of the zoo.", no_args_is_help=True)


@zoo_app.command()
def add(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN...", help="A group, or runs that differ in the seed alone; all finished."
        ),
    ],
    name: Annotated[str, typer.Option(help="The name of the new entry.")],
    config: Annotated[
        str | None, typer.Option(help="The shipped config of the runs; default: the one called NAME.")
    ] = None,
    tasks: Annotated[
        int | None, typer.Option(help="Number of held-out tasks; default: as in the config.")
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(help="References, comma-separated, or 'all' or 'none'; default: as in the config."),
    ] = None,
    into: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The folder of the zoo; default: that of the package.")
    ] = None,
) -> None:
    """Evaluate runs and make an entry from the one with the median score."""
    from rl2meta.commands.progress import TrialProgress
    from rl2meta.experiments.zoo import ZOO
    from rl2meta.experiments.zoo_building import add_entry

    with TrialProgress() as progress:
        folder = add_entry(
            name,
            runs,
            config=config,
            tasks=tasks,
            against=against,
            into=into or ZOO,
            say=progress.say,
            watch=progress.watch,
        )
    print(f"wrote {folder}; next: rl2meta zoo document")


@zoo_app.command("document")
def write_document(
    out: Annotated[Path, typer.Option(metavar="FILE", help="The page to write.")] = Path("docs/zoo.md"),
) -> None:
    """Write the page about the zoo from its entries."""
    from rl2meta.experiments.zoo_page import document, refuse_another_page
    from rl2meta.files import write_atomically, writing

    text = document()
    refuse_another_page(out)
    with writing(out):
        write_atomically(out, text)
    print(f"wrote {out}")
