"""A learner's state: initial weights of a seed; network and optimiser as named tensors, and back."""

from collections.abc import Callable, Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

Network = TypeVar("Network", bound=nn.Module)


def state_of(network: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> dict[str, Tensor]:
    """Return ``network.…`` and, of the moments that the optimiser keeps, ``optimizer.….…``."""
    state = {f"network.{name}": tensor for name, tensor in network.state_dict().items()}
    moments = {} if optimizer is None else optimizer.state_dict()["state"]
    for index, named in moments.items():
        state |= {f"optimizer.{index}.{name}": tensor for name, tensor in named.items()}
    return state


def load_state(
    state: Mapping[str, Tensor], network: nn.Module, optimizer: torch.optim.Optimizer | None = None
) -> None:
    """Take on what ``state_of`` returned; names and shapes of the network must match exactly.

    Raises:
        RuntimeError: if they do not.
    """
    network.load_state_dict(under("network.", state))
    if optimizer is None:
        return
    moments: dict[int, dict[str, Tensor]] = {}
    for name, tensor in under("optimizer.", state).items():
        index, moment = name.split(".")
        moments.setdefault(int(index), {})[moment] = tensor
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": moments, "param_groups": groups})


def under(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return what stands under ``prefix`` by the rest of its name."""
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def seeded(make: Callable[[], Network], seed: int) -> Network:
    """Build a network whose initial weights depend on the seed alone; the global state stays as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return make()
