"""The value of a state as a linear function of simple features, fitted separately to each task and phase."""

import torch
from torch import Tensor

_RIDGE = 1e-5


def linear_baseline(observation: Tensor, returns: Tensor, mask: Tensor, horizon: int | None = None) -> Tensor:
    """Return w·φ(oₜ, t), with w fitted by ridge regression to the returns of each task.

        φ(o, t) = (o, o², τ, τ², τ³, 1),  τ = t / H        w = (ΦᵀΦ / n + λI)⁻¹ ΦᵀG / n

    The ridge is necessary: one-hot states, constant observations and episodes of one step make ΦᵀΦ singular.
    One batched call in double precision solves all tasks.

    Args:
        observation: [T, num_tasks, lanes, size]; each lane is one episode and begins at its first step.
        returns: Gₜ, [T, num_tasks, lanes].
        mask: 1 for a real step and 0 for padding, [T, num_tasks, lanes].
        horizon: H, the maximum number of steps in an episode; None: T. With a fixed H, the longest episode
            of a batch does not change the fit of other tasks.

    Returns:
        The fitted values, [T, num_tasks, lanes].

    Source: Duan et al. 2016 (arXiv 1604.06778), section 6.1, the baseline of MAML's own code.
    """
    steps = len(observation)
    time = torch.arange(steps, device=observation.device, dtype=torch.float64) / (horizon or steps)
    powers = torch.stack([time, time**2, time**3, torch.ones_like(time)], dim=-1)  # [T, 4]
    o = observation.double()
    time_features = powers[:, None, None].expand(*o.shape[:3], 4)  # [T, num_tasks, lanes, 4]
    features = torch.cat([o, o.square(), time_features], dim=-1)  # [T, num_tasks, lanes, F], F = 2 size + 4
    phi = features.movedim(1, 0).flatten(1, 2)  # [num_tasks, T × lanes, F]
    counted = mask.double().movedim(1, 0).flatten(1, 2).unsqueeze(-1)  # [num_tasks, T × lanes, 1]
    target = returns.double().movedim(1, 0).flatten(1, 2).unsqueeze(-1)  # [num_tasks, T × lanes, 1]
    n = counted.sum(dim=1, keepdim=True).clamp(min=1)  # [num_tasks, 1, 1]
    gram = phi.mT @ (counted * phi) / n + _RIDGE * torch.eye(phi.shape[-1], device=o.device)
    # solve would wait for the device to check whether a matrix is singular; with the ridge none is.
    weights: Tensor = torch.linalg.solve_ex(gram, phi.mT @ (counted * target) / n)[0]  # [num_tasks, F, 1]
    values = (phi @ weights).reshape(len(phi), steps, -1).movedim(0, 1)  # [T, num_tasks, lanes]
    return values.to(returns.dtype)
