"""``rl2meta check``: what must change before a family or an agent can be used."""

from collections.abc import Sequence

from rl2meta.experiments.checks import Result, examine


def run_checks(target: str, overrides: Sequence[str], trust: Sequence[str] = ()) -> int:
    """Check a config, or the family or agent that ``target`` names; print what was found, return the code."""
    subject, results = examine(target, overrides, trust)
    print(f"checking {subject}")
    faults = 0
    for result in results:
        _print(result)
        faults += result.faults
        if result.ends:
            print("the rest was not tried: nothing else can be right before this is")
    print("all is well" if not faults else f"{faults} to mend" if faults > 1 else "1 to mend")
    return 2 if faults else 0


def _print(result: Result) -> None:
    kinds = {finding.kind for finding in result.findings}
    verdict = next((kind for kind in ("FAULT", "unfit") if kind in kinds), "ok")
    print(f"  {verdict:5}  {result.title}")
    for finding in result.findings:
        first, *rest = f"{'note: ' if finding.kind == 'note' else ''}{finding.words}".splitlines()
        print("\n".join([f"         {first}", *(f"           {line}" for line in rest)]))
