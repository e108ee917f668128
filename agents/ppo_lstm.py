"""Acting and PPO's loss for one LSTM layer with discrete actions, by the kernels of ``ppo_lstm_kernels``.

Most of the time of a step or of a small minibatch goes into beginning operations, not into computing. So one
operation does a step and draws actions; another takes trials and gives the gradient, and what is the same in
every minibatch is prepared once. The plain forms, for every core and every distribution, are in ``ppo``.
"""

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from rl2meta.agents import ppo_lstm_kernels as kernels
from rl2meta.agents.cores import lstm_kernels
from rl2meta.agents.cores.core import Seen
from rl2meta.agents.cores.lstm_layer import pack_layer, packed_both, parts_of
from rl2meta.agents.ppo_loss import METRICS, Taken, Weights, known_of, of_heads, packed_heads, told_of, which
from rl2meta.divided import divided
from rl2meta.kernels import flat
from rl2meta.shards import Lost
from rl2meta.vectors import wide, widened

if TYPE_CHECKING:
    from rl2meta.agents.ppo import ActorCritic, Batch

_TRIALS_OF_A_BLOCK = 48  # more leave the cache, fewer read weights more often


class Acted(NamedTuple):
    """A step of every trial: action, most likely action, log π(action) and value, [B], and the state."""

    action: Tensor
    mode: Tensor
    log_prob: Tensor
    value: Tensor
    state: tuple[Tensor, Tensor]


class Packed(NamedTuple):
    """What ``act`` reads of the weights: those of the layer with its bias, and those of the heads."""

    layer: tuple[Any, Any]
    heads: tuple[Any, Any, Any]


def packed_weights(network: "ActorCritic") -> Packed:
    """Return the weights of an LSTM of one layer with a discrete head, as ``act`` reads them."""
    core: Any = network.core
    *layer, _, hidden = pack_layer(core.only_layer)
    return Packed((layer[0], layer[1]), packed_heads(_heads(network), hidden))


def act(x: Tensor, packed: Packed, legal: Tensor | None, state: Any, generator: torch.Generator) -> Acted:
    """Read a step of every trial, and draw an action from the policy, without gradients.

    Args:
        x: inputs of the layer, [B, inputs].
        packed: the weights.
        legal: bool [B, A]; None or [B, 0]: every action is legal.
        state: of the core before the step, h and c, [1, B, units] each.
        generator: of one number of U[0, 1) for each trial, as ``Categorical`` draws it.
    """
    (rows, inputs), units = x.shape, state[0].shape[2]
    hidden = len(packed.layer[1]) // 4  # whole vectors of units
    place = torch.rand(1, rows, generator=generator)
    before = [flat(widened(each[0])) for each in state]
    after = [x.new_empty(rows, hidden) for _ in before]
    drawn, sizes = x.new_empty(4, rows), (rows, inputs, hidden)
    arrays = (
        *(flat(x), *packed, *before),
        *(flat(place), which(legal), *map(flat, after), flat(drawn)),
    )
    divided(lambda part, _: kernels.act(*arrays, part, sizes), parts_of(rows, 1))
    action, mode = drawn[:2].long()
    new_h, new_c = (each[:, :units].unsqueeze(0) for each in after)
    return Acted(action, mode, drawn[2], drawn[3], (new_h, new_c))


def _heads(network: "ActorCritic") -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return weight and bias of the policy's head and of the value's."""
    head = network.discrete_head
    assert head is not None
    return head.weight, head.bias, network.value.weight, network.value.bias


class LossOfTrials:
    """Returns the loss of trials of a batch, by their numbers.

    Args:
        network: an LSTM of one layer with a discrete head.
        batch: on the CPU, in float32.
        numbers: in the loss.
        trial_length: maximum number of steps in a trial.
    """

    def __init__(
        self, network: "ActorCritic", batch: "Batch", numbers: Weights, trial_length: int | None
    ) -> None:
        core: Any = network.core
        self._read, self._before = core.input, [*core.input.parameters()]  # what learns before the layer
        self._weights = *core.only_layer, *_heads(network)
        self._seen, self._length = batch.inputs[:4], trial_length
        self._inputs = None if self._before else core.input(Seen(*self._seen, trial_length))  # [T, B, inputs]
        self._known = known_of(Taken(*batch[1:], batch.inputs.legal))
        self._counted, self._numbers = batch.mask.sum(dim=0), numbers  # [B]

    def __call__(self, index: Tensor) -> Lost:
        """Return the loss of the trials at ``index`` [N], a mean over their steps, with its gradients."""
        counted = self._counted[index].sum()
        x, place = self._inputs_of(index)
        d_x = x.new_empty(*x.shape[:2], wide(x.shape[2]) if self._before else 0)
        numbers = np.array([*self._numbers, 1 / float(counted)])
        sums, gradients = self._learnt((x, place, d_x), index, numbers)
        if self._before:
            gradients += torch.autograd.grad(x, self._before, d_x[..., : x.shape[2]])
        loss, told = told_of(sums, self._numbers)
        weights = *self._weights, *self._before
        metrics = dict(zip(METRICS, told.unbind(), strict=True))
        return Lost(loss, counted, metrics, dict(zip(weights, gradients, strict=True)))

    def _inputs_of(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Return inputs, [T, X, inputs], and the numbers of the trials at ``index`` among these X."""
        if self._inputs is not None:
            return self._inputs, index
        observation, action, reward, first = (
            field.index_select(1, index) for field in self._seen
        )  # [T, N, ...]
        return self._read(Seen(observation, action, reward, first, self._length)), torch.arange(len(index))

    def _learnt(self, given: Any, index: Tensor, numbers: Any) -> tuple[Any, list[Tensor]]:
        """Return the sums of the kernel and the gradients of the layer and the heads; set that of x."""
        (x, _, d_x), (w, u, *_) = given, self._weights
        layer, heads, (steps, _, inputs) = self._weights[:4], self._weights[4:], x.shape
        read, hidden = packed_both(layer, d_x.numel() > 0)
        parts, outputs = parts_of(len(index), steps), len(heads[0]) + 1
        entries = 4 * hidden * (inputs + hidden), 4 * hidden, outputs * hidden, outputs
        found = *(np.zeros((len(parts), each), np.float32) for each in entries), np.zeros((len(parts), 5))
        sizes = steps, len(self._counted), inputs, hidden
        arrays = tuple(map(flat, given)), read, packed_heads(heads, hidden), *self._known, flat(index)
        rest = found, numbers, _TRIALS_OF_A_BLOCK
        divided(lambda part, number: kernels.learn(*arrays, *rest, part, number, sizes), parts)
        of_layer = torch.empty_like(w), torch.empty_like(u), w.new_empty(len(w))
        both = found[0].reshape(-1), found[1].reshape(-1)
        lstm_kernels.unpack(*both, *map(flat, of_layer), len(parts), inputs, u.shape[1], hidden)
        d_rows, d_bias, sums = (each.sum(axis=0) for each in found[2:])
        d_rows = torch.from_numpy(d_rows.reshape(outputs, hidden))
        of_them = of_heads(d_rows, torch.from_numpy(d_bias), u.shape[1])
        return sums, [*of_layer, of_layer[2].clone(), *of_them]
