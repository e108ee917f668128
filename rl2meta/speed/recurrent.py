"""RL²: its rollout alone; and end to end, rollout and update, ours and sb3-contrib's RecurrentPPO."""

from collections.abc import Callable
from itertools import count
from typing import Any, NamedTuple

import gymnasium as gym
import torch

from rl2meta.agents.cores.recurrent import LSTMConfig
from rl2meta.agents.ppo import PPO
from rl2meta.agents.rl2 import RL2Config, rl2_learner
from rl2meta.cuda_graphs import GraphWorker
from rl2meta.envs.bandits import BernoulliBandits
from rl2meta.errors import UserError
from rl2meta.interop import TrialEnv
from rl2meta.rollout import RolloutWorker
from rl2meta.speed.suites import Contestant, Suite, training
from rl2meta.tasks import sample_tasks

NUM_ARMS, EPOCHS, MINIBATCHES = 5, 3, 4
_LAW = BernoulliBandits(num_arms=NUM_ARMS)


class Shape(NamedTuple):
    """How large an update is: ``trials`` of ``pulls`` each, by an LSTM of ``hidden_size`` units."""

    trials: int
    pulls: int
    hidden_size: int


BASE = Shape(1024, 10, 48)
_GROWTH = {
    "cpu": {
        "256 trials": BASE._replace(trials=256),
        "4,096 trials": BASE._replace(trials=4096),
        "n=100, 512 trials": BASE._replace(pulls=100, trials=512),
        "LSTM 128": BASE._replace(hidden_size=128),
        "LSTM 256": BASE._replace(hidden_size=256),
        "LSTM 256, n=100, 256 trials": Shape(256, 100, 256),
    },
    "cuda": {
        "16,384 trials": BASE._replace(trials=2**14),
        "262,144 trials": BASE._replace(trials=2**18),
        "n=100, 16,384 trials": BASE._replace(pulls=100, trials=2**14),
        "LSTM 256, 16,384 trials": Shape(2**14, 10, 256),
        "LSTM 256, n=100, 4,096 trials": Shape(2**12, 100, 256),
        "LSTM 256, n=100, 16,384 trials": Shape(2**14, 100, 256),
        "LSTM 256, n=100, 65,536 trials": Shape(2**16, 100, 256),
    },
}


def train_suite(device: torch.device, against: str | None) -> Suite:
    """Return RL² on five-armed bandits, alone or beside RecurrentPPO in two ways, and what it grows with."""
    ours = _contestants(_trained, device)
    rivals = _sb3_contestants(device) if against == "sb3" else {}
    setting = {"num_arms": NUM_ARMS, "epochs": EPOCHS, "minibatches": MINIBATCHES, **BASE._asdict()}
    title = f"RL² end to end, {_named(BASE)}, {EPOCHS} epochs of {MINIBATCHES}"
    return Suite(title, setting, {**ours, **rivals})


def rollout_suite(device: torch.device, against: str | None) -> Suite:
    """Return rollouts of RL² on five-armed bandits, and what they grow with."""
    setting = {"num_arms": NUM_ARMS, **BASE._asdict()}
    return Suite(f"rollouts of RL², {_named(BASE)}", setting, _contestants(_rolled_out, device))


def _contestants(
    make: Callable[[Shape, RolloutWorker], Callable[[], int]], device: torch.device
) -> dict[str, Contestant]:
    """Return every shape, on a GPU also by rollouts that are replayed, whose work is the same."""
    workers = {"": RolloutWorker, ", CUDA graph": GraphWorker}
    if device.type == "cpu":
        del workers[", CUDA graph"]
    return {
        name + how: Contestant(make(shape, worker(_LAW, device)), shape._asdict(), countable=not how)
        for name, shape in {"rl2meta": BASE, **_GROWTH[device.type]}.items()
        for how, worker in workers.items()
    }


def _named(shape: Shape) -> str:
    return f"LSTM {shape.hidden_size}, k={NUM_ARMS}, n={shape.pulls}, {shape.trials:,} trials"


def _learner(shape: Shape, device: torch.device) -> PPO:
    config = RL2Config(core=LSTMConfig(hidden_size=shape.hidden_size), epochs=EPOCHS, minibatches=MINIBATCHES)
    return rl2_learner(_LAW.observation_space, _LAW.action_space, config, device)


def _trained(shape: Shape, worker: RolloutWorker) -> Callable[[], int]:
    return training(_learner(shape, worker.device), _LAW, worker, shape.trials, shape.pulls)


def _rolled_out(shape: Shape, worker: RolloutWorker) -> Callable[[], int]:
    agent, seeds = _learner(shape, worker.device).agent, count()
    tasks = sample_tasks(_LAW, shape.trials, 0, "train").to(worker.device)

    def unit() -> int:
        worker.run(agent, tasks, shape.pulls, next(seeds))
        return shape.trials * shape.pulls

    return unit


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

    from rl2meta.speed.sb3_trials import TrialVecEnv

    def trial() -> gym.Env[Any, Any]:
        return TrialEnv(gym.make("rl2meta/BernoulliBandit-v0", num_arms=NUM_ARMS), num_episodes=BASE.pulls)

    batched = TrialVecEnv(_LAW, BASE.trials, BASE.pulls)
    envs = {
        "RecurrentPPO, TrialEnv": DummyVecEnv([trial] * BASE.trials),
        "RecurrentPPO, our batched environment": batched,
    }
    return {name: Contestant(_recurrent_ppo(each, device), rival=True) for name, each in envs.items()}


def _recurrent_ppo(envs: Any, device: torch.device) -> Callable[[], int]:
    from sb3_contrib import RecurrentPPO

    batch = BASE.trials * BASE.pulls
    model = RecurrentPPO(
        "MlpLstmPolicy",
        envs,
        n_steps=BASE.pulls,
        batch_size=batch // MINIBATCHES,
        n_epochs=EPOCHS,
        device=device,
        policy_kwargs={
            "lstm_hidden_size": BASE.hidden_size,
            "net_arch": [],
            "shared_lstm": True,
            "enable_critic_lstm": False,
        },
    )

    def unit() -> int:
        model.learn(batch, reset_num_timesteps=False)
        return batch

    return unit
