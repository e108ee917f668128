"""One agent that keeps the contract, and others that each break it in one place."""

import random
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from rl2meta import AgentKind, Choice, Phase, TimeStep, Trajectory, Trial
from rl2meta.learner_state import load_state, seeded, state_of
from rl2meta.networks import action_head
from rl2meta.spaces import encoding


class Config(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    units: int = 8
    rate: float = 0.01


class Network(nn.Module):
    def __init__(self, observation_space: Any, action_space: Any, units: int) -> None:
        super().__init__()
        self.encode = encoding(observation_space).encode
        self.size = encoding(action_space).size
        self.cell = nn.GRUCell(encoding(observation_space).size + self.size + 2, units)
        self.head = action_head(action_space, units)
        self.register_buffer("usual", torch.zeros(()))

    def forward(self, step: TimeStep, hidden: Tensor) -> tuple[Any, Tensor]:
        numbers = torch.stack([step.reward, step.first.float()], dim=-1)
        hidden = self.cell(torch.cat([self.encode(step.observation), step.action, numbers], dim=-1), hidden)
        return self.head(hidden), hidden


class Carry(NamedTuple):
    hidden: Tensor
    generator: torch.Generator


class Agent:
    phase = Phase(episodes=1)

    def __init__(self, network: Network) -> None:
        self.network = network

    def begin(self, num_tasks: int, generator: torch.Generator, num_steps: int | None = None) -> Carry:
        return Carry(torch.zeros(num_tasks, self.network.cell.hidden_size), generator)

    def act(self, carry: Carry, step: TimeStep) -> tuple[Choice, Carry]:
        policy, hidden = self.network(step, carry.hidden)
        action = policy.sample(carry.generator)
        notes = {"log_prob": policy.log_prob(action)}
        return Choice(action, policy.mode(), notes), carry._replace(hidden=hidden)

    def adapt(self, carry: Carry, trajectory: Trajectory) -> Carry:
        return carry._replace(hidden=carry.hidden + trajectory.reward.mean(dim=0).unsqueeze(1))


class Learner:
    agent_class: type[Agent] = Agent

    def __init__(self, observation_space: Any, action_space: Any, config: Config, device: Any, seed: int):
        self.network = self.build(lambda: Network(observation_space, action_space, config.units), seed)
        self.agent: Any = self.agent_class(self.network)
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=config.rate)

    def build(self, make: Callable[[], Network], seed: int) -> Network:
        return seeded(make, seed)

    def update(self, trial: Trial, progress: float, generator: torch.Generator) -> Any:
        paid = torch.stack([phase.reward.sum(dim=0) for phase in trial.phases]).sum(dim=0)
        carry = self.agent.begin(len(trial.tasks), generator)
        total = torch.zeros(())
        for phase in trial.phases:
            for t in range(len(phase.mask)):
                step = TimeStep(*(field[t] for field in phase.inputs[:4]))
                policy, hidden = self.network(step, carry.hidden)
                carry = carry._replace(hidden=hidden)
                total = total - (policy.log_prob(phase.action[t]) * (paid - self.network.usual)).mean()
        self.network.usual.copy_(paid.mean())
        self.optimizer.zero_grad()
        total.backward()
        self.optimizer.step()
        return {"loss": total.item()}

    def state_dict(self) -> dict[str, Any]:
        return state_of(self.network, self.optimizer)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        load_state(state, self.network, self.optimizer)


GOOD = AgentKind("an agent that keeps the contract", Config, Learner, at_test=("rate",))


def learnt(**changed: Any) -> AgentKind:
    """Return the good agent with another method or two of its learner."""
    return replace(GOOD, learner=type("Learner", (Learner,), changed))


def acting(**changed: Any) -> AgentKind:
    """Return the good agent with another method or two of its agent."""
    return learnt(agent_class=type("Agent", (Agent,), changed))


def _other_choice(change: Callable[[Choice, TimeStep], Choice]) -> AgentKind:
    def act(self: Agent, carry: Carry, step: TimeStep) -> tuple[Choice, Carry]:
        choice, carry = Agent.act(self, carry, step)
        return change(choice, step), carry

    return acting(act=act)


def _other_metrics(change: Callable[[dict[str, float]], Any]) -> AgentKind:
    def update(self: Learner, *arguments: Any) -> Any:
        return change(Learner.update(self, *arguments))

    return learnt(update=update)


class _Lax(BaseModel):
    units: int = 8


class _Demanding(Config):
    units: int


TAKES_ANY_KEY = replace(GOOD, config=_Lax, at_test=())
NO_MODEL = replace(GOOD, config=dict)
NO_DEFAULTS = replace(GOOD, config=_Demanding, at_test=())
OTHER_KEY = replace(GOOD, at_test=("rates",))
NO_KIND = {"line": "an agent"}
CANNOT_BE_BUILT = learnt(build=lambda self, make, seed: 1 / 0)
NO_UPDATE = learnt(update=None)
NO_PHASE = acting(phase=1)
NESTED_STATE = learnt(state_dict=lambda self: {"network": self.network.state_dict()})

ONE_ACTION = _other_choice(lambda choice, step: choice._replace(action=choice.action[0]))
FLOAT_ACTION = _other_choice(lambda choice, step: choice._replace(mode=choice.mode.float()))
NO_SUCH_ACTION = _other_choice(lambda choice, step: choice._replace(action=choice.action + 1))
NOTES_AT_TIMES = _other_choice(
    lambda choice, step: choice._replace(notes={} if step.reward.any() else {"a": choice.mode})
)
MEAN_NOTE = _other_choice(lambda choice, step: choice._replace(notes={"value": choice.mode.float().mean()}))
NO_CARRY = acting(act=lambda self, carry, step: Agent.act(self, carry, step)[0])
ADAPTS_TO_NOTHING = acting(adapt=lambda self, carry, trajectory: None)


def _act_globally(self: Agent, carry: Carry, step: TimeStep) -> tuple[Choice, Carry]:
    return Agent.act(self, carry._replace(generator=torch.default_generator), step)


def _act_by_numpy(self: Agent, carry: Carry, step: TimeStep) -> tuple[Choice, Carry]:
    np.random.rand()
    return Agent.act(self, carry, step)


def _act_forgetfully(self: Agent, carry: Carry, step: TimeStep) -> tuple[Choice, Carry]:
    hidden = carry.hidden.masked_fill(step.first.unsqueeze(1), 0)
    return Agent.act(self, carry._replace(hidden=hidden), step)


def _act_of_the_crowd(self: Agent, carry: Carry, step: TimeStep) -> tuple[Choice, Carry]:
    reward = step.reward - step.reward.mean()
    return Agent.act(self, carry, step._replace(reward=reward))


def _begin_for_so_many(self: Any, num_tasks: int, generator: torch.Generator, num_steps: Any = None) -> Carry:
    self.num_tasks = max(num_tasks, getattr(self, "num_tasks", 0))
    return Agent.begin(self, self.num_tasks, generator)


def _begin_in_the_agent(
    self: Any, num_tasks: int, generator: torch.Generator, num_steps: Any = None
) -> Carry:
    self.hidden = torch.zeros(num_tasks, self.network.cell.hidden_size)
    return Agent.begin(self, num_tasks, generator)


def _act_in_the_agent(self: Any, carry: Carry, step: TimeStep) -> tuple[Choice, Carry]:
    choice, carry = Agent.act(self, carry._replace(hidden=self.hidden), step)
    self.hidden = carry.hidden
    return choice, carry


def _adapt_in_place(self: Agent, carry: Carry, trajectory: Trajectory) -> Carry:
    carry.hidden.add_(1)
    return carry


def _begin_with_its_own(
    self: Any, num_tasks: int, generator: torch.Generator, num_steps: Any = None
) -> Carry:
    self.own = getattr(self, "own", torch.Generator().manual_seed(0))
    return Agent.begin(self, num_tasks, self.own)


GLOBAL_ACTIONS = acting(act=_act_globally)
OWN_GENERATOR = acting(begin=_begin_with_its_own)
GLOBAL_NUMPY = acting(act=_act_by_numpy)
FORGETS = acting(act=_act_forgetfully)
CROWD = acting(act=_act_of_the_crowd)
SO_MANY = acting(begin=_begin_for_so_many)
IN_THE_AGENT = acting(begin=_begin_in_the_agent, act=_act_in_the_agent)
IN_PLACE = acting(adapt=_adapt_in_place)


def _update_in_random_order(self: Learner, trial: Trial, progress: float, generator: torch.Generator) -> Any:
    self.network.head.linear.bias.data += 0.1 * random.random()
    return Learner.update(self, trial, progress, generator)


def _update_less_and_less(self: Any, trial: Trial, progress: float, generator: torch.Generator) -> Any:
    self.updates = getattr(self, "updates", 0) + 1
    self.optimizer.param_groups[0]["lr"] = 0.01 / self.updates
    return Learner.update(self, trial, progress, generator)


def _build_as_the_world_is(self: Learner, make: Callable[[], Network], seed: int) -> Network:
    with torch.random.fork_rng(devices=[]):
        return make()


def _update_by_chance(self: Any, trial: Trial, progress: float, generator: torch.Generator) -> Any:
    self.network.head.linear.bias.data += torch.rand((), generator=_OURS)
    return Learner.update(self, trial, progress, generator)


_OURS = torch.Generator()
UNSEEDED_WEIGHTS = learnt(build=_build_as_the_world_is)
UPDATE_BY_CHANCE = learnt(update=_update_by_chance)
GLOBAL_WEIGHTS = learnt(build=lambda self, make, seed: make())
GLOBAL_UPDATE = learnt(update=_update_in_random_order)
INT_METRIC = _other_metrics(lambda metrics: {**metrics, "batch": 6})
NAN_METRIC = _other_metrics(lambda metrics: {**metrics, "kl": float("nan")})
TAKEN_METRIC = _other_metrics(lambda metrics: {**metrics, "mean_return": 0.0})
NO_METRICS = _other_metrics(lambda metrics: None)
LATE_METRIC = learnt(
    update=lambda self, trial, progress, generator: (
        Learner.update(self, trial, progress, generator) | ({"late": 1.0} if progress else {})
    )
)
NO_MOMENTS = learnt(
    state_dict=lambda self: state_of(self.network),
    load_state_dict=lambda self, state: load_state(state, self.network),
)
NO_COUNTER = learnt(update=_update_less_and_less)
LOADS_NOTHING = learnt(load_state_dict=lambda self, state: None)
