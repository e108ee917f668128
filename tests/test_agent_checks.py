"""The conformance suite of agents: the built-in ones keep the contract, each fault is found by its words."""

import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import rl2meta
from rl2meta.agents.learned_optimiser import LEARNED_OPTIMISER
from rl2meta.agents.maml_regression import MAML_REGRESSION
from rl2meta.agents.maml_trpo import MAML_TRPO
from rl2meta.agents.reptile import REPTILE
from rl2meta.agents.rl2 import RL2
from rl2meta.envs.bandits import BernoulliBandits
from rl2meta.envs.navigation import PointNavigation
from rl2meta.envs.sinusoids import Sinusoids
from rl2meta.experiments.agent_checks import CHECKS, AgentConformanceError, agent_results, check_agent

BANDITS, PLANE = BernoulliBandits(num_arms=3), PointNavigation(horizon=5)
FEW = MAML_TRPO.config(episodes_per_phase=4, hidden_sizes=[8])
SMALL = LEARNED_OPTIMISER.config(episodes_per_phase=3, rule={"name": "lstm", "hidden_size": 3})

# Each agent, and what is said of it: that alone.
FAULTS = {
    "NO_KIND": r"expected an rl2meta.AgentKind, got dict \{'line': 'an agent'\}",
    "NO_MODEL": r"config: expected a pydantic model, a class under BaseModel, got <class 'dict'>",
    "TAKES_ANY_KEY": r"config: expected a model that refuses unknown keys, got one that takes any; a mist",
    "NO_DEFAULTS": r"config: expected defaults that make a config, got none for units",
    "OTHER_KEY": r"at_test: expected keys of the config, got 'rates'; did you mean 'rate'\?",
    "CANNOT_BE_BUILT": r"parts: expected no error, got one: it raised ZeroDivisionError.*\n +File ",
    "NO_UPDATE": r"learner: expected a method update, got None",
    "NO_PHASE": r"learner.agent.phase: expected an rl2meta.Phase, such as Phase\(episodes=None\)",
    "NESTED_STATE": r"state_dict: expected one flat dict .*got OrderedDict for 'network'; .*state_of",
    "ONE_ACTION": r"act: action: expected integers \[6\], one action a row, got \[\]",
    "FLOAT_ACTION": r"act: mode: expected integers \[6\], got torch.float32",
    "NO_SUCH_ACTION": r"act: action: expected one of Discrete\(3\), from 0 on, got \[[\d, ]*3",
    "NOTES_AT_TIMES": r"act: expected the same names in notes at every step, got \['a'\], then \[\]; give",
    "MEAN_NOTE": r"act: notes\['value'\]: expected a tensor \[6, ...\], got \[\]",
    "NO_CARRY": r"act: expected \(rl2meta.Choice, carry\), got Choice.*; return both",
    "ADAPTS_TO_NOTHING": r"adapt: expected the new carry, got None; return the carry, changed or not",
    "GLOBAL_WEIGHTS": r"building the learner: expected torch's global generator left alone, .*seeded\(make",
    "GLOBAL_ACTIONS": r"begin, act and adapt: expected torch's global generator left alone, got it used; ",
    "GLOBAL_NUMPY": r"begin, act and adapt: expected numpy's global generator left alone, got it used; ",
    "GLOBAL_UPDATE": r"update: expected random's global generator left alone, got it used; draw from",
    "OWN_GENERATOR": r"act: expected the same choices from the same steps and a generator of the same seed",
    "CROWD": r"act: expected a row's choice to depend on its own task alone, .*: step \d: .*no mean over",
    "SO_MANY": r"rows that .*: expected no error, got one: it raised RuntimeError.*(size|shape|dim)",
    "FORGETS": r"act: expected a carry that survives .*forgets the trial where step.first is true; only",
    "IN_THE_AGENT": r"two trials that take turns on one agent to go .* alone, got step \d: .*in the carry",
    "IN_PLACE": r"adapt: expected a new carry beside the old one, got the old one's tensors changed in",
    "UNSEEDED_WEIGHTS": r"learner: expected initial weights of the seed alone, got others for network.*",
    "NO_METRICS": r"update: expected a mapping from names to floats, got None",
    "INT_METRIC": r"update: batch: expected a float, got 6; float\(x\) makes one",
    "NAN_METRIC": r"update: kl: expected a finite number, got nan",
    "TAKEN_METRIC": r"update: expected metrics of names that are not \[.*, got 'mean_return'",
    "LATE_METRIC": r"update: expected metrics of the same names .*\['loss'\], then \['loss', 'late'\]",
    "UPDATE_BY_CHANCE": r"update: expected the same from the same trial and a generator of the same",
    "NO_MOMENTS": r"state_dict: expected a learner that loads it to go on .*, got another network.*; put",
    "NO_COUNTER": r"state_dict: expected a learner that loads it to go on .*, got another network.*counters",
    "LOADS_NOTHING": r"load_state_dict: expected the state that was saved, got another network.usual; take",
}


@pytest.fixture
def faulty(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The module of agents that each are wrong in one way."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent / "outside" / "faulty"))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    return importlib.import_module("faulty_agents")


@pytest.mark.parametrize(
    ("kind", "given"),
    [
        (RL2, {"distribution": BANDITS}),
        (RL2, {"distribution": BANDITS, "config": RL2.config(core={"name": "gru", "hidden_size": 8})}),
        (RL2, {"distribution": BANDITS, "config": RL2.config(core={"name": "slot", "hidden_size": 8})}),
        (RL2, {"distribution": PLANE, "config": RL2.config(core={"name": "lstm", "num_layers": 2})}),
        (MAML_TRPO, {"distribution": PLANE, "config": FEW, "num_tasks": 5}),
        (MAML_REGRESSION, {"distribution": Sinusoids()}),
        (LEARNED_OPTIMISER, {"distribution": Sinusoids(), "config": SMALL}),
        (REPTILE, {"distribution": Sinusoids()}),
        (MAML_REGRESSION, {}),  # the bandits do not fit, nor does the plane
    ],
)
def test_the_built_in_agents_keep_the_contract(kind: rl2meta.AgentKind, given: dict[str, Any]) -> None:
    before = torch.get_rng_state()
    check_agent(kind, **given)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_good_agent_of_ones_own_keeps_it(faulty: Any) -> None:
    rl2meta.check_agent(faulty.GOOD)
    rl2meta.check_agent(faulty.GOOD, distribution=PLANE, num_episodes=2, config=faulty.Config(units=3))
    titles = [result.title for result in agent_results(faulty.GOOD)]
    assert titles[1:] == list(CHECKS)


@pytest.mark.parametrize("name", FAULTS)
def test_a_faulty_agent_is_told_by_its_fault(faulty: Any, name: str) -> None:
    with pytest.raises(AgentConformanceError) as found:
        check_agent(getattr(faulty, name))
    said = str(found.value)
    assert re.search(FAULTS[name], said), said
    assert said.startswith("the agent has a failure:\n- "), said  # nothing buries it


def test_what_is_private_is_named_with_its_line(faulty: Any) -> None:
    curious = importlib.import_module("curious_agent")
    with pytest.raises(AgentConformanceError) as found:
        check_agent(curious.KIND)
    lines = re.findall(r"curious_agent, line (\d+): expected public names .* got ([\w.]+);", str(found.value))
    assert lines == [
        ("8", "rl2meta.commands.options.Device"),
        ("9", "rl2meta.spaces._one_hot"),
        ("17", "rl2meta.networks._LOG_ROOT_TAU"),
    ]


def test_one_task_is_too_few() -> None:
    with pytest.raises(ValueError, match="expected num_tasks >= 2"):
        check_agent(RL2, num_tasks=1)
