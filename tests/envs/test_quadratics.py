"""Quadratics: the law of W and y, what a batch of guesses costs, and which rows are shown."""

from typing import Any

import pytest
import torch
from pydantic import ValidationError

from rl2meta.envs.checking import check_distribution
from rl2meta.envs.quadratics import Quadratics
from rl2meta.tasks import sample_tasks

CPU = torch.device("cpu")


@pytest.mark.parametrize("family", [Quadratics(dimension=3), Quadratics(2, "uniform")], ids=str)
def test_family_keeps_the_contract(family: Quadratics) -> None:
    check_distribution(family)  # it says that it is not steady: the rows of a task come one after another


def test_the_mean_loss_of_the_rows_is_the_quadratic() -> None:
    family = Quadratics(dimension=6)
    tasks: Any = sample_tasks(family, 5, 0, "test")
    envs = family.make_envs(5, CPU)
    theta = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))
    seen, _ = envs.reset(seed=0, options={"tasks": tasks})
    losses, rows = [], []
    for _ in range(12):
        rows.append(seen)
        seen, reward, *_ = envs.step((seen * theta).sum(dim=1, keepdim=True))
        losses.append(-reward)
    error = torch.einsum("nij,nj->ni", tasks.parameters["matrix"], theta) - tasks.parameters["vector"]
    for batch in (losses[:6], losses[6:]):
        torch.testing.assert_close(torch.stack(batch).mean(dim=0), error.square().sum(dim=1))
    torch.testing.assert_close(torch.stack(rows[:6]), torch.stack(rows[6:]))
    torch.testing.assert_close(torch.stack(rows[:6], dim=1), 6**0.5 * tasks.parameters["matrix"])


def test_lanes_of_a_task_share_its_rows() -> None:
    family = Quadratics(dimension=3)
    tasks = sample_tasks(family, 2, 0, "train")
    envs = family.make_envs(6, CPU)
    options = {
        "tasks": tasks[torch.arange(2).repeat_interleave(3)],
        "episodes_before": torch.arange(3).repeat(2),
    }
    seen, _ = envs.reset(seed=0, options=options)
    matrix: Any = tasks.parameters["matrix"]  # type: ignore[attr-defined]
    torch.testing.assert_close(seen.reshape(2, 3, 3), 3**0.5 * matrix)


@pytest.mark.parametrize(("law", "mean", "variance"), [("gaussian", 0.0, 1.0), ("uniform", 0.5, 1 / 12)])
def test_law_of_the_entries(law: Any, mean: float, variance: float) -> None:
    tasks: Any = sample_tasks(Quadratics(10, law), 2000, 0, "train")
    for entries in tasks.parameters.values():
        chance = 5 * (variance / entries.numel()) ** 0.5
        assert abs(float(entries.mean()) - mean) < chance
        assert abs(float(entries.var()) / variance - 1) < 0.05
    if law == "uniform":
        assert all(float(x.min()) >= 0 and float(x.max()) <= 1 for x in tasks.parameters.values())


@pytest.mark.parametrize("fault", [{"dimension": 0}, {"law": "cauchy"}, {"size": 3}], ids=str)
def test_nonsense_is_refused(fault: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Quadratics(**fault)
