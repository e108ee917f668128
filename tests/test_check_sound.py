"""Sound families that a hasty check calls faulty, and families for which a check must not take long."""

import json
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from rl2meta.commands.check import run_checks
from rl2meta.envs.bandits import BernoulliBandits
from rl2meta.envs.checking import check_distribution
from rl2meta.envs.gym_tasks import GymnasiumTasks
from rl2meta.experiments.checks import examine
from rl2meta.experiments.env_state import same_values
from rl2meta.experiments.pace import pace_of
from rl2meta.experiments.patience import OutOfTime, at_most
from rl2meta.workers.plugged_in import PluggedIn
from rl2meta.workers.settings import WorkerSettings

FAULTY = Path(__file__).parent / "outside" / "faulty"
HERE = "workers.processes=0"
Check = Callable[..., tuple[int, str]]


@pytest.fixture
def check(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Check:
    """Check a family of ``sound_lamps`` -> (exit code, all that was said)."""
    monkeypatch.syspath_prepend(str(FAULTY))

    def call(env: str, *overrides: str, **more: float) -> tuple[int, str]:
        code = run_checks("sound_lamps:Sound", [f"distribution.env={env}", HERE, *overrides], **more)
        captured = capfd.readouterr()
        return code, captured.out + captured.err

    return call


@pytest.mark.parametrize("high", [0.001, 0.03])
def test_arms_that_seldom_pay_are_sound(high: float) -> None:
    for seed in range(8):
        check_distribution(BernoulliBandits(num_arms=5, high=high), seed=seed)


def test_families_of_few_tasks_are_sound(corridor: Any) -> None:
    """Two draws of two tasks are often equal."""
    for seed in range(12):
        check_distribution(corridor(horizon=3), seed=seed, num_tasks=2)
    three = {"force_mag": {"choice": [5, 10, 20]}}
    law = PluggedIn(
        GymnasiumTasks(id="CartPole-v1", horizon=5, vary_attributes=three), WorkerSettings(processes=0)
    )
    check_distribution(law, num_tasks=2)


def test_minigrid_without_its_text_is_sound() -> None:
    pytest.importorskip("minigrid")
    settings = {
        "id": "minigrid:MiniGrid-Empty-5x5-v0",
        "horizon": 30,
        "vary_kwargs": {"agent_start_dir": {"choice": [0, 1, 2, 3]}},
        "wrappers": [{"name": "drop_keys", "keys": ["mission"]}],
    }
    overrides = [f"distribution.{key}={json.dumps(value)}" for key, value in settings.items()]
    of_the_family = islice(examine("gymnasium", [*overrides, HERE]).results, 8)  # agents take long
    found = {result.title: result.findings for result in of_the_family if result.faults}
    assert not found


def test_what_only_stable_baselines3_demands_is_a_note(check: Check) -> None:
    code, said = check("Endless")
    assert code == 0 and "note: unfit for SB3: AssertionError: Continuous action space must have a" in said


def test_an_environment_without_luck_needs_no_generator(check: Check) -> None:
    code, said = check("Certain")
    assert code == 0 and "ok     Gymnasium's checker\n         note: AssertionError: Expects the" in said


@pytest.mark.parametrize("env", ["Dim", "Distant"])
def test_tasks_that_show_in_few_places_are_no_fault(check: Check, env: str) -> None:
    code, said = check(env)
    assert code == 0 and "all is well" in said, said
    assert env == "Dim" or "could not tell whether tasks make a difference" in said


def test_slow_environments_take_no_minutes_and_are_named_meanwhile(check: Check) -> None:
    begun = time.monotonic()
    code, said = check("Slow", "distribution.horizon=500", limit=0.5, silent=0.2)
    assert code == 0 and time.monotonic() - begun < 15
    assert "note: slow: only the first" in said
    assert "took more than 0.5 s, and the rest of this check was not tried" in said
    assert "  ...    tasks that make a difference: " in said


def test_large_observations_are_played_less(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FAULTY))
    from sound_lamps import Sound

    wide = pace_of(PluggedIn(Sound("Wide", horizon=1000), WorkerSettings(processes=0)), seed=0)
    assert wide.steps is not None and wide.steps * wide.tasks <= 2**28 / 12e6
    quick = pace_of(PluggedIn(Sound("Dim"), WorkerSettings(processes=0)), seed=0)
    assert quick.tasks == 8 and quick.steps is not None and quick.steps > 21


def test_a_time_limit_ends_a_sleep() -> None:
    with pytest.raises(OutOfTime), at_most(0.05):
        time.sleep(5)
    with at_most(5):
        pass


class Held:
    def __init__(self, **values: Any) -> None:
        self.__dict__.update(values)


def test_same_values_sees_all_that_objects_hold() -> None:
    def held(task: Any) -> Held:
        parts = {"array": np.arange(3), "list": [1, Held(task=task)], "drawn": np.random.default_rng(1)}
        return Held(nan=float("nan"), kind=Held, parts=parts)

    assert same_values(held(1), held(1))
    for other in (2, 1.0, "1", np.ones(1), Held()):
        assert not same_values(held(1), held(other))
    drawn = held(1)
    drawn.parts["drawn"].random()
    assert not same_values(held(1), drawn)


def test_what_cannot_be_seen_is_not_called_the_same() -> None:
    one = Held()
    for unknown in (lambda: 1, iter([1]), memoryview(b"1")):
        assert not same_values(Held(unknown=unknown), Held(unknown=iter([1])))
    assert not same_values(Held(one=one), Held(one=one))  # a simulator that both share


class Door(gym.Env[Any, Any]):
    """The seed decides which of eight doors is open, and then whether it pays."""

    observation_space, action_space = gym.spaces.Box(0, 1, (1,), np.float32), gym.spaces.Discrete(8)
    steps: int

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.steps, self.door = 0, self.drawn(8)
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> Any:
        self.steps += 1
        paid = float(action == self.door and self.drawn(3) > 0)
        return np.full(1, self.steps / 10, np.float32), paid, self.steps == 10, False, {}

    def drawn(self, among: int) -> int:
        return int(self.np_random.integers(among))


class LuckyDoor(Door):
    """Its luck comes from elsewhere than the seed."""

    def drawn(self, among: int) -> int:
        return int(np.random.randint(among))


class SameDoor(Door):
    """All seeds open the same door."""

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return super().reset(seed=0)


@pytest.mark.parametrize(
    ("kind", "code", "words"),
    [
        (Door, 0, "ok     tasks that make a difference"),
        (LuckyDoor, 2, "FAULT  the same seed, the same trial"),
        (SameDoor, 2, "FAULT  Gymnasium's checker"),
    ],
)
def test_levels_by_seed_are_checked(
    kind: type[Door],
    code: int,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """With ``vary_seed`` the environment gets one seed in every reset; this is no fault of its own."""
    monkeypatch.setitem(gym.registry, "Door-v0", gym.envs.registration.EnvSpec("Door-v0", kind))
    overrides = ["distribution.id=Door-v0", "distribution.horizon=12", "distribution.vary_seed=true", HERE]
    assert run_checks("gymnasium", overrides) == code
    said = capfd.readouterr().out
    assert f"  {words}" in said and (code or said.endswith("all is well\n")), said
