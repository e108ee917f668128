"""MAML for supervised tasks: inner steps on squared errors, outer steps by Adam.

The inner and the outer loop are the same as for every other agent. An example is an episode of one step: the
observation is x, the action is the prediction, and the family reveals the target after the action.

Source: Finn et al. 2017 (arXiv 1703.03400), algorithm 2 and section 5.1.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import gymnasium as gym
import torch
from pydantic import Field
from torch import Tensor, nn

from rl2meta.adam import Adam
from rl2meta.agents.maml import (
    AT_TEST,
    InnerConfig,
    InnerLoop,
    MAMLAgent,
    MetaWeights,
    Rows,
    by_row,
    legal_rows,
    named,
    normalised,
)
from rl2meta.agents.numbers import Count, Positive
from rl2meta.agents.policy_gradient import vector_size
from rl2meta.beliefs import Amounts, Told
from rl2meta.errors import UserError
from rl2meta.learner_state import load_state, seeded, state_of, under
from rl2meta.networks import mlp, stacked
from rl2meta.shards import ALONE, Lost, Shards, set_gradients
from rl2meta.spaces import encoding
from rl2meta.training import AgentKind, linear
from rl2meta.trial import Choice, Trajectory, Trial


class MAMLRegressionConfig(InnerConfig):
    """The hyper-parameters of MAML for regression."""

    hidden_sizes: list[Count] = Field([40, 40], description="units in each hidden layer")
    episodes_per_phase: Count = Field(
        10, description="number of examples in each phase of a trial; an inner step follows a phase"
    )
    inner_learning_rates: list[Positive] = Field(
        [0.01],
        min_length=1,
        description="α of the first, second, … inner step; later inner steps use the last α",
    )
    support_phases: Count | None = Field(
        1,
        description="number of support phases; inner steps beyond this number use the last of them again; "
        "null: each inner step uses the phase before it",
    )
    learning_rate: Positive = Field(1e-3, description="Adam's learning rate at the start of training")
    final_learning_rate: Positive | None = Field(
        None, description="Adam's learning rate at the end of training; null: no change"
    )


class SquaredError:
    """The inner loop's objective for supervised tasks: L = E[(f(x) − y)²]."""

    def __init__(self, observation_space: gym.Space[Any]) -> None:
        self._observation = encoding(observation_space)

    def encode(self, observation: Tensor) -> Tensor:
        """Return the network's input."""
        return self._observation.encode(observation)

    def choose(self, outputs: Tensor, generator: torch.Generator) -> Choice:
        """Return the network's outputs as predictions, without exploration noise."""
        return Choice(outputs, outputs)

    def tell(self, outputs: Tensor) -> Told:
        """Tell the prediction."""
        return {"prediction": Amounts(outputs, "entry")}

    def rows(self, trajectory: Trajectory, lanes: int) -> Rows:
        """Return the examples of a phase.

        Raises:
            UserError: for a family that reveals no targets.
        """
        if "target" not in trajectory.truth:
            raise UserError(
                "agent.name: expected targets to learn from, got a trajectory without targets; use a family "
                "that reveals them, such as sinusoids, or use maml_trpo (Stable-Baselines3's predict "
                "provides no targets: use a rollout)"
            )
        mask = by_row(trajectory.mask.float(), lanes)  # [T, num_tasks × lanes] -> [num_tasks, rows]
        observation = self.encode(trajectory.inputs.observation)  # [T, num_tasks × lanes, size]
        return Rows(
            by_row(observation, lanes),  # [num_tasks, rows, size]
            by_row(trajectory.truth["target"], lanes),  # [num_tasks, rows, out_features]
            torch.ones_like(mask),
            normalised(mask),
            legal_rows(trajectory, lanes),
        )

    def loss(self, outputs: Tensor, rows: Rows) -> Tensor:
        """Return Σ w (f(x) − y)²."""
        return (rows.weight * (outputs - rows.label).square().sum(dim=-1)).sum()  # [rows, ...] -> []


class RegressionNetwork(nn.Module):
    """Encoded observation -> ReLU layers -> prediction."""

    def __init__(self, in_features: int, out_features: int, hidden_sizes: list[int]) -> None:
        super().__init__()
        self.trunk = mlp(in_features, hidden_sizes, nn.ReLU)
        self.head = nn.Linear(hidden_sizes[-1] if hidden_sizes else in_features, out_features)

    def forward(self, observation: Tensor) -> Tensor:
        """Return [..., out_features] for observations [..., in_features]."""
        prediction: Tensor = self.head(self.trunk(observation))
        return prediction

    def stacked(self, weights: Mapping[str, Tensor], observation: Tensor) -> Tensor:
        """Return [N, rows, out_features] for N tasks; each task uses its own weights."""
        features = stacked(self.trunk, under("trunk.", weights), observation)
        return stacked(self.head, under("head.", weights), features)


class MAMLRegressionLearner:
    """Adam on the error after adaptation: min over θ of E_tasks E[(f_θ'(x) − y)²].

    Args:
        observation_space, action_space: of one environment; a prediction is an action.
        config: hyper-parameters.
        device: where the weights live.
        seed: of the initial weights, the same on every device.

    Raises:
        UserError: if actions are not vectors of numbers, or observations are images.
    """

    def __init__(
        self,
        observation_space: gym.Space[Any],
        action_space: gym.Space[Any],
        config: MAMLRegressionConfig,
        device: torch.device | str = "cpu",
        seed: int = 0,
    ) -> None:
        if not isinstance(action_space, gym.spaces.Box) or len(action_space.shape) != 1:
            raise UserError(
                f"agent.name: expected predictions, a Box of one axis, got the action space {action_space}; "
                "use maml_trpo"
            )
        self.config = config
        sizes = vector_size(observation_space), action_space.shape[0]
        network = seeded(lambda: RegressionNetwork(*sizes, config.hidden_sizes), seed)
        self.meta = MetaWeights(network, config).to(device)
        self.inner = InnerLoop(network, SquaredError(observation_space), config)
        self.agent = MAMLAgent(self.meta, self.inner)
        self.optimizer = Adam(self.meta.parameters(), lr=config.learning_rate, fused=True)

    def update(self, trial: Trial, progress: float, generator: torch.Generator) -> dict[str, float]:
        """Take one outer step on the last phase, through the inner steps before it."""
        return self.update_shards([trial], progress, [generator], ALONE)

    def update_shards(
        self,
        trials: Sequence[Trial],
        progress: float,
        generators: Sequence[torch.Generator],
        shards: Shards,
    ) -> dict[str, float]:
        """Take one outer step on the shards of a batch, which have the same number of tasks."""
        cfg = self.config
        rate = linear(cfg.learning_rate, cfg.final_learning_rate, progress)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        losses = [partial(self._lost, trial) for trial in trials]
        told = set_gradients(list(self.meta.parameters()), losses, shards)
        self.optimizer.step()
        return {"loss": float(told["loss"]), "learning_rate": rate}

    def _lost(self, trial: Trial) -> Lost:
        """Return the loss of the last phase of a trial on each task, after the inner steps before it."""
        lanes = self.config.episodes_per_phase
        phases = [self.inner.objective.rows(phase, lanes) for phase in trial.phases]
        state = self.inner.replay(named(self.meta), phases)[-1]
        loss = self.inner.losses(state, phases[-1]).mean()  # [num_tasks] -> []
        return Lost(loss, torch.ones_like(loss), {"loss": loss})

    def state_dict(self) -> dict[str, Tensor]:
        """Return the weights and the optimiser's state as named tensors."""
        return state_of(self.meta, self.optimizer)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Load the weights and the optimiser's state; names and shapes must match exactly."""
        load_state(state, self.meta, self.optimizer)


MAML_REGRESSION = AgentKind(
    "initial weights that adapt by a few gradient steps on squared errors, learnt by Adam",
    MAMLRegressionConfig,
    MAMLRegressionLearner,
    AT_TEST,
)
