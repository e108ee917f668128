from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from rl2meta.agents.references.mazes import hidden_goal_references
from rl2meta.envs.mazes import DarkRooms, KeyToDoor
from rl2meta.evaluation import AgentResult, evaluate
from rl2meta.rollout import RolloutWorker
from rl2meta.tasks import TensorTasks, sample_tasks
from rl2meta.trial import TimeStep

CPU = torch.device("cpu")
ROOM, HALL = DarkRooms(size=5, horizon=10), KeyToDoor(size=4, horizon=20)
LAWS = pytest.mark.parametrize("law", [ROOM, HALL], ids=["dark_rooms", "key_to_door"])
PSRL = pytest.mark.parametrize("name", ["psrl", "psrl_resampling"])


def agent_of(law: Any, name: str) -> Any:
    layout = law.layout_tables()
    num_goals = 1 if isinstance(law, DarkRooms) else 2
    return hidden_goal_references(*layout[:3], num_goals)[name].build()


def run(law: Any, name: str, episodes: int = 10, num_tasks: int = 300, seed: int = 0) -> AgentResult:
    tasks = sample_tasks(law, num_tasks, 0, "train")
    return evaluate(agent_of(law, name), RolloutWorker(law), tasks, episodes, seed)


def all_tasks(law: Any) -> TensorTasks:
    parts = [law.tasks_of(split).parameters for split in ("train", "test")]
    return TensorTasks({name: torch.cat([part[name] for part in parts]) for name in parts[0]})


def first_step(observation: Tensor) -> TimeStep:
    n = len(observation)
    return TimeStep(observation, torch.zeros(n, 5), torch.zeros(n), torch.ones(n, dtype=torch.bool))


# What is known


@pytest.mark.parametrize("law", [DarkRooms(size=3, horizon=4), KeyToDoor(size=3, horizon=7)], ids=repr)
def test_the_belief_is_the_set_of_tasks_that_would_have_paid_the_same(law: Any) -> None:
    """All tasks side by side, the same actions in each: who saw the same so far cannot be told apart."""
    tasks, agent, source = all_tasks(law), agent_of(law, "psrl_resampling"), torch.Generator().manual_seed(0)
    where = torch.stack(list(tasks.parameters.values()), dim=1)  # [N, m]
    envs = law.make_envs(len(tasks), CPU)
    step = first_step(envs.reset(seed=0, options={"tasks": tasks})[0])
    carry = agent.begin(len(tasks), source)
    alike = torch.ones(len(tasks), len(tasks), dtype=torch.bool)
    for _ in range(120):
        _, carry, told = agent.act_and_tell(carry, step)
        believed = carry.possible[:, range(where.shape[1]), where].all(dim=2)  # [rows, tasks]
        assert torch.equal(believed, alike)
        likely = alike / alike.sum(dim=1, keepdim=True)  # of all tasks, by what was seen
        for goal, shown in enumerate(told.values()):
            cells = F.one_hot(where[:, goal], shown.each.shape[1]).float()
            torch.testing.assert_close(shown.each, likely @ cells)
        action = torch.randint(5, (1,), generator=source).expand(len(tasks))
        observation, reward, terminated, truncated, _ = envs.step(action)
        last = terminated | truncated
        alike &= (reward.unsqueeze(1) == reward) & (last.unsqueeze(1) == last)
        step = TimeStep(observation, F.one_hot(action, 5).float(), reward, last)
    singled_out = (alike.sum(dim=1) == 1).float().mean()
    assert singled_out > 0.5  # else too little happened to test anything


@LAWS
def test_guesses_are_uniform_over_the_tasks(law: Any) -> None:
    agent, num_rows, tasks = agent_of(law, "psrl"), 48_000, all_tasks(law)
    carry = agent.begin(num_rows, torch.Generator().manual_seed(0))
    start = torch.full((num_rows,), law.layout_tables().start)
    _, carry = agent.act(carry, first_step(start))
    drawn, counts = carry.guess.unique(dim=0, return_counts=True)
    assert len(drawn) == len(tasks)  # key and door never in one cell, and none left out
    expected = num_rows / len(tasks)
    assert (counts - expected).abs().max() < 5 * expected**0.5


# What is done


@LAWS
@PSRL
def test_what_was_found_is_never_lost(law: Any, name: str) -> None:
    episodes, everything = 40, 2 if isinstance(law, KeyToDoor) else 1
    trial = RolloutWorker(law).run(agent_of(law, name), sample_tasks(law, 300, 0, "train"), episodes, 1)
    (phase,) = trial.phases
    number = (phase.last.cumsum(dim=0) - phase.last.long()).clamp(max=episodes - 1)  # of the episode, [T, B]
    nothing = torch.zeros(episodes, 300)
    returns = nothing.scatter_add(0, number, phase.reward * phase.mask)
    regrets = nothing.scatter_add(0, number, phase.truth["regret"] * phase.mask)
    finds = (returns >= everything).long()
    found = finds.cumsum(dim=0) > finds  # in an earlier episode
    assert found[-1].float().mean() > (0.9 if name == "psrl_resampling" else 0.2)
    assert (regrets[found] == 0).all()
    assert (regrets[~found] > 0).any()


@LAWS
def test_resampling_beats_one_sample_an_episode_beats_chance(law: Any) -> None:
    chance, psrl, resampling = (run(law, n).returns() for n in ("random", "psrl", "psrl_resampling"))
    for worse, better in ((chance, psrl), (psrl, resampling)):
        gap = better - worse
        assert gap.mean() > 4 * gap.std() / len(gap) ** 0.5
    assert resampling.mean() > 3 * chance.mean()


def test_resampling_finds_every_goal() -> None:
    result = run(ROOM, "psrl_resampling", episodes=25)
    assert result.regrets is not None
    assert (result.regrets[:, -1] == 0).all()


@pytest.mark.parametrize(("name", "draws_anew"), [("psrl", False), ("psrl_resampling", True)])
def test_a_refuted_guess_is_drawn_anew_or_waited_on(name: str, draws_anew: bool) -> None:
    agent, start = agent_of(DarkRooms(size=3), name), torch.full((200,), 4)
    _, carry = agent.act(agent.begin(200, torch.Generator().manual_seed(0)), first_step(start))
    stayed = F.one_hot(torch.zeros_like(start), 5).float()
    in_vain = TimeStep(start, stayed, torch.zeros(200), torch.zeros(200, dtype=torch.bool))
    choice, after = agent.act(carry, in_vain)
    refuted = carry.guess[:, 0] == 4
    assert 0 < refuted.sum() < 200
    assert torch.equal((after.guess != carry.guess)[:, 0], refuted & draws_anew)
    assert torch.equal(choice.action == 0, refuted & (not draws_anew))


def test_the_door_is_not_sought_where_the_key_was_found() -> None:
    agent, start = agent_of(KeyToDoor(size=3), "psrl_resampling"), torch.full((500,), 4)
    _, carry = agent.act(agent.begin(500, torch.Generator().manual_seed(0)), first_step(start))
    up, above = F.one_hot(torch.ones_like(start), 5).float(), torch.ones_like(start)
    _, after = agent.act(carry, TimeStep(above, up, torch.ones(500), torch.zeros(500, dtype=torch.bool)))
    assert (carry.guess[:, 1] == 1).any()
    assert (after.guess[:, 0] == 1).all() and (after.guess[:, 1] != 1).all()
    right = carry.guess[:, 0] == 1
    assert right.any() and torch.equal(after.guess[right], carry.guess[right])  # what holds is not redrawn


def test_random_takes_every_action_equally_often() -> None:
    agent = agent_of(ROOM, "random")
    carry = agent.begin(10_000, torch.Generator().manual_seed(0))
    choice, _ = agent.act(carry, first_step(torch.zeros(10_000, dtype=torch.int64)))
    assert (choice.action.bincount(minlength=5) - 2000).abs().max() < 5 * 40


# The contract of agents


@LAWS
@pytest.mark.parametrize("name", ["random", "psrl", "psrl_resampling"])
def test_equal_seeds_give_equal_trials_and_others_do_not(law: Any, name: str) -> None:
    some, same, other = (run(law, name, 3, 50, seed) for seed in (5, 5, 6))
    assert (some.rewards == same.rewards).all()
    assert (some.rewards != other.rewards).any()


@LAWS
@PSRL
def test_the_carry_is_not_changed_in_place(law: Any, name: str) -> None:
    agent, tasks = agent_of(law, name), all_tasks(law)
    envs = law.make_envs(len(tasks), CPU)
    step = first_step(envs.reset(seed=0, options={"tasks": tasks})[0])
    carry = agent.begin(len(tasks), torch.Generator().manual_seed(0))
    for _ in range(2 * law.horizon):
        kept = [value.clone() for value in carry if isinstance(value, Tensor)]
        choice, after = agent.act(carry, step)
        assert all(
            torch.equal(value, copy)
            for value, copy in zip((v for v in carry if isinstance(v, Tensor)), kept, strict=True)
        )
        observation, reward, terminated, truncated, _ = envs.step(choice.action)
        step = TimeStep(observation, F.one_hot(choice.action, 5).float(), reward, terminated | truncated)
        carry = after
