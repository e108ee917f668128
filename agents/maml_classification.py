"""MAML for N-way K-shot classification: inner steps on cross-entropies, outer steps by Adam (``outer_adam``).

    L(θ) = −E[log softmax(f_θ(x))_y]

An example is an episode of one step: the observation is the image x, the action is the number of a class, and
the family reveals the correct number y after the action. The first phase of a trial is the support.

Source: Finn et al. 2017 (arXiv 1703.03400), section 5.2 and appendix A.1.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import gymnasium as gym
import torch
from pydantic import BaseModel, Field
from torch import Tensor

from rl2meta.agents.image_classifier import ImageClassifier
from rl2meta.agents.maml import AT_TEST, Adapted, InnerLoop, MetaWeights
from rl2meta.agents.numbers import Count, Positive
from rl2meta.agents.outer_adam import OuterAdam, OuterAdamConfig
from rl2meta.agents.rows import Rows, labelled_rows
from rl2meta.beliefs import Probabilities, Told
from rl2meta.errors import UserError
from rl2meta.images import is_image
from rl2meta.learner_state import seeded
from rl2meta.networks import legal_only
from rl2meta.spaces import encoding
from rl2meta.training import AgentKind
from rl2meta.trial import Choice, Trajectory


class ImagesConfig(BaseModel):
    """The settings of the network's convolutions."""

    filters: Count = Field(32, description="channels of each of the four convolutions")
    batch_norm: bool = Field(True, description="normalise each channel by its mean and variance over images")


class ClassifierConfig(ImagesConfig):
    """The settings of the network."""

    transductive: bool = Field(
        False,
        description="true: queries are normalised by the statistics of all queries of their phase, so an "
        "answer depends on the other queries; false: by those of the support",
    )


class MAMLClassificationConfig(OuterAdamConfig, ClassifierConfig):
    """The hyper-parameters of MAML for classification."""

    hidden_sizes: list[Count] = Field(
        [], max_length=0, description="always []: the network has convolutions and one linear layer"
    )
    episodes_per_phase: Count = Field(
        5, description="number of examples in each phase of a trial: ways × shots of the tasks"
    )
    inner_learning_rates: list[Positive] = Field(
        [0.4],
        min_length=1,
        description="α of the first, second, … inner step; later inner steps use the last α",
    )


class CrossEntropy:
    """The inner loop's objective for classification: L = −E[log softmax(f(x))_y]."""

    def __init__(self, observation_space: gym.Space[Any]) -> None:
        self._observation = encoding(observation_space)

    def encode(self, observation: Tensor) -> Tensor:
        """Return flat pixels, [..., pixels]."""
        return self._observation.encode(observation)

    def choose(self, outputs: Tensor, generator: torch.Generator) -> Choice:
        """Return the likeliest class of each row, for logits [B, classes]."""
        guess = outputs.argmax(dim=-1)  # [B]
        return Choice(guess, guess)

    def tell(self, outputs: Tensor) -> Told:
        """Tell the probability of each class."""
        return {"class": Probabilities(outputs.softmax(dim=-1))}

    def rows(self, trajectory: Trajectory, lanes: int) -> Rows:
        """Return the examples of a phase.

        Raises:
            UserError: for a family that reveals no targets, or a phase with support and queries.
        """
        rows = labelled_rows(trajectory, lanes, self.encode, "few_shot, or use rl2")
        _refuse_mixed(trajectory)
        return rows

    def loss(self, outputs: Tensor, rows: Rows) -> Tensor:
        """Return −Σ w log softmax(f(x))_y."""
        log_probs = outputs.log_softmax(dim=-1).gather(-1, rows.label.long().unsqueeze(-1))  # [rows, 1]
        return -(rows.weight * log_probs.squeeze(-1)).sum()


@dataclass(frozen=True)
class SupportedInnerLoop(InnerLoop):
    """An inner loop whose network normalises the queries by the support that it has learnt from."""

    network: ImageClassifier
    keeps_support: ClassVar[bool] = True

    def outputs(self, adapted: Adapted, observation: Tensor, legal: Tensor | None = None) -> Tensor:
        """Return logits [num_tasks, rows, classes] for flat pixels [num_tasks, rows, pixels]."""
        if adapted.kept is None:  # nothing has been learnt from yet: the rows are the support
            return super().outputs(adapted, observation, legal)
        support = adapted.kept.observation
        together = torch.cat([support, observation], dim=1)  # [num_tasks, support + rows, pixels]
        logits = self.network.stacked(adapted.weights, together, support.shape[1])
        return legal_only(logits[:, support.shape[1] :], legal)


def loop_of(config: ClassifierConfig) -> type[InnerLoop]:
    """Return the inner loop for the network: with batch norm, queries are seen beside the support or not."""
    return SupportedInnerLoop if config.batch_norm and not config.transductive else InnerLoop


def maml_classification_learner(
    observation_space: gym.Space[Any],
    action_space: gym.Space[Any],
    config: MAMLClassificationConfig,
    device: torch.device | str = "cpu",
    seed: int = 0,
) -> OuterAdam:
    """Return the learner: Adam on the cross-entropy after adaptation.

    Args:
        observation_space: of one environment, images.
        action_space: of one environment; a guess of a class is an action.
        config: hyper-parameters.
        device: where the weights live.
        seed: of the initial weights, the same on every device.

    Raises:
        UserError: if actions are not numbers of classes, or observations are not images.
    """
    network = seeded(lambda: classifier(observation_space, action_space, config), seed)
    meta = seeded(lambda: MetaWeights(network, config), seed).to(device)
    return OuterAdam(meta, loop_of(config)(network, CrossEntropy(observation_space), config), config)


def classifier(
    observation_space: gym.Space[Any], action_space: gym.Space[Any], config: ClassifierConfig
) -> ImageClassifier:
    """Return an untrained network for the images and classes of a family.

    Raises:
        UserError: as ``maml_classification_learner``.
    """
    axes, num_classes = image_classes(observation_space, action_space)
    return ImageClassifier(axes, num_classes, config.filters, config.batch_norm)


def image_classes(
    observation_space: gym.Space[Any], action_space: gym.Space[Any]
) -> tuple[tuple[int, int, int], int]:
    """Return channels, height and width of the images of a family, and its number of classes.

    Raises:
        UserError: as ``maml_classification_learner``.
    """
    if not isinstance(action_space, gym.spaces.Discrete):
        raise UserError(
            f"agent.name: expected classes, a Discrete action space, got {action_space}; use maml_regression "
            "for numbers, or maml_trpo"
        )
    if not is_image(observation_space) or len(observation_space.shape) != 3:
        raise UserError(
            "agent.name: expected images, a Box of floats with the axes channels, height and width, got "
            f"{observation_space}; use a family such as few_shot"
        )
    channels, height, width = observation_space.shape
    return (channels, height, width), int(action_space.n)


def _refuse_mixed(trajectory: Trajectory) -> None:
    """Refuse a phase with support and queries, where a family says which is which; on a CPU only."""
    support = trajectory.truth.get("support")
    if support is None or support.device.type != "cpu":
        return
    if bool(support.any()) and not bool(support.all()):
        raise UserError(
            "agent.episodes_per_phase: expected ways × shots of the tasks, got a phase that has support and "
            "queries, which the agent would learn from; change it"
        )


MAML_CLASSIFICATION = AgentKind(
    "initial weights that adapt by a few gradient steps on cross-entropies, learnt by Adam",
    MAMLClassificationConfig,
    maml_classification_learner,
    (*AT_TEST, "transductive"),
    network=("batch_norm",),
)
