"""The transformer core: against torch's own layers, causality, and what its cache remembers."""

import copy
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rl2meta.agents.cores.core import Position, Seen
from rl2meta.agents.cores.transformer import TransformerConfig, TransformerCore
from rl2meta.agents.ppo import PPO
from rl2meta.agents.rl2 import RL2Config, rl2_learner
from rl2meta.envs.bandits import BernoulliBandits
from rl2meta.envs.tabular import TabularMDPs
from rl2meta.errors import UserError
from rl2meta.interop import Predictor
from rl2meta.learner_state import seeded
from rl2meta.randomness import generator
from rl2meta.rollout import RolloutWorker
from rl2meta.tasks import sample_tasks
from rl2meta.training import Budget, meta_train
from rl2meta.trial import TrialLength

BOX, PICTURE = gym.spaces.Box(-np.inf, np.inf, (3,)), gym.spaces.Box(0, 255, (6, 5), np.uint8)
FIELDS = ("observation", "action", "reward", "first")


def build(observed: gym.Space[Any] = BOX, **settings: Any) -> TransformerCore:
    """Return a core in float64 whose attention is far from uniform."""

    def make() -> TransformerCore:
        sizes = {"heads": 3, "head_size": 4, "num_layers": 2, **settings}
        core = TransformerCore(observed, gym.spaces.Discrete(2), TransformerConfig(**sizes))
        for weight in core.parameters():
            nn.init.normal_(weight, std=0.5)
        return core

    return seeded(make, 0).double()


def lives(steps: int, rows: int, length: int | None = None, seed: int = 0, size: int = 3) -> Seen:
    """Random whole trials in float64."""
    source = generator(seed, "lives")

    def drawn(*shape: int) -> Tensor:
        return torch.randn(steps, rows, *shape, generator=source, dtype=torch.float64)

    first = torch.rand(steps, rows, generator=source) < 0.3
    first[0] = True
    return Seen(drawn(size), drawn(2), drawn(), first, length)


def step_of(trials: Seen, t: int) -> Seen:
    position = Position(trials.previous_observation[t], trials.episode_step[t], t)
    return Seen(*(getattr(trials, name)[t] for name in FIELDS), trials.trial_length, position)


def stepped(core: TransformerCore, trials: Seen, told: int | None = None) -> Tensor:
    """Return the features step by step, after a begin that was told a length."""
    state, features = core.begin(trials.first.shape[1], told), []
    for t in range(len(trials.first)):
        output, state = core.step(step_of(trials, t), state)
        features.append(output.features)
    return torch.stack(features)


def torchs_own(core: TransformerCore, config: TransformerConfig) -> nn.TransformerEncoder:
    """Return torch's encoder with the weights of the core."""
    width = config.heads * config.head_size
    sizes = width, config.heads, config.feedforward_factor * width
    layer = nn.TransformerEncoderLayer(*sizes, dropout=0.0, batch_first=True, norm_first=True)
    encoder = nn.TransformerEncoder(layer, config.num_layers, core.norm, enable_nested_tensor=False)
    for theirs, mine in zip(encoder.layers, core.blocks, strict=True):
        pairs = {
            "self_attn.in_proj_": mine.attention_in,
            "self_attn.out_proj.": mine.attention_out,
            "norm1.": mine.attention_norm,
            "norm2.": mine.mlp_norm,
            "linear1.": mine.mlp[0],
            "linear2.": mine.mlp[2],
        }
        state = {f"{name}{kind}": getattr(of, kind) for name, of in pairs.items() for kind in KINDS}
        theirs.load_state_dict(state)
    return encoder.double()


KINDS = ("weight", "bias")


@pytest.mark.parametrize(
    "sizes", [{}, {"num_layers": 1, "heads": 1}, {"heads": 2, "head_size": 5, "feedforward_factor": 3}]
)
def test_its_features_are_those_of_torchs_encoder_with_the_same_weights(sizes: dict[str, int]) -> None:
    config = TransformerConfig(**{"heads": 3, "head_size": 4, "num_layers": 2, **sizes})
    core, trials = build(**sizes), lives(13, 5, TrialLength(13, 6))
    facts = trials.reward.unsqueeze(-1), trials.first.unsqueeze(-1).double(), trials.elapsed
    inputs = torch.cat([trials.observation, trials.action, *facts], dim=-1)
    x = (inputs @ core.embedding.weight.T + core.embedding.bias).transpose(0, 1)  # [B, T, width]
    mask = nn.Transformer.generate_square_subsequent_mask(13, dtype=torch.float64)
    expected = torchs_own(core, config)(x, mask=mask).transpose(0, 1)
    torch.testing.assert_close(core(trials).features, expected, atol=1e-10, rtol=0)
    with torch.no_grad():
        torch.testing.assert_close(stepped(core, trials, 13), expected, atol=1e-10, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("name", FIELDS)
def test_a_step_changes_what_is_known_from_then_on_and_nothing_before(name: str) -> None:
    core, trials, t = build(previous_observation=True), lives(20, 4, TrialLength(20, 20)), 11
    part = getattr(trials, name).clone()
    part[t] = ~part[t] if name == "first" else part[t] + 1
    fields = (part if each == name else getattr(trials, each) for each in FIELDS)
    change = (core(Seen(*fields, trials.trial_length)).features - core(trials).features).abs().amax(dim=-1)
    assert (change[:t] == 0).all()
    assert (change[t:] > 1e-9).all()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-4)])
@pytest.mark.parametrize("learning", [True, False])
@pytest.mark.parametrize("told", [None, 60, 7, 1, 10**12])
def test_step_after_step_is_the_whole_trial_however_long_it_was_said_to_be(
    dtype: torch.dtype, tolerance: float, learning: bool, told: int | None
) -> None:
    core, trials = build().to(dtype), lives(60, 5, 60)
    fields = (getattr(trials, name) for name in FIELDS)
    trials = Seen(*(part if part.dtype == torch.bool else part.to(dtype) for part in fields), 60)
    with torch.set_grad_enabled(learning):
        whole, single = core(trials).features, stepped(core, trials, told)
    assert whole.shape == (60, 5, core.out_features) and whole.dtype == dtype
    torch.testing.assert_close(single, whole, atol=tolerance, rtol=0)


@torch.no_grad()
def test_pictures_are_encoded_and_every_pixel_counts() -> None:
    core, trials = build(PICTURE), lives(6, 2, 6, size=30)
    trials = Seen(trials.observation.abs() * 100, *(getattr(trials, name) for name in FIELDS[1:]), 6)
    torch.testing.assert_close(stepped(core, trials, 6), core(trials).features, atol=1e-10, rtol=0)
    other = trials.observation.clone()
    other[2, :, 17] += 90
    changed = core(Seen(other, *(getattr(trials, name) for name in FIELDS[1:]), 6)).features
    assert ((changed - core(trials).features)[-1].abs().amax(dim=-1) > 1e-9).all()
    with pytest.raises(UserError, match="previous_observation"):
        build(PICTURE, previous_observation=True)


@torch.no_grad()
@pytest.mark.parametrize("told", [None, 12, 5])
def test_a_state_that_is_read_again_knows_only_its_own_past(told: int | None) -> None:
    """Two trials with the same beginning, in turns from the same state; 12 leaves room, 5 is full there."""
    core, one, other = build(), lives(12, 3), lives(12, 3, seed=1)
    # the two part after step 5
    other = Seen(*(torch.cat([getattr(one, name)[:5], getattr(other, name)[5:]]) for name in FIELDS))
    state = core.begin(3, told)
    for t in range(5):
        _, state = core.step(step_of(one, t), state)
    copied, states = copy.deepcopy(state), [state, state]
    for t in range(5, 12):
        for i, trials in enumerate((one, other)):
            output, states[i] = core.step(step_of(trials, t), states[i])
            torch.testing.assert_close(output.features, core(trials).features[t], atol=1e-10, rtol=0)
    output, _ = core.step(step_of(other, 5), copied)
    torch.testing.assert_close(output.features, core(other).features[5], atol=1e-10, rtol=0)


def test_gradients_pass_through_the_steps_that_had_them_and_only_those() -> None:
    """Three steps without gradients, then with: the loss of a whole trial whose beginning is a constant."""
    core, trials = build(num_layers=1), lives(6, 2)
    with torch.no_grad():
        state = core.begin(2, 6)
        for t in range(3):
            _, state = core.step(step_of(trials, t), state)
    reward = trials.reward.clone().requires_grad_()
    trials = Seen(trials.observation, trials.action, reward, trials.first)
    for t in range(3, 6):
        output, state = core.step(step_of(trials, t), state)
    (mine,) = torch.autograd.grad(output.features.sin().sum(), reward)
    (whole,) = torch.autograd.grad(core(trials).features[5].sin().sum(), reward)
    torch.testing.assert_close(mine[3:], whole[3:], atol=1e-10, rtol=0)
    assert (mine[:3] == 0).all() and whole[:3].abs().min() > 0


def test_memory_for_a_trial_of_unlikely_length_is_not_taken_at_once() -> None:
    for told, room in ((None, 16), (100, 100), (10**12, 1024)):
        cache = build().begin(2, told).cache
        assert [kept.shape for kept in cache.layers] == [(2, 2, 3, room, 4)] * 2


@torch.no_grad()
def test_a_longer_trial_takes_more_room_by_doubling() -> None:
    core, rooms = build(), []
    trials, state = lives(40, 1), core.begin(1, 5)
    for t in range(40):
        _, state = core.step(step_of(trials, t), state)
        rooms.append(state.cache.layers[0].shape[-2])
    assert sorted(set(rooms)) == [5, 10, 20, 40] and rooms[4] == 5 and rooms[5] == 10


def _learner(law: Any, **settings: Any) -> PPO:
    core = {"name": "transformer", "heads": 2, "head_size": 8, "num_layers": 2}
    config = RL2Config.model_validate({"core": core, **settings})
    return rl2_learner(law.observation_space, law.action_space, config)


def test_at_the_first_update_the_agents_policy_is_the_learners() -> None:
    """What acting and learning compute agree through agent, worker and PPO, where episodes have a horizon."""
    law = TabularMDPs(num_states=3, num_actions=2, horizon=4)
    learner = _learner(law, epochs=1, minibatches=1)
    with torch.no_grad():
        learner.network.policy.linear.weight.mul_(3)  # a policy far from uniform
    trial = RolloutWorker(law).run(learner.agent, sample_tasks(law, 9, 0, "train"), 3, 0)
    (trajectory,) = trial.phases
    policy, _ = learner.network(learner.network.seen(trajectory.inputs, trajectory.most_steps))
    noted = trajectory.notes["log_prob"]
    torch.testing.assert_close(policy.log_prob(trajectory.action), noted, atol=1e-4, rtol=1e-4)
    assert noted.std() > 0.1
    assert learner.update(trial, 0.0, generator(0, "update"))["kl"] < 1e-6


@torch.no_grad()
def test_a_predictor_may_ask_again_from_an_earlier_state() -> None:
    """Rows whose trials begin at different times, told no length; the state of each call stays good."""
    law = TabularMDPs(num_states=3, num_actions=2, horizon=4)
    learner = _learner(law)
    predictor = Predictor(learner.agent, law.observation_space, law.action_space)
    source = np.random.default_rng(0)
    state, calls = None, []
    for t in range(25):
        seen = np.concatenate(
            [np.eye(3)[source.integers(3, size=2)], np.eye(2)[source.integers(2, size=2)]], 1
        )
        seen = np.concatenate([seen, source.normal(size=(2, 1)), [[float(t % 4 == 0)]] * 2], 1)
        call = seen.astype(np.float32), state, np.array([t == 0, t in (0, 9)])
        action, state = predictor.predict(*call, deterministic=True)
        calls.append((call, action, [row.pending[1].notes["value"] for row in state]))
    for call, action, value in calls[::-1]:
        again, later = predictor.predict(*call, deterministic=True)
        assert np.array_equal(again, action)
        assert [row.pending[1].notes["value"] for row in later] == value


def test_it_learns_bandits_beyond_chance() -> None:
    law, learned = BernoulliBandits(num_arms=3), []
    learner = _learner(law, entropy_coefficient=0.01, learning_rate=3e-3)

    def note(row: Any) -> bool:
        learned.append(row["mean_return"])
        return False

    meta_train(learner, law, RolloutWorker(law), Budget(50, 64, 10), 0, note)

    assert sum(learned[-5:]) / 5 > 5.5  # chance has 5, the best arm 7.5
