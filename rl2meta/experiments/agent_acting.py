"""What acting promises, as ``rl2meta.trial.Agent`` has it."""

from collections.abc import Iterator
from itertools import zip_longest

import torch

from rl2meta.experiments.agent_case import (
    AgentCase,
    begun,
    copied,
    difference,
    equal,
    parts_of,
    rearranged,
    relive,
    step_at,
    tensors_of,
)
from rl2meta.trial import Trial

_ROUNDING = 1e-4


def check_same_actions(case: AgentCase) -> Iterator[str]:
    """Live the same trial twice: the generator alone decides what is drawn."""
    agent = case.learner().agent
    once, again = (list(relive(agent, case.trial, case.source())) for _ in range(2))
    if words := difference(once, again):
        yield (
            f"act: expected the same choices from the same steps and a generator of the same seed, got "
            f"{words}; draw from the generator that begin() is given, and keep nothing in the agent"
        )


def check_rows(case: AgentCase) -> Iterator[str]:
    """Change what some tasks show: the choices on the others must stay; and take fewer tasks."""
    agent, kept = case.learner().agent, case.num_tasks // 2
    lanes = agent.phase.lanes_per_task
    crowd = [*range(kept), *[case.num_tasks - 1] * (case.num_tasks - kept)]
    other = _paid_otherwise(rearranged(case.trial, lanes, crowd), kept * lanes)
    with_some, with_others = (list(relive(agent, trial, case.source())) for trial in (case.trial, other))
    if words := difference(with_some, with_others, kept * lanes, _ROUNDING):
        yield (
            f"act: expected a row's choice to depend on its own task alone, got another one when only the "
            f"last {case.num_tasks - kept} of {case.num_tasks} tasks had changed: {words}; take no mean over "
            "the batch"
        )
    fewer = rearranged(case.trial, lanes, range(kept))
    sizes = {
        len(part) for choice in relive(agent, fewer, case.source()) for part in parts_of(choice).values()
    }
    if sizes != {kept * lanes}:
        yield (
            f"act: expected {kept * lanes} rows for {kept} tasks, after a trial on {case.num_tasks}, got "
            f"{sorted(sizes)}; take the number of rows from the step"
        )


def _paid_otherwise(trial: Trial, start: int) -> Trial:
    """Change the rewards of all rows from ``start`` on, in place of a copy that nobody else has."""
    for phase in trial.phases:
        for reward in (phase.reward, phase.inputs.reward):
            reward[:, start:] = 3 - 2 * reward[:, start:]
    return trial


def check_memory(case: AgentCase) -> Iterator[str]:
    """Look whether an episode's start makes an agent forget what it would remember otherwise."""
    if _forgets(case, new_episode=True) and not _forgets(case, new_episode=False):
        yield (
            "act: expected a carry that survives the start of an episode, got one that forgets the trial "
            "where step.first is true; only begin() resets it: what one episode taught is for the next"
        )


@torch.no_grad()
def _forgets(case: AgentCase, new_episode: bool) -> bool:
    """Return whether a reward leaves no trace in the step after the next, nor in the carry."""
    phase, agent, traces = case.trial.phases[0], case.learner().agent, []
    for reward in (0.0, 1.0):
        step, carry = step_at(phase, 0), begun(agent, case.trial, case.source())
        later = step._replace(first=torch.zeros_like(step.first))
        paid = later._replace(reward=torch.full_like(step.reward, reward))
        after = later._replace(first=torch.full_like(step.first, new_episode))
        for seen in (step, paid, after):
            choice, carry = agent.act(carry, seen)
        traces.append([*parts_of(choice).values(), *tensors_of(carry)])
    return equal(*traces)


def check_interleaved(case: AgentCase) -> Iterator[str]:
    """Live two trials side by side on one agent, and one after the other."""
    agent = case.learner().agent
    turned = [*range(1, case.num_tasks), 0]
    trials = case.trial, rearranged(case.trial, agent.phase.lanes_per_task, turned)
    apart = [list(relive(agent, trial, case.source(i))) for i, trial in enumerate(trials)]
    together = zip_longest(*(relive(agent, trial, case.source(i)) for i, trial in enumerate(trials)))
    for alone, beside in zip(apart, map(list, zip(*together, strict=True)), strict=True):
        if words := difference(alone, beside):
            yield (
                f"begin, act, adapt: expected two trials that take turns on one agent to go as each does "
                f"alone, got {words}; keep all that belongs to a trial in the carry and nothing in the agent"
            )
            return


@torch.no_grad()
def check_adapt(case: AgentCase) -> Iterator[str]:
    """Adapt between phases, and look at the carry that was handed over."""
    agent = case.learner().agent
    carry = begun(agent, case.trial, case.source())
    for phase in case.trial.phases[:-1]:
        for t in range(len(phase.mask)):
            _, carry = agent.act(carry, step_at(phase, t))
        held = tensors_of(carry)
        before = copied(held)
        adapted = agent.adapt(carry, phase)
        if not equal(held, before):
            yield (
                "adapt: expected a new carry beside the old one, got the old one's tensors changed in place; "
                "compute new tensors (w - rate * g, not w -= rate * g)"
            )
            return
        carry = adapted
