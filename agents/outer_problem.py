"""MAML's outer problem: the objective and the KL of a batch of trials, as functions of the flat vector θ.

θ, a vector [n], holds all parameters that the outer step changes: initial weights, and factors of α if they
are learnt.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from rl2meta.agents.maml import InnerLoop, MetaWeights
from rl2meta.agents.policy_gradient import PolicyGradient
from rl2meta.agents.rows import Rows, normalised
from rl2meta.networks import ActionDistribution
from rl2meta.parts import in_parts
from rl2meta.shards import Shards
from rl2meta.trust_region import Measured, Product, gauss_newton_product


class Linearised(NamedTuple):
    """The surrogate and its gradient at the point where an outer step begins.

    Attributes:
        gradient: of the surrogate, [n].
        policies: π at this point, without a graph.
        measured: the surrogate at this point, and a KL of 0.
    """

    gradient: Tensor
    policies: ActionDistribution
    measured: Measured


@dataclass(frozen=True)
class OuterProblem:
    """The objective and the KL of one batch of trials, as functions of the flat vector θ [n].

    Attributes:
        meta: names and shapes of the parameters in the vector.
        inner, objective: how the agent adapts to a task.
        support: the rows of every phase for the inner steps, [num_tasks, rows, ...] each.
        query: the rows of the last phases for the outer step, [num_tasks, phases × rows, ...].
    """

    meta: MetaWeights
    inner: InnerLoop
    objective: PolicyGradient
    support: tuple[Rows, ...]
    query: Rows

    @property
    def rows_per_phase(self) -> int:
        """The number of steps of a task in each phase."""
        return self.support[0].weight.shape[1]

    def take(self, index: Tensor) -> "OuterProblem":
        """Return the same problem on the steps at ``index`` of every phase."""
        rows = self.rows_per_phase
        starts = range(0, self.query.weight.shape[1], rows)
        everywhere = torch.cat([index + start for start in starts])  # [index] -> [phases × index]
        support = tuple(phase.take(index) for phase in self.support)  # [num_tasks, index, ...] each
        query = self.query.take(everywhere)  # [num_tasks, phases × index, ...]
        # The weight of each task among all tasks, those of other parts included.
        share = self.query.weight.sum(dim=1, keepdim=True)  # [num_tasks, 1]
        return replace(self, support=support, query=query._replace(weight=share * query.weight))

    def parts(self, numbers_per_task: int) -> "Parts":
        """Split the problem into parts that fit in memory, if the graph of a task holds so many numbers.

        The results of the parts are added up, and the number of parts changes the rounding of the sum. So
        there are as few parts as possible, and their sizes need not be multiples of 16.
        """
        tasks = in_parts(len(self.query.weight), numbers_per_task, multiple_of=1)
        return Parts(tuple(self._of(part) for part in tasks))

    def _of(self, tasks: slice) -> "OuterProblem":
        support = tuple(phase.of(tasks) for phase in self.support)
        return replace(self, support=support, query=self.query.of(tasks))

    def outputs(self, vector: Tensor) -> Tensor:
        """Return the outputs of the adapted networks on the query, [num_tasks, phases × rows, P]."""
        states = self.inner.replay(unflatten(vector, self.meta), self.support)  # [n] -> [num_tasks, ...]
        size = self.rows_per_phase
        # [num_tasks, phases × rows, size] -> one [num_tasks, rows, size] for each phase
        parts = torch.split(self.query.observation, size, dim=1)
        legal = torch.split(self.query.legal, size, dim=1)  # as the parts
        judged = zip(states[-len(parts) :], parts, legal, strict=True)
        # one [num_tasks, rows, P] for each phase -> [num_tasks, phases × rows, P]
        return torch.cat([self.inner.outputs(*each) for each in judged], dim=1)

    def policies(self, vector: Tensor) -> ActionDistribution:
        """Return π of the adapted weights, on the rows of the query."""
        policies: ActionDistribution = self.objective.distribution(self.outputs(vector))
        return policies

    def surrogate(self, policies: ActionDistribution, old_log_prob: Tensor) -> Tensor:
        """Return E[ρ A]."""
        ratio = (policies.log_prob(self.query.label) - old_log_prob).exp()  # [num_tasks, phases × rows]
        return (self.query.weight * self.query.advantage * ratio).sum()  # [num_tasks, phases × rows] -> []

    def measure(self, vector: Tensor, old: ActionDistribution) -> Measured:
        """Return E[ρ A] and E KL(old ‖ π)."""
        policies = self.policies(vector)
        surrogate = self.surrogate(policies, old.log_prob(self.query.label))
        # [num_tasks, phases × rows] -> []
        return Measured(surrogate, (self.query.weight * old.kl(policies)).sum())

    def linearised(self, vector: Tensor) -> Linearised:
        """Return ∇E[ρ A], through the inner steps, at π = π_old; and π_old with its surrogate and KL."""
        vector = vector.detach().requires_grad_()
        with torch.enable_grad():
            outputs = self.outputs(vector)
            old = self.objective.distribution(outputs.detach())
            surrogate = self.surrogate(self.objective.distribution(outputs), old.log_prob(self.query.label))
        gradient = torch.autograd.grad(surrogate, vector)[0]  # [n]
        return Linearised(gradient, old, Measured(surrogate.detach(), torch.zeros_like(surrogate)))

    def metric(self, vector: Tensor) -> Product:
        """Return v -> ∇²E KL(π_old ‖ π) v at π = π_old, for vectors v [n]."""
        with torch.no_grad():
            old = self.policies(vector)

        def kl(outputs: Tensor) -> Tensor:
            # [num_tasks, phases × rows, P] -> []
            return (self.query.weight * old.kl(self.objective.distribution(outputs))).sum()

        return gauss_newton_product(self.outputs, kl, vector)


def unflatten(vector: Tensor, module: nn.Module) -> dict[str, Tensor]:
    """Return the parameters that a flat vector [n] holds, by name, in the shapes of the module's."""
    shapes = {name: value.shape for name, value in module.named_parameters()}
    parts = torch.split(vector, [shape.numel() for shape in shapes.values()])
    return {name: part.view(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}


Policies = tuple[ActionDistribution, ...]
"""π of each part of a problem."""


@dataclass(frozen=True)
class Parts:
    """An outer problem in parts, with some of the tasks in each.

    Gradient and line search hold the graph of one part at a time. The metric keeps the graphs of all parts,
    but each has only the few steps that estimate the metric. The results of the parts add up, because the
    weights of the rows sum to 1 over the tasks of all parts together.

    Attributes:
        problems: the parts.
    """

    problems: tuple[OuterProblem, ...]

    def linearised(self, vector: Tensor) -> tuple[Tensor, Policies, Measured]:
        """Return the gradient at ``vector``, the policies of each part, and the surrogate and KL."""
        points = [problem.linearised(vector) for problem in self.problems]
        gradient = torch.stack([point.gradient for point in points]).sum(dim=0)  # [parts, n] -> [n]
        return gradient, tuple(point.policies for point in points), _sum([point.measured for point in points])

    def metric(self, vector: Tensor, index: Tensor) -> Product:
        """Return v -> ∇²E KL v, estimated on the steps at ``index`` of every phase."""
        products = [problem.take(index).metric(vector) for problem in self.problems]
        return lambda v: torch.stack([product(v) for product in products]).sum(dim=0)  # [parts, n] -> [n]

    def measure(self, vector: Tensor, old: Sequence[ActionDistribution]) -> Measured:
        """Return E[ρ A] and E KL(old ‖ π)."""
        parts = zip(self.problems, old, strict=True)
        return _sum([problem.measure(vector, policies) for problem, policies in parts])

    def entropy(self, policies: Sequence[ActionDistribution]) -> Tensor:
        """Return the mean entropy of the policies of each part."""
        parts = zip(self.problems, policies, strict=True)
        return torch.stack([(problem.query.weight * each.entropy()).sum() for problem, each in parts]).sum()


@dataclass(frozen=True)
class Sharded:
    """An outer problem in shards, each with the same number of tasks: results are means over all shards.

    Attributes:
        own: the problems of the shards of this process.
        shards: those of all processes.
    """

    own: tuple[Parts, ...]
    shards: Shards

    def linearised(self, vector: Tensor) -> tuple[Tensor, tuple[Policies, ...], Measured]:
        """Return the gradient at ``vector``, the policies of each own shard, and the surrogate and KL."""
        points = [problem.linearised(vector) for problem in self.own]
        # one vector [n + 2] for each shard: what is sent in one piece takes less time
        mean = self.shards.mean(
            [torch.cat([gradient, torch.stack(measured)]) for gradient, _, measured in points]
        )
        return mean[:-2], tuple(policies for _, policies, _ in points), Measured(mean[-2], mean[-1])

    def metric(self, vector: Tensor, indices: Sequence[Tensor]) -> Product:
        """Return v -> ∇²E KL v, estimated on the steps at the index of each own shard."""
        pairs = zip(self.own, indices, strict=True)
        products = [problem.metric(vector, index) for problem, index in pairs]
        return lambda v: self.shards.mean([product(v) for product in products])

    def measure(self, vector: Tensor, old: Sequence[Policies]) -> Measured:
        """Return E[ρ A] and E KL(old ‖ π)."""
        pairs = zip(self.own, old, strict=True)
        found = [torch.stack(problem.measure(vector, policies)) for problem, policies in pairs]
        return Measured(*self.shards.mean(found).unbind())

    def entropy(self, policies: Sequence[Policies]) -> Tensor:
        """Return the mean entropy of the policies of each own shard."""
        return self.shards.mean([part.entropy(each) for part, each in zip(self.own, policies, strict=True)])


def _sum(measured: Sequence[Measured]) -> Measured:
    return Measured(*(torch.stack(values).sum() for values in zip(*measured, strict=True)))


def joined(phases: Sequence[Rows], weights: Sequence[float]) -> Rows:
    """Concatenate the rows of phases, each multiplied by its weight.

    One [num_tasks, rows, ...] for each phase -> [num_tasks, phases × rows, ...].
    """
    weighed = [rows._replace(weight=share * rows.weight) for rows, share in zip(phases, weights, strict=True)]
    return _shared(Rows(*(torch.cat(fields, dim=1) for fields in zip(*weighed, strict=True))))


def _shared(rows: Rows) -> Rows:
    """Scale the weights so that they sum to 1 over all tasks, with the same share for each task."""
    return rows._replace(weight=normalised(rows.weight) / len(rows.weight))
