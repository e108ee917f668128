"""The slot core: its unroll against plain autograd, what it is invariant to, and how it tells the time."""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from rl2meta.agents.cores.core import Output, Position, Seen
from rl2meta.agents.cores.slot import SlotConfig, SlotCore
from rl2meta.agents.cores.slot_reads import Answer, Places, Reads, answers
from rl2meta.agents.cores.slot_unroll import SlotWeights, unroll
from rl2meta.agents.ppo import PPO, PPOAgent
from rl2meta.agents.rl2 import RL2Config, rl2_learner
from rl2meta.envs.bandits import BernoulliBandits
from rl2meta.envs.tabular import TabularMDPs
from rl2meta.errors import UserError
from rl2meta.learner_state import seeded
from rl2meta.randomness import generator
from rl2meta.rollout import RolloutWorker
from rl2meta.tasks import sample_tasks
from rl2meta.training import Budget, meta_train
from rl2meta.trial import TrialLength

S, A = 4, 3


def build(states: int = S, actions: int = A, seed: int = 0, **sizes: int) -> SlotCore:
    """Return a core in float64 with weights that are far from their small or zero starts."""

    def make() -> SlotCore:
        spaces = gym.spaces.Discrete(states), gym.spaces.Discrete(actions)
        core = SlotCore(*spaces, SlotConfig(**{"slot_size": 5, "hidden_size": 7, **sizes}))
        for weight in core.parameters():
            nn.init.normal_(weight, std=0.5)
        return core

    return seeded(make, seed).double()


class Lives:
    """Random trials on S observations and A actions, as indices."""

    def __init__(self, steps: int, rows: int, seed: int = 0, states: int = S, actions: int = A) -> None:
        source = generator(seed, "lives")
        self.observed = torch.randint(states, (steps, rows), generator=source)
        self.acted = torch.randint(actions, (steps, rows), generator=source)  # after each observation
        self.paid = torch.randn(steps, rows, generator=source, dtype=torch.float64)
        self.first = torch.rand(steps, rows, generator=source) < 0.3
        self.first[0] = True
        self.states, self.actions = states, actions

    def seen(self, length: int | None = None, dtype: torch.dtype = torch.float64) -> Seen:
        action = one_hot(self.acted, self.actions).to(dtype).roll(1, dims=0)
        reward = self.paid.to(dtype).roll(1, dims=0)
        action[0], reward[0] = 0, 0
        return Seen(one_hot(self.observed, self.states).to(dtype), action, reward, self.first, length)


def stepped(core: SlotCore, trials: Seen) -> Output:
    """Return what the core gives step by step."""
    state, outputs = core.begin(trials.first.shape[1], trials.trial_length), []
    for t in range(len(trials.first)):
        position = Position(trials.previous_observation[t], trials.episode_step[t], t)
        fields = trials.observation[t], trials.action[t], trials.reward[t], trials.first[t]
        output, state = core.step(Seen(*fields, trials.trial_length, position), state)
        outputs.append(output)
    features, parameters = zip(*outputs, strict=True)
    return Output(torch.stack(features), torch.stack(parameters))


def by_dictionary(core: SlotCore, lives: Lives, horizon: int, length: int) -> np.ndarray:
    """Return the logits, [T, B, A], of a memory that is a dictionary, one trial and cell at a time."""
    gru, d = core.write, len(core.start)
    steps, rows = lives.observed.shape
    logits = np.zeros((steps, rows, lives.actions))
    for b in range(rows):
        memory = {(o, a): core.start for o in range(lives.states) for a in range(lives.actions)}
        for t in range(steps):
            if lives.first[t, b]:
                h = 0
            here, times = (
                int(lives.observed[t, b]),
                torch.tensor([h / horizon, t / length], dtype=torch.float64),
            )
            mean = torch.stack([*memory.values()]).mean(dim=0)
            if t > 0:
                cell = int(lives.observed[t - 1, b]), int(lives.acted[t - 1, b])
                best = torch.stack([core.pool(memory[here, a]) for a in range(lives.actions)]).amax(dim=0)
                pooled = torch.zeros(d).double() if lives.first[t, b] else best
                facts = torch.stack([lives.paid[t - 1, b], lives.first[t, b].double()])
                memory[cell] = gru(torch.cat([pooled, mean, facts, times]), memory[cell])
                mean = torch.stack([*memory.values()]).mean(dim=0)
            row = [memory[here, a] for a in range(lives.actions)]
            shared = torch.cat([torch.stack(row).mean(dim=0), mean, times])
            values = [core.logit(core.hidden(torch.cat([each, shared])).relu()) for each in row]
            logits[t, b] = torch.cat(values).numpy()
            h += 1
    return logits


@torch.no_grad()
def test_observations_that_are_numbers_have_cells_of_their_own() -> None:
    """Encodings of more than 1,024 observations are numbers from 1 on, not one-hot vectors."""
    core, lives = build(states=1025), Lives(8, 2, states=1025)
    lives.observed = 1021 + lives.observed % 4  # few, so they come again; the last one too
    numbers = lives.seen(TrialLength(40, 30))
    seen = replace(numbers, observation=(lives.observed + 1).double().unsqueeze(-1))
    expected = by_dictionary(core, lives, horizon=30, length=40)
    for output in (core(seen), stepped(core, seen)):
        assert output.parameters is not None
        np.testing.assert_allclose(output.parameters.numpy(), expected, atol=1e-12)


@torch.no_grad()
def test_logits_are_those_of_a_dictionary_that_is_rewritten_cell_by_cell() -> None:
    core, lives = build(), Lives(25, 3)
    expected = by_dictionary(core, lives, horizon=30, length=40)
    for read in (core, lambda seen: stepped(core, seen)):
        logits = read(lives.seen(TrialLength(40, 30))).parameters
        np.testing.assert_allclose(logits.numpy(), expected, atol=1e-12)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-4)])
@pytest.mark.parametrize("learning", [True, False])
def test_step_after_step_is_the_whole_trial(dtype: torch.dtype, tolerance: float, learning: bool) -> None:
    core, trials = build().to(dtype), Lives(60, 9).seen(TrialLength(60, 60), dtype)
    with torch.set_grad_enabled(learning):
        whole, single = core(trials), stepped(core, trials)
    assert whole.features.shape == (60, 9, core.out_features) and whole.parameters.dtype == dtype
    for one, other in zip(whole, single, strict=True):
        torch.testing.assert_close(one, other, atol=tolerance, rtol=0)


def plainly(weights: SlotWeights, places: Places, facts: Tensor, first: Tensor) -> tuple[Tensor, Tensor]:
    """The unroll as its docstring says it, for autograd: the mean is that of the table at each step."""
    (steps, rows), d = places.row.shape, len(weights.start)
    table, own = weights.start.expand(rows * S * A, d), (rows, S * A, d)
    read, means = [], []
    for t in range(steps):
        if t > 0:
            cell, mean = places.cell[t], table.view(own).mean(dim=1)
            seen = nn.functional.linear(
                table.view(-1, A, d)[places.row[t]], weights.pool, weights.pool_bias
            ).amax(dim=1)
            x = torch.cat([seen * ~first[t].unsqueeze(-1), mean, facts[t]], dim=-1)
            gru = weights.from_input, weights.from_cell, weights.input_bias, weights.cell_bias
            table = table.index_put((cell,), torch.gru_cell(x, table[cell], *gru))
        read.append(table.view(-1, A, d)[places.row[t]])
        means.append(table.view(own).mean(dim=1))
    return torch.stack(read), torch.stack(means)


def drawn(steps: int, rows: int, d: int) -> tuple[SlotWeights, Places, Tensor, Tensor]:
    """Random inputs of the unroll; weights and facts need gradients."""
    source = generator(1, "unroll")

    def leaf(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=source, dtype=torch.float64).mul(0.7).requires_grad_()

    shapes = (d,), (d, d), (d,), (3 * d, 2 * d + 4), (3 * d, d), (3 * d,), (3 * d,)
    row = torch.randint(S, (steps, rows), generator=source) + S * torch.arange(rows)
    cell = row.roll(1, dims=0) * A + torch.randint(A, (steps, rows), generator=source)
    first = torch.rand(steps, rows, generator=source) < 0.3
    return SlotWeights(*(leaf(*shape) for shape in shapes)), Places(row, cell), leaf(steps, rows, 4), first


def read_off(weights: SlotWeights, places: Places, facts: Tensor, first: Tensor) -> tuple[Tensor, Tensor]:
    """What each step reads, from what the unroll says that steps have written."""
    reads = Reads.of(places, (S, A))
    written, means = unroll(weights, S * A, reads, facts, first)
    return written.flatten(0, 1)[reads.after].movedim(0, 2), means


def test_all_gradients_of_the_unroll_are_those_of_plain_autograd() -> None:
    weights, places, facts, first = drawn(40, 5, d=4)
    both = []
    for outputs in (plainly(weights, places, facts, first), read_off(weights, places, facts, first)):
        loss = sum((part * (1 + part.detach()).cos()).sum() for part in outputs)
        both.append((*outputs, *torch.autograd.grad(loss, [*weights, facts])))
    for one, other in zip(*both, strict=True):
        torch.testing.assert_close(one, other, atol=1e-10, rtol=1e-10)
        assert other.abs().max() > 1e-3


def test_all_gradients_of_the_unroll_are_finite_differences() -> None:
    weights, places, facts, first = drawn(7, 2, d=2)

    def of(*given: Tensor) -> tuple[Tensor, Tensor]:
        return read_off(SlotWeights(*given[:7]), places, given[7], first)

    assert torch.autograd.gradcheck(of, (*weights, facts))


def test_all_gradients_of_the_answers_are_those_of_plain_autograd() -> None:
    """Plainly, every read is a row of its own, and the layer is applied to all of them."""
    (steps, rows, d, n), source = (20, 3, 4, 6), generator(5, "answers")
    _, places, _, _ = drawn(steps, rows, d)
    after = Reads.of(places, (S, A)).after  # [A, T, B]

    def leaf(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=source, dtype=torch.float64).requires_grad_()

    weights = Answer(leaf(n, 3 * d + 2), leaf(n), leaf(n))
    written, means, elapsed = leaf(steps, rows, d), leaf(steps, rows, d), leaf(steps, rows, 2).detach()
    row = written.flatten(0, 1)[after]  # [A, T, B, d]
    shared = torch.cat([row.mean(dim=0), means, elapsed], dim=-1).expand(A, -1, -1, -1)
    y = nn.functional.linear(torch.cat([row, shared], dim=-1), weights.hidden, weights.bias).relu()
    both = []
    for outputs in ((y.mean(dim=0), y @ weights.logit), answers(weights, written, means, elapsed, after)):
        loss = sum((part * (1 + part.detach()).cos()).sum() for part in outputs)
        both.append((*outputs, *torch.autograd.grad(loss, [*weights, written, means])))
    for one, other in zip(*both, strict=True):
        torch.testing.assert_close(one, other, atol=1e-12, rtol=1e-12)
        assert other.abs().max() > 1e-3


@torch.no_grad()
def test_a_permutation_of_observations_and_actions_permutes_the_policy() -> None:
    core, lives = build(), Lives(40, 6)
    before = core(lives.seen(TrialLength(40, 20)))
    source = generator(2, "permutation")
    states, actions = (torch.randperm(n, generator=source) for n in (S, A))
    assert (actions != torch.arange(A)).any() and (states != torch.arange(S)).any()
    lives.observed, lives.acted = states[lives.observed], actions[lives.acted]
    after = core(lives.seen(TrialLength(40, 20)))
    torch.testing.assert_close(after.parameters[..., actions], before.parameters, atol=1e-12, rtol=0)
    torch.testing.assert_close(after.features, before.features, atol=1e-12, rtol=0)
    assert before.parameters.std(dim=-1)[5:].mean() > 0.1


@torch.no_grad()
def test_a_memory_finds_again_what_was_paid_there() -> None:
    """After the same steps, the policies of two trials differ only where a differing reward was paid."""
    core, lives = build(), Lives(4, 2)
    for field, values in (("observed", [0, 1, 2, 0]), ("acted", [1, 0, 0, 0])):
        setattr(lives, field, torch.tensor(values).unsqueeze(1).expand(4, 2).clone())
    lives.paid[:, 1] = lives.paid[:, 0]
    lives.paid[0, 1] += 5
    row, _ = read_off(
        SlotWeights(core.start, core.pool.weight, core.pool.bias, *core.write.parameters()),
        core._places(lives.seen()),
        torch.cat([lives.seen().reward.unsqueeze(-1), torch.zeros(4, 2, 3).double()], dim=-1),
        lives.first,
    )
    differs = (row[3, 0] - row[3, 1]).abs().amax(dim=-1) > 1e-6  # [A], at observation 0 again
    assert differs.tolist() == [False, True, False]


def test_what_is_learnt_fits_any_number_of_observations_and_actions() -> None:
    """Weights, units and the optimiser's moments, and the weights act as they are."""
    small, large = (TabularMDPs(num_states=s, num_actions=a, horizon=4) for s, a in ((3, 2), (11, 6)))
    learner, other = _learner(small), _learner(large)
    trial = RolloutWorker(small).run(learner.agent, sample_tasks(small, 8, 0, "train"), 3, 0)
    learner.update(trial, 0.0, generator(0, "update"))
    other.load_state_dict(learner.state_dict())
    for name, value in other.network.state_dict().items():
        assert torch.equal(value, learner.network.state_dict()[name])
    (played,) = RolloutWorker(large).run(other.agent, sample_tasks(large, 8, 0, "test"), 3, 0).phases
    assert played.action.max() == 5 and played.notes["log_prob"].isfinite().all()


def test_what_follows_the_end_of_a_trial_changes_nothing_before_it() -> None:
    core, lives = build(), Lives(20, 5)
    mask = torch.arange(20).unsqueeze(1) < torch.tensor([20, 13, 7, 1, 19])  # [T, B]

    def loss_and_gradients() -> list[Tensor]:
        output = core(lives.seen(TrialLength(20, 20)))
        loss = ((output.parameters.sin().sum(-1) + output.features.sin().sum(-1)) * mask).sum()
        return [loss, *torch.autograd.grad(loss, list(core.parameters()))]

    before, other = loss_and_gradients(), Lives(20, 5, seed=9)
    for name in ("observed", "acted", "paid", "first"):
        # the action and the reward of the last step are seen only after the end
        keep = mask if name in ("observed", "first") else mask.roll(-1, dims=0) & mask
        setattr(lives, name, torch.where(keep, getattr(lives, name), getattr(other, name)))
    for one, two in zip(before, loss_and_gradients(), strict=True):
        torch.testing.assert_close(one, two, atol=1e-12, rtol=1e-12)


def test_a_state_is_read_once_unless_there_are_gradients() -> None:
    core, seen = build(), Lives(3, 2).seen()

    def at(t: int) -> Seen:
        position = Position(seen.previous_observation[t], seen.episode_step[t], t)
        return Seen(seen.observation[t], seen.action[t], seen.reward[t], seen.first[t], None, position)

    _, state = core.step(at(0), core.begin(2, None))
    before = state.table.clone()
    outputs = [core.step(at(1), state)[0] for _ in range(2)]  # with gradients
    with torch.no_grad():
        copied = copy.deepcopy(replace(state, table=state.table.detach(), mean=state.mean.detach()))
        assert torch.equal(before, state.table)
        outputs.append(core.step(at(1), state)[0])
        assert not torch.equal(before, state.table)
        with pytest.raises(ValueError, match="expected the state of the newest step"):
            core.step(at(1), state)
        outputs.append(core.step(at(1), copied)[0])
    for output in outputs[1:]:
        assert torch.equal(output.parameters, outputs[0].parameters)


@pytest.mark.parametrize("length", [None, 12, TrialLength(12), TrialLength(12, 5), TrialLength(100, 5)])
def test_the_time_is_a_fraction_of_the_horizon_and_of_the_present_trial(length: int | None) -> None:
    lives = Lives(12, 4)
    lives.first[:] = (torch.arange(12) % 5 == 0).unsqueeze(1)
    elapsed = lives.seen(length).elapsed
    assert elapsed.shape == (12, 4, 2) and elapsed.dtype == torch.float64
    for t in range(12):
        h = t % 5 / 5 if isinstance(length, TrialLength) and length.horizon else 0
        expected = torch.tensor([h, t / length if length else 0], dtype=torch.float64).expand(4, 2)
        torch.testing.assert_close(elapsed[t], expected)
    assert elapsed.max() < 1
    assert (elapsed[1:, :, 1] > 0).all() == (length is not None)


@pytest.mark.parametrize("episodes", [2, 5])
def test_agents_are_told_the_length_and_the_horizon_of_the_trial_that_they_live(episodes: int) -> None:
    """A trial of another length than those in training has its own fractions; a bandit's h/H is 0."""
    for law in (TabularMDPs(num_states=3, num_actions=2, horizon=4), BernoulliBandits(num_arms=3)):
        learner = _learner(law)
        told: list[Tensor] = []
        step = learner.network.core.step
        learner.network.core.step = lambda seen, state, step=step, told=told: (  # type: ignore[method-assign]
            told.append(seen.elapsed) or step(seen, state)
        )
        RolloutWorker(law).run(learner.agent, sample_tasks(law, 2, 0, "test"), episodes, 0)
        steps = torch.arange(episodes * law.horizon)
        expected = [steps % law.horizon / law.horizon, steps / len(steps)]
        torch.testing.assert_close(torch.stack(told)[:, 1], torch.stack(expected, dim=-1))


def _learner(law: Any, **settings: Any) -> PPO:
    config = RL2Config.model_validate(
        {"core": {"name": "slot", "slot_size": 6, "hidden_size": 8}, **settings}
    )
    return rl2_learner(law.observation_space, law.action_space, config)


@pytest.mark.parametrize(
    ("observed", "acted", "said"),
    [
        (gym.spaces.Box(-1, 1, (2,)), gym.spaces.Discrete(2), "expected discrete observations, got Box"),
        (gym.spaces.Discrete(2), gym.spaces.Box(-1, 1, (2,)), "expected discrete actions, got Box"),
    ],
)
def test_other_spaces_are_refused(observed: Any, acted: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        SlotCore(observed, acted, SlotConfig())


def test_a_former_key_reaches_the_slot_core_and_a_key_of_recurrent_cores_is_refused() -> None:
    former = RL2Config.model_validate({"core": {"name": "slot"}, "hidden_size": 8})
    assert former.core == SlotConfig(hidden_size=8)
    with pytest.raises(ValueError, match="num_layers"):
        RL2Config.model_validate({"core": {"name": "slot"}, "num_layers": 2})


def test_at_the_first_update_the_agents_policy_is_the_learners() -> None:
    """What acting and learning compute agree through agent, worker and PPO, where episodes have a horizon."""
    law = TabularMDPs(num_states=3, num_actions=2, horizon=4)
    learner = _learner(law, epochs=1, minibatches=1)
    with torch.no_grad():
        learner.network.core.logit.weight.mul_(50)  # a policy far from uniform
    trial = RolloutWorker(law).run(learner.agent, sample_tasks(law, 9, 0, "train"), 3, 0)
    (trajectory,) = trial.phases
    policy, _ = learner.network(learner.network.seen(trajectory.inputs, trajectory.most_steps))
    noted = trajectory.notes["log_prob"]
    torch.testing.assert_close(policy.log_prob(trajectory.action), noted, atol=1e-5, rtol=1e-5)
    assert noted.std() > 0.1 and isinstance(learner.agent, PPOAgent)
    assert learner.update(trial, 0.0, generator(0, "update"))["kl"] < 1e-6


def test_it_learns_bandits_beyond_chance() -> None:
    law, learned = BernoulliBandits(num_arms=3), []
    learner = _learner(law, entropy_coefficient=0.01, learning_rate=2e-2)

    def note(row: Any) -> bool:
        learned.append(row["mean_return"])
        return False

    meta_train(learner, law, RolloutWorker(law), Budget(25, 64, 10), 0, note)

    assert sum(learned[-5:]) / 5 > 5.8  # chance has 5, the best arm 7.5


@pytest.mark.parametrize("read", [lambda core: core, lambda core: lambda seen: stepped(core, seen)])
def test_the_first_step_of_a_trial_writes_nothing(read: Callable[[SlotCore], Any]) -> None:
    core, lives = build(), Lives(1, 3)
    features = read(core)(lives.seen()).features  # [1, 3, hidden_size + d + 2]
    assert torch.equal(features[0, :, -7:-2], core.start.expand(3, -1))
