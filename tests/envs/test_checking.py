"""The conformance suite passes good families and names every fault of bad ones."""

import random
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from rl2meta.envs.bandits import BernoulliBandits, GaussianBandits
from rl2meta.envs.checking import ConformanceError, check_distribution
from rl2meta.envs.navigation import PointNavigation
from rl2meta.envs.tabular import TabularMDPs
from rl2meta.randomness import derive
from rl2meta.tasks import TensorTasks

Fault = Callable[[Any], None]


def test_built_in_families_conform() -> None:
    check_distribution(BernoulliBandits(num_arms=5))
    check_distribution(GaussianBandits(num_arms=2))


@pytest.mark.parametrize("horizon", [2, 5, 30])
@pytest.mark.parametrize("seed", [0, 1])
def test_family_of_unequal_episodes_conforms(corridor: Any, horizon: int, seed: int) -> None:
    check_distribution(corridor(horizon), seed=seed, num_tasks=16)


@pytest.mark.parametrize("known", [(), ("expected_reward",)])
def test_family_of_unknown_optimum_conforms(corridor: Any, known: tuple[str, ...]) -> None:
    family = corridor()
    change(lambda step: drop_info(step, {"final_obs", *known}))(family)
    family.optimal_return = lambda tasks: None
    family.bayes_optimal_return = lambda num_episodes: None
    check_distribution(family)


def test_one_task_cannot_be_compared(corridor: Any) -> None:
    with pytest.raises(ValueError, match=r"expected num_tasks >= 2 .*, got 1"):
        check_distribution(corridor(), num_tasks=1)


def test_every_failure_is_listed(corridor: Any) -> None:
    family = corridor()
    family.optimal_return = lambda tasks: torch.ones(3)
    change(lambda step: step._replace(reward=step.reward.nan_to_num().long()))(family)
    with pytest.raises(ConformanceError, match="Corridor has 2 failures") as raised:
        check_distribution(family)
    assert "\n- reward: expected float [8], got torch.int64 [8]" in str(raised.value)
    assert "\n- optimal_return: expected float [8], got torch.float32 [3]" in str(raised.value)


# How faults are put into a good family: by its attributes, by what its steps return, by its resets.


class Step:
    def __init__(self, values: tuple[Any, ...], number: int) -> None:
        self.observation, self.reward, self.terminated, self.truncated, self.info = values
        self.number = number

    def _replace(self, **fields: Any) -> "Step":
        self.__dict__.update(fields)
        return self

    def values(self) -> tuple[Any, ...]:
        return self.observation, self.reward, self.terminated, self.truncated, self.info


class Envs:
    """Passes on what the good environments do; subclasses break it."""

    def __init__(self, envs: Any) -> None:
        self.envs = envs

    def __getattr__(self, name: str) -> Any:
        return getattr(self.envs, name)

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        return self.envs.reset(seed=seed, options=options)

    def step(self, actions: Any) -> Any:
        return self.envs.step(actions)


def wrap(wrapper: Callable[[Any], Any]) -> Fault:
    def fault(family: Any) -> None:
        make_envs = family.make_envs
        changed = {"make_envs": lambda num_envs, device: wrapper(make_envs(num_envs, device))}
        family.__dict__.update(changed)  # of frozen families too

    return fault


def change(function: Callable[[Step], Step]) -> Fault:
    class Changed(Envs):
        number = 0

        def step(self, actions: Any) -> Any:
            self.number += 1
            return function(Step(self.envs.step(actions), self.number)).values()

    return wrap(Changed)


def put(**attributes: Any) -> Fault:
    return lambda family: family.__dict__.update(attributes)


def drop_info(step: Step, kept: set[str]) -> Step:
    return step._replace(info={name: value for name, value in step.info.items() if name in kept})


def put_info(function: Callable[[Step], dict[str, Any]]) -> Fault:
    return change(lambda step: step._replace(info={**step.info, **function(step)}))


def sample_with(draw: Callable[[int, torch.Generator], torch.Tensor]) -> Fault:
    return put(sample=lambda num_tasks, generator, split: TensorTasks({"length": draw(num_tasks, generator)}))


def lengths(num_tasks: int, generator: torch.Generator | None = None) -> torch.Tensor:
    return torch.randint(1, 6, (num_tasks,), generator=generator)


def one_sample_for_all_splits(family: Any) -> None:
    sample, other = family.sample, derive(0, "other tasks")  # else different seeds give the same tasks, too
    family.sample = lambda n, generator, split: sample(
        n, generator if generator.initial_seed() == other else torch.Generator().manual_seed(0), split
    )


class Short(TensorTasks):
    def __getitem__(self, index: Any) -> "Short":
        return super().__getitem__(slice(0, 2) if isinstance(index, slice) else index)


class Unordered(TensorTasks):
    def __getitem__(self, index: Any) -> "Unordered":
        return super().__getitem__(index if isinstance(index, slice) else index.sort().values)


class Forgetful(TensorTasks):
    @classmethod
    def from_dict(cls, data: Any) -> "Forgetful":
        return cls({"length": torch.ones_like(TensorTasks.from_dict(data).parameters["length"])})


class Moved(TensorTasks):
    def to(self, device: torch.device) -> "Moved":
        return type(self)({"length": self.parameters["length"] + 1})


class Secretive(TensorTasks):
    """Plays by something that does not reach JSON."""

    def to_dict(self) -> dict[str, Any]:
        return {"length": TensorTasks.to_dict(self)["length"]}

    @classmethod
    def from_dict(cls, data: Any) -> "Secretive":
        tasks = TensorTasks.from_dict(data).parameters
        return cls({"length": tasks["length"], "secret": tasks["length"]})


class Late(Envs):
    """Plays tasks with a secret as if they were longer."""

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        tasks = (options or {}).get("tasks")
        if tasks is not None and "secret" in tasks.parameters:
            options = {"tasks": TensorTasks({"length": torch.full((len(tasks),), 5)})}
        return super().reset(seed=seed, options=options)


def sample_as(kind: type[TensorTasks], *faults: Fault) -> Fault:
    def fault(family: Any) -> None:
        sample = family.sample
        family.sample = lambda *arguments: kind(sample(*arguments).parameters)
        for other in faults:
            other(family)

    return fault


def use_global(draw: Callable[[], object]) -> Fault:
    def drawn(step: Step) -> Step:
        draw()
        return step

    return change(drawn)


class Unseeded(Envs):
    """Its stream does not begin anew with the seed."""

    count = 0

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        Unseeded.count += 1
        return super().reset(seed=Unseeded.count, options=options)


class Ageing(Envs):
    """Only the first reset heeds its seed."""

    age = 0

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        self.age += 1
        return super().reset(seed=None if seed is None else seed + self.age, options=options)


class OwnDraw(Envs):
    """Draws tasks anew at each reset(seed) without tasks, whatever the seed."""

    age = 0

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        self.age += 1
        tasks = (options or {}).get("tasks", TensorTasks({"length": torch.full((self.num_envs,), self.age)}))
        return super().reset(seed=seed, options={"tasks": tasks})


class Reusing(Envs):
    """Writes every step into one buffer."""

    buffer: torch.Tensor | None = None

    def step(self, actions: Any) -> Any:
        observation, reward, *rest = super().step(actions)
        self.buffer = reward if self.buffer is None else self.buffer.copy_(reward)
        return observation, self.buffer, *rest


class Endless(Envs):
    def step(self, actions: Any) -> Any:
        observation, reward, terminated, truncated, info = super().step(actions)
        return observation, reward, terminated, torch.zeros_like(truncated), info


class NewTaskOnRestart(Envs):
    def step(self, actions: Any) -> Any:
        result = super().step(actions)
        ended = result[2] | result[3]
        length = self.envs.tasks.parameters["length"]
        self.envs.tasks = TensorTasks({"length": torch.where(ended, length % 5 + 1, length)})
        self.envs._prepared = self.envs.tasks
        return result


class Hidden(NewTaskOnRestart):
    """Shows tasks that it does not play."""

    shown: Any = None

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        self.shown = (options or {}).get("tasks", self.shown)
        return super().reset(seed=seed, options=options)

    @property
    def tasks(self) -> Any:
        return self.shown


class NewTaskOnReset(Envs):
    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        if seed is None and options is None:
            options = {"tasks": TensorTasks({"length": self.envs.tasks.parameters["length"] % 5 + 1})}
        return super().reset(seed=seed, options=options)


class SeedWins(Envs):
    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        return super().reset(seed=seed, options=None if seed is not None else options)


class Deaf(Envs):
    """Heeds tasks only where a seed comes with them."""

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        return super().reset(seed=seed, options=options if seed is not None else None)


class Tolerant(Envs):
    """Makes up the tasks that are missing."""

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        tasks = (options or {}).get("tasks")
        if tasks is not None:
            options = {"tasks": tasks[torch.arange(self.num_envs) % len(tasks)]}
        return super().reset(seed=seed, options=options)


class Misshapen(Envs):
    num_envs = 3
    device = torch.device("meta")
    single_observation_space = gym.spaces.Box(0, 9, (1,), np.float32)
    single_action_space = gym.spaces.Discrete(3)


def explode(*arguments: Any) -> Any:
    raise RuntimeError("boom")


FAULTS: dict[str, tuple[Fault, str]] = {
    # the family
    "space": (put(observation_space=3), "observation_space: expected a gymnasium Space, got 3"),
    "no space": (put(action_space=None), "action_space: expected a gymnasium Space, got None"),
    "horizon": (put(horizon=0), "horizon: expected an int >= 1, got 0"),
    "horizon type": (put(horizon=True), "horizon: expected an int >= 1, got True"),
    "method": (put(sample=None), "sample: expected a method, got None"),
    "crash": (put(optimal_return=explode), "optimal return: expected no error, got RuntimeError: boom"),
    # the tasks
    "number": (sample_with(lambda n, g: lengths(n + 1, g)), "sample: expected 8 tasks, got 9"),
    "unseeded": (sample_with(lambda n, g: lengths(n)), "expected the same tasks from generators of the same"),
    "constant": (
        sample_with(lambda n, g: torch.arange(n) % 5 + 1),
        "expected different tasks from generators of different seeds, got the same",
    ),
    "split": (one_sample_for_all_splits, "sample: expected test tasks unlike the train tasks, got the same"),
    "torch's": (use_global(lambda: torch.rand(1)), "got torch's global generator used"),
    "numpy's": (use_global(lambda: np.random.rand()), "got numpy's global generator used"),
    "python's": (use_global(random.random), "got random's global generator used"),
    "slice": (sample_as(Short), "tasks[1:]: expected 7 of 8 tasks, got 2"),
    "index": (sample_as(Unordered), "tasks[tensor([1, 0, 1])]: expected tasks 1, 0 and 1 in this order"),
    "json": (sample_as(Forgetful), "tasks: expected to_dict -> JSON -> from_dict to be equal to the bit"),
    "json play": (
        sample_as(Secretive, wrap(Late)),
        "expected tasks from JSON to give the same steps as the originals",
    ),
    "to": (sample_as(Moved), "tasks.to(cpu): expected the same tasks, got others"),
    # one step
    "device": (wrap(Misshapen), "device: expected cpu, got meta"),
    "num_envs": (wrap(Misshapen), "num_envs: expected 8, got 3"),
    "env space": (wrap(Misshapen), "single_observation_space on train tasks: expected the family's Box"),
    "env actions": (wrap(Misshapen), "single_action_space on test tasks: expected the family's Discrete(2)"),
    "dtype": (
        change(lambda step: step._replace(observation=step.observation.double())),
        "observation: expected float32 [8, 1], got float64 [8, 1]",
    ),
    "shape": (
        change(lambda step: step._replace(observation=step.observation[:, 0])),
        "observation: expected float32 [8, 1], got float32 [8]",
    ),
    "outside": (
        change(lambda step: step._replace(observation=step.observation - 1)),
        "observation: expected one of Box(0.0, 5.0, (1,), float32), got [-1.]",
    ),
    "final_obs": (
        put_info(lambda step: {"final_obs": step.info["final_obs"] * 9}),
        "final_obs: expected one of",
    ),
    "other final_obs": (
        put_info(lambda step: {"final_obs": 5 - step.info["final_obs"]}),
        "final_obs: expected the next observation where no episode ended, got another",
    ),
    "reward": (
        change(lambda step: step._replace(reward=step.reward.unsqueeze(1))),
        "reward: expected float [8], got torch.float32 [8, 1]",
    ),
    "infinite": (
        change(lambda step: step._replace(reward=step.reward / 0)),
        "reward: expected finite numbers, got tensor([",
    ),
    "expected_reward": (
        put_info(lambda step: {"expected_reward": step.info["expected_reward"].long()}),
        "expected_reward: expected float [8], got torch.int64 [8]",
    ),
    "target": (
        put_info(lambda step: {"target": torch.full((8,), 2)}),
        "target: expected one of Discrete(2), got 2",
    ),
    "target's shape": (
        put_info(lambda step: {"target": torch.zeros(8, 1, dtype=torch.int64)}),
        "target: expected int64 [8], got int64 [8, 1]",
    ),
    "terminated": (
        change(lambda step: step._replace(terminated=step.terminated.int())),
        "terminated: expected bool [8], got torch.int32 [8]",
    ),
    "truncated": (
        change(lambda step: step._replace(truncated=step.truncated.unsqueeze(1))),
        "truncated: expected bool [8], got torch.bool [8, 1]",
    ),
    "no final_obs": (
        change(lambda step: drop_info(step, {"regret"})),
        "info: expected final_obs among the keys, got ['regret']",
    ),
    "keys": (
        put_info(lambda step: {"late": step.reward} if step.number > 1 else {}),
        "info: expected the same keys at every step, got ['expected_reward', 'final_obs', 'regret'], later",
    ),
    # streams
    "no seed": (
        wrap(Unseeded),
        "expected the same steps for the same seed, tasks and actions, got others in new",
    ),
    "ageing": (
        wrap(Ageing),
        "expected the same steps for the same seed, tasks and actions, got others in used",
    ),
    "own draw": (
        wrap(OwnDraw),
        "expected the same tasks and steps from the same reset(seed=...), got others",
    ),
    "reused": (
        wrap(Reusing),
        "reward: expected later steps not to change what a step returned, got a change",
    ),
    # episodes and resets
    "endless": (wrap(Endless), "horizon: expected episodes of at most 5 steps, got a longer one"),
    "restart": (
        wrap(Hidden),
        "restart: expected its tasks, whose regret at an episode's first step is",
    ),
    "exposed": (wrap(NewTaskOnRestart), "restart: expected its tasks in the environments' attribute tasks"),
    "reset": (wrap(NewTaskOnReset), "reset(): expected its tasks, whose"),
    "seed wins": (
        wrap(SeedWins),
        "reset(seed, tasks): expected its tasks in the environments' attribute tasks",
    ),
    "deaf": (wrap(Deaf), "reset(tasks): expected its tasks, whose"),
    "tolerant": (wrap(Tolerant), "reset: expected an error for 7 tasks in 8 envs, got none"),
    # the optimum
    "negative": (
        put_info(lambda step: {"regret": step.info["regret"] - 0.5}),
        "regret: expected >= 0 at every step, got -0.5",
    ),
    "no optimum": (
        put_info(lambda step: {"regret": step.info["regret"] + 0.25}),
        "regret: expected 0 for some action in every state, got at least 0.25 after 0 best actions",
    ),
    "later": (
        put_info(lambda step: {"regret": step.info["regret"] + 0.5 * (step.number == 3)}),
        "regret: expected 0 for some action in every state, got at least 0.5 after 2 best actions",
    ),
    "wrong target": (
        put_info(lambda step: {"target": torch.zeros(8, dtype=torch.int64)}),
        "target: expected no regret from it, got 1",
    ),
    "optimum's shape": (
        put(optimal_return=lambda tasks: torch.ones(8, 2)),
        "optimal_return: expected float [8], got torch.float32 [8, 2]",
    ),
    "Bayes": (put(bayes_optimal_return=lambda n: 2.0), "expected at most mean optimal_return 1, got 2"),
    "Bayes' type": (
        put(bayes_optimal_return=lambda n: torch.ones(())),
        "bayes_optimal_return(1): expected a finite float or None, got tensor(1.)",
    ),
    "Bayes' nan": (
        put(bayes_optimal_return=lambda n: float("nan")),
        "bayes_optimal_return(1): expected a finite float or None, got nan",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_fault_is_named(corridor: Any, name: str) -> None:
    fault, message = FAULTS[name]
    family = corridor()
    fault(family)
    with pytest.raises(ConformanceError) as raised:
        check_distribution(family)
    assert message in str(raised.value)


class OnlyOwn(Envs):
    """Knows the regret of the action taken, and takes all others for best."""

    def step(self, actions: Any) -> Any:
        *rest, info = super().step(actions)
        own = torch.zeros_like(info["regrets"]).scatter(1, actions.unsqueeze(1), info["regret"].unsqueeze(1))
        return *rest, {**info, "regrets": own}


class TooLate(Envs):
    """Gives the regrets of the state that a step leads to, not of the state before it."""

    def step(self, actions: Any) -> Any:
        *rest, info = super().step(actions)
        table, node = self.envs._prepared.parameters["regrets"], self.envs._state
        return *rest, {**info, "regrets": table[torch.arange(len(node)), node]}


def put_regrets(function: Callable[[torch.Tensor], torch.Tensor]) -> Fault:
    return put_info(lambda step: {"regrets": function(step.info["regrets"])})


FAULTS_OF_REGRETS: dict[str, tuple[Fault, str]] = {
    "shape": (put_regrets(lambda x: x[:, :2]), "regrets: expected float [8, 3], got torch.float32 [8, 2]"),
    "dtype": (put_regrets(lambda x: x.long()), "regrets: expected float [8, 3], got torch.int64 [8, 3]"),
    "infinite": (put_regrets(lambda x: x / 0), "regrets: expected finite numbers, got tensor(["),
    "alone": (
        change(lambda step: drop_info(step, {"final_obs", "regrets"})),
        "regrets: expected regret beside them in the info, got regrets alone",
    ),
    "negative": (
        put_regrets(lambda x: x - 0.5),
        "regrets: expected >= 0 of every action, got -0.5",
    ),
    "no best": (
        put_regrets(lambda x: x + 0.25),
        "regrets: expected 0 for the best action of every state, got at least 0.25",
    ),
    "others": (
        put_regrets(lambda x: x.roll(1, dims=1)),
        "regrets: expected regret at the action taken, got a difference of",
    ),
    "too late": (wrap(TooLate), "regrets: expected regret at the action taken, got a difference of"),
    "only own": (
        wrap(OnlyOwn),
        "regrets: expected the regret of each action as its replay has it, got a difference of",
    ),
}


@pytest.mark.parametrize("name", FAULTS_OF_REGRETS)
def test_fault_of_regrets_is_named(name: str) -> None:
    fault, message = FAULTS_OF_REGRETS[name]
    family = TabularMDPs(num_states=4, num_actions=3, horizon=5)
    check_distribution(family)
    fault(family)
    with pytest.raises(ConformanceError) as raised:
        check_distribution(family)
    assert message in str(raised.value)
    assert "expected no error" not in str(raised.value)


def test_regrets_of_later_states_are_replayed() -> None:
    family = TabularMDPs(num_states=4, num_actions=3, horizon=5)
    change(lambda step: late_guess(step, 3))(family)
    with pytest.raises(ConformanceError, match=r"as its replay has it, got a difference of .* after 2 best"):
        check_distribution(family)


def late_guess(step: Step, number: int) -> Step:
    """From a step on, all actions but the one taken have no regret."""
    own, regrets = step.info["regret"].unsqueeze(1), step.info["regrets"]
    guess = torch.where(regrets == own, regrets, torch.zeros_like(regrets))
    return step._replace(info={**step.info, "regrets": guess if step.number >= number else regrets})


def test_regrets_are_for_discrete_actions_only() -> None:
    family = PointNavigation(horizon=5)
    put_info(lambda step: {"regrets": step.info["regret"].unsqueeze(1).expand(8, 5)})(family)
    with pytest.raises(ConformanceError, match="regrets: expected them for Discrete actions only, got Box"):
        check_distribution(family)


class Masked(BernoulliBandits):
    """Bandits with a mask that allows all arms but the last."""

    def make_envs(self, num_envs: int, device: torch.device) -> Any:
        return WithoutLast(super().make_envs(num_envs, device))


class WithoutLast(Envs):
    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        observation, info = super().reset(seed=seed, options=options)
        return observation, {**info, "action_mask": self.mask()}

    def step(self, actions: Any) -> Any:
        assert (actions < 2).all(), "expected legal arms"
        *rest, info = super().step(actions)
        regrets = info["regrets"] - info["regrets"][:, :2].amin(dim=1, keepdim=True)
        regrets = regrets.clamp(min=0)  # of the arm that may not be pulled too
        regret = regrets.gather(1, actions.unsqueeze(1)).squeeze(1)
        return *rest, {**info, "regret": regret, "regrets": regrets, "action_mask": self.mask()}

    def mask(self) -> torch.Tensor:
        return torch.tensor([True, True, False]).expand(self.num_envs, 3)


def test_regrets_beside_a_mask_are_those_of_the_legal_actions() -> None:
    family = Masked(num_arms=3)
    family.__dict__["optimal_return"] = lambda tasks: tasks.parameters["means"][:, :2].amax(dim=1)
    family.__dict__["bayes_optimal_return"] = lambda num_episodes: None
    check_distribution(family)


def test_one_step_identity_is_checked() -> None:
    class Wrong(BernoulliBandits):
        def optimal_return(self, tasks: Any) -> torch.Tensor:
            return super().optimal_return(tasks) + 0.1

    with pytest.raises(ConformanceError, match=r"expected_reward \+ regret: expected optimal_return"):
        check_distribution(Wrong(num_arms=3))
