"""MAML-TRPO: policy-gradient inner steps, and a trust-region step on what they lead to.

Source: Finn et al. 2017 (arXiv 1703.03400), algorithm 3, with the outer step of Schulman et al. 2015
(arXiv 1502.05477).
"""

from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any

import gymnasium as gym
import torch
from pydantic import Field
from torch import Tensor
from torch.nn.utils import parameters_to_vector

from rl2meta.agents.maml import AT_TEST, InnerLoop, MAMLAgent, MetaWeights
from rl2meta.agents.numbers import Fraction, Positive
from rl2meta.agents.outer_problem import OuterProblem, joined, unflatten
from rl2meta.agents.policy_gradient import PolicyGradient, PolicyGradientConfig, PolicyNetwork, vector_size
from rl2meta.errors import UserError
from rl2meta.learner_state import load_state, seeded, state_of
from rl2meta.returns import RewardSignal, reward_signal, standardised
from rl2meta.training import AgentKind, linear
from rl2meta.trial import Trajectory, Trial
from rl2meta.trust_region import line_search, longest_step


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
        cfg, whole = self.config, self.outer_problem(trial)
        problem = whole.parts(self._numbers_per_task(trial))
        start = parameters_to_vector(self.meta.parameters()).detach()
        gradient, old, before = problem.linearised(start)
        index = _some(whole.support[0].weight.shape[1], cfg.curvature_fraction, generator)
        metric = problem.metric(start, index.to(start.device))
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
                new = unflatten(found.x, self.meta)
                for name, value in self.meta.named_parameters():
                    value.copy_(new[name])  # in place: a recorded rollout reads this memory
        return {
            "surrogate": float(found.measured.surrogate),
            "kl": float(found.measured.kl),
            "step_scale": found.scale,
            "gradient_norm": float(gradient.norm()),
            "entropy": float(problem.entropy(old)),
            "return_before": _episode_return(trial.phases[0]),
            "return_after": _episode_return(trial.phases[-1]),
        }

    def outer_problem(self, trial: Trial) -> OuterProblem:
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
        query = joined(queries, weights)
        if not cfg.standardise:  # what is not compared within a task is compared between them
            query = query._replace(advantage=standardised(query.advantage, query.weight))
        return OuterProblem(self.meta, self.inner, self.objective, tuple(support), query)

    def _numbers_per_task(self, trial: Trial) -> int:
        """Return about how many numbers the graph of a task holds, through all inner steps."""
        return len(trial.phases) * 2 * self.agent.numbers_per_task(trial.phases[0])

    def state_dict(self) -> dict[str, Tensor]:
        """Return the weights as named tensors."""
        return state_of(self.meta)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take on the weights; names and shapes must match exactly."""
        load_state(state, self.meta)


MAML_TRPO = AgentKind(
    "initial weights from which policy-gradient steps go far, learnt by a trust-region step",
    MAMLTRPOConfig,
    MAMLTRPOLearner,
    AT_TEST,
)


def _some(rows: int, fraction: float, generator: torch.Generator) -> Tensor:
    return torch.randperm(rows, generator=generator)[: max(1, round(fraction * rows))]


def _episode_return(phase: Trajectory) -> float:
    return float((phase.reward * phase.mask).sum(dim=0).mean())
