"""The hyper-parameters of PPO on whole trials."""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from rl2meta.agents.numbers import Count, Fraction, NonNegative, Positive
from rl2meta.returns import RewardSignal
from rl2meta.units import UnitsConfig


class PPOConfig(UnitsConfig):
    """The hyper-parameters of PPO; pairs of a value at the start and at the end change linearly."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    learning_rate: Positive = Field(1e-2, description="Adam's learning rate at the start of training")
    final_learning_rate: NonNegative = Field(0.0, description="Adam's learning rate at the end of training")
    warm_up: Fraction = Field(
        0.0, description="part of training in which the learning rate rises from 0 to its schedule"
    )
    entropy_coefficient: NonNegative = Field(
        0.05, description="weight of the entropy bonus at the start of training"
    )
    final_entropy_coefficient: NonNegative = Field(
        0.0, description="weight of the entropy bonus at the end of training"
    )
    value_coefficient: NonNegative = Field(0.05, description="weight of the value loss")
    initial_deviation: Positive = Field(
        1.0,
        description="standard deviation of continuous actions at the start of training, in the policy's "
        "unit: with action_units=normalised a fraction of half of the width between the bounds",
    )
    discount: Fraction = Field(
        1.0, description="discount γ at the start of training; it applies across the episodes of a trial"
    )
    final_discount: Fraction | None = Field(
        None, description="discount γ at the end of training; null: no change"
    )
    gae_trace: Fraction = Field(0.95, description="λ of generalised advantage estimation")
    clip_range: Positive = Field(0.2, description="ε of PPO's clipped surrogate")
    epochs: Annotated[int, Field(ge=1, le=1000)] = Field(
        3, description="number of passes over each batch of trials"
    )
    minibatches: Count = Field(2, description="number of minibatches in each pass; a trial is never split")
    max_gradient_norm: Positive = Field(
        0.5, description="maximum norm of the gradient; a longer gradient is scaled down to it"
    )
    surrogate: Literal["auto", "sampled", "all_actions"] = Field(
        "sampled",
        description="sampled: the advantage of the action taken; all_actions: the immediate regret by its "
        "expectation over all actions, for families that reveal the regret of every action, and only what "
        "follows by the action taken; auto: all_actions where the family allows it",
    )
    auxiliary_coefficient: NonNegative = Field(
        0.0,
        description="with all_actions, weight of an auxiliary loss: a linear layer on the core's features "
        "predicts the regrets of all actions, in training only; 0: no such layer",
    )
    critic: Literal["head", "privileged"] = Field(
        "head",
        description="with all_actions, what estimates the future: head, the value head of the agent, or "
        "privileged, a network that also sees the regrets of all actions, in training only",
    )
    critic_learning_rate: Positive = Field(1e-3, description="Adam's learning rate of the privileged critic")
    critic_epochs: Count = Field(2, description="passes of the privileged critic over each batch of trials")
    reward_signal: RewardSignal = Field(
        "auto",
        description="reward in the loss: sampled, expected (its expectation), or regret (minus the regret); "
        "auto: the last of these that the family provides; all_actions always takes the regret; the agent "
        "always observes the sampled reward",
    )
