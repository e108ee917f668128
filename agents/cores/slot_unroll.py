"""The writes of the slot core over whole trials, with a backward pass of their own.

Plain autograd would make a gradient of the whole table for each read and each write. The backward pass here
keeps one gradient of the table and changes only the cells that a step touches. Products of weights and
gradients wait until all steps are done: then each weight takes one.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional


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
    joint, known = _joint(weights, facts)
    given = weights.start, weights.pool, weights.pool_bias, joint, known, *places, first, size
    rows, means = _Unroll.apply(*given)  # type: ignore[no-untyped-call]
    return rows, means


def _joint(weights: SlotWeights, facts: Tensor) -> tuple[Tensor, Tensor]:
    """Return all products of the GRU as one: J, [4d, 3d], and what the facts add, [T, B, 4d].

    J [x, M[c]] + the part of facts and biases = [r, z, n, m] before their non-linearities, where x is without
    facts. The GRU's m, its product with M[c] for n, stands apart because r multiplies it.
    """
    d = len(weights.start)
    x, cell = weights.from_input[:, : 2 * d], weights.from_cell
    gates = torch.cat([x[: 2 * d], cell[: 2 * d]], dim=1)  # [2d, 3d]
    n = torch.cat([x[2 * d :], x.new_zeros(d, d)], dim=1)
    m = torch.cat([x.new_zeros(d, 2 * d), cell[2 * d :]], dim=1)
    of_facts = torch.cat([weights.from_input[:, 2 * d :], x.new_zeros(d, facts.shape[-1])])  # [4d, 4]
    biases = weights.input_bias, weights.cell_bias
    bias = torch.cat([biases[0][: 2 * d] + biases[1][: 2 * d], biases[0][2 * d :], biases[1][2 * d :]])
    return torch.cat([gates, n, m]), functional.linear(facts, of_facts, bias)


class _Tape(NamedTuple):
    """What the backward pass needs of every step, [T, B, ...]; at t = 0 it is arbitrary.

    Attributes:
        seen: W M[o_t, ·] + b before the write, [T, B, A, d].
        inputs: the pooled row, g and M[c] before the write, [T, B, 3d].
        acted: r, z, n and m, [T, B, 4d].
    """

    seen: Tensor
    inputs: Tensor
    acted: Tensor

    @classmethod
    def empty(cls, steps: int, trials: int, actions: int, like: Tensor) -> "_Tape":
        d = len(like)
        shapes = (actions, d), (3 * d,), (4 * d,)
        seen, inputs, acted = (like.new_empty(steps, trials, *shape) for shape in shapes)
        return cls(seen, inputs, acted)


class _Unroll(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *given: Any) -> tuple[Tensor, Tensor]:
        *tensors, (states, actions) = given
        start, row = tensors[0], tensors[5]
        steps, trials = row.shape
        tape = _Tape.empty(steps, trials, actions, start)
        rows, means = _forward(tape, *given)
        ctx.size = states, actions
        ctx.save_for_backward(*tensors, *tape)
        return rows, means

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_rows: Tensor, d_means: Tensor) -> tuple[Tensor | None, ...]:
        gradients = _backward(d_rows.contiguous(), d_means, ctx.size, *ctx.saved_tensors)
        return *gradients, None, None, None, None


def _forward(
    tape: _Tape,
    start: Tensor,
    pool: Tensor,
    pool_bias: Tensor,
    joint: Tensor,
    known: Tensor,
    row: Tensor,
    cell: Tensor,
    first: Tensor,
    size: tuple[int, int],
) -> tuple[Tensor, Tensor]:
    """Do all reads and writes; fill the tape."""
    (states, actions), (steps, trials), d = size, row.shape, len(start)
    # Beside M stands W M + b: a write projects one vector, where a read would project those of all actions.
    projection = torch.addmv(pool_bias, pool, start)
    table, projected = (v.expand(trials * states * actions, d).clone() for v in (start, projection))
    table_rows, projected_rows = (each.view(trials * states, actions * d) for each in (table, projected))
    rows, means = start.new_empty(steps, trials, actions, d), start.new_empty(steps, trials, d)
    joint, pool = joint.t().contiguous(), pool.t().contiguous()
    parts = (row, cell, (~first).unsqueeze(-1).to(start.dtype), known, rows.flatten(2), means, *tape)
    for t, now in enumerate(zip(*(part.unbind() for part in parts), strict=True)):
        at_row, at_cell, continues, of_facts, read, mean, seen, inputs, acted = now
        if t == 0:
            mean.copy_(start)
        else:
            torch.index_select(projected_rows, 0, at_row, out=seen.view(trials, -1))
            torch.mul(seen.amax(dim=1), continues, out=inputs[:, :d])  # [B, A, d] -> [B, d]
            inputs[:, d : 2 * d] = means[t - 1]
            old = torch.index_select(table, 0, at_cell)  # [B, d]
            inputs[:, 2 * d :] = old
            torch.addmm(of_facts, inputs, joint, out=acted)  # [B, 3d] -> [B, 4d]
            r, z, n, m = acted.chunk(4, dim=1)
            acted[:, : 2 * d].sigmoid_()
            n.addcmul_(r, m).tanh_()
            new = torch.lerp(n, old, z)
            table.index_copy_(0, at_cell, new)
            projected.index_copy_(0, at_cell, torch.addmm(pool_bias, new, pool))
            torch.add(means[t - 1], new - old, alpha=1 / (states * actions), out=mean)
        torch.index_select(table_rows, 0, at_row, out=read)
    return rows, means


def _backward(
    d_rows: Tensor,
    d_means: Tensor,
    size: tuple[int, int],
    start: Tensor,
    pool: Tensor,
    pool_bias: Tensor,
    joint: Tensor,
    known: Tensor,
    row: Tensor,
    cell: Tensor,
    first: Tensor,
    *taped: Tensor,
) -> tuple[Tensor, ...]:
    """Return the gradients of start, pool, pool_bias, joint and known; d_v is the gradient of v."""
    tape, (states, actions), (steps, trials), d = _Tape(*taped), size, row.shape, len(start)
    d_table, d_projected = (start.new_zeros(trials * states * actions, d) for _ in range(2))
    d_table_rows, d_projected_rows = (
        each.view(trials * states, actions * d) for each in (d_table, d_projected)
    )
    d_mean, d_acted = start.new_zeros(trials, d), start.new_zeros(steps, trials, 4, d)
    d_written = start.new_zeros(steps, trials, d)  # of W new + b
    slopes, z = _slopes(tape), tape.acted[..., d : 2 * d]
    parts = (row, cell, _shares(tape, first), d_rows.flatten(2), d_means, slopes, z, d_acted, d_written)
    for t, now in reversed([*enumerate(zip(*(part.unbind() for part in parts), strict=True))]):
        at_row, at_cell, shares, d_read, d_mean_read, slope, kept, d_act, d_write = now
        d_mean += d_mean_read
        d_table_rows.index_add_(0, at_row, d_read)
        if t == 0:
            break
        torch.index_select(d_projected, 0, at_cell, out=d_write)
        d_added = d_mean * (1 / (states * actions))  # of new - old, through g
        d_new = torch.addmm(d_table.index_select(0, at_cell) + d_added, d_write, pool)
        torch.mul(d_new.unsqueeze(1), slope, out=d_act)
        d_pooled, d_g, d_old = (d_act.view(trials, 4 * d) @ joint).chunk(3, dim=1)
        d_table.index_copy_(0, at_cell, (d_old - d_added).addcmul_(d_new, kept))
        d_projected.index_fill_(0, at_cell, 0.0)
        d_mean += d_g
        d_projected_rows.index_add_(0, at_row, (shares * d_pooled.unsqueeze(1)).view(trials, -1))
    d_begun = d_projected.sum(dim=0)  # of W m₀ + b
    n, old = tape.acted[1:, :, 2 * d : 3 * d], tape.inputs[1:, :, 2 * d :]
    new = torch.lerp(n, old, z[1:]).flatten(0, 1)
    written, acted = d_written[1:].flatten(0, 1), d_acted[1:].view(-1, 4 * d)
    return (
        d_table.sum(dim=0) + d_mean.sum(dim=0) + d_begun @ pool,
        torch.outer(d_begun, start) + written.t() @ new,
        d_begun + written.sum(dim=0),
        acted.t() @ tape.inputs[1:].flatten(0, 1),
        d_acted.view(steps, trials, 4 * d),
    )


def _slopes(tape: _Tape) -> Tensor:
    """Return the derivatives of new by r, z, n and m before their non-linearities, [T, B, 4, d]."""
    r, z, n, m = tape.acted.chunk(4, dim=-1)  # [T, B, d] each
    old = tape.inputs[..., -r.shape[-1] :]
    by_n = (1 - z) * (1 - n * n)
    return torch.stack([by_n * m * r * (1 - r), (old - n) * z * (1 - z), by_n, by_n * r], dim=2)


def _shares(tape: _Tape, first: Tensor) -> Tensor:
    """Return the part of each action in the gradient of a maximum, [T, B, A, d]: equal where actions tie."""
    largest = (tape.seen == tape.seen.amax(dim=2, keepdim=True)).to(tape.seen.dtype)
    continues = (~first).to(largest.dtype)[..., None, None]
    return largest * (continues / largest.sum(dim=2, keepdim=True))
