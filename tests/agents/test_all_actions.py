"""The loss that sees the regrets of all actions, and the critic that does."""

import math
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from rl2meta.agents.all_actions import (
    Given,
    _spread,
    all_action_advantages,
    all_action_surrogate,
    judged,
    sees_all,
)
from rl2meta.agents.ppo import PPO
from rl2meta.agents.privileged_critic import Known, PrivilegedCritic
from rl2meta.agents.rl2 import RL2Config, rl2_learner
from rl2meta.envs.bandits import BernoulliBandits
from rl2meta.envs.navigation import PointNavigation
from rl2meta.envs.tabular import TabularMDPs
from rl2meta.errors import UserError
from rl2meta.networks import Categorical
from rl2meta.randomness import generator
from rl2meta.rollout import RolloutWorker
from rl2meta.shards import ALONE
from rl2meta.tasks import sample_tasks
from rl2meta.training import Budget, meta_train
from rl2meta.trial import TimeStep, Trajectory, Trial

BANDITS = BernoulliBandits(num_arms=3)
ALL = {"surrogate": "all_actions", "discount": 1.0, "minibatches": 1, "epochs": 1}


def learner_of(law: Any = BANDITS, seed: int = 0, core: Any = None, **settings: Any) -> PPO:
    small = {"name": "slot", "slot_size": 4, "hidden_size": 8}
    config = RL2Config.model_validate({"core": core or small, **ALL, **settings})
    return rl2_learner(law.observation_space, law.action_space, config, seed=seed)


def lived(learner: PPO, law: Any = BANDITS, tasks: int = 16, episodes: int = 5, seed: int = 0) -> Trajectory:
    drawn = sample_tasks(law, tasks, seed, "train")
    return RolloutWorker(law).run(learner.agent, drawn, episodes, seed).phases[0]


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=generator(seed, "drawn"), dtype=torch.float64)


def test_advantages_are_the_sums_of_what_follows() -> None:
    regrets, log_probs, value = (
        drawn(5, 2, 3).abs(),
        drawn(5, 2, 3, seed=1).log_softmax(-1),
        drawn(5, 2, seed=2),
    )
    value[-1] = 0  # nothing follows
    gamma, trace = 0.9, 0.7
    discount = torch.full((5, 2), gamma, dtype=torch.float64)
    discount[-1] = 0
    found = all_action_advantages(regrets, log_probs, value, discount, trace)
    expected = -(log_probs.exp() * regrets).sum(-1)

    def returns(t: int, n: int) -> Tensor:
        """Return what n steps after t earn, and then what the value says."""
        last = min(t + n, 4)
        total = sum((gamma**k * expected[t + k] for k in range(1, last - t + 1)), torch.zeros(2).double())
        return total + (gamma**n * value[t + n] if t + n < 4 else 0)

    for t in range(4):  # G is the mean over n of the n-step returns, geometric with λ
        weights = [(1 - trace) * trace ** (n - 1) for n in range(1, 4 - t)] + [trace ** (3 - t)]
        wanted = sum(w * returns(t, n) for n, w in enumerate(weights, start=1))
        torch.testing.assert_close(found.returns[t], wanted)
    torch.testing.assert_close(found.future, found.returns - value)
    assert not found.returns[-1].any()
    mean = (log_probs.exp() * found.immediate).sum(-1)
    torch.testing.assert_close(mean, torch.zeros_like(mean))
    torch.testing.assert_close(
        found.immediate[..., 0] - found.immediate[..., 1], regrets[..., 1] - regrets[..., 0]
    )


def test_the_spread_is_the_standard_deviation_of_the_immediate_part() -> None:
    log_probs, regrets = torch.full((1, 1, 2), 0.5).log(), torch.tensor([[[0.0, 2.0]]])
    found = all_action_advantages(regrets, log_probs, torch.zeros(1, 1), torch.zeros(1, 1), 1.0)
    assert float(_spread([found.immediate], [log_probs], [torch.ones(1, 1)], ALONE)) == 1.0


def test_a_baseline_does_not_know_that_an_action_ended_the_trial() -> None:
    """Of two trials that are alike, one ends at once. Their advantages differ by what follows, all of it."""
    mask = torch.tensor([[True, True], [False, True], [False, True]])
    last = torch.tensor([[True, False], [False, False], [False, True]])
    nothing, regrets = torch.zeros(3, 2), torch.tensor([1.0, 0.0]).expand(3, 2, 2)
    inputs = TimeStep(nothing, torch.zeros(3, 2, 2), nothing, nothing.bool())
    ends = Trajectory(inputs, nothing.long(), nothing, last, mask, {}, {"regrets": regrets}, 3, 1)
    log_probs, value = torch.full((3, 2, 2), 0.5).log(), torch.full((3, 2), -0.7)
    known = Known(torch.zeros(3, 2, 0), regrets, log_probs.exp(), torch.zeros(3, 2, 2))
    given = Given(ends, inputs, known, log_probs, value)
    (found,), _ = judged([given], torch.tensor(1.0), 1.0, 1.0, None, [generator(0)])
    spread = 0.5  # of ±0.5, so the regret of two more steps is 2 units
    assert float(found.future[0, 0] - found.future[0, 1]) == pytest.approx(2 * 0.5 / spread)
    assert not found.future[-1].any() and not found.future[1:, 0].any()
    assert found.value_target[0].tolist() == pytest.approx([0.0, -0.5])  # per step of the two that may follow


def test_the_surrogate_is_the_expectation_of_the_clipped_one() -> None:
    old, new, gains = drawn(4, 2, 3).log_softmax(-1), drawn(4, 2, 3, seed=1), drawn(4, 2, 3, seed=2)
    policy = Categorical(new)
    ratio = (policy.log_probs - old).exp()
    wanted = (old.exp() * torch.min(ratio * gains, ratio.clamp(0.8, 1.2) * gains)).sum(-1)
    torch.testing.assert_close(all_action_surrogate(policy, old, gains, 0.2), wanted)


def test_the_surrogate_is_finite_where_the_ratio_is_not() -> None:
    old = torch.tensor([0.0, -100.0]).log_softmax(-1)
    gains = torch.tensor([0.0, -1.0])
    for other in (-100.0, 100.0):  # the second action becomes certain, or stays impossible
        logits = torch.tensor([other, 0.0], requires_grad=True)
        found = all_action_surrogate(Categorical(logits), old, gains, 0.2)
        assert float(found.detach()) == pytest.approx(-1.0 if other < 0 else 0.0)
        assert torch.autograd.grad(found, logits)[0].isfinite().all()


def test_a_trial_of_one_step_teaches_the_critic_nothing() -> None:
    learner = learner_of(critic="privileged", epochs=2, minibatches=2)
    trial = RolloutWorker(BANDITS).run(learner.agent, sample_tasks(BANDITS, 8, 0, "train"), 1, 0)
    before = {name: value.clone() for name, value in learner.state_dict().items()}
    for _ in range(2):
        row = learner.update(trial, 0.5, generator(0))
    after = learner.state_dict()
    assert all(value.isfinite().all() for value in after.values()) and row["explained_variance"] == 0.0
    weights = [n for n in before if n.startswith("critic.network.")]
    assert weights and all(torch.equal(before[name], after[name]) for name in weights)
    assert not torch.equal(before["network.core.logit.weight"], after["network.core.logit.weight"])


def gradient(learner: PPO, loss: Tensor) -> Tensor:
    weights = [w for n, w in learner.network.named_parameters() if not n.startswith("value.")]
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, weights)])


@torch.no_grad()
def opinion(learner: PPO, trajectory: Trajectory) -> Tensor:
    """Return what the critic says of each step, [T, B]."""
    net = learner.network
    seen = net.seen(trajectory.inputs, trajectory.most_steps)
    policy, _ = net(seen)
    regrets = trajectory.truth["regrets"] / net.reward_scale
    known = Known(net.core(seen).features, regrets, policy.log_probs.exp(), seen.elapsed)
    assert learner.critic is not None
    value: Tensor = learner.critic(known)
    return value


def losses(learner: PPO, trajectory: Trajectory, value: Tensor) -> Tensor:
    """Return minus the score function's estimate of the regret to come, given a baseline [T, B]."""
    policy, _ = learner.network(learner.network.seen(trajectory.inputs, trajectory.most_steps))
    discount = torch.ones_like(value)
    discount[-1] = 0
    with torch.no_grad():
        found = all_action_advantages(trajectory.truth["regrets"], policy.log_probs, value, discount, 1.0)
    return -(policy.log_prob(trajectory.action) * found.future).sum() / value.shape[1]


def test_the_critic_does_not_change_the_expected_gradient_but_its_noise() -> None:
    """On a small bandit: the difference that the critic makes is 0 within its own error; the noise is not."""
    learner = learner_of(critic="privileged")
    worker = RolloutWorker(BANDITS)
    meta_train(learner, BANDITS, worker, Budget(10, 64, 5), 0, lambda row: False)  # a critic with opinions
    with_critic, without = list[Tensor](), list[Tensor]()
    for seed in range(30):
        trajectory = lived(learner, tasks=64, seed=seed)
        left = torch.arange(4, -1, -1).unsqueeze(1)  # steps that follow
        value = opinion(learner, trajectory) * left * learner.network.reward_scale
        with_critic.append(gradient(learner, losses(learner, trajectory, value)))
        without.append(gradient(learner, losses(learner, trajectory, torch.zeros_like(value))))
    one, other = torch.stack(with_critic), torch.stack(without)
    difference = one - other
    error = difference.std(dim=0) / 30**0.5
    counted = error > 1e-9  # not the weights that no loss reaches
    z = difference.mean(dim=0)[counted] / error[counted]
    assert float(z.square().mean()) < 2.0  # 1 in the mean, if the expectations are equal
    assert float(one.var(dim=0).sum()) < 0.5 * float(other.var(dim=0).sum())


def test_without_a_future_the_gradient_is_that_of_the_expected_regret() -> None:
    learner = learner_of(discount=0.0, entropy_coefficient=0.0, max_gradient_norm=1e6)
    trajectory = lived(learner)
    (batch,), _ = learner.all_action_batches([trajectory], 0.0, [generator(0)])
    assert not batch.advantage.any()
    policy, _ = learner.network(learner.network.seen(trajectory.inputs, trajectory.most_steps))
    regret = (policy.log_probs.exp() * trajectory.truth["regrets"]).sum(-1).mean()
    unit = float(
        batch.immediate[0, 0].abs().max() / _immediate(trajectory, policy.log_probs)[0, 0].abs().max()
    )
    wanted = gradient(learner, regret)
    learner.step([partial(learner.lost, batch, 0.0, trajectory.most_steps)])
    got = torch.cat(
        [w.grad.flatten() for n, w in learner.network.named_parameters() if not n.startswith("value.")]  # type: ignore[union-attr]
    )
    torch.testing.assert_close(got, wanted * unit, rtol=1e-3, atol=1e-6)


def _immediate(trajectory: Trajectory, log_probs: Tensor) -> Tensor:
    regrets = trajectory.truth["regrets"]
    return (log_probs.exp() * regrets).sum(-1, keepdim=True).detach() - regrets


@pytest.mark.parametrize("critic", ["head", "privileged"])
def test_it_learns_and_its_value_explains_what_follows(critic: str) -> None:
    law = TabularMDPs(num_states=3, num_actions=2, horizon=3)
    learner, rows = learner_of(law, critic=critic, epochs=3, warm_up=0.1), list[dict[str, Any]]()
    worker = RolloutWorker(law)
    meta_train(learner, law, worker, Budget(15, 64, 4), 0, lambda row: rows.append(row) or False)  # type: ignore[func-returns-value]
    assert rows[0]["explained_variance"] == 0.0
    assert sum(row["explained_variance"] for row in rows[-5:]) / 5 > (0.3 if critic == "privileged" else 0.05)
    first, last = (sum(row["mean_return"] for row in part) / 5 for part in (rows[:5], rows[-5:]))
    assert last > first + 0.5


def test_the_learner_resumes_with_its_critic() -> None:
    learner, other = learner_of(critic="privileged"), learner_of(critic="privileged", seed=1)
    trial = RolloutWorker(BANDITS).run(learner.agent, sample_tasks(BANDITS, 8, 0, "train"), 5, 0)
    learner.update(trial, 0.5, generator(0))
    other.load_state_dict({name: value.clone() for name, value in learner.state_dict().items()})
    assert any(name.startswith("critic.optimizer.") for name in learner.state_dict())
    some, same = (each.update(trial, 0.6, generator(1)) for each in (learner, other))
    assert some == same
    assert not any(name.startswith("critic") for name, _ in learner.agent.network.named_parameters())


@pytest.mark.parametrize("surrogate", ["auto", "all_actions"])
def test_families_that_reveal_no_regrets(surrogate: str) -> None:
    law = PointNavigation(horizon=3)
    learner = learner_of(law, core="gru", surrogate=surrogate)
    trial = RolloutWorker(law).run(learner.agent, sample_tasks(law, 4, 0, "train"), 2, 0)
    if surrogate == "auto":
        assert not sees_all(learner.config, trial.phases[0])
        assert learner.update(trial, 0.5, generator(0))["gradient_norm"] > 0
    else:
        with pytest.raises(UserError, match=r"agent\.surrogate: expected a family that reveals"):
            learner.update(trial, 0.5, generator(0))


@pytest.mark.parametrize(("key", "value"), [("critic", "privileged"), ("auxiliary_coefficient", 1.0)])
def test_settings_that_would_do_nothing_are_refused(key: str, value: Any) -> None:
    """Where the loss does not use the regrets of all actions, no metric would say that they do nothing."""
    fault = rf"agent\.{key}: expected .* got {value}; use agent\.{key}="
    with pytest.raises(UserError, match=fault):
        learner_of(surrogate="sampled", **{key: value})
    learner, tasks = learner_of(surrogate="auto", **{key: value}), sample_tasks(BANDITS, 4, 0, "train")
    trial = RolloutWorker(BANDITS).run(learner.agent, tasks, 2, 0)
    assert sees_all(learner.config, trial.phases[0])
    learner.update(trial, 0.5, generator(0))
    with pytest.raises(UserError, match=fault):
        learner.update(Trial(tasks, (replace(trial.phases[0], truth={}),)), 0.5, generator(0))


@pytest.mark.parametrize("critic", ["head", "privileged"])
def test_trials_of_one_step_have_no_future(critic: str) -> None:
    """The critic learns nothing from them, and the loss stays finite."""
    learner = learner_of(critic=critic)
    trial = RolloutWorker(BANDITS).run(learner.agent, sample_tasks(BANDITS, 8, 0, "train"), 1, 0)
    rows = [learner.update(trial, 0.5, generator(seed)) for seed in range(2)]
    assert all(math.isfinite(value) for row in rows for value in row.values())
    assert rows[0]["gradient_norm"] > 0
    assert all(bool(tensor.isfinite().all()) for tensor in learner.state_dict().values())


def test_the_critics_gradients_are_those_of_plain_autograd() -> None:
    """Two actions tie in the maximum, and no unit is 0 for all actions."""
    source, critic = torch.Generator().manual_seed(4), PrivilegedCritic(6, 1e-3, 1).double()
    torch.nn.init.normal_(critic.value[-1].weight, generator=source)  # type: ignore[arg-type]
    sizes = (7, 3, 6), (7, 3, 4), (7, 3, 4), (7, 3, 2)
    known = Known(*(torch.randn(*size, generator=source).double() for size in sizes))
    for field in known[1:3]:
        field[..., 1] = field[..., 0]
    both = torch.stack([known.regrets, known.probabilities, known.regrets * known.probabilities], dim=-1)
    y = critic.action(both)  # [T, B, A, 32]
    pooled = torch.cat([y.mean(dim=-2), y.amax(dim=-2), known.features, known.elapsed], dim=-1)
    values = critic.value(pooled).squeeze(-1), critic(known)
    found = [torch.autograd.grad(value.sin().sum(), list(critic.parameters())) for value in values]
    torch.testing.assert_close(*values, atol=1e-12, rtol=0)
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=1e-11, rtol=1e-11)


def test_actions_are_exchangeable_for_the_critic_and_their_number_does_not_matter() -> None:
    torch.manual_seed(0)
    critic = PrivilegedCritic(6, 1e-3, 1)
    torch.nn.init.normal_(critic.value[-1].weight)
    features, elapsed = torch.randn(4, 3, 6), torch.rand(4, 3, 2)
    for actions in (2, 5):
        regrets, probabilities = torch.rand(4, 3, actions), torch.rand(4, 3, actions).softmax(-1)
        order = torch.randperm(actions)
        one = critic(Known(features, regrets, probabilities, elapsed))
        other = critic(Known(features, regrets[..., order], probabilities[..., order], elapsed))
        torch.testing.assert_close(one, other)
        assert (one - critic(Known(features, 2 * regrets, probabilities, elapsed))).abs().max() > 1e-3


def test_the_warm_up_raises_the_learning_rate() -> None:
    learner = learner_of(warm_up=0.2, learning_rate=1e-2, final_learning_rate=1e-2)
    trial = RolloutWorker(BANDITS).run(learner.agent, sample_tasks(BANDITS, 4, 0, "train"), 2, 0)
    rates = []
    for progress in (0.0, 0.1, 0.2, 0.9):
        learner.update(trial, progress, generator(0))
        rates.append(learner.optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([1e-4, 5.1e-3, 1e-2, 1e-2])


def test_the_auxiliary_layer_learns_what_actions_cost_and_is_no_part_of_the_agent() -> None:
    core = {"name": "gru", "hidden_size": 16}  # the features of a slot core do not tell actions apart
    learner = learner_of(core=core, critic="privileged", auxiliary_coefficient=1.0)
    worker = RolloutWorker(BANDITS)
    (batch,), _ = learner.all_action_batches([lived(learner, tasks=64)], 0.0, [generator(0)])
    losses = [float(learner.step([partial(learner.lost, batch, 0.0)])["auxiliary_loss"]) for _ in range(200)]
    assert losses[-1] < 0.9 * losses[0]
    assert not any(name.startswith("auxiliary") for name, _ in learner.agent.network.named_parameters())
    other = learner_of(core=core, critic="privileged", auxiliary_coefficient=1.0, seed=1)
    other.load_state_dict({name: value.clone() for name, value in learner.state_dict().items()})
    trial = worker.run(learner.agent, sample_tasks(BANDITS, 8, 0, "train"), 5, 0)
    assert learner.update(trial, 0.5, generator(1)) == other.update(trial, 0.5, generator(1))


def test_the_auxiliary_layer_wants_discrete_actions() -> None:
    with pytest.raises(UserError, match=r"agent\.auxiliary_coefficient: expected 0 for actions"):
        learner_of(PointNavigation(), core="gru", surrogate="auto", auxiliary_coefficient=1.0)
