"""MLSH against what it must equal: tasks one by one, torch's Adam, sub-policies alone, sums by hand."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rl2meta.adam import Adam
from rl2meta.agents.mlsh import MLSH, MLSHAgent, MLSHConfig, MLSHLearner
from rl2meta.agents.mlsh_master import Choices, MasterConfig, MasterLoop, Masters
from rl2meta.envs.bandits import BernoulliBandits
from rl2meta.envs.moving_bandits import MovingBandits
from rl2meta.envs.navigation import PointNavigation
from rl2meta.errors import UserError
from rl2meta.experiments.agent_checks import check_agent
from rl2meta.interop import Predictor, TrialEnv
from rl2meta.randomness import generator
from rl2meta.rollout import RolloutWorker
from rl2meta.tasks import sample_tasks
from rl2meta.trial import Trajectory, Trial

SMALL: dict[str, Any] = {"hidden_sizes": [5], "master_hidden_sizes": [4], "duration": 3, "warm_up": 2}
POINTS, ROAM = (
    MovingBandits(horizon=8),
    PointNavigation(horizon=8, goal_radius=0.4),
)  # the latter may end early


def learner_on(family: Any, **settings: Any) -> MLSHLearner:
    config = MLSHConfig(**{**SMALL, **settings})
    return MLSHLearner(family.observation_space, family.action_space, config, seed=1)


def lived(learner: MLSHLearner, family: Any, phases: int = 4, num_tasks: int = 5) -> Trial:
    tasks = sample_tasks(family, num_tasks, 0, "train")
    episodes = phases * learner.config.episodes_per_phase
    return RolloutWorker(family).run(learner.agent, tasks, episodes, 0)


def doubled(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: weight.double() for name, weight in weights.items()}


def some_choices(num_tasks: int, rows: int, size: int, kinds: int) -> Choices:
    source = generator(5)
    observation, *floats = (
        torch.randn(num_tasks, rows, *more, generator=source, dtype=torch.float64)
        for more in ((size,), (), (), ())
    )
    chosen = torch.randint(kinds, (num_tasks, rows), generator=source)
    weight = (torch.rand(num_tasks, rows, generator=source) < 0.8).double()
    return Choices(observation, chosen, -floats[0].abs() - 0.5, floats[1], floats[2], weight)


def one_by_one(loop: MasterLoop, masters: Masters, choices: Choices) -> list[dict[str, Tensor]]:
    """Each task alone: an ordinary network, autograd, and torch's Adam."""
    cfg, results = loop.config, []
    for task in range(len(choices.weight)):
        network = nn.Sequential(nn.Sequential(nn.Linear(3, 4), nn.Tanh()), nn.Linear(4, 3)).double()
        network.load_state_dict({name: weight[task] for name, weight in masters.weights.items()})
        adam = Adam(network.parameters(), lr=cfg.master_learning_rate)
        x, chosen, old, advantage, target, weight = (field[task] for field in choices)
        for _ in range(cfg.master_epochs):
            outputs = network(x)
            policy = torch.distributions.Categorical(
                probs=(1 - cfg.random_choices) * outputs[:, :2].softmax(dim=1) + cfg.random_choices / 2
            )
            ratio = (policy.log_prob(chosen) - old).exp()
            low, high = 1 - cfg.master_clip_range, 1 + cfg.master_clip_range
            gain = torch.minimum(ratio * advantage, ratio.clamp(low, high) * advantage)
            error = (outputs[:, 2] - target) ** 2
            each = -gain + cfg.master_value_coefficient * error
            each = each - cfg.master_entropy_coefficient * policy.entropy()
            adam.zero_grad()
            ((each * weight).sum() / weight.sum()).backward()  # type: ignore[no-untyped-call]
            adam.step()
        moments = {name: adam.state[weight] for name, weight in network.named_parameters()}
        results.append(
            {f"w {name}": weight.detach() for name, weight in network.named_parameters()}
            | {f"m {name}": each["exp_avg"] for name, each in moments.items()}
            | {f"v {name}": each["exp_avg_sq"] for name, each in moments.items()}
        )
    return results


def test_all_masters_at_once_learn_as_each_alone() -> None:
    config = MasterConfig(
        master_hidden_sizes=[4], random_choices=0.2, master_entropy_coefficient=0.1, master_epochs=5
    )
    loop, choices = MasterLoop(3, config), some_choices(4, 7, 3, 2)
    masters = loop.begin(4, generator(0))
    noise = generator(1)
    weights = {
        name: weight + 0.3 * torch.randn(weight.shape, generator=noise, dtype=torch.float64)
        for name, weight in doubled(masters.weights).items()
    }
    masters = Masters(weights, doubled(masters.first), doubled(masters.second), 0)
    wanted = one_by_one(loop, masters, choices)
    got = loop.learn(loop.learn(masters, choices)._replace(steps=5), choices)  # two phases: moments stay
    twice = one_by_one(MasterLoop(3, config.model_copy(update={"master_epochs": 10})), masters, choices)
    once = loop.learn(masters, choices)
    for each, alone in ((once, wanted), (got, twice)):
        for kind, stacked in (("w", each.weights), ("m", each.first), ("v", each.second)):
            for name, values in stacked.items():
                expected = torch.stack([task[f"{kind} {name}"] for task in alone])
                torch.testing.assert_close(values, expected, rtol=1e-6, atol=1e-9)


def test_begin_makes_new_masters_that_prefer_nothing() -> None:
    learner = learner_on(POINTS)
    loop = learner.agent.loop
    carry, again, other = (learner.agent.begin(3, generator(seed)) for seed in (0, 0, 1))
    for name, weight in carry.masters.weights.items():
        assert torch.equal(weight, again.masters.weights[name])
        assert not carry.masters.first[name].any() and not carry.masters.second[name].any()
        if weight.any():  # hidden layers: each task has its own
            assert not torch.equal(weight, other.masters.weights[name])
            assert not torch.equal(weight[0], weight[1])
    log_probs, value = loop.read(carry.masters.weights, torch.randn(3, 4, 6, generator=generator(2)))
    assert carry.masters.steps == 0 and not value.any()
    torch.testing.assert_close(log_probs.exp(), torch.full((3, 4, 2), 0.5))


@pytest.mark.parametrize("family", [POINTS, ROAM], ids=str)
def test_a_choice_holds_for_its_duration(family: Any) -> None:
    learner = learner_on(family)
    phase = lived(learner, family).phases[0]
    for name in ("sub_policy", "master_log_prob", "master_value"):
        blocks = phase.notes[name].split(3)
        held = [(block == block[0])[phase.mask[3 * i : 3 * i + 3]].all() for i, block in enumerate(blocks)]
        assert all(held), name
    starts = phase.notes["sub_policy"][::3]
    assert (starts[1:] != starts[:-1]).any()  # and later ones may differ


@pytest.mark.parametrize("family", [POINTS, ROAM], ids=str)
@pytest.mark.parametrize("lanes", [1, 3])
def test_choices_are_those_of_every_lane_by_hand(family: Any, lanes: int) -> None:
    learner = learner_on(family, episodes_per_phase=lanes, reward_unit=2.0)
    loop, cfg = learner.agent.loop, learner.config
    phase = lived(learner, family, phases=2).phases[1]
    got = loop.choices(phase, learner.network.encode(phase.inputs.observation), 2.0)
    assert got.weight.shape == (5, lanes * 3)
    advantages = torch.zeros(5, lanes, 3)
    for task in range(5):
        for lane in range(lanes):
            b = task * lanes + lane
            alive = [i for i in range(3) if phase.mask[3 * i, b]]
            lengths = {i: sum(cfg.master_discount**j for j in range(3 - i)) for i in range(3)}
            reward = [float((phase.reward * phase.mask)[3 * i : 3 * i + 3, b].sum()) / 6 for i in range(3)]
            value = [float(phase.notes["master_value"][3 * i, b]) * lengths[i] for i in alive]
            follows = 0.0
            for i in reversed(alive):
                later = value[i + 1] if i + 1 in alive else 0.0
                delta = reward[i] + cfg.master_discount * later - value[i]
                follows = delta + cfg.master_discount * cfg.master_trace * follows
                advantages[task, lane, i] = follows
                row = lane * 3 + i
                assert float(got.value_target[task, row]) == pytest.approx(
                    (follows + value[i]) / lengths[i], abs=1e-5
                )
                assert torch.equal(got.observation[task, row], phase.inputs.observation[3 * i, b])
                assert got.sub_policy[task, row] == phase.notes["sub_policy"][3 * i, b]
            assert got.weight[task, 3 * lane : 3 * lane + 3].tolist() == [float(i in alive) for i in range(3)]
    weight = got.weight.reshape(5, lanes, 3)
    if lanes > 1:
        mean = (advantages * weight).sum(dim=1, keepdim=True) / weight.sum(dim=1, keepdim=True).clamp(min=1)
        advantages = (advantages - mean) * weight
    size = (advantages.square() * weight).sum(dim=(1, 2)) / weight.sum(dim=(1, 2))
    wanted = advantages / (size.sqrt() + 1e-8).reshape(-1, 1, 1)
    torch.testing.assert_close(got.advantage.reshape(5, lanes, 3), wanted, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("lanes", [3, 5, 8, 16])
def test_where_all_lanes_earn_the_same_no_choice_is_better(lanes: int) -> None:
    """Whatever the value says: the mean of equal numbers is not always that number, by rounding."""
    family = BernoulliBandits(num_arms=2)
    learner = learner_on(family, episodes_per_phase=lanes)
    phase = lived(learner, family, phases=1, num_tasks=200).phases[0]
    value = torch.rand(200, generator=generator(0)).repeat_interleave(lanes).unsqueeze(0)
    for reward in (torch.ones_like(phase.reward), torch.zeros_like(phase.reward)):
        notes = {**phase.notes, "master_value": value}
        alike = replace(phase, reward=reward, notes=notes)
        choices = learner.agent.loop.choices(alike, learner.network.encode(phase.inputs.observation), 1.0)
        assert choices.advantage.abs().max() < 0.05


def test_lanes_one_after_another_learn_without_the_horizon_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where all episodes are equally long, their length is the horizon; choices hold as in a rollout."""
    learner, acted, seen = learner_on(POINTS, episodes_per_phase=2), list[int](), list[Trajectory]()
    choices = MasterLoop.choices

    def noted(loop: MasterLoop, phase: Trajectory, *others: Any) -> Choices:
        seen.append(phase)
        return choices(loop, phase, *others)

    monkeypatch.setattr(MasterLoop, "choices", noted)
    for horizon in (POINTS.horizon, None):
        env = gym.make("rl2meta/MovingBandits-v0", horizon=POINTS.horizon)
        trials, state, done = TrialEnv(env, 6), None, False
        predictor = Predictor(learner.agent, env.observation_space, env.action_space, horizon=horizon)
        observation, _ = trials.reset(seed=0)
        while not done:
            action, state = predictor.predict(observation, state)
            observation, _, done, _, _ = trials.step(action)
            acted.append(int(action))
    assert acted[: len(acted) // 2] == acted[len(acted) // 2 :] and len(seen) == 4
    for phase in seen:
        for block in phase.notes["sub_policy"].split(3):
            assert phase.mask.shape == (POINTS.horizon, 2) and (block == block[0]).all()


@pytest.mark.parametrize("family", [POINTS, ROAM], ids=str)
def test_sub_policies_side_by_side_are_each_alone(family: Any) -> None:
    learner = learner_on(family, num_sub_policies=3)
    network, (layers,) = learner.network, learner.network._layers
    observation = torch.randn(7, network.in_features, generator=generator(0))
    parameters, value = network(observation)
    for k in range(3):
        own = {name.replace("/", "."): weight[k] for name, weight in network.stacked_weights.items()}
        layers.load_state_dict(own)
        alone = layers.head.parameters_of(layers.body(observation))
        torch.testing.assert_close(parameters[k], alone)
        torch.testing.assert_close(value[k], layers.value(observation).squeeze(-1))


def test_notes_are_of_the_sub_policy_that_acted() -> None:
    learner = learner_on(POINTS)
    phase = lived(learner, POINTS).phases[1]
    parameters, _ = learner.network(learner.network.encode(phase.inputs.observation).flatten(0, 1))
    log_probs = parameters.log_softmax(dim=-1).movedim(0, 1).unflatten(0, phase.mask.shape)  # [T, B, K, A]
    chosen = log_probs.take_along_dim(phase.notes["sub_policy"][..., None, None], dim=2).squeeze(2)
    torch.testing.assert_close(
        chosen.gather(2, phase.action.unsqueeze(2)).squeeze(2), phase.notes["log_prob"]
    )


@pytest.mark.parametrize("family", [POINTS, ROAM], ids=str)
def test_each_sub_policy_moves_by_its_own_steps(family: Any) -> None:
    learner = learner_on(family, max_gradient_norm=1e6)
    batch = learner.steps([lived(learner, family)])[0]
    old = {name: weight.detach().clone() for name, weight in learner.network.stacked_weights.items()}
    learner._step([batch], 0.01)
    for k in range(2):
        alone = learner_on(family, max_gradient_norm=1e6)
        mine = (batch.sub_policy == k) & (batch.mask > 0)
        alone._step([type(batch)(*(field[mine] for field in batch))], 0.01)
        for name, weight in learner.network.stacked_weights.items():
            gradient = alone.network.stacked_weights[name].grad
            assert gradient is not None and weight.grad is not None
            torch.testing.assert_close(weight.grad[k], gradient[k], rtol=1e-4, atol=1e-6)
            assert not gradient[1 - k].any() and not torch.equal(weight[k], old[name][k])
        own = batch.advantage[mine]
        assert float(own.mean()) == pytest.approx(0, abs=1e-4)
        assert float(own.std(correction=0)) == pytest.approx(1, abs=1e-2)


def test_shares_are_those_of_the_steps_that_were_lived() -> None:
    learner = learner_on(ROAM)
    trial = lived(learner, ROAM)
    joint = trial.phases[2:]
    assert not all(phase.mask.all() for phase in joint)  # some episodes end early
    acted = torch.cat([phase.notes["sub_policy"][phase.mask] for phase in joint]).double()
    told = learner.update(trial, 0.0, generator(0))
    assert told["share_1"] == pytest.approx(float(acted.mean()), abs=1e-6)
    assert told["share_0"] == pytest.approx(1 - float(acted.mean()), abs=1e-6)


@pytest.mark.parametrize(("phases", "warm_up", "joint"), [(4, 2, 2), (4, 3, 1), (2, 9, 1), (3, 0, 3)])
def test_sub_policies_learn_from_the_joint_phases(phases: int, warm_up: int, joint: int) -> None:
    learner = learner_on(POINTS, warm_up=warm_up)
    trial = lived(learner, POINTS, phases)
    (batch,) = learner.steps([trial])
    assert len(batch.mask) == joint * trial.phases[0].mask.numel()
    assert torch.equal(batch.action, torch.cat([phase.action.flatten() for phase in trial.phases[-joint:]]))


def test_random_choices_mix_the_policy() -> None:
    loop = MasterLoop(3, MasterConfig(master_hidden_sizes=[4], random_choices=0.1, num_sub_policies=4))
    weights = dict(loop.begin(1, generator(0)).weights)
    weights["1.bias"] = torch.tensor([[1e3, 0.0, 0.0, 0.0, 0.0]])
    log_probs, _ = loop.read(weights, torch.zeros(1, 1, 3))
    torch.testing.assert_close(log_probs.exp()[0, 0], torch.tensor([0.925, 0.025, 0.025, 0.025]))


def test_a_new_master_finds_the_sub_policy_that_pays() -> None:
    """Sub-policy k pulls arm k. The best arm is found in a few phases, with weights that never move."""
    family = BernoulliBandits(num_arms=2)
    learner = learner_on(family, episodes_per_phase=8, duration=1, master_clip_range=0.5)
    with torch.no_grad():
        for name, weight in learner.network.stacked_weights.items():
            weight.zero_()
            if name == "head/linear/bias":
                weight.copy_(50 * torch.eye(2))
    tasks = sample_tasks(family, 400, 0, "test")
    returns = RolloutWorker(family).run(learner.agent, tasks, 80, 0).per_episode("expected_reward")
    assert returns is not None
    first, last = (float(part.mean()) for part in (returns[:, :8], returns[:, -8:]))
    assert abs(first - 0.5) < 0.03 and last > 0.62  # 2/3 at best


@pytest.mark.parametrize("family", [BernoulliBandits(num_arms=3), PointNavigation(horizon=5)], ids=str)
def test_the_agent_keeps_the_contract(family: Any) -> None:
    few = {"master_epochs": 2, "epochs": 2, "minibatches": 2, "episodes_per_phase": 2}
    check_agent(MLSH, distribution=family, config=MLSHConfig(**SMALL, **few), num_tasks=4)
    assert isinstance(learner_on(family).agent, MLSHAgent)


def test_a_minibatch_may_be_all_padding() -> None:
    """Episodes that end at once leave hardly a step among all."""
    family = PointNavigation(horizon=50, side=0.5, goal_radius=0.69)
    learner = learner_on(family, episodes_per_phase=1)
    trial = lived(learner, family, phases=3, num_tasks=2)
    assert int(trial.phases[2].mask.sum()) < learner.config.minibatches
    assert all(map(math.isfinite, learner.update(trial, 0.0, generator(0)).values()))


def test_layers_may_be_left_out() -> None:
    learner = learner_on(ROAM, hidden_sizes=[], master_hidden_sizes=[])
    told = learner.update(lived(learner, ROAM), 0.0, generator(0))
    assert all(map(math.isfinite, told.values())) and told["gradient_norm"] > 0


IMAGE, MANY = gym.spaces.Box(0, 255, (8, 8, 3), np.uint8), gym.spaces.Discrete(2000)


@pytest.mark.parametrize("space", [IMAGE, MANY, gym.spaces.Discrete(10**7)], ids=str)
def test_observations_without_an_encoding_are_refused(space: gym.Space[Any]) -> None:
    with pytest.raises(UserError, match=r"expected .* discrete observations"):
        MLSHLearner(space, gym.spaces.Discrete(2), MLSHConfig())
