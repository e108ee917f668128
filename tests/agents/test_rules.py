"""The rules of the inner loop, against torch's optimisers and central differences."""

import math
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from rl2meta.agents.maml import InnerLoop, MetaWeights, named
from rl2meta.agents.maml_regression import MAMLRegressionConfig, SquaredError, maml_regression_learner
from rl2meta.agents.outer_adam import OuterAdam
from rl2meta.agents.rows import Rows, normalised
from rl2meta.envs.sinusoids import Sinusoids
from rl2meta.parts import at_most
from rl2meta.rollout import RolloutWorker
from rl2meta.tasks import sample_tasks
from rl2meta.trial import Trial

CURVES = Sinusoids()
RATE = 0.05
RULES: dict[str, dict[str, Any]] = {
    "sgd": {"name": "sgd"},
    "momentum": {"name": "momentum", "momentum": 0.7},
    "nesterov": {"name": "momentum", "nesterov": True},
    "rmsprop": {"name": "rmsprop", "decay": 0.8, "epsilon": 0.1},
    "adam": {"name": "adam", "beta1": 0.5, "epsilon": 0.1},  # with a small ε, curvature is as large as 1 / ε
    "meta_sgd": {"name": "meta_sgd"},
    "lstm": {"name": "lstm", "hidden_size": 2, "log_range": 3.0},
    "lstm_raw": {"name": "lstm", "hidden_size": 2, "num_layers": 1, "log_range": None},
}
TORCHS: dict[str, Any] = {
    "sgd": lambda weights: torch.optim.SGD(weights, RATE),
    "momentum": lambda weights: torch.optim.SGD(weights, RATE, momentum=0.7),
    "nesterov": lambda weights: torch.optim.SGD(weights, RATE, momentum=0.9, nesterov=True),
    "rmsprop": lambda weights: torch.optim.RMSprop(weights, RATE, alpha=0.8, eps=0.1),
    "adam": lambda weights: torch.optim.Adam(weights, RATE, betas=(0.5, 0.999), eps=0.1),
    "meta_sgd": lambda weights: torch.optim.SGD(weights, RATE),  # the factors are 1 at first
}


def learner_of(rule: str, **settings: Any) -> OuterAdam:
    settings = {"hidden_sizes": [4], "episodes_per_phase": 5, "support_phases": None, **settings}
    config = MAMLRegressionConfig(rule=RULES[rule], inner_learning_rates=[RATE], **settings)
    return maml_regression_learner(CURVES.observation_space, CURVES.action_space, config, seed=0)


def lived(learner: OuterAdam, phases: int) -> Trial:
    return RolloutWorker(CURVES).run(learner.agent, sample_tasks(CURVES, 3, 0, "train"), phases * 5, 0)


class Case:
    """A learner in float64, and the rows of some phases of three curves."""

    def __init__(self, rule: str, phases: int, **settings: Any) -> None:
        learner = learner_of(rule, **settings)
        rows = [learner.inner.objective.rows(phase, 5) for phase in lived(learner, phases).phases]
        double = [Rows(*(field.double() for field in phase)) for phase in rows]
        self.rows = [phase._replace(weight=normalised(phase.weight)) for phase in double]
        self.network: Any = learner.meta.network.double()
        self.meta: MetaWeights = learner.meta.double()
        self.inner = InnerLoop(self.network, SquaredError(CURVES.observation_space), learner.config)


@pytest.mark.parametrize("rule", TORCHS)
def test_steps_are_those_of_torch(rule: str) -> None:
    case = Case(rule, phases=5)
    ours = case.inner.replay(named(case.meta), case.rows)[-1].weights
    for task in range(3):
        named_weights = case.network.named_parameters()
        weights = {name: nn.Parameter(value.detach().clone()) for name, value in named_weights}
        optimizer = TORCHS[rule](list(weights.values()))
        for rows in case.rows[:-1]:
            x, y = rows.observation[task], rows.label[task]
            optimizer.zero_grad()
            (torch.func.functional_call(case.network, weights, (x,)) - y).square().mean().backward()
            optimizer.step()
        for name, value in weights.items():
            torch.testing.assert_close(ours[name][task], value, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("rule", RULES)
def test_meta_gradient_is_that_of_central_differences(rule: str) -> None:
    case = Case(rule, phases=4)
    noise = torch.Generator().manual_seed(1)
    meta = {  # Meta-SGD's factors begin as equals; a little noise tells them apart
        name: (value + 0.1 * torch.randn(value.shape, generator=noise, dtype=value.dtype)).detach()
        for name, value in named(case.meta).items()
    }
    free = {name: value.clone().requires_grad_() for name, value in meta.items()}

    def loss(weights: dict[str, Tensor]) -> Tensor:
        return case.inner.losses(case.inner.replay(weights, case.rows)[-1], case.rows[-1]).mean()

    exact = torch.cat([g.flatten() for g in torch.autograd.grad(loss(free), list(free.values()))])
    numeric = central_differences(loss, meta)
    assert float((exact - numeric).norm()) <= 1e-6 * float(numeric.norm())


def central_differences(loss: Any, meta: dict[str, Tensor], width: float = 1e-6) -> Tensor:
    """Return the derivative of a loss with respect to all numbers in ``meta``, [numbers]."""
    sizes = [value.numel() for value in meta.values()]
    steps = width * torch.eye(sum(sizes), dtype=torch.float64)
    around = torch.cat([value.flatten() for value in meta.values()]) + torch.cat([steps, -steps])
    parts = [
        part.reshape(-1, *value.shape)
        for part, value in zip(around.split(sizes, dim=1), meta.values(), strict=True)
    ]
    up, down = torch.func.vmap(loss)(dict(zip(meta, parts, strict=True))).detach().chunk(2)
    return (up - down) / (2 * width)


@pytest.mark.parametrize("rule", ["rmsprop", "adam"])
def test_a_weight_without_gradient_leaves_the_meta_gradient_finite(rule: str) -> None:
    case = Case(rule, phases=3)
    meta = {name: value.detach().clone() for name, value in named(case.meta).items()}
    meta["network.trunk.0.bias"][0] = -1e3  # a unit that no input wakes
    free = {name: value.requires_grad_() for name, value in meta.items()}
    loss = case.inner.losses(case.inner.replay(free, case.rows)[-1], case.rows[-1]).mean()
    gradients = torch.autograd.grad(loss, list(free.values()))
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert float(gradients[0].abs().sum()) > 0


@pytest.mark.parametrize("rule", RULES)
def test_parts_of_the_tasks_adapt_as_all_together(rule: str) -> None:
    learner = learner_of(rule)
    agent, phase = learner.agent, lived(learner, 1).phases[0]
    carry = agent.begin(3, torch.Generator())
    whole = agent.adapt(agent.adapt(carry, phase), phase).adapted
    with at_most(2 * agent.numbers_per_task(phase)):  # two tasks, then one
        parts = agent.adapt(agent.adapt(carry, phase), phase).adapted
    for name, value in whole.weights.items():
        torch.testing.assert_close(value, parts.weights[name])


def test_the_lstm_is_that_of_torch_on_every_coordinate() -> None:
    case = Case("lstm", phases=4)
    states = case.inner.replay(named(case.meta), case.rows)
    lstm: Any = case.meta.lstm
    name, place = "trunk.0.weight", (2, 1, 0)  # of one weight of one task
    memory = [(torch.zeros(1, 2).double(), torch.zeros(1, 2).double()) for _ in lstm.layers]
    for before, after, rows in zip(states, states[1:], case.rows, strict=False):
        weights = {key: value.detach().requires_grad_() for key, value in before.weights.items()}
        loss = case.inner.losses(before._replace(weights=weights), rows).sum()
        g = torch.autograd.grad(loss, weights[name])[0][place]
        large = float(g.abs()) >= math.exp(-3)
        x = torch.stack([g.abs().log() / 3, g.sign()] if large else [-torch.ones_like(g), math.exp(3) * g])
        x = x.unsqueeze(0)
        for layer, cell in enumerate(lstm.layers):
            memory[layer] = cell(x, memory[layer])
            x = memory[layer][0]
        step = after.weights[name][place] - before.weights[name][place]
        torch.testing.assert_close(step, RATE * lstm.out(x)[0, 0])


def test_first_order_treats_the_gradient_as_a_number() -> None:
    case = Case("meta_sgd", phases=2, first_order=True)
    after = case.inner.replay(named(case.meta), case.rows)[-1].weights["head.bias"]
    grads = torch.autograd.grad(after.sum(), list(case.meta.parameters()), allow_unused=True)
    (factor,) = (g for name, g in zip(named(case.meta), grads, strict=True) if name == "factors.head/bias")
    by_name = dict(zip(named(case.meta), grads, strict=True))
    assert factor is not None and float(factor.abs().sum()) > 0
    torch.testing.assert_close(by_name["network.head.bias"], torch.full((1,), 3.0, dtype=torch.float64))
    assert by_name["network.trunk.0.weight"] is None


def test_former_and_short_names_of_rules() -> None:
    former = MAMLRegressionConfig(learn_inner_rates=True)
    assert former.inner_rule() == MAMLRegressionConfig(rule="meta_sgd").inner_rule()
    with pytest.raises(ValidationError, match="expected false with rule adam, got true"):
        MAMLRegressionConfig(learn_inner_rates=True, rule={"name": "adam"})
