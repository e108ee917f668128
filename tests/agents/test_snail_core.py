"""The SNAIL core: against torch's own convolutions, causality, and what it remembers of long trials."""

import copy
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from rl2meta.agents.cores.core import Position, Seen
from rl2meta.agents.cores.snail import Attention, SNAILConfig, SNAILCore
from rl2meta.agents.cores.temporal import TemporalConvolutions
from rl2meta.agents.ppo import PPO
from rl2meta.agents.rl2 import RL2Config, rl2_learner
from rl2meta.envs.bandits import BernoulliBandits
from rl2meta.learner_state import seeded
from rl2meta.randomness import generator
from rl2meta.rollout import RolloutWorker
from rl2meta.training import Budget, meta_train

BOX = gym.spaces.Box(-np.inf, np.inf, (3,))
FIELDS = ("observation", "action", "reward", "first")
SMALL = {"span": 6, "filters": 4, "key_size": 5, "value_size": 3}


def build(**settings: Any) -> SNAILCore:
    """Return a small core in float64 whose attention is far from uniform."""

    def make() -> SNAILCore:
        core = SNAILCore(BOX, gym.spaces.Discrete(2), SNAILConfig(**{**SMALL, **settings}))
        for weight in core.parameters():
            nn.init.normal_(weight, std=0.5)
        return core

    return seeded(make, 0).double()


def lives(steps: int, rows: int, length: int | None = None, seed: int = 0) -> Seen:
    """Random whole trials in float64."""
    source = generator(seed, "lives")

    def drawn(*shape: int) -> Tensor:
        return torch.randn(steps, rows, *shape, generator=source, dtype=torch.float64)

    first = torch.rand(steps, rows, generator=source) < 0.3
    first[0] = True
    return Seen(drawn(3), drawn(2), drawn(), first, length)


def step_of(trials: Seen, t: int) -> Seen:
    position = Position(trials.previous_observation[t], trials.episode_step[t], t)
    return Seen(*(getattr(trials, name)[t] for name in FIELDS), trials.trial_length, position)


def stepped(core: SNAILCore, trials: Seen, told: int | None = None) -> Tensor:
    """Return the features step by step, after a begin that was told a length."""
    state, features = core.begin(trials.first.shape[1], told), []
    for t in range(len(trials.first)):
        output, state = core.step(step_of(trials, t), state)
        features.append(output.features)
    return torch.stack(features)


def torchs_own(block: TemporalConvolutions, x: Tensor) -> Tensor:
    """Return what torch's dilated convolutions with the block's weights give, [T, B, features]."""
    y = x.permute(1, 2, 0)  # [B, features, T]
    for dilation, weight, bias in zip(block.dilations, block.weight, block.bias, strict=True):
        now, before = weight.chunk(2)
        kernel = torch.stack([before, now], dim=-1)
        f, g = functional.conv1d(functional.pad(y, (dilation, 0)), kernel, bias, dilation=dilation).chunk(
            2, 1
        )
        y = torch.cat([y, f.tanh() * g.sigmoid()], dim=1)
    return y.permute(2, 0, 1)


def masked_read(block: Attention, x: Tensor, key_size: int) -> Tensor:
    """Return x and a softmax over the steps so far, written out, [T, B, features]."""
    query, key, value = block.read(x).split((key_size, key_size, SMALL["value_size"]), dim=-1)
    logits = torch.einsum("tbk,sbk->bts", query, key) / key_size**0.5
    later = torch.ones(len(x), len(x), dtype=torch.bool).triu(1)
    weights = logits.masked_fill(later, -torch.inf).softmax(dim=-1)
    return torch.cat([x, torch.einsum("bts,sbv->tbv", weights, value)], dim=-1)


@pytest.mark.parametrize("steps", [1, 2, 13])
def test_its_features_are_those_of_torchs_convolutions_and_a_masked_softmax(steps: int) -> None:
    core, trials = build(blocks=["convolutions", "attention", "convolutions"]), lives(steps, 5, 13)
    facts = trials.reward.unsqueeze(-1), trials.first.unsqueeze(-1).double(), trials.elapsed
    x = torch.cat([trials.observation, trials.action, *facts], dim=-1)
    first, attention, last = core.blocks
    expected = torchs_own(last, masked_read(attention, torchs_own(first, x), 5))
    torch.testing.assert_close(core(trials).features, expected, atol=1e-10, rtol=0)


@pytest.mark.parametrize("steps", [1, 3, 7])
def test_the_convolutions_have_the_gradients_of_torchs(steps: int) -> None:
    """Of whole trials, whose backward pass is written out: of each weight, and of the input."""
    block = seeded(lambda: TemporalConvolutions(3, 2, 8), 0).double()
    x = torch.randn(steps, 4, 3, generator=generator(0, "x"), dtype=torch.float64, requires_grad=True)
    of = [x, *block.parameters()]
    mine, theirs = (
        torch.autograd.grad(read(x).sin().sum(), of) for read in (block, lambda x: torchs_own(block, x))
    )
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one, other, atol=1e-12, rtol=1e-10)


@pytest.mark.parametrize(("span", "layers", "seen"), [(2, 1, 2), (3, 2, 4), (8, 3, 8), (100, 7, 128)])
def test_a_block_of_convolutions_sees_its_span_and_the_power_of_two_above(
    span: int, layers: int, seen: int
) -> None:
    block = seeded(lambda: TemporalConvolutions(1, 2, span), 0).double()
    x = torch.zeros(200, 1, 1, dtype=torch.float64)
    changed = x.clone()
    changed[20] = 1
    moved = (block(changed) - block(x)).abs().sum(dim=(1, 2)).nonzero().flatten().tolist()
    assert moved == [*range(20, 20 + seen)]
    assert len(block.dilations) == layers and seen >= span


@torch.no_grad()
@pytest.mark.parametrize("name", FIELDS)
def test_a_step_changes_what_is_known_from_then_on_and_nothing_before(name: str) -> None:
    """Also beyond the span of the convolutions, which is 8: by attention."""
    core, trials, t = build(previous_observation=True), lives(40, 4, 40), 11
    part = getattr(trials, name).clone()
    part[t] = ~part[t] if name == "first" else part[t] + 1
    fields = (part if each == name else getattr(trials, each) for each in FIELDS)
    change = (core(Seen(*fields, trials.trial_length)).features - core(trials).features).abs().amax(dim=-1)
    assert (change[:t] == 0).all()
    assert (change[t:] > 1e-9).all()


@torch.no_grad()
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-4)])
def test_step_after_step_is_the_whole_trial_at_any_length(dtype: torch.dtype, tolerance: float) -> None:
    """Up to 1,000 steps, far beyond the span of the convolutions, and whatever ``begin`` was told."""
    core, source = build(span=30).to(dtype), generator(0, "lengths")
    lengths = [1000, *torch.randint(1, 100, (3,), generator=source).tolist()]
    for steps, told in zip(lengths, (None, None, 1, 200), strict=True):
        trials = lives(steps, 2, steps, seed=steps)
        fields = (getattr(trials, name) for name in FIELDS)
        trials = Seen(*(part if part.dtype == torch.bool else part.to(dtype) for part in fields), steps)
        whole, single = core(trials).features, stepped(core, trials, told)
        assert whole.shape == (steps, 2, core.out_features) and whole.dtype == dtype
        torch.testing.assert_close(single, whole, atol=tolerance, rtol=0)


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


@torch.no_grad()
def test_memory_while_acting_is_what_the_docstring_says() -> None:
    core, trials = build(), lives(40, 2, 40)
    state = core.begin(2, 40)
    for t in range(40):
        _, state = core.step(step_of(trials, t), state)
    kept = sum(part.numel() for block in state.past for layer in block for part in layer)
    assert kept == 2 * 2 * (8 - 1) * (2 * 4)  # blocks, rows, 1 + 2 + 4 steps of 2 · filters
    assert [layer.shape for layer in state.cache.layers] == [(2, 1, 40, 5), (2, 1, 40, 3)]


def _learner(law: Any, **settings: Any) -> PPO:
    core = {"name": "snail", "filters": 8, "span": 10, "key_size": 8, "value_size": 8}
    config = RL2Config.model_validate({"core": core, **settings})
    return rl2_learner(law.observation_space, law.action_space, config)


def test_it_learns_bandits_beyond_chance() -> None:
    law, learned = BernoulliBandits(num_arms=3), []
    learner = _learner(law, entropy_coefficient=0.01, learning_rate=3e-3, surrogate="all_actions")

    def note(row: Any) -> bool:
        learned.append(row["mean_return"])
        return False

    meta_train(learner, law, RolloutWorker(law), Budget(25, 64, 10), 0, note)

    assert sum(learned[-5:]) / 5 > 5.4  # chance has 5, the best arm 7.5
