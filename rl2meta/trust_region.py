"""A step as long as a trust region allows: pure functions of flat vectors.

    s = H⁻¹g        β = √(2δ / sᵀHs)        θ ← θ + β ρᵏ s,   k = 0, 1, …

Nothing here knows of policies. What is maximised comes as numbers, the metric as its products with vectors.

Source: Schulman et al. 2015 (arXiv 1502.05477), section 6 and appendix C.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

Product = Callable[[Tensor], Tensor]
"""v -> Hv, for a symmetric matrix H and vectors [n]."""


def hessian_product(function: Callable[[Tensor], Tensor], x: Tensor) -> Product:
    """Return v -> ∇²f(x) v for a scalar function of a tensor; v has the shape of x.

    The graph of ∇f is kept, so that each product costs one pass back through it (Pearlmutter 1994).
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
    """Return v -> Jᵀ ∇²ℓ J v, with J the Jacobian of ``outputs`` at x, and ∇²ℓ the Hessian of ``loss`` there.

    It is the Hessian of ℓ∘outputs wherever ∇ℓ is zero. So it is for a KL divergence from the current outputs,
    whose value and gradient are zero and whose Hessian is the Fisher metric; and no third derivative is
    ever taken, even if ``outputs`` hold a gradient.

    Args:
        outputs: x [n] -> a tensor.
        loss: that tensor -> a scalar.
        x: where, [n].
    """
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        z = outputs(x)
        u = torch.zeros_like(z).requires_grad_()
        # Jᵀu is linear in u, so its derivative along v is Jv: forward mode out of two passes back.
        (pulled,) = torch.autograd.grad(z, x, u, create_graph=True)
    curved = hessian_product(loss, z)

    def product(v: Tensor) -> Tensor:
        (pushed,) = torch.autograd.grad(pulled, u, v, retain_graph=True)
        return torch.autograd.grad(z, x, curved(pushed), retain_graph=True)[0]

    return product


def conjugate_gradient(product: Product, b: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
    """Return x with Hx ≈ b, exact after n iterations for a positive definite H of size n; and b − Hx.

    It stops, without asking the device, where it has converged, and where it meets a direction that is not of
    positive curvature, with what it has until then.

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
    """Return β s, with s = H⁻¹g and β = √(2δ / sᵀHs): where the quadratic model of the KL reaches δ.

    Zero where there is no gradient, or no positive curvature along it.
    """
    direction, residual = conjugate_gradient(product, gradient, iterations)
    square = direction.dot(gradient - residual)
    possible = square > 0
    return torch.where(possible, (2 * max_kl / torch.where(possible, square, 1.0)).sqrt(), 0.0) * direction


class Measured(NamedTuple):
    """What a line search looks at, scalars.

    Attributes:
        surrogate: what is to rise.
        kl: the distance from the start, which may not exceed the radius.
    """

    surrogate: Tensor
    kl: Tensor


class Found(NamedTuple):
    """Where a line search ended.

    Attributes:
        x: the vector that was accepted, or the very ``start`` that was given.
        measured: what was measured there.
        scale: the fraction of the step that was taken; 0 if none was accepted.
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
    """Return the first of start + step, start + ρ step, start + ρ² step, … that is better and near enough.

    Better: the surrogate is above that of ``start``. Near: the KL is at most ``max_kl``. Numbers that are not
    finite are neither. If none is, the answer is ``start`` itself, so that no half a step stays behind.
    ``before`` is what ``measure`` gives at ``start``, where that is known already.
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
