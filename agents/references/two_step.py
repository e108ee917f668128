"""References for the two-step task, and the stay probabilities by which its literature compares agents."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from rl2meta.agents.references.reference import KNOWS_NOTHING, Reference, require
from rl2meta.beliefs import Amounts, Probabilities, Told
from rl2meta.trial import Choice, Phase, TimeStep, Trajectory, Trial


class Memory(NamedTuple):
    """The carry of B trials.

    Attributes:
        known: what the agent has learnt: log-odds [B] that side 0 is the good one, or values Q(a) [B, 2].
        place: the last observation (0, 1, 2), int64 [B]; 0 before the first step.
        choice: the last action in S0, int64 [B].
        generator: random stream of the rules.
    """

    known: Tensor
    place: Tensor
    choice: Tensor
    generator: torch.Generator


Rule = Callable[[Memory], Tensor]
"""Chooses the side to go to, int64 [B]."""


@dataclass(frozen=True)
class TwoStepAgent:
    """Learns from each finished episode and chooses a side by ``rule``.

    The whole trial is one phase, because the agent sees the reward of an episode at the next episode's first
    step.

    Attributes:
        start: initial value of ``Memory.known``, [...] for each trial.
        learn: (memory, reward [B]) -> the new ``known``, after an episode with this reward.
        rule: chooses in S0; may draw from the memory's generator.
        best: chooses in S0 for ``Choice.mode``.
    """

    start: tuple[float, ...] | float
    learn: Callable[[Memory, Tensor], Tensor]
    rule: Rule
    best: Rule
    phase: Phase = field(default=Phase(), init=False)

    def begin(self, num_tasks: int, generator: torch.Generator, num_steps: int | None = None) -> Memory:
        """Return the memory at the start of trials."""
        known = torch.tensor(self.start, device=generator.device)
        nowhere = torch.zeros(num_tasks, dtype=torch.int64, device=generator.device)
        return Memory(known.expand(num_tasks, *known.shape), nowhere, nowhere, generator)

    def act(self, carry: Memory, step: TimeStep) -> tuple[Choice, Memory]:
        """Learn if an episode has just ended; choose a side in S0, and take action 0 elsewhere."""
        paid = step.first & (carry.place > 0)
        known = torch.where(_like(paid, carry.known), self.learn(carry, step.reward), carry.known)
        memory = carry._replace(known=known, place=step.observation)
        choosing = step.observation == 0
        action, mode = ((choosing * rule(memory)).long() for rule in (self.rule, self.best))
        memory = memory._replace(choice=torch.where(choosing, action, carry.choice))
        return Choice(action, mode), memory

    def act_and_tell(self, carry: Memory, step: TimeStep) -> tuple[Choice, Memory, Told]:
        """Do what ``act`` does; tell the probability of each side to be the good one, or the values."""
        choice, memory = self.act(carry, step)
        if self.rule is uniform:  # it uses nothing that it knows
            return choice, memory, {}
        if memory.known.dim() > 1:
            return choice, memory, {"value of each first action": Amounts(memory.known)}
        first = memory.known.sigmoid()  # [B]
        sides = Probabilities(torch.stack([first, 1 - first], dim=1), "side")
        return choice, memory, {"which side is the good one": sides}

    def adapt(self, carry: Memory, trajectory: Trajectory) -> Memory:
        """Return the carry as it is: the agent learns while it acts."""
        return carry


@dataclass(frozen=True)
class Filter:
    """The exact posterior of the good side, which may switch between episodes: a hidden Markov model.

    With L the log-odds of side 0, e the log-likelihood ratio of the reward at the reached side, and s the
    probability of a switch,

        L ← ln((1 − s) exp(L + e) + s) − ln(s exp(L + e) + 1 − s).
    """

    high: float
    low: float
    switch_probability: float

    def __call__(self, memory: Memory, reward: Tensor) -> Tensor:
        """Return the log-odds at the next episode's start, [B]."""
        paid, unpaid = _log_ratio(self.high, self.low), _log_ratio(1 - self.high, 1 - self.low)
        ratio = torch.where(reward > 0.5, paid, unpaid)
        odds = memory.known + torch.where(memory.place == 1, ratio, -ratio)
        switch = torch.tensor(self.switch_probability, device=odds.device)
        stay, flip = torch.log1p(-switch), switch.log()
        return torch.logaddexp(odds + stay, flip) - torch.logaddexp(odds + flip, stay)


def direct_values(memory: Memory, reward: Tensor, rate: float) -> Tensor:
    """Return Q(a) + α (r − Q(a)) for the action in S0, [B, 2]: model-free, it ignores the reached side."""
    chosen = torch.nn.functional.one_hot(memory.choice, 2)
    return memory.known + rate * chosen * (reward.unsqueeze(1) - memory.known)


def uniform(memory: Memory) -> Tensor:
    """Choose either side with equal probability."""
    return torch.randint(2, memory.place.shape, generator=memory.generator, device=memory.place.device)


def likelier_side(memory: Memory) -> Tensor:
    """Choose the side that is more likely to be the good one; side 0 if they are equal."""
    return (memory.known < 0).long()


def sampled_side(memory: Memory) -> Tensor:
    """Choose each side with the probability that it is the good one: Thompson sampling."""
    chance = torch.rand(memory.known.shape, generator=memory.generator, device=memory.known.device)
    return (chance >= memory.known.sigmoid()).long()


def better_value(memory: Memory) -> Tensor:
    """Choose the action with the higher value; action 0 if they are equal."""
    return memory.known.argmax(dim=1)


def epsilon_greedy(memory: Memory, epsilon: float) -> Tensor:
    """Choose the action with the higher value; with probability ε, choose at random."""
    chance = torch.rand(memory.place.shape, generator=memory.generator, device=memory.place.device)
    return torch.where(chance < epsilon, uniform(memory), better_value(memory))


def two_step_references(high: float, low: float, switch_probability: float) -> dict[str, Reference]:
    """Return the references of ``TwoStep`` by name; they assume that common transitions are more likely.

    ``greedy`` and ``thompson`` know the task distribution, except that a task has at most 64 switches. If
    high + low = 1, both sides give the same information, and ``greedy`` is Bayes-optimal.

    Args:
        high: the probability of a reward on the good side.
        low: the probability of a reward on the other side.
        switch_probability: the probability that the good side changes before an episode.

    Raises:
        ValueError: unless 0 <= low < high <= 1 and 0 <= switch_probability <= 1.
    """
    require(0 <= low < high <= 1, f"0 <= low < high <= 1, got low={low} and high={high}")
    require(0 <= switch_probability <= 1, f"switch_probability in [0, 1], got {switch_probability}")
    learn = Filter(high, low, switch_probability)

    def filtering(rule: Rule) -> Callable[[], TwoStepAgent]:
        return lambda: TwoStepAgent(0.0, learn, rule, likelier_side)

    return {
        "random": Reference("either action", filtering(uniform), prior=KNOWS_NOTHING),
        "greedy": Reference("the more likely side, by the exact posterior", filtering(likelier_side)),
        "thompson": Reference("a side drawn from the exact posterior", filtering(sampled_side)),
        "model_free": Reference(
            "values of the first actions, learnt only from rewards",
            _build_model_free,
            {"rate": _RATES, "epsilon": _EPSILONS},
            KNOWS_NOTHING,
        ),
    }


_RATES = (0.1, 0.2, 0.3, 0.5, 0.7, 1.0)
_EPSILONS = (0.0, 0.05, 0.1, 0.2)


def _build_model_free(rate: float = 0.3, epsilon: float = 0.1) -> TwoStepAgent:  # tunable
    require(0 < rate <= 1, f"rate in (0, 1], got {rate}")
    require(0 <= epsilon <= 1, f"epsilon in [0, 1], got {epsilon}")
    learn, rule = partial(direct_values, rate=rate), partial(epsilon_greedy, epsilon=epsilon)
    return TwoStepAgent((0.5, 0.5), learn, rule, better_value)


def stay_probabilities(trial: Trial) -> Tensor:
    """Return how often a first action is repeated after each kind of episode, [2, 2]; NaN for no episodes.

    Rows: the previous episode had no reward, a reward; columns: its transition was rare, common. An agent
    that knows the transitions repeats the action after a reward that followed a common transition, and
    changes it after a reward that followed a rare one; a model-free agent repeats it after any reward.

    Source: Daw et al. 2011 (Neuron 69), figure 2; Wang et al. 2016 (arXiv 1611.05763), section 3.2.
    """
    action = torch.cat([phase.action for phase in trial.phases])[::2]  # [episodes, B]
    place = torch.cat([phase.inputs.observation for phase in trial.phases])[1::2]
    reward = torch.cat([phase.reward for phase in trial.phases])[1::2]
    stayed = (action[1:] == action[:-1]).double()
    kind = (2 * (reward > 0.5) + (place == 1 + action))[:-1]
    return torch.stack([stayed[kind == i].mean() for i in range(4)]).reshape(2, 2)


def _log_ratio(one: float, other: float) -> float:
    """Return ln(one / other), with both clipped at 10⁻¹² so that the result is finite."""
    return math.log(max(one, 1e-12) / max(other, 1e-12))


def _like(flag: Tensor, other: Tensor) -> Tensor:
    """Give a flag [B] as many axes as ``other`` [B, ...]."""
    return flag.reshape(-1, *[1] * (other.dim() - 1))
