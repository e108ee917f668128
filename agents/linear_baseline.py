"""The value of a state as a linear function of simple features, fitted anew to every task and phase."""

import torch
from torch import Tensor

_RIDGE = 1e-5


def linear_baseline(observation: Tensor, returns: Tensor, mask: Tensor, horizon: int | None = None) -> Tensor:
    """Return w·φ(oₜ, t), with w fitted by ridge regression to the returns of each task.

        φ(o, t) = (o, o², τ, τ², τ³, 1),  τ = t / H        w = (ΦᵀΦ / n + λI)⁻¹ ΦᵀG / n

    The ridge matters: one-hot states, constant observations and episodes of one step make ΦᵀΦ singular. All
    tasks are solved in one batched call, in double precision.

    Args:
        observation: [T, num_tasks, lanes, size]; each lane one episode, from its first step on.
        returns: Gₜ, [T, num_tasks, lanes].
        mask: 1 where a step counts, else 0, [T, num_tasks, lanes].
        horizon: H, the steps that an episode may take; None for T. How long the longest episode of a batch
            happened to be must not move the fit of another task.

    Returns:
        The fitted values, [T, num_tasks, lanes].

    Source: Duan et al. 2016 (arXiv 1604.06778), section 6.1, the baseline of MAML's own code.
    """
    steps = len(observation)
    time = torch.arange(steps, device=observation.device, dtype=torch.float64) / (horizon or steps)
    powers = torch.stack([time, time**2, time**3, torch.ones_like(time)], dim=-1)  # [T, 4]
    o = observation.double()
    features = torch.cat([o, o.square(), powers[:, None, None].expand(*o.shape[:3], 4)], dim=-1)
    phi = features.movedim(1, 0).flatten(1, 2)  # [num_tasks, n, F]
    counted = mask.double().movedim(1, 0).flatten(1, 2).unsqueeze(-1)
    target = returns.double().movedim(1, 0).flatten(1, 2).unsqueeze(-1)
    n = counted.sum(dim=1, keepdim=True).clamp(min=1)
    gram = phi.mT @ (counted * phi) / n + _RIDGE * torch.eye(phi.shape[-1], device=o.device)
    # solve_ex: solve would wait for the device, to see whether a matrix is singular, which the ridge forbids
    weights: Tensor = torch.linalg.solve_ex(gram, phi.mT @ (counted * target) / n)[0]
    values = (phi @ weights).reshape(len(phi), steps, -1).movedim(0, 1)
    return values.to(returns.dtype)
