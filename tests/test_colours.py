"""One agent has one colour in all figures, and no two agents of a figure have the same."""

import pytest

from rl2meta.agents.references.catalogue import NAMES
from rl2meta.colours import OTHERS, TRAINED, colours_of
from rl2meta.experiments.catalogue import DISTRIBUTIONS
from rl2meta.experiments.components import FAMILIES, references_of_family


def _far(colour: str, other: str) -> bool:
    """Whether two colours differ in red, green and blue by more than an eye could miss, in all."""
    first, second = (bytes.fromhex(each[1:]) for each in (colour, other))
    return sum(abs(a - b) for a, b in zip(first, second, strict=True)) >= 24


def test_all_colours_differ() -> None:
    colours = [*TRAINED, *OTHERS]
    assert all(_far(a, b) for i, a in enumerate(colours) for b in colours[:i])


def test_every_reference_has_a_colour_of_its_own_and_keeps_it() -> None:
    known = [references_of_family(FAMILIES[name]) for name in DISTRIBUTIONS]
    assert {name for references in known if references for name in references} == set(NAMES)
    alone = {name: colours_of(["rl2"], [name], NAMES)[name] for name in NAMES}
    assert len(set(alone.values())) == len(NAMES) <= len(OTHERS)
    together = colours_of(["rl2"], ["a stranger", *reversed(NAMES[1:])], NAMES)
    assert all(together[name] == alone[name] for name in NAMES[1:])
    assert len(set(together.values())) == len(together)


@pytest.mark.parametrize("others", [[], ["random", "greedy"], ["x", "y", "z"]])
def test_a_trained_agent_keeps_its_colour(others: list[str]) -> None:
    (colour,) = colours_of(["wide"], []).values()
    assert colour in TRAINED
    assert (
        colours_of(["wide"], others, NAMES)["wide"] == colours_of(["wide", "deep"], others)["wide"] == colour
    )


def test_many_trained_agents_differ() -> None:
    names = [f"seed{i}" for i in range(15)]
    assert len(set(colours_of(names, list(NAMES)[:12], NAMES).values())) == 27
