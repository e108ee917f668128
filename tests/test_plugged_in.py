"""Single environments in the rest of the house: configs, tasks as data, oracles, Stable-Baselines3."""

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
import yaml
from gymnasium.utils.env_checker import check_env
from sb3_contrib import RecurrentPPO
from stable_baselines3.common.env_checker import check_env as sb3_check_env
from stable_baselines3.common.evaluation import evaluate_policy

from rl2meta.agents.cores.recurrent import LSTMConfig
from rl2meta.agents.maml_trpo import MAMLTRPOConfig, MAMLTRPOLearner
from rl2meta.agents.rl2 import RL2Config, rl2_learner
from rl2meta.envs.batched import TaskEnv
from rl2meta.errors import UserError
from rl2meta.evaluation import SINGLES_TOGETHER, evaluate
from rl2meta.experiments.components import COMPONENTS, make_worker, references_of
from rl2meta.experiments.config import Components, RunConfig, load_config
from rl2meta.experiments.rehearsal import rehearse
from rl2meta.experiments.scratch import learn_from_scratch
from rl2meta.interop import Predictor, TrialEnv
from rl2meta.revealed import Revealed
from rl2meta.rollout import RolloutWorker
from rl2meta.tasks import MappingTasks, sample_tasks
from rl2meta.workers import process
from rl2meta.workers.plugged_in import PluggedIn
from rl2meta.workers.settings import WorkerSettings

POLES = """
distribution:
  name: gymnasium
  id: CartPole-v1
  horizon: 20
  vary_attributes: {length: [0.25, 1.5], gravity: {log_uniform: [5, 20]}}
agent: {name: rl2, hidden_size: 8}
training: {updates: 2, trials_per_update: 4, episodes_per_trial: 2}
workers: {processes: 0}
"""


def load(*overrides: str) -> RunConfig:
    return load_config(POLES, "poles.yaml", overrides, COMPONENTS)


class Guess(gym.Env[Any, Any]):
    """One number is hidden, and what an action is off by is lost."""

    observation_space = gym.spaces.Box(-1, 1, (1,), np.float32)
    action_space = gym.spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self, number: float) -> None:
        self.number = number

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> Any:
        off = abs(float(action[0]) - self.number)
        return np.zeros(1, np.float32), -off, False, False, {"regret": off, "expected_reward": -off}


class Numbers:
    horizon = 3

    def sample(self, rng: np.random.Generator, split: str) -> dict[str, Any]:
        return {"number": float(rng.uniform(-1, 1))}

    def make_env(self, task: Any) -> Guess:
        return Guess(**task)

    def optimal_return(self, task: Any) -> float:
        return 0.0


NUMBERS = PluggedIn(Numbers(), WorkerSettings(processes=0))


# Tasks as data


def test_mappings_survive_json_to_the_bit() -> None:
    task = {
        "a": 0.1 + 0.2,
        "n": 3,
        "on": True,
        "none": None,
        "name": "x",
        "goal": np.array([[1.5, -2.0]], np.float32),
        "deep": {"list": [1, 2.5, [True]]},
    }
    tasks = MappingTasks((task, {**task, "n": np.int64(4)}))
    again = MappingTasks.from_dict(json.loads(json.dumps(tasks.to_dict())))
    assert again.to_dict() == tasks.to_dict()
    goal = again.entries[0]["goal"]
    assert goal.dtype == np.float32 and goal.tolist() == [[1.5, -2.0]]
    assert again.entries[0]["a"] == 0.1 + 0.2 and again.entries[1]["n"] == 4


def test_mappings_are_indexed_as_tensors_are() -> None:
    tasks = MappingTasks(tuple({"i": i} for i in range(4)))
    assert [task["i"] for task in tasks[torch.tensor([1, 0, 1, -1])].entries] == [1, 0, 1, 3]
    assert len(tasks[1:3]) == 2 and tasks.to(torch.device("cpu")) is tasks


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ([1.0], r"a mapping for a task, got list"),
        ({"env": object()}, r"numbers, strings, .* got object"),
        ({3: 1.0}, r"strings as the names in a task, got int 3"),
        ({"a": {"b": {1, 2}}}, r"got set"),
        ({"a": np.array(["x"])}, r"got ndarray"),
    ],
)
def test_tasks_that_are_no_data_are_refused(entry: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MappingTasks((entry,))


# Configs


def test_a_config_says_how_environments_are_run_only_where_they_are() -> None:
    written = yaml.safe_load(load().to_yaml())
    assert written["workers"] == {"processes": 0, "timeout": 60.0, "max_restarts": 20}
    batched = (
        "distribution: {name: bernoulli_bandits}\nagent: {name: rl2}\n" + POLES[POLES.index("training") :]
    )
    config = load_config(batched, "x", (), COMPONENTS)
    assert "workers" not in yaml.safe_load(config.to_yaml())


def test_where_environments_run_is_no_part_of_what_is_learnt() -> None:
    here, there = load(), load("workers.processes=2", "workers.timeout=5.0", "threads=1")
    assert here.identity() == there.identity()
    assert here.identity() != load("distribution.horizon=21").identity()


def test_a_config_that_was_written_reads_back_the_same() -> None:
    config = load()
    assert load_config(config.to_yaml(), "x", (), COMPONENTS).flat() == config.flat()


def test_the_horizon_of_an_id_is_written_out() -> None:
    config = load_config(POLES.replace("  horizon: 20\n", ""), "x", (), COMPONENTS)
    assert config.law.horizon == 500 and yaml.safe_load(config.to_yaml())["distribution"]["horizon"] == 500


def test_evaluations_keep_few_environments_side_by_side() -> None:
    config = load()
    worker = make_worker(config, torch.device("cpu"))
    made = []
    make_envs = worker.distribution.make_envs
    worker.distribution.make_envs = lambda n, device: made.append(n) or make_envs(n, device)  # type: ignore[method-assign]
    agent = references_of(config, 2)["random"].build()
    num_tasks = 2 * SINGLES_TOGETHER + 2
    held_out = sample_tasks(config.distribution, num_tasks, 0, "test")
    result = evaluate(agent, worker, held_out, 2, seed=0)
    assert result.rewards.shape == (num_tasks, 2)
    assert made == [SINGLES_TOGETHER, 2]  # those that are there are used again
    assert (result.steps > 5).all() and (result.rewards == result.steps).all()
    first = evaluate(agent, worker, held_out[:SINGLES_TOGETHER], 2, seed=0)
    assert np.array_equal(first.steps, result.steps[:SINGLES_TOGETHER])


# Truth, oracles, references


def test_the_truth_of_an_environment_reaches_the_evaluation() -> None:
    agent = references_of(load(), 2)  # defined on every family without references of its own
    assert list(agent) == ["random"]
    config = RL2Config(core=LSTMConfig(hidden_size=4))
    learner = rl2_learner(NUMBERS.observation_space, NUMBERS.action_space, config)
    held_out = sample_tasks(NUMBERS, 5, 0, "test")
    result = evaluate(learner.agent, RolloutWorker(NUMBERS), held_out, 2, seed=0)
    assert result.regrets is not None
    np.testing.assert_allclose(result.regrets, -result.rewards)
    assert NUMBERS.optimal_return(held_out).tolist() == [0.0] * 5  # type: ignore[union-attr]


def test_tasks_of_numbers_can_be_revealed() -> None:
    envs = Revealed(NUMBERS).make_envs(3, torch.device("cpu"))
    tasks = sample_tasks(NUMBERS, 3, 0, "train")
    told, _ = envs.reset(seed=0, options={"tasks": tasks})
    torch.testing.assert_close(told[:, 1], torch.tensor([task["number"] for task in tasks.entries]))
    with pytest.raises(UserError, match=r"expected tasks of numbers, which can be revealed, got str 'x'"):
        Revealed(PluggedIn(_Named(), WorkerSettings(processes=0))).observation_space  # noqa: B018


class _Named(Numbers):
    def sample(self, rng: np.random.Generator, split: str) -> dict[str, Any]:
        return {"number": 0.0, "name": "x"}

    def make_env(self, task: Any) -> Guess:
        return Guess(task["number"])


# Stable-Baselines3


def _trials(law: PluggedIn = NUMBERS, episodes: int = 2) -> TrialEnv:
    return TrialEnv(TaskEnv(law), num_episodes=episodes)


def test_the_checkers_accept_trials_on_a_plug_in() -> None:
    for checker in (check_env, sb3_check_env):
        checker(_trials(), skip_render_check=True)


def test_recurrent_ppo_trains_on_trials_of_a_plug_in() -> None:
    model = RecurrentPPO("MlpLstmPolicy", _trials(), n_steps=60, batch_size=60, seed=0)
    before = [parameter.clone() for parameter in model.policy.parameters()]
    model.learn(120)
    assert any(not torch.equal(a, b) for a, b in zip(before, model.policy.parameters(), strict=True))


@pytest.mark.parametrize("kind", ["rl2", "maml"])
def test_our_agents_in_evaluate_policy_earn_what_they_earn_in_a_rollout(kind: str) -> None:
    spaces = NUMBERS.observation_space, NUMBERS.action_space
    learner = (
        rl2_learner(*spaces, RL2Config(core=LSTMConfig(hidden_size=8)))
        if kind == "rl2"
        else MAMLTRPOLearner(*spaces, MAMLTRPOConfig(hidden_sizes=[8], episodes_per_phase=2))
    )
    held_out = sample_tasks(NUMBERS, 40, 0, "test")
    trials = TrialEnv(TaskEnv(NUMBERS), num_episodes=4, tasks=held_out)
    predictor = Predictor(learner.agent, *spaces)
    theirs, _ = evaluate_policy(
        predictor, trials, n_eval_episodes=40, deterministic=False, warn=False, return_episode_rewards=True
    )
    ours = evaluate(learner.agent, RolloutWorker(NUMBERS), held_out, 4, seed=0).returns()
    error = np.hypot(np.std(theirs), np.std(ours)) / np.sqrt(40)
    assert abs(np.mean(theirs) - np.mean(ours)) < 4 * error


def test_an_agent_learns_from_scratch_on_a_plug_in() -> None:
    result = learn_from_scratch(NUMBERS, sample_tasks(NUMBERS, 2, 0, "test"), num_episodes=4, seed=0)
    assert result.rewards.shape == (2, 4) and result.regrets is not None and (result.steps == 3).all()


def test_a_run_of_a_plug_in_is_loaded_from_python(tmp_path: Path) -> None:
    from rl2meta.commands.train import start_run
    from rl2meta.experiments.restore import load_run

    (tmp_path / "poles.yaml").write_text(POLES)
    assert start_run(str(tmp_path / "poles.yaml"), [], tmp_path / "run") == 0
    run = load_run(tmp_path / "run")
    assert isinstance(run.distribution, PluggedIn) and run.episodes_per_trial == 2


# What a review found


def _poles(processes: int = 0) -> PluggedIn:
    family = load("distribution.horizon=100").law.family
    return PluggedIn(family, WorkerSettings(processes=processes))


@pytest.mark.usefixtures("noted")
def test_maml_replays_what_it_did_where_phases_end_early() -> None:
    """The agent adapts to a phase as long as its longest episode, the learner to one that was padded."""
    law = _poles()
    config = MAMLTRPOConfig(hidden_sizes=[16], episodes_per_phase=3, inner_learning_rates=[1.0])
    learner = MAMLTRPOLearner(law.observation_space, law.action_space, config)
    trial = RolloutWorker(law).run(learner.agent, sample_tasks(law, 4, 0, "train"), 9, seed=1)
    lengths = [int(phase.mask.any(dim=1).sum()) for phase in trial.phases]
    assert (
        len(set(lengths)) > 1
        and max(lengths) < 100
        and all(len(phase.mask) == max(lengths) for phase in trial.phases)
    )
    rows = [learner.objective.rows(phase, 3) for phase in trial.phases]
    states = learner.inner.replay(dict(learner.meta.named_parameters()), rows)
    for state, seen, phase in zip(states, rows, trial.phases, strict=True):
        policy = learner.objective.distribution(learner.inner.outputs(state, seen.observation))
        recorded = phase.notes["log_prob"].reshape(len(phase.mask), 4, 3).permute(1, 2, 0).flatten(1)
        counted = seen.weight > 0
        torch.testing.assert_close(
            policy.log_prob(seen.label)[counted], recorded[counted], rtol=1e-5, atol=1e-5
        )


def test_learning_from_scratch_leaves_no_worker_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Any] = []
    start = process.WorkerProcess.__init__
    monkeypatch.setattr(
        process.WorkerProcess,
        "__init__",
        lambda self, *arguments: started.append(self) or start(self, *arguments),
    )
    law = _poles(processes=1)
    learn_from_scratch(law, sample_tasks(law, 3, 0, "test"), num_episodes=1, seed=0)
    assert len(started) >= 3 and all(worker._process.poll() is not None for worker in started)


class _Trouble(Numbers):
    """A family whose test tasks, or whose optimum, cannot be had."""

    def __init__(self, trouble: str) -> None:
        self.trouble = trouble

    def sample(self, rng: np.random.Generator, split: str) -> dict[str, Any]:
        if self.trouble == "exit":
            raise SystemExit(3)
        if split == "test" and self.trouble == "test":
            raise KeyError(split)
        return super().sample(rng, split)

    def optimal_return(self, task: Any) -> float:
        return float("many" if self.trouble == "optimum" else 0)


@pytest.mark.parametrize(
    ("trouble", "message"),
    [
        ("exit", r"sample: called sys.exit\(3\)"),
        ("test", r"sample: raised KeyError: 'test'"),
        ("optimum", r"optimal_return: raised ValueError: could not convert string to float: 'many'"),
    ],
)
def test_what_only_an_evaluation_needs_is_tried_before_training(trouble: str, message: str) -> None:
    law = PluggedIn(_Trouble(trouble), WorkerSettings(processes=0))
    config = replace(load(), law=law)
    with pytest.raises(UserError, match=message):
        rehearse(config, torch.device("cpu"))


def test_an_agent_whose_actions_are_no_numbers_is_to_blame() -> None:
    envs = NUMBERS.make_envs(2, torch.device("cpu"))
    envs.reset(seed=0)
    with pytest.raises(UserError, match=r"expected finite actions of the agent, .*policy has diverged"):
        envs.step(torch.full((2, 1), torch.nan))


def test_tasks_of_different_lengths_cannot_be_revealed() -> None:
    class Uneven(Numbers):
        def sample(self, rng: np.random.Generator, split: str) -> dict[str, Any]:
            return {"number": [0.0] * int(rng.integers(1, 4))}

        def make_env(self, task: Any) -> Guess:
            return Guess(len(task["number"]))

    envs = Revealed(PluggedIn(Uneven(), WorkerSettings(processes=0)))
    with pytest.raises(UserError, match=r"expected tasks of equally many numbers, got \[1, 2, 3\]"):
        Revealed.make_envs(envs, 12, torch.device("cpu")).reset(seed=0)


def test_workers_may_change_when_a_run_goes_on_and_nothing_else(tmp_path: Path) -> None:
    from rl2meta.commands.train import resume_run, start_run

    (tmp_path / "poles.yaml").write_text(POLES)
    start_run(str(tmp_path / "poles.yaml"), [], tmp_path / "run")
    assert resume_run(tmp_path / "run", None, ["workers.max_restarts=3"]) == 0
    with pytest.raises(UserError, match=r"no override but workers.KEY and .*, got agent.epochs=1"):
        resume_run(tmp_path / "run", None, ["workers.timeout=3.0", "agent.epochs=1"])


@dataclass
class _Odd(Numbers):
    """Fields that no config can hold."""

    where: Path = Path("x")
    table: Any = field(default_factory=lambda: np.zeros(2))
    names: set[str] = field(default_factory=set)


def test_a_family_with_odd_fields_is_written_as_it_was_given() -> None:
    components = Components({"odd": _Odd}, COMPONENTS.agents)
    text = (
        POLES[: POLES.index("distribution")] + "distribution: {name: odd}\n" + POLES[POLES.index("agent") :]
    )
    config = load_config(text, "x", (), components)
    assert yaml.safe_load(config.to_yaml())["distribution"] == {"name": "odd"}
    assert json.loads(json.dumps(config.identity()))
