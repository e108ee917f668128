"""The writes of the slot core over whole trials, with a backward pass of their own.

No step has a table: which step has written what another reads is known before (``slot_reads``), so a step
gathers from all that was written. Plain autograd would make a gradient of all that for each read; the
backward pass here keeps one, and changes only what a step has read. Products of weights and gradients wait
until all steps are done: then each weight takes one.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from rl2meta.agents.cores.slot_reads import Reads


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


def unroll(
    weights: SlotWeights, cells: int, reads: Reads, facts: Tensor, first: Tensor
) -> tuple[Tensor, Tensor]:
    """Return what each step of whole trials writes, [T, B, d], and g after it, [T, B, d].

        x = [(1 − first)·max_a(W M[o_t, a] + b), g, facts],   new = GRU(x, M[c]),
        g ← g + (new − M[c]) / (S·A),   M[c] ← new

    The first step writes nothing: in its place stands m₀.

    Args:
        weights: of the write.
        cells: S·A.
        reads: which step has written what each step reads, [T, ...].
        facts: r_{t-1}, first, h/H and t/T, [T, B, 4].
        first: bool [T, B].
    """
    given = weights.start, weights.pool, weights.pool_bias, _joint(weights), facts
    written, means = _Unroll.apply(*given, reads.before, reads.old, first, cells)  # type: ignore[no-untyped-call]
    return written, means


def _joint(weights: SlotWeights) -> Tensor:
    """Return all products of the GRU as one: J, [4d, 3d + 5].

    J [pooled, M[c], g, facts, 1] = [r, z, n, m] before their non-linearities. The GRU's m, its product with
    M[c] for n, stands apart because r multiplies it.
    """
    d = len(weights.start)
    pooled, mean, facts = torch.tensor_split(weights.from_input, (d, 2 * d), dim=1)
    bias, cell_bias = weights.input_bias.unsqueeze(1), weights.cell_bias.unsqueeze(1)
    gates = slice(2 * d)
    both = [pooled[gates], weights.from_cell[gates], mean[gates], facts[gates], (bias + cell_bias)[gates]]
    nothing = pooled.new_zeros(d, d)
    n = [pooled[2 * d :], nothing, mean[2 * d :], facts[2 * d :], bias[2 * d :]]
    m = [nothing, weights.from_cell[2 * d :], nothing, torch.zeros_like(facts[2 * d :]), cell_bias[2 * d :]]
    return torch.cat([torch.cat(part, dim=1) for part in (both, n, m)])


class _Tape(NamedTuple):
    """What the backward pass needs of every step, [T, B, ...]; at t = 0 it is arbitrary.

    Attributes:
        largest: the action whose W M[o_t, a] + b was the largest before the write, int64 [T, B, d].
        inputs: the pooled row, M[c] and g before the write, facts, and 1, [T, B, 3d + 5].
        acted: r, z, n and m, [T, B, 4d].
    """

    largest: Tensor
    inputs: Tensor
    acted: Tensor

    @classmethod
    def empty(cls, steps: int, trials: int, joint: Tensor, like: Tensor) -> "_Tape":
        d = len(like)
        inputs, acted = (like.new_empty(steps, trials, n) for n in (joint.shape[1], 4 * d))
        return cls(torch.empty_like(acted[..., :d], dtype=torch.int64), inputs, acted)


class _Unroll(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *given: Any) -> tuple[Tensor, Tensor]:
        start, *_, joint, _, before, old, first, cells = given
        steps, trials = first.shape
        tape = _Tape.empty(steps, trials, joint, start)
        written, means = _forward(tape, *given)
        ctx.cells = cells
        ctx.save_for_backward(start, given[1], joint, before, old, first, written, *tape)
        return written, means

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_written: Tensor, d_means: Tensor) -> tuple[Tensor | None, ...]:
        *gradients, d_acted = _backward(d_written, d_means, ctx.cells, *ctx.saved_tensors)
        d_facts = None
        if ctx.needs_input_grad[4]:
            d_facts = d_acted @ ctx.saved_tensors[2][:, 3 * d_means.shape[-1] : -1]
        return *gradients, d_facts, None, None, None, None


def _forward(
    tape: _Tape,
    start: Tensor,
    pool: Tensor,
    pool_bias: Tensor,
    joint: Tensor,
    facts: Tensor,
    before: Tensor,
    old: Tensor,
    first: Tensor,
    cells: int,
) -> tuple[Tensor, Tensor]:
    """Do all reads and writes; fill the tape."""
    (steps, actions, trials), d = before.shape, len(start)
    written, means = start.new_empty(steps, trials, d), start.new_empty(steps, trials, d)
    # Beside each vector stands W v + b: a write projects one, a read would project those of all actions.
    # An episode's first step reads the zeros below.
    projected = start.new_zeros(steps * trials + 1, d)
    written[0], means[0] = start, start
    projected[:trials] = torch.addmv(pool_bias, pool, start)
    tape.largest[0] = 0
    known = torch.cat([facts, torch.ones_like(facts[..., :1])], dim=-1)
    r, z, n, m = tape.acted.chunk(4, dim=-1)
    to_read = _to_read(before, first).flatten(1)  # [T, A × B]
    seen, row = start.new_empty(actions * trials, d), start.new_empty(trials, d)
    outputs = written, means, projected[:-1].view_as(written)
    each = *outputs, to_read, old, known, tape.acted[..., : 2 * d], r, z, n, m, *tape
    joint, pool, by_action = joint.t().contiguous(), pool.t().contiguous(), seen.view(actions, trials, d)
    mean = means[0]
    for now in [*zip(*(part.unbind() for part in each), strict=True)][1:]:
        new, mean_now, project, read, rewritten, fact, gates, r, z, n, m, largest, inputs, acted = now
        torch.index_select(projected, 0, read, out=seen)
        torch.max(by_action, 0, out=(row, largest))
        before_write = written.view(-1, d).index_select(0, rewritten)
        torch.cat([row, before_write, mean, fact], dim=1, out=inputs)
        torch.mm(inputs, joint, out=acted)  # [B, 3d + 5] -> [B, 4d]
        gates.sigmoid_()
        n.addcmul_(r, m).tanh_()
        torch.lerp(n, before_write, z, out=new)
        torch.addmm(pool_bias, new, pool, out=project)
        mean = torch.add(mean, new - before_write, alpha=1 / cells, out=mean_now)
    return written, means


def _to_read(before: Tensor, first: Tensor) -> Tensor:
    """Return what the maximum reads, [T, A, B]: where an episode begins it is the zeros after all vectors."""
    return before.masked_fill(first.unsqueeze(1), first.numel())


def _backward(
    d_written: Tensor,
    d_means: Tensor,
    cells: int,
    start: Tensor,
    pool: Tensor,
    joint: Tensor,
    before: Tensor,
    old: Tensor,
    first: Tensor,
    written: Tensor,
    *taped: Tensor,
) -> tuple[Tensor, ...]:
    """Return the gradients of start, pool, pool_bias, joint and [r, z, n, m]; d_v is the gradient of v."""
    tape, (steps, trials), d = _Tape(*taped), first.shape, len(start)
    # The gradients of what is read, in one tensor, in which a step finds all its places by one index: of the
    # projected vectors and the zeros after them, of the vectors, and of g / (S·A).
    d_read = torch.cat(
        [start.new_zeros(steps * trials + 1, d), d_written.flatten(0, 1), d_means.flatten(0, 1) / cells]
    )
    d_projected, d_vectors, d_shares = torch.tensor_split(
        d_read, (steps * trials + 1, 2 * steps * trials + 1)
    )
    d_projected, all_read = d_projected[:-1], d_read.view(-1)
    d_acted, d_inputs = start.new_zeros(steps, trials, 4, d), start.new_empty(trials, 3 * d)
    by_input = torch.cat([joint[:, : 2 * d], joint[:, 2 * d : 3 * d] / cells], dim=1)  # [4d, 3d]
    d_old, d_share = d_inputs[:, d : 2 * d], start.new_zeros(trials, d)
    by_step = [each.view(steps, trials, d) for each in (d_vectors, d_projected, d_shares)]
    parts = (*by_step, _places(tape, before, old, first), _slopes(tape), tape.acted[..., d : 2 * d], d_acted)
    for now in reversed([*zip(*(part.unbind() for part in parts), strict=True)][1:]):
        d_vector, d_project, d_mean, places, slope, kept, d_act = now
        d_share += d_mean
        d_new = torch.addmm(d_vector, d_project, pool).add_(d_share)
        torch.mul(d_new.unsqueeze(1), slope, out=d_act)
        torch.mm(d_act.view(trials, -1), by_input, out=d_inputs)
        d_old.addcmul_(d_new, kept).sub_(d_share)
        all_read.scatter_add_(0, places, d_inputs.view(-1))
    d_joint = d_acted[1:].view(-1, 4 * d).t() @ tape.inputs[1:].flatten(0, 1)
    d_begun = d_projected[:trials].sum(dim=0)  # of W m₀ + b
    d_share += d_shares[:trials]
    d_start = d_vectors[:trials].sum(dim=0) + d_share.sum(dim=0) * cells + d_begun @ pool
    d_pool = d_projected.t() @ written.flatten(0, 1)
    return d_start, d_pool, d_projected.sum(dim=0), d_joint, d_acted.flatten(2)


def _places(tape: _Tape, before: Tensor, old: Tensor, first: Tensor) -> Tensor:
    """Return where the gradients of the inputs of each step belong in those of all reads, [T, B × 3d]."""
    (steps, trials), d = first.shape, tape.largest.shape[-1]
    read = _to_read(before, first).unsqueeze(-1).expand(-1, -1, -1, d)  # [T, A, B, d]
    pooled = read.gather(1, tape.largest.unsqueeze(1)).squeeze(1)  # [T, B, d]
    total = steps * trials
    mean = torch.arange(2 * total + 1 - trials, 3 * total + 1 - trials, device=old.device).view_as(old)
    others = [each.unsqueeze(-1).expand_as(pooled) for each in (total + 1 + old, mean)]
    rows = torch.stack([pooled, *others], dim=2)
    return rows.mul_(d).add_(torch.arange(d, device=old.device)).flatten(1)  # [T, B, 3, d] -> [T, B × 3d]


def _slopes(tape: _Tape) -> Tensor:
    """Return the derivatives of new by r, z, n and m before their non-linearities, [T, B, 4, d]."""
    r, z, n, m = tape.acted.chunk(4, dim=-1)  # [T, B, d] each
    d = r.shape[-1]
    old = tape.inputs[..., d : 2 * d]
    by_n = (1 - z) * (1 - n * n)
    return torch.stack([by_n * m * r * (1 - r), (old - n) * z * (1 - z), by_n, by_n * r], dim=2)
