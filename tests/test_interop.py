"""Trials as Gymnasium episodes, and agents behind SB3's predict."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from sb3_contrib import RecurrentPPO
from stable_baselines3.common.env_checker import check_env as sb3_check_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor, VecNormalize
from torch import Tensor

import rl2meta.envs  # noqa: F401 - registers the ids
from rl2meta.agents.rl2 import RL2Config, rl2_learner
from rl2meta.envs.bandits import BernoulliBandits
from rl2meta.envs.batched import TaskEnv
from rl2meta.experiments.components import AGENTS
from rl2meta.interop import Predictor, TrialEnv
from rl2meta.rollout import RolloutWorker
from rl2meta.tasks import TensorTasks, sample_tasks
from rl2meta.trial import Choice, Phase, TimeStep, Trajectory


def lengths(*values: int) -> TensorTasks:
    return TensorTasks({"length": torch.tensor(values)})


def certain_means(*rows: list[float]) -> TensorTasks:
    return TensorTasks({"means": torch.tensor(rows)})


# TrialEnv


def test_fields_across_episodes_and_trials(corridor: Any) -> None:
    env = TrialEnv(TaskEnv(corridor(horizon=3, noise=0.0)), num_episodes=2, tasks=lengths(1, 3))
    #                                observation, previous action, previous reward, first
    zero = [0, 0, 0, 0, 1]
    # task 1 of length 1: arrive at once; stay for an episode that is cut at the horizon
    assert env.reset(seed=0)[0].tolist() == zero
    expected = [
        (1, [0, 0, 1, 1, 1], 1.0, False),
        (0, [0, 1, 0, 0, 0], 0.0, False),
        (0, [0, 1, 0, 0, 0], 0.0, False),
        (0, [0, 1, 0, 0, 0], 0.0, True),
    ]
    check_steps(env, expected)
    # task 2 of length 3: what the last trial ended with is forgotten; the trial ends by arriving
    assert env.reset()[0].tolist() == zero
    expected = [
        (1, [1, 0, 1, 0, 0], 0.0, False),
        (0, [1, 1, 0, 0, 0], 0.0, False),
        (1, [0, 0, 1, 0, 1], 0.0, False),
        (1, [1, 0, 1, 0, 0], 0.0, False),
        (1, [2, 0, 1, 0, 0], 0.0, False),
        (1, [3, 0, 1, 1, 0], 1.0, True),
    ]
    check_steps(env, expected)
    with pytest.raises(gym.error.ResetNeeded, match="expected a reset before a trial's first step"):
        env.step(0)


class Masked(gym.Env[Any, Any]):
    """One step an episode; at its start only action 0 is legal, at its end only the others."""

    observation_space, action_space = gym.spaces.Discrete(2), gym.spaces.Discrete(3)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        return 0, {"action_mask": np.array([1, 0, 0], np.int8)}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return 1, 0.0, True, False, {"action_mask": np.array([0, 1, 1], np.int8), "more": 1}


def test_the_mask_is_that_of_the_observation() -> None:
    env = TrialEnv(Masked(), num_episodes=3)
    assert env.reset()[1]["action_mask"].tolist() == [1, 0, 0]
    for _ in range(2):  # each ends an episode, and the observation is the first of the next one
        info = env.step(0)[4]
        assert info["action_mask"].tolist() == [1, 0, 0] and info["more"] == 1
    assert env.step(0)[4]["action_mask"].tolist() == [0, 1, 1]


def check_steps(env: TrialEnv, expected: list[tuple[int, list[float], float, bool]]) -> None:
    for action, observation, reward, over in expected:
        got, paid, terminated, truncated, info = env.step(action)
        assert got.tolist() == observation
        assert got.dtype == np.float32
        assert (paid, terminated, truncated) == (reward, over, False)
        assert {"expected_reward", "regret"} == set(info)
        assert info["expected_reward"] == reward


def test_held_out_tasks_are_walked_in_order(corridor: Any) -> None:
    env = TrialEnv(TaskEnv(corridor(noise=0.0)), 1, tasks=lengths(3, 1, 2))

    def walked() -> int:
        steps = 1
        while not env.step(1)[2]:
            steps += 1
        return steps

    def trial(**arguments: Any) -> int:
        env.reset(**arguments)
        return walked()

    assert [trial() for _ in range(4)] == [3, 1, 2, 3]
    assert trial(options={"tasks": lengths(5)}) == 5  # does not advance the walk
    assert trial() == 1
    assert [trial(seed=1), trial()] == [3, 1]


def test_each_trial_draws_a_task_and_keeps_it_inside() -> None:
    env = TrialEnv(gym.make("rl2meta/BernoulliBandit-v0", num_arms=2), num_episodes=4)

    def means(**arguments: Any) -> set[float]:
        env.reset(**arguments)
        return {env.step(1)[4]["expected_reward"] for _ in range(4)}

    first, second = means(seed=3), means()
    assert len(first) == len(second) == 1
    assert first != second
    assert [means(seed=3), means()] == [first, second]
    assert means(options={"tasks": certain_means([0.5, 0.25])}) == {0.25}


class Bounded(gym.Env[Any, Any]):
    """A plug-in of the plainest kind: no tasks, Box spaces, unbounded observations."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (2, 1), np.float64)
    action_space = gym.spaces.Box(0.25, 1, (2,), np.float32)

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.goal, self.steps = self.np_random.normal(size=(2, 1)), 0
        return self.goal.copy(), {}

    def step(self, action: Any) -> Any:
        self.steps += 1
        reward = float(-np.abs(action - self.goal[:, 0]).sum())
        return self.goal + self.steps, reward, False, self.steps == 2, {}


def bandit(num_arms: int = 3, env_id: str = "rl2meta/BernoulliBandit-v0") -> gym.Env[Any, Any]:
    return gym.make(env_id, num_arms=num_arms)


@pytest.mark.parametrize(
    "make",
    [
        bandit,
        lambda: bandit(env_id="rl2meta/GaussianBandit-v0"),
        lambda: gym.make("CartPole-v1", max_episode_steps=3),
        lambda: gym.make("MountainCarContinuous-v0", max_episode_steps=3),
    ],
)
def test_gymnasium_and_sb3_accept_a_trial(make: Callable[[], gym.Env[Any, Any]]) -> None:
    for num_episodes in (1, 3):
        env = TrialEnv(make(), num_episodes)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            check_env(env, skip_render_check=True)  # it asks for a spec, which only gym.make gives
            sb3_check_env(env)
        assert env.reset(seed=0)[0] in env.observation_space


def test_box_actions_and_observations_are_flattened() -> None:
    env = TrialEnv(Bounded(), 2)
    first, _ = env.reset(seed=0)
    goal = first[:2].astype(np.float64)
    np.testing.assert_array_equal(first[2:], [0, 0, 0, 1])
    action = np.array([0.5, 0.75], np.float32)
    after, reward, *_ = env.step(action)
    np.testing.assert_allclose(after, [*(goal + 1), 0.5, 0.75, reward, 0], rtol=1e-6)
    assert env.step(action)[0][-1] == 1
    assert first in env.observation_space  # though 0 is no action


def test_closing_and_rendering_reach_the_inner_environment() -> None:
    calls: list[str] = []

    class Told(Bounded):
        render_mode = "ansi"

        def render(self) -> Any:
            calls.append("render")
            return "picture"

        def close(self) -> None:
            calls.append("close")

    env = TrialEnv(Told(), 1)
    assert env.render() == "picture"
    assert env.render_mode == "ansi"
    env.close()
    assert calls == ["render", "close"]


def test_bad_trials_are_refused() -> None:
    with pytest.raises(ValueError, match="expected num_episodes >= 1, got 0"):
        TrialEnv(bandit(), 0)
    with pytest.raises(ValueError, match=r"expected at least one task, .* got 0"):
        TrialEnv(bandit(), 1, certain_means([0.5, 0.5, 0.5])[:0])
    env = Bounded()
    env.observation_space = gym.spaces.Dict({"x": gym.spaces.Discrete(2)})
    with pytest.raises(TypeError, match="expected a Discrete or Box space"):
        TrialEnv(env, 1)


# Predictor


@dataclass(frozen=True)
class Memory:
    number: int
    generator: torch.Generator
    lived: int = 0
    adapted: int = 0
    action: Tensor | None = None


class Witness:
    """Keeps what it is shown and asserts that each step follows from the one before."""

    def __init__(self, phase: Phase | None = None, num_arms: int = 3) -> None:
        self.phase, self.num_arms = phase or Phase(), num_arms
        self.forget()

    def forget(self) -> None:
        self.begins = 0
        self.shown: dict[int, list[TimeStep]] = {}
        self.trajectories: dict[int, list[Trajectory]] = {}

    def begin(self, num_tasks: int, generator: torch.Generator, num_steps: int | None = None) -> Memory:
        assert num_tasks == 1
        self.begins += 1
        self.shown[self.begins], self.trajectories[self.begins] = [], []
        return Memory(self.begins, generator)

    def act(self, carry: Memory, step: TimeStep) -> tuple[Choice, Memory]:
        shown = self.shown[carry.number]
        assert len(shown) == carry.lived  # rows share no carry, and none is reset or skipped
        assert not torch.is_grad_enabled()
        assert step.first.dtype == torch.bool
        assert step.reward.dtype == torch.float32
        if carry.action is None:
            assert not step.action.any()
            assert not step.reward.any()
            assert step.first.all()
        else:
            assert torch.equal(step.action.argmax(1), carry.action)
        shown.append(step)
        action = torch.randint(0, self.num_arms, (1,), generator=carry.generator)
        choice = Choice(action, action, {"log_prob": torch.full((1,), float(carry.lived))})
        return choice, replace(carry, lived=carry.lived + 1, action=action)

    def adapt(self, carry: Memory, trajectory: Trajectory) -> Memory:
        assert len(self.trajectories[carry.number]) == carry.adapted
        self.trajectories[carry.number].append(trajectory)
        return replace(carry, adapted=carry.adapted + 1)


def predictor_of(agent: Any, env: gym.Env[Any, Any], **arguments: Any) -> Predictor[Any]:
    predictor = Predictor(agent, env.observation_space, env.action_space, **arguments)
    if isinstance(agent, Witness):
        agent.forget()  # the first action, which only shows whether the spaces fit
    return predictor


def test_predict_decodes_what_the_trial_encoded(corridor: Any) -> None:
    inner = TaskEnv(corridor(horizon=3))
    env, agent = TrialEnv(inner, 4), Witness(num_arms=2)
    predictor = predictor_of(agent, inner)
    observation, _ = env.reset(seed=0)
    state, fed, over = None, [], False
    while not over:
        fed.append(observation)
        action, state = predictor.predict(observation, state, np.array([state is None]))
        assert action in inner.action_space
        observation, _, over, _, _ = env.step(action)
    assert not state[0].past  # a phase that never ends is not kept
    shown = agent.shown[1]
    assert len(shown) == len(fed) > 4
    for vector, step in zip(fed, shown, strict=True):
        assert step.observation.shape == (1, 1)
        assert step.observation.dtype == torch.float32
        decoded = torch.cat([step.observation[0], step.action[0], step.reward, step.first.float()])
        assert torch.equal(decoded, torch.as_tensor(vector))


def test_spaces_survive_the_round_trip() -> None:
    class Shown:
        phase = Phase()

        def begin(self, num_tasks: int, generator: torch.Generator, num_steps: int | None = None) -> None:
            return None

        def act(self, carry: None, step: TimeStep) -> tuple[Choice, None]:
            self.step = step
            return Choice(torch.full((1, 2), 0.5), torch.full((1, 2), 0.75)), None

    agent, inner = Shown(), Bounded()
    predictor = predictor_of(agent, inner)
    observation, _ = TrialEnv(inner, 1).reset(seed=0)
    action, _ = predictor.predict(observation)
    assert action.dtype == np.float32
    assert action.tolist() == [0.5, 0.5]
    assert agent.step.observation.dtype == torch.float64
    np.testing.assert_allclose(agent.step.observation[0].numpy(), inner.goal, rtol=1e-6)
    assert predictor.predict(observation, deterministic=True)[0].tolist() == [0.75, 0.75]
    shifted = Predictor(Witness(), gym.spaces.Discrete(3, start=-1), gym.spaces.Discrete(3))
    shifted.agent.forget()
    shifted.predict(np.array([0, 0, 1, 0, 0, 0, 0, 1], np.float32))
    (step,) = shifted.agent.shown[1]
    assert step.observation.tolist() == [2]  # agents count from 0
    assert step.observation.dtype == torch.int64


@pytest.mark.parametrize("episodes", [1, 2])
def test_adapt_gets_the_phases_that_were_lived(corridor: Any, episodes: int) -> None:
    inner = TaskEnv(corridor(horizon=3))
    agent = Witness(Phase(episodes), num_arms=2)
    predictor = predictor_of(agent, inner, num_episodes=4)
    env = Monitor(TrialEnv(inner, 4, tasks=lengths(1, 3)))
    _, steps = evaluate_policy(predictor, env, 2, deterministic=False, return_episode_rewards=True)
    for trial in (1, 2):
        phases = agent.trajectories[trial]
        assert len(phases) == 4 // episodes - 1  # nothing follows the last phase
        shown = agent.shown[trial]
        assert len(shown) == steps[trial - 1]
        lived = sum(len(phase.reward) for phase in phases)
        for name in TimeStep._fields[:4]:  # without masks
            got = torch.cat([getattr(phase.inputs, name) for phase in phases])
            assert torch.equal(got, torch.stack([getattr(step, name) for step in shown[:lived]]))
        assert torch.equal(
            torch.cat([p.reward for p in phases]), torch.stack([s.reward for s in shown[1 : lived + 1]])
        )
        assert torch.cat([p.notes["log_prob"] for p in phases]).flatten().tolist() == list(range(lived))
        for phase in phases:
            assert phase.action.shape == phase.reward.shape == phase.mask.shape == (len(phase.last), 1)
            assert phase.mask.all()
            assert phase.last.sum() == episodes
            assert phase.last[-1]
            assert torch.equal(phase.action[:-1], phase.inputs.action[1:].argmax(2))
            assert phase.named("regret") is phase.named("expected_reward") is None and not phase.truth


def test_adapt_gets_the_horizon_if_it_is_told(corridor: Any) -> None:
    """A baseline that takes the longest episode so far for the horizon is another one than in training."""
    inner = TaskEnv(corridor(horizon=3))
    for horizon in (3, None):
        agent = Witness(Phase(2), num_arms=2)
        predictor = predictor_of(agent, inner, num_episodes=4, horizon=horizon)
        evaluate_policy(predictor, Monitor(TrialEnv(inner, 4, tasks=lengths(1, 3))), 1, deterministic=False)
        (phase,) = agent.trajectories[1]
        assert (phase.horizon, phase.episodes) == (horizon, 2)


class Counting:
    """Plays the best arm so far; learns only in adapt, from phases of one pull."""

    phase = Phase(episodes=1)

    def begin(self, num_tasks: int, generator: torch.Generator, num_steps: int | None = None) -> Tensor:
        return torch.tensor([[1.0, 1.0, 1.0]])  # optimistic: each arm is tried until it disappoints

    def act(self, carry: Tensor, step: TimeStep) -> tuple[Choice, Tensor]:
        arm = carry.argmax(1)
        return Choice((arm + 1) % 3, mode=arm), carry

    def adapt(self, carry: Tensor, trajectory: Trajectory) -> Tensor:
        return carry.scatter(1, trajectory.action[0].unsqueeze(1), trajectory.reward[0].unsqueeze(1))


def trial_of_certain_arms(*best: int) -> Callable[[], TrialEnv]:
    rows = [[float(arm == i) for arm in range(3)] for i in best]
    return lambda: TrialEnv(bandit(), 10, tasks=certain_means(*rows))


def test_evaluate_policy_measures_exactly_the_held_out_tasks() -> None:
    predictor = predictor_of(Counting(), bandit(), num_episodes=10)
    # arm k pays always, the others never: found after k pulls, so 10 − k of 10 pulls are paid
    env = VecMonitor(DummyVecEnv([trial_of_certain_arms(0, 1, 2)]))
    rewards, steps = evaluate_policy(predictor, env, 3, return_episode_rewards=True)
    assert rewards == [10, 9, 8]
    assert steps == [10, 10, 10]
    several = VecMonitor(DummyVecEnv([trial_of_certain_arms(2, 1), trial_of_certain_arms(1, 0)]))
    rewards, _ = evaluate_policy(predictor, several, 4, return_episode_rewards=True)
    assert rewards == [8, 9, 9, 10]


def test_sampled_actions_unlike_the_mode() -> None:
    predictor = predictor_of(Counting(), bandit())
    observation, _ = trial_of_certain_arms(0)().reset(seed=0)
    assert predictor.predict(observation, deterministic=True)[0] == 0
    assert predictor.predict(observation)[0] == 1


def test_predictor_and_rollout_earn_alike() -> None:
    family = BernoulliBandits(num_arms=3)
    tasks = certain_means([0.0, 0.0, 1.0], [0.0, 1.0, 0.0])

    class Sampled(Counting):
        def begin(self, num_tasks: int, generator: torch.Generator, num_steps: int | None = None) -> Tensor:
            return torch.ones(num_tasks, 3)

        def act(self, carry: Tensor, step: TimeStep) -> tuple[Choice, Tensor]:
            arm = carry.argmax(1)
            return Choice(arm, arm), carry

        def adapt(self, carry: Tensor, trajectory: Trajectory) -> Tensor:
            return carry.scatter(1, trajectory.action[0].unsqueeze(1), trajectory.reward[0].unsqueeze(1))

    rolled = RolloutWorker(family).run(Sampled(), tasks, 10, 0).per_task("reward").sum(1)
    env = Monitor(TrialEnv(TaskEnv(family), 10, tasks=tasks))
    rewards, _ = evaluate_policy(predictor_of(Sampled(), bandit()), env, 2, return_episode_rewards=True)
    assert rolled.tolist() == rewards == [8, 9]


class Lanes:
    """Walks a corridor as its lane and what it has learnt say, without chance; keeps what it learns from."""

    def __init__(self, episodes: int, lanes: int) -> None:
        self.phase = Phase(episodes, lanes)

    def begin(
        self, num_tasks: int, generator: torch.Generator, num_steps: int | None = None
    ) -> tuple[Trajectory, ...]:
        return ()

    def act(self, carry: tuple[Trajectory, ...], step: TimeStep) -> tuple[Choice, tuple[Trajectory, ...]]:
        lane = torch.arange(self.phase.lanes_per_task)
        assert len(step.reward) == len(lane)
        turn = step.observation[:, 0].long() + lane + step.reward.long() + len(carry)
        action = (turn % 3 > 0).long()
        return Choice(action, action, {"log_prob": -0.1 * turn}), carry

    def adapt(self, carry: tuple[Trajectory, ...], trajectory: Trajectory) -> tuple[Trajectory, ...]:
        return (*carry, trajectory)


@pytest.mark.parametrize(("episodes", "lanes"), [(1, 1), (1, 4), (2, 3), (3, 2)])
def test_lanes_one_after_another_are_lanes_side_by_side(corridor: Any, episodes: int, lanes: int) -> None:
    family, num_episodes = corridor(horizon=6, noise=0.0), episodes * lanes * 3
    agent, task = Lanes(episodes, lanes), lengths(2)
    rolled = RolloutWorker(family).run(agent, task, num_episodes, 0).phases
    env = TrialEnv(TaskEnv(family), num_episodes, tasks=task)
    predictor = predictor_of(agent, TaskEnv(family), num_episodes=num_episodes)
    observation, _ = env.reset(seed=0)
    state, over, rewards = None, False, []
    while not over:
        action, state = predictor.predict(observation, state)
        observation, reward, over, _, _ = env.step(action)
        rewards.append(reward)
    assert sum(rewards) == sum(float((phase.reward * phase.mask).sum()) for phase in rolled)
    assert len(state[0].carry) == 2  # nothing follows the last of three phases
    assert lanes == 1 or not all(phase.mask.all() for phase in state[0].carry)  # lanes of unequal length
    for ours, theirs in zip(state[0].carry, rolled, strict=False):
        check_equal_where_lived(ours, theirs)


def check_equal_where_lived(ours: Trajectory, theirs: Trajectory) -> None:
    steps = int(theirs.mask.sum(0).max())
    assert ours.mask.shape == (steps, theirs.mask.shape[1])
    assert torch.equal(ours.mask, theirs.mask[:steps])
    assert not (ours.last & ~ours.mask).any()
    pairs = zip(
        (*ours.inputs[:4], ours.action, ours.notes["log_prob"], ours.reward, ours.last),
        (*theirs.inputs[:4], theirs.action, theirs.notes["log_prob"], theirs.reward, theirs.last),
        strict=True,
    )
    for our, their in pairs:
        assert our.dtype == their.dtype
        assert torch.equal(our[ours.mask], their[:steps][ours.mask])
        assert our.isfinite().all()


class Averages:
    """Keeps each arm's mean over phases of four pulls: two of the best arm so far, two of others."""

    phase = Phase(episodes=1, lanes_per_task=4)

    def begin(self, num_tasks: int, generator: torch.Generator, num_steps: int | None = None) -> Tensor:
        return torch.zeros(num_tasks, 2, 3)  # sums of rewards, pulls

    def act(self, carry: Tensor, step: TimeStep) -> tuple[Choice, Tensor]:
        best = (carry[:, 0] / carry[:, 1].clamp(min=1)).argmax(1)
        arm = (best.unsqueeze(1) + torch.tensor([0, 1, 2, 0])).flatten() % 3
        return Choice(arm, arm), carry

    def adapt(self, carry: Tensor, trajectory: Trajectory) -> Tensor:
        arm, reward = (each[0].reshape(-1, 4) for each in (trajectory.action, trajectory.reward))
        seen = torch.stack([reward, torch.ones_like(reward)], 1)
        return carry.scatter_add(2, arm.unsqueeze(1).expand_as(seen), seen)


def test_an_agent_with_lanes_earns_in_sb3_what_it_earns_in_a_rollout() -> None:
    family = BernoulliBandits(num_arms=3)
    tasks = certain_means([0.0, 0.0, 1.0], [0.0, 1.0, 0.0])
    rolled = RolloutWorker(family).run(Averages(), tasks, 12, 0).per_task("reward").sum(1)
    several = VecMonitor(
        DummyVecEnv([lambda i=i: TrialEnv(bandit(), 12, tasks=tasks[i : i + 1]) for i in range(2)])
    )
    predictor = predictor_of(Averages(), bandit(), num_episodes=12)
    rewards, _ = evaluate_policy(predictor, several, 2, return_episode_rewards=True)
    assert rolled.tolist() == sorted(rewards) == [5, 5]


class Beyond:
    """Draws actions outside all bounds, and keeps what it is told of them."""

    phase = Phase(episodes=1)

    def begin(
        self, num_tasks: int, generator: torch.Generator, num_steps: int | None = None
    ) -> Trajectory | None:
        return None

    def act(self, carry: Trajectory | None, step: TimeStep) -> tuple[Choice, Trajectory | None]:
        self.step = step
        return Choice(torch.tensor([[-3.0, 5.0]]), torch.tensor([[0.5, 7.0]])), carry

    def adapt(self, carry: Trajectory | None, trajectory: Trajectory) -> Trajectory:
        return trajectory


def test_the_environment_gets_clipped_actions_and_the_agent_what_it_drew() -> None:
    agent, inner = Beyond(), Bounded()
    env = TrialEnv(inner, 2)
    predictor = predictor_of(agent, inner)
    observation, _ = env.reset(seed=0)
    state = None
    for _ in range(3):  # one episode of two steps, and the first of the next
        action, state = predictor.predict(observation, state)
        assert action in inner.action_space
        assert action.tolist() == [0.25, 1.0]
        observation, *_ = env.step(action)
    assert agent.step.action.tolist() == [[0.25, 1.0]]  # what was taken
    learnt = state[0].carry
    assert learnt.action.tolist() == [[[-3.0, 5.0]]] * 2  # what its log-probability is of
    assert learnt.inputs.action.tolist() == [[[0.0, 0.0]], [[0.25, 1.0]]]
    assert predictor.predict(observation, deterministic=True)[0].tolist() == [0.5, 1.0]


def test_rows_are_independent_and_the_state_is_a_value() -> None:
    agent = Witness()
    predictor = predictor_of(agent, bandit(), seed=5)
    batch = np.stack([trial_of_certain_arms(i)().reset(seed=i)[0] for i in range(2)])
    actions, state = predictor.predict(batch, None, np.array([True, True]))
    assert actions.shape == (2,)
    assert agent.begins == 2
    before = [row.carry for row in state]
    again = np.stack([[1, *np.eye(3)[action], 0.0, 1] for action in actions])
    _, later = predictor.predict(again, state, np.array([False, False]))
    assert [row.carry for row in state] == before  # the old state is as it was
    assert [row.carry.number for row in later] == [1, 2]


def test_only_the_row_that_starts_begins_anew() -> None:
    agent = Witness()
    predictor = predictor_of(agent, bandit())
    start = np.array([1, 0, 0, 0, 0, 1], np.float32)
    actions, state = predictor.predict(np.stack([start] * 3))
    follow = [[1, *np.eye(3)[action], 1.0, 1] for action in actions]
    _, state = predictor.predict(
        np.stack([follow[0], start, follow[2]]), state, np.array([False, True, False])
    )
    assert [row.carry.number for row in state] == [1, 4, 3]
    assert [row.carry.lived for row in state] == [2, 1, 2]
    assert agent.begins == 4


def test_draws_follow_the_seed() -> None:
    def actions(seed: int) -> list[int]:
        predictor = predictor_of(Witness(), bandit(), seed=seed)
        start = np.array([1, 0, 0, 0, 0, 1], np.float32)
        return predictor.predict(np.stack([start] * 32))[0].tolist()

    assert actions(0) == actions(0)
    assert actions(0) != actions(1)
    assert len(set(actions(0))) == 3  # rows draw from streams of their own


def test_misuse_of_the_predictor_is_refused() -> None:
    start = np.array([1, 0, 0, 0, 0, 1], np.float32)
    predictor = predictor_of(Witness(), bandit())
    with pytest.raises(ValueError, match=r"expected flat observations \[num_envs, 6\] .* got \[1, 1\]"):
        predictor.predict(np.zeros(1))
    with pytest.raises(ValueError, match="expected a state of 2 rows like the observations, got 1"):
        predictor.predict(np.stack([start] * 2), predictor.predict(start)[1])
    with pytest.raises(
        ValueError, match=r"phases of a number of episodes .* 4 lanes per task, .* with rl2meta\.rollout"
    ):
        predictor_of(Witness(Phase(None, lanes_per_task=4)), bandit())
    with pytest.raises(ValueError, match=r"num_episodes=6 is not a positive multiple of the 4 .* use 4 or 8"):
        predictor_of(Witness(Phase(1, lanes_per_task=4)), bandit(), num_episodes=6)
    with pytest.raises(ValueError, match=r"num_episodes=25 is not a positive multiple of the 10 .* use 20"):
        predictor_of(Witness(Phase(10)), bandit(), num_episodes=25)
    with pytest.raises(ValueError, match=r"num_episodes=0 is not a positive multiple of the 1 .* use 1"):
        predictor_of(Witness(), bandit(), num_episodes=0)
    with pytest.raises(TypeError, match="expected a Discrete or Box space"):
        Predictor(Witness(), gym.spaces.Text(2), gym.spaces.Discrete(2))


@pytest.mark.parametrize("name", ["rl2", "maml_trpo"])
@pytest.mark.parametrize(
    ("observation_space", "action_space", "message"),
    [
        (gym.spaces.Box(-1, 1, (3,)), gym.spaces.Discrete(3), r"got Box\(.*\(3,\).* it raised \w+: "),
        (gym.spaces.Discrete(9), gym.spaces.Discrete(3), r"got Discrete\(9\) and Discrete\(3\), on which"),
        (gym.spaces.Discrete(4), gym.spaces.Box(-1, 1, (3,)), r"an action of Box\(.* from the agent, got \d"),
    ],
)
def test_spaces_of_another_family_are_refused(
    name: str, observation_space: Any, action_space: Any, message: str
) -> None:
    kind, spaces = AGENTS[name], (gym.spaces.Discrete(4), gym.spaces.Discrete(3))
    agent = kind.learner(*spaces, kind.config(), "cpu", 0).agent
    Predictor(agent, *spaces)
    with pytest.raises(ValueError, match=message + r".* run\.distribution\.observation_space"):
        Predictor(agent, observation_space, action_space)


@pytest.mark.parametrize("given", [2, 4])
def test_another_number_of_actions_is_refused(given: int) -> None:
    spaces = gym.spaces.Box(-1, 1, (2,)), gym.spaces.Discrete(3)
    learner = rl2_learner(*spaces, RL2Config.model_validate({"core": {"hidden_size": 8}}))
    with pytest.raises(ValueError, match="expected the spaces that the agent was made for"):
        Predictor(learner.agent, spaces[0], gym.spaces.Discrete(given))


def test_an_action_that_the_environment_does_not_have_is_refused() -> None:
    """An agent that looks at no previous action shows its number of actions only by taking them."""
    starts = np.array([[1, 0, 0, 0, 0, 1]] * 64, np.float32)
    with pytest.raises(ValueError, match=r"expected an action of Discrete\(3\) from the agent, got 3"):
        predictor_of(Witness(num_arms=4), bandit()).predict(starts)


@pytest.mark.parametrize("training", [True, False])
def test_vec_normalize_must_leave_observations_as_they_are(training: bool) -> None:
    def normalised(**arguments: bool) -> VecNormalize:
        return VecNormalize(DummyVecEnv([trial_of_certain_arms(0, 1)]), **arguments)

    scaled = normalised()
    scaled.reset()
    for arm in (0, 1, 2) * 5:
        scaled.step(np.array([arm]))
    scaled.training = training
    with pytest.raises(ValueError, match=r"end in 1 .* VecNormalize with norm_obs=False"):
        evaluate_policy(predictor_of(Witness(), bandit()), scaled, 2, warn=False)
    plain = DummyVecEnv([trial_of_certain_arms(0, 1)])
    means = [
        evaluate_policy(predictor_of(Witness(), bandit(), seed=3), env, 2, warn=False)
        for env in (normalised(norm_obs=False, norm_reward=False), plain)
    ]
    assert means[0] == means[1]


def test_recurrent_ppo_learns_on_trials() -> None:
    torch.manual_seed(0)
    env = VecMonitor(DummyVecEnv([lambda: TrialEnv(bandit(2), 4)] * 2))
    sizes = {"lstm_hidden_size": 8, "net_arch": [8]}
    model = RecurrentPPO(
        "MlpLstmPolicy", env, n_steps=16, batch_size=16, n_epochs=1, policy_kwargs=sizes, device="cpu", seed=0
    )
    before = [parameter.clone() for parameter in model.policy.parameters()]
    model.learn(32)
    assert any(not torch.equal(a, b) for a, b in zip(before, model.policy.parameters(), strict=True))
    held_out = sample_tasks(BernoulliBandits(num_arms=2), 5, 0, "test")
    test_env = Monitor(TrialEnv(bandit(2), 4, tasks=held_out))
    mean, _ = evaluate_policy(model, test_env, 5)
    assert 0 <= mean <= 4


class Lift(gym.Env[Any, Any]):
    """Floors from 5 on, and actions −1, 0, 1; a step pays the action."""

    observation_space = gym.spaces.Discrete(3, start=5)
    action_space = gym.spaces.Discrete(3, start=-1)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        return np.int64(6), {}

    def step(self, action: Any) -> Any:
        assert action in self.action_space
        return np.int64(7), float(action), True, False, {}


@pytest.mark.parametrize("up", [0, 1, 2])
def test_elements_of_spaces_that_start_elsewhere_reach_the_environment(up: int) -> None:
    env = Lift()
    counted = gym.spaces.Discrete(3)
    learner = rl2_learner(counted, counted, RL2Config.model_validate({"core": {"hidden_size": 8}}))
    with torch.no_grad():
        learner.network.policy.linear.bias[up] = 50.0  # type: ignore[union-attr]
    trial = TrialEnv(env, 2)
    predictor = Predictor(learner.agent, env.observation_space, env.action_space)
    observation, _ = trial.reset(seed=0)
    action, state = predictor.predict(observation)
    assert action in env.action_space and int(action) == up - 1
    observation, reward, *_ = trial.step(action)
    assert reward == up - 1
    assert int(predictor.predict(observation, state)[0]) == up - 1


def test_predict_takes_masks_as_maskable_ppo_does() -> None:
    law = BernoulliBandits(num_arms=3)
    env = TrialEnv(TaskEnv(law), 4)
    learner = rl2_learner(law.observation_space, law.action_space, RL2Config())
    predictor = Predictor(learner.agent, law.observation_space, law.action_space)
    observation, _ = env.reset(seed=0)
    batch, state = np.stack([observation] * 50), None
    for only in (2, 0):
        masks = np.arange(3) == only
        action, state = predictor.predict(batch, state, action_masks=np.stack([masks] * 50))
        assert (action == only).all()
    assert predictor.predict(observation, action_masks=np.array([0, 1, 0]))[0] == 1


@pytest.mark.parametrize(
    ("masks", "said"),
    [
        (np.ones(2), r"expected \[1, 3\] of 1 for a legal action and 0 for any other, got \[1, 2\]"),
        ([0.5, 1, 1], r"expected \[1, 3\] of 1 .* got \[1, 3\]"),
        ([float("nan"), 1, 1], r"expected \[1, 3\] of 1"),
        (["a", "b", "c"], r"expected \[1, 3\] of 1"),
        ([[1], [1, 0]], r"expected \[1, 3\] of 1"),
        ([0, 0, 0], r"expected a legal action in every row, got \[0 0 0\] in row 0"),
    ],
)
def test_predict_refuses_masks_that_are_none(masks: Any, said: str) -> None:
    law = BernoulliBandits(num_arms=3)
    observation, _ = TrialEnv(TaskEnv(law), 4).reset(seed=0)
    agent = rl2_learner(law.observation_space, law.action_space, RL2Config()).agent
    predictor = Predictor(agent, law.observation_space, law.action_space)
    with pytest.raises(ValueError, match=f"action_masks: {said}"):
        predictor.predict(observation, action_masks=masks)


def test_predict_wants_a_legal_value_of_every_entry_of_an_action() -> None:
    observed, acted = gym.spaces.Discrete(2), gym.spaces.MultiDiscrete([2, 3])
    predictor = Predictor(rl2_learner(observed, acted, RL2Config()).agent, observed, acted)
    first = np.array([1, 0, *[0] * 5, 0, 1], np.float32)
    assert list(predictor.predict(first, action_masks=[0, 1, 0, 0, 1])[0]) == [1, 2]
    with pytest.raises(ValueError, match="a legal action in every row"):
        predictor.predict(first, action_masks=[0, 0, 0, 0, 1])


@pytest.mark.parametrize("horizon", [0, -1, 1.5, "2"])
def test_predictor_wants_a_horizon_of_steps(horizon: Any) -> None:
    law = BernoulliBandits(num_arms=3)
    agent = rl2_learner(law.observation_space, law.action_space, RL2Config()).agent
    with pytest.raises(ValueError, match="horizon: expected a number of steps >= 1"):
        Predictor(agent, law.observation_space, law.action_space, num_episodes=4, horizon=horizon)


def test_predict_tells_the_agent_how_much_of_the_trial_is_over() -> None:
    """An agent that sees the time acts as in a rollout of the same trial."""
    law = BernoulliBandits(num_arms=3)
    config = RL2Config.model_validate({"core": {"name": "slot", "slot_size": 4, "hidden_size": 8}})
    agent = rl2_learner(law.observation_space, law.action_space, config).agent
    spaces = law.observation_space, law.action_space
    told = Predictor(agent, *spaces, num_episodes=4, horizon=1)
    untold = Predictor(agent, *spaces, num_episodes=4)
    env = TrialEnv(TaskEnv(law), 4)
    observation, _ = env.reset(seed=0)
    states = [None, None]
    for _ in range(3):
        for which, predictor in enumerate((told, untold)):
            _, states[which] = predictor.predict(observation, states[which])
    positions = [state[0].carry.trial_length for state in states]
    assert positions == [4, None] and positions[0].horizon == 1
