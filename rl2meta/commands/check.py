"""``rl2meta check``: what must change before a family or an agent can be used."""

import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from rl2meta.errors import UserError
from rl2meta.experiments.checks import Result, examine

_SILENT = 5.0  # seconds, at first, after which the user hears what is under way
_LONGEST = 1e6  # seconds


def run_checks(
    target: str,
    overrides: Sequence[str],
    trust: Sequence[str] = (),
    *,
    limit: float = 60.0,
    silent: float = _SILENT,
) -> int:
    """Check a config, or the family or agent that ``target`` names; print what was found, return the code.

    Args:
        target: as of ``examine``.
        overrides: as of ``examine``.
        trust: as of ``examine``.
        limit: of the time for each check, in seconds.
        silent: seconds without a word, at first; what takes longer is named on standard error.

    Raises:
        UserError: for a limit that is no time, and as of ``examine``.
    """
    if not 0 < limit <= _LONGEST:
        raise UserError(f"--limit: expected seconds, more than 0 and at most {_LONGEST:g}, got {limit:g}")
    with _progress(silent) as progress:
        subject, results = examine(target, overrides, trust, limit=limit, say=progress.begin)
        print(f"checking {subject}", flush=True)
        faults = 0
        for result in results:
            _print(result)
            faults += result.faults
            if result.ends:
                print("the rest was not tried: nothing else can be right before this is")
    many = f"{faults} to mend; begin with the first, as others may follow from it"
    print("all is well" if not faults else many if faults > 1 else "1 to mend")
    return 2 if faults else 0


class _Progress:
    """Says what is under way if it takes long, and again after twice the time."""

    def __init__(self, silent: float) -> None:
        self._silent, self._what, self._since, self._next = silent, "", time.monotonic(), silent

    def begin(self, what: str) -> None:
        self._what, self._since, self._next = what, time.monotonic(), self._silent

    def look(self) -> None:
        taken = time.monotonic() - self._since
        if self._what and taken >= self._next:
            self._next = 2 * taken
            print(f"  ...    {self._what}: {taken:.0f} s so far", file=sys.stderr, flush=True)


@contextmanager
def _progress(silent: float) -> Iterator[_Progress]:
    progress, over = _Progress(silent), threading.Event()

    def watch() -> None:
        with suppress(OSError, ValueError):  # nobody reads standard error
            while not over.wait(min(1.0, silent / 2)):
                progress.look()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield progress
    finally:
        over.set()
        thread.join()


def _print(result: Result) -> None:
    kinds = {finding.kind for finding in result.findings}
    verdict = next((kind for kind in ("FAULT", "unfit") if kind in kinds), "ok")
    print(f"  {verdict:5}  {result.title}", flush=True)
    for finding in result.findings:
        first, *rest = f"{'note: ' if finding.kind == 'note' else ''}{finding.words}".splitlines()
        print("\n".join([f"         {first}", *(f"           {line}" for line in rest)]), flush=True)
