"""MAML-TRPO end to end: rollout, adaptation and outer step, in whole meta-iterations."""

import torch

from rl2meta.agents.maml_trpo import MAMLTRPOConfig, MAMLTRPOLearner
from rl2meta.envs.navigation import PointNavigation
from rl2meta.rollout import RolloutWorker
from rl2meta.speed.suites import Contestant, Suite, training

TASKS, EPISODES, HIDDEN_SIZES = 20, 20, [64, 64]


def maml_suite(device: torch.device, against: str | None) -> Suite:
    """Return MAML-TRPO on 2-D navigation: a support and a query phase of 20 episodes on each of 20 tasks.

    As the agents' defaults have it, with a tenth of the steps for the metric; with all of them; and with
    more tasks, shorter episodes and wider layers.
    """
    contestants = {
        "rl2meta": _ours(device),
        "the metric on all steps": _ours(device, curvature_fraction=1.0),
        "100 tasks": _ours(device, tasks=100),
        "1,000 tasks": _ours(device, tasks=1000),
        "episodes of 50 steps": _ours(device, horizon=50),
        "two layers of 256": _ours(device, hidden_sizes=[256, 256]),
    }
    setting = {"tasks": TASKS, "episodes_per_phase": EPISODES, "phases": 2, "hidden_sizes": HIDDEN_SIZES}
    title = f"MAML-TRPO, navigation, {TASKS} tasks × {EPISODES} episodes × 100 steps × (support + query)"
    return Suite(f"{title}, 2×64 tanh", setting, contestants)


def _ours(
    device: torch.device,
    tasks: int = TASKS,
    horizon: int = 100,
    hidden_sizes: list[int] = HIDDEN_SIZES,
    curvature_fraction: float = 0.1,
) -> Contestant:
    law = PointNavigation(horizon=horizon)
    config = MAMLTRPOConfig(
        hidden_sizes=hidden_sizes, episodes_per_phase=EPISODES, curvature_fraction=curvature_fraction
    )
    learner = MAMLTRPOLearner(law.observation_space, law.action_space, config, device)
    setting = {
        "tasks": tasks,
        "horizon": horizon,
        "hidden_sizes": hidden_sizes,
        "curvature_fraction": curvature_fraction,
    }
    return Contestant(training(learner, law, RolloutWorker(law, device), tasks, 2 * EPISODES), setting)
