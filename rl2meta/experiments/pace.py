"""How much a check plays: less where environments are slow, or show much."""

import time
from typing import NamedTuple

from rl2meta.envs.checking.case import CPU, Case, legal_after
from rl2meta.experiments.patience import OutOfTime, at_most
from rl2meta.tasks import sample_tasks
from rl2meta.workers.plugged_in import PluggedIn

TASKS = 8  # of each split
_SECONDS = 1.5  # of one game; the suite plays some thirty
_BYTES = 2**28  # of one game's observations
_PROBED = 20  # steps
_FEW_TASKS, _FEW_STEPS = 2, 8
_LONGEST = 10.0  # seconds of a measurement


class Pace(NamedTuple):
    """The size of a game.

    Attributes:
        tasks: the number of tasks, and of environments.
        steps: the largest number of steps in each; None: as many as there are.
    """

    tasks: int = TASKS
    steps: int | None = None


def pace_of(law: PluggedIn, seed: int) -> Pace:
    """Measure a law whose environments are in this process."""
    try:
        with at_most(_LONGEST):
            start, one_step, size = _measured(law, seed)
    except OutOfTime:
        return Pace(_FEW_TASKS, _FEW_STEPS)
    except (Exception, SystemExit):  # the checks will meet it, and tell it better
        return Pace()
    each = start + _PROBED * one_step
    tasks = max(_FEW_TASKS, min(TASKS, int(_SECONDS / each)))
    steps = int(max(0.0, _SECONDS - tasks * start) / (tasks * one_step))
    return Pace(tasks, max(_FEW_TASKS, min(max(_FEW_STEPS, steps), _BYTES // (3 * tasks * size))))


def _measured(law: PluggedIn, seed: int) -> tuple[float, float, int]:
    """Return the seconds of a start and of a step (the quickest ones), and the bytes of an observation."""
    case, task = Case(law, 1, seed, most_steps=_PROBED), sample_tasks(law, 1, seed, "train")
    starts, steps, size = list[float](), list[float](), 1
    for _ in range(2):
        begun = time.perf_counter()
        envs = law.make_envs(1, CPU)
        try:
            observation, info = envs.reset(seed=seed, options={"tasks": task})
            size = max(1, observation.nbytes)
            starts.append(time.perf_counter() - begun)
            for action in case.drawn_actions():
                action, begun = legal_after(info, action, envs), time.perf_counter()
                info = envs.step(action)[-1]
                steps.append(time.perf_counter() - begun)
                if sum(steps) > _SECONDS / 2:
                    break
        finally:
            envs.close()
    return min(starts), max(1e-9, min(steps)), size
