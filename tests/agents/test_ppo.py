"""PPO on whole trials, and the agent that acts through a core."""

import math
import re
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from rl2meta.agents.cores.core import Seen
from rl2meta.agents.ppo import PPO, Batch
from rl2meta.agents.rl2 import RL2Config, rl2_learner
from rl2meta.envs.bandits import BernoulliBandits
from rl2meta.envs.batched import TensorVectorEnv, Transition
from rl2meta.randomness import generator
from rl2meta.returns import clipped_surrogate, discounted_lengths
from rl2meta.rollout import RolloutWorker
from rl2meta.shards import Lost
from rl2meta.tasks import TensorTasks, sample_tasks
from rl2meta.training import Budget, meta_train
from rl2meta.trial import Trajectory, Trial, over_fields

BANDITS = BernoulliBandits(num_arms=3)


def _learner(seed: int = 0, num_layers: int = 1, **settings: object) -> PPO:
    core = {"name": "lstm", "hidden_size": 8, "num_layers": num_layers}
    config = RL2Config.model_validate({"core": core, **settings})
    return rl2_learner(BANDITS.observation_space, BANDITS.action_space, config, seed=seed)


def _trial(learner: PPO, tasks: int = 16, episodes: int = 6) -> Trial:
    return RolloutWorker(BANDITS).run(learner.agent, sample_tasks(BANDITS, tasks, 0, "train"), episodes, 1)


def _seen(learner: PPO, trajectory: Trajectory) -> Seen:
    return learner.network.seen(trajectory.inputs, trajectory.most_steps)


@pytest.mark.parametrize("num_layers", [1, 2])
def test_acting_step_by_step_agrees_with_the_fused_pass(num_layers: int) -> None:
    learner = _learner(num_layers=num_layers)
    (trajectory,) = _trial(learner).phases
    policy, _ = learner.network(_seen(learner, trajectory))
    torch.testing.assert_close(
        policy.log_prob(trajectory.action), trajectory.notes["log_prob"], atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("tasks", [16, 80])  # cell by cell, and through the fused layer
@pytest.mark.parametrize("num_layers", [1, 2])
def test_the_value_while_acting_is_that_of_the_fused_pass(num_layers: int, tasks: int) -> None:
    learner = _with_opinions(_learner(num_layers=num_layers))
    (trajectory,) = _trial(learner, tasks=tasks).phases
    _, value = learner.network(_seen(learner, trajectory))
    noted = trajectory.notes["value"]
    assert noted.shape == trajectory.reward.shape
    assert noted.std() > 0.01 and not noted.requires_grad
    torch.testing.assert_close(noted, value.detach(), atol=1e-5, rtol=0)


def _with_opinions(learner: PPO) -> PPO:
    """Give the value head weights: at first they are 0, and so is every value."""
    torch.nn.init.normal_(learner.network.value.weight, generator=generator(5, "value"))
    return learner


def test_an_update_learns_from_what_was_expected_while_acting() -> None:
    """With λ = 0 and γ = 0 the advantage is the reward less the recorded value; so is the log-probability."""
    learner = _with_opinions(_learner(discount=0.0, gae_trace=0.0, reward_signal="sampled"))
    (trajectory,) = _trial(learner).phases
    learner.batches([trajectory])[0]  # measures the reward's scale
    value = torch.randn(trajectory.reward.shape, generator=generator(6, "value"))
    log_prob = -torch.rand(trajectory.reward.shape, generator=generator(7, "log_prob"))
    batch = learner.batches([replace(trajectory, notes={"value": value, "log_prob": log_prob})])[0]
    surprise = trajectory.reward - learner.network.reward_scale * value
    wanted = (surprise - surprise.mean()) / surprise.std(unbiased=False)
    torch.testing.assert_close(batch.advantage, wanted, atol=1e-5, rtol=1e-5)
    assert torch.equal(batch.log_prob, log_prob)


@pytest.mark.parametrize("noted", [["log_prob"], ["value"], []])
def test_a_trial_whose_agent_noted_too_little_is_refused(noted: list[str]) -> None:
    learner = _learner()
    (trajectory,) = _trial(learner).phases
    assert set(trajectory.notes) == {"log_prob", "value"}
    poor = replace(trajectory, notes={name: trajectory.notes[name] for name in noted})
    with pytest.raises(ValueError, match=re.escape(f"PPOAgent does, got notes of {noted}")):
        learner.batches([poor])[0]


@pytest.mark.parametrize("gamma", [0.0, 0.5, 0.9, 0.999, 1.0])
def test_discounted_lengths_are_the_sums_of_powers(gamma: float) -> None:
    steps = torch.tensor([[1, 2, 3, 10], [100, 1000, 5000, 0]])
    lengths = discounted_lengths(steps, gamma)
    wanted = [[math.fsum(gamma**k for k in range(max(n, 1))) for n in row] for row in steps.tolist()]
    assert lengths.dtype == torch.float32
    torch.testing.assert_close(lengths, torch.tensor(wanted), rtol=1e-6, atol=0)


def test_advantages_cross_the_ends_of_episodes() -> None:
    """With λ = γ = 1 and a value of 0 the first advantage is the return of the whole trial."""
    learner = _learner(discount=1.0, gae_trace=1.0, reward_signal="sampled", reward_units="raw")
    trial = _trial(learner)
    batch = learner.batches([trial.phases[0]])[0]
    returns = trial.phases[0].reward.flip(0).cumsum(0).flip(0)
    remaining = torch.arange(6, 0, -1).unsqueeze(1)
    want = returns / remaining
    torch.testing.assert_close(batch.value_target * learner.network.reward_scale, want)
    standardised = (returns - returns.mean()) / returns.std(unbiased=False)
    torch.testing.assert_close(batch.advantage, standardised, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("progress", "gamma"), [(0.0, 0.2), (0.5, 0.6), (1.0, 1.0)])
def test_the_discount_moves_from_start_to_end(progress: float, gamma: float) -> None:
    moving = _learner(discount=0.2, final_discount=1.0, gae_trace=1.0, reward_signal="sampled")
    still = _learner(discount=gamma, gae_trace=1.0, reward_signal="sampled")
    (trajectory,) = _trial(moving).phases
    torch.testing.assert_close(
        moving.batches([trajectory], progress)[0].advantage,
        still.batches([trajectory], progress)[0].advantage,
    )


def test_padding_changes_nothing() -> None:
    learner = _learner()
    (trajectory,) = _trial(learner, episodes=6).phases
    short = replace(
        trajectory,
        inputs=over_fields(lambda x: x[:4], trajectory.inputs),
        **{name: getattr(trajectory, name)[:4] for name in ("action", "reward", "last", "mask")},
        notes={name: x[:4] for name, x in trajectory.notes.items()},
        truth={name: x[:4] for name, x in trajectory.truth.items()},
    )
    assert set(short.truth) == {"expected_reward", "regret", "regrets"}
    mask = trajectory.mask.clone()
    mask[4:] = False
    padded, want = learner.batches([replace(trajectory, mask=mask)])[0], learner.batches([short])[0]
    torch.testing.assert_close(padded.advantage[:4], want.advantage)
    torch.testing.assert_close(padded.value_target[:4], want.value_target)
    losses = [_metrics_of_a_step(batch) for batch in (padded, want)]
    torch.testing.assert_close(losses[0], losses[1])


def _step(learner: PPO, batch: Batch, entropy_weight: float) -> dict[str, Tensor]:
    return learner.step([partial(learner.lost, batch, entropy_weight)])


def _metrics_of_a_step(batch: Batch) -> Tensor:
    metrics = _step(_learner(), batch, 0.01)
    return torch.stack([metrics[name] for name in ("policy_loss", "value_loss", "entropy", "gradient_norm")])


def test_clipped_surrogate_by_hand() -> None:
    ratio, advantage = torch.tensor([1.5, 1.5, 0.5, 0.5, 1.1]), torch.tensor([1.0, -1.0, 1.0, -1.0, 2.0])
    # Gains stop at 1 ± 0.2, losses do not: 1.2, −1.5, 0.5, −0.8, 2.2.
    torch.testing.assert_close(
        clipped_surrogate(ratio.log(), advantage, 0.2), torch.tensor([1.2, -1.5, 0.5, -0.8, 2.2])
    )


def test_the_first_step_of_an_update_is_the_policy_gradient() -> None:
    """At ρ = 1 the gradient of the surrogate is E[A ∇ log π] (checked against autograd of that)."""
    learner = _learner(entropy_coefficient=0.0, value_coefficient=0.0, max_gradient_norm=1e6)
    (trajectory,) = _trial(learner).phases
    batch = learner.batches([trajectory])[0]
    _step(learner, batch, 0.0)
    fresh = _learner()
    policy, _ = fresh.network(Seen(*batch.inputs))
    (-(policy.log_prob(batch.action) * batch.advantage).mean()).backward()
    got, want = (each.network.policy.linear.weight.grad for each in (learner, fresh))  # type: ignore[union-attr]
    assert got is not None
    torch.testing.assert_close(got, want, atol=1e-6, rtol=1e-3)


def test_beyond_the_clip_range_nothing_pulls() -> None:
    """With ρ far outside 1 ± ε on the side that A rewards, the surrogate's gradient is zero."""
    learner = _learner(value_coefficient=0.0)
    batch = learner.batches([_trial(learner).phases[0]])[0]
    far = batch._replace(
        log_prob=batch.log_prob - batch.advantage.sign()
    )  # ρ = e where A > 0, 1/e where A < 0
    assert _step(learner, far, 0.0)["gradient_norm"] == 0
    assert _step(learner, batch, 0.0)["gradient_norm"] > 0


def test_the_kl_estimate_is_exact_for_a_known_shift() -> None:
    learner = _learner()
    batch = learner.batches([_trial(learner).phases[0]])[0]
    shifted = batch._replace(log_prob=batch.log_prob - 0.1)  # log ρ = 0.1 everywhere
    assert float(_step(learner, shifted, 0.0)["kl"]) == pytest.approx(math.exp(0.1) - 1 - 0.1, rel=1e-3)


def test_the_clip_fraction_counts_the_steps_whose_ratio_left_the_range() -> None:
    """Half of the trials were acted with 1.5 times the probability, a quarter with 0.9 times."""
    learner = _learner()
    batch = learner.batches([_trial(learner).phases[0]])[0]
    factor = torch.ones_like(batch.log_prob)
    factor[:, :8], factor[:, 8:12] = 1.5, 0.9
    told = _step(learner, batch._replace(log_prob=batch.log_prob + factor.log()), 0.0)
    assert told["clip_fraction"] == 0.5  # ρ is 2/3, 10/9 and 1
    assert _step(learner, batch, 0.0)["clip_fraction"] == 0


def test_an_update_tells_its_learning_rate_and_what_its_value_explained() -> None:
    learner = _with_opinions(_learner(learning_rate=1e-2, final_learning_rate=0.0))
    trial = _trial(learner)
    batch = learner.batches([trial.phases[0]])[0]
    target, value = batch.value_target.numpy(), trial.phases[0].notes["value"].numpy()
    told = learner.update(trial, 0.25, generator(0))
    assert told["learning_rate"] == pytest.approx(0.75e-2)
    assert told["explained_variance"] == pytest.approx(1 - (target - value).var() / target.var(), abs=1e-5)


def test_the_entropy_bonus_raises_entropy() -> None:
    learner = _learner(value_coefficient=0.0, entropy_coefficient=1.0, epochs=1, minibatches=1)
    batch = learner.batches([_trial(learner).phases[0]])[0]._replace(advantage=torch.zeros(6, 16))
    entropies = [float(_step(learner, batch, 1.0)["entropy"]) for _ in range(20)]
    assert entropies[-1] > entropies[0] and entropies[-1] > 0.999 * math.log(3)


class Weighed(PPO):
    """Notes what it is told to learn with."""

    told: list[tuple[float, int | None]]

    def lost(self, batch: Batch, entropy_weight: float, trial_length: int | None = None) -> Lost:
        self.told.append((entropy_weight, trial_length))
        return super().lost(batch, entropy_weight, trial_length)


def test_the_entropy_bonus_falls_over_training_and_every_step_knows_the_trials_length() -> None:
    made = _learner(entropy_coefficient=1.0, epochs=1, minibatches=1)
    learner = Weighed(made.network, made.config)
    learner.told = []
    for progress in (0.0, 0.5, 1.0):
        learner.update(_trial(learner), progress, generator(0, "u"))
    assert learner.told == [(1.0, 6), (0.5, 6), (0.0, 6)]


def test_an_update_passes_over_every_trial_in_every_epoch() -> None:
    learner = _learner(epochs=3, minibatches=4)
    batch = learner.batches([_trial(learner).phases[0]])[0]
    parts = [batch.trials(index) for index in learner.minibatches(batch, generator(0, "order"))]
    assert len(parts) == 12 and all(part.action.shape == (6, 4) for part in parts)
    for epoch in range(3):
        seen = torch.cat([part.log_prob for part in parts[4 * epoch : 4 * epoch + 4]], dim=1)
        assert torch.equal(seen.sort(dim=1).values, batch.log_prob.sort(dim=1).values)
    assert not torch.equal(parts[0].log_prob, parts[4].log_prob)


def test_the_value_is_scaled_by_the_first_batch_that_pays() -> None:
    learner = _learner(reward_signal="sampled")
    (trajectory,) = _trial(learner).phases
    learner.batches([replace(trajectory, reward=torch.zeros_like(trajectory.reward))])[0]
    assert learner.network.reward_scale == 0  # nothing measured yet, and nothing divided by it
    learner.batches([trajectory])[0]
    scale = learner.network.reward_scale.clone()
    assert 0.1 < scale < 1
    learner.batches([replace(trajectory, reward=trajectory.reward * 100)])[0]
    assert learner.network.reward_scale == scale


def test_learning_rate_and_entropy_bonus_fall_to_their_ends() -> None:
    learner = _learner(learning_rate=0.1, final_learning_rate=0.02)
    trial = _trial(learner)
    for progress, rate in ((0.0, 0.1), (0.5, 0.06), (1.0, 0.02)):
        learner.update(trial, progress, generator(0, "u"))
        assert learner.optimizer.param_groups[0]["lr"] == pytest.approx(rate)


def test_state_round_trip_continues_with_the_same_bits() -> None:
    ours = _learner()
    trial = _trial(ours)
    ours.update(trial, 0.0, generator(0, "first"))
    saved = {name: tensor.clone() for name, tensor in ours.state_dict().items()}
    twin = _learner(seed=9)
    twin.load_state_dict(saved)
    for learner in (ours, twin):
        learner.update(trial, 0.5, generator(0, "second"))
    states = ours.state_dict(), twin.state_dict()
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


class _Walkout(BernoulliBandits):
    """Action 0 ends the episode, every other step pays 1: how long an episode lasts is the agent's doing."""

    horizon = 8

    def make_envs(self, num_envs: int, device: torch.device) -> TensorVectorEnv:
        return TensorVectorEnv(self, _Leaving(), num_envs, device)


class _Leaving:
    def prepare(self, tasks: TensorTasks) -> TensorTasks:
        return tasks

    def begin(self, tasks: TensorTasks, episode: Tensor, generator: torch.Generator) -> Tensor:
        return torch.zeros_like(episode)

    def observe(self, state: Tensor) -> Tensor:
        return state

    def step(
        self, tasks: TensorTasks, state: Tensor, action: Tensor, generator: torch.Generator
    ) -> Transition:
        return Transition(state, torch.ones(len(action)), action == 0)


def test_the_baseline_does_not_know_how_long_an_episode_will_last() -> None:
    """A value that counts the steps that came explains the return, whatever the agent did."""
    family = _Walkout(num_arms=2)
    settings: dict[str, Any] = {"learning_rate": 1e-2, "reward_signal": "sampled"}
    config = RL2Config.model_validate({"core": {"hidden_size": 16}, **settings})
    learner = rl2_learner(family.observation_space, family.action_space, config)
    budget = Budget(updates=25, trials_per_update=64, episodes_per_trial=2)
    returns: list[float] = []
    worker = RolloutWorker(family)
    meta_train(learner, family, worker, budget, 0, lambda row: bool(returns.append(row["mean_return"])))  # type: ignore[func-returns-value]
    assert returns[0] < 6 and returns[-1] > 14  # of 16; chance earns about 4
