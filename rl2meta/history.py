"""What has happened so far to one task in one trial, for whatever draws or describes it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:  # whoever draws a history need not wait for torch
    from torch import Tensor

    from rl2meta.trial import Trajectory

Array = NDArray[Any]
_TRUTH = ("expected_reward", "regret")  # in the info of a step


@dataclass(frozen=True, eq=False)
class EpisodeRecord:
    """An episode of t steps so far.

    Attributes:
        observations: o_0 … o_t, [t + 1, ...]; the last one is the current one. A ``Trajectory`` does not hold
            the observation after the last step of an episode; then the last two are equal.
        actions: a_0 … a_{t−1}, [t, ...]. Those of a ``Trajectory`` are not clipped to the bounds.
        rewards: r_0 … r_{t−1}, the sampled rewards, [t].
        expected_rewards: E[r | task, state, action], [t]; None if the family does not know it.
        regrets: V* − Q* of each action, [t]; None if the family does not know it.
        ended: whether the last step ended the episode.
    """

    observations: Array
    actions: Array
    rewards: Array
    expected_rewards: Array | None = None
    regrets: Array | None = None
    ended: bool = False

    def __post_init__(self) -> None:
        steps = len(self.actions)
        others = (self.rewards, self.expected_rewards, self.regrets)
        lengths = [len(self.observations) - 1, *(len(each) for each in others if each is not None)]
        if set(lengths) != {steps}:
            raise ValueError(
                f"expected {steps + 1} observations, and {steps} rewards and values of truth, for {steps} "
                f"actions; got {[lengths[0] + 1, *lengths[1:]]}"
            )

    @property
    def num_steps(self) -> int:
        """Number of steps so far."""
        return len(self.actions)

    @property
    def total_reward(self) -> float:
        """Sum of the sampled rewards so far."""
        return float(self.rewards.sum())


@dataclass(frozen=True, eq=False)
class History:
    """What has happened so far to one task in one trial.

    Attributes:
        episodes: at least one, in their order of time; the last one may be unfinished, or without a step.
        horizon: maximum number of steps in an episode; None if unknown.
    """

    episodes: tuple[EpisodeRecord, ...]
    horizon: int | None = None

    def __post_init__(self) -> None:
        if not self.episodes:
            raise ValueError("expected at least one episode, if only its first observation, got none")

    @property
    def current(self) -> EpisodeRecord:
        """The last episode."""
        return self.episodes[-1]

    @property
    def observation(self) -> Array:
        """The current observation."""
        return np.asarray(self.current.observations[-1])

    def settled(self) -> "History":
        """Return the same history without a last episode that has no step, if there are others."""
        waits = not self.current.num_steps and len(self.episodes) > 1
        return History(self.episodes[:-1], self.horizon) if waits else self

    @property
    def num_steps(self) -> int:
        """Number of steps in all episodes."""
        return sum(episode.num_steps for episode in self.episodes)

    @property
    def num_ended(self) -> int:
        """Number of episodes that have ended."""
        return sum(episode.ended for episode in self.episodes)

    @property
    def actions(self) -> Array:
        """The actions of all episodes, [steps, ...]."""
        return np.concatenate([episode.actions for episode in self.episodes])

    @property
    def rewards(self) -> Array:
        """The sampled rewards of all episodes, [steps]."""
        return np.concatenate([episode.rewards for episode in self.episodes])

    @property
    def observations(self) -> Array:
        """The observation before each action of all episodes, [steps, ...]."""
        return np.concatenate([episode.observations[:-1] for episode in self.episodes])

    @property
    def regret(self) -> float | None:
        """Sum of the regrets of all steps; None if the family does not know them."""
        known = [episode.regrets for episode in self.episodes if episode.regrets is not None]
        return float(sum(each.sum() for each in known)) if len(known) == len(self.episodes) else None

    def counts(self, num_actions: int) -> NDArray[np.int64]:
        """Return how often each of the discrete actions 0 … A − 1 was taken, [A]."""
        return np.bincount(self.actions.astype(np.int64).ravel(), minlength=num_actions)


class _Steps(NamedTuple):
    """Steps of one environment, [t, ...] each: before them, their results, and the observation after them."""

    before: Array
    action: Array
    reward: Array
    after: Array
    last: Array
    truth: Mapping[str, Array]

    def episode(self, begin: int, end: int) -> EpisodeRecord:
        """Return the steps ``begin`` … ``end`` − 1 as an episode of at least one step."""
        observations = np.concatenate([self.before[begin:end], self.after[end - 1 : end]])
        return self._record(observations, slice(begin, end), bool(self.last[end - 1]))

    def waiting(self, observation: Array) -> EpisodeRecord:
        """Return an episode that has only its first observation."""
        return self._record(observation[None], slice(0), False)

    def _record(self, observations: Array, here: slice, ended: bool) -> EpisodeRecord:
        expected, regret = (self.truth[name][here] if name in self.truth else None for name in _TRUTH)
        return EpisodeRecord(observations, self.action[here], self.reward[here], expected, regret, ended)


def history_at(trajectories: "Sequence[Trajectory]", row: int, step: int) -> History:
    """Return what has happened to one environment after ``step`` of its steps.

    Where ``step`` ends an episode, this is the last one: the next begins with its first action.

    Args:
        trajectories: the phases of a trial, in their order of time, such as ``Trial.phases``.
        row: the environment's column; of task k and lane l it is k · lanes + l.
        step: number of steps since the trial began, in all phases together, without padding.

    Raises:
        ValueError: if there is no such column, or there are fewer steps.
    """
    width = trajectories[0].mask.shape[1]
    if not 0 <= row < width:
        raise ValueError(f"row: expected a column 0 … {width - 1} of the trajectories, got {row}")
    steps = _join([_column(phase, row) for phase in trajectories])
    if not 0 <= step <= len(steps.action):
        raise ValueError(f"step: expected 0 … {len(steps.action)} steps of column {row}, got {step}")
    horizon = trajectories[0].horizon
    if step == 0:
        return History((steps.waiting(steps.before[0]),), horizon)
    return History(_episodes(steps, step, ()), horizon)


def _column(phase: "Trajectory", row: int) -> _Steps:
    """Return the steps of a column without padding; after an episode's end there is no observation."""
    lived = phase.mask[:, row].cpu().numpy()  # [T]

    def of(field: Any) -> Array:
        column: Array = field[:, row].cpu().numpy()[lived]
        return column

    before, last = of(phase.inputs.observation), of(phase.last)
    after = np.concatenate([before[1:], before[-1:]])
    after[last] = before[last]
    truth = {name: of(phase.truth[name]) for name in _TRUTH if name in phase.truth}
    return _Steps(before, of(phase.action), of(phase.reward), after, last, truth)


def _join(parts: Sequence[_Steps]) -> _Steps:
    """Return several parts one after another."""
    before, action, reward, after, last, truths = zip(*parts, strict=True)
    truth = {name: np.concatenate([each[name] for each in truths]) for name in truths[0]}
    of = np.concatenate
    return _Steps(of(before), of(action), of(reward), of(after), of(last), truth)


def _episodes(steps: _Steps, number: int, broken_off: Sequence[int]) -> tuple[EpisodeRecord, ...]:
    """Divide the first ``number`` steps where an episode ended, or was broken off by a reset."""
    ends = {int(index) + 1 for index in np.flatnonzero(steps.last[:number])}
    bounds = sorted({0, number} | ends | {index for index in broken_off if index < number})
    return tuple(steps.episode(begin, end) for begin, end in pairwise(bounds))


@dataclass
class Recorder:
    """Keeps what happens to B environments since their trial began; environments without rendering have none.

    Attributes:
        horizon: maximum number of steps in an episode.
    """

    horizon: int | None = None
    _steps: list[_Steps] = field(default_factory=list)  # [B, ...] each
    _broken_off: list[int] = field(default_factory=list)  # numbers of steps before a reset inside an episode
    _now: Array | None = None  # first observations of the current episodes, or those inside them, [B, ...]
    _waits: Array | None = None  # whether an episode has no step yet, bool [B]

    def begin(self, observation: "Tensor", new_trial: bool) -> None:
        """Begin an episode in every environment: the first of a new trial, or one more."""
        self._now = _copy(observation)
        self._waits = np.ones(len(self._now), bool)
        if new_trial:
            self._steps, self._broken_off = [], []
        elif self._steps:
            self._broken_off.append(len(self._steps))

    def step(
        self,
        action: "Tensor",
        reward: "Tensor",
        last: "Tensor",
        after: "Tensor",
        now: "Tensor",
        truth: "Mapping[str, Tensor]",
    ) -> None:
        """Add a step of every environment.

        Args:
            action: what the environments got, [B, ...].
            reward: the sampled rewards, [B].
            last: whether the step ended the episode, bool [B].
            after: the observations after the step, before a restart, [B, ...].
            now: the current observations: those of a new episode where one ended.
            truth: the info of the step; only expected reward and regret are kept, [B] each.
        """
        assert self._now is not None  # environments refuse a step before a reset
        ended = _copy(last)
        kept = {name: _copy(truth[name]) for name in _TRUTH if name in truth}
        self._steps.append(_Steps(self._now, _copy(action), _copy(reward), _copy(after), ended, kept))
        self._now, self._waits = _copy(now), ended

    def history(self, row: int) -> History:
        """Return what has happened to environment ``row``.

        Raises:
            ValueError: before the first reset.
        """
        if self._now is None or self._waits is None:
            raise ValueError("expected a reset before the first picture; call reset()")
        if not self._steps:
            nothing = np.zeros(0)
            return History((EpisodeRecord(self._now[row][None], nothing, nothing),), self.horizon)
        steps = _stacked(self._steps, row)
        episodes = _episodes(steps, len(self._steps), self._broken_off)
        if self._waits[row]:
            episodes = (*episodes, steps.waiting(self._now[row]))
        return History(episodes, self.horizon)


def _stacked(steps: Sequence[_Steps], row: int) -> _Steps:
    """Return the column ``row`` of steps [B, ...], [t, ...]."""
    before, action, reward, after, last, truths = zip(*steps, strict=True)
    truth = {name: np.stack([each[name][row] for each in truths]) for name in truths[0]}

    def of(field: Sequence[Array]) -> Array:
        return np.stack([each[row] for each in field])  # [t, ...]

    return _Steps(of(before), of(action), of(reward), of(after), of(last), truth)


def _copy(values: "Tensor") -> Array:
    """Return a copy in main memory."""
    copy: Array = values.detach().cpu().numpy().copy()
    return copy
