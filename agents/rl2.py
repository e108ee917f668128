"""RL²: an agent that learns within a trial by the hidden state of its core; PPO trains it on whole trials.

Source: Duan et al. 2016, *RL²: Fast Reinforcement Learning via Slow Reinforcement Learning*
(arXiv 1611.02779).
"""

from collections.abc import Callable, Mapping
from typing import Annotated, Any

import gymnasium as gym
import torch
from pydantic import BaseModel, Field, model_validator
from torch import Tensor, nn

from rl2meta.agents.all_actions import refuse_unused
from rl2meta.agents.cores.core import Core
from rl2meta.agents.cores.recurrent import GRUConfig, GRUCore, LSTMConfig, LSTMCore, RecurrentConfig
from rl2meta.agents.cores.slot import SlotConfig, SlotCore
from rl2meta.agents.cores.snail import SNAILConfig, SNAILCore
from rl2meta.agents.cores.transformer import TransformerConfig, TransformerCore
from rl2meta.agents.ppo import PPO, ActorCritic
from rl2meta.agents.ppo_config import PPOConfig
from rl2meta.agents.privileged_critic import PrivilegedCritic
from rl2meta.deprecation import deprecated
from rl2meta.errors import UserError
from rl2meta.learner_state import seeded
from rl2meta.training import AgentKind
from rl2meta.units import FORMER_UNITS, UNITS

CORES: Mapping[type[Any], Callable[..., Core]] = {
    LSTMConfig: LSTMCore,
    GRUConfig: GRUCore,
    SlotConfig: SlotCore,
    TransformerConfig: TransformerCore,
    SNAILConfig: SNAILCore,
}
"""Type of a core's config -> the core's class, called with (observation space, action space, config)."""
CoreConfig = Annotated[
    LSTMConfig | GRUConfig | SlotConfig | TransformerConfig | SNAILConfig, Field(discriminator="name")
]
_FORMER_KEYS = tuple(RecurrentConfig.model_fields)
_FORMER_NAMES = {"embedding.": "core.input.embedding.", "encoder.": "core.input.encoder."}


class RL2Config(PPOConfig):
    """The hyper-parameters of RL²: those of PPO, and the core with its settings.

    The keys of recurrent cores may also stand beside ``core``, as in earlier versions; this is deprecated.
    """

    core: CoreConfig = Field(
        LSTMConfig(), description="network that reads the trial: its name and its settings"
    )

    @model_validator(mode="before")
    @classmethod
    def _with_core(cls, data: Any) -> Any:
        """Add the default name if a core has none, and move the keys of earlier versions into the core."""
        if not isinstance(data, Mapping):
            return data
        former = {key: data[key] for key in _FORMER_KEYS if key in data}
        core = _as_section(data.get("core", {}))
        if not isinstance(core, Mapping):
            return data  # pydantic then refuses it
        for key in former:
            deprecated(f"agent.{key}", f"agent.core.{key}")
        rest = {key: value for key, value in data.items() if key not in former}
        return {**rest, "core": {"name": "lstm", **core, **former}}


def _as_section(core: Any) -> Any:
    """Return a core's config, or only its name, as a section of a config."""
    if isinstance(core, BaseModel):
        return core.model_dump()
    return {"name": core} if isinstance(core, str) else core


def rl2_learner(
    observation_space: gym.Space[Any],
    action_space: gym.Space[Any],
    config: RL2Config,
    device: torch.device | str = "cpu",
    seed: int = 0,
) -> PPO:
    """Return the learner of an RL² agent: PPO on whole trials, with the core that the config names.

    Args:
        observation_space: of one environment.
        action_space: of one environment.
        config: hyper-parameters.
        device: of the network.
        seed: of the initial weights, which are the same on every device.

    Raises:
        UserError: for spaces that the core cannot use, and for settings that would do nothing.
    """
    if config.surrogate == "sampled":
        refuse_unused(config, known=True)

    def make() -> ActorCritic:
        core: Core = CORES[type(config.core)](observation_space, action_space, config.core)
        return ActorCritic(observation_space, action_space, core, config.initial_deviation, config)

    network = seeded(make, seed)
    network.register_load_state_dict_pre_hook(_rename_former)  # type: ignore[no-untyped-call]
    critic = _critic(network, config, device, seed)
    return PPO(network.to(device), config, critic, _auxiliary(network, action_space, config, device, seed))


def _critic(
    network: ActorCritic, config: RL2Config, device: torch.device | str, seed: int
) -> PrivilegedCritic | None:
    if config.critic == "head":
        return None
    given = network.core.out_features, config.critic_learning_rate, config.critic_epochs
    return seeded(lambda: PrivilegedCritic(*given).to(device), seed)


def _auxiliary(
    network: ActorCritic,
    action_space: gym.Space[Any],
    config: RL2Config,
    device: torch.device | str,
    seed: int,
) -> nn.Linear | None:
    """Return a layer that predicts the regrets of all actions, if the config wants one."""
    if not config.auxiliary_coefficient:
        return None
    if not isinstance(action_space, gym.spaces.Discrete):
        raise UserError(
            f"agent.auxiliary_coefficient: expected 0 for actions that are not Discrete, got {action_space}"
        )
    sizes = network.core.out_features, int(action_space.n)
    return seeded(lambda: nn.Linear(*sizes).to(device), seed)


RL2Learner = rl2_learner
"""The name of ``rl2_learner`` in earlier versions."""


def _core_if_not_usual(config: RL2Config) -> str:
    """Return the name of the core, or "" for the paper's."""
    return "" if isinstance(config.core, LSTMConfig) else config.core.name


RL2 = AgentKind(
    "a core whose hidden state learns within the trial, trained by PPO on whole trials",
    RL2Config,
    rl2_learner,
    former=FORMER_UNITS,
    training_only=("critic", "auxiliary"),
    network=("core", *UNITS),
    variant=_core_if_not_usual,
    compiled=lambda config: isinstance(config.core, LSTMConfig),
)


def _rename_former(module: Any, state: dict[str, Tensor], *_: Any) -> None:
    """Rename the weights in checkpoints of earlier versions to their present names."""
    for name in list(state):
        for former, now in _FORMER_NAMES.items():
            if name.startswith(former):
                state[now + name.removeprefix(former)] = state.pop(name)
