"""The one inner loop: any agent, on any tasks, through its trials."""

from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rl2meta.randomness import derive, generator
from rl2meta.spaces import bounded, encoding
from rl2meta.tasks import TaskDistribution, Tasks, TaskVectorEnv
from rl2meta.trial import Agent, Carry, Choice, Plan, TimeStep, Trajectory, Trial


class _Row(NamedTuple):
    """One step of all environments, before the steps are stacked into a Trajectory."""

    inputs: TimeStep
    choice: Choice
    reward: Tensor
    last: Tensor
    mask: Tensor
    expected_reward: Tensor | None
    regret: Tensor | None
    target: Tensor | None


class RolloutWorker:
    """Runs agents through trials; knows of an agent nothing but its ``Phase``.

    The worker computes no gradients. Nothing in it reads a value back from the device while a rollout
    runs, so that a GPU is never kept waiting.

    Args:
        distribution: where the environments come from.
        device: where environments and trajectories live; the agent must live there too.
    """

    def __init__(self, distribution: TaskDistribution, device: torch.device | str = "cpu") -> None:
        self.distribution = distribution
        self.device = torch.device(device)
        self._action = encoding(distribution.action_space)
        self._bounded = bounded(distribution.action_space, self.device)
        self._envs: TaskVectorEnv | None = None

    @torch.no_grad()
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
        source = generator(seed, "agent", device=self.device)
        return self._live(agent, tasks, agent.phase.plan(num_episodes), source, derive(seed, "envs"))

    def _live(
        self, agent: Agent[Carry], tasks: Tasks, plan: Plan, source: torch.Generator, seed: int | None
    ) -> Trial:
        """Run a trial; the environments draw from the stream of ``seed``, or go on with what they have."""
        lanes = agent.phase.lanes_per_task
        envs = self._make_envs(len(tasks) * lanes)
        carry = agent.begin(len(tasks), source)
        before = self._first_episodes(len(tasks), lanes, plan.episodes)
        options = {
            "tasks": self._on_lanes(tasks, lanes),
            "episodes_before": before,
            "episodes_wanted": plan.episodes,
        }
        observation, _ = envs.reset(seed=seed, options=options)
        step = self._first_step(observation)
        phases: list[Trajectory] = []
        for _ in range(plan.phases):
            if phases:  # environments that idled may be inside an episode; a phase starts at its start
                carry = agent.adapt(carry, phases[-1])
                before = before + lanes * plan.episodes
                options = {"episodes_before": before, "episodes_wanted": plan.episodes}
                step = self._step_after(phases[-1], envs.reset(options=options)[0])
            trajectory, carry = self._run_phase(envs, agent, carry, step, plan.episodes)
            phases.append(trajectory)
        return Trial(tasks, _equally_long(phases))

    def close(self) -> None:
        """Close the environments; a later ``run`` makes new ones."""
        if self._envs is not None:
            self._envs.close()
            self._envs = None

    def _run_phase(
        self, envs: TaskVectorEnv, agent: Agent[Carry], carry: Carry, step: TimeStep, episodes: int
    ) -> tuple[Trajectory, Carry]:
        rows = []
        completed = torch.zeros(envs.num_envs, dtype=torch.int64, device=self.device)
        for _ in range(episodes * self.distribution.horizon):
            choice, carry = agent.act(carry, step)
            action = self._bounded(choice.action)
            observation, reward, terminated, truncated, info = envs.step(action)
            last = terminated | truncated
            rows.append(_row(step, choice, reward, last, completed < episodes, info))
            completed = completed + last
            if envs.finished:
                break
            step = TimeStep(observation, self._action.encode(action), reward, last)
        return replace(_stack(rows), horizon=self.distribution.horizon), carry

    def _on_lanes(self, tasks: Tasks, lanes: int) -> Tasks:
        """Repeat each task for each of its lanes, where the environments are."""
        rows = torch.arange(len(tasks)).repeat_interleave(lanes)
        return (tasks if lanes == 1 else tasks[rows]).to(self.device)

    def _first_episodes(self, num_tasks: int, lanes: int, episodes: int) -> Tensor:
        """Return the number in its trial of each environment's first episode; lanes one after another."""
        return (episodes * torch.arange(lanes, device=self.device)).repeat(num_tasks)

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
            action=self._action.encode(self._bounded(phase.action[end, lanes])),
            reward=phase.reward[end, lanes],
            first=torch.ones_like(phase.last[0]),
        )

    def _make_envs(self, num_envs: int) -> TaskVectorEnv:
        if self._envs is None or self._envs.num_envs != num_envs:
            self.close()
            self._envs = self.distribution.make_envs(num_envs, self.device)
        return self._envs


def _row(
    step: TimeStep, choice: Choice, reward: Tensor, last: Tensor, mask: Tensor, info: dict[str, Any]
) -> _Row:
    known = (info.get(name) for name in ("expected_reward", "regret", "target"))
    return _Row(step, choice, reward, last, mask, *known)


def _stack(rows: list[_Row]) -> Trajectory:
    return Trajectory(
        inputs=TimeStep(*(torch.stack(field) for field in zip(*(row.inputs for row in rows), strict=True))),
        action=torch.stack([row.choice.action for row in rows]),
        log_prob=torch.stack([row.choice.log_prob for row in rows]),
        reward=torch.stack([row.reward for row in rows]),
        last=torch.stack([row.last for row in rows]),
        mask=torch.stack([row.mask for row in rows]),
        expected_reward=_stack_known([row.expected_reward for row in rows]),
        regret=_stack_known([row.regret for row in rows]),
        target=_stack_known([row.target for row in rows]),
        value=_stack_known([row.choice.value for row in rows]),
    )


def _equally_long(phases: list[Trajectory]) -> tuple[Trajectory, ...]:
    """Pad phases that ended early, all episodes being over, to the longest of the trial."""
    longest = max(len(phase.mask) for phase in phases)
    return tuple(phase.padded(longest) for phase in phases)


def _stack_known(values: list[Tensor | None]) -> Tensor | None:
    known = [value for value in values if value is not None]
    return torch.stack(known) if known else None
