"""Recurrent cores: an LSTM and a GRU.

With the same weights, a single step calls a cell, and a whole trial takes one fused call. On a CPU a step of
many trials takes the fused layer too, or ``lstm_cell`` if it needs no gradients. The LSTM has kernels for
both (``lstm_layer``), if ``rl2meta.kernels`` chose compiled ones.

Sources: the GRU is that of Duan et al. 2016 (arXiv 1611.02779), section 2.2. The LSTM has a forget bias of 1
(Jozefowicz et al. 2015), so by default it keeps what it learns early in a trial.
"""

from collections.abc import Callable
from typing import Annotated, Any, Literal

import gymnasium as gym
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from rl2meta.agents.cores.core import Output, Seen
from rl2meta.agents.numbers import Count
from rl2meta.errors import UserError
from rl2meta.images import ImageEncoder, is_image
from rl2meta.kernels import compiled
from rl2meta.networks import LOOKED_UP, Lookup, mlp
from rl2meta.spaces import encoding, num_looked_up

LSTMState = tuple[Tensor, Tensor]  # (h, c), each [layers, B, hidden_size]
_FUSED_ROWS = 64  # on a CPU, with fewer rows torch's own cells take less time


class InputConfig(BaseModel):
    """The settings of an ``InputLayer``."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    embedding_sizes: list[Count] = Field(
        [], description="units in each ReLU layer between the input and the core's first layer"
    )
    previous_observation: bool = Field(
        False,
        description="add the previous observation to the input, which always holds the previous action and "
        "reward",
    )


class RecurrentConfig(InputConfig):
    """The settings that recurrent cores share."""

    hidden_size: Count = Field(48, description="units in each recurrent layer")
    num_layers: Annotated[int, Field(ge=1, le=100)] = Field(1, description="number of recurrent layers")


class LSTMConfig(RecurrentConfig):
    """An LSTM."""

    name: Literal["lstm"] = "lstm"


class GRUConfig(RecurrentConfig):
    """A GRU."""

    name: Literal["gru"] = "gru"


class InputLayer(nn.Module):
    """(o_t, o_{t-1} if ``previous_observation`` is true, a_{t-1}, r_{t-1}, first) -> embedding.

    If o_t is an image, the features of an ``ImageEncoder`` replace it; if it is one of many numbers, a learnt
    vector of 64 entries does.

    Raises:
        UserError: if ``previous_observation`` is true and observations are images.
    """

    def __init__(
        self, observation_space: gym.Space[Any], action_space: gym.Space[Any], config: InputConfig
    ) -> None:
        super().__init__()
        self.encoder = ImageEncoder(observation_space) if is_image(observation_space) else None
        rows = num_looked_up(observation_space)
        self.lookup = Lookup(rows, LOOKED_UP) if rows else None
        if self.encoder is not None and config.previous_observation:
            raise UserError(
                "agent.core.previous_observation: expected false if observations are images, got true; "
                "leave it out"
            )
        self._recalls = config.previous_observation
        size = LOOKED_UP if rows else encoding(observation_space).size
        observed = self.encoder.out_features if self.encoder else size * (1 + self._recalls)
        in_features = observed + encoding(action_space).size + 2
        self.embedding = mlp(in_features, config.embedding_sizes, nn.ReLU)
        self.out_features = [in_features, *config.embedding_sizes][-1]

    def forward(self, seen: Seen) -> Tensor:
        """Return the embedding of one step or of whole trials, [..., out_features]."""
        observed = [seen.observation if self.encoder is None else self.encoder(seen.observation)]
        if self._recalls:
            observed.append(seen.previous_observation)
        if self.lookup is not None:
            observed = [self.lookup(number) for number in observed]
        flags = torch.stack([seen.reward, seen.first.float()], dim=-1)  # [..., 2]
        # [..., in_features] -> [..., out_features]
        embedded: Tensor = self.embedding(torch.cat([*observed, seen.action, flags], dim=-1))
        return embedded


class LSTMCore(nn.Module):
    """Input layer -> LSTM; the features are the hidden state of the last layer.

    Args:
        observation_space, action_space: of one environment.
        config: sizes.
    """

    gives_parameters = False

    def __init__(
        self, observation_space: gym.Space[Any], action_space: gym.Space[Any], config: LSTMConfig
    ) -> None:
        super().__init__()
        self.input = InputLayer(observation_space, action_space, config)
        self.lstm = nn.LSTM(self.input.out_features, config.hidden_size, config.num_layers)
        self.out_features = config.hidden_size
        _zero_biases(self.lstm)
        for layer in range(config.num_layers):
            with torch.no_grad():
                getattr(self.lstm, f"bias_ih_l{layer}")[config.hidden_size : 2 * config.hidden_size] = 1.0

    @property
    def compiles(self) -> bool:
        """Whether compiled kernels compute all that takes long: an image's encoder has none."""
        return self.input.encoder is None

    @property
    def only_layer(self) -> tuple[Tensor, Tensor, Tensor, Tensor] | None:
        """The weights W, U and both biases, if one layer on ``input`` is all there is; else None."""
        # not isinstance: a derived class may compute something else
        return _weights(self.lstm, 0) if type(self) is LSTMCore and self.lstm.num_layers == 1 else None

    def begin(self, rows: int, steps: int | None) -> LSTMState:
        """Return zeros, [layers, rows, hidden_size] each."""
        zeros = _zeros(self.lstm, rows)
        return zeros, zeros

    def step(self, seen: Seen, state: LSTMState) -> tuple[Output, LSTMState]:
        """Read one step of every trial."""
        x = self.input(seen)  # [B, in_features]
        many, learns = _is_fused(x), torch.is_grad_enabled()
        if many and learns:
            features, state = self.lstm(x.unsqueeze(0), state)
            return Output(features.squeeze(0)), state
        read = _cell_for_many(x) if many else torch.lstm_cell
        hidden, cells = [], []
        for layer in range(self.lstm.num_layers):
            h, c = read(x, (state[0][layer], state[1][layer]), *_weights(self.lstm, layer))
            hidden.append(h)
            cells.append(c)
            x = h
        return Output(x), (_stacked(hidden), _stacked(cells))

    def repeated(self, state: LSTMState, times: int) -> LSTMState:
        """Return the state of every trial ``times`` times, side by side."""
        hidden, cells = state
        return hidden.repeat_interleave(times, dim=1), cells.repeat_interleave(times, dim=1)

    def forward(self, seen: Seen) -> Output:
        """Read whole trials from their starts, [T, B, ...]."""
        x = self.input(seen)  # [T, B, in_features]
        if not compiled(x):
            return Output(self.lstm(x)[0])
        from rl2meta.agents.cores.lstm_layer import unroll

        for layer in range(self.lstm.num_layers):
            x = unroll(x, _weights(self.lstm, layer))
        return Output(x)


class GRUCore(nn.Module):
    """Input layer -> GRU; the features are the hidden state of the last layer.

    Args:
        observation_space, action_space: of one environment.
        config: sizes.
    """

    gives_parameters = False

    def __init__(
        self, observation_space: gym.Space[Any], action_space: gym.Space[Any], config: GRUConfig
    ) -> None:
        super().__init__()
        self.input = InputLayer(observation_space, action_space, config)
        self.gru = nn.GRU(self.input.out_features, config.hidden_size, config.num_layers)
        self.out_features = config.hidden_size
        _zero_biases(self.gru)

    def begin(self, rows: int, steps: int | None) -> Tensor:
        """Return zeros, [layers, rows, hidden_size]."""
        return _zeros(self.gru, rows)

    def step(self, seen: Seen, state: Tensor) -> tuple[Output, Tensor]:
        """Read one step of every trial."""
        x = self.input(seen)  # [B, in_features]
        if _is_fused(x):
            features, state = self.gru(x.unsqueeze(0), state)
            return Output(features.squeeze(0)), state
        hidden = []
        for layer in range(self.gru.num_layers):
            x = torch.gru_cell(x, state[layer], *_weights(self.gru, layer))
            hidden.append(x)
        return Output(x), torch.stack(hidden)

    def repeated(self, state: Tensor, times: int) -> Tensor:
        """Return the state of every trial ``times`` times, side by side."""
        return state.repeat_interleave(times, dim=1)

    def forward(self, seen: Seen) -> Output:
        """Read whole trials from their starts, [T, B, ...]."""
        return Output(self.gru(self.input(seen))[0])


def lstm_cell(
    x: Tensor, state: LSTMState, w: Tensor, u: Tensor, input_bias: Tensor, hidden_bias: Tensor
) -> LSTMState:
    """Return what ``torch.lstm_cell`` returns, in less time for many rows on a CPU; without gradients.

        i, f, g, o = [U, W, b] [h, x, 1],   c ← σ(f) c + σ(i) tanh g,   h ← σ(o) tanh c

    In memory units stand before rows, so each gate is a solid block. tanh g is 2 σ(2g) − 1, because torch's σ
    takes a third of the time of its tanh.
    """
    h, c = state
    hidden = h.shape[-1]
    joint = torch.cat([u, w, (input_bias + hidden_bias).unsqueeze(1)], dim=1)  # [4H, H + in_features + 1]
    joint[2 * hidden : 3 * hidden] *= 2
    ones = x.new_ones(1, len(x))
    gates = torch.mm(joint, torch.cat([h.t(), x.t(), ones])).sigmoid_()  # [4H, B]
    i, f, g, o = gates.chunk(4)
    cell = torch.mul(f, c.t()).addcmul_(i, g.mul_(2).sub_(1))
    return (cell + cell).sigmoid_().mul_(2).sub_(1).mul_(o).t(), cell.t()


def _cell_for_many(x: Tensor) -> Callable[..., LSTMState]:
    if not compiled(x):
        return lstm_cell
    from rl2meta.agents.cores.lstm_layer import step

    return step


def _stacked(layers: list[Tensor]) -> Tensor:
    """Return the states of all layers, [layers, B, H]; those of one layer without a copy."""
    return layers[0].unsqueeze(0) if len(layers) == 1 else torch.stack(layers)


def _is_fused(x: Tensor) -> bool:
    return x.device.type == "cpu" and len(x) >= _FUSED_ROWS


def _zero_biases(layers: nn.RNNBase) -> None:
    for name, weight in layers.named_parameters():
        if name.startswith("bias"):
            nn.init.zeros_(weight)


def _zeros(layers: nn.RNNBase, rows: int) -> Tensor:
    return _weights(layers, 0)[1].new_zeros(layers.num_layers, rows, layers.hidden_size)


def _weights(layers: nn.RNNBase, layer: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    w, u, b, d = (getattr(layers, f"{name}_l{layer}") for name in names)
    return w, u, b, d
