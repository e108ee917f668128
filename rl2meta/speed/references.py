"""Reference agents: each is tuned on training tasks, then plays one trial on each held-out task."""

from collections.abc import Callable

import torch

from rl2meta.agents.references.reference import Reference
from rl2meta.experiments.components import chosen_references, make_worker, read_config
from rl2meta.experiments.contest import Contest
from rl2meta.speed.suites import Suite, Workload


def references_suite(
    device: torch.device,
    *,
    config: str = "rl2_bandit_n100_k5",
    tasks: int = 10_000,
    tuning_tasks: int | None = None,
) -> Suite:
    """Return every reference of a config's tasks; the shipped one has five-armed bandits with 100 pulls.

    Args:
        device: the device of the tasks and the agents.
        config: the name of a shipped config, or a YAML file.
        tasks: the number of held-out tasks.
        tuning_tasks: the most training tasks that constants are chosen on; None for ``Contest``'s default.
    """
    experiment = read_config(config, [])
    contest = Contest(experiment, make_worker(experiment, device), 0, tasks, tuning_tasks=tuning_tasks)
    workloads = {
        name: Workload(_judged(contest, reference), {"reference": name})
        for name, reference in chosen_references(experiment).items()
    }
    title = f"evaluation of references, {tasks:,} tasks of {contest.episodes} pulls, tuning included"
    return Suite(title, {"tasks": tasks, "config": config}, workloads)


def _judged(contest: Contest, reference: Reference) -> Callable[[], int]:
    def unit() -> int:
        return int(contest.evaluate_reference(reference).steps.sum())

    return unit
