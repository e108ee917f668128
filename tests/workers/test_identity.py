"""Wherever environments are stepped, they live through the same, to the bit."""

import logging
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from walks import Counted, MovedWalks, QuietWalks, SelfishWalks, Walks

from rl2meta.agents.maml_trpo import MAMLTRPOConfig, MAMLTRPOLearner
from rl2meta.envs.checking import check_distribution
from rl2meta.envs.gym_tasks import GymnasiumTasks
from rl2meta.evaluation import evaluate
from rl2meta.parts import at_most
from rl2meta.randomness import derive
from rl2meta.rollout import RolloutWorker
from rl2meta.tasks import MappingTasks, sample_tasks
from rl2meta.workers.plugged_in import PluggedIn
from rl2meta.workers.settings import WorkerSettings

SEED, LANES, STEPS = 11, 5, 17


def plugged(family: Any, processes: int = 0, **settings: Any) -> PluggedIn:
    return PluggedIn(family, WorkerSettings(processes=processes, **settings))


def actions(trial: int) -> torch.Tensor:
    """What is done in every step and lane of a trial, [STEPS, LANES]; the agents' actions start at 0."""
    return torch.randint(3, (STEPS, LANES), generator=torch.Generator().manual_seed(trial))


def rollout(law: PluggedIn, trials: int = 3) -> list[list[dict[str, torch.Tensor]]]:
    """Every trial's steps: the first on the seed, the others on further tasks of the same seed."""
    envs, played = law.make_envs(LANES, torch.device("cpu")), []
    for trial in range(trials):
        tasks = sample_tasks(law, LANES, trial, "train")
        observation, _ = envs.reset(seed=None if trial else SEED, options={"tasks": tasks})
        steps = [{"observation": observation}]
        for action in actions(trial):
            observation, reward, terminated, truncated, info = envs.step(action)
            flags = {"terminated": terminated, "truncated": truncated}
            steps.append({"observation": observation, "reward": reward, **flags, **info})
        played.append(steps)
    envs.close()
    return played


def by_hand(law: PluggedIn, trial: int) -> list[dict[str, torch.Tensor]]:
    """One trial, each environment stepped on its own: what the workers should have come to."""
    lanes = []
    for lane, task in enumerate(sample_tasks(law, LANES, trial, "train").entries):
        env, row, elapsed = law.family.make_env(dict(task)), [], 0
        observation, _ = env.reset(seed=derive(SEED, "trial", trial, lane) >> 32)
        row.append({"observation": observation})
        for action in actions(trial)[:, lane].tolist():
            observation, reward, terminated, truncated, info = env.step(action - 1)
            elapsed += 1
            truncated = not terminated and (truncated or elapsed == law.horizon)
            final = observation
            if terminated or truncated:
                observation, elapsed = env.reset()[0], 0
            flags = {"terminated": terminated, "truncated": truncated}
            row.append({"observation": observation, "reward": reward, **flags, "final_obs": final, **info})
        lanes.append(row)
    return [
        {name: stacked([lane[i][name] for lane in lanes]) for name in lanes[0][i]} for i in range(STEPS + 1)
    ]


def stacked(values: list[Any]) -> torch.Tensor:
    tensor = torch.from_numpy(np.stack(values))
    return tensor.float() if tensor.is_floating_point() else tensor


def assert_same(some: list[dict[str, torch.Tensor]], others: list[dict[str, torch.Tensor]]) -> None:
    for ours, theirs in zip(some, others, strict=True):
        assert ours.keys() == theirs.keys()
        for name in ours:
            assert ours[name].dtype == theirs[name].dtype and torch.equal(ours[name], theirs[name]), name


@pytest.mark.parametrize("processes", [0, 1, 2, 3])
def test_any_number_of_processes_plays_what_a_plain_loop_does(processes: int) -> None:
    law = plugged(Walks(), processes)
    played = rollout(law)
    for trial, steps in enumerate(played):
        assert_same(steps, by_hand(law, trial))
    assert any(step["terminated"].any() for step in played[0][1:])  # else little was tried out
    assert any(step["truncated"].any() for steps in played for step in steps[1:])


@pytest.mark.parametrize("lanes", [1, 3])
def test_no_number_of_processes_or_of_tasks_at_a_time_changes_an_evaluation(lanes: int) -> None:
    config = MAMLTRPOConfig(hidden_sizes=[16], episodes_per_phase=lanes, inner_learning_rates=[1.0])
    law = plugged(Walks())
    agent = MAMLTRPOLearner(law.observation_space, law.action_space, config).agent
    tasks = sample_tasks(law, 108, 0, "test")

    def lived(processes: int) -> Any:
        worker = RolloutWorker(plugged(Walks(), processes))
        result = evaluate(agent, worker, tasks, 2 * lanes, seed=0)
        worker.close()
        return result

    whole = lived(0)
    numbers = agent.numbers_per_task(RolloutWorker(law).run(agent, tasks[:1], lanes, 0).phases[0])
    others = [lived(3)]
    with at_most(16 * numbers):
        others += [lived(0), lived(2)]
    for other in others:
        for name in ("rewards", "regrets", "steps"):
            assert np.array_equal(getattr(other, name), getattr(whole, name))


@pytest.mark.parametrize("family", [MovedWalks(), SelfishWalks()])
def test_environments_that_are_used_again_or_write_into_their_tasks_change_nothing(family: Any) -> None:
    alone, together = rollout(plugged(family)), rollout(plugged(family, 2))
    for some, others in zip(alone, together, strict=True):
        assert_same(some, others)
    if isinstance(family, MovedWalks):
        for some, others in zip(alone, rollout(plugged(Walks())), strict=True):
            assert_same(some, others)


def test_lanes_on_one_task_do_not_share_it() -> None:
    """Two lanes on the same mapping, whose environments write into it."""
    task = {"drift": 0.0, "end": 0.1}
    tasks = MappingTasks((task, task))
    for processes in (0, 1, 2):
        envs = plugged(SelfishWalks(), processes).make_envs(2, torch.device("cpu"))
        envs.reset(seed=0, options={"tasks": tasks})
        observation = torch.stack([envs.step(torch.ones(2, dtype=torch.int64))[0] for _ in range(6)])
        envs.close()
        if processes == 0:
            expected = observation
        assert torch.equal(observation, expected)
    assert task == {"drift": 0.0, "end": 0.1}


def test_a_worker_does_not_import_torch() -> None:
    sheltered = GymnasiumTasks("walks:WorkersSheltered-v0", vary_kwargs={"size": [0, 1]})  # type: ignore[arg-type, call-arg]
    for family, processes, expected in ((Counted(), 1, 0.0), (Counted(), 0, 1.0), (sheltered, 1, 0.0)):
        envs = plugged(family, processes).make_envs(2, torch.device("cpu"))
        envs.reset(seed=0)
        observation, *_ = envs.step(torch.ones(2, dtype=torch.int64))
        envs.close()
        assert observation[:, 0].tolist() == [expected] * 2


@pytest.mark.parametrize("processes", [0, 1])  # a worker is started some thirty times
def test_plugged_in_families_keep_the_contract(processes: int) -> None:
    check_distribution(plugged(QuietWalks(2), processes), num_tasks=3)


@pytest.mark.parametrize("processes", [0, 1])
def test_closed_environments_say_so(processes: int, caplog: pytest.LogCaptureFixture) -> None:
    envs = plugged(Walks(), processes).make_envs(2, torch.device("cpu"))
    with pytest.raises(gym.error.ResetNeeded):
        envs.step(torch.zeros(2, dtype=torch.int64))
    envs.reset(seed=0)
    envs.close()
    envs.close()
    with pytest.raises(gym.error.ResetNeeded):
        envs.step(torch.zeros(2, dtype=torch.int64))
    with pytest.raises(gym.error.ClosedEnvironmentError):
        envs.reset(seed=0)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
