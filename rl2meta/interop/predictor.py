"""Stable-Baselines3's ``predict`` for any agent, on the flat observations of ``TrialEnv``."""

from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any, Generic

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rl2meta.counted import as_element, from_zero, is_counted
from rl2meta.interop.fits import check_action, check_flat, check_masks, first_step, fitting
from rl2meta.interop.trial_env import seen_encoding
from rl2meta.randomness import generator
from rl2meta.spaces import bounded, encoding
from rl2meta.trial import Agent, Carry, Choice, Lived, TimeStep, Trajectory, TrialLength, over_fields

Array = NDArray[Any]


class Predictor(Generic[Carry]):
    """Any agent with the interface of Stable-Baselines3's ``predict``, on flat observations of ``TrialEnv``.

    A trial begins where ``episode_start`` is true. The agent adapts when the episodes of its phase have
    ended. An agent whose phase is the whole trial never adapts, because nothing follows.

    For an agent with lanes, the lanes run one after another: every lane gets the current step, and the choice
    of the current lane is used. The result is the same as with parallel lanes, because acting does not change
    the carry before the phase ends, or only until the next episode's first step (see ``Phase``), and each
    lane's first step has its own previous action and reward.

    The agent must see observations as ``TrialEnv`` gives them. ``VecNormalize`` around a ``TrialEnv`` needs
    ``norm_obs=False``; otherwise it also changes the mark of an episode's start, and ``predict`` refuses it.
    Nobody can notice a wrapper that changes observations inside the ``TrialEnv``: use only those of training.

    Args:
        agent: acts and adapts. It acts once on a made-up first step, which shows whether the spaces fit.
        observation_space: of the environment inside the ``TrialEnv``.
        action_space: of the environment inside the ``TrialEnv``; actions are clipped to its bounds, and the
            agent learns from the action before clipping. Agents count discrete actions and observations from
            0; here they are elements of the environment's spaces.
        seed: of the agent's draws; the k-th trial uses the k-th random stream under it.
        num_episodes: episodes in a trial, if known; the agent's phases must fill it.
        horizon: maximum number of steps in an episode, if known. Agents that see how much of a trial is over
            need it and ``num_episodes`` to act as in training; agents whose baseline sees it need it to
            adapt as in training.
        device: of the agent.

    Raises:
        ValueError: for an agent with lanes whose phase is the whole trial, or whose phases do not fill
            ``num_episodes``; for a ``horizon`` that is no number of steps; and for spaces other than those
            the agent was made for, where its first action shows it. By ``predict``, where a later one does.
        UserError: by ``predict``, for an agent that learns from targets, which flat observations do not have.
        TypeError: for observations other than Discrete and Box, and actions without an encoding.
    """

    def __init__(
        self,
        agent: Agent[Carry],
        observation_space: gym.Space[Any],
        action_space: gym.Space[Any],
        seed: int = 0,
        num_episodes: int | None = None,
        device: torch.device | str = "cpu",
        horizon: int | None = None,
    ) -> None:
        _check_phase(agent, num_episodes)
        if horizon is not None and (not isinstance(horizon, int | np.integer) or horizon < 1):
            raise ValueError(f"horizon: expected a number of steps >= 1, or None, got {horizon!r}")
        self.agent = agent
        self._spaces = from_zero(observation_space), from_zero(action_space)
        self._outside = action_space
        self._sizes = [seen_encoding(observation_space).size, encoding(action_space).size, 1, 1]
        self._bounded = bounded(action_space, device)
        self._seed, self._device = seed, torch.device(device)
        self._trials_begun = 0
        self._horizon = horizon
        known = num_episodes is not None and horizon is not None
        self._length = TrialLength(num_episodes * horizon, horizon) if known else None  # type: ignore[operator]
        self._try(observation_space, action_space)

    @torch.no_grad()
    def _try(self, *spaces: gym.Space[Any]) -> None:
        """Act once on a trial's first step, to see whether the agent was made for the spaces."""
        start = self._decode(first_step(self._spaces[0], self._sizes))
        with fitting(*spaces):
            acted = self._act(None, start, False)
        self._action(acted)
        self._trials_begun = 0  # this one was none

    @torch.no_grad()
    def predict(
        self,
        observation: Array,
        state: "PredictorState | None" = None,
        episode_start: Array | None = None,
        deterministic: bool = False,
        action_masks: Array | None = None,
    ) -> tuple[Array, "PredictorState"]:
        """Choose an action in each row.

        Args:
            observation: flat observations [num_envs, size], or a single one [size].
            state: the state from the last call; None begins a trial in every row.
            episode_start: bool [num_envs], true where a trial begins; None: nowhere.
            deterministic: use the agent's mode instead of its sampled action.
            action_masks: which actions are legal, [num_envs, A] or [A], as in sb3-contrib's MaskablePPO.

        Returns:
            Actions [num_envs, ...], or a single action, and the next state.

        Raises:
            ValueError: if the observations, the state or the masks do not fit, or the agent's action is none
                of the environment's.
        """
        batch = np.asarray(observation, dtype=np.float32)
        single = batch.ndim == 1
        batch = batch[None] if single else batch
        rows = self._rows(batch, state, episode_start)
        check_flat(batch)
        steps = [self._decode(vector) for vector in batch]
        if action_masks is not None:
            legal = self._tensor(check_masks(action_masks, len(batch), self._outside))  # [num_envs, A]
            steps = [step._replace(legal=row) for step, row in zip(steps, legal.unsqueeze(1), strict=True)]
        acted = [self._act(row, step, deterministic) for row, step in zip(rows, steps, strict=True)]
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
        row, step = (self._begin(step), step) if row is None else self._live(row, step)
        lanes = self.agent.phase.lanes_per_task
        shown: TimeStep = over_fields(lambda field: torch.cat([field] * lanes), step)
        choices, carry = self.agent.act(row.carry, shown)
        mine = slice(row.lane, row.lane + 1)
        choice: Choice = over_fields(lambda field: field[mine], choices)
        if deterministic:  # the notes are still those of the sample, because an agent gives no others
            choice = choice._replace(action=choice.mode)
        return replace(row, carry=carry, pending=(step, choice))

    def _begin(self, step: TimeStep) -> "_Row[Carry]":
        source = generator(self._seed, "predict", self._trials_begun, device=self._device)
        self._trials_begun += 1
        nothing_yet = torch.zeros_like(step.action), torch.zeros_like(step.reward)
        ends = (nothing_yet,) * (self.agent.phase.lanes_per_task - 1)
        return _Row(self.agent.begin(1, source, self._length), ends)

    def _live(self, row: "_Row[Carry]", step: TimeStep) -> "tuple[_Row[Carry], TimeStep]":
        """Complete the pending step; return also the new step as the current lane sees it."""
        row, episodes = _completed(row, step), self.agent.phase.episodes
        if episodes is None:
            return replace(row, past=()), step
        if row.ended < episodes:
            return row, step
        (action, reward), *ends = *row.ends, (step.action, step.reward)
        row = self._learn(replace(row, ends=tuple(ends), lane=row.lane + 1, ended=0))
        return row, step._replace(action=action, reward=reward)

    def _learn(self, row: "_Row[Carry]") -> "_Row[Carry]":
        """Adapt if all lanes have completed their episodes of the phase."""
        if row.lane < self.agent.phase.lanes_per_task:
            return row
        phase = replace(_trajectory(row.past), horizon=self._horizon, episodes=self.agent.phase.episodes)
        return replace(row, carry=self.agent.adapt(row.carry, phase), past=(), lane=0)

    def _decode(self, vector: Array) -> TimeStep:
        """Return the TimeStep in a flat observation, as a batch of one."""
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
        check_action(row.pending[1].action[0], self._spaces[1])
        action = self._bounded(row.pending[1].action[0]).cpu().numpy()
        action = np.asarray(action.astype(self._spaces[1].dtype))
        return np.asarray(as_element(self._outside, action)) if is_counted(self._outside) else action


@dataclass(frozen=True)
class _Row(Generic[Carry]):
    """The trial of one environment.

    Attributes:
        carry: what the agent has learnt.
        ends: the previous actions and rewards for the first steps of the lanes, beginning with the next lane.
        lane, ended: the current lane, and the number of its completed episodes in the phase.
        past: the steps of the phase so far, each with its lane.
        pending: the step whose reward is not yet known.
    """

    carry: Carry
    ends: tuple[tuple[Tensor, Tensor], ...]
    lane: int = 0
    ended: int = 0
    past: tuple[tuple[int, Lived], ...] = ()
    pending: tuple[TimeStep, Choice] | None = None


PredictorState = tuple[_Row[Any], ...]


def _completed(row: _Row[Carry], step: TimeStep) -> _Row[Carry]:
    """Move the pending step to the past: its reward is now known."""
    assert row.pending is not None  # a row exists only after it has acted
    inputs, choice = row.pending
    counts = torch.ones_like(step.first)
    lived = Lived(inputs, choice.action, step.reward, step.first, counts, choice.notes, {})
    past = (*row.past, (row.lane, lived))
    return replace(row, past=past, pending=None, ended=row.ended + bool(step.first))


def _trajectory(past: "tuple[tuple[int, Lived], ...]") -> Trajectory:
    """Combine lanes that ran one after another to parallel lanes, [T, lanes].

    Shorter lanes are padded with copies of their last step, with ``mask`` and ``last`` false.
    """
    lanes = [[lived for _, lived in lane] for _, lane in groupby(past, key=lambda pair: pair[0])]
    longest = max(len(lane) for lane in lanes)
    padded = [lane + [_padding(lane[-1])] * (longest - len(lane)) for lane in lanes]
    steps = [over_fields(lambda *parts: torch.cat(parts), *row) for row in zip(*padded, strict=True)]
    return Trajectory.of(steps)


def _padding(lived: Lived) -> Lived:
    nowhere = torch.zeros_like(lived.last)
    return lived._replace(last=nowhere, mask=nowhere)


def _check_phase(agent: Agent[Carry], num_episodes: int | None) -> None:
    episodes, lanes = agent.phase
    if lanes > 1 and episodes is None:
        raise ValueError(
            f"expected phases of a number of episodes from an agent of {lanes} lanes per task, got one that "
            "takes the whole trial: its carry may move while it acts, and SB3's one environment lives the "
            "lanes one after another; evaluate this agent with rl2meta.rollout"
        )
    if num_episodes is not None:
        agent.phase.plan(num_episodes)


def _element(space: gym.Space[Any], vector: Array) -> Array:
    """Undo the encoding of one element."""
    if isinstance(space, gym.spaces.Discrete):
        return np.asarray(vector.argmax() + space.start)
    return np.asarray(vector.reshape(space.shape or ()).astype(space.dtype))
