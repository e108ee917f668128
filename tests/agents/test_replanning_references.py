"""The planners that plan at every step, against loops over one MDP, dynamic programming and a simulation."""

import itertools
import math
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rl2meta.agents.references.catalogue import references_on
from rl2meta.agents.references.reference import Reference
from rl2meta.agents.references.replanning import ReplanningAgent, Seen
from rl2meta.dynamic_programming import solve
from rl2meta.envs.tabular import TabularMDPs
from rl2meta.evaluation import evaluate
from rl2meta.parts import at_most
from rl2meta.rollout import RolloutWorker
from rl2meta.statistics import paired_difference
from rl2meta.tasks import sample_tasks
from rl2meta.trial import TimeStep, Trajectory

EPISODES = 3
STEPWISE = {
    "greedy_step": {},
    "beb_step": {"scaling": 0.01},
    "bonus_step": {"bonus": 0.7},
    "fading_bonus_step": {"bonus": 1.3},
}
LAWS = [
    TabularMDPs(3, 2, 4),
    TabularMDPs(2, 3, 5, reward_mean=-2.0, reward_deviation=0.5, noise=2.0, concentration=0.3),
]


def references(law: TabularMDPs, episodes: int = EPISODES) -> dict[str, Reference]:
    return references_on(law.model, law.action_space, episodes)


def agent_of(law: TabularMDPs, name: str) -> ReplanningAgent:
    agent = references(law)[name].build(**STEPWISE[name])
    assert isinstance(agent, ReplanningAgent)
    return agent


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# An independent planner: loops over one MDP, from the list of all steps


def paid(
    law: TabularMDPs, name: str, mean: float, visits: int, moves: int, episode: int, to_go: int
) -> float:
    """The reward of a pair with its bonus, when ``to_go`` steps follow."""
    constants = STEPWISE[name]
    if name == "beb_step":
        precision = 1 / law.reward_deviation**2 + visits / law.noise**2
        beta = 2 * law.horizon**2 * constants["scaling"]
        weight = law.num_states * law.concentration + moves
        return mean + 1 / (precision + 1) + to_go * beta * law.horizon / (1 + weight)
    left = (EPISODES - episode) / EPISODES if name == "fading_bonus_step" else 1.0
    return mean + left * constants.get("bonus", 0.0) / (1 + visits)


def planned_from_scratch(
    law: TabularMDPs, name: str, history: list[tuple[int, int, float, int | None]], t: int, episode: int
) -> np.ndarray:
    """Q_t [S, A] after a history of (state, action, reward, next state or None), by recursion."""
    states, actions = range(law.num_states), range(law.num_actions)
    of = {pair: [step for step in history if step[:2] == pair] for pair in itertools.product(states, actions)}

    def mean_reward(pair: tuple[int, int]) -> float:
        prior, data = 1 / law.reward_deviation**2, 1 / law.noise**2
        total = prior * law.reward_mean + data * sum(reward for _, _, reward, _ in of[pair])
        return total / (prior + data * len(of[pair]))

    def chance(pair: tuple[int, int], there: int) -> float:
        nexts = [after for *_, after in of[pair] if after is not None]
        weight = len(nexts) + law.num_states * law.concentration
        return (nexts.count(there) + law.concentration) / weight

    value = np.zeros(law.num_states)
    for to_go in range(law.horizon - t):
        plan = np.zeros((law.num_states, law.num_actions))
        for pair in of:
            moves = sum(after is not None for *_, after in of[pair])
            plan[pair] = paid(law, name, mean_reward(pair), len(of[pair]), moves, episode, to_go)
            plan[pair] += sum(chance(pair, there) * value[there] for there in states)
        value = plan.max(axis=1)
    return plan


@pytest.mark.parametrize("law", LAWS, ids=["small", "another prior"])
@pytest.mark.parametrize("name", STEPWISE)
def test_every_step_is_that_of_a_plan_from_scratch(law: TabularMDPs, name: str) -> None:
    num, agent = 4, agent_of(law, name)
    (phase,) = RolloutWorker(law).run(agent, sample_tasks(law, num, 0, "test"), EPISODES, 1).phases
    carry, distinct = agent.begin(num, seeded()), 0
    for i in range(EPISODES * law.horizon):
        step = TimeStep(*(field[i] for field in phase.inputs))
        value = agent.action_value(carry.after(step)).numpy()
        episode, t = divmod(i, law.horizon)
        for b in range(num):
            plan = planned_from_scratch(law, name, history_of(phase, b)[:i], t, episode)
            here = plan[int(step.observation[b])]
            np.testing.assert_allclose(value[b], here, rtol=1e-4, atol=1e-4)
            if np.diff(np.sort(here))[-1] > 1e-3:
                distinct += 1
                assert phase.action[i, b] == here.argmax()
        carry = agent.act(carry, step)[1]
    assert distinct > 0.4 * num * EPISODES * law.horizon  # else too little happened to test anything


def history_of(phase: Trajectory, b: int) -> list[tuple[int, int, float, int | None]]:
    """The steps of MDP b; the next state is None where it was not seen."""
    state = phase.inputs.observation[:, b].tolist()
    next_state = [*state[1:], None]
    last = phase.last[:, b].tolist()
    seen = [None if ended else there for ended, there in zip(last, next_state, strict=True)]
    return list(zip(state, phase.action[:, b].tolist(), phase.reward[:, b].tolist(), seen, strict=True))


def test_with_a_horizon_of_one_the_greedy_step_is_the_arm_of_the_highest_posterior_mean() -> None:
    law, episodes = TabularMDPs(2, 4, 1), 30
    agent = references(law, episodes)["greedy_step"].build()
    (phase,) = RolloutWorker(law).run(agent, sample_tasks(law, 200, 0, "test"), episodes, 0).phases
    pulled = F.one_hot(phase.action, 4)  # [T, B, A]
    rewards = (pulled * phase.reward.unsqueeze(2)).cumsum(dim=0)[:-1]
    mean = (1 + rewards) / (1 + pulled.cumsum(dim=0)[:-1])  # prior N(1, 1), noise of variance 1
    chosen = mean.gather(2, phase.action[1:].unsqueeze(2)).squeeze(2)
    torch.testing.assert_close(chosen, mean.amax(dim=2))
    assert pulled[1:].sum(dim=(0, 1)).min() > 0


@pytest.mark.parametrize("name", STEPWISE)
def test_who_knows_the_mdp_plays_its_optimum(name: str) -> None:
    law = TabularMDPs(6, 4, 5)
    tasks, agent = sample_tasks(law, 300, 0, "test"), agent_of(law, name)
    means, transitions = (tasks.parameters[key] for key in ("reward_means", "transitions"))
    optimum = solve(means, transitions, law.horizon)
    often = 1e6
    visits = torch.full((300, 24), often)
    weights = 1 + often * transitions.flatten(1, 2).transpose(1, 2)
    carry = agent.begin(300, seeded())._replace(
        visits=visits, totals=often * means.flatten(1), weights=weights, weight=weights.sum(dim=1)
    )
    for t in range(law.horizon):
        state = torch.randint(6, (300,), generator=seeded(t))
        step = TimeStep(state, torch.zeros(300, 4), torch.zeros(300), torch.full((300,), t == 0))
        choice, carry = agent.act(carry, step)
        rows = torch.arange(300)
        chosen = optimum.action_value[rows, t, state, choice.action]
        torch.testing.assert_close(chosen, optimum.value[rows, t, state], atol=1e-3, rtol=0)


# The agents


def test_they_are_references_of_the_model_beside_those_that_plan_per_episode() -> None:
    found = references(TabularMDPs())
    assert [name for name in found if "step" in name] == list(STEPWISE)
    assert {"greedy", "beb", "psrl", "greedy_mean0"} < found.keys()
    assert len({reference.description for reference in found.values()}) == len(found)
    for name in STEPWISE:
        for key, values in found[name].grid.items():
            assert all(isinstance(found[name].build(**{key: value}), ReplanningAgent) for value in values)


@pytest.mark.parametrize("bad", [-1.0, math.nan, math.inf])
@pytest.mark.parametrize("name", [name for name in STEPWISE if STEPWISE[name]])
def test_bad_constants_are_refused(name: str, bad: float) -> None:
    (key,) = STEPWISE[name]
    with pytest.raises(ValueError, match=f"expected {key} >= 0, got {bad}"):
        references(TabularMDPs())[name].build(**{key: bad})


def returns(law: TabularMDPs, episodes: int, num: int, name: str, **constants: float) -> np.ndarray:
    agent, tasks = references(law, episodes)[name].build(**constants), sample_tasks(law, num, 0, "test")
    return evaluate(agent, RolloutWorker(law), tasks, episodes, 0).returns()


def test_without_a_bonus_they_are_greedy() -> None:
    of = partial(returns, TabularMDPs(4, 3, 5), 4, 50)
    greedy = of("greedy_step")
    for name in ("bonus_step", "fading_bonus_step"):
        np.testing.assert_array_equal(of(name, bonus=0.0), greedy)
        assert (of(name, bonus=3.0) != greedy).any()


def test_a_fading_bonus_ends_with_the_trial_it_was_built_for() -> None:
    law = TabularMDPs(3, 2, 2)
    agent = references(law)["fading_bonus_step"].build(bonus=6.0)
    nothing = agent.begin(1, seeded())
    values = [agent.action_value(nothing._replace(steps=k))[0, 0].item() for k in (1, 3, 5, 7, 9)]
    assert values == pytest.approx([7, 5, 3, 1, 1])  # last steps of episodes: 1 + 6 (3 − k) / 3, and then 1


def test_a_carry_is_left_as_it_was() -> None:
    agent = agent_of(LAWS[0], "beb_step")
    carry = agent.begin(5, seeded())
    state = torch.tensor([0, 1, 2, 0, 1])
    step = TimeStep(state, F.one_hot(state % 2, 2).float(), torch.ones(5), torch.zeros(5, dtype=torch.bool))
    copies = [x.clone() for x in carry if isinstance(x, Tensor)]
    acted = agent.act(carry, step)[1]
    assert carry.steps == 0 and acted.steps == 1 and acted.visits.sum() == 5
    for copy, tensor in zip(copies, (x for x in carry if isinstance(x, Tensor)), strict=True):
        assert torch.equal(copy, tensor)


@pytest.mark.parametrize("name", STEPWISE)
def test_an_mdp_is_planned_the_same_alone_and_in_a_batch(name: str) -> None:
    law = TabularMDPs()
    agent, draws = agent_of(law, name), seeded(5)
    shape = (600, law.num_states, law.num_states * law.num_actions)  # more than are planned at once
    weights = 1 + torch.randint(9, shape, generator=draws).float()
    carry: Any = agent.begin(600, draws)._replace(
        visits=weights.sum(dim=1),
        totals=torch.randn(600, shape[2], generator=draws),
        weights=weights,
        weight=weights.sum(dim=1),
    )
    step = TimeStep(
        torch.randint(10, (600,), generator=draws),
        torch.zeros(600, 5),
        torch.zeros(600),
        torch.ones(600, dtype=torch.bool),
    )
    together, _ = agent.act(carry, step)
    with at_most(16 * 500):
        assert torch.equal(agent.act(carry, step)[0].action, together.action)
    for i in (0, 300, 599):
        one = TimeStep(*(field[i : i + 1] for field in step[:4]))
        alone: Seen = carry.of(slice(i, i + 1))
        assert agent.act(alone, one)[0].action == together.action[i]


@pytest.mark.parametrize(
    "law",
    [(1.0, 0.0, 1.0, 1.0), (1.0, 1.0, 0.0, 1.0), (2.0, 0.0, 0.0, 1e-3), (-1e3, 1e6, 1e6, 1e6)],
)
@pytest.mark.parametrize("name", STEPWISE)
def test_every_law_of_the_family_has_plans(name: str, law: tuple[float, ...]) -> None:
    distribution = TabularMDPs(4, 3, 3, *law)
    agent = agent_of(distribution, name)
    (phase,) = RolloutWorker(distribution).run(agent, sample_tasks(distribution, 20, 0, "test"), 3, 0).phases
    carry = agent.begin(20, seeded())
    for i in range(len(phase.mask)):
        step = TimeStep(*(field[i] for field in phase.inputs))
        assert agent.action_value(carry.after(step)).isfinite().all()
        carry = agent.act(carry, step)[1]


# What they earn


@pytest.mark.parametrize(
    ("name", "constants", "mean"),
    [  # from an independent simulation of the same algorithms, 8000 MDPs, s.e. at most 0.5
        ("greedy_step", {}, 158.4),
        ("bonus_step", {"bonus": 0.5}, 162.5),
        ("bonus_step", {"bonus": 1.0}, 159.9),
        ("fading_bonus_step", {"bonus": 1.0}, 162.7),
    ],
)
def test_returns_of_ten_episodes(name: str, constants: dict[str, float], mean: float) -> None:
    ours = returns(TabularMDPs(), 10, 1000, name, **constants)
    assert abs(ours.mean() - mean) < 3 * math.hypot(0.5, ours.std() / math.sqrt(1000))


@pytest.mark.parametrize("name", ["greedy", "beb"])
def test_to_plan_again_at_every_step_pays(name: str) -> None:
    of = partial(returns, TabularMDPs(), 10, 1000)
    assert paired_difference(of(f"{name}_step"), of(name)).low > 1
