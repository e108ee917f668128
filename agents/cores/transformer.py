"""A transformer core: at each step of a trial, attention to all steps before it.

Sources: attention is that of Vaswani et al. 2017 (arXiv 1706.03762), section 3.2; blocks that normalise their
inputs, and not their sums, are those of Xiong et al. 2020 (arXiv 2002.04745). It reads trials as the sequence
models of Mishra et al. 2018 (arXiv 1707.03141) and Melo 2022 (arXiv 2206.06614) do.
"""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import gymnasium as gym
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from rl2meta.agents.cores.cache import Cache, first_room, repeated, with_room, written
from rl2meta.agents.cores.core import Output, Seen
from rl2meta.agents.cores.recurrent import InputConfig, InputLayer
from rl2meta.agents.numbers import Count


class TransformerConfig(InputConfig):
    """A transformer with causal attention."""

    name: Literal["transformer"] = "transformer"
    num_layers: Annotated[int, Field(ge=1, le=100)] = Field(3, description="number of blocks")
    heads: Annotated[int, Field(ge=1, le=1024)] = Field(4, description="heads of attention in each block")
    head_size: Annotated[int, Field(ge=1, le=4096)] = Field(
        16, description="length of a head's keys and values; features have heads · head_size entries"
    )
    feedforward_factor: Count = Field(
        2, description="units of the ReLU layer in each block, as a multiple of heads · head_size"
    )


@dataclass(frozen=True)
class TransformerState:
    """What the core remembers of B trials: the first ``steps`` steps of a cache.

    Attributes:
        cache: keys and values of each block, [2, B, heads, room, head_size]; it may hold later steps too.
        steps: how many of them belong to this state.
    """

    cache: Cache
    steps: int


class Block(nn.Module):
    """Attention, then a layer of ReLUs, each on normalised inputs and added to what came in.

        y = x + W concat_heads softmax(Q Kᵀ / √head_size) V,    Q, K, V = linear in LayerNorm(x)
        z = y + MLP(LayerNorm(y))

    Row t of the softmax has weights for the steps 0 to t.

    Args:
        config: sizes.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self._split = 3, config.heads, config.head_size
        width = config.heads * config.head_size
        units = config.feedforward_factor * width
        self.attention_norm = nn.LayerNorm(width)
        self.attention_in = nn.Linear(width, 3 * width)
        self.attention_out = nn.Linear(width, width)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, units), nn.ReLU(), nn.Linear(units, width))

    def forward(self, x: Tensor) -> Tensor:
        """Read whole trials, [B, T, width]."""
        queries, keys, values = self._heads(x)
        return self._added(x, functional.scaled_dot_product_attention(queries, keys, values, is_causal=True))

    def step(self, x: Tensor, kept: Tensor, steps: int) -> tuple[Tensor, Tensor]:
        """Read one step, [B, 1, width], after the ``steps`` steps in ``kept``; return also what to keep."""
        heads = self._heads(x)  # [3, B, heads, 1, head_size]
        kept = written(kept, heads[1:], steps)
        keys, values = kept[..., : steps + 1, :]
        return self._added(x, functional.scaled_dot_product_attention(heads[0], keys, values)), kept

    def _heads(self, x: Tensor) -> Tensor:
        """Return queries, keys and values, [B, T, width] -> [3, B, heads, T, head_size]."""
        together: Tensor = self.attention_in(self.attention_norm(x))
        return together.view(*x.shape[:-1], *self._split).permute(2, 0, 3, 1, 4)

    def _added(self, x: Tensor, attended: Tensor) -> Tensor:
        x = x + self.attention_out(attended.transpose(1, 2).flatten(-2))  # -> [B, T, width]
        y: Tensor = x + self.mlp(self.mlp_norm(x))
        return y


class TransformerCore(nn.Module):
    """Input layer and time -> blocks with causal attention -> LayerNorm; its output are the features.

        x = E [input layer(o_t, o_{t-1}, a_{t-1}, r_{t-1}, first), h/H, t/T] + e

    The time (``Seen.elapsed``) is the only sign of how long ago a step was. Where the length of a trial is
    not known it is 0, and the first block sees the steps so far as a set without order.

    Args:
        observation_space, action_space: of one environment.
        config: sizes.

    Raises:
        UserError: if ``previous_observation`` is true and observations are images.
    """

    gives_parameters = False

    def __init__(
        self, observation_space: gym.Space[Any], action_space: gym.Space[Any], config: TransformerConfig
    ) -> None:
        super().__init__()
        self.out_features = config.heads * config.head_size
        self.input = InputLayer(observation_space, action_space, config)
        self.embedding = nn.Linear(self.input.out_features + 2, self.out_features)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.norm = nn.LayerNorm(self.out_features)
        self._kept = config.heads, config.head_size

    def begin(self, rows: int, steps: int | None) -> TransformerState:
        """Return an empty cache with room for ``steps`` steps, at most for 1,024; it grows if more come.

        A full cache has 2 · num_layers · rows · steps · heads · head_size numbers.
        """
        heads, size = self._kept
        room = first_room(steps)
        weight = self.embedding.weight
        layers = [weight.new_empty(2, rows, heads, room, size) for _ in self.blocks]
        return TransformerState(Cache(layers), 0)

    def step(self, seen: Seen, state: TransformerState) -> tuple[Output, TransformerState]:
        """Read one step of every trial.

        Without gradients the step writes behind the steps of ``state``, into the same cache. A state that is
        read again is copied first, so the state that followed it before stays as it is.
        """
        x, steps = self._embedded(seen).unsqueeze(1), state.steps  # [B, 1, width]
        cache = with_room(state.cache, steps)
        for i, block in enumerate(self.blocks):
            x, cache.layers[i] = block.step(x, cache.layers[i], steps)  # type: ignore[operator]
        cache.steps = steps + 1
        return Output(self.norm(x.squeeze(1))), TransformerState(cache, steps + 1)

    def repeated(self, state: TransformerState, times: int) -> TransformerState:
        """Return the state of every trial ``times`` times, side by side."""
        return TransformerState(repeated(state.cache, state.steps, times, axis=1), state.steps)

    def forward(self, seen: Seen) -> Output:
        """Read whole trials from their starts, [T, B, ...]."""
        x = self._embedded(seen).transpose(0, 1)  # [T, B, width] -> [B, T, width]
        for block in self.blocks:
            x = block(x)
        return Output(self.norm(x.transpose(0, 1)))  # [B, T, width] -> [T, B, width]

    def _embedded(self, seen: Seen) -> Tensor:
        """Return the embedding of input and time, [..., width]."""
        embedded: Tensor = self.embedding(torch.cat([self.input(seen), seen.elapsed], dim=-1))
        return embedded
