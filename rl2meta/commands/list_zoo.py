"""``rl2meta list zoo`` and ``rl2meta list zoo:NAME``: the trained agents that come with the package."""

from rl2meta.experiments.text_tables import aligned
from rl2meta.experiments.zoo import PREFIX, located
from rl2meta.experiments.zoo_page import Page, facts_of, page, pages

LIST = PREFIX.removesuffix(":")


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
    rows = [[name, each.said(claim), claim.of] for name, claim in each.claims.items()]
    print(f"\nmean of a trial on {each.evaluation['num_tasks']:,} held-out tasks ± 95 % over tasks:")
    print(aligned([["agent", "mean", "of"], *rows]))
    print(f"\nfiles: {located(path)}")


def _row(each: Page) -> list[str]:
    best = "" if each.best is None else f"{each.best[0]} {each.said(each.best[1])}"
    return [PREFIX + each.name, each.subject.of, each.said(each.subject), best, each.entry.line]
