"""The inner loop: run any agent through trials on any tasks."""

from typing import Any, Protocol

import torch
from torch import Tensor

from rl2meta.counted import ACTION_MASK
from rl2meta.randomness import derive, generator
from rl2meta.spaces import bounded, encoding
from rl2meta.tasks import TaskDistribution, Tasks, TaskVectorEnv
from rl2meta.trial import Agent, Carry, Lived, Plan, TimeStep, Trajectory, Trial, TrialLength


class Worker(Protocol):
    """Runs agents through trials; it uses only the agent's methods and its ``Phase``."""

    @property
    def distribution(self) -> TaskDistribution:
        """The task distribution; it makes the environments."""
        ...

    @property
    def device(self) -> torch.device:
        """The device of environments and trajectories; the agent must be on it too."""
        ...

    def run(self, agent: Agent[Carry], tasks: Tasks, num_episodes: int, seed: int) -> Trial:
        """Run one trial of ``num_episodes`` episodes on every task.

        The agent adapts between its phases, but not after the last phase.

        Args:
            agent: acts and adapts.
            tasks: each gets one trial.
            num_episodes: number of episodes in a trial, in all lanes of a task together.
            seed: of the random streams of the environments and of the agent, which are separate.

        Raises:
            ValueError: if ``num_episodes`` is not a positive multiple of the agent's phase.
        """
        ...

    def close(self) -> None:
        """Close the environments; a later ``run`` makes new ones."""
        ...


class RolloutWorker:
    """The worker for every device; see ``Worker``.

    It computes no gradients. During a rollout it reads nothing back from the device, so a GPU never waits.

    Args:
        distribution: makes the environments.
        device: of environments and trajectories.
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
    """Environments of one task distribution, in which agents run through trials.

    Args:
        distribution: makes the environments.
        device: of the environments.
    """

    def __init__(self, distribution: TaskDistribution, device: torch.device) -> None:
        self.distribution, self.device = distribution, device
        self._action = encoding(distribution.action_space)
        self._bounded = bounded(distribution.action_space, device)
        self._envs: TaskVectorEnv | None = None

    def envs(self, num_envs: int) -> TaskVectorEnv:
        """Return ``num_envs`` environments; reuse those of the previous call if their number is the same."""
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
        """Run an agent through one trial on every task; return its phases, padded to the same length.

        Args:
            agent: acts and adapts.
            tasks: one for each lane, grouped by task, on the device.
            plan: the phases of the trial.
            source: random stream of the agent.
            seed: of the environments' random stream; None to continue their present stream.
        """
        lanes = agent.phase.lanes_per_task
        envs = self.envs(len(tasks))
        horizon = self.distribution.horizon
        length = TrialLength(plan.phases * plan.episodes * horizon, horizon)
        carry = agent.begin(len(tasks) // lanes, source, length)
        before = (plan.episodes * torch.arange(lanes, device=self.device)).repeat(len(tasks) // lanes)  # [B]
        options = {"tasks": tasks, "episodes_before": before, "episodes_wanted": plan.episodes}
        step = self._first_step(*envs.reset(seed=seed, options=options))
        phases: list[Trajectory] = []
        for _ in range(plan.phases):
            if phases:  # environments that idled may be inside an episode; a phase begins with a new one
                carry = agent.adapt(carry, phases[-1])
                before = before + lanes * plan.episodes
                options = {"episodes_before": before, "episodes_wanted": plan.episodes}
                step = self._step_after(phases[-1], *envs.reset(options=options))
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
            step = TimeStep(observation, self._action.encode(action), reward, last, _legal(info, last))
        return Trajectory.of(steps, self.distribution.horizon, episodes), carry  # [B, ...] -> [T, B, ...]

    def _first_step(self, observation: Tensor, info: dict[str, Any]) -> TimeStep:
        n = len(observation)
        return TimeStep(
            observation=observation,
            action=torch.zeros(n, self._action.size, device=self.device),
            reward=torch.zeros(n, device=self.device),
            first=(first := torch.ones(n, dtype=torch.bool, device=self.device)),
            legal=_legal(info, first),
        )

    def _step_after(self, phase: Trajectory, observation: Tensor, info: dict[str, Any]) -> TimeStep:
        """Return the next phase's first step, with the last action and reward before any idling."""
        end = phase.mask.sum(dim=0) - 1  # [B]
        lanes = torch.arange(len(end), device=self.device)
        return TimeStep(
            observation=observation,
            action=self._action.encode(self._bounded(phase.action[end, lanes])),  # [B, action size]
            reward=phase.reward[end, lanes],
            first=torch.ones_like(phase.last[0]),
            legal=_legal(info, phase.last[0]),
        )


def _legal(info: dict[str, Any], rows: Tensor) -> Tensor:
    """Return which actions are legal next, bool [B, A], or [B, 0] without masks, for ``rows`` bool [B]."""
    legal = info.get(ACTION_MASK)
    return rows.new_empty(len(rows), 0) if legal is None else legal


def _truth(info: dict[str, Any]) -> dict[str, Tensor]:
    """Return the truth in the info of a step: every tensor except Gymnasium's own and the mask."""
    own = ("final_", "_", ACTION_MASK)  # prefixes
    return {name: x for name, x in info.items() if isinstance(x, Tensor) and not name.startswith(own)}


def _equally_long(phases: list[Trajectory]) -> tuple[Trajectory, ...]:
    """Pad all phases, which may end early, to the longest phase of the trial."""
    longest = max(len(phase.mask) for phase in phases)
    return tuple(phase.padded(longest) for phase in phases)
