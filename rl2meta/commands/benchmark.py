"""``rl2meta benchmark``: training speed, contestants in turns within one run."""

import json
import math
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch

from rl2meta.agents.rl2 import RL2Config, RL2Learner
from rl2meta.devices import resolve_device, set_threads
from rl2meta.envs.bandits import BernoulliBandits
from rl2meta.errors import UserError
from rl2meta.files import write_atomically
from rl2meta.interop import TrialEnv
from rl2meta.rollout import RolloutWorker
from rl2meta.training import Budget, meta_train

NUM_ARMS, PULLS, HIDDEN_SIZE, EPOCHS, MINIBATCHES = 5, 10, 48, 3, 4
TRIALS_PER_UPDATE = 1024
TURNS = 5

Contestant = Callable[[float], float]
"""Trains for about so many seconds and returns environment steps per second, updates included."""


def run_benchmark(
    *, seconds: float, against: str | None, device: str, threads: int | None, out: Path | None
) -> None:
    """Measure, print the medians and their ratio, and write them to ``out``."""
    if not 0 < seconds < math.inf:
        raise UserError(f"--seconds: expected a number more than 0, got {seconds}")
    if threads is not None and threads < 1:
        raise UserError(f"--threads: expected at least 1, got {threads}")
    if against not in (None, "sb3"):
        raise UserError(f"--against: expected 'sb3', got {against!r}")
    if out is not None and (out.exists() or not out.parent.is_dir()):
        raise UserError(f"--out: expected a new file in a folder that exists, got {out}; choose another")
    where, used_threads = resolve_device(device), set_threads(threads)
    contestants: dict[str, Contestant] = {"rl2meta": _ours(where)}
    if against == "sb3":
        contestants |= _sb3_contestants(where)
    print(
        f"RL², LSTM {HIDDEN_SIZE}, n={PULLS}, k={NUM_ARMS}, "
        f"{TRIALS_PER_UPDATE} trials an update, {EPOCHS} epochs, {MINIBATCHES} minibatches"
    )
    figures = _in_turns(contestants, seconds / TURNS)
    report = {
        "benchmark": "train",
        "setting": {
            "num_arms": NUM_ARMS,
            "pulls": PULLS,
            "hidden_size": HIDDEN_SIZE,
            "epochs": EPOCHS,
            "minibatches": MINIBATCHES,
            "trials_per_update": TRIALS_PER_UPDATE,
        },
        "device": str(where),
        "threads": used_threads,
        "processor": platform.machine(),
        "torch": torch.__version__,
        "env_steps_per_second": figures,
        "ratios": _ratios(figures),
    }
    _print(report)
    if out is not None:
        write_atomically(out, json.dumps(report, indent=2) + "\n")


def _in_turns(contestants: Mapping[str, Contestant], seconds: float) -> dict[str, list[float]]:
    """A B A B ...: a machine that slows down for a while slows both."""
    for contestant in contestants.values():
        contestant(min(1.0, seconds))  # warm-up, not counted
    figures: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(TURNS):
        for name, contestant in contestants.items():
            figures[name].append(contestant(seconds))
    return figures


def _ratios(figures: Mapping[str, list[float]]) -> dict[str, list[float]]:
    ours, *others = figures
    return {name: [a / b for a, b in zip(figures[ours], figures[name], strict=True)] for name in others}


def _print(report: Mapping[str, Any]) -> None:
    for name, values in report["env_steps_per_second"].items():
        print(f"  {name}: {_spread(values)} environment steps/s")
    for name, values in report["ratios"].items():
        print(f"  rl2meta / {name}, turn by turn: {_spread(values, '.1f')}")


def _spread(values: list[float], form: str = ",.0f") -> str:
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"median {middle:{form}} (min {low:{form}}, max {high:{form}})"


def _ours(device: torch.device) -> Contestant:
    distribution = BernoulliBandits(num_arms=NUM_ARMS)
    config = RL2Config(hidden_size=HIDDEN_SIZE, epochs=EPOCHS, minibatches=MINIBATCHES)
    learner = RL2Learner(distribution.observation_space, distribution.action_space, config, device)
    worker = RolloutWorker(distribution, device)
    budget = Budget(updates=10**9, trials_per_update=TRIALS_PER_UPDATE, episodes_per_trial=PULLS)
    done = 0

    def train(seconds: float) -> float:
        nonlocal done
        began, steps = time.perf_counter(), 0

        def record(row: dict[str, Any]) -> bool:
            nonlocal done, steps
            done, steps = row["update"], row["env_steps"]
            return time.perf_counter() - began >= seconds

        meta_train(learner, distribution, worker, budget, 0, record, start=done)
        return steps / (time.perf_counter() - began)

    return train


def _sb3_contestants(device: torch.device) -> dict[str, Contestant]:
    """The same trials, network sizes, batch and epochs through sb3-contrib's RecurrentPPO, in two ways.

    Over ``TrialEnv``, one Python object a trial, as its users run it; and over our batch of tensors, so that
    only the agents' machinery is compared.
    """
    try:
        import sb3_contrib  # noqa: F401
    except ImportError:
        raise UserError(
            "--against sb3: expected sb3-contrib, which is not installed; install it with: "
            "pip install -c constraints.txt -e '.[benchmark]'"
        ) from None
    from stable_baselines3.common.vec_env import DummyVecEnv

    from rl2meta.commands.sb3_trials import TrialVecEnv

    def trial() -> gym.Env[Any, Any]:
        return TrialEnv(gym.make("rl2meta/BernoulliBandit-v0", num_arms=NUM_ARMS), num_episodes=PULLS)

    batched = TrialVecEnv(BernoulliBandits(num_arms=NUM_ARMS), TRIALS_PER_UPDATE, PULLS)
    return {
        "RecurrentPPO, TrialEnv": _recurrent_ppo(DummyVecEnv([trial] * TRIALS_PER_UPDATE), device),
        "RecurrentPPO, our batched environment": _recurrent_ppo(batched, device),
    }


def _recurrent_ppo(envs: Any, device: torch.device) -> Contestant:
    from sb3_contrib import RecurrentPPO

    batch = TRIALS_PER_UPDATE * PULLS
    model = RecurrentPPO(
        "MlpLstmPolicy",
        envs,
        n_steps=PULLS,
        batch_size=batch // MINIBATCHES,
        n_epochs=EPOCHS,
        device=device,
        policy_kwargs={
            "lstm_hidden_size": HIDDEN_SIZE,
            "net_arch": [],
            "shared_lstm": True,
            "enable_critic_lstm": False,
        },
    )

    def train(seconds: float) -> float:
        began, steps = time.perf_counter(), 0
        while time.perf_counter() - began < seconds:
            model.learn(batch, reset_num_timesteps=False)
            steps += batch
        return steps / (time.perf_counter() - began)

    return train
