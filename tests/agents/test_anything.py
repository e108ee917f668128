import gymnasium as gym
import numpy as np
import pytest
import torch
from scipy.stats import chisquare, kstest
from torch import Tensor

from rl2meta.agents.references.anything import UniformAgent, random_references
from rl2meta.envs.bandits import BernoulliBandits
from rl2meta.randomness import generator
from rl2meta.rollout import RolloutWorker
from rl2meta.spaces import bounded
from rl2meta.tasks import sample_tasks
from rl2meta.trial import TimeStep, over_fields

Space = gym.spaces.Discrete | gym.spaces.Box


def _step(rows: int) -> TimeStep:
    nothing = torch.zeros(rows)
    return TimeStep(nothing, nothing.unsqueeze(1), nothing, nothing == 0)


def _draws(space: Space, rows: int = 30_000, seed: int = 0, steps: int = 1) -> Tensor:
    """Actions [steps × rows, ...]."""
    agent = UniformAgent(space)
    carry, actions = agent.begin(rows, generator(seed, "agent")), []
    for _ in range(steps):
        choice, carry = agent.act(carry, _step(rows))
        assert torch.equal(choice.action, choice.mode) and not choice.notes
        actions.append(choice.action)
    return torch.cat(actions)


def _p_of_equal_counts(values: Tensor, expected: list[int]) -> float:
    found, counts = values.unique(return_counts=True)
    assert found.tolist() == expected
    return float(chisquare(counts.numpy()).pvalue)


@pytest.mark.parametrize("start", [0, 3, -2])
@pytest.mark.parametrize("n", [1, 2, 7])
def test_every_discrete_action_is_as_likely(n: int, start: int) -> None:
    space = gym.spaces.Discrete(n, start=start)
    actions = _draws(space)
    assert actions.shape == (30_000,) and actions.dtype == torch.int64
    p = _p_of_equal_counts(actions, list(range(start, start + n)))
    assert n == 1 or p > 1e-3


def test_rows_and_steps_are_independent_of_each_other() -> None:
    """Pairs of neighbouring rows, and of one row's neighbouring steps, are as likely as each other."""
    actions = _draws(gym.spaces.Discrete(3), rows=10_000, steps=4).reshape(4, 10_000)
    for first, second in ((actions[:, 0::2], actions[:, 1::2]), (actions[0::2], actions[1::2])):
        assert _p_of_equal_counts(3 * first + second, list(range(9))) > 1e-3


def test_a_box_is_filled_evenly_between_its_bounds() -> None:
    low, high = np.array([[-1, 2, 0.1]], np.float32), np.array([[1, 5, 0.1]], np.float32)
    space = gym.spaces.Box(low, high)
    actions = _draws(space)
    assert actions.shape == (30_000, 1, 3) and actions.dtype == torch.float32
    assert torch.equal(bounded(space)(actions), actions)
    for entry in (0, 1):
        share = (actions[:, 0, entry] - low[0, entry]) / float(high[0, entry] - low[0, entry])
        assert kstest(share.numpy(), "uniform").pvalue > 1e-3
    assert abs(torch.corrcoef(actions[:, 0, :2].T)[0, 1]) < 0.02


def test_without_a_bound_an_entry_is_standard_normal() -> None:
    low, high = np.array([-np.inf, 0, -1], np.float32), np.array([np.inf, np.inf, 1], np.float32)
    space = gym.spaces.Box(low, high)
    actions = _draws(space)
    for entry in (0, 1):
        assert kstest(actions[:, entry].numpy(), "norm").pvalue > 1e-3
    assert kstest((actions[:, 2].numpy() + 1) / 2, "uniform").pvalue > 1e-3
    clipped = bounded(space)(actions)[:, 1]
    assert clipped.min() == 0 and 0.45 < (clipped == 0).float().mean() < 0.55


def test_bounds_of_all_floats_overflow_nowhere() -> None:
    most = np.finfo(np.float32).max
    actions = _draws(gym.spaces.Box(-most, most, (2,)))
    assert actions.isfinite().all() and actions.abs().max() > most / 2


def test_integers_of_a_box_reach_both_bounds() -> None:
    space = gym.spaces.Box(-1, 3, (), np.int64)
    assert _p_of_equal_counts(_draws(space), [-1, 0, 1, 2, 3]) > 1e-3


@pytest.mark.parametrize("space", [gym.spaces.Discrete(4), gym.spaces.Box(-1, 1, (2,))])
def test_draws_come_from_the_given_generator_alone(space: Space) -> None:
    before = torch.get_rng_state()
    assert torch.equal(_draws(space, 50, seed=1), _draws(space, 50, seed=1))
    assert not torch.equal(_draws(space, 50, seed=1), _draws(space, 50, seed=2))
    assert torch.equal(torch.get_rng_state(), before)


class _Elsewhere:
    """Enough of a generator to say where it lives."""

    device = torch.device("meta")


@pytest.mark.parametrize("space", [gym.spaces.Discrete(4), gym.spaces.Box(-1, 1, (2,))])
def test_bounds_live_where_the_generator_does(space: Space) -> None:
    carry = UniformAgent(space).begin(3, _Elsewhere())  # type: ignore[arg-type]
    assert {part.device.type for part in (carry.low, carry.high, carry.bounded)} == {"meta"}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("space", [gym.spaces.Discrete(4), gym.spaces.Box(-1, 1, (2,))])
def test_acts_on_a_gpu(space: Space) -> None:
    agent = UniformAgent(space)
    step = over_fields(lambda field: field.cuda(), _step(3))
    choice, _ = agent.act(agent.begin(3, generator(0, "agent", device="cuda")), step)
    assert all(field.device.type == "cuda" and len(field) == 3 for field in choice)


def test_other_spaces_are_refused() -> None:
    with pytest.raises(TypeError, match="Discrete, MultiDiscrete or Box action space, got MultiB"):
        UniformAgent(gym.spaces.MultiBinary(2))


def test_the_reference_plays_a_family_and_earns_what_chance_does() -> None:
    family = BernoulliBandits(num_arms=2)
    (name,), (reference,) = zip(*random_references(family.action_space).items(), strict=True)
    assert name == "random" and not reference.grid and reference.description
    tasks = sample_tasks(family, 400, 0, "test")
    expected = RolloutWorker(family).run(reference.build(), tasks, 20, 0).per_task("expected_reward")
    assert expected is not None
    mean = tasks.parameters["means"].mean()
    torch.testing.assert_close(expected.mean(), mean, atol=0.01, rtol=0)
