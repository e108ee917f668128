"""A learner's state: initial weights from a seed; network and optimiser to and from named tensors."""

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

Network = TypeVar("Network")


def state_of(network: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> dict[str, Tensor]:
    """Return the network's state as ``network.…``, and the optimiser's moments as ``optimizer.….…``."""
    state = {f"network.{name}": tensor for name, tensor in network.state_dict().items()}
    moments = {} if optimizer is None else optimizer.state_dict()["state"]
    for index, named in moments.items():
        state |= {f"optimizer.{index}.{name}": tensor for name, tensor in named.items()}
    return state


def load_state(
    state: Mapping[str, Tensor], network: nn.Module, optimizer: torch.optim.Optimizer | None = None
) -> None:
    """Load a state from ``state_of``; names and shapes of the network must match exactly.

    Raises:
        RuntimeError: if they do not match, or a moment of the optimiser is missing or has another shape.
    """
    network.load_state_dict(under("network.", state))
    if optimizer is None:
        return
    moments: dict[int, dict[str, Tensor]] = {}
    for name, tensor in under("optimizer.", state).items():
        index, moment = name.split(".")
        moments.setdefault(int(index), {})[moment] = tensor
    _refuse_unfit(moments, [weights for group in optimizer.param_groups for weights in group["params"]])
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": moments, "param_groups": groups})


def _refuse_unfit(moments: Mapping[int, Mapping[str, Tensor]], parameters: Sequence[Tensor]) -> None:
    """Refuse moments that torch would load and fail on later; each has the shape of its weights, or none."""
    every = {name for named in moments.values() for name in named}
    for index, named in moments.items():
        shape = parameters[index].shape
        odd = [name for name in every if name not in named or named[name].shape not in (shape, ())]
        if odd:
            raise RuntimeError(
                f"moments {', '.join(sorted(odd))} of weights {index} are missing or misshapen"
            )


def named_under(prefix: str, module: nn.Module) -> dict[str, Tensor]:
    """Return the state of a module, with the prefix before its names; ``under`` takes it away again."""
    return {f"{prefix}{name}": tensor for name, tensor in module.state_dict().items()}


def under(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors whose names begin with ``prefix``, without the prefix in their names."""
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def seeded(make: Callable[[], Network], seed: int) -> Network:
    """Build a network with initial weights from the seed; the global random state does not change."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return make()
