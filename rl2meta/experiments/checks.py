"""What ``rl2meta check`` asks of a family of tasks, of a config, or of an agent; it prints nothing."""

import logging
import os
import re
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import gymnasium as gym
import torch
from gymnasium.utils.env_checker import check_env as gymnasium_check
from stable_baselines3.common.env_checker import check_env as sb3_check

from rl2meta.envs.batched import TaskEnv
from rl2meta.envs.gym_tasks import GymnasiumTasks
from rl2meta.errors import UserError
from rl2meta.experiments import catalogue
from rl2meta.experiments.agent_checks import agent_results
from rl2meta.experiments.components import AGENTS, COMPONENTS, FAMILIES, read_config
from rl2meta.experiments.config import RunConfig, load_config, suggestion
from rl2meta.experiments.pace import Pace
from rl2meta.experiments.patience import OutOfTime, Watch, at_most
from rl2meta.experiments.plugin_checks import Check, Finding, conformance, here, plugin_checks
from rl2meta.experiments.plugins import load
from rl2meta.experiments.rehearsal import draw, rehearse
from rl2meta.experiments.yaml_text import text_of
from rl2meta.training import AgentKind
from rl2meta.workers.faults import named, told
from rl2meta.workers.legal import LegalOnly
from rl2meta.workers.plugged_in import PluggedIn

_UNSEEDED = "random number generator to have been generated"  # said where np_random is never used
_CPU = torch.device("cpu")


class Result(NamedTuple):
    """What a check found.

    Attributes:
        title: what was checked.
        findings: what there is to say.
        ends: nothing was tried after this, as nothing else can be right before it is.
    """

    title: str
    findings: list[Finding]
    ends: bool = False

    @property
    def faults(self) -> int:
        """How much must change."""
        return sum(finding.kind == "FAULT" for finding in self.findings)


class Examination(NamedTuple):
    """What is checked, and what comes of it.

    Attributes:
        subject: what is checked, in words.
        results: of each check, as it is done.
    """

    subject: str
    results: Iterator[Result]


def examine(
    target: str,
    overrides: Sequence[str] = (),
    trust: Collection[str] = (),
    *,
    limit: float = 60.0,
    say: Callable[[str], None] = lambda what: None,
) -> Examination:
    """Return the checks of a config, or of the family or the agent that ``target`` names.

    Args:
        target: a YAML file, a shipped config, the name of a family or an agent, or ``module:name`` of one.
        overrides: settings to change, such as ``distribution.horizon=100`` or ``agent.learning_rate=0.1``.
        trust: modules that the config.yaml of a run folder from elsewhere may import.
        limit: of the time for each check, in seconds; what is not found out by then is a note and no fault.
        say: gets the name of each check, and of its parts, as they begin.

    Raises:
        UserError: for a target that is none of these, or a config with faults.
    """
    watch = Watch(limit, say)
    if _names_agent(target):
        config = _experiment("bernoulli_bandits", target, target, overrides)
        given = any(override.startswith("distribution.") for override in overrides)
        where = f" on {config.law}" if given else ""
        return Examination(
            f"agent {target}{where}", _agent_results(config, _here(config) if given else None, None, watch)
        )
    config = _config(target, overrides, trust)
    return Examination(str(config.law), _config_results(config, watch))


def _config(target: str, overrides: Sequence[str], trust: Collection[str]) -> RunConfig:
    """Return the experiment to check: a config, or a family with agents of few settings on it."""
    known = catalogue.shipped_configs()
    if target in known or os.path.exists(target):
        return read_config(target, overrides, trust)
    if target not in FAMILIES:
        module, _, attribute = target.rpartition(".")
        meant = f"; for a class: {module}:{attribute}" if module and not target.endswith(".yaml") else ""
        if target in gym.registry:
            meant = f"; for a Gymnasium id: gymnasium distribution.id={target}, and what varies"
        raise UserError(
            f"{target!r}: expected a YAML file, a shipped config, the name of a family or an agent, or "
            f"module:Class or module:AGENT, got none of them{meant}"
            f"{suggestion(target, [*known, *FAMILIES, *AGENTS])}"
        )
    return _experiment(target, "rl2", target, overrides)


def _experiment(family: str, agent: str, source: str, overrides: Sequence[str]) -> RunConfig:
    experiment = {
        "distribution": {"name": family},
        "agent": {"name": agent},
        "training": {"updates": 1, "trials_per_update": 2, "episodes_per_trial": 2},
    }
    return load_config(text_of(experiment), source, overrides, COMPONENTS)


def _names_agent(target: str) -> bool:
    """Return whether a target is an agent and nothing else; what cannot be loaded is told of later."""
    if target in catalogue.shipped_configs() or os.path.exists(target) or target in set(FAMILIES):
        return False
    if target in set(AGENTS):
        return True
    try:
        return ":" in target and isinstance(load(target, "module:name"), AgentKind)
    except UserError:
        return False


def _config_results(config: RunConfig, watch: Watch) -> Iterator[Result]:
    told_before = set[str]()
    for title, check, needed in _checks(config, watch):
        watch.begin(title)
        result, broke_off = _result(title, check, config, watch)
        news = [_as_news(finding, told_before) for finding in result.findings]
        told_before |= {finding.words for finding in news if finding.kind == "FAULT"}
        yield result._replace(findings=news, ends=needed and broke_off)
        if needed and broke_off:
            return
    if config.agent_name not in catalogue.AGENTS:
        length = config.settings.training.episodes_per_trial
        for result in _agent_results(config, _here(config), length, watch):
            yield result._replace(title=f"agent: {result.title}")


def _as_news(finding: Finding, told_before: Collection[str]) -> Finding:
    """Return what a check found, or a note where another check has said the same."""
    if finding.kind == "FAULT" and finding.words in told_before:
        return Finding("note", f"as above: {finding.words.splitlines()[0]}")
    return finding


def _agent_results(config: RunConfig, law: Any, num_episodes: int | None, watch: Watch) -> Iterator[Result]:
    """Check the agent of a config, on a law or on a small one that fits."""
    kind, seed = AGENTS[config.agent_name], config.settings.seed
    results = agent_results(kind, law, config.agent, seed=seed, num_episodes=num_episodes)
    while True:
        watch.begin(f"the checks of agent {config.agent_name}")
        try:
            with at_most(watch.limit):
                checked = next(results, None)
        except OutOfTime:
            yield Result(watch.now, [Finding("note", watch.late)])
            return
        if checked is None:
            return
        findings = [Finding("FAULT", failure) for failure in checked.failures]
        yield Result(checked.title, findings, checked.needed and bool(findings))


def _here(config: RunConfig) -> Any:
    """Return the law as an agent meets it, with single environments in this process."""
    if isinstance(config.law, PluggedIn):
        config = replace(config, law=here(config.law))
    return config.distribution


def _checks(config: RunConfig, watch: Watch) -> Iterator[tuple[str, Check, bool]]:
    """Yield the name of each check, what it does, and whether nothing can follow if it breaks off."""
    if isinstance(config.law, PluggedIn):
        yield from plugin_checks(config, watch)
    else:
        seed, contract = config.settings.seed, "the contract of task distributions"
        yield contract, lambda config: conformance(config.law, Pace(), watch, seed), False
    yield "Gymnasium's checker", _gymnasium, False
    yield "Stable-Baselines3's checker", _sb3, False
    for name in dict.fromkeys([*catalogue.AGENTS, config.agent_name]):
        yield f"agent {name}, a trial and an update", _trainer(name), False


def _result(title: str, check: Check, config: RunConfig, watch: Watch) -> tuple[Result, bool]:
    """Return what a check finds, and whether an error broke it off."""
    found, broke_off = list[Finding](), False
    with warnings.catch_warnings(record=True) as said, _logged() as records:
        warnings.simplefilter("always")
        try:
            with at_most(watch.limit):
                for finding in check(config):
                    found.append(finding)  # one by one: what was found before an error must not be lost
        except OutOfTime:
            found.append(Finding("note", watch.late))
        except UserError as error:
            found, broke_off = [*found, Finding("FAULT", str(error))], True
        except (Exception, SystemExit) as error:  # of an environment that is stepped here, or a checker
            found, broke_off = [*found, Finding("FAULT", told(error))], True
    if not found:  # what is logged after a fault is its consequence; without, close() went wrong
        found = [Finding("FAULT", record.getMessage()) for record in records]
        broke_off = bool(found)
    notes = [Finding("note", words) for words in _worth_knowing(said)]
    return Result(title, found + notes), broke_off


@contextmanager
def _logged() -> Iterator[list[logging.LogRecord]]:
    """Collect what is logged of workers instead of printing it."""
    records: list[logging.LogRecord] = []
    log, handler = logging.getLogger("rl2meta.workers"), logging.Handler()
    handler.addFilter(lambda record: bool(records.append(record)))  # type: ignore[func-returns-value]
    log.addHandler(handler)
    log.propagate, before = False, log.propagate
    try:
        yield records
    finally:
        log.removeHandler(handler)
        log.propagate = before


def _worth_knowing(said: Iterable[warnings.WarningMessage]) -> list[str]:
    """Return what was warned of, once each, without colours; that the environment is wrapped is no news."""
    words = (re.sub(r"\x1b\[\d+m|WARN: ", "", str(each.message)) for each in said)
    return [each for each in dict.fromkeys(words) if "different from the unwrapped version" not in each]


def _gymnasium(config: RunConfig) -> Iterator[Finding]:
    if error := _stumbled(lambda env: gymnasium_check(env, skip_render_check=True), config):
        unseeded = _UNSEEDED in error  # no fault, if the same seed brings back the trial: another check
        yield Finding("note" if unseeded else "FAULT", error)


def _sb3(config: RunConfig) -> Iterator[Finding]:
    """Say what Stable-Baselines3 demands; nothing here needs it, so it is no fault."""
    if error := _stumbled(lambda env: sb3_check(env, skip_render_check=True), config):
        yield Finding("note", f"unfit for SB3: {error}")


def _stumbled(check: Callable[[gym.Env[Any, Any]], None], config: RunConfig) -> str | None:
    """Return over what somebody else's checker stumbles, if it does."""
    env = _single(config)
    try:
        check(env)
    except (Exception, SystemExit) as error:  # AssertionError, TypeError, ...
        return named(error)
    finally:
        env.close()
    return None


def _single(config: RunConfig) -> gym.Env[Any, Any]:
    law = config.law
    if not isinstance(law, PluggedIn):
        return TaskEnv(law)
    (task,) = draw(law, 1, config.settings.seed, "train").entries
    if isinstance(law.family, GymnasiumTasks):  # a seed held through the trial, as meant, would be a fault
        task = {key: value for key, value in task.items() if key != "seed"}
    env = law.family.make_env(task)
    return LegalOnly(env, law.described) if law.described.masks else env  # other checkers know no masks


def _trainer(name: str) -> Check:
    """Return the check that trains an agent for an update; one that the config does not name need not fit."""

    def train(config: RunConfig) -> Iterator[Finding]:
        own = name == config.agent_name
        try:
            rehearse(config if own else _with_agent(config, name), _CPU)
        except (UserError, TypeError, ValueError) as error:
            yield Finding("FAULT" if own else "unfit", str(error))
        except (MemoryError, RuntimeError) as error:  # sizes that only the other agent cannot do with
            if own:
                raise
            yield Finding("unfit", told(error))

    return train


def _with_agent(config: RunConfig, name: str) -> RunConfig:
    settings = AGENTS[name].config()
    episodes = 2 * getattr(settings, "episodes_per_phase", 1)
    training = config.settings.training.model_copy(update={"episodes_per_trial": episodes})
    return replace(
        config,
        agent_name=name,
        agent=settings,
        settings=config.settings.model_copy(update={"training": training}),
    )
