"""RL² on examples: a trial is a sequence of images with their classes, and then an image without its class.

    max over θ of E[log softmax(W h_S)_y],    h_S = core((e(x₀), y₀), …, (e(x_{S−1}), y_{S−1}), (e(x), 0))

x₀ to x_{S−1} are the support, y₀ to y_{S−1} their classes as one-hot vectors, x a query and y its class; e is
a network of convolutions and a linear layer, and the core any that RL² has for numbers. It is supervised: the
gradient goes through whole trials, and at test nothing is learnt but the state of the core.

The core reads the support once and then each query by itself, from the same state. So no query sees its own
class, and none sees another query.

Training may add a second loss: to tell all classes of training apart by a linear layer on e(x), which is left
out at test. Numbers of classes differ from task to task, so the first loss stays at chance until e says which
images are alike; the second tells it that.

Sources: Mishra et al. 2018, *A Simple Neural Attentive Meta-Learner* (arXiv 1707.03141), sections 3 and 5.1;
the idea is that of Santoro et al. 2016 (arXiv 1605.06065), who give the class one step later. The second loss
is that of Oreshkin et al. 2018 (arXiv 1805.10123), section 3.4.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import gymnasium as gym
import numpy as np
import torch
from pydantic import ConfigDict, Field, field_validator
from torch import Tensor
from torch.nn import functional

from rl2meta.adam import Adam
from rl2meta.agents.all_classes import AllClasses, of_all_classes
from rl2meta.agents.cores.recurrent import GRUConfig, LSTMConfig
from rl2meta.agents.cores.snail import SNAILConfig
from rl2meta.agents.cores.transformer import TransformerConfig
from rl2meta.agents.image_classifier import ImageClassifier
from rl2meta.agents.maml_classification import CrossEntropy, ImagesConfig, image_classes
from rl2meta.agents.numbers import Count, NonNegative, Positive
from rl2meta.agents.outer_adam import StepOnLoss
from rl2meta.agents.rl2 import CORES
from rl2meta.agents.sequence_classifier import Memory, SequenceClassifier
from rl2meta.beliefs import Told
from rl2meta.errors import UserError
from rl2meta.learner_state import load_state, named_under, seeded, state_of, under
from rl2meta.networks import legal_only
from rl2meta.parts import in_parts
from rl2meta.shards import Lost
from rl2meta.training import AgentKind
from rl2meta.trial import Choice, Phase, TimeStep, Trajectory, Trial


class SequenceConfig(ImagesConfig):
    """The hyper-parameters of RL² on examples."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    core: Annotated[LSTMConfig | GRUConfig | TransformerConfig | SNAILConfig, Field(discriminator="name")] = (
        Field(SNAILConfig(), description="network that reads the examples: its name and its settings")
    )
    features: Count = Field(64, description="numbers that the core sees of an image")
    episodes_per_phase: Count = Field(
        5, description="number of examples in each phase of a trial: ways × shots of the tasks"
    )
    auxiliary_coefficient: NonNegative = Field(
        1.0,
        description="weight of a second loss in training: to tell all classes of training apart by their "
        "features; 0: none, as in the paper of SNAIL",
    )
    classes: Count = Field(
        2048, description="at least the number of classes of the family, of training and test together"
    )
    learning_rate: Positive = Field(1e-3, description="Adam's learning rate at the start of training")
    final_learning_rate: Positive | None = Field(
        None, description="Adam's learning rate at the end of training; null: no change"
    )

    @field_validator("core", mode="before")
    @classmethod
    def _named(cls, part: Any) -> Any:
        return {"name": part} if isinstance(part, str) else part


class SequenceAgent:
    """Answers with the likeliest class; what it learns is the support, which it keeps.

    Before the end of the first phase it has no support, and guesses.

    Args:
        network: reads support and queries.
        objective: encodes images, and takes examples from a phase.
        lanes: number of examples in the support.
    """

    def __init__(self, network: SequenceClassifier, objective: CrossEntropy, lanes: int) -> None:
        self.network, self.objective = network, objective
        self.phase = Phase(episodes=1, lanes_per_task=lanes)

    def begin(self, num_tasks: int, generator: torch.Generator, num_steps: int | None = None) -> Memory:
        """Return an empty memory."""
        sizes = math.prod(self.network.encoder.axes), self.network.num_classes
        return Memory(*(torch.zeros(num_tasks, 0, size, device=generator.device) for size in sizes))

    def act(self, carry: Memory, step: TimeStep) -> tuple[Choice, Memory]:
        """Answer in every lane."""
        guess = self._logits(carry, step).argmax(dim=-1)  # [B]
        return Choice(guess, guess), carry

    def act_and_tell(self, carry: Memory, step: TimeStep) -> tuple[Choice, Memory, Told]:
        """Do what ``act`` does, and tell the probability of each class."""
        logits = self._logits(carry, step)
        guess = logits.argmax(dim=-1)
        return Choice(guess, guess), carry, self.objective.tell(logits)

    def adapt(self, carry: Memory, trajectory: Trajectory) -> Memory:
        """Keep the first phase.

        Raises:
            UserError: for a family that reveals no targets, or a phase with support and queries.
        """
        return carry if carry.examples.shape[1] else self.support(trajectory)

    def support(self, trajectory: Trajectory) -> Memory:
        """Return what a phase shows."""
        rows = self.objective.rows(trajectory, self.phase.lanes_per_task)
        classes = torch.arange(self.network.num_classes, device=rows.label.device)
        labels = (rows.label.unsqueeze(-1) == classes).to(rows.observation.dtype)  # one-hot
        return Memory(rows.observation, labels)

    def _logits(self, carry: Memory, step: TimeStep) -> Tensor:
        """Return logits [B, classes], in as few parts of the tasks as memory allows."""
        lanes = self.phase.lanes_per_task
        pixels = self.objective.encode(step.observation)  # [num_tasks × lanes, pixels]
        queries = pixels.reshape(-1, lanes, pixels.shape[1])
        each = self.network.numbers_per_task(carry.examples.shape[1] + lanes)
        logits = [
            self.network(Memory(*(field[part] for field in carry)), queries[part])
            for part in in_parts(len(queries), each)
        ]
        return legal_only(torch.cat(logits).flatten(0, 1), step.legal)


class SequenceLearner(StepOnLoss):
    """Adam on the cross-entropy of the queries.

    Args:
        observation_space: of one environment, images.
        action_space: of one environment; a guess of a class is an action.
        config: hyper-parameters.
        device: where the weights live.
        seed: of the initial weights, the same on every device.

    Raises:
        UserError: if actions are not numbers of classes, or observations are not images.
    """

    config: SequenceConfig

    def __init__(
        self,
        observation_space: gym.Space[Any],
        action_space: gym.Space[Any],
        config: SequenceConfig,
        device: torch.device | str = "cpu",
        seed: int = 0,
    ) -> None:
        self.config = config
        self.network = seeded(lambda: _network(observation_space, action_space, config), seed).to(device)
        self.agent = SequenceAgent(self.network, CrossEntropy(observation_space), config.episodes_per_phase)
        self.all_classes = seeded(lambda: AllClasses(config.features, config.classes), seed).to(device)
        self.weights = [*self.network.parameters(), *self.all_classes.parameters()]
        self.optimizer = Adam(self.weights, lr=config.learning_rate, fused=True)

    def lost(self, trial: Trial) -> Lost:
        """Return the loss on all queries of the trials."""
        cfg, network = self.config, self.network
        memory, queries, labels = self.examples(trial)
        features = network.encoded(memory, queries)
        logits = network.read(features, memory.labels)  # [num_tasks, queries, classes]
        loss = functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
        right = (logits.detach().argmax(dim=-1) == labels).float().mean()
        told = {"loss": loss, "accuracy": right}
        if cfg.auxiliary_coefficient:
            _, numbers = of_all_classes(trial.phases, cfg.episodes_per_phase, cfg.classes)
            told["auxiliary_loss"] = self.all_classes.loss(self.all_classes(features), numbers)
            loss = loss + cfg.auxiliary_coefficient * told["auxiliary_loss"]
        return Lost(loss, torch.ones_like(loss), told)

    def examples(self, trial: Trial) -> tuple[Memory, Tensor, Tensor]:
        """Return the support; all queries, [num_tasks, queries, pixels]; their classes [num_tasks, queries].

        Raises:
            UserError: for trials without queries, or whose support is longer than a phase.
        """
        first, *asked = trial.phases
        if not asked:
            raise UserError(
                "training.episodes_per_trial: expected the support (agent.episodes_per_phase) and at least "
                f"as many queries, got {self.config.episodes_per_phase} episodes; use a multiple of it"
            )
        _refuse_support(asked)
        rows = [self.agent.objective.rows(phase, self.config.episodes_per_phase) for phase in asked]
        queries = torch.cat([each.observation for each in rows], dim=1)
        return self.agent.support(first), queries, torch.cat([each.label for each in rows], dim=1).long()

    def state_dict(self) -> dict[str, Tensor]:
        """Return the weights and the optimiser's state as named tensors."""
        return state_of(self.network, self.optimizer) | named_under("all_classes.", self.all_classes)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Load the weights and the optimiser's state; names and shapes must match exactly."""
        self.all_classes.load_state_dict(under("all_classes.", state))
        load_state(state, self.network, self.optimizer)


def _refuse_support(asked: Sequence[Trajectory]) -> None:
    """Refuse a support of several phases, where a family says which examples are of it; on a CPU only."""
    known = [phase.truth["support"] for phase in asked if "support" in phase.truth]
    if any(support.device.type == "cpu" and bool(support.any()) for support in known):
        raise UserError(
            "agent.episodes_per_phase: expected ways × shots of the tasks, got fewer, so that the agent "
            "keeps only a part of the support; change it"
        )


def _network(
    observation_space: gym.Space[Any], action_space: gym.Space[Any], config: SequenceConfig
) -> SequenceClassifier:
    axes, num_classes = image_classes(observation_space, action_space)
    encoder = ImageClassifier(axes, config.features, config.filters, config.batch_norm)
    seen = gym.spaces.Box(-np.inf, np.inf, (config.features,), np.float32)
    return SequenceClassifier(encoder, CORES[type(config.core)](seen, action_space, config.core), num_classes)


SEQUENCE_CLASSIFICATION = AgentKind(
    "a core that reads images with their classes, and then tells the class of an image; supervised",
    SequenceConfig,
    SequenceLearner,
    training_only=("all_classes",),
    network=("batch_norm", "core"),
    variant=lambda config: config.core.name,
)
