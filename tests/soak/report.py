"""What the probes found, as rows of a table."""

from dataclasses import dataclass, field


@dataclass
class Row:
    """A line of the table: how often something was tried, and each failure in words."""

    what: str
    asked: str
    tried: int = 0
    failures: list[str] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)

    def check(self, held: bool, failure: str) -> None:
        """Count a try; remember what failed, with its file, step and signal."""
        self.tried += 1
        if not held:
            self.failures.append(failure)

    def count(self, name: str) -> None:
        """Count something that the reader may want to know."""
        self.counts[name] = self.counts.get(name, 0) + 1

    def text(self) -> str:
        """Return the row in Markdown."""
        seen = ", ".join(f"{number} {name}" for name, number in sorted(self.counts.items()))
        held = f"{self.tried - len(self.failures):,} of {self.tried:,}"
        return f"| {self.what} | {self.asked} | {held}{f' ({seen})' if seen else ''} |"


def table(rows: list[Row]) -> str:
    """Return all rows in Markdown."""
    return "\n".join(["| what | must | held |", "| --- | --- | --- |", *(row.text() for row in rows)]) + "\n"
