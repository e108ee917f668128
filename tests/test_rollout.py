"""The inner loop, watched from inside by an agent whose carry remembers what it should see."""

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from rl2meta.agents.references.bandits import IndexAgent
from rl2meta.agents.references.priors import Statistics
from rl2meta.envs.bandits import BernoulliBandits
from rl2meta.envs.batched import TensorVectorEnv
from rl2meta.envs.navigation import PointNavigation
from rl2meta.envs.two_step import TwoStep
from rl2meta.rollout import RolloutWorker
from rl2meta.tasks import TensorTasks, sample_tasks
from rl2meta.trial import Choice, Phase, TimeStep, Trajectory, Trial


@dataclass(frozen=True)
class Memory:
    """A carry that expects what comes: its last action, and the position that it led to."""

    generator: torch.Generator
    rows: int
    steps: int = 0  # of this phase
    total: int = 0  # of the trial
    phases: int = 0
    action: Tensor | None = None
    observation: Tensor | None = None
    begun: int = 0  # the number of the trial, by the agent's count


class Witness:
    """Acts at random and asserts, from inside, that each TimeStep follows from the one before."""

    def __init__(self, episodes: int | None = None, lanes: int = 1) -> None:
        self.phase = Phase(episodes, lanes)
        self.begins = 0
        self.seen: list[TimeStep] = []
        self.trajectories: list[Trajectory] = []

    def begin(self, num_tasks: int, generator: torch.Generator, num_steps: int | None = None) -> Memory:
        self.begins += 1
        self.seen, self.trajectories = [], []
        return Memory(generator, num_tasks * self.phase.lanes_per_task, begun=self.begins)

    def act(self, carry: Memory, step: TimeStep) -> tuple[Choice, Memory]:
        assert carry.begun == self.begins  # nobody else's carry
        assert carry.total == len(self.seen)  # no carry was reset, skipped or used twice
        assert [len(field) for field in step] == [carry.rows] * 5
        self._check(carry, step)
        self.seen.append(step)
        action = torch.randint(0, 2, (carry.rows,), generator=carry.generator)
        choice = Choice(action, 1 - action, {"log_prob": torch.full((carry.rows,), float(carry.total))})
        counts = {"steps": carry.steps + 1, "total": carry.total + 1}
        return choice, replace(carry, action=action, observation=step.observation, **counts)

    def _check(self, carry: Memory, step: TimeStep) -> None:
        if carry.action is None or carry.observation is None:
            assert not step.action.any()
            assert not step.reward.any()
            assert step.first.all()
            return
        if carry.steps == 0:  # a phase starts at an episode's start, wherever its environment idled before
            assert step.first.all()
            assert not step.observation.any()
            return
        assert torch.equal(step.action.argmax(1), carry.action)
        assert torch.equal(step.action.sum(1), torch.ones(carry.rows))
        moved = carry.observation[:, 0] + carry.action
        assert torch.equal(step.observation[:, 0], torch.where(step.first, 0, moved))
        # within an episode the corridor pays noise alone: 1 comes with the arrival that ends it
        assert (step.reward[~step.first].abs() < 0.5).all()

    def adapt(self, carry: Memory, trajectory: Trajectory) -> Memory:
        assert len(trajectory.reward) == carry.steps
        assert len(self.trajectories) == carry.phases
        self.trajectories.append(trajectory)
        return replace(carry, steps=0, phases=carry.phases + 1)


def run(family: Any, agent: Any, num_tasks: int = 6, num_episodes: int = 4, seed: int = 0) -> Trial:
    tasks = sample_tasks(family, num_tasks, 1, "train")
    return RolloutWorker(family).run(agent, tasks, num_episodes, seed)


def assert_equal(one: Trial, other: Trial) -> None:
    for a, b in zip(one.phases, other.phases, strict=True):
        for name in ("reward", "action", "last", "mask"):
            assert torch.equal(getattr(a, name), getattr(b, name)), name
        assert set(a.truth) == set(b.truth) == {"regret", "expected_reward"}
        assert set(a.notes) == set(b.notes) == {"log_prob"}
        for name in a.truth:
            assert torch.equal(a.truth[name], b.truth[name]), name
        assert torch.equal(a.notes["log_prob"], b.notes["log_prob"])


@pytest.mark.parametrize(
    ("episodes", "lanes", "phases"), [(None, 1, 1), (None, 2, 1), (1, 1, 4), (2, 1, 2), (1, 2, 2), (2, 2, 1)]
)
def test_agent_sees_what_it_did(corridor: Any, episodes: int | None, lanes: int, phases: int) -> None:
    agent = Witness(episodes, lanes)
    trial = run(corridor(), agent)
    assert agent.begins == 1
    assert len(trial.phases) == phases
    assert all(a is b for a, b in zip(agent.trajectories, trial.phases[:-1], strict=True))
    per_lane = episodes or 4 // lanes
    assert all(phase.reward.shape == (per_lane * 5, 6 * lanes) for phase in trial.phases)


def test_episodes_of_this_family_are_of_unequal_length(corridor: Any) -> None:
    (phase,) = run(corridor(), Witness()).phases
    lengths = phase.mask.sum(0)
    assert lengths.min() < lengths.max() <= 20  # else the other tests show little


@pytest.mark.parametrize(("episodes", "lanes"), [(None, 1), (2, 1), (2, 2)])
def test_mask_covers_exactly_the_episodes_of_the_phase(
    corridor: Any, episodes: int | None, lanes: int
) -> None:
    for phase in run(corridor(), Witness(episodes, lanes)).phases:
        wanted = episodes or 4
        for mask, last in zip(phase.mask.T, phase.last.T, strict=True):
            lived = int(mask.sum())
            assert mask[:lived].all()
            assert not mask[lived:].any()
            assert int(last[:lived].sum()) == wanted
            assert last[lived - 1]


@pytest.mark.parametrize(("episodes", "lanes"), [(None, 1), (1, 1), (2, 2)])
def test_trajectory_holds_what_the_agent_saw_and_said(
    corridor: Any, episodes: int | None, lanes: int
) -> None:
    agent = Witness(episodes, lanes)
    trial = run(corridor(), agent)
    for name in TimeStep._fields[:4]:  # there are no masks
        seen = torch.stack([getattr(step, name) for step in agent.seen])
        assert torch.equal(torch.cat([getattr(phase.inputs, name) for phase in trial.phases]), seen)
    log_prob = torch.cat([phase.notes["log_prob"][:, 0] for phase in trial.phases])
    assert log_prob.tolist() == list(range(len(log_prob)))
    for phase in trial.phases:  # what was said at t is seen at t + 1
        assert torch.equal(phase.action[:-1], phase.inputs.action[1:].argmax(2))
        assert torch.equal(phase.reward[:-1], phase.inputs.reward[1:])
        assert torch.equal(phase.last[:-1], phase.inputs.first[1:])


def test_previous_action_and_reward_cross_phases() -> None:
    agent = Witness(1)
    one, two, three = run(BernoulliBandits(num_arms=2), agent, num_episodes=3).phases
    for before, after in ((one, two), (two, three)):
        assert torch.equal(after.inputs.action[0].argmax(1), before.action[-1])
        assert torch.equal(after.inputs.reward[0], before.reward[-1])


def test_lanes_are_task_major(corridor: Any) -> None:
    family = corridor(noise=0.0)
    tasks = sample_tasks(family, 6, 1, "train")
    (phase,) = RolloutWorker(family).run(Witness(2, 2), tasks, 4, 0).phases
    position = phase.inputs.observation[..., 0] + phase.action
    length = tasks.parameters["length"].repeat_interleave(2)
    assert torch.equal(phase.reward == 1, position == length)
    assert torch.equal(phase.truth["expected_reward"], phase.reward)
    assert (phase.reward == 1).any(0).float().mean() > 0.5  # most lanes arrive at least once


def test_each_trial_begins_anew(corridor: Any) -> None:
    family, agent = corridor(), Witness()
    worker, tasks = RolloutWorker(family), sample_tasks(family, 6, 1, "train")
    for trial in range(1, 4):
        worker.run(agent, tasks, 2, seed=trial)
        assert agent.begins == trial


@pytest.mark.parametrize(("episodes", "lanes"), [(None, 1), (1, 2)])
def test_equal_seeds_give_equal_trials(corridor: Any, episodes: int | None, lanes: int) -> None:
    family = corridor()
    worker, tasks = RolloutWorker(family), sample_tasks(family, 6, 1, "train")
    one = worker.run(Witness(episodes, lanes), tasks, 4, 7)
    worker.run(Witness(episodes, lanes), tasks, 4, 8)  # leaves no trace in the worker
    assert_equal(one, worker.run(Witness(episodes, lanes), tasks, 4, 7))
    assert_equal(one, RolloutWorker(family).run(Witness(episodes, lanes), tasks, 4, 7))
    other = run(family, Witness(episodes, lanes), seed=8)
    assert not torch.equal(one.phases[0].reward, other.phases[0].reward)


def test_caller_keeps_its_grad_mode_and_gets_no_graph(corridor: Any) -> None:
    (phase,) = run(corridor(), Witness()).phases
    assert torch.is_grad_enabled()
    assert not phase.reward.requires_grad


class Sweep:
    """Pulls arms in turn, each trial from its own first arm: no chance at all, so rows can be compared."""

    phase = Phase()

    def begin(self, num_tasks: int, generator: torch.Generator, num_steps: int | None = None) -> Tensor:
        return torch.zeros(num_tasks, dtype=torch.int64)

    def act(self, carry: Tensor, step: TimeStep) -> tuple[Choice, Tensor]:
        return Choice(carry % 3, carry % 3), carry + 1

    def adapt(self, carry: Tensor, trajectory: Trajectory) -> Tensor:
        return carry


def test_a_batch_of_trials_is_each_trial_alone() -> None:
    family = BernoulliBandits(num_arms=3)
    tasks = sample_tasks(family, 5, 0, "train")
    worker = RolloutWorker(family)
    together = worker.run(Sweep(), tasks, 7, 0).per_task("expected_reward")
    alone = [worker.run(Sweep(), tasks[i : i + 1], 7, i).per_task("expected_reward") for i in range(5)]
    assert torch.equal(together, torch.cat(alone))
    assert torch.equal(together, tasks.parameters["means"][:, torch.arange(7) % 3])


def test_per_task_lays_lanes_one_after_another_and_blanks_padding(corridor: Any) -> None:
    trial = run(corridor(), Witness(1, 2))
    rewards = trial.per_task("reward")
    assert rewards.shape == (6, 2 * 2 * 5)  # phases × lanes × horizon
    expected = [
        phase.reward[t, 2 * task + lane] * phase.mask[t, 2 * task + lane]
        for task in range(6)
        for phase in trial.phases
        for lane in range(2)
        for t in range(5)
    ]
    assert rewards.flatten().tolist() == [float(reward) for reward in expected]
    assert trial.num_steps() == sum(int(phase.mask.sum()) for phase in trial.phases) < 120


@pytest.mark.parametrize(("episodes", "lanes"), [(1, 2), (2, 1), (None, 1)])
def test_per_episode_sums_each_episode_of_unequal_length(
    corridor: Any, episodes: int | None, lanes: int
) -> None:
    trial = run(corridor(), Witness(episodes, lanes))
    sums: dict[str, list[list[float]]] = {"reward": [], "mask": [], "regret": []}
    for name, rows in sums.items():
        for task in range(6):
            rows.append([])
            for phase in trial.phases:
                for lane in range(lanes):
                    total = 0.0
                    for t in range(len(phase.mask)):
                        b = lanes * task + lane
                        field = phase.named(name)
                        assert field is not None
                        total += float(field[t, b]) * bool(phase.mask[t, b])
                        if phase.last[t, b] and phase.mask[t, b]:
                            rows[-1].append(total)
                            total = 0.0
        torch.testing.assert_close(trial.per_episode(name), torch.tensor(rows))
    lengths = trial.per_episode("mask")
    assert lengths is not None and lengths.unique().numel() > 1
    assert int(lengths.sum()) == trial.num_steps()


@dataclass
class First:
    """Takes the first action whatever it sees."""

    phase: Phase

    def begin(self, num_tasks: int, generator: torch.Generator, num_steps: int | None = None) -> int:
        return num_tasks * self.phase.lanes_per_task

    def act(self, carry: int, step: TimeStep) -> tuple[Choice, int]:
        zeros = torch.zeros(carry, dtype=torch.int64)
        return Choice(zeros, zeros), carry

    def adapt(self, carry: int, trajectory: Trajectory) -> int:
        return carry


@pytest.mark.parametrize("phase", [Phase(), Phase(1), Phase(2), Phase(4), Phase(1, 2), Phase(2, 4)])
def test_a_task_that_changes_between_episodes_does_so_whatever_the_phase(phase: Phase) -> None:
    family = TwoStep()
    tasks = TensorTasks({"good_side": torch.tensor([0]), "switches": torch.tensor([[1, 4, 6] + [99] * 61])})
    trial = RolloutWorker(family).run(First(phase), tasks, 8, 0)
    regret = trial.per_task("regret")
    assert regret is not None
    sides = (regret[0, ::2] > 0).long()  # the first action leads to side 0
    assert sides.tolist() == [0, 1, 1, 1, 0, 0, 1, 1]


def test_unknown_regret_is_none(corridor: Any) -> None:
    family = corridor()
    make_envs = family.make_envs

    class Silent:
        finished = False

        def __init__(self, envs: Any) -> None:
            self.num_envs, self.reset, self._step = envs.num_envs, envs.reset, envs.step

        def step(self, actions: Tensor) -> Any:
            *rest, info = self._step(actions)
            return *rest, {"final_obs": info["final_obs"]}

    family.make_envs = lambda num_envs, device: Silent(make_envs(num_envs, device))
    trial = run(family, Witness())
    assert trial.per_task("regret") is None
    assert trial.per_task("expected_reward") is None
    assert trial.per_episode("regret") is None


@pytest.mark.parametrize(
    ("episodes", "lanes", "num_episodes", "message"),
    [
        (10, 1, 25, r"num_episodes=25 is not a positive multiple of the 10 episodes .* use 20"),
        (10, 2, 30, r"num_episodes=30 is not a positive multiple of the 20 episodes .* use 20"),
        (10, 1, 3, r"num_episodes=3 .* use 10"),
        (None, 3, 4, r"num_episodes=4 is not a positive multiple of the 3 episodes .* use 3"),
        (None, 3, 2, r"num_episodes=2 .* use 3"),
        (None, 1, 0, r"num_episodes=0 .* use 1"),
        (2, 1, -2, r"num_episodes=-2 .* use 2"),
    ],
)
def test_episodes_that_do_not_fill_phases_are_refused(
    corridor: Any, episodes: int | None, lanes: int, num_episodes: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        run(corridor(), Witness(episodes, lanes), num_episodes=num_episodes)


def test_a_trial_has_phases(corridor: Any) -> None:
    with pytest.raises(ValueError, match="expected a trial of at least one phase, got none"):
        Trial(sample_tasks(corridor(), 1, 0, "train"), ())


def test_agent_and_environments_draw_from_streams_of_their_own() -> None:
    seeds = list[int]()

    class Nosy(IndexAgent):
        def begin(
            self, num_tasks: int, generator: torch.Generator, num_steps: int | None = None
        ) -> Statistics:
            seeds.append(generator.initial_seed())
            return super().begin(num_tasks, generator)

    class Told(BernoulliBandits):
        def make_envs(self, num_envs: int, device: torch.device) -> TensorVectorEnv:
            made.append(super().make_envs(num_envs, device))
            return made[-1]

    made, law = list[TensorVectorEnv](), Told(num_arms=2)
    worker, tasks = RolloutWorker(law), sample_tasks(law, 4, 0, "train")
    agent = Nosy(2, lambda seen: seen.pulls)
    worker.run(agent, tasks, 2, 5)
    source = made[0].seed(1)  # the environments' own for good, which the next run seeds
    worker.run(agent, tasks, 2, 5)
    theirs = source.initial_seed()
    assert len(made) == 1 and made[0].seed(1) is source and theirs != source.initial_seed()
    assert seeds[0] == seeds[1] != theirs


class Reckless:
    """Draws far outside the box."""

    phase = Phase(episodes=1)

    def begin(self, num_tasks: int, generator: torch.Generator, num_steps: int | None = None) -> int:
        return 0

    def act(self, carry: int, step: TimeStep) -> tuple[Choice, int]:
        action = torch.tensor([5.0, -0.5]).expand(len(step.reward), 2)
        return Choice(action, action), carry

    def adapt(self, carry: int, trajectory: Trajectory) -> int:
        return carry


def test_the_environment_gets_what_its_box_holds_and_the_learner_what_was_drawn() -> None:
    trial = run(PointNavigation(horizon=3), Reckless(), num_tasks=2, num_episodes=2)
    for phase in trial.phases:
        assert torch.equal(phase.action, torch.tensor([5.0, -0.5]).expand(3, 2, 2))
        assert torch.equal(phase.inputs.action[1:], torch.tensor([1.0, -0.5]).expand(2, 2, 2))
        torch.testing.assert_close(phase.inputs.observation[1], torch.tensor([[0.1, -0.05]] * 2))
    assert torch.equal(trial.phases[1].inputs.action[0], torch.tensor([[1.0, -0.5]] * 2))
