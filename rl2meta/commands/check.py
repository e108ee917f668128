"""``rl2meta check``: what must change before a family of tasks can be trained on."""

import logging
import os
import re
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import gymnasium as gym
import torch
import yaml
from gymnasium.utils.env_checker import check_env as gymnasium_check
from stable_baselines3.common.env_checker import check_env as sb3_check

from rl2meta.envs.batched import TaskEnv
from rl2meta.envs.checking import ConformanceError, check_distribution
from rl2meta.errors import UserError
from rl2meta.experiments.catalogue import shipped_configs
from rl2meta.experiments.components import AGENTS, COMPONENTS, FAMILIES, read_config
from rl2meta.experiments.config import RunConfig, load_config, suggestion
from rl2meta.experiments.plugin_checks import TASKS, Check, Finding, here, plugin_checks
from rl2meta.experiments.rehearsal import draw, rehearse
from rl2meta.workers.faults import told
from rl2meta.workers.plugged_in import PluggedIn

_CPU = torch.device("cpu")


def run_checks(target: str, overrides: list[str]) -> int:
    """Check a config, or the family that ``target`` names; print what was found, return the exit code."""
    config = _config(target, overrides)
    print(f"checking {config.law}")
    faults = 0
    for title, check, needed in _checks(config):
        findings = _found(check, config)
        _print(title, findings)
        faults += sum(finding.kind == "FAULT" for finding in findings)
        if faults and needed:
            print("the rest was not tried: nothing else can be right before this is")
            break
    print("all is well" if not faults else f"{faults} to mend" if faults > 1 else "1 to mend")
    return 2 if faults else 0


def _checks(config: RunConfig) -> Iterator[tuple[str, Check, bool]]:
    """Yield the name of each check, what it does, and whether the others presume it."""
    single = isinstance(config.law, PluggedIn)
    if single:
        yield from ((title, check, True) for title, check in plugin_checks(config))
    yield "the contract of task distributions", _conform, single
    yield "Gymnasium's checker", _checker(lambda env: gymnasium_check(env, skip_render_check=True)), False
    yield "Stable-Baselines3's checker", _checker(lambda env: sb3_check(env, skip_render_check=True)), False
    for name in AGENTS:
        yield f"agent {name}, a trial and an update", _trainer(name), False


def _config(target: str, overrides: list[str]) -> RunConfig:
    """Return the experiment to check: a config, or a family with agents of few settings on it."""
    known = shipped_configs()
    if target in known or os.path.exists(target):
        return read_config(target, overrides)
    if target not in FAMILIES:
        module, _, attribute = target.rpartition(".")
        meant = f"; for a class: {module}:{attribute}" if module and not target.endswith(".yaml") else ""
        if target in gym.registry:
            meant = f"; for a Gymnasium id: gymnasium distribution.id={target}, and what varies"
        raise UserError(
            f"{target!r}: expected a YAML file, a shipped config, a family's name or module:Class, got none "
            f"of them{meant}{suggestion(target, [*known, *FAMILIES])}"
        )
    experiment = {
        "distribution": {"name": target},
        "agent": {"name": "rl2"},
        "training": {"updates": 1, "trials_per_update": 2, "episodes_per_trial": 2},
    }
    return load_config(yaml.safe_dump(experiment), target, overrides, COMPONENTS)


def _found(check: Check, config: RunConfig) -> list[Finding]:
    found = []
    with warnings.catch_warnings(record=True) as said, _logged() as records:
        warnings.simplefilter("always")
        try:
            for finding in check(config):
                found.append(finding)  # one by one: what was found before an error must not be lost
        except UserError as error:
            found.append(Finding("FAULT", str(error)))
        except ConformanceError as error:
            found += [Finding("FAULT", words) for words in str(error).split("\n- ")[1:]]
        except (Exception, SystemExit) as error:  # of an environment that is stepped here, or a checker
            found.append(Finding("FAULT", told(error)))
    if not found:  # what is logged after a fault is its consequence; without, close() went wrong
        found = [Finding("FAULT", record.getMessage()) for record in records]
    return found + [Finding("note", words) for words in _worth_knowing(said)]


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


def _conform(config: RunConfig) -> Iterator[Finding]:
    law = config.law
    if isinstance(law, PluggedIn):
        law = here(law)  # for every check makes environments of its own
    check_distribution(law, num_tasks=TASKS, seed=config.settings.seed)
    yield from ()


def _checker(check: Callable[[gym.Env[Any, Any]], None]) -> Check:
    def checked(config: RunConfig) -> Iterator[Finding]:
        env = _single(config)
        try:
            check(env)
        except (Exception, SystemExit) as error:  # AssertionError, TypeError, ...: whatever it stumbles over
            yield Finding("FAULT", f"{type(error).__name__}: {error}")
        finally:
            env.close()

    return checked


def _single(config: RunConfig) -> gym.Env[Any, Any]:
    law = config.law
    if not isinstance(law, PluggedIn):
        return TaskEnv(law)
    (task,) = draw(law, 1, config.settings.seed, "train").entries
    return law.family.make_env(task)


def _trainer(name: str) -> Check:
    """Return the check that trains an agent for an update; one that the config does not name need not fit."""

    def train(config: RunConfig) -> Iterator[Finding]:
        own = name == config.agent_name
        try:
            rehearse(config if own else _with_agent(config, name), _CPU)
        except (UserError, TypeError, ValueError) as error:
            yield Finding("FAULT" if own else "unfit", str(error))

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


def _print(title: str, findings: list[Finding]) -> None:
    kinds = {finding.kind for finding in findings}
    verdict = next((kind for kind in ("FAULT", "unfit") if kind in kinds), "ok")
    print(f"  {verdict:5}  {title}")
    for finding in findings:
        first, *rest = f"{'note: ' if finding.kind == 'note' else ''}{finding.words}".splitlines()
        print("\n".join([f"         {first}", *(f"           {line}" for line in rest)]))
