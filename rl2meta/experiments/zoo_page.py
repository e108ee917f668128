"""What an entry of the zoo claims, as text: for the terminal, and for docs/zoo.md, which is written from it.

This imports no torch.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rl2meta.errors import UserError
from rl2meta.experiments.zoo import (
    PREFIX,
    REPAIR,
    ZOO,
    ZooEntry,
    read_entry,
    refuse_results_in_zoo,
    zoo_names,
)
from rl2meta.files import read_text, reading

_LARGEST = 2**22  # bytes of an evaluation
_FACTS = {"agents", "distribution", "episodes", "num_tasks", "env_steps"}
_TITLE = "# The zoo"
_HEAD = f"""{_TITLE}

Trained agents that come with the package. `zoo:NAME` stands for the run folder of one:

    rl2meta list zoo                                # all of them; rl2meta list zoo:NAME tells all about one
    rl2meta evaluate zoo:rl2_bandit                 # on held-out tasks, beside references and ceilings
    rl2meta compare zoo:rl2_bandit runs/mine
    rl2meta plot zoo:rl2_bandit                     # how it learnt
    rl2meta train rl2_bandit --from zoo:rl2_bandit --run-dir runs/mine   # begins with its weights

In Python it is `rl2meta.load_run("zoo:rl2_bandit")`. Nothing is written into these folders: results go into
the current folder.

Each agent is one of several that were trained with different seeds: the one with the median score, not the
best (unless it is the only one, and its entry says so). Figures are means over held-out tasks ± half of the
95 % interval over tasks. This page is written by `rl2meta zoo document` from the entries; a test plays each
agent again and compares.
"""


class Claim(NamedTuple):
    """What an evaluation says of an agent.

    Attributes:
        mean, low, high: of the regret of a trial, or of its return if no regret is known; 95 % over tasks.
        of: ``regret`` or ``return``.
    """

    mean: float
    low: float
    high: float
    of: str

    @property
    def half(self) -> float:
        """Half of the interval's width."""
        return (self.high - self.low) / 2


class Page(NamedTuple):
    """An entry with its evaluation.

    Attributes:
        name: of the entry.
        entry: its record.
        evaluation: the content of evaluation.json.
        size: of all its files in bytes.
    """

    name: str
    entry: ZooEntry
    evaluation: Mapping[str, Any]
    size: int

    @property
    def claims(self) -> dict[str, Claim]:
        """The claims for the trained agent, which is the first, and for the references."""
        return {name: claim for name in self.evaluation["agents"] if (claim := self._claim(name)) is not None}

    @property
    def best(self) -> tuple[str, Claim] | None:
        """The best reference; None if there is none."""
        _, *others = self.claims.items()
        sign = 1 if self.subject.of == "regret" else -1
        same = [other for other in others if other[1].of == self.subject.of]
        return min(same, key=lambda other: sign * other[1].mean, default=None)

    @property
    def digits(self) -> int:
        """Decimals for all claims: they show two digits of the trained agent's interval."""
        return next((digits for digits in range(1, 4) if self.subject.half * 10**digits >= 10), 3)

    def said(self, claim: Claim) -> str:
        """Return a claim as text."""
        return f"{claim.mean:.{self.digits}f} ± {claim.half:.{self.digits}f}"

    @property
    def subject(self) -> Claim:
        """The claim for the trained agent."""
        return next(iter(self.claims.values()))

    @property
    def law(self) -> str:
        """The task distribution, and the length of a trial."""
        episodes = self.evaluation["episodes"]
        return (
            f"{self.evaluation['distribution']}, trials of {episodes:,} episode{'s' if episodes > 1 else ''}"
        )

    def spread(self) -> str:
        """Return the scores of all seeds."""
        return ", ".join(f"{score[self.subject.of]:.{self.digits}f}" for score in self.entry.scores)

    def _claim(self, name: str) -> Claim | None:
        said = self.evaluation["agents"][name]["over_tasks"]
        of = "return" if said["regret"] is None else "regret"
        return None if said[of] is None else Claim(**said[of], of=of)


def pages(zoo: Path | None = None) -> list[Page]:
    """Return all entries with their evaluations."""
    return [page(name, zoo) for name in zoo_names(zoo)]


def page(name: str, zoo: Path | None = None) -> Page:
    """Return an entry with its evaluation."""
    folder = (zoo or ZOO) / name
    path = folder / "evaluation" / "evaluation.json"
    with reading(path):
        text = read_text(path, _LARGEST)
    evaluation = _parsed(text, path)
    return Page(name, read_entry(folder), evaluation, size_of(folder))


def _parsed(text: str, path: Path) -> dict[str, Any]:
    try:
        evaluation: dict[str, Any] = json.loads(text)
        whole = evaluation.keys() >= _FACTS and all(
            each["over_tasks"].keys() >= {"regret", "return"} for each in evaluation["agents"].values()
        )
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        whole = False
    if not whole:
        raise UserError(f"{path}: expected the evaluation of a zoo agent, got something else; {REPAIR}")
    return evaluation


def size_of(folder: Path) -> int:
    """Return the number of bytes of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def document(zoo: Path | None = None) -> str:
    """Return the text of docs/zoo.md."""
    every = pages(zoo)
    lines = [_HEAD, *_table(every), *(line for each in every for line in _section(each))]
    return "\n".join(lines) + "\n"


def refuse_another_page(path: Path) -> None:
    """Refuse to write over a file that ``rl2meta zoo document`` did not write.

    Raises:
        UserError: for such a file, and for a folder.
    """
    refuse_results_in_zoo(path, "--out")
    with reading(path):
        first = read_text(path, _LARGEST).partition("\n")[0] if path.exists() else _TITLE
    if first != _TITLE:
        raise UserError(
            f"--out: expected a new file, or an earlier page of `rl2meta zoo document`, got {path} with "
            "something else in it; choose another"
        )


def _table(every: Sequence[Page]) -> Iterator[str]:
    yield "| agent | a trial's regret (or return) | of each seed | best of the references below | size |"
    yield "| --- | --- | --- | --- | --- |"
    for each in every:
        best = "" if each.best is None else f"{each.best[0]}: {each.said(each.best[1])}"
        score = f"{'' if each.subject.of == 'regret' else 'return '}{each.said(each.subject)}"
        size = f"{each.size / 1000:.0f} kB"
        yield f"| [`{PREFIX}{each.name}`](#zoo{each.name}) | {score} | {each.spread()} | {best} | {size} |"


def _section(each: Page) -> Iterator[str]:
    entry, evaluation = each.entry, each.evaluation
    yield f"\n## zoo:{each.name}\n"
    yield f"{entry.line}\n\n`{each.law}`\n"
    for line in facts_of(each).items():
        yield "- {}: {}".format(*line)
    yield f"\n| on {evaluation['num_tasks']:,} held-out tasks | {each.subject.of} of a trial |\n| --- | --- |"
    for name, claim in each.claims.items():
        yield f"| {name} | {each.said(claim)}{'' if claim.of == each.subject.of else f' ({claim.of})'} |"


def facts_of(each: Page) -> dict[str, str]:
    """Return how an entry was trained and chosen."""
    entry, evaluation = each.entry, each.evaluation
    seeds = ", ".join(str(score["seed"]) for score in entry.scores)
    chosen = f"seed {entry.seed}, of median {each.subject.of} among seeds {seeds}: {each.spread()}"
    return {
        "trained by": f"`{entry.command}`",
        "on": f"{entry.trained}, {evaluation['env_steps']:,} environment steps",
        "chosen": chosen if len(entry.scores) > 1 else f"it is the only training, of seed {entry.seed}",
    }
