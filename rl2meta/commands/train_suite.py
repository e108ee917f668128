"""RL² end to end: rollout and update, ours and sb3-contrib's RecurrentPPO."""

import time
from typing import Any

import gymnasium as gym
import torch

from rl2meta.agents.rl2 import RL2Config, RL2Learner
from rl2meta.commands.suites import Contestant, Suite, training
from rl2meta.envs.bandits import BernoulliBandits
from rl2meta.errors import UserError
from rl2meta.interop import TrialEnv

NUM_ARMS, PULLS, HIDDEN_SIZE, EPOCHS, MINIBATCHES = 5, 10, 48, 3, 4
TRIALS_PER_UPDATE = 1024


def train_suite(device: torch.device, against: str | None) -> Suite:
    """Return RL² on five-armed bandits, alone or beside RecurrentPPO in two ways."""
    contestants: dict[str, Contestant] = {"rl2meta": _ours(device)}
    if against == "sb3":
        contestants |= _sb3_contestants(device)
    setting = {
        "num_arms": NUM_ARMS,
        "pulls": PULLS,
        "hidden_size": HIDDEN_SIZE,
        "epochs": EPOCHS,
        "minibatches": MINIBATCHES,
        "trials_per_update": TRIALS_PER_UPDATE,
    }
    title = (
        f"RL², LSTM {HIDDEN_SIZE}, n={PULLS}, k={NUM_ARMS}, "
        f"{TRIALS_PER_UPDATE} trials an update, {EPOCHS} epochs, {MINIBATCHES} minibatches"
    )
    return Suite(title, setting, contestants)


def _ours(device: torch.device) -> Contestant:
    distribution = BernoulliBandits(num_arms=NUM_ARMS)
    config = RL2Config(hidden_size=HIDDEN_SIZE, epochs=EPOCHS, minibatches=MINIBATCHES)
    learner = RL2Learner(distribution.observation_space, distribution.action_space, config, device)
    return training(learner, distribution, device, TRIALS_PER_UPDATE, PULLS)


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
