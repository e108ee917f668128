"""The conformance suite of agents: whoever adds one runs ``check_agent`` on it."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from pydantic import BaseModel, ValidationError
from torch import Tensor

from rl2meta.envs.bandits import BernoulliBandits
from rl2meta.envs.navigation import PointNavigation
from rl2meta.envs.sinusoids import Sinusoids
from rl2meta.errors import UserError
from rl2meta.experiments import agent_acting, agent_learning, agent_source
from rl2meta.experiments.agent_case import AgentCase, Misfit, has_phase
from rl2meta.experiments.config import suggestion
from rl2meta.tasks import TaskDistribution
from rl2meta.training import AgentKind
from rl2meta.workers.faults import told

AgentCheck = Callable[[AgentCase], Iterator[str]]
"""Tries an agent out and yields what it found wrong, as 'what: expected, got; do'."""
_LAWS: tuple[TaskDistribution, ...] = (
    BernoulliBandits(num_arms=3),
    PointNavigation(horizon=5),
    Sinusoids(),
)


class AgentConformanceError(AssertionError):
    """An agent breaks the contract of ``Agent``, ``Learner`` or ``AgentKind``; lists every fault."""


class Checked(NamedTuple):
    """What a check found.

    Attributes:
        title: what was checked.
        failures: what is wrong.
        needed: the checks that follow presume this one.
    """

    title: str
    failures: list[str]
    needed: bool


def check_agent(
    kind: AgentKind,
    *,
    distribution: TaskDistribution | None = None,
    config: BaseModel | None = None,
    num_tasks: int = 6,
    seed: int = 0,
    num_episodes: int | None = None,
) -> None:
    """Check that an agent keeps the contract of ``Agent``, ``Learner`` and ``AgentKind``.

    The agent lives through a trial or two on the CPU and learns from them: seconds, not minutes. The suite
    does not ask whether it learns anything useful.

    Args:
        kind: the agent.
        distribution: the tasks to live on; by default the first built-in family that the agent can be built
            for, of Bernoulli bandits, points that look for a goal, and sinusoids.
        config: the agent's settings; by default its config's defaults.
        num_tasks: tasks side by side, >= 2.
        seed: of everything that is drawn.
        num_episodes: episodes in a trial; by default as many as make the agent adapt twice.

    Raises:
        AgentConformanceError: if anything is wrong; lists every failure, not only the first.
        ValueError: for fewer than two tasks.
    """
    if num_tasks < 2:
        raise ValueError(f"expected num_tasks >= 2 (rows are compared with each other), got {num_tasks}")
    results = agent_results(kind, distribution, config, num_tasks, seed, num_episodes)
    failures = [failure for result in results for failure in result.failures]
    if failures:
        lines = "".join(f"\n- {failure}" for failure in failures)
        count = "a failure" if len(failures) == 1 else f"{len(failures)} failures"
        raise AgentConformanceError(f"the agent has {count}:{lines}")


def agent_results(
    kind: AgentKind,
    distribution: TaskDistribution | None = None,
    config: BaseModel | None = None,
    num_tasks: int = 6,
    seed: int = 0,
    num_episodes: int | None = None,
) -> Iterator[Checked]:
    """Yield what each check finds; after a failure that the others presume not to be, nothing follows."""
    failures = list(_check_kind(kind))
    yield Checked("its config, and the keys that may change after training", failures, True)
    if failures:
        return
    settings = kind.config() if config is None else config
    law = distribution or _fitting(kind, settings, num_tasks, seed)
    case = AgentCase(kind, law, settings, num_tasks, seed, num_episodes)
    for title, (check, needed) in CHECKS.items():
        failures = _failures(title, check, case)
        yield Checked(title, failures, needed)
        if failures and needed:
            return


def _failures(title: str, check: AgentCheck, case: AgentCase) -> list[str]:
    found = []
    try:
        for message in check(case):
            found.append(message)  # one by one: what was found before an error must not be lost
    except (Misfit, UserError) as error:
        found.append(str(error))
    except Exception as error:
        found.append(f"{title}: expected no error, got one: it {told(error)}")
    return found


def _fitting(kind: AgentKind, config: BaseModel, num_tasks: int, seed: int) -> TaskDistribution:
    """Return the first family that the agent refuses neither when it is built nor when it learns."""
    for law in _LAWS:
        case = AgentCase(kind, law, config, num_tasks, seed)
        try:
            learner = case.learner()
            case.update(learner, case.live(learner))
        except (UserError, TypeError):
            continue
        except Exception:
            return law  # that is a fault, which the checks will name
        return law
    return _LAWS[0]


def _check_kind(kind: Any) -> Iterator[str]:
    if not isinstance(kind, AgentKind):
        yield f"expected an rl2meta.AgentKind, got {type(kind).__name__} {kind!r:.80}"
        return
    line, config, learner = (getattr(kind, name) for name in ("line", "config", "learner"))  # of any type
    if not isinstance(line, str) or not line or "\n" in line:
        yield f"line: expected one line that says what the agent is, got {line!r:.80}"
    if not callable(learner):
        yield f"learner: expected a function of spaces, config, device and seed, got {learner!r:.80}"
    if not isinstance(config, type) or not issubclass(config, BaseModel):
        yield f"config: expected a pydantic model, a class under BaseModel, got {config!r:.80}"
        return
    if config.model_config.get("extra") != "forbid":
        yield (
            "config: expected a model that refuses unknown keys, got one that takes any; a mistyped key "
            "would change nothing: write model_config = ConfigDict(frozen=True, extra='forbid')"
        )
    try:
        kind.config()
    except ValidationError as error:
        keys = ", ".join(".".join(map(str, fault["loc"])) for fault in error.errors())
        yield f"config: expected defaults that make a config, got none for {keys}"
    for key in (key for key in kind.at_test if key.split(".")[0] not in kind.config.model_fields):
        yield f"at_test: expected keys of the config, got {key!r}{suggestion(key, kind.config.model_fields)}"


def _check_learner(case: AgentCase) -> Iterator[str]:
    learner: Any = case.learner()
    for name in ("update", "state_dict", "load_state_dict"):
        if not callable(getattr(learner, name, None)):
            yield f"learner: expected a method {name}, got {getattr(learner, name, None)!r:.80}"
    agent = getattr(learner, "agent", None)
    for name in ("begin", "act", "adapt"):
        if not callable(getattr(agent, name, None)):
            yield f"learner.agent: expected a method {name}, got {getattr(agent, name, None)!r:.80}"
    if not has_phase(agent):
        yield "learner.agent.phase: expected an rl2meta.Phase, such as Phase(episodes=None) for a whole trial"
    if callable(getattr(learner, "state_dict", None)):
        yield from _odd_state(learner.state_dict())


def _odd_state(state: Any) -> Iterator[str]:
    if not isinstance(state, Mapping):
        yield f"state_dict: expected a dict of tensors, got {type(state).__name__}"
        return
    for name, tensor in state.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            yield (
                f"state_dict: expected one flat dict from names to tensors, got {type(tensor).__name__} for "
                f"{name!r}; rl2meta.learner_state.state_of(network, optimizer) gives one"
            )
            return


def _check_trial(case: AgentCase) -> Iterator[str]:
    """Live through a trial, with a look at every choice."""
    assert case.trial
    yield from ()


CHECKS: Mapping[str, tuple[AgentCheck, bool]] = {
    "what its module imports": (agent_source.check_source, False),
    "a learner with all its parts": (_check_learner, True),
    "a trial, with a look at every choice": (_check_trial, True),
    "no global randomness": (agent_learning.check_randomness, True),
    "the same generator, the same actions": (agent_acting.check_same_actions, True),
    "rows that know nothing of each other": (agent_acting.check_rows, False),
    "a memory that only begin resets": (agent_acting.check_memory, False),
    "two trials that take turns": (agent_acting.check_interleaved, False),
    "adapt leaves the old carry alone": (agent_acting.check_adapt, False),
    "weights of the seed alone": (agent_learning.check_weights, True),
    "an update and its metrics": (agent_learning.check_metrics, True),
    "the same trial, the same update": (agent_learning.check_same_update, True),
    "a state that resumes to the bit": (agent_learning.check_resume, False),
}
"""What each check looks at -> the check, and whether those after it presume that it finds nothing."""
