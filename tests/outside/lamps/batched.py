"""A family whose rooms are stepped all at once, as tensors."""

from typing import Any

import gymnasium as gym
import torch

from rl2meta.envs.batched import TensorVectorEnv, Transition
from rl2meta.tasks import TensorTasks


class LampRows:
    """Press one switch a day; the right one, the same every day, pays 1."""

    horizon = 1

    def __init__(self, num_switches: int = 4) -> None:
        self.num_switches = num_switches
        self.observation_space = gym.spaces.Discrete(1)
        self.action_space = gym.spaces.Discrete(num_switches)

    def sample(self, num_tasks: int, generator: torch.Generator, split: str) -> TensorTasks:
        """Draw tasks."""
        return TensorTasks({"switch": torch.randint(self.num_switches, (num_tasks,), generator=generator)})

    def make_envs(self, num_envs: int, device: torch.device) -> TensorVectorEnv:
        """Return rooms side by side."""
        return TensorVectorEnv(self, self, num_envs, device)

    def optimal_return(self, tasks: TensorTasks) -> torch.Tensor:
        """Return what a day pays to who knows the switch."""
        return torch.ones(len(tasks))

    def bayes_optimal_return(self, num_episodes: int) -> None:
        """Return None: not known."""

    def prepare(self, tasks: TensorTasks) -> TensorTasks:
        """Return what a step looks up."""
        return tasks

    def begin(self, tasks: TensorTasks, episode: Any, generator: torch.Generator) -> torch.Tensor:
        """Return the first state."""
        return torch.zeros_like(tasks.parameters["switch"])

    def observe(self, state: torch.Tensor) -> torch.Tensor:
        """Return what is seen: nothing."""
        return state

    def step(self, tasks: TensorTasks, state: Any, action: Any, generator: Any) -> Transition:
        """Press a switch."""
        paid = (action == tasks.parameters["switch"]).float()
        over = torch.ones_like(action, dtype=torch.bool)
        return Transition(
            state, reward=paid, terminated=over, truth={"expected_reward": paid, "regret": 1 - paid}
        )
