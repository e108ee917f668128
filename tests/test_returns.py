from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rl2meta.agents.references.bandits import bernoulli_references
from rl2meta.envs.bandits import BernoulliBandits
from rl2meta.errors import UserError
from rl2meta.returns import discounted_returns, explained_variance, gae, reward_signal
from rl2meta.rollout import RolloutWorker
from rl2meta.tasks import sample_tasks


def _random(seed: int, steps: int) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    reward, value = (torch.randn(steps, 3, generator=g, dtype=torch.float64) for _ in range(2))
    discount = 0.9 * (torch.rand(steps, 3, generator=g) > 0.2).double()
    return reward, discount, value


@given(st.integers(0, 1000), st.integers(1, 12))
@settings(max_examples=50, deadline=None)
def test_full_trace_is_return_minus_value(seed: int, steps: int) -> None:
    reward, discount, value = _random(seed, steps)
    discount[-1] = 0.9  # whatever stands there, nothing follows the last row
    torch.testing.assert_close(
        gae(reward, discount, value, 1.0), discounted_returns(reward, discount) - value
    )


@given(st.integers(0, 1000), st.integers(1, 12))
@settings(max_examples=50, deadline=None)
def test_no_trace_is_the_temporal_difference(seed: int, steps: int) -> None:
    reward, discount, value = _random(seed, steps)
    following = torch.cat([value[1:], torch.zeros(1, 3, dtype=torch.float64)])
    torch.testing.assert_close(gae(reward, discount, value, 0.0), reward + discount * following - value)


def test_three_steps_by_hand() -> None:
    # λ = 1/2, γ = 1/2; v = 1, 2, 4; r = 1, 0, 2:
    # δ = 1 + 1 − 1, 0 + 2 − 2, 2 − 4 = 1, 0, −2; A₃ = −2, A₂ = 0 − 2/4, A₁ = 1 − 0.5/4.
    reward, value = torch.tensor([1.0, 0.0, 2.0]), torch.tensor([1.0, 2.0, 4.0])
    assert gae(reward, torch.full((3,), 0.5), value, 0.5).tolist() == [0.875, -0.5, -2.0]


def test_the_sum_of_definition() -> None:
    reward, discount, _ = _random(3, 6)
    want = sum(reward[t] * discount[:t].prod(dim=0) for t in range(6))
    torch.testing.assert_close(discounted_returns(reward, discount)[0], want)


def test_a_zero_discount_cuts_and_a_positive_one_lets_value_flow() -> None:
    reward, value = torch.tensor([0.0, 0.0, 5.0]), torch.zeros(3)
    flows = gae(reward, torch.tensor([1.0, 1.0, 1.0]), value, 1.0)
    cut = gae(reward, torch.tensor([1.0, 0.0, 1.0]), value, 1.0)
    assert flows.tolist() == [5, 5, 5] and cut.tolist() == [0, 0, 5]


def test_reward_signals() -> None:
    bandits = BernoulliBandits(num_arms=3)
    agent, tasks = bernoulli_references(3, 6)["random"].build(), sample_tasks(bandits, 16, 0, "train")
    trajectory = RolloutWorker(bandits).run(agent, tasks, 6, 1).phases[0]
    assert torch.equal(reward_signal(trajectory, "sampled"), trajectory.reward)
    assert torch.equal(reward_signal(trajectory, "expected"), trajectory.truth["expected_reward"])
    assert torch.equal(reward_signal(trajectory, "regret"), -trajectory.truth["regret"])
    without = replace(trajectory, truth={})
    assert torch.equal(reward_signal(trajectory, "auto"), -trajectory.truth["regret"])
    assert torch.equal(reward_signal(without, "auto"), without.reward)
    with pytest.raises(
        UserError, match=r"expected one that the task family emits, sampled or auto, got 'regret'"
    ):
        reward_signal(without, "regret")


def test_the_explained_variance_is_that_of_a_regression() -> None:
    """On the steps of the mask it is R², the squared correlation, for a least-squares prediction."""
    g = torch.Generator().manual_seed(0)
    x, noise = (torch.randn(50, 4, generator=g, dtype=torch.float64) for _ in range(2))
    target, mask = 2 * x + noise + 3, (torch.rand(50, 4, generator=g) > 0.3).double()
    inside = mask.bool()
    r = torch.corrcoef(torch.stack([x[inside], target[inside]]))[0, 1]
    slope = r * target[inside].std() / x[inside].std()
    error = torch.where(inside, target - slope * x, 1e6)  # a constant changes nothing, padding neither
    assert explained_variance(target, error, mask) == pytest.approx(float(r**2))
    assert explained_variance(target, torch.zeros_like(target), mask) == 1
    assert explained_variance(torch.ones_like(target), error, mask) == 0
