"""A critic that knows more than the agent: the regrets of all actions. It exists in training only.

A baseline that does not depend on the present action leaves the expected gradient as it is, whatever else it
knows. What the agent cannot know explains much of the luck of a trial, so the gradient has less noise.

Source: Pinto et al. 2018, *Asymmetric Actor Critic for Image-Based Robot Learning* (arXiv 1710.06542).
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from rl2meta.adam import Adam
from rl2meta.learner_state import load_state, state_of
from rl2meta.returns import mean_or_zero
from rl2meta.shards import ALONE, Lost, Shards, set_gradients
from rl2meta.training import clip_gradients

_CHUNKS = 4  # minibatches of a pass


class Known(NamedTuple):
    """What the critic sees of each step.

    Attributes:
        features: of the agent's core, [T, B, features].
        regrets: of all actions, in units of about 1, [T, B, A].
        probabilities: of all actions, [T, B, A].
        elapsed: fractions of episode and trial that are over, [T, B, 2].
    """

    features: Tensor
    regrets: Tensor
    probabilities: Tensor
    elapsed: Tensor


class Inputs(NamedTuple):
    """The same as the critic's layers take it: actions first, because a processor then computes faster.

    Attributes:
        actions: regret_a, π_a and π_a regret_a, [A, T, B, 3].
        step: features, h/H and t/T, [T, B, features + 2].
    """

    actions: Tensor
    step: Tensor

    @classmethod
    def of(cls, known: Known) -> "Inputs":
        """Return what the layers take."""
        regrets, probabilities = (x.movedim(-1, 0) for x in (known.regrets, known.probabilities))
        actions = torch.stack([regrets, probabilities, regrets * probabilities], dim=-1).contiguous()
        return cls(actions, torch.cat([known.features, known.elapsed], dim=-1))

    def trials(self, index: Tensor) -> "Inputs":
        """Return the trials at ``index``."""
        return Inputs(self.actions.index_select(2, index), self.step.index_select(1, index))


class _Pooled(torch.autograd.Function):
    """y = ReLU(U x + c) for x [A, T, B, 3] -> mean and maximum of y over actions, [T, B, 2n].

    Gradients are by hand, in few passes. The gradient of a maximum is shared equally where actions tie.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        y = functional.linear(x, weight, bias).relu_()
        largest = y.amax(dim=0)
        ctx.save_for_backward(x, y, largest)
        return torch.cat([y.mean(dim=0), largest], dim=-1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_pooled: Tensor) -> tuple[None, Tensor, Tensor]:
        x, y, largest = ctx.saved_tensors
        d_mean, d_largest = d_pooled.chunk(2, dim=-1)
        shares = (y == largest).to(y.dtype)
        d_y = shares.mul_(d_largest / shares.sum(dim=0)).add_(d_mean / len(y)).mul_(y.sign())
        flat = d_y.flatten(0, -2)
        return None, flat.t() @ x.flatten(0, -2), flat.sum(dim=0)


class PrivilegedCritic(nn.Module):
    """Regrets and probabilities of all actions, the core's features and the time -> a value, [T, B].

        y_a = ReLU(U [regret_a, π_a, π_a regret_a] + c)
        value = MLP([mean_a y_a, max_a y_a, features, h/H, t/T])

    Actions are exchangeable for it, and no weight depends on how many there are.

    Args:
        features: length of the core's features.
        learning_rate: of Adam.
        epochs: passes over each batch.
    """

    def __init__(self, features: int, learning_rate: float, epochs: int) -> None:
        super().__init__()
        self.epochs = epochs
        self.action = nn.Sequential(nn.Linear(3, 32), nn.ReLU())
        self.value = nn.Sequential(
            *(nn.Linear(64 + features + 2, 128), nn.ReLU()),
            *(nn.Linear(128, 128), nn.ReLU()),
            nn.Linear(128, 1),
        )
        nn.init.zeros_(self.value[-1].weight)  # type: ignore[arg-type]
        nn.init.zeros_(self.value[-1].bias)  # type: ignore[arg-type]
        self._optimizer = Adam(self.parameters(), lr=learning_rate, fused=True)

    def forward(self, known: Known) -> Tensor:
        """Return the value of each step, [T, B]."""
        return self._valued(Inputs.of(known))

    def _valued(self, given: Inputs) -> Tensor:
        weights = self.action[0].parameters()
        pooled = _Pooled.apply(given.actions, *weights)  # type: ignore[no-untyped-call]  # [T, B, 64]
        first, *rest = self.value
        assert isinstance(first, nn.Linear)
        # Two products: what does not depend on the critic's weights needs no gradient.
        weight, n = first.weight, pooled.shape[-1]
        layer = functional.linear(pooled.flatten(0, 1), weight[:, :n], first.bias)
        layer = torch.addmm(layer, given.step.flatten(0, 1), weight[:, n:].t())
        for layer_above in rest:
            layer = layer_above(layer)
        return layer.view(pooled.shape[:2])  # [T × B, 1] -> [T, B]

    def learn(
        self,
        known: Sequence[Known],
        targets: Sequence[Tensor],
        masks: Sequence[Tensor],
        generators: Sequence[torch.Generator],
        shards: Shards = ALONE,
    ) -> None:
        """Take ``epochs`` passes over a batch of trials, in minibatches, towards ``targets`` [T, B]."""
        weights, inputs = list(self.parameters()), [Inputs.of(each) for each in known]
        for _ in range(self.epochs):
            orders = [
                torch.randperm(mask.shape[1], generator=source).to(mask.device).chunk(_CHUNKS)
                for mask, source in zip(masks, generators, strict=True)
            ]
            for parts in zip(*orders, strict=True):
                rows = zip(inputs, targets, masks, parts, strict=True)
                set_gradients(weights, [partial(self._lost, *row) for row in rows], shards)
                clip_gradients(weights, 1.0)
                self._optimizer.step()

    def _lost(self, given: Inputs, target: Tensor, mask: Tensor, index: Tensor) -> Lost:
        target, counted = target.index_select(1, index), mask.index_select(1, index)
        error = self._valued(given.trials(index)) - target
        # In a trial of one step nothing counts; then there is nothing to learn.
        return Lost(mean_or_zero(error.square(), counted), counted.sum(), {})

    def state(self) -> dict[str, Tensor]:
        """Return the states of network and optimiser as named tensors."""
        return state_of(self, self._optimizer)

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Load the states of network and optimiser; names and shapes must match exactly."""
        load_state(state, self, self._optimizer)
