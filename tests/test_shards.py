"""Shards of a batch: what they add up to, against the whole batch and against plain formulas."""

from typing import Any

import gymnasium as gym
import pytest
import torch

from rl2meta.agents.maml_regression import MAMLRegressionConfig, maml_regression_learner
from rl2meta.agents.maml_trpo import MAMLTRPOConfig, MAMLTRPOLearner
from rl2meta.agents.reptile import ReptileConfig, ReptileLearner
from rl2meta.agents.rl2 import RL2Config, rl2_learner
from rl2meta.agents.rules import AdamRule
from rl2meta.envs.bandits import BernoulliBandits
from rl2meta.envs.navigation import PointNavigation
from rl2meta.envs.sinusoids import Sinusoids
from rl2meta.errors import UserError
from rl2meta.experiments.catalogue import AGENTS
from rl2meta.experiments.components import make_learner, read_config
from rl2meta.randomness import generator
from rl2meta.ranks import Ranks
from rl2meta.rollout import RolloutWorker
from rl2meta.shards import ALONE, Lost, Shards, set_gradients
from rl2meta.tasks import TaskDistribution, sample_tasks
from rl2meta.training import Budget, ShardedLearner, meta_train, refuse_shards
from rl2meta.trial import Trial
from rl2meta.units import ObservationUnits, RewardUnits

CPU = torch.device("cpu")
_FEW = ["agent.filters=2", "agent.episodes_per_phase=2", "distribution.ways=2", "distribution.size=8"]
SHIPPED = {
    "mlsh": [
        *("mlsh_moving_bandits", "distribution.name=point_navigation", "distribution.horizon=6"),
        *("distribution.goal_radius=0.4", "agent.hidden_sizes=[5]", "agent.duration=2", "agent.epochs=1"),
        *("agent.minibatches=1", "agent.episodes_per_phase=2", "agent.warm_up=1"),  # episodes end early
    ],
    "learned_optimiser": [
        *("learned_optimiser_quadratics", "distribution.dimension=4", "agent.episodes_per_phase=2"),
        *("agent.unroll=1", "agent.initial_deviation=1e-9"),  # so the draws of initial weights are alike
    ],
    "pretrained": ["pretrained_glyphs_5way_1shot", *_FEW],
    "classification": ["maml_glyphs_5way_1shot", *_FEW],
    "sequence": ["snail_glyphs_5way_1shot", *_FEW, "agent.features=4", "agent.core=lstm"],
}
"""A config and its settings."""


def learner_of(kind: str) -> tuple[TaskDistribution, Any]:
    """Return a family and a new learner; none of these draws anything in an update."""
    if kind in ("rl2", "all_actions"):
        law: Any = BernoulliBandits(num_arms=3)
        more: dict[str, Any] = {"surrogate": "all_actions"} if kind == "all_actions" else {}
        core: Any = {"name": "lstm", "hidden_size": 8}
        config = RL2Config(core=core, epochs=1, minibatches=1, max_gradient_norm=1e6, **more)
        return law, rl2_learner(law.observation_space, law.action_space, config)
    if kind == "maml_regression":
        law = Sinusoids()
        given = MAMLRegressionConfig(hidden_sizes=[8], episodes_per_phase=3)
        return law, maml_regression_learner(law.observation_space, law.action_space, given)
    if kind == "reptile":
        law = Sinusoids()
        moved = ReptileConfig(hidden_sizes=[8], episodes_per_phase=3, rule=AdamRule(), keep_moments=True)
        return law, ReptileLearner(law.observation_space, law.action_space, moved)
    if kind in SHIPPED:
        name, *settings = SHIPPED[kind]
        read = read_config(name, settings)
        return read.distribution, make_learner(read, CPU)
    law = PointNavigation(horizon=4)
    trpo = MAMLTRPOConfig(
        hidden_sizes=[8], episodes_per_phase=3, standardise=False, curvature_fraction=1.0, max_kl=0.05
    )
    return law, MAMLTRPOLearner(law.observation_space, law.action_space, trpo, dtype=torch.float64)


@pytest.mark.parametrize("kind", ["rl2", "all_actions", "maml_regression", "maml_trpo", "reptile", *SHIPPED])
def test_an_update_in_shards_is_that_of_the_whole_batch(kind: str) -> None:
    """Advantages, units, gradients, trust region: means over all shards are means over all tasks."""
    (law, whole), (_, parts) = learner_of(kind), learner_of(kind)
    assert isinstance(parts, ShardedLearner)
    trial = RolloutWorker(law).run(whole.agent, sample_tasks(law, 6, 0, "train"), 6, 0)
    told = whole.update(trial, 0.0, generator(0))
    shards = Shards(3)
    said = parts.update_shards(split(trial, 3), 0.0, [generator(0)] * 3, shards)
    assert said == pytest.approx(told, rel=1e-3, abs=1e-5)
    ours, theirs = whole.state_dict(), parts.state_dict()
    for name, tensor in ours.items():
        # Adam's first step is the sign of a gradient: where that is nearly zero, rounding decides.
        if not name.startswith(("network", "all_classes")) or kind == "maml_trpo":
            # Conjugate gradients make 1e-5 of a rounding, which is another one on other processors.
            torch.testing.assert_close(theirs[name], tensor, rtol=2e-3, atol=2e-5, msg=name)


def split(trial: Trial, number: int) -> list[Trial]:
    """Return the trials of the first tasks, of the next ones, and so on."""
    each = len(trial.tasks) // number
    lanes = trial.phases[0].mask.shape[1] // len(trial.tasks)
    parts = [slice(start * each, (start + 1) * each) for start in range(number)]
    return [
        Trial(
            trial.tasks[part],
            tuple(phase.columns(slice(part.start * lanes, part.stop * lanes)) for phase in trial.phases),
        )
        for part in parts
    ]


def test_shards_have_tasks_and_streams_of_their_own() -> None:
    """Together they have as many trials as a batch without shards, and no two are alike."""
    heard: list[tuple[list[Trial], list[int]]] = []

    class Listener:
        agent = learner_of("rl2")[1].agent

        def update(self, *given: Any) -> dict[str, float]:
            raise AssertionError("expected update_shards")

        def update_shards(self, trials: Any, progress: float, streams: Any, _: Shards) -> dict[str, float]:
            heard.append((trials, [int(torch.randint(10**9, (), generator=each)) for each in streams]))
            return {}

        def state_dict(self) -> dict[str, torch.Tensor]:
            return {}

        def load_state_dict(self, state: Any) -> None:
            pass

    law = BernoulliBandits(num_arms=3)
    rows: list[Any] = []
    keep: Any = lambda row: rows.append(row)  # noqa: E731
    meta_train(Listener(), law, RolloutWorker(law), Budget(2, 6, 5), 0, keep, shards=Shards(3))
    tasks: list[Any] = [trial.tasks for trials, _ in heard for trial in trials]
    assert torch.cat([each.parameters["means"] for each in tasks]).flatten().unique().numel() == 2 * 6 * 3
    assert len({draw for _, draws in heard for draw in draws}) == 2 * 3
    assert [row["env_steps"] for row in rows] == [30, 60]


def test_units_are_those_of_all_shards() -> None:
    shards, space = Shards(2), gym.spaces.Box(-float("inf"), float("inf"), (2,))
    seen, masks = torch.randn(2, 5, 4, 2) * 3 + 1, torch.rand(2, 5, 4) < 0.6
    units, rewards = ObservationUnits(space, True), RewardUnits()
    units.measure(list(seen), list(masks), shards)
    rewards.measure(list(seen[..., 0]), list(masks), shards)
    wanted = seen[masks].double()
    torch.testing.assert_close(units.centre, wanted.mean(dim=0))
    torch.testing.assert_close(units.scale, wanted.std(dim=0, correction=0))
    torch.testing.assert_close(rewards.centre, wanted[:, 0].mean())
    torch.testing.assert_close(rewards.scale, wanted[:, 0].std(correction=0))


def test_the_mean_is_added_in_the_order_of_the_shards() -> None:
    """In float32 the order shows: (1 + 1e8) − 1e8 is 0, and 1 + (1e8 − 1e8) is 1."""
    rows = [torch.tensor([1.0]), torch.tensor([1e8]), torch.tensor([-1e8])]
    assert float(Shards(3).mean(rows)) == 0.0
    assert float(Shards(3).mean(rows[1:] + rows[:1])) == pytest.approx(1 / 3)


def test_a_weight_without_a_gradient_in_some_shard_has_the_gradient_zero_there() -> None:
    """Weighted by what counts: 3 steps of the first shard, and 1 of the second, which does not use b."""
    a, b = (torch.nn.Parameter(torch.zeros(2)) for _ in range(2))
    losses = [
        lambda: Lost((2 * a + 4 * b).sum(), torch.tensor(3.0), {"x": torch.tensor(1.0)}),
        lambda: Lost(10 * a.sum(), torch.tensor(1.0), {"x": torch.tensor(5.0)}),
    ]
    told = set_gradients([a, b], losses, Shards(2))
    assert told["x"] == 2.0
    assert a.grad is not None and a.grad.tolist() == [4.0, 4.0]
    assert b.grad is not None and b.grad.tolist() == [3.0, 3.0]


def test_a_rank_owns_whole_shards() -> None:
    owned = [list(Shards(6, Ranks(number, 3)).own) for number in range(3)]
    assert owned == [[0, 1], [2, 3], [4, 5]]
    with pytest.raises(UserError, match=r"expected a multiple of the 4 ranks, got 6; use training.shards=8"):
        Shards(6, Ranks(0, 4))


def test_one_shard_calls_nothing() -> None:
    x = torch.randn(3)
    assert ALONE.mean([x]) is x and ALONE.gather([x])[0] is x and ALONE.names == [()]


def test_a_learner_that_knows_no_shards_is_refused(arms_in_turn: str) -> None:
    learner = make_learner(read_config("smoke", [f"agent.name={arms_in_turn}", "agent.lanes=1"]), CPU)
    refuse_shards(learner, ALONE)
    with pytest.raises(UserError, match=r"training.shards: expected 1 for NothingToLearn.*got 2"):
        refuse_shards(learner, Shards(2))


def test_every_agent_is_among_those_that_learn_from_shards_here() -> None:
    shipped = {read_config(name, settings).agent_name for name, *settings in SHIPPED.values()}
    assert {"rl2", "maml_trpo", "maml_regression", "reptile"} | shipped == set(AGENTS)


def test_shards_are_equal_parts_of_the_batch() -> None:
    with pytest.raises(
        UserError, match=r"training.shards: expected a divisor of training.trials_per_update=256, got 3"
    ):
        read_config("smoke", ["training.shards=3"])
