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
from functools import partial
from typing import Any

import gymnasium as gym
import torch
from pydantic import Field
from torch import Tensor, nn

from rl2meta.adam import Adam
from rl2meta.agents.all_classes import AllClasses, of_all_classes
from rl2meta.agents.image_classifier import ImageClassifier
from rl2meta.agents.maml import AT_TEST, MAMLAgent, MetaWeights, named
from rl2meta.agents.maml_classification import (
    CrossEntropy,
    MAMLClassificationConfig,
    classifier,
    loop_of,
)
from rl2meta.agents.numbers import Count
from rl2meta.agents.outer_adam import StepOnLoss
from rl2meta.agents.references.examples import NearestNeighbour, nearest
from rl2meta.learner_state import load_state, named_under, seeded, state_of, under
from rl2meta.shards import Lost
from rl2meta.training import AgentKind
from rl2meta.trial import Trial


class PretrainedConfig(MAMLClassificationConfig):
    """The hyper-parameters of pretraining; the inner steps are those of fine-tuning."""

    classes: Count = Field(
        2048, description="at least the number of classes of the family, of training and test together"
    )
    nearest: bool = Field(
        False, description="true: answer with the class of the nearest example in features; false: fine-tune"
    )


class PretrainingLearner(StepOnLoss):
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

    config: PretrainedConfig

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
        self.all_classes = seeded(lambda: AllClasses(features, config.classes), seed).to(device)
        inner = loop_of(config)(self.network, CrossEntropy(observation_space), config)
        self.agent: MAMLAgent | NearestNeighbour = MAMLAgent(self.meta, inner)
        if config.nearest:
            answer = partial(nearest_in_features, self.network)
            self.agent = NearestNeighbour(config.episodes_per_phase, answer)
        self.weights = [*self.meta.parameters(), *self.all_classes.parameters()]
        self.optimizer = Adam(self.weights, lr=config.learning_rate, fused=True)

    def lost(self, trial: Trial) -> Lost:
        """Return the loss on all images of the trials.

        Raises:
            UserError: for a family that does not say the classes, or has more of them than the config.
        """
        cfg, lanes = self.config, self.config.episodes_per_phase
        pixels, classes = of_all_classes(trial.phases, lanes, cfg.classes)
        features = features_of(self.network, pixels, 0 if cfg.transductive else lanes)
        logits = self.all_classes(features)  # [num_tasks, rows, all classes]
        loss = self.all_classes.loss(logits, classes)
        right = (logits.detach().argmax(dim=-1) == classes).float().mean()
        return Lost(loss, torch.ones_like(loss), {"loss": loss, "accuracy": right})

    def state_dict(self) -> dict[str, Tensor]:
        """Return the weights and the optimiser's state as named tensors."""
        return state_of(self.meta, self.optimizer) | named_under("all_classes.", self.all_classes)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Load the weights and the optimiser's state; names and shapes must match exactly."""
        self.all_classes.load_state_dict(under("all_classes.", state))
        load_state(state, self.meta, self.optimizer)


def nearest_in_features(
    network: ImageClassifier, queries: Tensor, examples: Tensor, labels: Tensor
) -> Tensor:
    """Return the class of the example whose features have the largest cosine, [num_tasks, queries].

    Args:
        network: gives the features.
        queries: flat pixels, [num_tasks, queries, pixels].
        examples: flat pixels, [num_tasks, examples, pixels].
        labels: of the examples, [num_tasks, examples].
    """
    support = examples.shape[1]
    features = features_of(network, torch.cat([examples, queries], dim=1), support)  # [.., .., features]
    unit = nn.functional.normalize(features, dim=-1)  # the nearest on the sphere has the largest cosine
    return nearest(unit[:, support:], unit[:, :support], labels)


def features_of(network: ImageClassifier, pixels: Tensor, support: int) -> Tensor:
    """Return features [num_tasks, rows, features] of flat pixels, with the same weights in all tasks."""
    weights = {name: value.expand(len(pixels), *value.shape) for name, value in named(network).items()}
    return network.features(weights, pixels, support)


PRETRAINED_CLASSIFICATION = AgentKind(
    "one network for all training classes at once, fine-tuned on a task or asked for nearest features",
    PretrainedConfig,
    PretrainingLearner,
    (*AT_TEST, "transductive", "nearest"),
    training_only=("all_classes",),
    network=("batch_norm",),
)
