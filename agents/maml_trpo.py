"""MAML-TRPO: policy-gradient inner steps, and a trust-region step on what they lead to.

Source: Finn et al. 2017 (arXiv 1703.03400), algorithm 3, with the outer step of Schulman et al. 2015
(arXiv 1502.05477).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Any, NamedTuple

import gymnasium as gym
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from rl2meta.agents.maml import InnerLoop, MAMLAgent, MetaWeights, Rows, normalised
from rl2meta.agents.policy_gradient import PolicyGradient, PolicyGradientConfig, PolicyNetwork, vector_size
from rl2meta.agents.rewards import RewardSignal, reward_signal, standardised
from rl2meta.agents.settings import Fraction, Positive, linear
from rl2meta.errors import UserError
from rl2meta.learner_state import load_state, seeded, state_of
from rl2meta.networks import ActionDistribution
from rl2meta.trial import Trajectory, Trial
from rl2meta.trust_region import Measured, Product, gauss_newton_product, line_search, longest_step


class MAMLTRPOConfig(PolicyGradientConfig):
    """The hyper-parameters of MAML-TRPO."""

    outer_discount: Fraction | None = Field(None, description="γ of the outer step; null for the same")
    query_weights: Annotated[list[Positive], Field(min_length=1)] | None = Field(
        [1.0], description="of a trial's last phases in what the outer step raises; null for all alike"
    )
    reward_signal: RewardSignal = Field(
        "sampled",
        description="what the outer step takes for reward: as sampled, its expectation, or minus the regret; "
        "auto is the last that the family emits; inner steps take the sampled reward in any case",
    )
    max_kl: Positive = Field(0.01, description="radius of the trust region, in nats a step, at the start")
    final_max_kl: Positive | None = Field(None, description="and at the end; null for no change")
    conjugate_gradients: Annotated[int, Field(ge=1, le=1000)] = Field(10, description="iterations")
    damping: Annotated[float, Field(ge=0, le=1e6)] = Field(1e-5, description="added to the metric's diagonal")
    curvature_fraction: Annotated[float, Field(gt=0, le=1)] = Field(
        0.1, description="of the steps, drawn at random, that measure the metric; gradient and KL take all"
    )
    line_searches: Annotated[int, Field(ge=1, le=100)] = Field(15, description="step sizes to try at most")
    line_shrink: Annotated[float, Field(gt=0, lt=1)] = Field(0.8, description="each is so much of the last")


class MAMLTRPOLearner:
    """A trust-region step on what adapting leads to.

        max over θ  E_tasks E[ρ A]    subject to  E_tasks E KL(π_old ‖ π) ≤ δ,    ρ = π(a) / π_old(a)

    with π the policy of the weights that θ adapts to on the support phases, through which both are
    differentiated; which support data θ gathers is taken as given, so that nothing credits it for exploring.
    The metric is the KL's Hessian, J_θᵀ F J_θ with the Fisher information F of the adapted
    policies; it is measured on a random part of the steps, as TRPO's authors do, and the line search then
    checks surrogate and KL on all of them.

    Args:
        observation_space, action_space: of one environment.
        config: hyper-parameters.
        device: where the weights live.
        seed: of the initial weights, the same on every device.
        dtype: of the weights.

    Raises:
        UserError: for observations that are pictures.
    """

    def __init__(
        self,
        observation_space: gym.Space[Any],
        action_space: gym.Space[Any],
        config: MAMLTRPOConfig,
        device: torch.device | str = "cpu",
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.config = config
        size = vector_size(observation_space)
        make = partial(
            PolicyNetwork, size, action_space, config.hidden_sizes, deviation=config.initial_deviation
        )
        network = seeded(make, seed)
        network.to(device, dtype)
        self.meta = MetaWeights(network, config).to(device, dtype)
        self.objective = PolicyGradient(observation_space, network, config)
        self.inner = InnerLoop(network, self.objective, config)
        self.agent = MAMLAgent(self.meta, self.inner)

    def update(self, trial: Trial, progress: float, generator: torch.Generator) -> dict[str, float]:
        """Take one outer step."""
        cfg, problem = self.config, self.outer_problem(trial)
        start = parameters_to_vector(self.meta.parameters()).detach()
        gradient, old, before = problem.linearised(start)
        index = _some(problem.support[0].weight.shape[1], cfg.curvature_fraction, generator)
        metric = problem.take(index.to(start.device)).metric(start)
        radius = linear(cfg.max_kl, cfg.final_max_kl, progress)
        step = longest_step(lambda v: metric(v) + cfg.damping * v, gradient, radius, cfg.conjugate_gradients)
        with torch.no_grad():
            found = line_search(
                lambda x: problem.measure(x, old),
                start,
                step,
                radius,
                cfg.line_shrink,
                cfg.line_searches,
                before,
            )
            if found.scale > 0:  # else every bit stays
                vector_to_parameters(found.x, self.meta.parameters())
        return {
            "surrogate": float(found.measured.surrogate),
            "kl": float(found.measured.kl),
            "step_scale": found.scale,
            "gradient_norm": float(gradient.norm()),
            "entropy": float((problem.query.weight * old.entropy()).sum()),
            "return_before": _episode_return(trial.phases[0]),
            "return_after": _episode_return(trial.phases[-1]),
        }

    def outer_problem(self, trial: Trial) -> "OuterProblem":
        """Return a batch of trials as functions of the flat vector of all that is learnt."""
        cfg, lanes = self.config, self.config.episodes_per_phase
        num_phases = len(trial.phases)
        weights = cfg.query_weights or [1.0] * num_phases
        if len(weights) > num_phases:
            raise UserError(
                f"agent.query_weights: expected at most {num_phases}, one for each phase of a trial "
                f"(training.episodes_per_trial / agent.episodes_per_phase), got {len(weights)}"
            )
        judged = trial.phases[-len(weights) :]
        gamma = cfg.discount if cfg.outer_discount is None else cfg.outer_discount
        queries = [
            self.objective.rows_of(phase, lanes, reward_signal(phase, cfg.reward_signal), gamma)
            for phase in judged
        ]
        support = [self.objective.rows(phase, lanes) for phase in trial.phases]
        query = _joined(queries, weights)
        if not cfg.standardise:  # what is not compared within a task is compared between them
            query = query._replace(advantage=standardised(query.advantage, query.weight))
        return OuterProblem(self.meta, self.inner, self.objective, tuple(support), query)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the weights as named tensors."""
        return state_of(self.meta)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take on the weights; names and shapes must match exactly."""
        load_state(state, self.meta)


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
        return replace(self, support=support, query=_shared(self.query.take(everywhere)))

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


def _joined(phases: Sequence[Rows], weights: Sequence[float]) -> Rows:
    """Lay phases one after another, each of its weight."""
    weighed = [rows._replace(weight=share * rows.weight) for rows, share in zip(phases, weights, strict=True)]
    return _shared(Rows(*(torch.cat(fields, dim=1) for fields in zip(*weighed, strict=True))))


def _shared(rows: Rows) -> Rows:
    """Weigh rows to sum to 1 over all tasks together, each task alike."""
    return rows._replace(weight=normalised(rows.weight) / len(rows.weight))


def _some(rows: int, fraction: float, generator: torch.Generator) -> Tensor:
    return torch.randperm(rows, generator=generator)[: max(1, round(fraction * rows))]


def _episode_return(phase: Trajectory) -> float:
    return float((phase.reward * phase.mask).sum(dim=0).mean())
