"""RL²: its rollout alone, and whole updates with their rollouts, beside sb3-contrib's RecurrentPPO."""

from collections.abc import Callable, Mapping
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
from rl2meta.speed.suites import Suite, Workload, training
from rl2meta.tasks import TaskDistribution, sample_tasks

NUM_ARMS, EPOCHS, MINIBATCHES = 5, 3, 4
_LAW = BernoulliBandits(num_arms=NUM_ARMS)


class Shape(NamedTuple):
    """The size of an update: ``trials`` of ``pulls`` each, played by an LSTM of ``hidden_size`` units."""

    trials: int
    pulls: int
    hidden_size: int


BASE = Shape(1024, 10, 48)
GROWTH: Mapping[str, Mapping[str, Shape]] = {
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
"""By the type of the device: the shapes that are measured beside ``BASE``, by name."""


def train_suite(
    device: torch.device,
    *,
    against: str | None = None,
    base: Shape = BASE,
    growth: Mapping[str, Shape] | None = None,
) -> Suite:
    """Return whole updates of RL² on five-armed bandits, in several shapes.

    Args:
        device: the device of the environments and the learner.
        against: "sb3" for sb3-contrib's RecurrentPPO beside it, in two ways; None for no rival.
        base: the shape of the first workload and of its rivals.
        growth: the shapes of the other workloads, by name; None for those of ``GROWTH``.

    Raises:
        UserError: if sb3-contrib is wanted and not installed.
    """
    ours = _workloads(_trained, base, growth, device)
    rivals = _sb3_workloads(base, device) if against == "sb3" else {}
    setting = {"num_arms": NUM_ARMS, "epochs": EPOCHS, "minibatches": MINIBATCHES, **base._asdict()}
    title = f"RL² end to end, {_named(base)}, {EPOCHS} epochs of {MINIBATCHES}"
    return Suite(title, setting, {**ours, **rivals})


def rollout_suite(
    device: torch.device, *, base: Shape = BASE, growth: Mapping[str, Shape] | None = None
) -> Suite:
    """Return rollouts of RL² on five-armed bandits, in the shapes that ``train_suite`` has."""
    setting = {"num_arms": NUM_ARMS, **base._asdict()}
    return Suite(f"rollouts of RL², {_named(base)}", setting, _workloads(_rolled_out, base, growth, device))


def _workloads(
    make: Callable[[Shape, RolloutWorker], Callable[[], int]],
    base: Shape,
    growth: Mapping[str, Shape] | None,
    device: torch.device,
) -> dict[str, Workload]:
    """Return every shape; on a GPU a second time with rollouts that replay a CUDA graph.

    The replayed work is the same, and cannot be counted.
    """
    shapes = {"rl2meta": base, **(GROWTH[device.type] if growth is None else growth)}
    workers = {"": RolloutWorker, ", CUDA graph": GraphWorker}
    if device.type == "cpu":
        del workers[", CUDA graph"]
    return {
        name + how: Workload(make(shape, worker(_LAW, device)), shape._asdict(), countable=not how)
        for name, shape in shapes.items()
        for how, worker in workers.items()
    }


def _named(shape: Shape) -> str:
    return f"LSTM {shape.hidden_size}, k={NUM_ARMS}, n={shape.pulls}, {shape.trials:,} trials"


def learner_of(shape: Shape, device: torch.device, law: TaskDistribution = _LAW) -> PPO:
    """Return RL² with an LSTM of the shape's size for the spaces of a law."""
    config = RL2Config(core=LSTMConfig(hidden_size=shape.hidden_size), epochs=EPOCHS, minibatches=MINIBATCHES)
    return rl2_learner(law.observation_space, law.action_space, config, device)


def _trained(shape: Shape, worker: RolloutWorker) -> Callable[[], int]:
    return training(learner_of(shape, worker.device), _LAW, worker, shape.trials, shape.pulls)


def _rolled_out(shape: Shape, worker: RolloutWorker) -> Callable[[], int]:
    agent, seeds = learner_of(shape, worker.device).agent, count()
    tasks = sample_tasks(_LAW, shape.trials, 0, "train").to(worker.device)

    def unit() -> int:
        worker.run(agent, tasks, shape.pulls, next(seeds))
        return shape.trials * shape.pulls

    return unit


def _sb3_workloads(base: Shape, device: torch.device) -> dict[str, Workload]:
    """Return sb3-contrib's RecurrentPPO with the same trials, network sizes, batch and epochs, in two ways.

    The first runs on ``TrialEnv``, one Python object per trial, as its users run it. The second runs on our
    batch of tensors, so that only the agents' machinery is compared.
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
        return TrialEnv(gym.make("rl2meta/BernoulliBandit-v0", num_arms=NUM_ARMS), num_episodes=base.pulls)

    batched = TrialVecEnv(_LAW, base.trials, base.pulls)
    envs = {
        "RecurrentPPO, TrialEnv": DummyVecEnv([trial] * base.trials),
        "RecurrentPPO, our batched environment": batched,
    }
    return {
        name: Workload(_recurrent_ppo(each, base, device), rival_of="rl2meta") for name, each in envs.items()
    }


def _recurrent_ppo(envs: Any, shape: Shape, device: torch.device) -> Callable[[], int]:
    from sb3_contrib import RecurrentPPO

    batch = shape.trials * shape.pulls
    model = RecurrentPPO(
        "MlpLstmPolicy",
        envs,
        n_steps=shape.pulls,
        batch_size=batch // MINIBATCHES,
        n_epochs=EPOCHS,
        device=device,
        policy_kwargs={
            "lstm_hidden_size": shape.hidden_size,
            "net_arch": [],
            "shared_lstm": True,
            "enable_critic_lstm": False,
        },
    )

    def unit() -> int:
        model.learn(batch, reset_num_timesteps=False)
        return batch

    return unit
