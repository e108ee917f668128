"""A learnt rule: one small LSTM, the same for every coordinate, reads gradients and returns steps.

    (mₜ, hₜ₊₁) = LSTM(x(gₜ), hₜ),    θₜ₊₁ = θₜ + α mₜ

Every weight of every task has its own state h, which the trial carries from step to step. No weight of the
LSTM depends on the number of coordinates, so a rule that was learnt on one network can train any other.

Source: Andrychowicz et al. 2016, *Learning to learn by gradient descent by gradient descent*
(arXiv 1606.04474), section 2.1 and appendix A.
"""

import itertools
import math
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional

from rl2meta.agents.numbers import Positive
from rl2meta.agents.rule import State, Stepped, Weights
from rl2meta.layers import Tanh
from rl2meta.learner_state import under

_tanh = Tanh()


class LSTMRule(BaseModel):
    """θ' = θ + α m, where an LSTM reads the gradient of a coordinate and returns its m."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    numbers_per_weight: ClassVar[int] = 500

    name: Literal["lstm"] = "lstm"
    hidden_size: Annotated[int, Field(ge=1, le=1024)] = Field(20, description="units in each layer")
    num_layers: Annotated[int, Field(ge=1, le=10)] = Field(2, description="number of layers")
    log_range: Positive | None = Field(
        10.0,
        description="p: the inputs are log|g| / p and the sign of g, and for |g| < exp(−p) they are −1 and "
        "exp(p) g; null: the gradient is the only input",
    )

    def learnt(self, network: nn.Module) -> dict[str, nn.Module]:
        """Return the LSTM; its initial weights come from torch's generator."""
        return {"lstm": _Coordinates(1 if self.log_range is None else 2, self.hidden_size, self.num_layers)}

    def begin(self, weights: Weights) -> State:
        """Return a state of zeros for each coordinate, h and c of each layer, [num_tasks, P, hidden] each."""
        coordinates = _joined(weights)
        zeros = coordinates.new_zeros(*coordinates.shape, self.hidden_size)
        return {f"{kind}{layer}": zeros for layer in range(self.num_layers) for kind in "hc"}

    def step(
        self, weights: Weights, state: State, gradients: Weights, rate: float, learnt: Weights
    ) -> Stepped:
        """Step to where the LSTM says."""
        lstm = under("lstm.", learnt)
        x = self._inputs(_joined({name: gradients[name] for name in weights}))  # [num_tasks, P, inputs]
        new: dict[str, Tensor] = {}
        for layer in range(self.num_layers):
            names = f"h{layer}", f"c{layer}"
            x, c = _cell(under(f"layers.{layer}.", lstm), x, state[names[0]], state[names[1]])
            new |= dict(zip(names, (x, c), strict=True))
        steps = functional.linear(x, lstm["out.weight"], lstm["out.bias"]).squeeze(-1)  # [num_tasks, P]
        moved = _joined(weights) + rate * steps
        return Stepped(_apart(moved, weights), new)

    def _inputs(self, gradient: Tensor) -> Tensor:
        """Return [num_tasks, P, inputs] for gradients [num_tasks, P]."""
        if self.log_range is None:
            return gradient.unsqueeze(-1)
        least = math.exp(-self.log_range)
        large = gradient.abs() >= least
        size = gradient.abs().clamp(min=least).log() / self.log_range
        sign = torch.where(large, gradient.sign(), gradient / least)
        return torch.stack([size, sign], dim=-1)


class _Coordinates(nn.Module):
    """The weights of the LSTM and of its output, which is small at first."""

    def __init__(self, inputs: int, hidden_size: int, num_layers: int) -> None:
        super().__init__()
        sizes = [inputs, *[hidden_size] * num_layers]
        self.layers = nn.ModuleList(nn.LSTMCell(a, b) for a, b in itertools.pairwise(sizes))
        self.out = nn.Linear(hidden_size, 1)
        nn.init.zeros_(self.out.bias)


def _cell(weights: Weights, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """Return h' and c', as torch's LSTMCell computes them, for x [num_tasks, P, inputs]."""
    gates = functional.linear(x, weights["weight_ih"], weights["bias_ih"])
    gates = gates + functional.linear(h, weights["weight_hh"], weights["bias_hh"])  # [num_tasks, P, 4 hidden]
    i, f, g, o = gates.chunk(4, dim=-1)
    new = torch.sigmoid(f) * c + torch.sigmoid(i) * _tanh(g)
    return torch.sigmoid(o) * _tanh(new), new


def _joined(weights: Weights) -> Tensor:
    """Lay all coordinates of a task in one row: [num_tasks, ...] each -> [num_tasks, P]."""
    return torch.cat([weight.flatten(1) for weight in weights.values()], dim=1)


def _apart(row: Tensor, like: Weights) -> dict[str, Tensor]:
    """Cut rows [num_tasks, P] into weights of the names and shapes of ``like``."""
    parts = torch.split(row, [weight[0].numel() for weight in like.values()], dim=1)
    return {name: part.reshape(like[name].shape) for part, name in zip(parts, like, strict=True)}
