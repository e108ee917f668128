"""Adam without torch's compiler, and the clipping of its gradients."""

import inspect
from collections.abc import Sequence

import torch
from torch import Tensor


class Adam(torch.optim.Adam):
    """torch's Adam, with the same numbers to the bit; it does not import torch's compiler.

    torch wraps methods of its optimisers for ``torch.compile``. Each wrapper imports the compiler at its
    first call, although nothing is compiled; this takes longer than the import of torch. This class takes
    the methods out of their wrappers. The wrapper of ``step`` also turns gradients off: that happens here.
    """

    add_param_group = inspect.unwrap(torch.optim.Adam.add_param_group)
    zero_grad = inspect.unwrap(torch.optim.Adam.zero_grad)
    state_dict = inspect.unwrap(torch.optim.Adam.state_dict)
    load_state_dict = inspect.unwrap(torch.optim.Adam.load_state_dict)
    step = torch.no_grad()(inspect.unwrap(torch.optim.Adam.step))


def clip_gradients(weights: Sequence[Tensor], largest: float) -> Tensor:
    """Scale all gradients by min(1, largest / ‖g‖), and return their joint norm ‖g‖, [].

    The numbers are those of ``torch.nn.utils.clip_grad_norm_`` to the bit. All weights are on one device and
    of one type, so the gradients need not be sorted by these, which takes most of its time.
    """
    gradients = [weight.grad for weight in weights if weight.grad is not None]
    norm: Tensor = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
    torch._foreach_mul_(gradients, (largest / (norm + 1e-6)).clamp(max=1.0))
    return norm
