"""The writes of the slot core over whole trials, with a backward pass of their own.

Plain autograd would make a gradient of the whole table for each read and each write. The backward pass here
keeps one gradient of the table and changes only the cells that a step touches. Products of weights and
gradients wait until all steps are done: then each weight takes one.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class SlotWeights(NamedTuple):
    """The weights of a write, and the initial vector; d is the length of a cell's vector.

    Attributes:
        start: m₀, [d].
        pool, pool_bias: W and b, [d, d] and [d].
        from_input, from_cell: of the GRU (rows: r, z, n), [3d, 2d + 4] and [3d, d].
        input_bias, cell_bias: of the GRU, [3d] each.
    """

    start: Tensor
    pool: Tensor
    pool_bias: Tensor
    from_input: Tensor
    from_cell: Tensor
    input_bias: Tensor
    cell_bias: Tensor


class Places(NamedTuple):
    """Where the steps of B trials read and write; the tables of all trials stand one below the other.

    Attributes:
        row: b·S + o_t, int64 [..., B]; the row of o_t holds its A cells.
        cell: (b·S + o_{t-1})·A + a_{t-1}, int64 [..., B].
    """

    row: Tensor
    cell: Tensor


def unroll(
    weights: SlotWeights, size: tuple[int, int], places: Places, facts: Tensor, first: Tensor
) -> tuple[Tensor, Tensor]:
    """Return what each step of whole trials reads after its write: M[o_t, ·], [T, B, A, d], and g, [T, B, d].

        x = [(1 − first)·max_a(W M[o_t, a] + b), g, facts],   new = GRU(x, M[c]),
        g ← g + (new − M[c]) / (S·A),   M[c] ← new

    The first step writes nothing.

    Args:
        weights: of the write.
        size: S and A.
        places: of reads and writes, [T, B] each.
        facts: r_{t-1}, first, h/H and t/T, [T, B, 4].
        first: bool [T, B].
    """
    rows, means = _Unroll.apply(*weights, size, *places, facts, first)  # type: ignore[no-untyped-call]
    return rows, means


class _Tape(NamedTuple):
    """What the backward pass needs of every step, [T, B, ...]; at t = 0 it is empty or arbitrary."""

    x: Tensor  # [.., 2d]: pooled row and g
    old: Tensor  # [.., d]: M[c] before the write
    gates: Tensor  # [.., 2d]: r and z
    candidate: Tensor  # [.., d]: n
    recalled: Tensor  # [.., 3d]: the GRU's product with M[c]
    winner: Tensor  # int64 [.., d]: the action with the largest entry

    @classmethod
    def empty(cls, steps: int, rows: int, like: Tensor) -> "_Tape":
        d = len(like)
        widths = (2 * d, d, 2 * d, d, 3 * d)
        x, old, gates, candidate, recalled = (like.new_zeros(steps, rows, width) for width in widths)
        winner = like.new_zeros(steps, rows, d, dtype=torch.int64)
        return cls(x, old, gates, candidate, recalled, winner)


class _Unroll(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *given: Any) -> tuple[Tensor, Tensor]:
        weights, (states, actions), places = SlotWeights(*given[:7]), given[7], Places(*given[8:10])
        facts, first = given[10:]
        steps, trials = places.row.shape
        tape = _Tape.empty(steps, trials, weights.start)
        rows, means = _run(weights, (states, actions), places, facts, first, tape)
        ctx.size = states, actions
        ctx.save_for_backward(*weights, *places, facts, first, *tape)
        return rows, means

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_rows: Tensor, d_means: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        weights, places, tape = SlotWeights(*saved[:7]), Places(*saved[7:9]), _Tape(*saved[11:])
        facts, first = saved[9:11]
        back = _Back(weights, ctx.size, places, first, tape)
        back.run(d_rows.contiguous(), d_means)
        d_facts = back.d_facts() if ctx.needs_input_grad[10] else None
        return *back.d_weights(facts), None, None, None, d_facts, None


def _run(
    weights: SlotWeights, size: tuple[int, int], places: Places, facts: Tensor, first: Tensor, tape: _Tape
) -> tuple[Tensor, Tensor]:
    """Do all reads and writes; fill the tape."""
    (states, actions), (steps, trials), d = size, places.row.shape, len(weights.start)
    # Beside M stands W M + b: a write projects one vector, where a read would project those of all actions.
    projection = torch.addmv(weights.pool_bias, weights.pool, weights.start)
    table, projected = (v.expand(trials * states * actions, d).clone() for v in (weights.start, projection))
    table_rows, projected_rows = (each.view(trials * states, actions * d) for each in (table, projected))
    mean = weights.start.expand(trials, d)
    rows, means = facts.new_empty(steps, trials, actions, d), facts.new_empty(steps, trials, d)
    known = torch.addmm(weights.input_bias, facts.flatten(0, 1), weights.from_input[:, 2 * d :].t())
    known = known.view(steps, trials, 3 * d)
    continues = (~first).unsqueeze(-1).to(facts.dtype)  # [T, B, 1]
    pool, from_cell = weights.pool.t().contiguous(), weights.from_cell.t().contiguous()
    from_x = weights.from_input[:, : 2 * d].t().contiguous()  # [2d, 3d]
    for t in range(steps):
        if t > 0:
            x, old, gates, candidate, recalled, winner = (field[t] for field in tape)
            seen = projected_rows.index_select(0, places.row[t]).view(trials, actions, d)
            best, winner[...] = seen.max(dim=1)  # [B, A, d] -> [B, d]
            torch.mul(best, continues[t], out=x[:, :d])
            x[:, d:] = mean
            torch.index_select(table, 0, places.cell[t], out=old)
            told = torch.addmm(known[t], x, from_x)  # [B, 3d]
            torch.addmm(weights.cell_bias, old, from_cell, out=recalled)
            torch.sigmoid(told[:, : 2 * d] + recalled[:, : 2 * d], out=gates)
            torch.tanh(torch.addcmul(told[:, 2 * d :], gates[:, :d], recalled[:, 2 * d :]), out=candidate)
            new = torch.lerp(candidate, old, gates[:, d:])
            table.index_copy_(0, places.cell[t], new)
            projected.index_copy_(0, places.cell[t], torch.addmm(weights.pool_bias, new, pool))
            mean = torch.add(mean, new - old, alpha=1 / (states * actions))
        torch.index_select(table_rows, 0, places.row[t], out=rows[t].view(trials, actions * d))
        means[t] = mean
    return rows, means


class _Back:
    """The backward pass: from the last step to the first, then the gradients of the weights.

    A name d_v is the gradient of the loss with respect to v.
    """

    def __init__(
        self, weights: SlotWeights, size: tuple[int, int], places: Places, first: Tensor, tape: _Tape
    ) -> None:
        self.weights, self.places, self.tape = weights, places, tape
        (steps, trials), (states, actions), self.d = places.row.shape, size, len(weights.start)
        self.share = 1 / (states * actions)
        like = weights.start
        self.d_table = like.new_zeros(trials * states * actions, self.d)
        self.d_projected = torch.zeros_like(self.d_table)
        self.d_mean = like.new_zeros(trials, self.d)
        self.d_told = like.new_zeros(steps, trials, 3 * self.d)
        self.d_recalled, self.d_new_projected = torch.zeros_like(self.d_told), torch.zeros_like(tape.old)
        self.d_rows_of_table = self.d_table.view(trials * states, actions * self.d)
        self.continues = (~first).unsqueeze(-1).to(like.dtype)  # [T, B, 1]
        entry = torch.arange(self.d, device=like.device)
        place = (places.row.unsqueeze(-1) * actions + tape.winner) * self.d + entry  # [T, B, d]
        self.place = place.flatten(1)  # of the largest entries in the projected table, flat

    def run(self, d_rows: Tensor, d_means: Tensor) -> None:
        """Go through all steps; afterwards the gradients of products and of the initial table are there."""
        r, z = self.tape.gates.chunk(2, dim=-1)  # [T, B, d] each
        n, old, recalled = self.tape.candidate, self.tape.old, self.tape.recalled[..., 2 * self.d :]
        slopes = (recalled * r * (1 - r), (old - n) * z * (1 - z), (1 - z) * (1 - n * n))
        for t in range(len(d_rows) - 1, -1, -1):
            self.d_mean += d_means[t]
            self.d_rows_of_table.index_add_(0, self.places.row[t], d_rows[t].flatten(1))
            if t > 0:
                self._write(t, slopes[0][t], slopes[1][t], slopes[2][t], r[t], z[t])

    def _write(self, t: int, to_r: Tensor, to_z: Tensor, to_n: Tensor, r: Tensor, z: Tensor) -> None:
        """Undo the write of step t."""
        cell, d = self.places.cell[t], self.d
        d_told, d_recalled = self.d_told[t], self.d_recalled[t]
        projected = torch.index_select(self.d_projected, 0, cell, out=self.d_new_projected[t])
        d_added = self.d_mean * self.share
        d_new = torch.addmm(self.d_table.index_select(0, cell) + d_added, projected, self.weights.pool)
        d_n = torch.mul(d_new, to_n, out=d_told[:, 2 * d :])
        torch.mul(d_n, to_r, out=d_told[:, :d])
        torch.mul(d_new, to_z, out=d_told[:, d : 2 * d])
        d_recalled[:, : 2 * d] = d_told[:, : 2 * d]
        torch.mul(d_n, r, out=d_recalled[:, 2 * d :])
        d_old = torch.addmm(torch.addcmul(-d_added, d_new, z), d_recalled, self.weights.from_cell)
        self.d_table.index_copy_(0, cell, d_old)
        self.d_projected.index_fill_(0, cell, 0.0)
        d_x = d_told @ self.weights.from_input[:, : 2 * d]  # [B, 2d]
        self.d_mean += d_x[:, d:]
        d_best = d_x[:, :d] * self.continues[t]
        self.d_projected.view(-1).scatter_add_(0, self.place[t], d_best.view(-1))

    def d_weights(self, facts: Tensor) -> SlotWeights:
        """Return the gradients of the weights."""
        told, recalled, projected = (_flat(x) for x in (self.d_told, self.d_recalled, self.d_new_projected))
        new = torch.lerp(self.tape.candidate, self.tape.old, self.tape.gates[..., self.d :])
        d_begun = self.d_projected.sum(dim=0)  # [d], of W m₀ + b
        d_start = self.d_table.sum(dim=0) + self.d_mean.sum(dim=0) + d_begun @ self.weights.pool
        return SlotWeights(
            start=d_start,
            pool=torch.outer(d_begun, self.weights.start) + projected.t() @ _flat(new),
            pool_bias=d_begun + projected.sum(dim=0),
            from_input=told.t() @ _flat(torch.cat([self.tape.x, facts], dim=-1)),
            from_cell=recalled.t() @ _flat(self.tape.old),
            input_bias=told.sum(dim=0),
            cell_bias=recalled.sum(dim=0),
        )

    def d_facts(self) -> Tensor:
        """Return the gradient of the facts, [T, B, 4]."""
        return self.d_told @ self.weights.from_input[:, 2 * self.d :]


def _flat(x: Tensor) -> Tensor:
    return x.flatten(0, 1)  # [T, B, ...] -> [T × B, ...]
