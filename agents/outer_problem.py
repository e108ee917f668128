"""MAML's outer problem: a batch of trials as functions of the flat vector of all that is learnt."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from rl2meta.agents.maml import InnerLoop, MetaWeights, Rows, normalised
from rl2meta.agents.policy_gradient import PolicyGradient
from rl2meta.networks import ActionDistribution
from rl2meta.parts import in_parts
from rl2meta.trust_region import Measured, Product, gauss_newton_product


class Linearised(NamedTuple):
    """A point at which an outer step begins.

    Attributes:
        gradient: of the surrogate.
        policies: π there, without a graph.
        measured: the surrogate there, and a KL of 0.
    """

    gradient: Tensor
    policies: ActionDistribution
    measured: Measured


@dataclass(frozen=True)
class OuterProblem:
    """One batch of trials as functions of the flat vector of all that is learnt.

    Attributes:
        meta: names and shapes of what the vector holds.
        inner, objective: how a task is adapted to.
        support: every phase of the trial, as the inner steps see it.
        query: the last phases, as the outer step sees them: [num_tasks, phases × rows, ...].
    """

    meta: MetaWeights
    inner: InnerLoop
    objective: PolicyGradient
    support: tuple[Rows, ...]
    query: Rows

    def take(self, index: Tensor) -> "OuterProblem":
        """Return the same problem on the steps at ``index`` of every phase."""
        rows = self.support[0].weight.shape[1]
        everywhere = torch.cat([index + start for start in range(0, self.query.weight.shape[1], rows)])
        support = tuple(phase.take(index) for phase in self.support)
        query = self.query.take(everywhere)
        share = self.query.weight.sum(dim=1, keepdim=True)  # of each task among all, of other parts too
        return replace(self, support=support, query=query._replace(weight=share * query.weight))

    def parts(self, numbers_per_task: int) -> "Parts":
        """Return the same problem in parts that memory holds, for a task's graph of so many numbers.

        What the parts come to is added up, and rounded by how many there are: as few as possible, and not
        of sixteens.
        """
        tasks = in_parts(len(self.query.weight), numbers_per_task, multiple_of=1)
        return Parts(tuple(self._of(part) for part in tasks))

    def _of(self, tasks: slice) -> "OuterProblem":
        support = tuple(phase.of(tasks) for phase in self.support)
        return replace(self, support=support, query=self.query.of(tasks))

    def outputs(self, vector: Tensor) -> Tensor:
        """Return what the adapted networks put out on the query, [num_tasks, phases × rows, P]."""
        states = self.inner.replay(unflatten(vector, self.meta), self.support)
        size = self.support[0].weight.shape[1]
        parts = torch.split(self.query.observation, size, dim=1)
        judged = zip(states[-len(parts) :], parts, strict=True)
        return torch.cat([self.inner.outputs(state, part) for state, part in judged], dim=1)

    def policies(self, vector: Tensor) -> ActionDistribution:
        """Return π of the adapted weights."""
        policies: ActionDistribution = self.objective.distribution(self.outputs(vector))
        return policies

    def surrogate(self, policies: ActionDistribution, old_log_prob: Tensor) -> Tensor:
        """Return E[ρ A]."""
        ratio = (policies.log_prob(self.query.label) - old_log_prob).exp()
        return (self.query.weight * self.query.advantage * ratio).sum()

    def measure(self, vector: Tensor, old: ActionDistribution) -> Measured:
        """Return E[ρ A] and E KL(old ‖ π)."""
        policies = self.policies(vector)
        surrogate = self.surrogate(policies, old.log_prob(self.query.label))
        return Measured(surrogate, (self.query.weight * old.kl(policies)).sum())

    def linearised(self, vector: Tensor) -> Linearised:
        """Return ∇E[ρ A], through the inner steps, where π is π_old, and that π with what it measures."""
        vector = vector.detach().requires_grad_()
        with torch.enable_grad():
            outputs = self.outputs(vector)
            old = self.objective.distribution(outputs.detach())
            surrogate = self.surrogate(self.objective.distribution(outputs), old.log_prob(self.query.label))
        gradient = torch.autograd.grad(surrogate, vector)[0]
        return Linearised(gradient, old, Measured(surrogate.detach(), torch.zeros_like(surrogate)))

    def metric(self, vector: Tensor) -> Product:
        """Return v -> ∇²E KL(π_old ‖ π) v, where π is π_old."""
        with torch.no_grad():
            old = self.policies(vector)

        def kl(outputs: Tensor) -> Tensor:
            return (self.query.weight * old.kl(self.objective.distribution(outputs))).sum()

        return gauss_newton_product(self.outputs, kl, vector)


def unflatten(vector: Tensor, module: nn.Module) -> dict[str, Tensor]:
    """Return the named parameters that a flat vector holds, in the shapes of the module's."""
    shapes = {name: value.shape for name, value in module.named_parameters()}
    parts = torch.split(vector, [shape.numel() for shape in shapes.values()])
    return {name: part.view(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}


@dataclass(frozen=True)
class Parts:
    """An outer problem in parts of some tasks each: gradient and line search hold the graph of one at a time.

    The metric keeps a graph of every part, of the few steps that it is measured on.

    What the parts measure adds up: every weight counts its row among those of all tasks.

    Attributes:
        problems: the parts.
    """

    problems: tuple[OuterProblem, ...]

    def linearised(self, vector: Tensor) -> tuple[Tensor, tuple[ActionDistribution, ...], Measured]:
        """Return the gradient at ``vector``, the policies of each part there, and what is measured there."""
        points = [problem.linearised(vector) for problem in self.problems]
        gradient = torch.stack([point.gradient for point in points]).sum(dim=0)
        return gradient, tuple(point.policies for point in points), _sum([point.measured for point in points])

    def metric(self, vector: Tensor, index: Tensor) -> Product:
        """Return v -> ∇²E KL v, measured on the steps at ``index`` of every phase."""
        products = [problem.take(index).metric(vector) for problem in self.problems]
        return lambda v: torch.stack([product(v) for product in products]).sum(dim=0)

    def measure(self, vector: Tensor, old: Sequence[ActionDistribution]) -> Measured:
        """Return E[ρ A] and E KL(old ‖ π)."""
        parts = zip(self.problems, old, strict=True)
        return _sum([problem.measure(vector, policies) for problem, policies in parts])

    def entropy(self, policies: Sequence[ActionDistribution]) -> Tensor:
        """Return the mean entropy of the policies of each part."""
        parts = zip(self.problems, policies, strict=True)
        return torch.stack([(problem.query.weight * each.entropy()).sum() for problem, each in parts]).sum()


def _sum(measured: Sequence[Measured]) -> Measured:
    return Measured(*(torch.stack(values).sum() for values in zip(*measured, strict=True)))


def joined(phases: Sequence[Rows], weights: Sequence[float]) -> Rows:
    """Lay phases one after another, each of its weight."""
    weighed = [rows._replace(weight=share * rows.weight) for rows, share in zip(phases, weights, strict=True)]
    return _shared(Rows(*(torch.cat(fields, dim=1) for fields in zip(*weighed, strict=True))))


def _shared(rows: Rows) -> Rows:
    """Weigh rows to sum to 1 over all tasks together, each task alike."""
    return rows._replace(weight=normalised(rows.weight) / len(rows.weight))
