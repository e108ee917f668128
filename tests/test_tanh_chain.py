"""Compiled chains of linear layers and tanh against torch in float64, up to second derivatives."""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import gymnasium as gym
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector

from rl2meta import kernels
from rl2meta.agents.maml_trpo import MAMLTRPOConfig, MAMLTRPOLearner
from rl2meta.agents.outer_problem import OuterProblem
from rl2meta.divided import equal_parts
from rl2meta.envs.bandits import BernoulliBandits
from rl2meta.envs.navigation import PointNavigation
from rl2meta.kernels import set_kernels
from rl2meta.layers import Tanh, named_layers, stacked_chain
from rl2meta.randomness import generator
from rl2meta.rollout import RolloutWorker

pytest.importorskip("numba", reason="compiled kernels need the extra: pip install 'rl2meta[fast]'")
from rl2meta import tanh_chain
from rl2meta.tanh_chain import chain

SHAPES = [(3, 70, (2, 64, 64, 2)), (1, 1, (1, 1, 1)), (2, 9, (5, 17, 3)), (5, 129, (4, 20, 33, 7, 1))]
"""Tasks, rows, length of the input and of each layer: fewer and more than fit into vectors and blocks."""


@pytest.fixture(autouse=True)
def by_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Begin with torch, and end with what was there."""
    monkeypatch.setattr(kernels, "_chosen", ["torch"])


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator(5, "numbers", *shape))


def weights_of(tasks: int, sizes: tuple[int, ...]) -> list[Tensor]:
    """Return W and b of each layer, for every task others."""
    shapes = [((out, into), (out,)) for into, out in pairwise(sizes)]
    return [random(tasks, *shape) / shape[-1] ** 0.5 for pair in shapes for shape in pair]


def plain(weights: list[Tensor], x: Tensor) -> Tensor:
    """Return what ``chain`` does."""
    for i in range(0, len(weights), 2):
        x = torch.baddbmm(weights[i + 1].unsqueeze(1), x if i == 0 else x.tanh(), weights[i].mT)
    return x


def derivatives(run: Any, weights: list[Tensor], x: Tensor) -> list[Tensor]:
    """Return y, a gradient, and a gradient of a function of this gradient."""
    weights = [weight.clone().requires_grad_() for weight in weights]
    y = run(weights, x)
    first = torch.autograd.grad(y.pow(3).sum(), weights, create_graph=True)
    second = torch.autograd.grad(sum((each.pow(2).sum() for each in first), y.sum()), weights)
    return [y.detach(), *(each.detach() for each in first), *second]


def assert_near(found: list[Tensor], exact: list[Tensor], tolerance: float) -> None:
    for ours, theirs in zip(found, exact, strict=True):
        scale = max(1.0, float(theirs.abs().max()))
        torch.testing.assert_close(ours.double(), theirs.double(), atol=tolerance * scale, rtol=0)


@pytest.mark.parametrize(("tasks", "rows", "sizes"), SHAPES)
def test_a_chain_and_two_derivatives_are_those_of_torch_in_float64(
    tasks: int, rows: int, sizes: tuple[int, ...]
) -> None:
    weights, x = weights_of(tasks, sizes), random(tasks, rows, sizes[0])
    exact = derivatives(plain, [weight.double() for weight in weights], x.double())
    found = derivatives(chain, weights, x)
    assert_near(found, exact, 3e-6)
    with torch.no_grad():
        assert torch.equal(chain(weights, x), found[0])  # although nothing is kept for derivatives


def test_one_set_of_weights_for_all_tasks_gets_the_sum_of_their_gradients() -> None:
    own, x = weights_of(1, (3, 20, 2)), random(4, 30, 3)

    def shared(run: Any) -> Any:
        return lambda weights, x: run([w.expand(len(x), *w.shape[1:]) for w in weights], x)

    exact = derivatives(shared(plain), [weight.double() for weight in own], x.double())
    assert_near(derivatives(shared(chain), own, x), exact, 3e-6)


def test_threads_change_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    weights, x, before = weights_of(5, (2, 24, 3)), random(5, 77, 2), torch.get_num_threads()
    parts: list[int] = []

    def counted(number: int, worth: int) -> Any:
        found = equal_parts(number, worth)
        parts.append(len(found))
        return found

    monkeypatch.setattr(tanh_chain, "equal_parts", counted)
    monkeypatch.setattr(tanh_chain, "_ROWS_OF_A_THREAD", 1)
    try:
        torch.set_num_threads(1)
        alone = derivatives(chain, weights, x)
        torch.set_num_threads(3)
        assert all(map(torch.equal, alone, derivatives(chain, weights, x)))
    finally:
        torch.set_num_threads(before)
    assert set(parts) == {1, 3}


def test_a_number_that_is_none_stays_in_its_row() -> None:
    weights, x = weights_of(2, (3, 16, 2)), random(2, 20, 3)
    x[1, 7, 2] = torch.nan
    lost = chain(weights, x).isnan()
    assert lost[1, 7].all() and lost.sum() == 2


@torch.no_grad()
def test_acting_packs_once_and_sees_every_change_of_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    weights, x, packed = weights_of(2, (3, 16, 2)), random(2, 20, 3), tanh_chain._packed
    calls: list[int] = []

    def counted(*given: Any) -> Tensor:
        calls.append(1)
        return packed(*given)

    monkeypatch.setattr(tanh_chain, "_packed", counted)
    before = chain(weights, x)
    assert torch.equal(chain(weights, x), before) and len(calls) == 1
    assert torch.equal(chain([weight.clone() for weight in weights], x), before) and len(calls) == 2
    chain(weights, x)
    weights[2].mul_(2)  # in place, as a learner does
    changed = chain(weights, x)
    assert not torch.equal(changed, before)
    assert torch.equal(changed, chain([weight.clone() for weight in weights], x))
    other = [*weights[:3], weights[3] + 1]
    torch.testing.assert_close(chain(other, x), changed + 1)
    whole = [random(1, 16, 3), random(1, 16), *weights[2:]]
    expanded = [whole[0].expand(2, -1, -1), whole[1].expand(2, -1), *whole[2:]]
    first = chain(expanded, x)
    whole[0].zero_()  # what the views show
    assert not torch.equal(chain(expanded, x), first)


def test_an_agent_acts_in_inference_mode_too() -> None:
    weights, x = weights_of(2, (3, 16, 2)), random(2, 20, 3)
    with torch.inference_mode():
        inside = [weight.clone() for weight in weights]
        found = [chain(inside, x) for _ in range(2)]
    assert all(torch.equal(each, chain(weights, x)) for each in found)


@pytest.mark.parametrize(
    ("weights", "shape"),
    [
        (weights_of(1, (3, 16, 2)), (4, 20, 3)),
        (weights_of(4, (3, 16, 2)), (2, 20, 3)),
        (weights_of(2, (3, 16, 2)), (2, 20, 5)),
        ([weight.double() for weight in weights_of(2, (3, 16, 2))], (2, 20, 3)),
    ],
)
def test_weights_that_do_not_fit_are_refused(weights: list[Tensor], shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected float32 weights of shapes \[.*got torch.float"):
        chain(weights, random(*shape))


def test_derivatives_that_nobody_asked_for_are_left_out_where_weights_are_fixed() -> None:
    weights, x = weights_of(2, (3, 16, 2)), random(2, 20, 3)
    weights = [weight.requires_grad_() for weight in weights]
    u = random(2, 20, 2).requires_grad_()
    pulled = torch.autograd.grad(chain(weights, x), weights, u, create_graph=True)
    total = sum((each.square().sum() for each in pulled), torch.zeros(()))
    wanted = torch.autograd.grad(total, [u, *weights], retain_graph=True)
    with kernels.fixed_weights():
        alone, *others = torch.autograd.grad(total, [u, *weights], allow_unused=True)
    torch.testing.assert_close(alone, wanted[0])
    assert others == len(weights) * [None]
    pulled = torch.autograd.grad(chain(weights, x), weights, u, create_graph=True)
    with kernels.fixed_weights():
        (again,) = torch.autograd.grad(pulled, u, pulled, create_graph=True)
    assert again.requires_grad


def test_third_derivatives_are_refused() -> None:
    weights = [weight.requires_grad_() for weight in weights_of(1, (2, 8, 1))]
    first = torch.autograd.grad(chain(weights, random(1, 9, 2)).pow(3).sum(), weights, create_graph=True)
    total = sum((each.pow(2).sum() for each in first), torch.zeros(()))
    second = torch.autograd.grad(total, weights, create_graph=True)
    with pytest.raises(RuntimeError, match=r"got a third one.*set_kernels\('torch'\)"):
        torch.autograd.grad(sum((each.sum() for each in second), torch.zeros(())), weights)


def network(*layers: nn.Module) -> Any:
    """Return layers with the weights of two tasks."""
    named = named_layers(nn.Sequential(*layers))
    weights = {
        prefix + name: random(2, *value.shape)
        for prefix, layer in named
        for name, value in layer.named_parameters()
    }
    return named, weights


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Choose compiled kernels; return the number of rows of each call of them."""
    set_kernels("compiled")
    rows: list[int] = []

    def counted(weights: list[Tensor], x: Tensor) -> Tensor:
        rows.append(x.shape[1])
        return chain(weights, x)

    monkeypatch.setattr(tanh_chain, "chain", counted)
    yield rows


def test_layers_of_other_kinds_and_inputs_that_get_gradients_are_run_by_torch(calls: list[int]) -> None:
    fitting = network(nn.Linear(3, 8), Tanh(), nn.Linear(8, 2))
    stacked_chain(*fitting, random(2, 5, 3))
    assert calls == [5]
    others = [
        network(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2)),
        network(nn.Linear(3, 8, bias=False), Tanh(), nn.Linear(8, 2)),
        network(nn.Linear(3, 8), Tanh()),
        network(nn.Linear(3, 2)),
    ]
    for other in others:
        stacked_chain(*other, random(2, 5, 3))
    x = random(2, 5, 3).requires_grad_()
    torch.autograd.grad(stacked_chain(*fitting, x).sum(), x)
    double = {name: value.double() for name, value in fitting[1].items()}
    stacked_chain(fitting[0], double, random(2, 5, 3).double())
    assert calls == [5]


def problem(law: Any, episodes: int, **settings: Any) -> tuple[OuterProblem, Tensor]:
    config = MAMLTRPOConfig(episodes_per_phase=4, inner_learning_rates=[0.3], **settings)
    learner = MAMLTRPOLearner(law.observation_space, law.action_space, config)
    tasks = law.sample(6, generator(1, "tasks"), "train")
    trial = RolloutWorker(law).run(learner.agent, tasks, episodes, 2)
    return learner.outer_problem(trial), parameters_to_vector(learner.meta.parameters()).detach()


def test_a_policy_that_looks_observations_up_is_no_chain() -> None:
    action = gym.spaces.Discrete(3)
    many, few = (
        MAMLTRPOLearner(gym.spaces.Discrete(n), action, MAMLTRPOConfig(hidden_sizes=[8])) for n in (5000, 5)
    )
    assert not many._compiles() and not few._compiles()
    set_kernels("compiled")
    assert few._compiles() and not many._compiles()


@pytest.mark.parametrize(
    ("law", "episodes", "settings"),
    [
        (PointNavigation(horizon=20), 8, {}),
        (PointNavigation(horizon=20), 16, {"query_weights": None, "learn_inner_rates": True}),
        (BernoulliBandits(num_arms=3), 12, {"baseline": False, "hidden_sizes": [24]}),
    ],
)
def test_the_outer_step_of_maml_has_the_gradient_and_the_metric_of_torch(
    calls: list[int], law: Any, episodes: int, settings: dict[str, Any]
) -> None:
    set_kernels("torch")
    outer, start = problem(law, episodes, **settings)
    v = random(len(start))
    found = {}
    for kernels_ in ("torch", "compiled"):
        set_kernels(kernels_)  # type: ignore[arg-type]
        point = outer.linearised(start)
        measured = outer.measure(start + 0.03 * v, point.policies)
        found[kernels_] = [point.gradient, outer.metric(start)(v), torch.stack(measured)]
    assert calls
    for ours, theirs in zip(found["compiled"], found["torch"], strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-5 * float(theirs.abs().max()) + 1e-7, rtol=0)
