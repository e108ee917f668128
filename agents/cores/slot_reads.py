"""Which step of a trial has written what another step reads, and sums over those who read.

All places of the slot core are known before it computes anything: they are observations and actions. So a
read of the table at any time is a read of what one earlier step has written, and no table is needed.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional


class Places(NamedTuple):
    """Where the steps of B trials read and write; the tables of all trials stand one below the other.

    Attributes:
        row: b·S + o_t, int64 [..., B]; the row of o_t holds its A cells.
        cell: (b·S + o_{t-1})·A + a_{t-1}, int64 [..., B].
    """

    row: Tensor
    cell: Tensor


class Reads(NamedTuple):
    """By whom the cells that each step reads were written, as t·B + b; step 0 stands for the initial vector.

    Attributes:
        before: the row of o_t before the write of step t, [T, A, B].
        after: the row of o_t after it, [A, T, B].
        old: the cell that step t rewrites, before that, [T, B].
    """

    before: Tensor
    after: Tensor
    old: Tensor

    @classmethod
    def of(cls, places: Places, size: tuple[int, int]) -> "Reads":
        """Return the reads of whole trials for places [T, B]; ``size`` is S and A."""
        (states, actions), (steps, trials) = size, places.row.shape
        device = places.row.device
        writer = torch.arange(steps * trials, device=device).view(steps, trials)
        newest = writer[0].repeat_interleave(states * actions)  # [B × S × A]
        rows = newest.view(-1, actions)
        before, old = newest.new_empty(steps, trials, actions), torch.empty_like(writer)
        parts = (places.row, places.cell, writer, before, old)
        for row, cell, now, seen, rewritten in [*zip(*(part.unbind() for part in parts), strict=True)][1:]:
            torch.index_select(rows, 0, row, out=seen)
            torch.index_select(newest, 0, cell, out=rewritten)
            newest.index_copy_(0, cell, now)
        before[0], old[0] = writer[0].unsqueeze(1), writer[0]  # a trial's first step writes nothing
        cells = places.row.unsqueeze(-1) * actions + torch.arange(actions, device=device)  # [T, B, A]
        after = torch.where(cells == places.cell.unsqueeze(-1), writer.unsqueeze(-1), before)
        after[0] = before[0]
        # Actions come first in memory: a processor computes with long rows of trials several times as fast.
        return cls(before.transpose(1, 2).contiguous(), after.movedim(2, 0).contiguous(), old)


class Answer(NamedTuple):
    """The weights of what follows a read; d is the length of a cell's vector, n that of the hidden layer.

    Attributes:
        hidden, bias: V and v, [n, 3d + 2] and [n].
        logit: u, [n].
    """

    hidden: Tensor
    bias: Tensor
    logit: Tensor


def answers(
    weights: Answer, written: Tensor, means: Tensor, elapsed: Tensor, after: Tensor
) -> tuple[Tensor, Tensor]:
    """Return mean_a y_a, [T, B, n], and u·y_a, [A, T, B], for what each step reads.

        y_a = ReLU(V [M[o_t, a], mean_a' M[o_t, a'], g, h/H, t/T] + v)

    Each vector is multiplied by its part of V once, however often it is read. The backward pass is by hand.

    Args:
        weights: V, v and u.
        written: what each step has written, [T, B, d].
        means: g, [T, B, d].
        elapsed: h/H and t/T, [T, B, 2].
        after: which step has written M[o_t, a], [A, T, B]; see ``Reads``.
    """
    pooled, logits = _Answers.apply(*weights, written, means, elapsed, after)  # type: ignore[no-untyped-call]
    return pooled, logits


class _Answers(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *given: Tensor) -> tuple[Tensor, Tensor]:
        hidden, bias, logit, written, means, elapsed, after = given
        d, (actions, steps, trials) = written.shape[-1], after.shape
        vectors = written.flatten(0, 1)
        row = functional.embedding_bag(after.view(actions, -1).t(), vectors, mode="mean")
        known = torch.cat([row, means.flatten(0, 1), elapsed.flatten(0, 1)], dim=1)  # [T × B, 2d + 2]
        shared = torch.addmm(bias, known, hidden[:, d:].t()).view(steps, trials, -1)
        own = (vectors @ hidden[:, :d].t()).index_select(0, after.flatten())  # [A × T × B, n]
        y = own.view(actions, steps, trials, -1).add_(shared).relu_()
        ctx.save_for_backward(hidden, logit, vectors, known, y, after)
        return y.mean(dim=0), y @ logit

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_pooled: Tensor, d_logits: Tensor) -> tuple[Tensor | None, ...]:
        hidden, logit, vectors, known, y, after = ctx.saved_tensors
        d, (actions, steps, trials) = vectors.shape[1], after.shape
        d_y = torch.addcmul(d_pooled / actions, d_logits.unsqueeze(-1), logit).mul_(y.sign())
        d_shared, flat = d_y.sum(dim=0).flatten(0, 1), d_y.flatten(0, 2)  # [T × B, n], [A × T × B, n]
        d_row, d_means, _ = torch.tensor_split(d_shared @ hidden[:, d:], (d, 2 * d), dim=1)
        readers = Readers.of(after)
        d_own = readers.sums(flat)  # [T × B, n]
        d_vectors = torch.addmm(readers.sums_of_rows(d_row / actions), d_own, hidden[:, :d])
        d_hidden = torch.cat([d_own.t() @ vectors, d_shared.t() @ known], dim=1)
        d_logit = (d_logits.reshape(1, -1) @ y.flatten(0, 2))[0]  # a vector times a matrix takes longer
        shape = steps, trials, d
        return d_hidden, d_shared.sum(dim=0), d_logit, d_vectors.view(shape), d_means.view(shape), None, None


class Readers(NamedTuple):
    """The reads of ``Reads.after`` in the order of whose vectors they read.

    Attributes:
        order: numbers a·T·B + t·B + b of reads, [A × T × B].
        begins: where the readers of each writer begin in it, [T × B].
    """

    order: Tensor
    begins: Tensor

    @classmethod
    def of(cls, after: Tensor) -> "Readers":
        """Sort the reads."""
        writers, order = after.flatten().sort()
        return cls(order, torch.searchsorted(writers, torch.arange(after[0].numel(), device=after.device)))

    def sums(self, reads: Tensor) -> Tensor:
        """Return the sum over the readers of each writer, [A × T × B, n] -> [T × B, n]."""
        return functional.embedding_bag(self.order, reads, self.begins, mode="sum")

    def sums_of_rows(self, steps: Tensor) -> Tensor:
        """Return ``sums`` of what is the same for all actions of a row, [T × B, n] -> [T × B, n]."""
        return functional.embedding_bag(self.order % len(steps), steps, self.begins, mode="sum")
