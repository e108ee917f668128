"""The one inner loop: any agent, on any tasks, through its trials."""

from typing import Any, Protocol

import torch
from torch import Tensor

from rl2meta.randomness import derive, generator
from rl2meta.spaces import bounded, encoding
from rl2meta.tasks import TaskDistribution, Tasks, TaskVectorEnv
from rl2meta.trial import Agent, Carry, Lived, Plan, TimeStep, Trajectory, Trial


class Worker(Protocol):
    """Runs agents through trials; knows of an agent nothing but its ``Phase``."""

    @property
    def distribution(self) -> TaskDistribution:
        """Where the environments come from."""
        ...

    @property
    def device(self) -> torch.device:
        """Where environments and trajectories live; the agent must live there too."""
        ...

    def run(self, agent: Agent[Carry], tasks: Tasks, num_episodes: int, seed: int) -> Trial:
        """Run one trial of ``num_episodes`` episodes on every task.

        The agent adapts between its phases; after the last there is nothing left to adapt for.

        Args:
            agent: what acts and adapts.
            tasks: one trial each.
            num_episodes: episodes in a trial, all lanes of a task counted.
            seed: of the environments' and the agent's randomness (separate streams of it).

        Raises:
            ValueError: if ``num_episodes`` is not a positive multiple of the agent's phase.
        """
        ...

    def close(self) -> None:
        """Close the environments; a later ``run`` makes new ones."""
        ...


class RolloutWorker:
    """The worker for every device; see ``Worker``.

    It computes no gradients. Nothing in it reads a value back from the device while a rollout runs, so that a
    GPU is never kept waiting.

    Args:
        distribution: where the environments come from.
        device: where environments and trajectories live.
    """

    def __init__(self, distribution: TaskDistribution, device: torch.device | str = "cpu") -> None:
        self.distribution = distribution
        self.device = torch.device(device)
        self._stage = Stage(distribution, self.device)

    @torch.no_grad()
    def run(self, agent: Agent[Carry], tasks: Tasks, num_episodes: int, seed: int) -> Trial:
        """Run one trial of ``num_episodes`` episodes on every task; see ``Worker``."""
        plan = agent.phase.plan(num_episodes)
        lanes = agent.phase.lanes_per_task
        rows = torch.arange(len(tasks)).repeat_interleave(lanes)
        played = (tasks if lanes == 1 else tasks[rows]).to(self.device)
        source = generator(seed, "agent", device=self.device)
        return Trial(tasks, self._stage.live(agent, played, plan, source, derive(seed, "envs")))

    def close(self) -> None:
        """Close the environments; a later ``run`` makes new ones."""
        self._stage.close()


class Stage:
    """Environments of one distribution, and the trials that agents live through in them.

    Args:
        distribution: where the environments come from.
        device: where they live.
    """

    def __init__(self, distribution: TaskDistribution, device: torch.device) -> None:
        self.distribution, self.device = distribution, device
        self._action = encoding(distribution.action_space)
        self._bounded = bounded(distribution.action_space, device)
        self._envs: TaskVectorEnv | None = None

    def envs(self, num_envs: int) -> TaskVectorEnv:
        """Return ``num_envs`` environments: those of the call before, if they were as many."""
        if self._envs is None or self._envs.num_envs != num_envs:
            self.close()
            self._envs = self.distribution.make_envs(num_envs, self.device)
        return self._envs

    def close(self) -> None:
        """Close the environments."""
        if self._envs is not None:
            self._envs.close()
            self._envs = None

    def live(
        self, agent: Agent[Carry], tasks: Tasks, plan: Plan, source: torch.Generator, seed: int | None
    ) -> tuple[Trajectory, ...]:
        """Let an agent live through one trial on every task; return its phases, equally long.

        Args:
            agent: what acts and adapts.
            tasks: one for each lane, those of a task side by side, on the device.
            plan: the phases of the trial.
            source: of the agent's draws.
            seed: of the environments' stream; None to go on with the one that they have.
        """
        lanes = agent.phase.lanes_per_task
        envs = self.envs(len(tasks))
        num_steps = plan.phases * plan.episodes * self.distribution.horizon
        carry = agent.begin(len(tasks) // lanes, source, num_steps)
        before = (plan.episodes * torch.arange(lanes, device=self.device)).repeat(len(tasks) // lanes)  # [B]
        options = {"tasks": tasks, "episodes_before": before, "episodes_wanted": plan.episodes}
        step = self._first_step(envs.reset(seed=seed, options=options)[0])
        phases: list[Trajectory] = []
        for _ in range(plan.phases):
            if phases:  # environments that idled may be inside an episode; a phase starts at its start
                carry = agent.adapt(carry, phases[-1])
                before = before + lanes * plan.episodes
                options = {"episodes_before": before, "episodes_wanted": plan.episodes}
                step = self._step_after(phases[-1], envs.reset(options=options)[0])
            trajectory, carry = self._live_phase(envs, agent, carry, step, plan.episodes)
            phases.append(trajectory)
        return _equally_long(phases)

    def _live_phase(
        self, envs: TaskVectorEnv, agent: Agent[Carry], carry: Carry, step: TimeStep, episodes: int
    ) -> tuple[Trajectory, Carry]:
        steps: list[Lived] = []
        completed = torch.zeros(envs.num_envs, dtype=torch.int64, device=self.device)  # [B], episodes
        for _ in range(episodes * self.distribution.horizon):
            choice, carry = agent.act(carry, step)
            action = self._bounded(choice.action)
            observation, reward, terminated, truncated, info = envs.step(action)
            last = terminated | truncated
            mask = completed < episodes
            steps.append(Lived(step, choice.action, reward, last, mask, choice.notes, _truth(info)))
            completed = completed + last
            if envs.finished:
                break
            step = TimeStep(observation, self._action.encode(action), reward, last)
        return Trajectory.of(steps, self.distribution.horizon, episodes), carry  # [B, ...] -> [T, B, ...]

    def _first_step(self, observation: Tensor) -> TimeStep:
        n = len(observation)
        return TimeStep(
            observation=observation,
            action=torch.zeros(n, self._action.size, device=self.device),
            reward=torch.zeros(n, device=self.device),
            first=torch.ones(n, dtype=torch.bool, device=self.device),
        )

    def _step_after(self, phase: Trajectory, observation: Tensor) -> TimeStep:
        """Carry the last action and reward that counted, not those of idling, into the next phase."""
        end = phase.mask.sum(dim=0) - 1  # [B]
        lanes = torch.arange(len(end), device=self.device)
        return TimeStep(
            observation=observation,
            action=self._action.encode(self._bounded(phase.action[end, lanes])),  # [B, action size]
            reward=phase.reward[end, lanes],
            first=torch.ones_like(phase.last[0]),
        )


def _truth(info: dict[str, Any]) -> dict[str, Tensor]:
    """Return what the info of a step tells that no agent sees: every tensor but Gymnasium's own."""
    own = ("final_", "_")  # how the names of Gymnasium's own begin
    return {name: x for name, x in info.items() if isinstance(x, Tensor) and not name.startswith(own)}


def _equally_long(phases: list[Trajectory]) -> tuple[Trajectory, ...]:
    """Pad phases that ended early, all episodes being over, to the longest of the trial."""
    longest = max(len(phase.mask) for phase in phases)
    return tuple(phase.padded(longest) for phase in phases)
