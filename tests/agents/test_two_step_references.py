import math

import numpy as np
import pytest
import torch

from rl2meta.agents.references.two_step import (
    Filter,
    Memory,
    likelier_side,
    sampled_side,
    stay_probabilities,
    two_step_references,
)
from rl2meta.envs.two_step import TwoStep
from rl2meta.evaluation import evaluate
from rl2meta.rollout import RolloutWorker
from rl2meta.tasks import sample_tasks
from rl2meta.trial import TimeStep, Trajectory, Trial

STEADY = TwoStep()
SWITCHING = TwoStep(common=0.8, switch_probability=0.025)
NAMES = ["random", "greedy", "thompson", "model_free"]


def references(family: TwoStep):
    return two_step_references(family.high, family.low, family.switch_probability)


def trial(family: TwoStep, name: str, episodes: int, tasks: int = 2000, **constants) -> Trial:
    drawn = sample_tasks(family, tasks, 0, "test")
    return RolloutWorker(family).run(references(family)[name].build(**constants), drawn, episodes, 0)


def memory(log_odds: float, place: int, num: int = 1, seed: int = 0) -> Memory:
    places = torch.full((num,), place)
    return Memory(torch.full((num,), log_odds), places, places * 0, torch.Generator().manual_seed(seed))


# The posterior


@pytest.mark.parametrize("switch", [0.0, 0.025, 0.4, 1.0])
@pytest.mark.parametrize(("high", "low"), [(0.9, 0.1), (0.8, 0.3)])
def test_the_filter_is_bayes_theorem_on_a_hidden_markov_model(high, low, switch) -> None:
    draws = np.random.default_rng(0)
    places, rewards = draws.integers(1, 3, 12), draws.integers(0, 2, 12)
    belief = np.array([0.5, 0.5])  # of the sides, probabilities and not log-odds
    state, learn = memory(0.0, 1), Filter(high, low, switch)
    for place, reward in zip(places, rewards, strict=True):
        pay = np.where(np.arange(2) == place - 1, high, low)
        belief = belief * (pay if reward else 1 - pay)
        belief /= belief.sum()
        belief = (1 - switch) * belief + switch * belief[::-1]
        state = state._replace(place=torch.tensor([place]))
        state = state._replace(known=learn(state, torch.tensor([float(reward)])))
        assert state.known.sigmoid().item() == pytest.approx(belief[0], abs=1e-5)


def test_the_filter_stays_a_number_where_rewards_are_certain() -> None:
    for switch in (0.0, 0.1):
        state = memory(0.0, 1)
        for reward in (1.0, 1.0, 0.0, 0.0):
            state = state._replace(known=Filter(1.0, 0.0, switch)(state, torch.tensor([reward])))
            assert state.known.isfinite().all()
    assert state.known < -2


def test_only_paid_episodes_teach_and_the_next_first_step_tells() -> None:
    agent = references(STEADY)["greedy"].build()
    carry = agent.begin(2, torch.Generator())
    rows = [  # observation, reward of the step before, first
        ([0, 0], [0.0, 0.0], True),
        ([1, 2], [0.0, 0.0], False),
        ([0, 0], [1.0, 1.0], True),
        ([2, 2], [0.0, 0.0], False),
        ([0, 0], [0.0, 1.0], True),
    ]
    known, actions = [], []
    for observation, reward, first in rows:
        step = TimeStep(
            torch.tensor(observation), torch.zeros(2, 2), torch.tensor(reward), torch.tensor([first, first])
        )
        choice, carry = agent.act(carry, step)
        known.append(carry.known.tolist())
        actions.append(choice.action.tolist())
        assert torch.equal(choice.action, choice.mode) and not choice.notes
    sign = math.log(9)
    np.testing.assert_allclose(
        known, [[0, 0], [0, 0], [sign, -sign], [sign, -sign], [2 * sign, -2 * sign]], rtol=1e-5
    )
    assert actions == [[0, 0], [0, 0], [0, 1], [0, 0], [0, 1]]


def test_thompson_chooses_each_side_as_often_as_it_is_the_good_one() -> None:
    belief = memory(math.log(0.8 / 0.2), 0, num=20_000)
    chosen = sampled_side(belief)
    assert abs(float(chosen.double().mean()) - 0.2) < 4 * 0.4 / 20_000**0.5
    assert not likelier_side(belief).any()
    assert torch.equal(sampled_side(memory(0.3, 0, 500, 1)), sampled_side(memory(0.3, 0, 500, 1)))
    assert not torch.equal(sampled_side(memory(0.3, 0, 500, 1)), sampled_side(memory(0.3, 0, 500, 2)))


# What they earn


@pytest.mark.parametrize("episodes", [10, 40])
def test_greedy_earns_the_bayes_optimal_value(episodes: int) -> None:
    agent = references(STEADY)["greedy"].build()
    tasks = sample_tasks(STEADY, 10_000, 3, "test")
    regret = evaluate(agent, RolloutWorker(STEADY), tasks, episodes, 3).regrets.sum(axis=1)
    exact = 0.7 * episodes - STEADY.bayes_optimal_return(episodes)
    assert abs(regret.mean() - exact) < 3 * regret.std() / 100


@pytest.mark.parametrize("family", [STEADY, SWITCHING])
def test_the_better_informed_lose_less(family: TwoStep) -> None:
    regret = {name: float(trial(family, name, 60).per_task("regret").sum(dim=1).mean()) for name in NAMES}
    assert regret["greedy"] < regret["thompson"] < regret["model_free"] < 0.6 * regret["random"]
    gap = (2 * family.common - 1) * 0.8
    assert regret["random"] == pytest.approx(60 * gap / 2, rel=0.02)


def test_the_filter_follows_a_side_that_switches() -> None:
    """Its regret per episode levels off, while one that does not expect switches comes ever later."""
    drawn, worker = sample_tasks(SWITCHING, 2000, 0, "test"), RolloutWorker(SWITCHING)
    expecting, rigid = (
        worker.run(references(family)["greedy"].build(), drawn, 100, 0).per_task("regret")[:, ::2].mean(dim=0)
        for family in (SWITCHING, STEADY)
    )  # each [episodes]
    middle, late = expecting[20:50].mean().item(), expecting[50:].mean().item()
    assert late == pytest.approx(middle, rel=0.15)
    assert rigid[50:].mean() > 2 * late
    assert expecting[0].item() == pytest.approx(0.6 * 0.8 / 2, rel=0.1)


# Stay probabilities


def test_stay_probabilities_of_a_known_trial() -> None:
    # One environment, five episodes: (choice, place, reward).
    lived = [(0, 1, 1.0), (0, 2, 1.0), (1, 2, 0.0), (0, 1, 1.0), (1, 2, 1.0)]
    action = torch.tensor([[a] for choice, _, _ in lived for a in (choice, 0)])
    seen = torch.tensor([[o] for _, place, _ in lived for o in (0, place)])
    reward = torch.tensor([[r] for _, _, paid in lived for r in (0.0, paid)])
    flag = torch.ones_like(reward, dtype=torch.bool)
    inputs = TimeStep(seen, torch.zeros(10, 1, 2), reward, flag)
    phase = Trajectory(inputs, action, reward, flag, flag, {}, {})
    table = stay_probabilities(Trial(sample_tasks(STEADY, 1, 0, "test"), (phase,)))
    # After a rewarded common transition: once stayed, once left; after a rewarded rare one: left; after an
    # unrewarded common one: left; an unrewarded rare one never came.
    torch.testing.assert_close(
        table, torch.tensor([[math.nan, 0.0], [0.0, 0.5]], dtype=torch.float64), equal_nan=True
    )


def test_stay_probabilities_tell_who_knows_the_transitions() -> None:
    (rare_lost, common_lost), (rare_won, common_won) = stay_probabilities(
        trial(SWITCHING, "greedy", 60)
    ).tolist()
    assert common_won == rare_lost == 1.0  # more evidence for the side just chosen
    assert rare_won < 0.75 and common_lost < 0.75
    (rare_lost, common_lost), (rare_won, common_won) = stay_probabilities(
        trial(STEADY, "model_free", 20, rate=0.5, epsilon=0.1)
    ).tolist()
    assert min(rare_won, common_won) > max(rare_lost, common_lost) + 0.2
    random = stay_probabilities(trial(STEADY, "random", 20))
    torch.testing.assert_close(random, torch.full((2, 2), 0.5, dtype=torch.float64), atol=0.02, rtol=0)


# The table of references


def test_every_grid_value_builds() -> None:
    table = references(STEADY)
    assert list(table) == NAMES
    for reference in table.values():
        assert reference.description and reference.build().phase.episodes is None
        for constant, values in reference.grid.items():
            agents = [reference.build(**{constant: value}) for value in values]
            used = [{**agent.rule.keywords, **agent.learn.keywords}[constant] for agent in agents]
            assert used == list(values)


def test_bad_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected 0 <= low < high <= 1, got low=0\.5"):
        two_step_references(0.5, 0.5, 0.0)
    with pytest.raises(ValueError, match=r"expected switch_probability in \[0, 1\], got 2"):
        two_step_references(0.9, 0.1, 2)
    with pytest.raises(ValueError, match=r"expected rate in \(0, 1\], got 0"):
        references(STEADY)["model_free"].build(rate=0)
    with pytest.raises(ValueError, match=r"expected epsilon in \[0, 1\], got nan"):
        references(STEADY)["model_free"].build(epsilon=math.nan)
