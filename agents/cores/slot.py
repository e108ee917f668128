"""The slot core: a memory of a vector for each observation and action, addressed by what was seen and done.

It is for tasks whose discrete observations and actions are exchangeable: no weight belongs to one of them, so
a permutation of observations or actions permutes the policy, and the same weights fit any number of either.
The core also sees the time: the fractions h/H and t/T of episode and trial that are over.
"""

from dataclasses import dataclass
from typing import Any, Literal

import gymnasium as gym
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional

from rl2meta.agents.cores.core import Output, Seen
from rl2meta.agents.cores.slot_reads import Answer, Places, Reads, answers
from rl2meta.agents.cores.slot_unroll import SlotWeights, unroll
from rl2meta.agents.numbers import Count
from rl2meta.errors import UserError
from rl2meta.spaces import num_looked_up


class SlotConfig(BaseModel):
    """A memory of one vector for each observation and action."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: Literal["slot"] = "slot"
    slot_size: Count = Field(24, description="length d of the vector of each observation and action")
    hidden_size: Count = Field(64, description="units in the ReLU layer between the memory and the policy")


@dataclass
class SlotState:
    """The memory of B trials.

    Attributes:
        table: M, [B × S × A, d].
        mean: g, the mean of M over the cells of a trial, [B, d].
        spent: whether the next step has overwritten the table.
    """

    table: Tensor
    mean: Tensor
    spent: bool = False


class SlotCore(nn.Module):
    """A table M[o, a] of vectors and their mean g; the step after (o, a) rewrites the vector of (o, a).

    With c = (o_{t-1}, a_{t-1}), h steps of at most H in the episode, and t steps of T in the trial:

        x = [(1 − first)·max_a(W M[o_t, a] + b), g, r_{t-1}, first, h/H, t/T]
        g ← g + (GRU(x, M[c]) − M[c]) / (S·A)
        M[c] ← GRU(x, M[c])
        y_a = ReLU(V [M[o_t, a], mean_a' M[o_t, a'], g, h/H, t/T] + v)
        logit of a = u·y_a

    All vectors begin as m₀, which is learnt; the first step of a trial writes nothing. The features are
    [mean_a y_a, g, h/H, t/T]. The fractions of time are ``Seen.elapsed``.

    Args:
        observation_space, action_space: of one environment, Discrete.
        config: sizes.

    Raises:
        UserError: if observations or actions are not discrete.
    """

    gives_parameters = True

    def __init__(
        self, observation_space: gym.Space[Any], action_space: gym.Space[Any], config: SlotConfig
    ) -> None:
        super().__init__()
        self._size = _number(observation_space, "observations"), _number(action_space, "actions")
        self._sees_numbers = num_looked_up(observation_space) > 0
        d = config.slot_size
        self.start = nn.Parameter(0.1 * torch.randn(d))
        self.pool = nn.Linear(d, d)
        self.write = nn.GRUCell(2 * d + 4, d)
        self.hidden = nn.Linear(3 * d + 2, config.hidden_size)
        self.logit = nn.Linear(config.hidden_size, 1, bias=False)  # a bias would add the same to all logits
        self.out_features = config.hidden_size + d + 2
        nn.init.normal_(self.logit.weight, std=0.1)  # a nearly uniform policy at the start

    def begin(self, rows: int, steps: int | None) -> SlotState:
        """Return tables of m₀ everywhere."""
        states, actions = self._size
        table = self.start.expand(rows * states * actions, -1).clone()
        return SlotState(table, self.start.expand(rows, -1))

    def step(self, seen: Seen, state: SlotState) -> tuple[Output, SlotState]:
        """Read one step of every trial.

        Without gradients the step writes into the table of ``state``, because a copy of it for each step
        takes longer than the step if there are many cells. So a state can be read once; a copy made before
        (``copy.deepcopy``) can be read too.

        Raises:
            ValueError: if ``state`` has been read before without gradients.
        """
        assert seen.position is not None  # every agent gives the position of a single step
        _refuse_spent(state)
        places, actions = self._places(seen), self._size[1]
        # [A × B]: actions first, as a processor computes faster with long rows of trials
        cells = (
            places.row * actions + torch.arange(actions, device=places.row.device).unsqueeze(1)
        ).flatten()
        begins = seen.position.trial_step == 0
        following = state if begins else self._written(seen, state, places.cell, cells)
        return self._output(seen, self._row(following.table, cells), following.mean), following

    def repeated(self, state: SlotState, times: int) -> SlotState:
        """Return the memory of every trial ``times`` times, side by side."""
        table = state.table.view(len(state.mean), -1, len(self.start))  # [B, S × A, d]
        repeated = table.repeat_interleave(times, dim=0).flatten(0, 1)
        return SlotState(repeated, state.mean.repeat_interleave(times, dim=0), state.spent)

    def forward(self, seen: Seen) -> Output:
        """Read whole trials from their starts, [T, B, ...]."""
        gru = self.write
        weights = SlotWeights(
            self.start,
            *(self.pool.weight, self.pool.bias),
            *(gru.weight_ih, gru.weight_hh, gru.bias_ih, gru.bias_hh),
        )
        states, actions = self._size
        reads, facts = Reads.of(self._places(seen), self._size), _facts(seen)
        written, means = unroll(weights, states * actions, reads, facts, seen.first)
        answer, elapsed = Answer(self.hidden.weight, self.hidden.bias, self.logit.weight[0]), facts[..., 2:]
        pooled, logits = answers(answer, written, means, elapsed, reads.after)
        return Output(torch.cat([pooled, means, elapsed], dim=-1), logits.movedim(0, -1))

    def _places(self, seen: Seen) -> Places:
        """Return where each step reads and writes, [..., B]; at a trial's start the cell is arbitrary."""
        states, actions = self._size
        first_row = states * torch.arange(seen.first.shape[-1], device=seen.first.device)  # [B]
        before = first_row + self._index(seen.previous_observation)  # [..., B]
        cell = before * actions + seen.action.argmax(dim=-1)
        return Places(first_row + self._index(seen.observation), cell)

    def _index(self, observation: Tensor) -> Tensor:
        """Return which observation an encoded one is, [...]; 0 for the zeros before the first step."""
        if self._sees_numbers:  # they count from 1
            return (observation.squeeze(-1).long() - 1).clamp(min=0)
        return observation.argmax(dim=-1)

    def _row(self, table: Tensor, cells: Tensor) -> Tensor:
        """Return M[o_t, ·], [A, B, d]."""
        return table.index_select(0, cells).view(self._size[1], -1, len(self.start))

    def _written(self, seen: Seen, state: SlotState, cell: Tensor, cells: Tensor) -> SlotState:
        old = state.table.index_select(0, cell)  # [B, d]
        pooled = self.pool(self._row(state.table, cells)).amax(dim=0)  # [A, B, d] -> [B, d]
        pooled = pooled * (~seen.first).unsqueeze(-1)
        new = self.write(torch.cat([pooled, state.mean, _facts(seen)], dim=-1), old)  # [B, d]
        states, actions = self._size
        mean = state.mean + (new - old) / (states * actions)
        if torch.is_grad_enabled():
            return SlotState(state.table.index_copy(0, cell, new), mean)
        state.spent = True
        return SlotState(state.table.index_copy_(0, cell, new), mean)

    def _output(self, seen: Seen, row: Tensor, mean: Tensor) -> Output:
        """Return features and logits of a step for M[o_t, ·], [A, B, d], and g, [B, d]."""
        d, elapsed = len(self.start), seen.elapsed.to(mean.dtype)
        shared = torch.cat([row.mean(dim=0), mean, elapsed], dim=-1)  # [B, 2d + 2]
        weight = self.hidden.weight
        y = functional.linear(row, weight[:, :d])  # [A, B, hidden_size]
        y = y.add_(functional.linear(shared, weight[:, d:], self.hidden.bias)).relu_()
        logits = (y @ self.logit.weight[0]).t()  # [A, B] -> [B, A]
        return Output(torch.cat([y.mean(dim=0), mean, elapsed], dim=-1), logits)


def _facts(seen: Seen) -> Tensor:
    """Return r_{t-1}, first, h/H and t/T, [..., 4]."""
    reward = seen.reward.unsqueeze(-1)
    return torch.cat([reward, seen.first.unsqueeze(-1).to(reward.dtype), seen.elapsed], dim=-1)


def _number(space: gym.Space[Any], what: str) -> int:
    """Return the number of elements of a discrete space."""
    if not isinstance(space, gym.spaces.Discrete):
        raise UserError(
            f"agent.core.name: slot expected discrete {what}, got {space}; use another core, such as gru"
        )
    return int(space.n)


def _refuse_spent(state: SlotState) -> None:
    if state.spent:
        raise ValueError(
            "expected the state of the newest step, got one whose table a later step has overwritten; "
            "read each state once, or read a copy.deepcopy of it that was made before"
        )
