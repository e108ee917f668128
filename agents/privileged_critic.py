"""A critic that knows more than the agent: the regrets of all actions. It exists in training only.

A baseline that does not depend on the present action leaves the expected gradient as it is, whatever else it
knows. What the agent cannot know explains much of the luck of a trial, so the gradient has less noise.

Source: Pinto et al. 2018, *Asymmetric Actor Critic for Image-Based Robot Learning* (arXiv 1710.06542).
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from rl2meta.adam import Adam
from rl2meta.learner_state import load_state, state_of
from rl2meta.returns import mean_or_zero
from rl2meta.shards import ALONE, Lost, Shards, set_gradients

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

    def trials(self, index: Tensor) -> "Known":
        """Return the trials at ``index``."""
        return Known(*(field[:, index] for field in self))


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
        each = torch.stack([known.regrets, known.probabilities, known.regrets * known.probabilities], dim=-1)
        each = self.action(each)  # [T, B, A, 32]
        together = [each.mean(dim=-2), each.amax(dim=-2), known.features, known.elapsed]
        value: Tensor = self.value(torch.cat(together, dim=-1)).squeeze(-1)  # [T, B, 1] -> [T, B]
        return value

    def learn(
        self,
        known: Sequence[Known],
        targets: Sequence[Tensor],
        masks: Sequence[Tensor],
        generators: Sequence[torch.Generator],
        shards: Shards = ALONE,
    ) -> None:
        """Take ``epochs`` passes over a batch of trials, in minibatches, towards ``targets`` [T, B]."""
        weights = list(self.parameters())
        for _ in range(self.epochs):
            orders = [
                torch.randperm(mask.shape[1], generator=source).to(mask.device).chunk(_CHUNKS)
                for mask, source in zip(masks, generators, strict=True)
            ]
            for parts in zip(*orders, strict=True):
                rows = zip(known, targets, masks, parts, strict=True)
                set_gradients(weights, [partial(self._lost, *row) for row in rows], shards)
                nn.utils.clip_grad_norm_(weights, 1.0)
                self._optimizer.step()

    def _lost(self, known: Known, target: Tensor, mask: Tensor, index: Tensor) -> Lost:
        error, counted = self(known.trials(index)) - target[:, index], mask[:, index]
        # In a trial of one step nothing counts; then there is nothing to learn.
        return Lost(mean_or_zero(error.square(), counted), counted.sum(), {})

    def state(self) -> dict[str, Tensor]:
        """Return the states of network and optimiser as named tensors."""
        return state_of(self, self._optimizer)

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Load the states of network and optimiser; names and shapes must match exactly."""
        load_state(state, self, self._optimizer)
