"""Our RL² and MAML-TRPO beside the same algorithms as jitted JAX programs, row by row."""

from collections.abc import Mapping

import torch

from rl2meta.agents.maml_trpo import MAMLTRPOConfig
from rl2meta.envs.tabular import TabularMDPs
from rl2meta.rollout import RolloutWorker
from rl2meta.speed.jax_process import JaxProcess
from rl2meta.speed.maml import BASE, MAMLShape, maml_suite
from rl2meta.speed.recurrent import EPOCHS, MINIBATCHES, NUM_ARMS, Shape, learner_of, train_suite
from rl2meta.speed.suites import Suite, Workload, training

ROWS: Mapping[str, Shape] = {
    "LSTM 48, n=10": Shape(1024, 10, 48),
    "LSTM 48, n=100": Shape(512, 100, 48),
    "LSTM 256, n=10": Shape(1024, 10, 256),
}
"""Shapes on five-armed bandits, by name."""
MDP_ROW = "MDPs, LSTM 128, n=10"
MDP_SHAPE = Shape(256, 10, 128)
"""On random MDPs of ten states, five actions and ten steps."""


def train_beside_jax(
    device: torch.device, *, rows: Mapping[str, Shape] = ROWS, on_mdps: Shape = MDP_SHAPE
) -> Suite:
    """Return whole updates of RL² on bandits and MDPs, each beside the JAX program that does the same."""
    (first, base), *others = rows.items()
    ours = dict(train_suite(device, base=base, growth=dict(others)).workloads)
    ours = {first: ours.pop("rl2meta"), **ours, MDP_ROW: _on_mdps(on_mdps, device)}
    shapes = {name: ("bandits", shape) for name, shape in rows.items()} | {MDP_ROW: ("mdps", on_mdps)}
    rivals = {f"JAX, {name}": _rl2(name, *each, device) for name, each in shapes.items()}
    setting = {"num_arms": NUM_ARMS, "epochs": EPOCHS, "minibatches": MINIBATCHES}
    title = f"RL² end to end beside JAX, {EPOCHS} epochs of {MINIBATCHES}"
    return Suite(title, setting, {**ours, **rivals})


def _on_mdps(shape: Shape, device: torch.device) -> Workload:
    law = TabularMDPs()
    learner = learner_of(shape, device, law)
    return Workload(
        training(learner, law, RolloutWorker(law, device), shape.trials, shape.pulls), shape._asdict()
    )


def _rl2(ours: str, law: str, shape: Shape, device: torch.device) -> Workload:
    options = {**shape._asdict(), "law": law, "epochs": EPOCHS, "minibatches": MINIBATCHES}
    return _rival(JaxProcess("rl2", device, **options), ours)


def maml_beside_jax(
    device: torch.device,
    *,
    episodes: int = 20,
    base: MAMLShape = BASE,
    config: MAMLTRPOConfig | None = None,
) -> Suite:
    """Return MAML-TRPO on navigation beside the JAX program that does the same."""
    suite = maml_suite(device, episodes=episodes, base=base, growth={}, config=config)
    process = JaxProcess("maml", device, episodes=episodes, **base._asdict())
    return suite._replace(workloads={**suite.workloads, "JAX": _rival(process, "rl2meta")})


def _rival(process: JaxProcess, ours: str) -> Workload:
    return Workload(process.unit, rival_of=ours, countable=False, here=False)
