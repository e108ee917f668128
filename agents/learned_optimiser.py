"""A learned optimiser: only the rule of the inner steps is learnt, and initial weights are drawn anew.

    min over φ  E [ Σₜ Lₜ(θₜ) ],    θₜ₊₁, hₜ₊₁ = rule_φ(θₜ, hₜ, ∇Lₜ(θₜ)),    θ₀ ~ N(0, σ²)

A task is a loss over the weights θ of a network, the *optimisee*: its examples come phase by phase, and a
step of the rule follows each phase. What was lived does not depend on θ, because the examples do not
depend on what the agent guesses. So an update draws θ₀ itself, walks along the trial again, and takes an
outer step after every ``unroll`` inner steps; θ and h go on from there without their gradients.

Source: Andrychowicz et al. 2016 (arXiv 1606.04474), section 2 and the authors' code.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import gymnasium as gym
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from rl2meta.adam import Adam
from rl2meta.agents.lstm_rule import LSTMRule
from rl2meta.agents.maml import Adapted, InnerConfig, InnerLoop, MAMLAgent, named, rejoined
from rl2meta.agents.maml_regression import SquaredError
from rl2meta.agents.numbers import Count, Positive
from rl2meta.agents.policy_gradient import vector_size
from rl2meta.agents.references.reference import KNOWS_NOTHING, Reference
from rl2meta.agents.rows import Rows
from rl2meta.agents.rule import Rule
from rl2meta.agents.rules import SGD, AdamRule, AnyRule, Momentum, RMSprop
from rl2meta.errors import UserError
from rl2meta.learner_state import load_state, seeded, state_of, under
from rl2meta.networks import stacked
from rl2meta.parts import in_parts
from rl2meta.training import AgentKind, linear, set_rate
from rl2meta.trial import Trial, over_fields

ACTIVATIONS: Mapping[str, Callable[[], nn.Module]] = {
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "elu": nn.ELU,
}
RATES = tuple(round(10 ** (quarter / 4), 6) for quarter in range(-12, 3))
"""Step sizes of the hand-made rules, from 0.001 to 3.2, four in each power of ten."""


class LearnedOptimiserConfig(InnerConfig):
    """The hyper-parameters of a learned optimiser: the network that it trains, and how it learns to."""

    hidden_sizes: list[Count] = Field([], description="units in each hidden layer of the optimisee")
    activation: Literal["sigmoid", "tanh", "relu", "elu"] = Field(
        "sigmoid", description="of the optimisee's hidden layers"
    )
    bias: bool = Field(True, description="whether the layers of the optimisee have biases")
    initial_deviation: Positive = Field(
        0.01, description="σ: every weight of the optimisee begins with a draw from N(0, σ²) in each trial"
    )
    loss: Literal["squared_error", "cross_entropy"] = Field(
        "squared_error",
        description="of the optimisee: Σ (f(x) − y)², or the cross-entropy of scores f(x) with target scores "
        "y; a mean over the examples of a phase",
    )
    episodes_per_phase: Count = Field(
        10, description="number of examples in each phase of a trial; a step of the rule follows a phase"
    )
    rule: AnyRule = Field(LSTMRule(), description="what is learnt: the rule's name and its settings")
    first_order: bool = Field(
        True, description="ignore the derivatives of the optimisee's gradients with respect to its weights"
    )
    unroll: Count = Field(20, description="inner steps between two outer steps, which look back so far")
    passes: Count = Field(
        1, description="number of times that an update walks along its trials, each from new initial weights"
    )
    learning_rate: Positive = Field(1e-3, description="Adam's learning rate at the start of training")
    final_learning_rate: Positive | None = Field(
        None, description="Adam's learning rate at the end of training; null: no change"
    )
    max_gradient_norm: Positive | None = Field(
        None, description="longer outer gradients are scaled down to this length; null: none are"
    )


class ScoreCrossEntropy(SquaredError):
    """The loss of scores: L = −E[softmax(y) · log softmax(f(x))], for target scores y."""

    def loss(self, outputs: Tensor, rows: Rows) -> Tensor:
        """Return −Σ w softmax(y) · log softmax(f(x))."""
        wanted = rows.label.softmax(dim=-1)  # [rows, classes]
        log_prob = (wanted * functional.log_softmax(outputs, dim=-1)).sum(dim=-1)  # [rows]
        return -(rows.weight * log_prob).sum()  # [rows] -> []


class Optimisee(nn.Module):
    """The network that is trained in a trial; its own weights only say names and shapes."""

    def __init__(self, in_features: int, out_features: int, config: LearnedOptimiserConfig) -> None:
        super().__init__()
        sizes = [in_features, *config.hidden_sizes, out_features]
        layers: list[nn.Module] = []
        for a, b in itertools.pairwise(sizes):
            layers += [nn.Linear(a, b, bias=config.bias), ACTIVATIONS[config.activation]()]
        self.layers = nn.Sequential(*layers[:-1])

    def stacked(self, weights: Mapping[str, Tensor], observation: Tensor) -> Tensor:
        """Return [N, rows, out_features] for N tasks; each task uses its own weights."""
        return stacked(self.layers, under("layers.", weights), observation)

    def drawn(self, num_tasks: int, deviation: float, generator: torch.Generator) -> dict[str, Tensor]:
        """Return new weights N(0, deviation²), [num_tasks, ...] each."""
        device = generator.device
        return {
            name: deviation * torch.randn(num_tasks, *like.shape, generator=generator, device=device)
            for name, like in self.named_parameters()
        }


def inner_loop(
    observation_space: gym.Space[Any], action_space: gym.Space[Any], config: LearnedOptimiserConfig
) -> tuple[Optimisee, InnerLoop]:
    """Return the optimisee, and the inner loop that trains it.

    Raises:
        UserError: if actions are not vectors of numbers, or observations are images.
    """
    if not isinstance(action_space, gym.spaces.Box) or len(action_space.shape) != 1:
        raise UserError(
            f"agent.name: expected outputs of a network, a Box of one axis, got the action space "
            f"{action_space}; use a family that reveals targets, such as quadratics, digits or sinusoids"
        )
    sizes = vector_size(observation_space), action_space.shape[0]
    network = seeded(lambda: Optimisee(*sizes, config), 0)  # any seed: its own weights are never used
    objective = {"squared_error": SquaredError, "cross_entropy": ScoreCrossEntropy}[config.loss]
    return network, InnerLoop(network, objective(observation_space), config)


def optimising_agent(
    network: Optimisee, inner: InnerLoop, learnt: nn.Module, config: LearnedOptimiserConfig
) -> MAMLAgent:
    """Return an agent that draws initial weights in each trial and then trains by the rule of ``inner``."""

    def start(num_tasks: int, generator: torch.Generator) -> Adapted:
        return inner.start(network.drawn(num_tasks, config.initial_deviation, generator), named(learnt))

    return MAMLAgent(learnt, inner, start)


class LearnedOptimiserLearner:
    """Adam on the sum of the losses along truncated unrolls of the inner loop.

    Args:
        observation_space, action_space: of one environment; a prediction is an action.
        config: hyper-parameters.
        device: where the weights live.
        seed: of the initial weights of the rule, the same on every device.

    Raises:
        UserError: if actions are not vectors of numbers, observations are images, or nothing of the rule is
            learnt.
    """

    def __init__(
        self,
        observation_space: gym.Space[Any],
        action_space: gym.Space[Any],
        config: LearnedOptimiserConfig,
        device: torch.device | str = "cpu",
        seed: int = 0,
    ) -> None:
        self.config = config
        self.network, self.inner = inner_loop(observation_space, action_space, config)
        rule = config.inner_rule()
        self.learnt = seeded(lambda: nn.ModuleDict(rule.learnt(self.network)), seed).to(device)
        if not list(self.learnt.parameters()):
            raise UserError(
                f"agent.rule: expected a rule that can learn, lstm or meta_sgd, got {config.rule.name}; to "
                "see what it does untrained, name it in evaluation.against"
            )
        self.agent = optimising_agent(self.network, self.inner, self.learnt, config)
        self.optimizer = Adam(self.learnt.parameters(), lr=config.learning_rate, fused=True)

    def update(self, trial: Trial, progress: float, generator: torch.Generator) -> dict[str, float]:
        """Walk along the trial from new initial weights, as often as ``passes`` says."""
        cfg = self.config
        rate = linear(cfg.learning_rate, cfg.final_learning_rate, progress)
        set_rate(self.optimizer, rate)
        batches = [self.inner.objective.rows(phase, cfg.episodes_per_phase) for phase in trial.phases]
        if len(batches) < 2:
            raise UserError(
                "training.episodes_per_trial: expected at least two phases of agent.episodes_per_phase "
                f"examples, before and after a step of the rule, got {len(batches)}"
            )
        means = [self._walk(batches, generator) for _ in range(cfg.passes)]
        losses = torch.tensor(means, dtype=torch.float64).mean(dim=0)  # [passes, unrolls] -> [unrolls]
        return {
            "loss": float(losses.mean()),
            "loss_of_first_unroll": float(losses[0]),
            "loss_of_last_unroll": float(losses[-1]),
            "learning_rate": rate,
        }

    def _walk(self, batches: Sequence[Rows], generator: torch.Generator) -> list[float]:
        """Take an outer step after every unroll; return the mean loss along each."""
        state, means = self._drawn(len(batches[0].weight), generator), []
        for first in range(0, len(batches) - 1, self.config.unroll):
            state, mean = self._outer_step(state, batches[first : first + self.config.unroll + 1])
            means.append(mean)
        return means

    def _drawn(self, num_tasks: int, generator: torch.Generator) -> Adapted:
        weights = self.network.drawn(num_tasks, self.config.initial_deviation, generator)
        device = next(self.learnt.parameters()).device
        return self.inner.start({name: w.to(device) for name, w in weights.items()}, named(self.learnt))

    def _outer_step(self, state: Adapted, batches: Sequence[Rows]) -> tuple[Adapted, float]:
        """Take an outer step on an unroll; return the state at its end and the mean loss along it."""
        num_tasks = len(batches[0].weight)
        self.optimizer.zero_grad()
        parts = [
            self._unroll(state.of(tasks), [rows.of(tasks) for rows in batches], num_tasks)
            for tasks in in_parts(num_tasks, self._numbers_per_task(batches))
        ]
        if self.config.max_gradient_norm is not None:
            nn.utils.clip_grad_norm_(self.learnt.parameters(), self.config.max_gradient_norm)
        self.optimizer.step()
        return rejoined([end for end, _ in parts]), sum(loss for _, loss in parts) / (len(batches) - 1)

    def _unroll(self, state: Adapted, batches: Sequence[Rows], num_tasks: int) -> tuple[Adapted, float]:
        """Add the gradient of Σₜ Lₜ(θₜ) of some of the tasks; return their last state and this sum.

        A loss is that of the examples that come after the step, as in an evaluation.
        """
        total = torch.zeros((), device=batches[0].weight.device)
        for now, then in itertools.pairwise(batches):
            state = self.inner.advance(state, now)
            total = total + self.inner.losses(state, then).sum() / num_tasks  # [tasks of the part] -> []
        total.backward()  # type: ignore[no-untyped-call]
        return _without_graph(state), float(total.detach())

    def _numbers_per_task(self, batches: Sequence[Rows]) -> int:
        """Estimate how many numbers the graph of one task holds along an unroll."""
        weights = list(self.network.parameters())
        held = sum(w.numel() for w in weights) * (4 + self.config.inner_rule().numbers_per_weight)
        rows = batches[0].weight.shape[1] * sum(w.shape[0] for w in weights)
        return (len(batches) - 1) * (held + 4 * rows)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the weights and the optimiser's state as named tensors."""
        return state_of(self.learnt, self.optimizer)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Load the weights and the optimiser's state; names and shapes must match exactly."""
        load_state(state, self.learnt, self.optimizer)


def _without_graph(state: Adapted) -> Adapted:
    cut = Tensor.detach
    return state._replace(weights=over_fields(cut, state.weights), state=over_fields(cut, state.state))


def hand_made_rules(
    observation_space: gym.Space[Any], action_space: gym.Space[Any], config: LearnedOptimiserConfig
) -> dict[str, Reference]:
    """Return references that train the same network by hand-made rules, with tuned constants."""

    def agent(rule: Rule, rate: float) -> MAMLAgent:
        fixed = {"rule": rule, "inner_learning_rates": [rate], "learn_inner_rates": False}
        mine = config.model_copy(update=fixed)
        return optimising_agent(*inner_loop(observation_space, action_space, mine), nn.ModuleDict(), mine)

    def reference(line: str, make: Callable[..., Rule], **grid: tuple[float, ...]) -> Reference:
        build = lambda rate=0.01, **settings: agent(make(**settings), rate)  # noqa: E731
        return Reference(line, build, {"rate": RATES, **grid}, KNOWS_NOTHING)

    nag = lambda momentum=0.9: Momentum(momentum=momentum, nesterov=True)  # noqa: E731
    return {
        "sgd": reference("gradient descent, θ' = θ − α g", SGD),
        "nag": reference("gradient descent with Nesterov's momentum", nag, momentum=(0.9, 0.95)),
        "rmsprop": reference("RMSprop", RMSprop, decay=(0.9, 0.99)),
        "adam": reference("Adam", AdamRule),
    }


LEARNED_OPTIMISER = AgentKind(
    "a rule of gradient steps, such as an LSTM, that trains networks from random initial weights",
    LearnedOptimiserConfig,
    LearnedOptimiserLearner,
    (
        *("hidden_sizes", "activation", "bias", "initial_deviation", "loss"),
        *("episodes_per_phase", "inner_learning_rates", "inner_steps", "support_phases"),
    ),
    references=hand_made_rules,
)
