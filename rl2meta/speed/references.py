"""Reference agents: their constants chosen on training tasks, then one trial on each held-out task."""

from collections.abc import Callable

import torch

from rl2meta.agents.references.reference import Reference
from rl2meta.experiments.components import chosen_references, make_worker, read_config
from rl2meta.experiments.contest import Contest
from rl2meta.speed.suites import Contestant, Suite

CONFIG, TASKS = "rl2_bandit_n100_k5", 10_000


def references_suite(device: torch.device, against: str | None) -> Suite:
    """Return every reference of five-armed bandits with a hundred pulls."""
    config = read_config(CONFIG, [])
    contest = Contest(config, make_worker(config, device), 0, TASKS)
    contestants = {
        name: Contestant(_judged(contest, reference), {"reference": name})
        for name, reference in chosen_references(config).items()
    }
    title = f"evaluation of references, {TASKS:,} tasks of {contest.episodes} pulls, tuning included"
    return Suite(title, {"tasks": TASKS, "config": CONFIG}, contestants)


def _judged(contest: Contest, reference: Reference) -> Callable[[], int]:
    def unit() -> int:
        return int(contest.evaluate_reference(reference).steps.sum())

    return unit
