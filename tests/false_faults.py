"""Count the faults that ``rl2meta check`` finds in sound families: tests/false_faults.py [SEEDS [FIRST]].

No test, as it takes minutes. A fault that is found here is none; what the agents do is not looked at.
"""

import itertools
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from rl2meta.experiments.checks import examine

HERE = "workers.processes=0"
CART = ["distribution.id=CartPole-v1", "distribution.horizon=30"]
FAMILIES = {
    "arms that seldom pay": ["bernoulli_bandits", "distribution.high=0.03"],
    "gaussian_bandits": ["gaussian_bandits"],
    "two tasks": ["dependent_bandits", "distribution.law=easy"],
    "two_step": ["two_step"],
    "tabular_mdps": ["tabular_mdps"],
    "dark_rooms": ["dark_rooms"],
    "key_to_door": ["key_to_door"],
    "moving_bandits": ["moving_bandits"],
    "four_rooms": ["four_rooms"],
    "point_navigation": ["point_navigation"],
    "sinusoids": ["sinusoids"],
    "three tasks": ["gymnasium", *CART, "distribution.vary_attributes.force_mag={choice: [5, 10, 20]}", HERE],
    "levels by seed": ["gymnasium", *CART, "distribution.vary_seed=true", HERE],
    "seldom light": ["sound_lamps:Sound", "distribution.env=Dim", "distribution.tasks=3", HERE],
    "never shown": ["sound_lamps:Sound", "distribution.env=Distant", HERE],
}


class Enough(Exception):
    """The agents' turn has come."""


def faults_of(target: str, *overrides: str) -> Iterator[str]:
    """Yield the faults that are found in a family, without training agents on it."""

    def say(what: str) -> None:
        if what.startswith("agent "):
            raise Enough

    results = examine(target, overrides, say=say).results
    try:
        for result in results:
            yield from (found.words for found in result.findings if found.kind == "FAULT")
    except Enough:
        return


def main(seeds: int = 20, first: int = 0) -> None:
    """Print each fault, and their number in each family."""
    sys.path.append(str(Path(__file__).parent / "outside" / "faulty"))
    wrong = 0
    for name, (target, *overrides) in FAMILIES.items():
        begun = time.monotonic()
        found = [
            (seed, list(faults_of(target, *overrides, f"seed={seed}")))
            for seed in range(first, first + seeds)
        ]
        bad = [(seed, faults) for seed, faults in found if faults]
        wrong += len(bad)
        print(f"{name}: {len(bad)} of {seeds} seeds, {time.monotonic() - begun:.0f} s", flush=True)
        for seed, words in itertools.chain.from_iterable(
            ((seed, text) for text in faults) for seed, faults in bad
        ):
            print(f"  seed {seed}: {words}")
    print(f"{wrong} of {len(FAMILIES) * seeds} checks found a fault that is none")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
