"""MAML-TRPO end to end: rollout, adaptation and outer step, in whole meta-iterations."""

import torch

from rl2meta.agents.maml_trpo import MAMLTRPOConfig, MAMLTRPOLearner
from rl2meta.commands.suites import Contestant, Suite, training
from rl2meta.envs.navigation import PointNavigation

TASKS, EPISODES, HIDDEN_SIZES = 20, 20, [64, 64]


def maml_suite(device: torch.device, against: str | None) -> Suite:
    """Return MAML-TRPO on 2-D navigation: a support and a query phase of 20 episodes on each of 20 tasks.

    As the agents' defaults have it, with a tenth of the steps for the metric; and with all of them.
    """
    contestants = {
        "rl2meta": _ours(device, MAMLTRPOConfig().curvature_fraction),
        "rl2meta, the metric on all steps": _ours(device, 1.0),
    }
    setting = {"tasks": TASKS, "episodes_per_phase": EPISODES, "phases": 2, "hidden_sizes": HIDDEN_SIZES}
    title = f"MAML-TRPO, navigation, {TASKS} tasks × {EPISODES} episodes × 100 steps × (support + query)"
    return Suite(f"{title}, 2×64 tanh", setting, contestants)


def _ours(device: torch.device, fraction: float) -> Contestant:
    law = PointNavigation()
    config = MAMLTRPOConfig(
        hidden_sizes=HIDDEN_SIZES, episodes_per_phase=EPISODES, curvature_fraction=fraction
    )
    learner = MAMLTRPOLearner(law.observation_space, law.action_space, config, device)
    return training(learner, law, device, TASKS, 2 * EPISODES)
