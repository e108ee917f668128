"""Agents on pictures: RL² sees, and learns what it sees; MAML says that it does not."""

import re
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import Tensor

from rl2meta.agents.cores.core import Seen
from rl2meta.agents.maml_regression import MAMLRegressionConfig, maml_regression_learner
from rl2meta.agents.maml_trpo import MAMLTRPOConfig, MAMLTRPOLearner
from rl2meta.agents.ppo import PPO, PPOAgent, PPOCarry
from rl2meta.agents.rl2 import RL2Config, rl2_learner
from rl2meta.envs.batched import TaskEnv, TensorVectorEnv, Transition
from rl2meta.errors import UserError
from rl2meta.interop import Predictor, TrialEnv
from rl2meta.randomness import generator
from rl2meta.rollout import RolloutWorker
from rl2meta.tasks import TensorTasks, sample_tasks
from rl2meta.training import Budget, meta_train


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
        return Transition(
            state,
            paid,
            torch.ones_like(state, dtype=torch.bool),
            {"expected_reward": paid, "regret": 1 - paid},
        )


PICTURES = Pictures()


def _image_learner(seed: int = 0, hidden_size: int = 16, **settings: object) -> PPO:
    config = RL2Config.model_validate({"core": {"hidden_size": hidden_size}, **settings})
    return rl2_learner(PICTURES.observation_space, PICTURES.action_space, config, seed=seed)


def _flat(seen: Seen) -> Tensor:
    """[..., observation size + action size + 2], as ``TrialEnv`` lays them."""
    flags = torch.stack([seen.reward, seen.first.float()], dim=-1)
    return torch.cat([seen.observation, seen.action, flags], dim=-1)


def _encoder(learner: PPO) -> torch.nn.Module:
    encoder = learner.network.core.input.encoder  # type: ignore[attr-defined]
    assert isinstance(encoder, torch.nn.Module)
    return encoder


def test_on_images_acting_step_by_step_agrees_with_the_fused_pass() -> None:
    learner, calls = _image_learner(), []
    _encoder(learner).register_forward_hook(lambda *call: calls.append(call[2].shape))
    worker = RolloutWorker(PICTURES)
    (trajectory,) = worker.run(learner.agent, sample_tasks(PICTURES, 5, 0, "train"), 6, 1).phases
    assert calls == [(5, 64)] * 6  # once for a step of all rows
    calls.clear()
    seen = learner.network.seen(trajectory.inputs)
    policy, _ = learner.network(seen)
    assert calls == [(6, 5, 64)]  # once for all of the trials
    torch.testing.assert_close(
        policy.log_prob(trajectory.action), trajectory.notes["log_prob"], atol=1e-5, rtol=1e-5
    )
    inputs = _flat(seen)
    assert inputs.shape == (6, 5, 64 + 2 + 2)
    assert torch.equal(inputs[..., :64], trajectory.inputs.observation.flatten(2).float())
    assert set(inputs[..., :64].unique().tolist()) == {20, 220}


def test_an_update_moves_the_encoder_and_a_checkpoint_holds_it() -> None:
    ours, twin = _image_learner(), _image_learner(seed=9)
    trial = RolloutWorker(PICTURES).run(ours.agent, sample_tasks(PICTURES, 8, 0, "train"), 4, 1)
    before = {name: p.clone() for name, p in ours.network.named_parameters()}
    ours.update(trial, 0.0, generator(0, "first"))
    assert all(
        not torch.equal(p, before[name]) for name, p in _encoder(ours).named_parameters("core.input.encoder")
    )
    twin.load_state_dict({name: tensor.clone() for name, tensor in ours.state_dict().items()})
    metrics = [learner.update(trial, 0.5, generator(0, "second")) for learner in (ours, twin)]
    assert metrics[0] == metrics[1]


def _former(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a checkpoint's tensors by the names of 0.1."""
    return {name.replace("network.core.input.", "network."): tensor.clone() for name, tensor in state.items()}


def test_a_checkpoint_with_the_names_of_earlier_versions_goes_on_with_the_same_bits() -> None:
    ours, twin = _image_learner(), _image_learner(seed=9)
    trial = RolloutWorker(PICTURES).run(ours.agent, sample_tasks(PICTURES, 8, 0, "train"), 4, 1)
    ours.update(trial, 0.0, generator(0, "first"))
    former = _former(ours.state_dict())
    assert "network.encoder.layers.0.weight" in former and not any("core.input" in name for name in former)
    twin.load_state_dict(former)
    metrics = [learner.update(trial, 0.5, generator(0, "second")) for learner in (ours, twin)]
    assert metrics[0] == metrics[1]


class _Fixed(PPOAgent):
    """Draws from a stream of its own, so that worker and predictor draw the same."""

    def begin(self, num_tasks: int, generator: torch.Generator, num_steps: int | None = None) -> PPOCarry:
        return super().begin(num_tasks, generator.manual_seed(7), num_steps)


def test_a_predictor_on_images_sees_and_does_what_the_worker_does() -> None:
    family, agent = Pictures(in_turn=True), _Fixed(_image_learner(reward_units="raw").network)
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
    assert torch.equal(torch.stack(seen), _flat(agent.network.seen(rolled.inputs))[:, 0])
    assert torch.equal(seen[2][:64].reshape(8, 8), rolled.inputs.observation[2, 0].float())  # raw pixels


def test_learns_what_a_picture_means() -> None:
    """After one guess everything is known: 5.5 of 6 is optimal.

    Chance is 3, and so is seeing without memory; memory without seeing is 4.25 at most.
    """
    learner = _image_learner(hidden_size=32, learning_rate=5e-3, discount=0.0, minibatches=4)
    worker = RolloutWorker(PICTURES)
    meta_train(learner, PICTURES, worker, Budget(45, 64, 6), 0, lambda row: False)
    tasks = sample_tasks(PICTURES, 300, 0, "test")
    rewards = worker.run(learner.agent, tasks, 6, 5).per_task("expected_reward")
    assert rewards is not None and rewards.sum(dim=1).mean() > 5.0


@pytest.mark.parametrize("learner", [MAMLTRPOLearner, maml_regression_learner])
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


@pytest.mark.parametrize("name", ["lstm", "gru"])
def test_pictures_are_not_recalled(name: str) -> None:
    picture = gym.spaces.Box(0, 255, (36, 36, 3), np.uint8)
    config = RL2Config.model_validate({"core": {"name": name, "previous_observation": True}})
    with pytest.raises(
        UserError, match=r"agent.core.previous_observation: expected false if observations are images"
    ):
        rl2_learner(picture, PICTURES.action_space, config)
