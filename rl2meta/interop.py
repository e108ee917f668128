"""A trial as one Gymnasium episode, and Stable-Baselines3's ``predict`` for any agent.

A *flat observation* is one float32 vector of what a ``TimeStep`` holds: the observation's encoding, the
previous action's, the previous reward, and 1 where an inner episode begins.
"""

from dataclasses import dataclass, replace
from typing import Any, Generic, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rl2meta.randomness import generator
from rl2meta.spaces import encoding
from rl2meta.tasks import Tasks
from rl2meta.trial import Agent, Carry, Choice, TimeStep, Trajectory

Array = NDArray[Any]
_MAX = np.finfo(np.float32).max  # Gymnasium's checker refuses infinite bounds


class TrialEnv(gym.Env[Array, Any]):
    """A trial of several episodes on one task, as one episode of Gymnasium.

    An inner episode that ends restarts in the same step, on the same task, by the inner environment's bare
    ``reset()``; the trial ends by termination, since nothing is worth anything after it. ``reset`` starts a
    trial with a seed of its own for the inner environment, by which the built-in families draw a new task.
    ``reset(options={"tasks": ...})`` wins over both. The info of a step is the inner environment's.

    Flat observation: float32 [observation size + action size + 2]; at a trial's start action and reward
    are all zero. The terminal observation begins no episode.

    Args:
        env: any single environment with Discrete or Box spaces, such as ``gym.make`` returns.
        num_episodes: episodes in a trial.
        tasks: held-out tasks, if any: each reset plays the next one, in order and again from the first;
            a reset with a seed starts from the first.

    Raises:
        ValueError: for fewer than one episode, or no tasks.
        TypeError: for other spaces.
    """

    def __init__(self, env: gym.Env[Any, Any], num_episodes: int, tasks: Tasks | None = None) -> None:
        if num_episodes < 1:
            raise ValueError(f"expected num_episodes >= 1, got {num_episodes}")
        if tasks is not None and len(tasks) < 1:
            raise ValueError("expected at least one task, or None to let the environment draw them, got 0")
        self.env, self.num_episodes, self.tasks = env, num_episodes, tasks
        self.metadata, self.render_mode = env.metadata, env.render_mode
        self.action_space = env.action_space
        self.observation_space = _flat_space(env.observation_space, env.action_space)
        self._observation, self._action = encoding(env.observation_space), encoding(env.action_space)
        self._next_task = 0
        self._episodes_left = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Array, dict[str, Any]]:
        """Start a trial."""
        super().reset(seed=seed)
        if seed is not None:
            self._next_task = 0
        self._episodes_left = self.num_episodes
        inner = int(self.np_random.integers(2**31))
        observation, info = self.env.reset(seed=inner, options=self._options(options))
        return self._flat(observation, np.zeros(self._action.size), 0.0, first=True), info

    def step(self, action: Any) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        """Act once; after the trial's end call ``reset``."""
        if not self._episodes_left:
            raise gym.error.ResetNeeded("expected a reset before a trial's first step; call reset()")
        observation, reward, terminated, truncated, info = self.env.step(action)
        self._episodes_left -= terminated or truncated
        over = not self._episodes_left
        first = (terminated or truncated) and not over
        if first:
            observation, _ = self.env.reset()
        vector = _vector(self._action.encode, action)
        return self._flat(observation, vector, float(reward), first), float(reward), over, False, info

    def render(self) -> Any:
        """Render the inner environment."""
        return self.env.render()

    def close(self) -> None:
        """Close the inner environment."""
        self.env.close()

    def _options(self, options: dict[str, Any] | None) -> dict[str, Any] | None:
        if self.tasks is None or "tasks" in (options or {}):
            return options
        index = self._next_task % len(self.tasks)
        self._next_task = index + 1
        return {**(options or {}), "tasks": self.tasks[index : index + 1]}

    def _flat(self, observation: Any, action: Array, reward: float, first: bool) -> Array:
        tail = np.array([reward, first])
        return np.concatenate(
            [_vector(self._observation.encode, observation), action, tail], dtype=np.float32
        )


class Predictor(Generic[Carry]):
    """Any agent behind Stable-Baselines3's ``predict``, on the flat observations of ``TrialEnv``.

    A trial begins where ``episode_start`` is true. The agent adapts when the episodes of its phase have
    ended; one whose phase is the whole trial never adapts, for nothing follows.

    Args:
        agent: what acts and adapts; one lane per task.
        observation_space: of the environment inside the ``TrialEnv``.
        action_space: likewise.
        seed: of the agent's draws; the k-th trial that begins has the k-th stream of it.
        num_episodes: of a trial, if known: refused here unless the agent's phases fill it.
        device: where the agent lives.

    Raises:
        ValueError: for an agent with lanes, or whose phases do not fill ``num_episodes``.
        TypeError: for spaces other than Discrete and Box.
    """

    def __init__(
        self,
        agent: Agent[Carry],
        observation_space: gym.Space[Any],
        action_space: gym.Space[Any],
        seed: int = 0,
        num_episodes: int | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        _check_phase(agent, num_episodes)
        self.agent = agent
        self._spaces = observation_space, action_space
        self._sizes = [encoding(observation_space).size, encoding(action_space).size, 1, 1]
        self._seed, self._device = seed, torch.device(device)
        self._trials_begun = 0

    @torch.no_grad()
    def predict(
        self,
        observation: Array,
        state: "PredictorState | None" = None,
        episode_start: Array | None = None,
        deterministic: bool = False,
    ) -> tuple[Array, "PredictorState"]:
        """Choose an action in each row.

        Args:
            observation: flat observations [num_envs, size], or a single one [size].
            state: what the last call returned; None begins a trial in every row.
            episode_start: bool [num_envs], a trial begins here; None for nowhere.
            deterministic: take the agent's mode instead of its sample.

        Returns:
            Actions [num_envs, ...], or a single one, and the next state.

        Raises:
            ValueError: if the observations or the state do not fit.
        """
        batch = np.asarray(observation, dtype=np.float32)
        single = batch.ndim == 1
        batch = batch[None] if single else batch
        rows = self._rows(batch, state, episode_start)
        acted = [
            self._act(row, self._decode(vector), deterministic)
            for row, vector in zip(rows, batch, strict=True)
        ]
        actions = np.stack([self._action(row) for row in acted])
        return (actions[0] if single else actions), tuple(acted)

    def _rows(
        self, batch: Array, state: "PredictorState | None", episode_start: Array | None
    ) -> "list[_Row[Carry] | None]":
        if batch.ndim != 2 or batch.shape[1] != sum(self._sizes):
            raise ValueError(
                f"expected flat observations [num_envs, {sum(self._sizes)}] as TrialEnv gives them, "
                f"got {list(batch.shape)}"
            )
        if state is None:
            return [None] * len(batch)
        if len(state) != len(batch):
            raise ValueError(f"expected a state of {len(batch)} rows like the observations, got {len(state)}")
        starts = np.zeros(len(batch), bool) if episode_start is None else np.reshape(episode_start, -1)
        return [None if start else row for row, start in zip(state, starts, strict=True)]

    def _act(self, row: "_Row[Carry] | None", step: TimeStep, deterministic: bool) -> "_Row[Carry]":
        row = self._begin() if row is None else self._learn(_completed(row, step))
        choice, carry = self.agent.act(row.carry, step)
        if deterministic:  # its log_prob stays the sample's: an agent tells no other
            choice = choice._replace(action=choice.mode)
        return replace(row, carry=carry, pending=(step, choice))

    def _begin(self) -> "_Row[Carry]":
        source = generator(self._seed, "predict", self._trials_begun, device=self._device)
        self._trials_begun += 1
        return _Row(self.agent.begin(1, source))

    def _learn(self, row: "_Row[Carry]") -> "_Row[Carry]":
        episodes = self.agent.phase.episodes
        if episodes is None:
            return replace(row, past=())
        if not row.past[-1].last or sum(bool(lived.last) for lived in row.past) < episodes:
            return row
        return replace(row, carry=self.agent.adapt(row.carry, _trajectory(row.past)), past=())

    def _decode(self, vector: Array) -> TimeStep:
        """Return the TimeStep that a flat observation holds, as a batch of one."""
        observation, action, reward, first = np.split(vector, np.cumsum(self._sizes)[:-1])
        return TimeStep(
            observation=self._tensor(_element(self._spaces[0], observation)).unsqueeze(0),
            action=self._tensor(action).unsqueeze(0),
            reward=self._tensor(reward),
            first=self._tensor(first > 0.5),
        )

    def _tensor(self, array: Array) -> Tensor:
        return torch.as_tensor(array, device=self._device)

    def _action(self, row: "_Row[Carry]") -> Array:
        assert row.pending is not None  # every row has just acted
        action = row.pending[1].action[0].cpu().numpy()
        return np.asarray(action.astype(self._spaces[1].dtype))


class _Lived(NamedTuple):
    """One finished step."""

    inputs: TimeStep
    choice: Choice
    reward: Tensor
    last: Tensor


@dataclass(frozen=True)
class _Row(Generic[Carry]):
    """One environment's trial: the carry, the phase so far, and the step whose reward is still to come."""

    carry: Carry
    past: tuple[_Lived, ...] = ()
    pending: tuple[TimeStep, Choice] | None = None


PredictorState = tuple[_Row[Any], ...]


def _completed(row: _Row[Carry], step: TimeStep) -> _Row[Carry]:
    """Move the pending step to the past: what it led to has now been seen."""
    assert row.pending is not None  # a row is kept only after it has acted
    lived = _Lived(*row.pending, reward=step.reward, last=step.first)
    return replace(row, past=(*row.past, lived), pending=None)


def _trajectory(past: tuple[_Lived, ...]) -> Trajectory:
    inputs, choices, rewards, lasts = zip(*past, strict=True)
    choice = Choice(*(torch.stack(field) for field in zip(*choices, strict=True)))
    last = torch.stack(lasts)
    return Trajectory(
        inputs=TimeStep(*(torch.stack(field) for field in zip(*inputs, strict=True))),
        action=choice.action,
        log_prob=choice.log_prob,
        reward=torch.stack(rewards),
        last=last,
        mask=torch.ones_like(last),
        expected_reward=None,
        regret=None,
    )


def _check_phase(agent: Agent[Carry], num_episodes: int | None) -> None:
    lanes = agent.phase.lanes_per_task
    if lanes > 1:
        raise ValueError(
            f"expected an agent of one lane per task, got {lanes}: SB3 steps one environment per trial; "
            "evaluate this agent with rl2meta.rollout"
        )
    if num_episodes is not None:
        agent.phase.plan(num_episodes)


def _flat_space(observation: gym.Space[Any], action: gym.Space[Any]) -> gym.spaces.Box:
    (low_o, high_o), (low_a, high_a) = _bounds(observation), _bounds(action)
    low = np.concatenate([low_o, np.minimum(low_a, 0), [-_MAX], [0]])  # no action yet is all zero
    high = np.concatenate([high_o, np.maximum(high_a, 0), [_MAX], [1]])
    return gym.spaces.Box(low.astype(np.float32), high.astype(np.float32), dtype=np.float32)


def _bounds(space: gym.Space[Any]) -> tuple[Array, Array]:
    size = encoding(space).size
    if isinstance(space, gym.spaces.Box):
        return np.clip(space.low.ravel(), -_MAX, _MAX), np.clip(space.high.ravel(), -_MAX, _MAX)
    return np.zeros(size), np.ones(size)


def _element(space: gym.Space[Any], vector: Array) -> Array:
    """Undo the encoding of one element."""
    if isinstance(space, gym.spaces.Discrete):
        return np.asarray(vector.argmax() + space.start)
    return np.asarray(vector.reshape(space.shape or ()).astype(space.dtype))


def _vector(encode: Any, element: Any) -> Array:
    return np.asarray(encode(torch.as_tensor(np.asarray(element))).numpy())
