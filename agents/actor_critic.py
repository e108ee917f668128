"""An agent that acts through any core, and its network: the core, a policy and a value."""

from typing import Any, NamedTuple

import gymnasium as gym
import torch
from torch import Tensor, nn

from rl2meta.agents.cores.core import Core, Output, Position, Seen
from rl2meta.networks import ActionDistribution, action_distribution, action_head, legal_only
from rl2meta.spaces import input_encoding
from rl2meta.trial import Choice, Phase, TimeStep, Trajectory
from rl2meta.units import RAW, ActionUnits, ObservationUnits, RewardUnits, UnitsConfig, action_units


class ActorCritic(nn.Module):
    """A core with two outputs: policy and value.

    The network predicts the value per remaining step of the trial, from ``reward_centre`` on and in units of
    ``reward_scale``. The learner measures them on its first batch, so the same learning rate works for
    rewards of any unit and, unless ``reward_units`` is raw, of any zero. Returns fall as fewer steps remain;
    without the division by the remaining steps, the network would first have to learn to count them, which
    takes long.

    Args:
        observation_space, action_space: of one environment.
        core: reads the trial.
        initial_deviation: the initial standard deviation of continuous actions.
        units: of observations, actions and rewards.
    """

    core: Core
    reward_scale: Tensor
    reward_centre: Tensor

    def __init__(
        self,
        observation_space: gym.Space[Any],
        action_space: gym.Space[Any],
        core: Core,
        initial_deviation: float = 1.0,
        units: UnitsConfig = RAW,
    ) -> None:
        super().__init__()
        self.core = core
        self.encode = input_encoding(observation_space).encode
        self.observation_size = input_encoding(observation_space).size
        self.observation_units = ObservationUnits(observation_space, units.observation_units == "normalised")
        policy_units = action_units(action_space, units)
        self.action_units = ActionUnits(policy_units)
        self.reward_units = RewardUnits() if units.reward_units == "measured" else None
        self._distribution = action_distribution(action_space)
        self.policy = (
            None
            if core.gives_parameters
            else action_head(action_space, core.out_features, initial_deviation, policy_units)
        )
        self.value = nn.Linear(core.out_features, 1)
        nn.init.zeros_(self.value.weight)
        nn.init.zeros_(self.value.bias)
        measured = self.reward_units is not None
        self.register_buffer("reward_scale", torch.zeros(()))
        self.register_buffer("reward_centre", torch.zeros((), dtype=torch.float64), persistent=measured)

    def seen(self, inputs: TimeStep, trial_length: int | None = None) -> Seen:
        """Return the input of the core for whole trials, from observations [T, B, ...] not yet encoded."""
        return Seen(*self.in_units(inputs)[:4], trial_length)

    def in_units(self, inputs: TimeStep) -> TimeStep:
        """Return the inputs of whole trials, [T, B, ...], encoded and in units of the network."""
        later = self.step_in_units(inputs, False)
        # At a trial's start there is no action and no reward before, but zeros.
        action, reward = _after_start(inputs.action, later.action), _after_start(inputs.reward, later.reward)
        return later._replace(action=action, reward=reward)

    def step_in_units(self, step: TimeStep, begins: bool) -> TimeStep:
        """Return steps, [..., B, ...], encoded and in units of the network.

        Args:
            step: of any number of trials.
            begins: whether the trials begin here.
        """
        observation = self.encode(step.observation)  # [..., size]
        if self.observation_units.active:
            observation = self.observation_units(observation)
        step = step._replace(observation=observation)
        if begins:
            return step
        action = self.action_units(step.action) if self.action_units.active else step.action
        reward = step.reward if self.reward_units is None else self.reward_units(step.reward)
        return step._replace(action=action, reward=reward)

    def forward(self, seen: Seen, legal: Tensor | None = None) -> tuple[ActionDistribution, Tensor]:
        """Read whole trials [T, B, ...]; return π and the scaled value, [T, B]."""
        return self.judged(self.core(seen), legal)

    def judged(self, output: Output, legal: Tensor | None = None) -> tuple[ActionDistribution, Tensor]:
        """Return π over legal actions and the scaled value [...] for the core's output, [..., features]."""
        value = self.value(output.features).squeeze(-1)  # [..., 1] -> [...]
        parameters = output.parameters
        if parameters is None:
            assert self.policy is not None  # it exists if the core gives no parameters
            parameters = self.policy.parameters_of(output.features)
        return self._distribution(legal_only(parameters, legal)), value


class PPOCarry(NamedTuple):
    """What the agent has learnt in the trial: the hidden state of its core.

    Attributes:
        state: the core's state.
        generator: random stream of the agent's actions.
        trial_length: maximum number of steps in the trial; None if unknown.
        position: of the next step; ``act`` resets its ``episode_step`` if an episode begins there.
    """

    state: Any
    generator: torch.Generator
    trial_length: int | None
    position: Position


class PPOAgent:
    """Acts by one step of the core. ``adapt`` changes nothing: the core's state adapts at each step."""

    phase = Phase(episodes=None)

    def __init__(self, network: ActorCritic) -> None:
        self.network = network

    def begin(self, num_tasks: int, generator: torch.Generator, num_steps: int | None = None) -> PPOCarry:
        """Return the core's initial state and the position of a trial's first step."""
        state = self.network.core.begin(num_tasks, num_steps)
        device = self.network.value.weight.device
        nothing = torch.zeros(num_tasks, self.network.observation_size, device=device)
        no_steps = torch.zeros(num_tasks, dtype=torch.int64, device=device)
        return PPOCarry(state, generator, num_steps, Position(nothing, no_steps, 0))

    def act(self, carry: PPOCarry, step: TimeStep) -> tuple[Choice, PPOCarry]:
        """Let the core read the step and sample from its policy."""
        step = self.network.step_in_units(step, carry.position.trial_step == 0)
        position = carry.position._replace(
            episode_step=carry.position.episode_step.masked_fill(step.first, 0)
        )
        output, state = self.network.core.step(Seen(*step[:4], carry.trial_length, position), carry.state)
        policy, value = self.network.judged(output, step.legal)
        action = policy.sample(carry.generator)
        choice = Choice(action, policy.mode(), {"log_prob": policy.log_prob(action), "value": value})
        following = Position(step.observation, position.episode_step + 1, position.trial_step + 1)
        return choice, carry._replace(state=state, position=following)

    def adapt(self, carry: PPOCarry, trajectory: Trajectory) -> PPOCarry:
        """Return the carry as it is."""
        return carry


def _after_start(raw: Tensor, seen: Tensor) -> Tensor:
    """Return ``seen`` [T, ...] with the first row of ``raw``."""
    return seen if seen is raw else torch.cat([raw[:1], seen[1:]])
