"""Compiled kernels against torch in float64, and against the plain form of the loss."""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rl2meta.agents.cores.core import Output, Seen
from rl2meta.agents.cores.recurrent import LSTMConfig, LSTMCore
from rl2meta.agents.ppo import PPO, Batch
from rl2meta.agents.rl2 import RL2Config, rl2_learner
from rl2meta.envs.bandits import BernoulliBandits
from rl2meta.kernels import set_kernels
from rl2meta.learner_state import seeded
from rl2meta.randomness import generator
from rl2meta.shards import Lost, Shards, set_gradients
from rl2meta.trial import TimeStep

pytest.importorskip("numba", reason="compiled kernels need the extra: pip install 'rl2meta[fast]'")
from rl2meta.agents.cores.lstm_layer import step, unroll
from rl2meta.agents.ppo_loss import Weights
from rl2meta.agents.ppo_lstm import LossOfTrials, act, packed_weights
from rl2meta.tanh_chain import chain

SHAPES = [(7, 37, 5, 20), (3, 66, 9, 48), (1, 1, 1, 1), (4, 5, 17, 33)]
"""Steps, trials, inputs and units: odd numbers, and more or fewer than fit into whole vectors."""


def layer(inputs: int, units: int, scale: float = 1.0) -> torch.nn.LSTM:
    """Return a layer with biases that are not 0."""
    made = seeded(lambda: torch.nn.LSTM(inputs, units), 3)
    with torch.no_grad():
        for weight in made.parameters():
            weight.mul_(scale)
    return made


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator(5, "numbers", *shape))


def gradients(y: Tensor, given: list[Tensor], d_y: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(y, given, d_y))


@pytest.mark.parametrize("shape", SHAPES)
def test_whole_trials_and_their_gradients_are_those_of_torch_in_float64(shape: tuple[int, ...]) -> None:
    steps, rows, inputs, units = shape
    given, x = layer(inputs, units), random(steps, rows, inputs).requires_grad_()
    d_y = random(steps, rows, units)
    y = unroll(x, tuple(given.parameters()))
    found = gradients(y, [x, *given.parameters()], d_y)
    exact, x64 = layer(inputs, units).double(), x.detach().double().requires_grad_()
    y64 = exact(x64)[0]
    torch.testing.assert_close(y.double(), y64, atol=1e-5, rtol=0)
    for ours, theirs in zip(found, gradients(y64, [x64, *exact.parameters()], d_y.double()), strict=True):
        scale = max(1.0, float(theirs.abs().max()))
        torch.testing.assert_close(ours.double(), theirs, atol=2e-6 * scale, rtol=0)


def computed() -> list[Tensor]:
    """Return what all kernels compute of numbers that are always the same."""
    given, x = layer(9, 20), random(3, 13, 9).requires_grad_()
    y = unroll(x, tuple(given.parameters()))
    after = step(x[0].detach(), (y[0].detach(), y[1].detach()), *given.parameters())
    weights = [random(3, *shape).requires_grad_() for shape in ((20, 4), (20,), (5, 20), (5,))]
    out = chain(weights, random(3, 70, 4))
    first = torch.autograd.grad(out.square().sum(), weights, create_graph=True)
    second = gradients(torch.cat([each.flatten() for each in first]).square().sum(), weights, torch.ones(()))
    ours, known = whole(5, 30, 20, True, True)
    lost = LossOfTrials(ours.network, known, Weights(0.1, 0.5, 0.07), None)(torch.arange(1, 29))
    of_layer = gradients(y, [x, *given.parameters()], random(3, 13, 20))
    return [y, *of_layer, *after, out, *first, *second, *found_of(lost, ours)]


OTHER_LANES = """
import runpy, sys
from importlib.util import find_spec, module_from_spec
import torch

spec = find_spec("rl2meta.vectors")
source = spec.loader.get_source(spec.name).replace("LANES = _lanes()", "LANES = 24 - _lanes()")
assert "24 - " in source
sys.modules[spec.name] = module_from_spec(spec)
exec(source, vars(sys.modules[spec.name]))
torch.save([each.detach() for each in runpy.run_path(sys.argv[1])["computed"]()], sys.argv[2])
"""


def test_numbers_do_not_depend_on_the_length_of_vectors(tmp_path: Path) -> None:
    command = [sys.executable, "-c", OTHER_LANES, __file__, str(tmp_path / "numbers")]
    done = subprocess.run(
        command,
        env={**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert all(map(torch.equal, computed(), torch.load(tmp_path / "numbers")))


@pytest.mark.parametrize("shape", SHAPES)
def test_a_step_is_that_of_torch(shape: tuple[int, ...]) -> None:
    _, rows, inputs, units = shape
    given, x, h, c = (
        layer(inputs, units),
        random(rows, inputs),
        random(rows, units),
        2 * random(units, rows).t(),
    )
    with torch.no_grad():
        found = step(x, (h, c), *given.parameters())
        wanted = torch.lstm_cell(
            x.double(), (h.double(), c.double()), *(w.double() for w in given.parameters())
        )
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours.double(), theirs, atol=2e-6, rtol=0)


def test_far_inputs_saturate_and_what_is_no_number_stays_none() -> None:
    given = layer(4, 16, scale=300.0)
    x = 100 * random(5, 8, 4)
    y = unroll(x, tuple(given.parameters()))
    torch.testing.assert_close(y, given(x)[0], atol=1e-5, rtol=0)
    x[2, 3] = torch.tensor([0x7FC000AA], dtype=torch.int32).view(torch.float32)  # a NaN with other bits
    lost = unroll(x, tuple(given.parameters())).isnan()
    assert lost[2:, 3].all() and not lost[:2].any() and not lost[:, :3].any() and not lost[:, 4:].any()


def test_a_second_backward_pass_is_refused() -> None:
    weights = tuple(layer(4, 16).parameters())
    y = unroll(random(2, 8, 4), weights).sum()
    y.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="expected one backward pass"):
        y.backward()


@pytest.fixture
def threads() -> Any:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_threads_change_no_bit_of_a_trial_and_sums_over_trials_only_by_rounding(threads: Any) -> None:
    given, x, d_y = layer(6, 24), random(17, 131, 6).requires_grad_(), random(17, 131, 24)
    every = [x, *given.parameters()]

    def found(number: int) -> list[Tensor]:
        threads(number)
        y = unroll(x, tuple(given.parameters()))
        return [y.detach(), *gradients(y, every, d_y)]

    one, four, again = found(1), found(4), found(4)
    assert all(torch.equal(*pair) for pair in zip(four, again, strict=True))
    assert torch.equal(one[0], four[0]) and torch.equal(one[1], four[1])  # features, and gradients of inputs
    for alone, divided in zip(one[2:], four[2:], strict=True):
        torch.testing.assert_close(alone, divided, atol=1e-4, rtol=1e-5)


def learner(arms: int = 4, **core: Any) -> PPO:
    law = BernoulliBandits(num_arms=arms)
    config = RL2Config(clip_range=0.1, core=LSTMConfig(**core))
    made = rl2_learner(law.observation_space, law.action_space, config)
    with torch.no_grad():
        for weight in made.network.parameters():
            weight.add_(0.2 * random(*weight.shape))
    return made


def batch(ours: PPO, features: Tensor, masked: bool, all_actions: bool) -> Batch:
    """Return a batch whose policy before was another, so that some ratios are clipped."""
    steps, rows = features.shape[:2]
    head = ours.network.discrete_head
    assert head is not None
    arms = head.out_features
    action = torch.randint(arms, (steps, rows), generator=generator(1, "actions"))
    legal = random(steps, rows, arms, 1).squeeze(-1) > -0.5
    legal.scatter_(2, action.unsqueeze(-1), True)
    none = TimeStep(*(None for _ in TimeStep._fields))  # type: ignore[arg-type]
    inputs = none._replace(legal=legal) if masked else none
    policy, _ = ours.network.judged(Output(features), inputs.legal)
    before = (policy.log_probs + 0.2 * random(steps, rows, arms)).log_softmax(dim=-1).detach()  # type: ignore[attr-defined]
    taken = before.gather(2, action.unsqueeze(-1)).squeeze(-1)
    known = (before, random(arms, steps, rows).movedim(0, -1)) if all_actions else (None, None)
    mask = (random(rows, steps).t() > -1).float()
    return Batch(inputs, action, taken, random(steps, rows), random(rows, steps).t(), mask, *known)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("all_actions", [False, True])
def test_the_fused_loss_is_the_plain_one(masked: bool, all_actions: bool) -> None:
    ours, features = learner(), random(6, 40, 48)
    known = batch(ours, features, masked, all_actions)
    heads = [*ours.network.policy.parameters(), *ours.network.value.parameters()]  # type: ignore[union-attr]
    found = []
    for judge in (ours.plain, ours.fused):
        x = features.clone().requires_grad_()
        loss, told = judge(Output(x), known, 0.07)
        found.append([loss, *told.values(), *torch.autograd.grad(3 * loss, [x, *heads])])
        assert [*told] == ["policy_loss", "value_loss", "entropy", "kl", "clip_fraction"]
    assert 0.1 < float(found[0][5]) < 0.9  # clipped
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=3e-6, rtol=1e-5)


def whole(
    steps: int, rows: int, units: int, masked: bool, all_actions: bool, embedding: int = 0, arms: int = 4
) -> tuple[PPO, Batch]:
    """Return a learner with an LSTM of so many units, and a batch of whole trials for it."""
    sizes = [embedding] if embedding else []
    ours, features = learner(arms, hidden_size=units, embedding_sizes=sizes), random(steps, rows, units)
    known = batch(ours, features, masked, all_actions)
    first = torch.zeros(steps, rows, dtype=torch.bool)
    seen = TimeStep(
        random(steps, rows, 1), random(rows, steps, arms).movedim(0, 1), random(steps, rows), first, None
    )  # type: ignore[arg-type]
    return ours, known._replace(inputs=seen._replace(legal=known.inputs.legal))


def found_of(lost: Lost, ours: PPO) -> list[Tensor]:
    """Return loss, weight, metrics and the gradients of all weights."""
    weights, known = list(ours.network.parameters()), lost.gradients
    gradient = torch.autograd.grad(lost.loss, weights) if known is None else [known[each] for each in weights]
    return [lost.loss.detach(), lost.weight, *(each.detach() for each in lost.told.values()), *gradient]


@pytest.mark.parametrize("shape", [(6, 40, 48), (7, 450, 20), (1, 1, 1), (90, 35, 17)])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("all_actions", [False, True])
@pytest.mark.parametrize("embedding", [0, 9])
def test_the_loss_of_whole_trials_is_the_plain_one(
    shape: tuple[int, int, int], masked: bool, all_actions: bool, embedding: int, threads: Any
) -> None:
    ours, known = whole(*shape, masked, all_actions, embedding)
    index = torch.randperm(shape[1], generator=generator(0, "order"))[: 2 * shape[1] // 3 + 1]
    wanted = found_of(ours.lost(known.trials(index), 0.07), ours)
    weights = Weights(ours.config.clip_range, ours.config.value_coefficient, 0.07)
    for number in (1, 4):
        threads(number)
        lost = LossOfTrials(ours.network, known, weights, None)(index)
        assert [*lost.told] == ["policy_loss", "value_loss", "entropy", "kl", "clip_fraction"]
        for one, other in zip(found_of(lost, ours), wanted, strict=True):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("arms", [2, 7, 20])
def test_any_number_of_actions(arms: int) -> None:
    ours, known = whole(5, 30, 12, True, True, arms=arms)
    weights = Weights(ours.config.clip_range, ours.config.value_coefficient, 0.07)
    lost = LossOfTrials(ours.network, known, weights, None)(torch.arange(30))
    for one, other in zip(found_of(lost, ours), found_of(ours.lost(known, 0.07), ours), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_features_in_another_order_of_memory_have_the_same_gradient() -> None:
    ours, features = learner(), random(40, 6, 48).transpose(0, 1).requires_grad_()
    known = batch(ours, features.detach(), False, False)
    found = [
        torch.autograd.grad(judge(Output(features), known, 0.07)[0], features)[0]
        for judge in (ours.fused, ours.plain)
    ]
    torch.testing.assert_close(*found, atol=3e-6, rtol=1e-5)


def test_who_computes_something_else_is_not_taken_for_the_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    class Other(LSTMCore):
        pass

    law = BernoulliBandits(num_arms=4)
    assert Other(law.observation_space, law.action_space, LSTMConfig()).only_layer is None
    ours, known = whole(4, 9, 16, False, False)
    monkeypatch.setattr("rl2meta.kernels._chosen", ["compiled"])
    assert ours.network.compiles_all and isinstance(ours._loss_of_trials(known, 0.0, None), LossOfTrials)
    for weight in ours.network.value.parameters():
        weight.requires_grad_(False)  # a frozen weight has no gradient
    assert not isinstance(ours._loss_of_trials(known, 0.0, None), LossOfTrials)


def test_shards_have_the_gradient_of_the_whole_batch() -> None:
    ours, known = whole(4, 32, 16, False, False)
    weights = Weights(ours.config.clip_range, ours.config.value_coefficient, 0.07)
    of_trials, every = LossOfTrials(ours.network, known, weights, None), list(ours.network.parameters())
    found = []
    for shards, parts in ((Shards(1), 1), (Shards(2), 2)):
        indices = torch.arange(32).chunk(parts)
        told = set_gradients(every, [partial(of_trials, index) for index in indices], shards)
        found.append([*told.values(), *(weight.grad for weight in every)])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)


def test_an_advantage_that_is_no_number_is_not_hidden() -> None:
    ours, known = whole(4, 9, 16, False, False)
    known.advantage[2, 3] = torch.nan
    weights = Weights(ours.config.clip_range, ours.config.value_coefficient, 0.07)
    lost, head = LossOfTrials(ours.network, known, weights, None)(torch.arange(9)), ours.network.discrete_head
    assert lost.gradients is not None and head is not None
    assert lost.loss.isnan() and lost.gradients[head.bias].isnan().all()


@pytest.mark.parametrize("core", [{}, {"embedding_sizes": [7]}, {"num_layers": 2}])
def test_an_update_learns_what_it_learns_by_torch(
    core: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from rl2meta.rollout import RolloutWorker
    from rl2meta.tasks import sample_tasks

    law = BernoulliBandits(num_arms=4)
    worker, tasks = RolloutWorker(law), sample_tasks(law, 128, 0, "train")
    monkeypatch.setattr("rl2meta.kernels._chosen", ["torch"])
    trial = worker.run(learner(**core).agent, tasks, 6, 0)
    found = []
    for kernels in ("torch", "compiled"):
        set_kernels(kernels)  # type: ignore[arg-type]
        ours = learner(**core)
        again = worker.run(ours.agent, tasks, 6, 0)
        torch.testing.assert_close(again.phases[0].notes, trial.phases[0].notes, atol=1e-5, rtol=1e-5)
        told = ours.update(trial, 0.0, generator(0, "minibatches"))
        found.append((told, [weight.detach() for weight in ours.network.parameters()]))
    (plain, weights), (fast, others) = found
    assert fast == pytest.approx(plain, rel=1e-3, abs=1e-4)
    for one, other in zip(weights, others, strict=True):  # Adam divides by small gradients
        torch.testing.assert_close(one, other, atol=2e-3, rtol=0)


def test_a_trial_acts_with_what_the_update_before_it_learnt() -> None:
    from rl2meta.rollout import RolloutWorker
    from rl2meta.tasks import sample_tasks

    law, ours = BernoulliBandits(num_arms=4), learner()
    worker, tasks = RolloutWorker(law), sample_tasks(law, 64, 0, "train")
    values = []
    for kernels in ("compiled", "torch"):
        set_kernels(kernels)  # type: ignore[arg-type]
        trial = worker.run(ours.agent, tasks, 6, 0)
        values.append(trial.phases[0].notes["value"])
        if kernels == "compiled":
            ours.update(trial, 0.0, generator(0, "minibatches"))
            values.append(worker.run(ours.agent, tasks, 6, 0).phases[0].notes["value"])
    before, after, plain = values
    torch.testing.assert_close(after, plain, atol=1e-5, rtol=1e-5)
    assert (after - before).abs().max() > 1e-3


@pytest.mark.parametrize("units", [48, 20])
@pytest.mark.parametrize("masked", [False, True])
def test_acting_at_once_draws_what_torch_draws(units: int, masked: bool, threads: Any) -> None:
    ours, known = whole(3, 1200, units, masked, False)
    state = tuple(0.5 * random(1, 1200, units, part)[..., 0] for part in (1, 2))
    step = TimeStep(*(None if field is None else field[1] for field in known.inputs))  # type: ignore[arg-type]
    seen, legal = Seen(*step[:4]), step.legal if masked else torch.ones(1200, 0, dtype=torch.bool)
    with torch.no_grad():
        output, after = ours.network.core.step(seen, state)
        policy, value = ours.network.judged(output, legal)
        action = policy.sample(generator(0, "actions"))
        wanted = action, policy.mode(), policy.log_prob(action), value, after
        x = ours.network.core.input(seen)
        for number in (1, 4):
            threads(number)
            found = act(x, packed_weights(ours.network), legal, state, generator(0, "actions"))
            for one, other in zip(found, wanted, strict=True):
                torch.testing.assert_close(one, other, atol=3e-6, rtol=1e-5)
    assert len(set(action.tolist())) == 4 and (not masked or legal.gather(1, action.unsqueeze(1)).all())


def test_what_is_illegal_is_never_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, known = whole(1, 70, 16, True, False)
    legal = torch.zeros(70, 4, dtype=torch.bool)
    legal[:, 2] = True
    state = tuple(torch.zeros(1, 70, 16) for _ in range(2))
    for place in (0.0, 1 - 2**-24):
        monkeypatch.setattr(torch, "rand", lambda *shape, place=place, **_: torch.full(shape, place))
        with torch.no_grad():
            x = ours.network.core.input(Seen(*(field[0] for field in known.inputs[:4])))
            found = act(x, packed_weights(ours.network), legal, state, None)  # type: ignore[arg-type]
        assert (found.action == 2).all() and (found.mode == 2).all() and found.log_prob.abs().max() < 1e-6
