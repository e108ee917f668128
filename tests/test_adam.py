"""Adam without the compiler takes torch's steps, to the bit, and its states go both ways."""

import copy

import pytest
import torch
from torch import Tensor, nn

from rl2meta.adam import Adam
from rl2meta.randomness import generator
from rl2meta.training import clip_gradients

X = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))


def steps(network: nn.Module, optimizer: torch.optim.Optimizer, count: int) -> list[Tensor]:
    for _ in range(count):
        optimizer.zero_grad()
        network(X).square().mean().backward()
        optimizer.step()
    return [weights.detach().clone() for weights in network.parameters()]


def test_the_steps_are_those_of_torch() -> None:
    ours = nn.Linear(3, 2)
    theirs = copy.deepcopy(ours)
    before = [weights.detach().clone() for weights in ours.parameters()]
    mine = Adam(ours.parameters(), lr=0.1, fused=True)
    its = torch.optim.Adam(theirs.parameters(), lr=0.1, fused=True)
    assert all(map(torch.equal, steps(ours, mine, 3), steps(theirs, its, 3)))
    assert not any(map(torch.equal, before, ours.parameters()))
    assert all(weights.is_leaf and weights.requires_grad for weights in ours.parameters())
    saved, its_own = copy.deepcopy(mine.state_dict()), copy.deepcopy(its.state_dict())
    mine.load_state_dict(its_own)
    its.load_state_dict(saved)
    assert all(map(torch.equal, steps(ours, mine, 2), steps(theirs, its, 2)))


@pytest.mark.parametrize("largest", [0.1, 1e6])
def test_clips_as_torch_does_to_the_bit(largest: float) -> None:
    found = []
    for clip in (clip_gradients, torch.nn.utils.clip_grad_norm_):
        weights = [torch.zeros(shape, requires_grad=True) for shape in ((3, 4), (5,), (2,))]
        for weight in weights[:2]:  # the last one has no gradient
            weight.grad = torch.randn(weight.shape, generator=generator(0, "gradient"))
        found.append([clip(weights, largest), *(weight.grad for weight in weights[:2])])
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))
