"""MAML-TRPO: inner steps by policy gradients, and outer steps by a trust region.

Source: Finn et al. 2017 (arXiv 1703.03400), algorithm 3, with the outer step of Schulman et al. 2015
(arXiv 1502.05477).
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any

import gymnasium as gym
import torch
from pydantic import Field
from torch import Tensor
from torch.nn.utils import parameters_to_vector

from rl2meta.agents.maml import AT_TEST, InnerLoop, MAMLAgent, MetaWeights
from rl2meta.agents.numbers import Fraction, Positive
from rl2meta.agents.outer_problem import OuterProblem, Sharded, joined, unflatten
from rl2meta.agents.policy_gradient import PolicyGradient, PolicyGradientConfig, policy_network
from rl2meta.agents.rows import episode_return
from rl2meta.errors import UserError
from rl2meta.kernels import compiled, threads_to_kernels
from rl2meta.learner_state import load_state, named_under, seeded, state_of, under
from rl2meta.returns import RewardSignal, reward_signal
from rl2meta.shards import ALONE, Shards
from rl2meta.training import AgentKind, WholeIsOneShard, linear
from rl2meta.trial import Trial
from rl2meta.trust_region import Found, line_search, longest_step
from rl2meta.units import FORMER_UNITS, UNITS


class MAMLTRPOConfig(PolicyGradientConfig):
    """The hyper-parameters of MAML-TRPO."""

    outer_discount: Fraction | None = Field(
        None, description="γ of the outer step; null: the same as discount"
    )
    query_weights: Annotated[list[Positive], Field(min_length=1)] | None = Field(
        [1.0],
        description="weights of the trial's last phases in the outer objective, one number for each phase; "
        "null: all phases of the trial with equal weights",
    )
    reward_signal: RewardSignal = Field(
        "sampled",
        description="reward of the outer step: sampled, expected (its expectation), or regret (minus the "
        "regret); auto: the last of these that the family provides; inner steps use the sampled reward",
    )
    max_kl: Positive = Field(
        0.01,
        description="radius of the trust region at the start of training: maximum mean KL divergence, "
        "in nats per environment step",
    )
    final_max_kl: Positive | None = Field(
        None, description="radius of the trust region at the end of training; null: no change"
    )
    conjugate_gradients: Annotated[int, Field(ge=1, le=1000)] = Field(
        10, description="number of conjugate-gradient iterations in each outer step"
    )
    damping: Annotated[float, Field(ge=0, le=1e6)] = Field(
        1e-5, description="number added to the diagonal of the KL's Hessian"
    )
    curvature_fraction: Annotated[float, Field(gt=0, le=1)] = Field(
        0.1,
        description="fraction of the steps, drawn at random, that estimates the KL's Hessian; gradient and "
        "KL use all steps",
    )
    line_searches: Annotated[int, Field(ge=1, le=100)] = Field(
        15, description="maximum number of step sizes that the line search tries"
    )
    line_shrink: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.8, description="factor between two step sizes that the line search tries"
    )


class MAMLTRPOLearner(WholeIsOneShard):
    """A trust-region step on the return after adaptation.

        max over θ  E_tasks E[ρ A]    subject to  E_tasks E KL(π_old ‖ π) ≤ δ,    ρ = π(a) / π_old(a)

    where π is the policy after the inner steps from θ on the support phases; both expressions are
    differentiated through these inner steps. The support data are treated as fixed, so θ gets no credit
    for exploration. The metric is the KL's Hessian, J_θᵀ F J_θ, with the Fisher information F of the adapted
    policies. It is estimated on a random part of the steps, as TRPO's authors do; the line search then
    checks surrogate and KL on all steps.

    Args:
        observation_space, action_space: of one environment.
        config: hyper-parameters.
        device: where the weights live.
        seed: of the initial weights, the same on every device.
        dtype: of the weights.

    Raises:
        UserError: for image observations.
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
        spaces = observation_space, action_space
        network = seeded(lambda: policy_network(*spaces, config.hidden_sizes, config), seed)
        network.to(device, dtype)
        self.meta = seeded(lambda: MetaWeights(network, config), seed).to(device, dtype)
        self._is_chain = network.is_chain
        self.objective = PolicyGradient(observation_space, network, config)
        self.objective.units.to(device)
        self.inner = InnerLoop(network, self.objective, config)
        self.agent = MAMLAgent(self.meta, self.inner)

    def update_shards(
        self,
        trials: Sequence[Trial],
        progress: float,
        generators: Sequence[torch.Generator],
        shards: Shards,
    ) -> dict[str, float]:
        """Take one outer step on the shards of a batch."""
        with threads_to_kernels(self._compiles()):
            cfg, problem = self.config, self._sharded(trials, shards)
            start = parameters_to_vector(self.meta.parameters()).detach()
            gradient, old, before = problem.linearised(start)
            metric = problem.metric(start, self._some_rows(problem, generators))
            radius = linear(cfg.max_kl, cfg.final_max_kl, progress)
            step = longest_step(
                lambda v: metric(v) + cfg.damping * v, gradient, radius, cfg.conjugate_gradients
            )
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
                self._take(found)
            self.objective.measure(trials, shards)
            return {
                "surrogate": float(found.measured.surrogate),
                "kl": float(found.measured.kl),
                "max_kl": radius,
                "step_scale": found.scale,
                "gradient_norm": float(gradient.norm()),
                "entropy": float(problem.entropy(old)),
                "return_before": float(shards.mean([episode_return(trial.phases[0]) for trial in trials])),
                "return_after": float(shards.mean([episode_return(trial.phases[-1]) for trial in trials])),
            }

    def _sharded(self, trials: Sequence[Trial], shards: Shards) -> Sharded:
        """Return the outer problem of a batch, in parts that fit in memory."""
        wholes = zip(self._outer_problems(trials, shards), trials, strict=True)
        return Sharded(tuple(whole.parts(self._numbers_per_task(trial)) for whole, trial in wholes), shards)

    def _some_rows(self, problem: Sharded, generators: Sequence[torch.Generator]) -> list[Tensor]:
        """Return the rows of each own shard that estimate the metric."""
        fraction, pairs = self.config.curvature_fraction, zip(problem.own, generators, strict=True)
        rows = [_some(own.problems[0].rows_per_phase, fraction, generator) for own, generator in pairs]
        return [index.to(next(self.meta.parameters()).device) for index in rows]

    def _take(self, found: Found) -> None:
        """Set the weights to what the line search found; if it is nothing, they stay exactly as they are."""
        if found.scale > 0:
            new = unflatten(found.x, self.meta)
            for name, value in self.meta.named_parameters():
                value.copy_(new[name])  # in place: a recorded rollout reads this memory

    def outer_problem(self, trial: Trial) -> OuterProblem:
        """Return the objective and the constraint of the outer step, for a batch of trials."""
        return self._outer_problems([trial], ALONE)[0]

    def _outer_problems(self, trials: Sequence[Trial], shards: Shards) -> list[OuterProblem]:
        problems = [self._with_raw_advantages(trial) for trial in trials]
        if self.config.standardise:  # within each task, which rows_of does
            return problems
        queries = [problem.query for problem in problems]
        over_all_tasks = shards.standardised(
            [query.advantage for query in queries], [query.weight for query in queries]
        )
        return [
            replace(problem, query=problem.query._replace(advantage=advantage))
            for problem, advantage in zip(problems, over_all_tasks, strict=True)
        ]

    def _with_raw_advantages(self, trial: Trial) -> OuterProblem:
        """Return the outer problem of a shard, in which advantages are standardised within tasks at most."""
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
        return OuterProblem(self.meta, self.inner, self.objective, tuple(support), query)

    def _numbers_per_task(self, trial: Trial) -> int:
        """Estimate how many numbers the graph of one task holds, through all inner steps.

        Torch keeps z, tanh z and what comes between them for each unit; kernels keep tanh z and the weights.
        """
        per_unit = 1 if self._compiles() else 4
        return len(trial.phases) * 2 * self.agent.numbers_per_task(trial.phases[0], per_unit)

    def _compiles(self) -> bool:
        """Return whether compiled kernels run the policy."""
        return self._is_chain and compiled(next(self.meta.parameters()))

    def state_dict(self) -> dict[str, Tensor]:
        """Return the weights, and what was measured of the units, as named tensors."""
        return state_of(self.meta) | named_under("units.", self.objective.units)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Load the weights and the units; names and shapes must match exactly."""
        load_state(state, self.meta)
        self.objective.units.load_state_dict(under("units.", state))


MAML_TRPO = AgentKind(
    "initial weights that adapt by a few policy-gradient steps, learnt by trust-region steps",
    MAMLTRPOConfig,
    MAMLTRPOLearner,
    AT_TEST,
    FORMER_UNITS,
    network=UNITS,
    compiled=lambda config: bool(config.hidden_sizes),
)


def _some(rows: int, fraction: float, generator: torch.Generator) -> Tensor:
    return torch.randperm(rows, generator=generator)[: max(1, round(fraction * rows))]
