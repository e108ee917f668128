import math
import re
from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from pydantic import ValidationError
from rl2meta.agents.rewards import reward_signal
from torch import Tensor

from rl2meta.agents.maml_regression import MAMLRegressionConfig, MAMLRegressionLearner
from rl2meta.agents.maml_trpo import MAMLTRPOConfig, MAMLTRPOLearner
from rl2meta.agents.rl2 import (
    RL2Agent,
    RL2Carry,
    RL2Config,
    RL2Learner,
    _discounted_lengths,
    clipped_surrogate,
)
from rl2meta.envs.bandits import BernoulliBandits
from rl2meta.envs.batched import TaskEnv, TensorVectorEnv, Transition
from rl2meta.envs.tabular import TabularMDPs
from rl2meta.errors import UserError
from rl2meta.interop import Predictor, TrialEnv
from rl2meta.randomness import generator
from rl2meta.rollout import RolloutWorker
from rl2meta.tasks import TensorTasks, sample_tasks
from rl2meta.training import Budget, meta_train
from rl2meta.trial import Trial

BANDITS = BernoulliBandits(num_arms=3)


def _learner(seed: int = 0, **settings: object) -> RL2Learner:
    config = RL2Config.model_validate({"hidden_size": 8, **settings})
    return RL2Learner(BANDITS.observation_space, BANDITS.action_space, config, seed=seed)


def _trial(learner: RL2Learner, tasks: int = 16, episodes: int = 6) -> Trial:
    return RolloutWorker(BANDITS).run(learner.agent, sample_tasks(BANDITS, tasks, 0, "train"), episodes, 1)


@pytest.mark.parametrize("num_layers", [1, 2])
def test_acting_step_by_step_agrees_with_the_fused_pass(num_layers: int) -> None:
    learner = _learner(num_layers=num_layers)
    (trajectory,) = _trial(learner).phases
    policy, _ = learner.network(learner.network.inputs(trajectory.inputs))
    torch.testing.assert_close(policy.log_prob(trajectory.action), trajectory.log_prob, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("tasks", [16, 80])  # cell by cell, and through the fused layer
@pytest.mark.parametrize("num_layers", [1, 2])
def test_the_value_while_acting_is_that_of_the_fused_pass(num_layers: int, tasks: int) -> None:
    learner = _with_opinions(_learner(num_layers=num_layers))
    (trajectory,) = _trial(learner, tasks=tasks).phases
    _, value = learner.network(learner.network.inputs(trajectory.inputs))
    assert trajectory.value is not None and trajectory.value.shape == trajectory.reward.shape
    assert trajectory.value.std() > 0.01 and not trajectory.value.requires_grad
    torch.testing.assert_close(trajectory.value, value.detach(), atol=1e-5, rtol=0)


def _with_opinions(learner: RL2Learner) -> RL2Learner:
    """Give the value head weights: at first they are 0, and so is every value."""
    torch.nn.init.normal_(learner.network.value.weight, generator=generator(5, "value"))
    return learner


def test_an_update_learns_from_what_was_expected_while_acting() -> None:
    """With λ = 0 and γ = 0 the advantage is the reward less the recorded value; so is the log-probability."""
    learner = _with_opinions(_learner(discount=0.0, gae_trace=0.0, reward_signal="sampled"))
    (trajectory,) = _trial(learner).phases
    assert trajectory.value is not None
    learner._batch(trajectory)  # measures the reward's scale
    value = torch.randn(trajectory.value.shape, generator=generator(6, "value"))
    log_prob = -torch.rand(trajectory.log_prob.shape, generator=generator(7, "log_prob"))
    batch = learner._batch(replace(trajectory, value=value, log_prob=log_prob))
    surprise = trajectory.reward - learner.network.reward_scale * value
    wanted = (surprise - surprise.mean()) / surprise.std(unbiased=False)
    torch.testing.assert_close(batch.advantage, wanted, atol=1e-5, rtol=1e-5)
    assert torch.equal(batch.log_prob, log_prob)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 0.9, 0.999, 1.0])
def test_discounted_lengths_are_the_sums_of_powers(gamma: float) -> None:
    steps = torch.tensor([[1, 2, 3, 10], [100, 1000, 5000, 0]])
    lengths = _discounted_lengths(steps, gamma)
    wanted = [[math.fsum(gamma**k for k in range(max(n, 1))) for n in row] for row in steps.tolist()]
    assert lengths.dtype == torch.float32
    torch.testing.assert_close(lengths, torch.tensor(wanted), rtol=1e-6, atol=0)


def test_the_input_is_observation_action_reward_and_first() -> None:
    learner = _learner()
    (trajectory,) = _trial(learner).phases
    x = learner.network.inputs(trajectory.inputs)  # [T, B, 1 + 3 + 2]
    assert x.shape == (6, 16, 6)
    assert (x[0, :, 1:5] == 0).all()  # no action yet, which is not action 0, and no reward
    assert torch.equal(x[1:, :, 1:4].argmax(dim=-1), trajectory.action[:-1])
    assert torch.equal(x[1:, :, 4], trajectory.reward[:-1])
    assert (x[:, :, 5] == 1).all()  # every pull begins an episode


def test_the_hidden_state_outlives_episodes_and_not_trials() -> None:
    learner = _learner()
    carry = learner.agent.begin(4, generator(0, "x"))
    assert all((part == 0).all() for part in carry.state)
    (trajectory,) = _trial(learner, tasks=4).phases
    features = learner.network.core(learner.network.inputs(trajectory.inputs))
    alone = learner.network.core(learner.network.inputs(trajectory.inputs)[3:])
    assert not torch.allclose(features[3], alone[0])  # what came before the episode's end still counts


def test_the_gradient_reaches_through_the_whole_trial() -> None:
    learner = _learner()
    x = torch.randn(20, 2, 6, requires_grad=True)
    policy, _ = learner.network(x)
    policy.log_prob(torch.zeros(20, 2, dtype=torch.long))[-1].sum().backward()
    assert x.grad is not None and (x.grad[0].abs().sum(dim=1) > 0).all()


def test_advantages_cross_the_ends_of_episodes() -> None:
    """With λ = γ = 1 and a value of 0 the first advantage is the return of the whole trial."""
    learner = _learner(discount=1.0, gae_trace=1.0, reward_signal="sampled")
    trial = _trial(learner)
    batch = learner._batch(trial.phases[0])
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
        moving._batch(trajectory, progress).advantage, still._batch(trajectory, progress).advantage
    )


def test_padding_changes_nothing() -> None:
    learner = _learner()
    (trajectory,) = _trial(learner, episodes=6).phases

    def cut(x: Tensor) -> Tensor:
        return x[:4]

    fields = ("action", "log_prob", "reward", "last", "mask", "expected_reward", "regret", "value")
    short = replace(
        trajectory,
        inputs=type(trajectory.inputs)(*(cut(x) for x in trajectory.inputs)),
        **{name: cut(getattr(trajectory, name)) for name in fields},
    )
    mask = trajectory.mask.clone()
    mask[4:] = False
    padded, want = learner._batch(replace(trajectory, mask=mask)), learner._batch(short)
    torch.testing.assert_close(padded.advantage[:4], want.advantage)
    torch.testing.assert_close(padded.value_target[:4], want.value_target)
    losses = [learner_step(batch) for batch in (padded, want)]
    torch.testing.assert_close(losses[0], losses[1])


def learner_step(batch: object) -> Tensor:
    metrics = _learner()._step(batch, 0.01)  # type: ignore[arg-type]
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
    batch = learner._batch(trajectory)
    learner._step(batch, 0.0)
    got = learner.network.policy.linear.weight.grad
    fresh = _learner()
    policy, _ = fresh.network(batch.inputs)
    (-(policy.log_prob(batch.action) * batch.advantage).mean()).backward()
    assert got is not None
    torch.testing.assert_close(got, fresh.network.policy.linear.weight.grad, atol=1e-6, rtol=1e-3)


def test_beyond_the_clip_range_nothing_pulls() -> None:
    """With ρ far outside 1 ± ε on the side that A rewards, the surrogate's gradient is zero."""
    learner = _learner(value_coefficient=0.0)
    batch = learner._batch(_trial(learner).phases[0])
    far = batch._replace(
        log_prob=batch.log_prob - batch.advantage.sign()
    )  # ρ = e where A > 0, 1/e where A < 0
    assert learner._step(far, 0.0)["gradient_norm"] == 0
    assert learner._step(batch, 0.0)["gradient_norm"] > 0


def test_the_kl_estimate_is_exact_for_a_known_shift() -> None:
    learner = _learner()
    batch = learner._batch(_trial(learner).phases[0])
    shifted = batch._replace(log_prob=batch.log_prob - 0.1)  # log ρ = 0.1 everywhere
    assert float(learner._step(shifted, 0.0)["kl"]) == pytest.approx(math.exp(0.1) - 1 - 0.1, rel=1e-3)


def test_the_entropy_bonus_raises_entropy_and_falls_over_training() -> None:
    learner = _learner(value_coefficient=0.0, entropy_coefficient=1.0, epochs=1, minibatches=1)
    batch = learner._batch(_trial(learner).phases[0])._replace(advantage=torch.zeros(6, 16))
    entropies = [float(learner._step(batch, 1.0)["entropy"]) for _ in range(20)]
    assert entropies[-1] > entropies[0] and entropies[-1] > 0.999 * math.log(3)
    weights: list[float] = []
    learner._step = lambda batch, weight: weights.append(weight) or {"x": torch.zeros(())}  # type: ignore[method-assign,func-returns-value]
    for progress in (0.0, 0.5, 1.0):
        learner.update(_trial(learner), progress, generator(0, "u"))
    assert weights == [1.0, 0.5, 0.0]


def test_an_update_passes_over_every_trial_in_every_epoch() -> None:
    learner = _learner(epochs=3, minibatches=4)
    batch = learner._batch(_trial(learner).phases[0])
    parts = list(learner._minibatches(batch, generator(0, "order")))
    assert len(parts) == 12 and all(part.action.shape == (6, 4) for part in parts)
    for epoch in range(3):
        seen = torch.cat([part.log_prob for part in parts[4 * epoch : 4 * epoch + 4]], dim=1)
        assert torch.equal(seen.sort(dim=1).values, batch.log_prob.sort(dim=1).values)
    assert not torch.equal(parts[0].log_prob, parts[4].log_prob)


def test_the_value_is_scaled_by_the_first_batch_that_pays() -> None:
    learner = _learner(reward_signal="sampled")
    (trajectory,) = _trial(learner).phases
    learner._batch(replace(trajectory, reward=torch.zeros_like(trajectory.reward)))
    assert learner.network.reward_scale == 0  # nothing measured yet, and nothing divided by it
    learner._batch(trajectory)
    scale = learner.network.reward_scale.clone()
    assert 0.1 < scale < 1
    learner._batch(replace(trajectory, reward=trajectory.reward * 100))
    assert learner.network.reward_scale == scale


def test_reward_signals() -> None:
    (trajectory,) = _trial(_learner()).phases
    assert torch.equal(reward_signal(trajectory, "sampled"), trajectory.reward)
    assert torch.equal(reward_signal(trajectory, "expected"), trajectory.expected_reward)
    assert torch.equal(reward_signal(trajectory, "regret"), -trajectory.regret)
    without = replace(trajectory, regret=None, expected_reward=None)
    assert torch.equal(reward_signal(trajectory, "auto"), -trajectory.regret)
    assert torch.equal(reward_signal(without, "auto"), without.reward)
    with pytest.raises(
        UserError, match=r"expected one that the task family emits, sampled or auto, got 'regret'"
    ):
        reward_signal(without, "regret")


@pytest.mark.parametrize("signal", ["sampled", "expected", "regret"])
def test_learns_which_of_two_arms_pays(signal: str) -> None:
    """Means 0 and 1 in either order: after one pull everything is known, 9.5 of 10 is optimal."""

    class Certain(BernoulliBandits):
        def sample(self, num_tasks: int, generator: torch.Generator, split: str) -> TensorTasks:
            first = torch.randint(2, (num_tasks, 1), generator=generator).float()
            return TensorTasks({"means": torch.cat([first, 1 - first], dim=1)})

    distribution = Certain(num_arms=2)
    config = RL2Config.model_validate({"hidden_size": 16, "reward_signal": signal, "learning_rate": 0.01})
    learner = RL2Learner(distribution.observation_space, distribution.action_space, config)
    worker = RolloutWorker(distribution)
    meta_train(learner, distribution, worker, Budget(80, 128, 10), 0, lambda row: False)
    tasks = sample_tasks(distribution, 500, 0, "test")
    rewards = worker.run(learner.agent, tasks, 10, 5).per_task("expected_reward")
    assert rewards is not None and rewards.sum(dim=1).mean() > 9.0


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


def test_weights_depend_on_the_seed_alone_and_leave_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    a, b, c = _learner(seed=1), _learner(seed=1), _learner(seed=2)
    assert torch.equal(before, torch.get_rng_state())
    weights = [each.network.core.lstm.weight_hh_l0 for each in (a, b, c)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize(
    "bad",
    [
        {"hidden_size": 0},
        {"learning_rate": float("nan")},
        {"learning_rate": -1.0},
        {"discount": 1.1},
        {"clip_range": float("inf")},
        {"reward_signal": "expexted"},
        {"epochs": 2.5},
        {"hidden": 3},
    ],
)
def test_bad_settings_are_refused(bad: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        RL2Config.model_validate(bad)


class Pictures:
    """The bright half of an 8 × 8 picture tells the paying action: the same side, or the other, by task."""

    observation_space = gym.spaces.Box(0, 255, (8, 8), np.uint8)
    action_space = gym.spaces.Discrete(2)
    horizon = 1

    def __init__(self, in_turn: bool = False) -> None:
        self.in_turn = in_turn

    def sample(self, num_tasks: int, generator: torch.Generator, split: str) -> TensorTasks:
        return TensorTasks({"other": torch.randint(2, (num_tasks,), generator=generator)})

    def make_envs(self, num_envs: int, device: torch.device) -> TensorVectorEnv:
        return TensorVectorEnv(self, _Sides(self.in_turn), num_envs, device)

    def optimal_return(self, tasks: TensorTasks) -> Tensor:
        return torch.ones(len(tasks))

    def bayes_optimal_return(self, num_episodes: int) -> float | None:
        return num_episodes - 0.5


class _Sides:
    """The state is the bright side: anew for every episode the left, 0, in three of four, or by its number.

    Were the sides as likely, no two of side, action and reward would tell anything without the third, and
    learning would wait long on a plateau.
    """

    def __init__(self, in_turn: bool) -> None:
        self.in_turn = in_turn

    def prepare(self, tasks: TensorTasks) -> TensorTasks:
        return tasks

    def begin(self, tasks: TensorTasks, episode: Tensor, generator: torch.Generator) -> Tensor:
        if self.in_turn:
            return episode % 3 % 2
        return (torch.rand(len(tasks), generator=generator) < 0.25).long()

    def observe(self, state: Tensor) -> Tensor:
        bright = torch.arange(8).ge(4) == state.bool().reshape(-1, 1, 1)  # [B, 1, 8]
        return (bright.expand(-1, 8, 8) * 200 + 20).to(torch.uint8)

    def step(
        self, tasks: TensorTasks, state: Tensor, action: Tensor, generator: torch.Generator
    ) -> Transition:
        paid = (action == (state ^ tasks.parameters["other"])).float()
        return Transition(state, paid, torch.ones_like(state, dtype=torch.bool), paid, 1 - paid)


PICTURES = Pictures()


def _image_learner(seed: int = 0, **settings: object) -> RL2Learner:
    config = RL2Config.model_validate({"hidden_size": 16, **settings})
    return RL2Learner(PICTURES.observation_space, PICTURES.action_space, config, seed=seed)


def test_on_vectors_the_network_is_what_it_was() -> None:
    """Names and order of what a checkpoint holds; no encoder is built, and none drawn."""
    network = _learner().network
    lstm = [f"core.lstm.{name}_l0" for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
    heads = [f"{head}.{name}" for head in ("policy.linear", "value") for name in ("weight", "bias")]
    assert list(network.state_dict()) == ["reward_scale", *lstm, *heads]
    assert [name for name, _ in network.named_parameters()] == [*lstm, *heads]
    x = torch.randn(3, 2, 6)
    assert network.perceive(x) is x


def test_on_images_acting_step_by_step_agrees_with_the_fused_pass() -> None:
    learner, calls = _image_learner(), []
    assert learner.network.encoder is not None
    learner.network.encoder.register_forward_hook(lambda *call: calls.append(call[2].shape))
    worker = RolloutWorker(PICTURES)
    (trajectory,) = worker.run(learner.agent, sample_tasks(PICTURES, 5, 0, "train"), 6, 1).phases
    assert calls == [(5, 64)] * 6  # once for a step of all rows
    calls.clear()
    inputs = learner.network.inputs(trajectory.inputs)
    policy, _ = learner.network(inputs)
    assert calls == [(6, 5, 64)]  # once for all of the trials
    torch.testing.assert_close(policy.log_prob(trajectory.action), trajectory.log_prob, atol=1e-5, rtol=1e-5)
    assert inputs.shape == (6, 5, 64 + 2 + 2)
    assert torch.equal(inputs[..., :64], trajectory.inputs.observation.flatten(2).float())
    assert set(inputs[..., :64].unique().tolist()) == {20, 220}


def test_an_update_moves_the_encoder_and_a_checkpoint_holds_it() -> None:
    ours, twin = _image_learner(), _image_learner(seed=9)
    trial = RolloutWorker(PICTURES).run(ours.agent, sample_tasks(PICTURES, 8, 0, "train"), 4, 1)
    before = {name: p.clone() for name, p in ours.network.named_parameters()}
    ours.update(trial, 0.0, generator(0, "first"))
    assert all(
        not torch.equal(p, before[name]) for name, p in ours.network.encoder.named_parameters("encoder")
    )
    twin.load_state_dict({name: tensor.clone() for name, tensor in ours.state_dict().items()})
    metrics = [learner.update(trial, 0.5, generator(0, "second")) for learner in (ours, twin)]
    assert metrics[0] == metrics[1]


class _Fixed(RL2Agent):
    """Draws from a stream of its own, so that worker and predictor draw the same."""

    def begin(self, num_tasks: int, generator: torch.Generator, num_steps: int | None = None) -> RL2Carry:
        return super().begin(num_tasks, generator.manual_seed(7))


def test_a_predictor_on_images_sees_and_does_what_the_worker_does() -> None:
    family, agent = Pictures(in_turn=True), _Fixed(_image_learner().network)
    task = sample_tasks(family, 1, 0, "test")
    (rolled,) = RolloutWorker(family).run(agent, task, 12, 0).phases
    predictor = Predictor(agent, family.observation_space, family.action_space, num_episodes=12)
    env = TrialEnv(TaskEnv(family), 12, tasks=task)
    observation, _ = env.reset(seed=3)
    state, over, seen, actions = None, False, [], []
    while not over:
        assert observation in env.observation_space
        seen.append(torch.as_tensor(observation))
        action, state = predictor.predict(observation, state)
        actions.append(int(action))
        observation, _, over, _, _ = env.step(action)
    assert actions == rolled.action[:, 0].tolist() and len(set(actions)) == 2
    assert torch.equal(torch.stack(seen), agent.network.inputs(rolled.inputs)[:, 0])
    assert torch.equal(seen[2][:64].reshape(8, 8), rolled.inputs.observation[2, 0].float())  # raw pixels


def test_learns_what_a_picture_means() -> None:
    """After one guess everything is known: 5.5 of 6 is optimal.

    Chance is 3, and so is seeing without memory; memory without seeing is 4.25 at most.
    """
    learner = _image_learner(hidden_size=32, learning_rate=5e-3, discount=0.0, minibatches=4)
    worker = RolloutWorker(PICTURES)
    meta_train(learner, PICTURES, worker, Budget(80, 64, 6), 0, lambda row: False)
    tasks = sample_tasks(PICTURES, 300, 0, "test")
    rewards = worker.run(learner.agent, tasks, 6, 5).per_task("expected_reward")
    assert rewards is not None and rewards.sum(dim=1).mean() > 5.0


@pytest.mark.parametrize("learner", [MAMLTRPOLearner, MAMLRegressionLearner])
def test_maml_refuses_images_and_says_who_takes_them(learner: Any) -> None:
    config = MAMLTRPOConfig() if learner is MAMLTRPOLearner else MAMLRegressionConfig()
    action_space = gym.spaces.Box(-1, 1, (2,))
    said = (
        "expected vector observations, got an image Box(0, 255, (8, 8), uint8); agent rl2 takes images, or "
        "flatten and scale them with gymnasium.wrappers"
    )
    with pytest.raises(UserError, match=f"^{re.escape(said)}$"):
        learner(PICTURES.observation_space, action_space, config)
    learner(gym.spaces.Box(0, 255, (64,), np.uint8), action_space, config)


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
        return Transition(state, torch.ones(len(action)), action == 0, None, None)


def test_the_baseline_does_not_know_how_long_an_episode_will_last() -> None:
    """A value that counts the steps that came explains the return, whatever the agent did."""
    family = _Walkout(num_arms=2)
    config = RL2Config(hidden_size=16, learning_rate=1e-2, reward_signal="sampled")
    learner = RL2Learner(family.observation_space, family.action_space, config)
    budget = Budget(updates=25, trials_per_update=64, episodes_per_trial=2)
    returns: list[float] = []
    worker = RolloutWorker(family)
    meta_train(learner, family, worker, budget, 0, lambda row: bool(returns.append(row["mean_return"])))
    assert returns[0] < 6 and returns[-1] > 14  # of 16; chance earns about 4


RECALLING = {"embedding_sizes": [6, 5], "previous_observation": True}


@pytest.mark.parametrize("tasks", [16, 80])
def test_embedding_and_recalling_act_as_they_are_replayed(tasks: int) -> None:
    law = TabularMDPs(num_states=4, num_actions=3, horizon=5)
    config = RL2Config.model_validate({"hidden_size": 8, **RECALLING})
    learner = RL2Learner(law.observation_space, law.action_space, config)
    (trajectory,) = RolloutWorker(law).run(learner.agent, sample_tasks(law, tasks, 0, "train"), 3, 1).phases
    policy, _ = learner.network(learner.network.inputs(trajectory.inputs))
    torch.testing.assert_close(policy.log_prob(trajectory.action), trajectory.log_prob, atol=1e-5, rtol=1e-5)
    learner.update(Trial(sample_tasks(law, tasks, 0, "train"), (trajectory,)), 0.0, torch.Generator())
    assert all(value.grad is not None for value in learner.network.embedding.parameters())


def test_what_is_recalled_is_the_observation_before_across_episodes_and_nothing_at_first() -> None:
    law = TabularMDPs(num_states=4, num_actions=3, horizon=5)
    config = RL2Config.model_validate({"hidden_size": 8, **RECALLING})
    learner = RL2Learner(law.observation_space, law.action_space, config)
    (trajectory,) = RolloutWorker(law).run(learner.agent, sample_tasks(law, 7, 0, "train"), 3, 1).phases
    inputs = learner.network.inputs(trajectory.inputs)  # [T, B, 4 + 4 + 3 + 2]
    assert inputs.shape == (15, 7, 13)
    assert torch.equal(inputs[1:, :, 4:8], inputs[:-1, :, :4]) and not inputs[0, :, 4:8].any()


def test_pictures_are_not_recalled() -> None:
    picture = gym.spaces.Box(0, 255, (36, 36, 3), np.uint8)
    config = RL2Config.model_validate({"previous_observation": True})
    with pytest.raises(UserError, match=r"previous_observation: expected false where observations are pict"):
        RL2Learner(picture, BANDITS.action_space, config)
