"""The conformance suite of task families: run ``check_distribution`` on every new family."""

from collections.abc import Callable, Iterator

from rl2meta.envs.checking import episodes, law, optimum, steps
from rl2meta.envs.checking.case import Case, Check
from rl2meta.envs.checking.chance import Untold
from rl2meta.tasks import TaskDistribution

_CHECKS: tuple[Check, ...] = (*law.CHECKS, *steps.CHECKS, *episodes.CHECKS, *optimum.CHECKS)


class ConformanceError(AssertionError):
    """A family breaks the contract of ``rl2meta.tasks``; the message lists all failures."""


def check_distribution(
    distribution: TaskDistribution, *, num_tasks: int = 8, seed: int = 0, steady: bool | None = None
) -> None:
    """Check that a family keeps the contract of ``TaskDistribution``, ``Tasks`` and ``TaskVectorEnv``.

    Plays a few episodes on the CPU: seconds, not minutes. Values that a family does not know (regret, optima)
    are not required. If the spaces, the horizon or a method are missing, nothing else is checked.

    Args:
        distribution: the family.
        num_tasks: number of tasks, and of environments side by side, >= 2.
        seed: of all random numbers.
        steady: expect a task to be the same in each of its episodes. Use False for families that change from
            one episode to the next: then the suite does not check whether a restart keeps the task. None: as
            the family's attribute ``steady`` says, and True if it has none.

    Raises:
        ConformanceError: if anything is wrong; the message lists every failure, not only the first.
        ValueError: for fewer than two tasks.
    """
    found = findings(distribution, num_tasks=num_tasks, seed=seed, steady=steady)
    failures = [words for words in found if not isinstance(words, Untold)]
    if failures:
        lines = "".join(f"\n- {failure}" for failure in failures)
        raise ConformanceError(f"{type(distribution).__name__} has {len(failures)} failures:{lines}")


def findings(
    distribution: TaskDistribution,
    *,
    num_tasks: int = 8,
    seed: int = 0,
    steady: bool | None = None,
    most_steps: int | None = None,
    say: Callable[[str], None] = lambda name: None,
) -> Iterator[str]:
    """Yield what ``check_distribution`` finds, check by check; an ``Untold`` message is no failure.

    A difference that chance can make is followed by more draws: a message is a failure only where chance
    would do it with p < 1e-6.

    Args:
        distribution: the family.
        num_tasks: as of ``check_distribution``.
        seed: of all random numbers.
        steady: as of ``check_distribution``.
        most_steps: the largest number of steps to play at once; None: more than an episode.
        say: gets the name of each check as it begins.

    Raises:
        ValueError: for fewer than two tasks.
    """
    if num_tasks < 2:
        raise ValueError(f"expected num_tasks >= 2 (tasks are compared with each other), got {num_tasks}")
    same = getattr(distribution, "steady", True) if steady is None else steady
    case = Case(distribution, num_tasks, seed, same, most_steps)
    missing = _failures(law.check_attributes, case)
    yield from missing
    for check in () if missing else _CHECKS:
        say(_name(check))
        yield from _failures(check, case)


def _failures(check: Check, case: Case) -> list[str]:
    found = []
    try:
        for message in check(case):
            found.append(message)  # one by one, so that an error does not lose the messages before it
    except Exception as error:
        found.append(f"{_name(check)}: expected no error, got {type(error).__name__}: {error}")
    return found


def _name(check: Check) -> str:
    return check.__name__.lstrip("_").removeprefix("check_").replace("_", " ")
