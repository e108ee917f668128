"""The longest step within a trust region, as pure functions of flat vectors.

    s = H⁻¹g        β = √(2δ / sᵀHs)        θ ← θ + β ρᵏ s,   k = 0, 1, …

This module knows nothing about policies: it gets the objective as numbers, and the metric as a function that
multiplies it with vectors.

Source: Schulman et al. 2015 (arXiv 1502.05477), section 6 and appendix C.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from rl2meta.kernels import fixed_weights

Product = Callable[[Tensor], Tensor]
"""v -> Hv, for a symmetric matrix H and vectors [n]."""


def hessian_product(function: Callable[[Tensor], Tensor], x: Tensor) -> Product:
    """Return v -> ∇²f(x) v for a scalar function of a tensor; v has the shape of x.

    The graph of ∇f is kept, so each product costs one backward pass through it (Pearlmutter 1994).
    """
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(function(x), x, create_graph=True)

    def product(v: Tensor) -> Tensor:
        return torch.autograd.grad(gradient, x, v, retain_graph=True)[0]

    return product


def gauss_newton_product(
    outputs: Callable[[Tensor], Tensor], loss: Callable[[Tensor], Tensor], x: Tensor
) -> Product:
    """Return v -> Jᵀ ∇²ℓ J v, with the Jacobian J of ``outputs`` and the Hessian ∇²ℓ of ``loss``, both at x.

    This is the Hessian of ℓ∘outputs wherever ∇ℓ is zero. A KL divergence from the current outputs is such a
    case: its value and gradient are zero, and its Hessian is the Fisher metric. No third derivative is
    computed, even if ``outputs`` contains a gradient.

    Args:
        outputs: x [n] -> a tensor.
        loss: this tensor -> a scalar.
        x: the point, [n].
    """
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        z = outputs(x)
        u = torch.zeros_like(z).requires_grad_()
        # Jᵀu is linear in u, so its derivative in direction v is Jv: forward mode by two backward passes.
        (pulled,) = torch.autograd.grad(z, x, u, create_graph=True)
    curved = hessian_product(loss, z)

    def product(v: Tensor) -> Tensor:
        with fixed_weights():  # the outputs are fixed, and u alone is left
            (pushed,) = torch.autograd.grad(pulled, u, v, retain_graph=True)
        return torch.autograd.grad(z, x, curved(pushed), retain_graph=True)[0]

    return product


def conjugate_gradient(product: Product, b: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
    """Return x with Hx ≈ b, and b − Hx; x is exact after n iterations if H is positive definite of size n.

    When it has converged, or finds a direction without positive curvature, x no longer changes. The remaining
    iterations still run, so nothing is read back from the device.

    Source: Hestenes & Stiefel 1952.
    """
    x, residual, direction = torch.zeros_like(b), b.clone(), b.clone()
    square = b.dot(b)
    enough = square * torch.finfo(b.dtype).eps ** 2
    for _ in range(iterations):
        image = product(direction)
        curvature = direction.dot(image)
        going = (curvature > 0) & (square > enough)
        length = torch.where(going, square / torch.where(going, curvature, 1.0), 0.0)
        x = x + length * direction
        residual = residual - length * image
        following = residual.dot(residual)
        direction = torch.where(going, residual + (following / square) * direction, direction)
        square = torch.where(going, following, 0.0)
    return x, residual


def longest_step(product: Product, gradient: Tensor, max_kl: float, iterations: int) -> Tensor:
    """Return β s, with s = H⁻¹g and β = √(2δ / sᵀHs): there the quadratic model of the KL reaches δ.

    The step is zero if the gradient is zero, or has no positive curvature in its direction.
    """
    direction, residual = conjugate_gradient(product, gradient, iterations)
    square = direction.dot(gradient - residual)
    possible = square > 0
    return torch.where(possible, (2 * max_kl / torch.where(possible, square, 1.0)).sqrt(), 0.0) * direction


class Measured(NamedTuple):
    """The two scalars that a line search measures.

    Attributes:
        surrogate: the objective, which must increase.
        kl: the distance from the start, which must not exceed the radius.
    """

    surrogate: Tensor
    kl: Tensor


class Found(NamedTuple):
    """The result of a line search.

    Attributes:
        x: the accepted vector, or ``start`` itself if none was accepted.
        measured: the surrogate and the KL at x.
        scale: the accepted fraction of the step; 0 if none was accepted.
    """

    x: Tensor
    measured: Measured
    scale: float


def line_search(
    measure: Callable[[Tensor], Measured],
    start: Tensor,
    step: Tensor,
    max_kl: float,
    shrink: float = 0.5,
    tries: int = 10,
    before: Measured | None = None,
) -> Found:
    """Return the first acceptable point of start + step, start + ρ step, start + ρ² step, etc.

    A point is acceptable if its surrogate is larger than at ``start``, its KL is at most ``max_kl``, and both
    are finite. If no point is acceptable, the result is ``start`` itself. ``before`` is the result of
    ``measure`` at ``start``, if it is already known.
    """
    if before is None:
        before = measure(start)
    for k in range(tries):
        x, scale = start + shrink**k * step, shrink**k
        measured = measure(x)
        finite = measured.surrogate.isfinite() & measured.kl.isfinite()
        if bool(finite & (measured.surrogate > before.surrogate) & (measured.kl <= max_kl)):
            return Found(x, measured, scale)
    return Found(start, before, 0.0)
