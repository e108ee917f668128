"""RL²: its config, its learner over any core, and what it learns; of pictures see test_pictures.py."""

import logging
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from rl2meta.agents.cores.recurrent import GRUConfig, LSTMConfig
from rl2meta.agents.ppo import PPO
from rl2meta.agents.rl2 import RL2Config, rl2_learner
from rl2meta.deprecation import deprecated
from rl2meta.envs.bandits import BernoulliBandits
from rl2meta.envs.tabular import TabularMDPs
from rl2meta.randomness import generator
from rl2meta.rollout import RolloutWorker
from rl2meta.tasks import TensorTasks, sample_tasks
from rl2meta.training import Budget, meta_train
from rl2meta.trial import Trial
from rl2meta.units import FORMER_UNITS

BANDITS = BernoulliBandits(num_arms=3)


def _learner(seed: int = 0, core: dict[str, object] | None = None, **settings: object) -> PPO:
    config = RL2Config.model_validate({"core": {"hidden_size": 8, **(core or {})}, **settings})
    return rl2_learner(BANDITS.observation_space, BANDITS.action_space, config, seed=seed)


def _trial(learner: PPO, tasks: int = 16, episodes: int = 6) -> Trial:
    return RolloutWorker(BANDITS).run(learner.agent, sample_tasks(BANDITS, tasks, 0, "train"), episodes, 1)


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture) -> Any:
    """What is logged of deprecated keys, as if nothing had been said in this process before."""
    deprecated.cache_clear()
    with caplog.at_level(logging.WARNING, logger="rl2meta"):
        yield lambda: [record.getMessage() for record in caplog.records]
    deprecated.cache_clear()


def test_the_default_core_is_an_lstm_and_every_core_starts_from_its_own_defaults(warnings: Any) -> None:
    assert RL2Config().core == LSTMConfig() == RL2Config.model_validate({"core": {}}).core
    assert RL2Config.model_validate({"core": {"name": "gru"}}).core == GRUConfig()
    sized = RL2Config.model_validate({"core": {"name": "gru", "hidden_size": 5}}).core
    assert sized == GRUConfig(hidden_size=5)
    assert RL2Config(core=GRUConfig(num_layers=2)).core == GRUConfig(num_layers=2)
    assert warnings() == []


FORMER = {"embedding_sizes": [6, 5], "previous_observation": True, "hidden_size": 8, "num_layers": 2}


@pytest.mark.parametrize(("key", "value"), FORMER.items())
def test_a_former_key_is_the_cores_and_is_said_once_to_be_deprecated(
    warnings: Any, key: str, value: object
) -> None:
    for _ in range(2):
        config = RL2Config.model_validate({key: value})
        assert config == RL2Config.model_validate({"core": {key: value}})
        assert getattr(config.core, key) == value != getattr(LSTMConfig(), key)
    assert warnings() == [f"agent.{key} is deprecated; use agent.core.{key}"]


def test_a_former_key_wins_over_the_cores_own_and_reaches_any_core(warnings: Any) -> None:
    both = {"core": {"name": "gru", "hidden_size": 3, "num_layers": 2}, "hidden_size": 8}
    assert RL2Config.model_validate(both).core == GRUConfig(hidden_size=8, num_layers=2)
    assert both["core"] == {"name": "gru", "hidden_size": 3, "num_layers": 2}  # what was given stays
    assert RL2Config.model_validate(FORMER).core == LSTMConfig.model_validate(FORMER)
    assert len(warnings()) == 4  # one for each key


@pytest.mark.parametrize(
    ("key", "value"),
    [("hidden_size", 0), ("num_layers", 101), ("embedding_sizes", [0]), ("previous_observation", "yes")],
)
def test_a_former_key_of_a_bad_value_is_refused_by_name(warnings: Any, key: str, value: object) -> None:
    with pytest.raises(ValidationError, match=key) as caught:
        RL2Config.model_validate({key: value})
    assert key in caught.value.errors()[0]["loc"]


@pytest.mark.parametrize(
    "bad",
    [
        {"hidden_size": 0},
        {"learning_rate": float("nan")},
        {"learning_rate": -1.0},
        {"discount": 1.1},
        {"clip_range": float("inf")},
        {"reward_signal": "expexted"},
        {"epochs": 2.5},
        {"hidden": 3},
        {"core": {"hidden_size": 0}},
        {"core": {"hidden": 3}},
        {"core": {"name": "lstn"}},
        {"core": "transformers"},
        {"core": None},
    ],
)
def test_bad_settings_are_refused(bad: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        RL2Config.model_validate(bad)


def test_weights_depend_on_the_seed_alone_and_leave_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    a, b, c = _learner(seed=1), _learner(seed=1), _learner(seed=2)
    assert torch.equal(before, torch.get_rng_state())
    weights = [each.network.core.lstm.weight_hh_l0 for each in (a, b, c)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize("signal", ["sampled", "expected", "regret"])
def test_learns_which_of_two_arms_pays(signal: str) -> None:
    """Means 0 and 1 in either order: after one pull everything is known, 9.5 of 10 is optimal."""

    class Certain(BernoulliBandits):
        def sample(self, num_tasks: int, generator: torch.Generator, split: str) -> TensorTasks:
            first = torch.randint(2, (num_tasks, 1), generator=generator).float()
            return TensorTasks({"means": torch.cat([first, 1 - first], dim=1)})

    distribution = Certain(num_arms=2)
    config = RL2Config.model_validate(
        {"core": {"hidden_size": 16}, "reward_signal": signal, "learning_rate": 0.01}
    )
    learner = rl2_learner(distribution.observation_space, distribution.action_space, config)
    worker = RolloutWorker(distribution)
    meta_train(learner, distribution, worker, Budget(50, 64, 10), 0, lambda row: False)
    tasks = sample_tasks(distribution, 500, 0, "test")
    rewards = worker.run(learner.agent, tasks, 10, 5).per_task("expected_reward")
    assert rewards is not None and rewards.sum(dim=1).mean() > 9.0


def test_on_vectors_the_network_is_what_it_was() -> None:
    """Names and order of what a checkpoint holds; no encoder is built, and none drawn."""
    network, measured = _learner(**FORMER_UNITS).network, _learner().network
    lstm = [f"core.lstm.{name}_l0" for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
    heads = [f"{head}.{name}" for head in ("policy.linear", "value") for name in ("weight", "bias")]
    assert list(network.state_dict()) == ["reward_scale", *lstm, *heads]
    units = ["reward_units.centre", "reward_units.scale"]
    assert list(measured.state_dict()) == ["reward_scale", "reward_centre", *lstm, *units, *heads]
    assert [name for name, _ in network.named_parameters()] == [*lstm, *heads]


@pytest.mark.parametrize("tasks", [16, 80])
def test_embedding_and_recalling_act_as_they_are_replayed(tasks: int) -> None:
    law = TabularMDPs(num_states=4, num_actions=3, horizon=5)
    core = {"hidden_size": 8, "embedding_sizes": [6, 5], "previous_observation": True}
    config = RL2Config.model_validate({"core": core})
    learner = rl2_learner(law.observation_space, law.action_space, config)
    (trajectory,) = RolloutWorker(law).run(learner.agent, sample_tasks(law, tasks, 0, "train"), 3, 1).phases
    policy, _ = learner.network(learner.network.seen(trajectory.inputs))
    torch.testing.assert_close(
        policy.log_prob(trajectory.action), trajectory.notes["log_prob"], atol=1e-5, rtol=1e-5
    )
    learner.update(Trial(sample_tasks(law, tasks, 0, "train"), (trajectory,)), 0.0, torch.Generator())
    moved = dict(learner.network.named_parameters())
    embedding = [value for name, value in moved.items() if name.startswith("core.input.embedding.")]
    assert len(embedding) == 4 and all(value.grad is not None for value in embedding)


def _former(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a checkpoint's tensors by the names of 0.1."""
    return {name.replace("network.core.input.", "network."): tensor.clone() for name, tensor in state.items()}


def test_a_checkpoint_with_the_names_of_earlier_versions_goes_on_with_the_same_bits() -> None:
    ours, twin = (_learner(seed, {"embedding_sizes": [6, 5]}) for seed in (0, 9))
    trial = _trial(ours)
    ours.update(trial, 0.0, generator(0, "first"))
    former = _former(ours.state_dict())
    assert "network.embedding.0.weight" in former and not any("core.input" in name for name in former)
    names = set(former)
    twin.load_state_dict(former)
    assert set(former) == names  # what was handed over stays
    metrics = [learner.update(trial, 0.5, generator(0, "second")) for learner in (ours, twin)]
    assert metrics[0] == metrics[1]


def test_a_checkpoint_of_another_core_is_refused() -> None:
    with pytest.raises(RuntimeError, match=r"core\.gru\.weight_ih_l0"):
        _learner(core={"name": "gru"}).load_state_dict(_learner().state_dict())
