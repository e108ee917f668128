"""Where sub-policies go, on ones that are known to go to their point."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rl2meta.agents.mlsh import MLSHConfig, MLSHLearner
from rl2meta.envs.moving_bandits import MovingBandits
from rl2meta.errors import UserError
from rl2meta.experiments.components import make_learner, read_config
from rl2meta.experiments.motion_fields import draw, places
from rl2meta.experiments.run import Run
from rl2meta.networks import Categorical

LAW = MovingBandits()


def run_to(*goals: int, overrides: tuple[str, ...] = ()) -> Run:
    """A run whose sub-policy k walks to the point goals[k]: first along x, then along y."""
    config = read_config("mlsh_moving_bandits", ["device=cpu", *overrides])
    learner = MLSHLearner(LAW.observation_space, LAW.action_space, MLSHConfig(num_sub_policies=len(goals)))

    def chosen(sub_policy: Tensor, observation: Tensor, legal: Any = None) -> Any:
        points = observation[:, 2:].reshape(-1, 2, 2)
        x, y = (points[torch.arange(len(points)), torch.tensor(goals)[sub_policy]] - observation[:, :2]).T
        along_x = torch.where(x > 0, 1, 2)
        along_y = torch.where(y.abs() < 0.1, 0, torch.where(y > 0, 3, 4))
        action = torch.where(x.abs() < 0.1, along_y, along_x)
        return Categorical(50.0 * torch.nn.functional.one_hot(action, 5)), x

    learner.network.chosen = chosen  # type: ignore[method-assign]
    return Run(config, learner)


@pytest.mark.parametrize("goals", [(0, 1), (1, 0)])
def test_sub_policies_that_go_to_their_points_are_apart(goals: tuple[int, ...]) -> None:
    found = places(run_to(*goals), num_tasks=300)
    assert found.apart > 0.97
    for k, goal in enumerate(goals):
        assert found.shares[k, goal] == 1 and found.shares[k, 1 - goal] < 0.2


def test_sub_policies_that_go_to_one_point_are_not() -> None:
    assert places(run_to(1, 1), num_tasks=300).apart == 0


@pytest.mark.usefixtures("rendered")
def test_the_picture_shows_every_sub_policy(tmp_path: Path) -> None:
    draw(run_to(0, 1, 0), tmp_path / "fields.png", num_tasks=1)
    assert (tmp_path / "fields.png").stat().st_size > 20_000


@pytest.mark.usefixtures("rendered")
def test_points_that_every_episode_draws_anew_are_drawn_too(tmp_path: Path) -> None:
    draw(run_to(0, 1, overrides=("distribution.redraw=true",)), tmp_path / "fields.png", num_tasks=2)
    assert (tmp_path / "fields.png").stat().st_size > 20_000


def test_another_agent_is_refused() -> None:
    config = read_config("rl2_moving_bandits", ["device=cpu"])
    run = Run(config, make_learner(config, torch.device("cpu")))
    with pytest.raises(UserError, match="expected a run of mlsh on moving_bandits, got PPOAgent on"):
        places(run)
