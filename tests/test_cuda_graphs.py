"""Rollouts that are recorded and replayed; a stand-in replays where there is no GPU."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from rl2meta.agents.cores.recurrent import GRUConfig, LSTMConfig
from rl2meta.agents.cores.slot import SlotConfig
from rl2meta.agents.cores.snail import SNAILConfig
from rl2meta.agents.cores.transformer import TransformerConfig
from rl2meta.agents.maml_trpo import MAMLTRPOConfig, MAMLTRPOLearner
from rl2meta.agents.ppo import PPO
from rl2meta.agents.rl2 import RL2Config, rl2_learner
from rl2meta.cuda_graphs import GraphWorker
from rl2meta.envs.bandits import BernoulliBandits
from rl2meta.envs.navigation import PointNavigation
from rl2meta.envs.tabular import TabularMDPs
from rl2meta.errors import UserError
from rl2meta.experiments.components import make_training_worker, read_config
from rl2meta.revealed import Revealed
from rl2meta.rollout import RolloutWorker
from rl2meta.tasks import MappingTasks, TensorTasks, sample_tasks
from rl2meta.trial import Trial

CPU = torch.device("cpu")


class Echo:
    """What a CUDA graph does, by hand: the same reads and writes on the same memory, at every replay."""

    recorded = 0

    def __init__(self, play: Callable[[], Trial], generators: list[torch.Generator]) -> None:
        Echo.recorded += 1
        play()  # as a warm-up does
        self._play, self._trial = play, play()

    def replay(self) -> Trial:
        again = self._play()
        for mine, new in zip(_tensors(self._trial), _tensors(again), strict=True):
            mine.copy_(new)
        return self._trial


def _tensors(trial: Trial) -> list[Tensor]:
    found = []
    for phase in trial.phases:
        fields = [*phase.inputs, *phase.notes.values(), *phase.truth.values(), *vars(phase).values()]
        found += [field for field in fields if isinstance(field, Tensor)]
    return found


def _weights(learner: Any) -> list[Tensor]:
    return list((learner.meta if hasattr(learner, "meta") else learner.network).parameters())


def _rl2(law: Any) -> PPO:
    config = RL2Config(core=LSTMConfig(hidden_size=8))
    return rl2_learner(law.observation_space, law.action_space, config)


def _gru(law: Any) -> PPO:
    core = GRUConfig(hidden_size=8, previous_observation=True)
    return rl2_learner(law.observation_space, law.action_space, RL2Config(core=core))


def _slot(law: Any) -> PPO:
    config = RL2Config(core=SlotConfig(slot_size=6, hidden_size=8))
    return rl2_learner(law.observation_space, law.action_space, config)


def _transformer(law: Any) -> PPO:
    config = RL2Config(core=TransformerConfig(heads=2, head_size=4, num_layers=2))
    return rl2_learner(law.observation_space, law.action_space, config)


def _snail(law: Any) -> PPO:
    config = RL2Config(core=SNAILConfig(span=4, filters=4, key_size=4, value_size=4))
    return rl2_learner(law.observation_space, law.action_space, config)


def _maml(law: Any) -> MAMLTRPOLearner:
    config = MAMLTRPOConfig(hidden_sizes=[8], episodes_per_phase=3)
    return MAMLTRPOLearner(law.observation_space, law.action_space, config)


@pytest.mark.parametrize(
    ("law", "make", "episodes"),
    [
        (BernoulliBandits(num_arms=3), _rl2, 5),
        (TabularMDPs(num_states=3, num_actions=2, horizon=4), _rl2, 3),
        (TabularMDPs(num_states=3, num_actions=2, horizon=4), _gru, 3),
        (TabularMDPs(num_states=3, num_actions=2, horizon=4), _slot, 3),
        (TabularMDPs(num_states=3, num_actions=2, horizon=4), _transformer, 3),
        (TabularMDPs(num_states=3, num_actions=2, horizon=4), _snail, 3),
        (PointNavigation(horizon=6), _maml, 3),
    ],
    ids=[
        "bandits",
        "MDPs",
        "MDPs by a GRU",
        "MDPs by slots",
        "MDPs by a transformer",
        "MDPs by SNAIL",
        "navigation",
    ],
)
@pytest.mark.usefixtures("noted")
def test_a_replay_is_the_rollout_of_its_tasks_its_seed_and_the_weights_of_now(
    law: Any, make: Callable[[Any], Any], episodes: int
) -> None:
    learner = make(law)
    plain, recording = RolloutWorker(law), GraphWorker(law, CPU, Echo)
    Echo.recorded = 0
    for seed in (3, 4, 4, 5):
        tasks = sample_tasks(law, 7, seed, "train")
        assert isinstance(tasks, TensorTasks)
        kept = {name: value.clone() for name, value in tasks.parameters.items()}
        want = plain.run(learner.agent, tasks, episodes, seed)
        got = recording.run(learner.agent, tasks, episodes, seed)
        assert got.tasks is tasks and len(got.phases) == len(want.phases)
        assert set(got.phases[0].truth) == set(want.phases[0].truth)
        assert {"log_prob"} <= set(got.phases[0].notes) == set(want.phases[0].notes)
        for a, b in zip(_tensors(got), _tensors(want), strict=True):
            assert torch.equal(a, b)
        places = [value.data_ptr() for value in _weights(learner)]
        learner.update(got, 0.0, torch.Generator())
        assert places == [value.data_ptr() for value in _weights(learner)]  # a graph reads that memory
        assert all(torch.equal(kept[name], value) for name, value in tasks.parameters.items())
    assert Echo.recorded == 1


def test_another_size_or_another_agent_is_recorded_anew() -> None:
    law = BernoulliBandits(num_arms=3)
    worker, (one, other) = GraphWorker(law, CPU, Echo), (_rl2(law), _rl2(law))
    Echo.recorded = 0
    for learner, size, episodes in ((one, 4, 2), (one, 4, 2), (one, 5, 2), (one, 5, 3), (other, 5, 3)):
        trial = worker.run(learner.agent, sample_tasks(law, size, 0, "train"), episodes, 0)
        assert trial.phases[0].reward.shape == (episodes, size)
    assert Echo.recorded == 4


def test_what_cannot_be_recorded_is_refused() -> None:
    law = BernoulliBandits(num_arms=3)
    agent = _rl2(law).agent
    with pytest.raises(UserError, match="whose tasks are tensors"):
        GraphWorker(law, CPU, Echo).run(agent, MappingTasks(({},)), 2, 0)

    def asks(play: Callable[[], Trial], generators: list[torch.Generator]) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing")

    with pytest.raises(UserError, match=r"not permitted when .*; set cuda_graphs=false"):
        GraphWorker(law, CPU, asks).run(agent, sample_tasks(law, 2, 0, "train"), 2, 0)


def test_too_little_memory_is_not_taken_for_what_cannot_be_recorded() -> None:
    law = BernoulliBandits(num_arms=3)

    def full(play: Callable[[], Trial], generators: list[torch.Generator]) -> Any:
        try:
            raise RuntimeError("CUDA error: out of memory")
        finally:
            raise RuntimeError("the capture ended")  # as CUDA says at the end of every failed capture

    with pytest.raises(torch.OutOfMemoryError, match="out of memory"):
        GraphWorker(law, CPU, full).run(_rl2(law).agent, sample_tasks(law, 2, 0, "train"), 2, 0)


def test_an_agent_that_adapts_between_phases_is_refused() -> None:
    law = PointNavigation(horizon=6)
    tasks = sample_tasks(law, 2, 0, "train")
    with pytest.raises(UserError, match=r"in one phase, got 2 phases, .*cuda_graphs=false"):
        GraphWorker(law, CPU, Echo).run(_maml(law).agent, tasks, 6, 0)


def test_a_worker_that_was_closed_records_anew() -> None:
    law = BernoulliBandits(num_arms=3)
    agent, worker, tasks = _rl2(law).agent, GraphWorker(law, CPU, Echo), sample_tasks(law, 4, 0, "train")
    Echo.recorded = 0
    rewards = []
    for _ in range(2):
        rewards.append(worker.run(agent, tasks, 5, 1).phases[0].reward.clone())
        worker.close()
    assert Echo.recorded == 2 and torch.equal(*rewards)


def test_environments_that_cannot_be_seeded_apart_are_refused() -> None:
    law = Revealed(BernoulliBandits(num_arms=3))
    with pytest.raises(UserError, match=r"seeded without a reset, got _RevealedEnvs; set cuda_graphs=false"):
        GraphWorker(law, CPU, Echo).run(_rl2(law).agent, sample_tasks(law, 4, 0, "train"), 2, 1)


def test_a_training_on_a_cpu_is_told_to_do_without() -> None:
    with pytest.raises(UserError, match=r"cuda_graphs: expected a GPU, got device cpu"):
        make_training_worker(read_config("smoke", ["cuda_graphs=true"]), CPU)
    assert type(make_training_worker(read_config("smoke", []), CPU)) is RolloutWorker
