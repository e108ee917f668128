"""Environments side by side in one process, stepped one after another, each on its own task."""

import math
from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np

from rl2meta.counted import ACTION_MASK, is_counted, sizes_of
from rl2meta.workers.block import Array, Arrays
from rl2meta.workers.elements import actor, kind, masker, reader
from rl2meta.workers.family import Described, SingleFamily, Task
from rl2meta.workers.faults import CALLS, Broken, Failed, Fault, fault_of
from rl2meta.workers.looking import make, refuse_difference

_NUMBER = {name: number for number, name in enumerate(CALLS)}
_MAKE, _SET, _RESET, _STEP, _CLOSE, _NOTHING = (_NUMBER[name] for name in CALLS[1:])


class Slots:
    """Some environments of a family, and the arrays that hold their results.

    A trial begins with ``begin``. An environment whose episode ends restarts in the same step, until it has
    played the wanted number of episodes: then it idles, and its rewards are 0.

    Args:
        family: makes the environments.
        described: the spaces and the emitted values that each environment must have.
        arrays: the part for these environments only.
        first: the number of the first environment, for messages.
    """

    def __init__(self, family: SingleFamily, described: Described, arrays: Arrays, first: int = 0) -> None:
        self._family, self._described, self._arrays, self._first = family, described, arrays, first
        self._set_task = getattr(family, "set_task", None)
        self._horizon = family.horizon
        self._read = reader(described.observation_space)
        self._act = actor(described.action_space)
        self._mask = masker(described) if described.masks else None
        sizes = sizes_of(described.action_space) if self._mask else []
        self._first_values = np.cumsum([0, *sizes[:-1]])  # of each entry of an action, in a mask
        self._envs: list[gym.Env[Any, Any]] = []
        self._steps = 0
        self._elapsed: list[int] = []

    def begin(self, tasks: Sequence[Task], seeds: Sequence[int], episodes: int) -> None:
        """Begin a trial on each task; its first episode gets the seed."""
        self._steps = 0
        for slot, (task, seed) in enumerate(zip(tasks, seeds, strict=True)):
            own = deepcopy(task)  # an environment that changes its task must not change it for other slots
            self._guarded(slot, _MAKE, partial(self._place, slot, own))
            self._restart(slot, seed)
        self._expect(episodes)

    def reset(self, episodes: int) -> None:
        """Begin another episode in every environment, on the same tasks."""
        for slot in range(len(self._envs)):
            self._restart(slot)
        self._expect(episodes)

    def step(self) -> None:
        """Take one step in every environment."""
        self._clear()
        mark, actions, left, act = (
            self._arrays.mark,
            self._arrays.action,
            self._arrays.left.tolist(),
            self._act,
        )
        mark[2:] = _STEP, self._steps
        try:
            for slot, env in enumerate(self._envs):
                if left[slot]:
                    mark[1] = self._first + slot
                    if self._take(slot, env.step(act(actions[slot]))):
                        self._end(slot, left[slot])
                        mark[2] = _STEP
            self._refuse_odd_numbers()
        except Failed:
            raise
        except BaseException as error:
            raise self._failure(error) from None
        self._arrays.mark[2] = _NOTHING
        self._steps += 1

    def close(self) -> None:
        """Close every environment, even if one of them fails."""
        envs, self._envs = self._envs, []
        failures = [failure for slot, env in enumerate(envs) if (failure := self._closing(slot, env))]
        if failures:
            raise failures[0]

    def fault(self, error: BaseException) -> Fault:
        """Return the fault for an exception that the last call raised."""
        _, slot, call, step = (int(value) for value in self._arrays.mark)
        return fault_of(error, CALLS[call], None if call == _NOTHING else slot, step)

    def _closing(self, slot: int, env: gym.Env[Any, Any]) -> Failed | None:
        try:
            self._guarded(slot, _CLOSE, env.close)
        except Failed as failure:
            return failure
        return None

    def _expect(self, episodes: int) -> None:
        self._clear()
        self._arrays.left[:] = episodes
        self._elapsed = [0] * len(self._envs)
        self._refuse_no_choice("reset")

    def _clear(self) -> None:
        self._arrays.reward[:] = self._arrays.known[:] = 0.0
        self._arrays.terminated[:] = self._arrays.truncated[:] = False

    def _take(self, slot: int, outcome: Any) -> bool:
        """Write the results of a step into the arrays; return whether the episode is over."""
        if not isinstance(outcome, tuple) or len(outcome) != 5:
            raise Broken(
                "expected (observation, reward, terminated, truncated, info) from step(), "
                f"got {kind(outcome)}"
            )
        observation, reward, terminated, truncated, info = outcome
        if not isinstance(reward, float | int | np.floating | np.integer):
            raise Broken(f"expected a float for a reward, got {kind(reward)} {reward!r:.80}")
        if type(terminated) is not bool or type(truncated) is not bool:
            _refuse_flags(terminated, truncated)
        arrays = self._arrays
        arrays.observation[slot] = self._read(observation)
        arrays.reward[slot] = reward
        if not isinstance(info, dict):
            raise Broken(f"expected a dict for the info of a step, got {kind(info)} {info!r:.80}")
        self._hear(slot, observation, info)
        for row, name in enumerate(self._described.emits):
            arrays.known[row, slot] = _number(info, name)
        self._elapsed[slot] += 1
        over = bool(terminated or truncated or self._elapsed[slot] >= self._horizon)
        if over:
            arrays.terminated[slot], arrays.truncated[slot] = terminated, not terminated
        return over

    def _hear(self, slot: int, observation: Any, info: Any) -> None:
        """Write which actions are legal; refuse a mask for which there is no room, as it would be ignored."""
        if self._mask is not None:
            self._arrays.legal[slot] = self._mask(observation, info)
        elif isinstance(info, dict) and ACTION_MASK in info and is_counted(self._described.action_space):
            raise Broken(
                f"expected {ACTION_MASK!r} in the info of the first reset or step, got the first one here; "
                "put it into every info"
            )

    def _end(self, slot: int, left: int) -> None:
        arrays = self._arrays
        arrays.final[slot] = last = arrays.observation[slot]
        if last.dtype.kind == "f" and not np.isfinite(last).all():
            raise Broken(f"expected finite numbers for an observation, got {last!s:.200}")
        arrays.left[slot] = left - 1 if left > 0 else left
        self._elapsed[slot] = 0
        if left != 1:
            self._restart(slot)

    def _restart(self, slot: int, seed: int | None = None) -> None:
        def reset() -> None:
            env = self._envs[slot]
            came = env.reset() if seed is None else env.reset(seed=seed)
            if not isinstance(came, tuple) or len(came) != 2:
                raise Broken(f"expected (observation, info) from reset(), got {kind(came)}")
            self._arrays.observation[slot] = value = self._read(came[0])
            if not np.isfinite(value).all():
                raise Broken(f"expected finite numbers for an observation, got {came[0]!r:.200}")
            self._hear(slot, *came)

        self._guarded(slot, _RESET, reset)

    def _place(self, slot: int, task: Task) -> None:
        """Give a slot a task: change the task of its environment if the family can, or make a new one."""
        if slot < len(self._envs):
            if self._set_task is not None:
                self._mark(slot, _SET)
                self._set_task(self._envs[slot], task)
                return
            self._mark(slot, _CLOSE)
            self._envs[slot].close()
            self._mark(slot, _MAKE)
        env = make(self._family, task)
        refuse_difference(self._described, env)
        self._envs[slot : slot + 1] = [env]

    def _refuse_odd_numbers(self) -> None:
        arrays = self._arrays
        if arrays.observation.dtype.kind == "f" and not np.isfinite(arrays.observation).all():
            self._refuse(arrays.observation, "finite numbers for an observation")
        if not np.isfinite(arrays.reward).all():
            self._refuse(arrays.reward, "a finite number for a reward")
        if len(arrays.known):
            if not np.isfinite(arrays.known).all():
                self._refuse(arrays.known.T, f"finite numbers for {self._described.emits} in the info")
            if "regret" in self._described.emits:
                regret = arrays.known[self._described.emits.index("regret")]
                if (regret < 0).any():
                    slot = int((regret < 0).argmax())
                    self._broken(slot, f"expected a regret >= 0 in the info, got {regret[slot]}")

        self._refuse_no_choice("step")

    def _refuse_no_choice(self, call: str) -> None:
        """Refuse a mask without a legal action; an environment that idles takes none."""
        if self._mask is None:
            return
        some = np.logical_or.reduceat(self._arrays.legal, self._first_values, axis=1).all(axis=1)  # [slots]
        if not (some | (self._arrays.left == 0)).all():
            slot = int((~some & (self._arrays.left != 0)).argmax())
            told = self._arrays.legal[slot].astype(int)
            self._broken(slot, f"expected a legal action in {ACTION_MASK!r}, got {told!s:.200}", call)

    def _refuse(self, values: Array, expected: str) -> None:
        slot = int((~np.isfinite(values.reshape(len(values), -1)).all(axis=1)).argmax())
        self._broken(slot, f"expected {expected}, got {values[slot]!s:.200}")

    def _broken(self, slot: int, words: str, call: str = "step") -> None:
        raise Failed(Fault(words, call, self._first + slot, self._steps))

    def _guarded(self, slot: int, call: int, do: Callable[[], object]) -> None:
        self._mark(slot, call)
        try:
            do()
        except BaseException as error:
            raise self._failure(error) from None
        self._arrays.mark[2] = _NOTHING

    def _failure(self, error: BaseException) -> Failed:
        if not isinstance(error, Exception | SystemExit):
            raise error  # for example Ctrl-C, if the environments run in the main process
        return Failed(self.fault(error))

    def _mark(self, slot: int, call: int) -> None:
        mark = self._arrays.mark
        mark[1] = self._first + slot
        mark[2] = call
        mark[3] = self._steps
        mark[0] += 1


def _number(info: dict[str, Any], name: str) -> float:
    value = info.get(name)
    if not isinstance(value, float | int | np.floating | np.integer) or math.isnan(value):
        raise Broken(f"expected a number for {name!r} in the info of every step, got {value!r:.80}")
    return float(value)


def _refuse_flags(terminated: Any, truncated: Any) -> None:
    for name, flag in (("terminated", terminated), ("truncated", truncated)):
        if not isinstance(flag, bool | np.bool_):
            raise Broken(f"expected a bool for {name}, got {kind(flag)} {flag!r:.80}")
