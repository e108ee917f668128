"""Pretraining for N-way K-shot classification: one network for all classes at once, without inner steps.

    min over θ and W of −E[log softmax(W φ_θ(x))_c]

c is the class among all classes of training, and φ the features before the last layer. On a new task, the
agent has a new last layer, all zero, and either takes gradient steps on all its weights as MAML's agent does
(fine-tuning), or answers with the class of the nearest example in features. It is what MAML must be compared
with: the same network and tasks, and only the loss of the training is another.

Source: the baselines of Finn et al. 2017 (arXiv 1703.03400), section 5.2; Chen et al. 2019, *A Closer Look at
Few-shot Classification* (arXiv 1904.04232).
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import gymnasium as gym
import torch
from pydantic import Field
from torch import Tensor, nn

from rl2meta.adam import Adam
from rl2meta.agents.image_classifier import ImageClassifier
from rl2meta.agents.maml import AT_TEST, MAMLAgent, MetaWeights, by_row, named
from rl2meta.agents.maml_classification import (
    CrossEntropy,
    MAMLClassificationConfig,
    classifier,
    loop_of,
)
from rl2meta.agents.numbers import Count
from rl2meta.agents.references.examples import nearest
from rl2meta.errors import UserError
from rl2meta.learner_state import load_state, named_under, seeded, state_of, under
from rl2meta.training import AgentKind, linear
from rl2meta.trial import Choice, Phase, TimeStep, Trajectory, Trial


class PretrainedConfig(MAMLClassificationConfig):
    """The hyper-parameters of pretraining; the inner steps are those of fine-tuning."""

    classes: Count = Field(
        2048, description="at least the number of classes of the family, of training and test together"
    )
    nearest: bool = Field(
        False, description="true: answer with the class of the nearest example in features; false: fine-tune"
    )


class Features(NamedTuple):
    """The carry of an agent that compares features: the support of each task.

    Attributes:
        support: flat pixels, [num_tasks, support, pixels]; None before the end of the support.
        labels: the correct classes, int64 [num_tasks, support].
    """

    support: Tensor | None
    labels: Tensor


class FeatureNeighbours:
    """Answers with the class of the example of the support whose features have the largest cosine.

    Args:
        network: gives the features.
        config: says how long a phase is.
    """

    def __init__(self, network: ImageClassifier, config: PretrainedConfig) -> None:
        self.network, self.phase = network, Phase(episodes=1, lanes_per_task=config.episodes_per_phase)

    def begin(self, num_tasks: int, generator: torch.Generator, num_steps: int | None = None) -> Features:
        """Return an empty memory."""
        return Features(None, torch.zeros(num_tasks, 0, dtype=torch.int64, device=generator.device))

    def act(self, carry: Features, step: TimeStep) -> tuple[Choice, Features]:
        """Answer in every lane; with class 0 before the support has been seen."""
        if carry.support is None:
            answer = torch.zeros(len(step.reward), dtype=torch.int64, device=step.reward.device)
            return Choice(answer, answer), carry
        examples = carry.support.shape[1]
        together = torch.cat([carry.support, self._by_task(step.observation)], dim=1)
        features = features_of(self.network, together, examples)  # [num_tasks, support + lanes, features]
        unit = nn.functional.normalize(features, dim=-1)  # the nearest on the sphere has the largest cosine
        answer = nearest(unit[:, examples:], unit[:, :examples], carry.labels).flatten()
        return Choice(answer, answer), carry

    def adapt(self, carry: Features, trajectory: Trajectory) -> Features:
        """Keep the first phase."""
        if carry.support is not None:
            return carry
        labels = trajectory.truth["target"][0].reshape(
            len(carry.labels), -1
        )  # [1, B] -> [num_tasks, support]
        return Features(self._by_task(trajectory.inputs.observation[0]), labels)

    def _by_task(self, observation: Tensor) -> Tensor:
        """[num_tasks × lanes, ...] -> [num_tasks, lanes, pixels]."""
        flat = observation.flatten(1)
        return flat.reshape(-1, self.phase.lanes_per_task, flat.shape[1])


class PretrainingLearner:
    """Adam on the cross-entropy of all classes of training at once.

    An image is normalised as at test: by the support of its trial, or by all images of its phase.

    Args:
        observation_space: of one environment, images.
        action_space: of one environment; a guess of a class is an action.
        config: hyper-parameters.
        device: where the weights live.
        seed: of the initial weights, the same on every device.

    Raises:
        UserError: if actions are not numbers of classes, or observations are not images.
    """

    def __init__(
        self,
        observation_space: gym.Space[Any],
        action_space: gym.Space[Any],
        config: PretrainedConfig,
        device: torch.device | str = "cpu",
        seed: int = 0,
    ) -> None:
        self.config = config
        self.network = seeded(lambda: classifier(observation_space, action_space, config), seed)
        for parameter in self.network.head.parameters():
            nn.init.zeros_(parameter)  # the new last layer of a task; training does not reach it
        self.meta = MetaWeights(self.network, config).to(device)
        features = self.network.head.in_features
        self.all_classes = seeded(lambda: nn.Linear(features, config.classes), seed).to(device)
        inner = loop_of(config)(self.network, CrossEntropy(observation_space), config)
        self.agent: MAMLAgent | FeatureNeighbours = MAMLAgent(self.meta, inner)
        if config.nearest:
            self.agent = FeatureNeighbours(self.network, config)
        weights = [*self.meta.parameters(), *self.all_classes.parameters()]
        self.optimizer = Adam(weights, lr=config.learning_rate, fused=True)

    def update(self, trial: Trial, progress: float, generator: torch.Generator) -> dict[str, float]:
        """Take one step on all images of the trials.

        Raises:
            UserError: for a family that does not say the classes, or has more of them than the config.
        """
        cfg, lanes = self.config, self.config.episodes_per_phase
        known = [_known(phase, lanes, cfg.classes) for phase in trial.phases]
        pixels, classes = (torch.cat(parts, dim=1) for parts in zip(*known, strict=True))
        features = features_of(self.network, pixels, 0 if cfg.transductive else lanes)
        logits = self.all_classes(features)  # [num_tasks, rows, classes]
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), classes.flatten())
        rate = linear(cfg.learning_rate, cfg.final_learning_rate, progress)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        right = (logits.detach().argmax(dim=-1) == classes).float().mean()
        return {"loss": float(loss.detach()), "accuracy": float(right), "learning_rate": rate}

    def state_dict(self) -> dict[str, Tensor]:
        """Return the weights and the optimiser's state as named tensors."""
        return state_of(self.meta, self.optimizer) | named_under("all_classes.", self.all_classes)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Load the weights and the optimiser's state; names and shapes must match exactly."""
        self.all_classes.load_state_dict(under("all_classes.", state))
        load_state(state, self.meta, self.optimizer)


def features_of(network: ImageClassifier, pixels: Tensor, support: int) -> Tensor:
    """Return features [num_tasks, rows, features] of flat pixels, with the same weights in all tasks."""
    weights = {name: value.expand(len(pixels), *value.shape) for name, value in named(network).items()}
    return network.features(weights, pixels, support)


def _known(phase: Trajectory, lanes: int, classes: int) -> tuple[Tensor, Tensor]:
    """Return the images of a phase and their classes, [num_tasks, rows, pixels] and [num_tasks, rows]."""
    if "class" not in phase.truth:
        raise UserError(
            "agent.name: expected a family that says which class of all an image has, got one without; use "
            "few_shot"
        )
    of_all = by_row(phase.truth["class"], lanes)
    if of_all.device.type == "cpu" and int(of_all.max()) >= classes:
        raise UserError(
            f"agent.classes: expected more than the number {int(of_all.max())} of a class, got {classes}; "
            "raise it"
        )
    return by_row(phase.inputs.observation.flatten(2), lanes), of_all


PRETRAINED_CLASSIFICATION = AgentKind(
    "one network for all training classes at once, fine-tuned on a task or asked for nearest features",
    PretrainedConfig,
    PretrainingLearner,
    (*AT_TEST, "transductive", "nearest"),
    training_only=("all_classes",),
    network=("batch_norm",),
)
