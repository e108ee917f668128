"""Spaces of every kind: what agents see is what Gymnasium flattens to, and actions arrive as their own."""

import math
from typing import Any

import manifold
import numpy as np
import pytest
import torch
from gymnasium import spaces
from manifold import BOX, DONE, SEEN, Manifolds, Odds

from rl2meta.agents.cores.recurrent import LSTMConfig
from rl2meta.agents.rl2 import RL2Config, rl2_learner
from rl2meta.counted import sizes_of
from rl2meta.images import is_image
from rl2meta.randomness import generator
from rl2meta.rollout import RolloutWorker
from rl2meta.spaces import encoding
from rl2meta.tasks import MappingTasks, sample_tasks
from rl2meta.workers.faults import EnvironmentFault
from rl2meta.workers.plugged_in import PluggedIn
from rl2meta.workers.settings import WorkerSettings

LANES = 3
TASKS = MappingTasks(tuple({"lane": lane} for lane in range(LANES)))
SMALL = RL2Config(core=LSTMConfig(hidden_size=8), epochs=1, minibatches=1)


def plugged(family: Any, processes: int = 0) -> PluggedIn:
    return PluggedIn(family, WorkerSettings(processes=processes))


def flat(space: Any, element: Any) -> torch.Tensor:
    return torch.from_numpy(np.asarray(spaces.flatten(space, element)).astype(np.float32).ravel())


def stream(law: PluggedIn) -> list[torch.Tensor]:
    envs, seen = law.make_envs(LANES, torch.device("cpu")), []
    observation, _ = envs.reset(seed=0, options={"tasks": TASKS})
    for _ in range(6):
        seen.append(observation)
        observation, *_, info = envs.step(torch.zeros(LANES, dtype=torch.int64))
        seen.append(info["final_obs"])
    envs.close()
    return seen


@pytest.mark.parametrize(
    ("name", "reused"),
    [*((name, False) for name in SEEN), *((n, True) for n, s in SEEN.items() if isinstance(s, spaces.Box))],
)
def test_what_agents_see_is_what_gymnasium_flattens_to(name: str, reused: bool) -> None:
    law = plugged(Manifolds(name, reused=reused))
    envs, shown = law.make_envs(LANES, torch.device("cpu")), manifold.shown
    shown.clear()
    encode = encoding(law.observation_space).encode
    observation, _ = envs.reset(seed=0, options={"tasks": TASKS})
    ends = 0
    for _ in range(8):
        assert all(x.numpy() in law.observation_space for x in observation)
        for lane in range(LANES):
            assert torch.equal(encode(observation)[lane], flat(SEEN[name], shown[lane][-1]))
        observation, _, terminated, truncated, info = envs.step(torch.zeros(LANES, dtype=torch.int64))
        for lane, last in enumerate((terminated | truncated).tolist()):
            ends += last
            assert torch.equal(encode(info["final_obs"])[lane], flat(SEEN[name], shown[lane][-1 - last]))
    assert ends >= LANES
    assert is_image(law.observation_space) == (name == "image")


@pytest.mark.parametrize("name", SEEN)
def test_workers_show_the_same(name: str) -> None:
    alone, together = stream(plugged(Manifolds(name))), stream(plugged(Manifolds(name), 1))
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(alone, together, strict=True))


def learns(law: PluggedIn) -> None:
    learner = rl2_learner(law.observation_space, law.action_space, SMALL)
    worker = RolloutWorker(law)
    for update in range(2):
        trial = worker.run(learner.agent, sample_tasks(law, 6, update, "train"), 2, update)
        metrics = learner.update(trial, 0.0, generator(update))
        assert all(map(math.isfinite, metrics.values()))
    worker.close()


@pytest.mark.parametrize("name", SEEN)
def test_an_agent_learns_from_every_observation(name: str) -> None:
    learns(plugged(Manifolds(name)))


@pytest.mark.parametrize("name", DONE)
def test_actions_arrive_as_elements_of_the_environments_space(name: str) -> None:
    """The environment asserts it; bounds that float32 rounds outwards are among them."""
    manifold.done.clear()
    law = plugged(Manifolds(acted=name))
    learns(law)
    space = DONE[name]
    if isinstance(space, spaces.Box) and space.low.max() > -1:
        assert any((action == space.low).any() for action in manifold.done)
    elif isinstance(space, spaces.MultiDiscrete | spaces.MultiBinary):
        assert all(action.dtype == space.dtype and action.shape == space.shape for action in manifold.done)
        counts = np.stack(manifold.done).reshape(len(manifold.done), -1)
        assert [len(set(column)) for column in counts.T] == sizes_of(space)  # every value of every entry
    elif isinstance(space, spaces.Discrete):
        assert {int(action) for action in manifold.done} == {int(space.start) + i for i in range(3)}


def test_actions_arrive_in_workers_too() -> None:
    learns(plugged(Manifolds("dict", "float64"), 2))


def test_what_lies_in_a_matrix_stays_in_its_place() -> None:
    law = plugged(Manifolds(acted="box of two axes"))
    envs = law.make_envs(2, torch.device("cpu"))
    envs.reset(seed=0)
    manifold.done.clear()
    envs.step(torch.arange(12.0).reshape(2, 6) / 6)
    given = np.arange(12, dtype=np.float32).reshape(2, 2, 3) / 6
    np.testing.assert_array_equal(manifold.done, given)


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        ((spaces.Text(5), spaces.Discrete(2)), "observation_space: expected .* wrap the environment"),
        ((spaces.Sequence(BOX), spaces.Discrete(2)), "expected an observation space that is, or is made of"),
        ((spaces.Dict({"a": spaces.Sequence(BOX)}), spaces.Discrete(2)), "expected an observation space"),
        ((BOX, spaces.Tuple((spaces.Discrete(2), BOX))), "action_space: expected an action space that is"),
        ((BOX, spaces.Box(0, 5, (2,), np.int64)), "MultiDiscrete, MultiBinary or a Box of floats"),
    ],
)
def test_spaces_that_cannot_be_used_are_told(pair: Any, message: str) -> None:
    law = plugged(Odds(spaces=pair, observation=pair[0].sample()))
    with pytest.raises(EnvironmentFault, match=message):
        _ = law.observation_space, law.action_space


@pytest.mark.parametrize(
    ("space", "observation", "message"),
    [
        (BOX, np.zeros(2), r"expected a NumPy array float32 \[2\] for an observation, got float64 \[2\]"),
        (BOX, np.zeros(3, np.float32), r"got float32 \[3\]"),
        (BOX, [0.0, 0.0], r"got list \[0.0, 0.0\]"),
        (BOX, np.array([0, np.nan], np.float32), "expected finite numbers for an observation"),
        (SEEN["discrete"], 3, r"expected an observation in Discrete\(5, start=-2\), got int 3"),
        (SEEN["discrete"], 0.5, "got float 0.5"),
        (
            SEEN["multi_binary"],
            np.array([0, 1, 2, 0], np.int8),
            r"expected an observation in MultiBinary\(4\)",
        ),
    ],
)
def test_observations_that_are_none_of_the_space_are_told(space: Any, observation: Any, message: str) -> None:
    law = plugged(Odds(spaces=(space, spaces.Discrete(2)), observation=observation))
    envs = law.make_envs(1, torch.device("cpu"))
    with pytest.raises(EnvironmentFault, match=rf"environment 0 \(task .*\), step 0, reset: .*{message}"):
        envs.reset(seed=0)


@pytest.mark.parametrize("element", [3, np.int8(3), np.array(3)])
def test_every_integer_that_gymnasium_takes_is_one(element: Any) -> None:
    space = spaces.Discrete(4, start=1)
    assert element in space
    law = plugged(Odds(spaces=(space, spaces.Discrete(2)), observation=element))
    assert law.make_envs(1, torch.device("cpu")).reset(seed=0)[0].tolist() == [2]
