"""The SNAIL core: temporal convolutions, which gather what happened, and attention, which finds it again.

Source: Mishra et al. 2018, *A Simple Neural Attentive Meta-Learner* (arXiv 1707.03141), section 3.
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
from rl2meta.agents.cores.temporal import Past, TemporalConvolutions, repeated_past
from rl2meta.agents.numbers import Count

Kind = Literal["convolutions", "attention"]
"""A kind of blocks."""


class SNAILConfig(InputConfig):
    """Temporal convolutions and causal attention."""

    name: Literal["snail"] = "snail"
    blocks: Annotated[list[Kind], Field(min_length=1, max_length=100)] = Field(
        ["convolutions", "convolutions", "attention"],
        description="kinds of blocks from the input on; each adds its output to what the next one reads",
    )
    span: Annotated[int, Field(ge=2, le=2**16)] = Field(
        128,
        description="number of steps that a block of convolutions sees, usually those of a trial in "
        "training; the block has ⌈log₂ span⌉ layers, of dilations 1, 2, 4, ...",
    )
    filters: Count = Field(32, description="outputs of each layer of convolutions")
    key_size: Count = Field(32, description="length of the keys of each attention")
    value_size: Count = Field(32, description="length of the values of each attention")


class Attention(nn.Module):
    """One causal read, added to what came in.

        y = [x, softmax(Q Kᵀ / √key_size) V],    Q, K, V = linear in x

    Row t of the softmax has weights for the steps 0 to t.

    Args:
        in_features: length of x.
        config: sizes.
    """

    def __init__(self, in_features: int, config: SNAILConfig) -> None:
        super().__init__()
        self._sizes = [config.key_size, config.key_size, config.value_size]
        self.read = nn.Linear(in_features, sum(self._sizes))
        self.kept = config.key_size, config.value_size
        self.out_features = in_features + config.value_size

    def forward(self, x: Tensor) -> Tensor:
        """Read whole trials, [T, B, in_features] -> [T, B, out_features]."""
        heads = self.read(x).transpose(0, 1).unsqueeze(1)  # [B, 1, T, ·], a single head
        queries, keys, values = torch.split(heads, self._sizes, dim=-1)
        found = functional.scaled_dot_product_attention(queries, keys, values, is_causal=True)
        return torch.cat([x, found.squeeze(1).transpose(0, 1)], dim=-1)

    def step(self, x: Tensor, kept: list[Tensor], steps: int) -> tuple[Tensor, list[Tensor]]:
        """Read one step, [B, in_features], after the ``steps`` in ``kept``; return also what to keep."""
        query, *new = torch.split(self.read(x)[:, None, None], self._sizes, dim=-1)  # [B, 1, 1, ·] each
        kept = [written(old, each, steps) for old, each in zip(kept, new, strict=True)]
        keys, values = (each[..., : steps + 1, :] for each in kept)
        found = functional.scaled_dot_product_attention(query, keys, values)  # [B, 1, 1, value_size]
        return torch.cat([x, found.flatten(1)], dim=-1), kept


@dataclass(frozen=True)
class SNAILState:
    """What the core remembers of B trials.

    Attributes:
        cache: keys [B, 1, room, key_size] and values [B, 1, room, value_size] of each attention in turn;
            maybe of later steps too.
        past: of each block of convolutions.
        steps: number of steps so far.
    """

    cache: Cache
    past: tuple[Past, ...]
    steps: int


class SNAILCore(nn.Module):
    """Input layer and time -> blocks of convolutions and of attention; their last output are the features.

        x = [input layer(o_t, o_{t-1}, a_{t-1}, r_{t-1}, first), h/H, t/T]
        x ← [x, block(x)] for each block

    A trial may be longer than ``span``: attention still sees all of its steps, and a block of convolutions
    only the last 2^⌈log₂ span⌉. Time (``Seen.elapsed``) is 0 where the length of a trial is not known.

    Memory while acting, in numbers for each trial: less than 2·filters·2^⌈log₂ span⌉ for a block of
    convolutions, key_size + value_size per step for an attention. The work of a step is that of one matrix
    product for each layer, and that of attention, which grows with the number of steps so far.

    Args:
        observation_space, action_space: of one environment.
        config: sizes.

    Raises:
        UserError: if ``previous_observation`` is true and observations are images.
    """

    gives_parameters = False

    def __init__(
        self, observation_space: gym.Space[Any], action_space: gym.Space[Any], config: SNAILConfig
    ) -> None:
        super().__init__()
        self.input = InputLayer(observation_space, action_space, config)
        self.out_features = self.input.out_features + 2
        self.blocks = nn.ModuleList()
        for kind in config.blocks:
            block = _block(kind, self.out_features, config)
            self.out_features = block.out_features
            self.blocks.append(block)

    def begin(self, rows: int, steps: int | None) -> SNAILState:
        """Return an empty past, with room for ``steps`` steps, at most for 1,024; it grows if more come."""
        weight, room = next(self.blocks.parameters()), first_room(steps)
        attentions = [block for block in self.blocks if isinstance(block, Attention)]
        layers = [weight.new_empty(rows, 1, room, size) for block in attentions for size in block.kept]
        convolutions = (block for block in self.blocks if isinstance(block, TemporalConvolutions))
        return SNAILState(Cache(layers), tuple(block.begin() for block in convolutions), 0)

    def step(self, seen: Seen, state: SNAILState) -> tuple[Output, SNAILState]:
        """Read one step of every trial; a state can be read any number of times, as the transformer's."""
        x, steps = self._embedded(seen), state.steps  # [B, features]
        cache, following = with_room(state.cache, steps), []
        past, layer = iter(state.past), 0
        for block in self.blocks:
            if isinstance(block, Attention):
                here = slice(layer, layer + 2)  # its keys and values
                x, cache.layers[here] = block.step(x, cache.layers[here], steps)
                layer += 2
            elif isinstance(block, TemporalConvolutions):
                x, after = block.step(x, next(past))
                following.append(after)
        cache.steps = steps + 1
        return Output(x), SNAILState(cache, tuple(following), steps + 1)

    def repeated(self, state: SNAILState, times: int) -> SNAILState:
        """Return the state of every trial ``times`` times, side by side."""
        past = tuple(repeated_past(block, times) for block in state.past)
        return SNAILState(repeated(state.cache, state.steps, times, axis=0), past, state.steps)

    def forward(self, seen: Seen) -> Output:
        """Read whole trials from their starts, [T, B, ...]."""
        x = self._embedded(seen)
        for block in self.blocks:
            x = block(x)
        return Output(x)

    def _embedded(self, seen: Seen) -> Tensor:
        """Return the embedding of the input, and the time, [..., features]."""
        return torch.cat([self.input(seen), seen.elapsed], dim=-1)


def _block(kind: Kind, in_features: int, config: SNAILConfig) -> Attention | TemporalConvolutions:
    if kind == "attention":
        return Attention(in_features, config)
    return TemporalConvolutions(in_features, config.filters, config.span)
