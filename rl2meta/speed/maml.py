"""MAML-TRPO end to end: whole meta-iterations of rollout, adaptation and outer step."""

from collections.abc import Mapping
from typing import NamedTuple

import torch

from rl2meta.agents.maml_trpo import MAMLTRPOConfig, MAMLTRPOLearner
from rl2meta.envs.navigation import PointNavigation
from rl2meta.rollout import RolloutWorker
from rl2meta.speed.suites import Suite, Workload, training


class MAMLShape(NamedTuple):
    """The size of a meta-iteration.

    Attributes:
        tasks: tasks of a meta-iteration.
        horizon: steps of an episode.
        hidden_sizes: units of each layer of the policy.
        curvature_fraction: the fraction of the steps that measure the outer step's metric.
    """

    tasks: int = 20
    horizon: int = 100
    hidden_sizes: tuple[int, ...] = (64, 64)
    curvature_fraction: float = 0.1


BASE = MAMLShape()
GROWTH: Mapping[str, MAMLShape] = {
    "the metric on all steps": BASE._replace(curvature_fraction=1.0),
    "100 tasks": BASE._replace(tasks=100),
    "1,000 tasks": BASE._replace(tasks=1000),
    "episodes of 50 steps": BASE._replace(horizon=50),
    "two layers of 256": BASE._replace(hidden_sizes=(256, 256)),
}
"""The shapes that are measured beside ``BASE``, by name."""


def maml_suite(
    device: torch.device,
    *,
    episodes: int = 20,
    base: MAMLShape = BASE,
    growth: Mapping[str, MAMLShape] = GROWTH,
    config: MAMLTRPOConfig | None = None,
) -> Suite:
    """Return MAML-TRPO on 2-D navigation, with a support and a query phase on each task.

    Args:
        device: the device of the environments and the learner.
        episodes: episodes of each phase.
        base: the shape of the first workload.
        growth: the shapes of the other workloads, by name.
        config: the hyper-parameters that no shape names; None for the agent's defaults.
    """
    config = config or MAMLTRPOConfig()
    workloads = {
        name: _ours(shape, config.model_copy(update={"episodes_per_phase": episodes}), device)
        for name, shape in {"rl2meta": base, **growth}.items()
    }
    setting = {
        "tasks": base.tasks,
        "episodes_per_phase": episodes,
        "phases": 2,
        "hidden_sizes": list(base.hidden_sizes),
    }
    sizes = f"{base.tasks} tasks × {episodes} episodes × {base.horizon} steps"
    layers = f"{len(base.hidden_sizes)}×{base.hidden_sizes[0]} tanh"
    title = f"MAML-TRPO, navigation, {sizes} × (support + query), {layers}"
    return Suite(title, setting, workloads)


def _ours(shape: MAMLShape, config: MAMLTRPOConfig, device: torch.device) -> Workload:
    law = PointNavigation(horizon=shape.horizon)
    setting = {**shape._asdict(), "hidden_sizes": list(shape.hidden_sizes)}
    sizes = {key: setting[key] for key in ("hidden_sizes", "curvature_fraction")}
    config = config.model_copy(update=sizes)
    learner = MAMLTRPOLearner(law.observation_space, law.action_space, config, device)
    unit = training(learner, law, RolloutWorker(law, device), shape.tasks, 2 * config.episodes_per_phase)
    return Workload(unit, setting)
