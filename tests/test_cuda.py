"""What must hold on a GPU; skipped where there is none."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.utils import parameters_to_vector

from rl2meta.agents.cores.recurrent import GRUConfig, LSTMConfig
from rl2meta.agents.cores.slot import SlotConfig
from rl2meta.agents.cores.snail import SNAILConfig
from rl2meta.agents.maml_trpo import MAMLTRPOConfig, MAMLTRPOLearner
from rl2meta.agents.ppo import PPO
from rl2meta.agents.references.bandits import bernoulli_references
from rl2meta.agents.references.catalogue import references_on
from rl2meta.agents.references.dependent_bandits import dependent_references
from rl2meta.agents.references.mazes import hidden_goal_references
from rl2meta.agents.references.reference import Reference
from rl2meta.agents.references.two_step import two_step_references
from rl2meta.agents.rl2 import RL2Config, rl2_learner
from rl2meta.cuda_graphs import GraphWorker
from rl2meta.devices import set_precision
from rl2meta.envs.bandits import BernoulliBandits
from rl2meta.envs.dependent_bandits import DependentBandits
from rl2meta.envs.few_shot import FewShot
from rl2meta.envs.mazes import DarkRooms, KeyToDoor
from rl2meta.envs.navigation import PointNavigation
from rl2meta.envs.tabular import TabularMDPs
from rl2meta.envs.two_step import TwoStep
from rl2meta.experiments.components import make_learner, read_config
from rl2meta.randomness import generator
from rl2meta.rollout import RolloutWorker, Stage, Worker
from rl2meta.speed.envs import env_suite
from rl2meta.speed.measuring import measure
from rl2meta.speed.recurrent import Shape, rollout_suite, train_suite
from rl2meta.tasks import sample_tasks
from rl2meta.training import Budget, meta_train
from rl2meta.trial import Trajectory, Trial, over_fields

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
BANDITS = BernoulliBandits(num_arms=5)


@pytest.fixture(autouse=True)
def _exact_products() -> None:
    set_precision("float32")  # as every command does


def _learner(device: str, core: Any = LSTMConfig) -> PPO:
    sizes = {name: 16 for name in ("hidden_size", "filters") if name in core.model_fields}
    config = RL2Config(core=core(**sizes))
    return rl2_learner(BANDITS.observation_space, BANDITS.action_space, config, device, seed=0)


def test_weights_and_tasks_are_those_of_the_cpu() -> None:
    ours, theirs = (_learner(device).network.state_dict() for device in ("cpu", "cuda"))
    assert all(torch.equal(ours[name], theirs[name].cpu()) for name in ours)


@pytest.mark.parametrize("core", [LSTMConfig, GRUConfig, SlotConfig, SNAILConfig])
def test_acting_agrees_with_the_fused_pass(core: Any) -> None:
    learner = _learner("cuda", core)
    tasks = sample_tasks(BANDITS, 64, 0, "train")
    (trajectory,) = RolloutWorker(BANDITS, "cuda").run(learner.agent, tasks, 10, 1).phases
    policy, _ = learner.network(learner.network.seen(trajectory.inputs, trajectory.most_steps))
    torch.testing.assert_close(
        policy.log_prob(trajectory.action), trajectory.notes["log_prob"], atol=1e-4, rtol=1e-4
    )


@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
def test_a_rollout_does_not_wait_for_the_device() -> None:
    learner, device = _learner("cuda"), torch.device("cuda")
    tasks = sample_tasks(BANDITS, 64, 0, "train").to(device)
    stage, source = Stage(BANDITS, device), generator(0, "agent", device=device)
    plan = learner.agent.phase.plan(3)
    with torch.no_grad():
        stage.live(learner.agent, tasks, plan, source, 0)  # the first run may set things up
        torch.cuda.set_sync_debug_mode("error")
        try:
            (trajectory,) = stage.live(learner.agent, tasks, plan, source, None)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert trajectory.reward.is_cuda and trajectory.notes["log_prob"].is_cuda


def test_a_cuda_graph_replays_the_rollout_of_its_tasks_and_its_seed() -> None:
    learner = _learner("cuda")
    plain, recording = RolloutWorker(BANDITS, "cuda"), GraphWorker(BANDITS, "cuda")
    for seed in (3, 4, 5):
        tasks = sample_tasks(BANDITS, 64, seed, "train")
        want, got = (worker.run(learner.agent, tasks, 10, seed) for worker in (plain, recording))
        (one,), (other,) = got.phases, want.phases
        for name in ("action", "reward"):
            assert torch.equal(getattr(one, name), getattr(other, name)), (seed, name)
        for name in ("log_prob", "value"):
            assert torch.equal(one.notes[name], other.notes[name]), (seed, name)
        learner.update(got, 0.0, torch.Generator())


def test_learns_by_replays_in_tf32_what_it_learns_without() -> None:
    exact = _learnt(RolloutWorker(BANDITS, "cuda"))
    set_precision("tf32")
    rounded = _learnt(GraphWorker(BANDITS, "cuda"))
    assert min(exact, rounded) > 6.2 and abs(exact - rounded) < 0.2


def _learnt(worker: Worker) -> float:
    curve: list[float] = []
    meta_train(
        _learner("cuda"),
        BANDITS,
        worker,
        Budget(60, 1024, 10),
        0,
        lambda row: bool(curve.append(row["mean_return"])),  # type: ignore[func-returns-value]
    )
    return sum(curve[-10:]) / 10


def test_the_benchmark_runs_on_the_gpu() -> None:
    base = Shape(64, 3, 16)
    shapes: dict[str, Any] = {"base": base, "growth": {"more": base._replace(trials=128)}}
    device = torch.device("cuda:0")
    for suite in (
        env_suite(device, tasks=128, bandit_tasks=(64,)),
        rollout_suite(device, **shapes),
        train_suite(device, **shapes),
    ):
        report = measure(suite, device, 0.1)
        assert all(min(each["env_steps_per_second"]) > 0 for each in report["contestants"].values())
        assert all(each["peak_memory_bytes"] >= 0 for each in report["contestants"].values())


def test_learns_on_the_gpu() -> None:
    learner, worker = _learner("cuda"), RolloutWorker(BANDITS, "cuda")
    returns: list[float] = []
    meta_train(
        learner,
        BANDITS,
        worker,
        Budget(60, 1024, 10),
        0,
        lambda row: bool(returns.append(row["mean_return"])),
    )
    assert sum(returns[-5:]) / 5 > sum(returns[:5]) / 5 + 0.3


MAML = {"discrete": TabularMDPs(), "continuous": PointNavigation(horizon=20)}


@pytest.mark.parametrize("kind", MAML)
def test_maml_adapts_and_learns_as_on_the_cpu(kind: str) -> None:
    """One outer step of the same trials: the gradient and what is measured agree up to rounding."""
    law: Any = MAML[kind]
    config = MAMLTRPOConfig(hidden_sizes=[8], episodes_per_phase=5)
    learners = {
        device: MAMLTRPOLearner(law.observation_space, law.action_space, config, device, dtype=torch.float64)
        for device in ("cpu", "cuda")
    }
    tasks = sample_tasks(law, 10, 0, "train")
    trial = RolloutWorker(law, "cuda").run(learners["cuda"].agent, tasks, 10, 0)
    trials = {"cuda": trial, "cpu": Trial(tasks, tuple(_on_cpu(phase) for phase in trial.phases))}
    gradients, metrics = {}, {}
    for device, learner in learners.items():
        x = parameters_to_vector(learner.meta.parameters()).detach()
        gradients[device] = learner.outer_problem(trials[device]).linearised(x).gradient.cpu()
        metrics[device] = learner.update(trials[device], 0.0, generator(0))
    torch.testing.assert_close(gradients["cuda"], gradients["cpu"], rtol=1e-6, atol=1e-9)
    assert metrics["cuda"] == pytest.approx(metrics["cpu"], rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("kind", ["maml", "reptile", "pretrained", "snail"])
def test_few_shot_agents_act_and_learn_as_on_the_cpu(kind: str) -> None:
    """Twice from the same trial: what is measured agrees, so the first update was the same, too."""
    sizes = ["distribution.queries=2", "agent.filters=4"]
    if kind == "reptile":
        sizes = ["distribution.queries=2", "agent.objective.filters=4", "agent.minibatch=null"]
        sizes.append("agent.training_steps=null")
    config = read_config(f"{kind}_glyphs_5way_1shot", [*sizes, "training.episodes_per_trial=15"])
    law = FewShot(queries=2)
    learners = {device: make_learner(config, torch.device(device)) for device in ("cpu", "cuda")}
    tasks = sample_tasks(law, 6, 0, "train")
    trial = RolloutWorker(law, "cuda").run(learners["cuda"].agent, tasks, 15, 0)
    there = RolloutWorker(law, "cpu").run(learners["cpu"].agent, tasks, 15, 0)
    trials = {"cuda": trial, "cpu": Trial(tasks, tuple(_on_cpu(phase) for phase in trial.phases))}
    pictures = [each.phases[2].inputs.observation for each in (trials["cpu"], there)]
    torch.testing.assert_close(*pictures, rtol=1e-3, atol=1e-3)
    alike = (trials["cpu"].phases[1].action == there.phases[1].action).float().mean()
    assert alike > 0.9  # a tie may fall the other way
    for _ in range(2):
        told = {name: learner.update(trials[name], 0.0, generator(0)) for name, learner in learners.items()}
        assert told["cuda"] == pytest.approx(told["cpu"], rel=1e-2, abs=1e-4)


def _on_cpu(phase: Trajectory) -> Trajectory:
    inputs = over_fields(lambda field: field.cpu(), phase.inputs)
    others = {name: value for name, value in vars(phase).items() if isinstance(value, Tensor)}
    named = {
        name: {key: value.cpu() for key, value in getattr(phase, name).items()} for name in ("notes", "truth")
    }
    return replace(phase, inputs=inputs, **{name: value.cpu() for name, value in others.items()}, **named)


FAMILIES = [
    (BANDITS, bernoulli_references(5, 10)),
    (BernoulliBandits(3, 0.2, 0.7), bernoulli_references(3, 10, 0.2, 0.7)),
    (DependentBandits(), dependent_references(None, 10)),
    (TwoStep(switch_probability=0.1), two_step_references(0.9, 0.1, 0.1)),
    (TabularMDPs(), references_on(TabularMDPs().model, TabularMDPs().action_space, 10)),
    (DarkRooms(), hidden_goal_references(*DarkRooms().layout_tables()[:3], 1)),
    (KeyToDoor(), hidden_goal_references(*KeyToDoor().layout_tables()[:3], 2)),
]


@pytest.mark.parametrize(
    ("family", "reference"),
    [
        pytest.param(family, reference, id=f"{type(family).__name__}-{name}")
        for family, references in FAMILIES
        for name, reference in references.items()
    ],
)
def test_references_score_as_on_the_cpu(family: Any, reference: Reference) -> None:
    tasks = sample_tasks(family, 4000, 0, "test")
    agent = reference.build()
    regrets = [
        RolloutWorker(family, device).run(agent, tasks, 10, 0).per_task("regret").sum(dim=1).cpu()  # type: ignore[union-attr]
        for device in ("cpu", "cuda")
    ]
    apart = regrets[0] - regrets[1]
    assert abs(float(apart.mean())) < 5 * float(apart.std()) / 4000**0.5 + 1e-4
