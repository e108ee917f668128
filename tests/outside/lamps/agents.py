"""An agent that presses every switch as often as it paid so far in training, whatever it sees."""

from typing import Any

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from rl2meta import AgentKind, Choice, Phase
from rl2meta.networks import Categorical


class Config(BaseModel):
    """Its settings."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rate: float = 0.1
    stubborn: bool = False  # always the switch that paid most


class Switcher:
    """Acts by what each switch paid on average; its carry is the generator."""

    phase = Phase(episodes=1)

    def __init__(self, paid: Tensor, stubborn: bool) -> None:
        self.paid, self.stubborn = paid, stubborn

    def begin(self, num_tasks: int, generator: torch.Generator, num_steps: int | None = None) -> Any:
        """Return the generator."""
        return generator

    def act(self, carry: Any, step: Any) -> Any:
        """Draw a switch in each row."""
        policy = Categorical(self.paid.expand(len(step.reward), -1))
        return Choice(policy.mode() if self.stubborn else policy.sample(carry), policy.mode()), carry

    def adapt(self, carry: Any, trajectory: Any) -> Any:
        """Learn nothing."""
        return carry


class SwitcherLearner:
    """Moves each switch's mean towards what it paid."""

    def __init__(self, observation_space: Any, action_space: Any, config: Config, device: Any, seed: int):
        self.paid, self.config = torch.zeros(int(action_space.n), device=device), config
        self.agent = Switcher(self.paid, config.stubborn)

    def update(self, trial: Any, progress: float, generator: Any) -> dict[str, float]:
        """Average over all steps of the batch."""
        for phase in trial.phases:
            pressed = nn.functional.one_hot(phase.action, len(self.paid)) * phase.mask.unsqueeze(-1)
            mean = (pressed * phase.reward.unsqueeze(-1)).sum((0, 1)) / pressed.sum((0, 1)).clamp(min=1)
            self.paid += self.config.rate * (mean - self.paid)
        return {"best": float(self.paid.max())}

    def state_dict(self) -> dict[str, Tensor]:
        """Return the means."""
        return {"network.paid": self.paid}

    def load_state_dict(self, state: Any) -> None:
        """Take them on."""
        self.paid.copy_(state["network.paid"])


SWITCHER = AgentKind("presses what paid", Config, SwitcherLearner, at_test=("stubborn",))
