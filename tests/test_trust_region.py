"""The trust region, in flat vectors: against explicit matrices."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.autograd.functional import hessian as hessian_of
from torch.autograd.functional import jacobian as jacobian_of

from rl2meta.trust_region import (
    Measured,
    conjugate_gradient,
    gauss_newton_product,
    hessian_product,
    line_search,
    longest_step,
)


def positive(n: int, seed: int = 0) -> Tensor:
    root = torch.randn(n, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return root @ root.T + 0.1 * torch.eye(n, dtype=torch.float64)


def vector(n: int, seed: int = 1) -> Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_conjugate_gradient_solves_a_system_of_n_in_n_steps() -> None:
    h, b = positive(8), vector(8)
    x = conjugate_gradient(lambda v: h @ v, b, 8)[0]
    torch.testing.assert_close(x, torch.linalg.solve(h, b), rtol=1e-9, atol=1e-9)
    assert not torch.allclose(conjugate_gradient(lambda v: h @ v, b, 2)[0], x, rtol=1e-2)


def test_conjugate_gradient_goes_no_further_once_it_is_there() -> None:
    h, b = positive(4), vector(4)
    x, _ = conjugate_gradient(lambda v: h @ v, b, 200)
    torch.testing.assert_close(x, torch.linalg.solve(h, b), rtol=1e-9, atol=1e-9)


def test_conjugate_gradient_of_nothing_is_nothing() -> None:
    h = positive(4)
    assert not conjugate_gradient(lambda v: h @ v, torch.zeros(4, dtype=torch.float64), 5)[0].any()


def test_conjugate_gradient_stops_where_curvature_is_not_positive() -> None:
    b = torch.tensor([1.0, 1.0])
    h = torch.diag(torch.tensor([1.0, -3.0]))
    assert not conjugate_gradient(lambda v: h @ v, b, 5)[0].any()  # bᵀHb < 0: not a single step
    h = torch.diag(torch.tensor([2.0, 0.0]))
    assert conjugate_gradient(lambda v: h @ v, b, 5)[0].isfinite().all()


@pytest.mark.parametrize("iterations", [0, 1, 3, 8, 30])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_conjugate_gradient_tells_what_is_left_over(iterations: int, sign: float) -> None:
    h, b = sign * positive(8), vector(8)
    x, residual = conjugate_gradient(lambda v: h @ v, b, iterations)
    torch.testing.assert_close(residual, b - h @ x, rtol=1e-9, atol=1e-9)
    assert (float(residual.norm()) < 1e-9) == (iterations >= 8 and sign > 0)


def quartic(x: Tensor) -> Tensor:
    return (x**4).sum() + (x[0] * x[1]).sin() * x[2]


def test_hessian_product_is_that_of_the_explicit_hessian() -> None:
    x, v = vector(5), vector(5, 2)
    hessian = hessian_of(quartic, x)
    torch.testing.assert_close(hessian_product(quartic, x)(v), hessian @ v)


def outputs(x: Tensor) -> Tensor:
    return torch.stack([(x[0] * x[1]).sin(), x.square().sum(), x[2].exp() * x[3], x[4] - x[0] ** 3])


def test_gauss_newton_product_is_that_of_the_explicit_matrix() -> None:
    x, v = vector(5), vector(5, 2)
    jacobian = jacobian_of(outputs, x)
    curvature = hessian_of(lambda z: (z**4).sum(), outputs(x))
    product = gauss_newton_product(outputs, lambda z: (z**4).sum(), x)
    torch.testing.assert_close(product(v), jacobian.T @ (curvature @ (jacobian @ v)))
    torch.testing.assert_close(product(2 * v), 2 * product(v))


def test_gauss_newton_product_is_the_hessian_where_the_loss_is_flat() -> None:
    x, v = vector(5), vector(5, 2)
    there = outputs(x).detach()

    def distance(z: Tensor) -> Tensor:
        return (z - there).square().sum() + (z - there).prod()

    hessian = hessian_of(lambda y: distance(outputs(y)), x)
    torch.testing.assert_close(gauss_newton_product(outputs, distance, x)(v), hessian @ v)


def test_longest_step_reaches_the_radius_of_the_quadratic_model() -> None:
    h, gradient = positive(6), vector(6)
    step = longest_step(lambda v: h @ v, gradient, 0.01, 6)
    assert float(step @ h @ step) / 2 == pytest.approx(0.01)
    torch.testing.assert_close(
        step / step.norm(), torch.linalg.solve(h, gradient) / torch.linalg.solve(h, gradient).norm()
    )


@pytest.mark.parametrize("iterations", [1, 2, 4, 20])
def test_longest_step_is_as_long_as_the_product_says_wherever_conjugate_gradient_stopped(
    iterations: int,
) -> None:
    h, gradient, calls = positive(12), vector(12), []

    def product(v: Tensor) -> Tensor:
        calls.append(v)
        return h @ v

    direction, _ = conjugate_gradient(product, gradient, iterations)
    length = (2 * 0.01 / (direction @ h @ direction)).sqrt()
    calls.clear()
    step = longest_step(product, gradient, 0.01, iterations)
    torch.testing.assert_close(step, length * direction, rtol=1e-9, atol=1e-12)
    assert len(calls) == iterations  # no further product is taken for the length


def test_longest_step_is_right_in_single_precision_however_stretched_the_metric() -> None:
    """The residual is not quite orthogonal to the step any more: sᵀg alone would be off by thousandths."""
    stretch = torch.logspace(0, -5, 50)
    for seed in range(8):
        step = longest_step(lambda v: stretch * v, vector(50, seed).float(), 0.01, 50).double()
        assert float((stretch.double() * step.square()).sum()) / 2 == pytest.approx(0.01, rel=1e-5)


def test_longest_step_without_a_gradient_or_curvature_is_none() -> None:
    h = positive(3)
    assert not longest_step(lambda v: h @ v, torch.zeros(3, dtype=torch.float64), 0.01, 5).any()
    assert not longest_step(lambda v: -v, torch.ones(3), 0.01, 5).any()


def measured(
    surrogate: Callable[[Tensor], Tensor], kl: Callable[[Tensor], Tensor]
) -> Callable[..., Measured]:
    return lambda x: Measured(surrogate(x[0]), kl(x[0]))


START, STEP = torch.zeros(1), torch.ones(1)


def test_line_search_takes_the_first_step_that_is_better_and_near_enough() -> None:
    found = line_search(measured(lambda x: x, lambda x: x**2), START, STEP, max_kl=0.1)
    assert found.scale == 0.25  # 1 and 0.5 are too far
    assert found.x.item() == 0.25
    assert found.measured.kl.item() == 0.0625
    assert found.measured.surrogate > 0
    overshoot = line_search(measured(lambda x: x * (0.3 - x), lambda x: 0 * x), START, STEP, max_kl=0.1)
    assert overshoot.scale == 0.25  # the KL alone would have taken all of it


@pytest.mark.parametrize(
    ("surrogate", "kl"),
    [
        (lambda x: -x, lambda x: 0 * x),  # never better
        (lambda x: 0 * x, lambda x: 0 * x),  # never but equal
        (lambda x: x, lambda x: x.sign()),  # never near
        (lambda x: x * torch.nan if x > 0 else x, lambda x: 0 * x),
        (lambda x: x, lambda x: x * torch.nan if x > 0 else x),
        (lambda x: x, lambda x: x * -torch.inf if x > 0 else x),
        (lambda x: x * torch.inf if x > 0 else x, lambda x: 0 * x),
    ],
)
def test_line_search_that_fails_returns_the_very_start(
    surrogate: Callable[[Tensor], Tensor], kl: Callable[[Tensor], Tensor]
) -> None:
    found = line_search(measured(surrogate, kl), START, STEP, max_kl=0.1)
    assert found.x is START
    assert found.scale == 0


@pytest.mark.parametrize("max_kl", [0.1, 1e-9])
def test_line_search_does_not_measure_a_start_that_is_known(max_kl: float) -> None:
    places: list[float] = []

    def measure(x: Tensor) -> Measured:
        places.append(x.item())
        return measured(lambda x: x, lambda x: x**2)(x)

    before = measure(START)
    places.clear()
    found = line_search(measure, START, STEP, max_kl, tries=4, before=before)
    tried, places[:] = list(places), []
    assert line_search(measure, START, STEP, max_kl, tries=4) == found
    assert places == [0.0, *tried]
    assert tried == [1.0, 0.5, 0.25, 0.125][: 3 if max_kl == 0.1 else 4]
    if max_kl == 0.1:
        assert found.scale == 0.25
    else:
        assert found.x is START and found.measured is before


def test_line_search_compares_with_the_start_that_is_told() -> None:
    high = Measured(torch.tensor(0.3), torch.tensor(0.0))
    assert line_search(measured(lambda x: x, lambda x: 0 * x), START, STEP, 0.1, before=high).scale == 1
    higher = Measured(torch.tensor(1.5), torch.tensor(0.0))
    found = line_search(measured(lambda x: x, lambda x: 0 * x), START, STEP, 0.1, before=higher)
    assert found.scale == 0 and found.measured is higher
