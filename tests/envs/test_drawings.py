"""Pictures of every family against golden images; ``python tests/envs/test_drawings.py`` draws these again.

After a change of a picture, draw them again, look at each, and commit them.
"""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from PIL import Image

from rl2meta.envs import FAMILIES
from rl2meta.envs.bandits import BernoulliBandits, GaussianBandits
from rl2meta.envs.dependent_bandits import DependentBandits
from rl2meta.envs.few_shot import FewShot
from rl2meta.envs.four_rooms import FourRooms
from rl2meta.envs.mazes import DarkRooms, KeyToDoor
from rl2meta.envs.moving_bandits import MOVES, MovingBandits
from rl2meta.envs.navigation import PointNavigation
from rl2meta.envs.quadratics import Quadratics
from rl2meta.envs.sinusoids import Sinusoids
from rl2meta.envs.tabular import TabularMDPs
from rl2meta.envs.two_step import TwoStep
from rl2meta.history import EpisodeRecord, History
from rl2meta.rendering import can_describe, frame, text
from rl2meta.tasks import TaskDistribution, TensorTasks

GOLDEN = Path(__file__).parents[1] / "golden"
SIZE = (320, 240)
BLOCK = 8  # pixels; fonts and edges differ between versions of matplotlib, the mean of a block hardly
TOLERANCE = 1.0  # of 255, mean over the blocks
Case = tuple[TaskDistribution, TensorTasks, History]


def _record(observations: Any, actions: Any, rewards: Any, ended: bool = True) -> EpisodeRecord:
    rewards = np.array(rewards, np.float32)
    return EpisodeRecord(np.array(observations), np.array(actions), rewards, None, 0.5 * abs(rewards), ended)


def _pulls(actions: Sequence[int], rewards: Sequence[float]) -> History:
    pulled = [_record([0, 0], [a], [r]) for a, r in zip(actions, rewards, strict=True)]
    return History(tuple(pulled), 1)


def _moves(cells: Sequence[int], size: int, rewards: Sequence[float], ended: bool) -> EpisodeRecord:
    named = {0: 0, -size: 1, size: 2, -1: 3, 1: 4}
    return _record(cells, [named[int(move)] for move in np.diff(cells)], rewards, ended)


def _walk(turn: float, steps: int, ended: bool) -> EpisodeRecord:
    heading = turn + 0.15 * np.arange(steps)
    actions = np.stack([np.cos(heading), np.sin(heading)], axis=1)
    positions = np.concatenate([np.zeros((1, 2)), 0.1 * actions.cumsum(axis=0)])
    return _record(positions.astype(np.float32), actions, -abs(positions[1:]).sum(axis=1), ended)


def _mdp() -> Case:
    law = TabularMDPs(num_states=5, num_actions=3, horizon=6)
    number = np.arange(75).reshape(1, 5, 3, 5)
    chances = np.where(number % 7 < 2, 4.0, 0.5)
    chances /= chances.sum(axis=-1, keepdims=True)
    means = np.sin(np.arange(15)).reshape(1, 5, 3)
    tasks = {"reward_means": torch.tensor(means), "transitions": torch.tensor(chances)}
    lived = (
        _record([0, 1, 1, 4, 2, 0, 3], [0, 1, 2, 0, 1, 2], [1, 2, 0, 1, 0.5, 1]),
        _record([0, 1, 4, 2, 0], [0, 2, 0, 1], [1, 2, 1, 1.5], ended=False),
    )
    return law, TensorTasks({name: value.float() for name, value in tasks.items()}), History(lived, 6)


def _two_step() -> Case:
    tasks = TensorTasks({"good_side": torch.tensor([1]), "switches": torch.full((1, 64), 2**40)})
    plans = [(0, 1, 0), (1, 2, 1), (1, 1, 0), (1, 2, 1), (1, 2, 0)]
    lived = [_record([0, side, side], [action, 0], [0, paid]) for action, side, paid in plans]
    return TwoStep(), tasks, History((*lived, _record([0, 2], [1], [0], ended=False)), 2)


def _points() -> Case:
    tasks = TensorTasks({"amplitude": torch.tensor([3.0]), "phase": torch.tensor([1.0])})
    points = [(-4.0, 1.0), (-2.5, 2.0), (0.5, -2.0), (2.0, 2.4), (3.5, 2.0)]
    lived = [_record([[x], [x]], [[guess]], [-1.0]) for x, guess in points]
    waiting = EpisodeRecord(np.array([[1.2]]), np.zeros((0, 1)), np.zeros(0), None, np.zeros(0))
    return Sinusoids(), tasks, History((*lived, waiting), 1)


def _quadratic() -> Case:
    entries = np.sin(np.arange(20)).reshape(1, 4, 5)
    tasks = {"matrix": torch.tensor(entries[..., :4]), "vector": torch.tensor(entries[..., 4])}
    rewards = -3 * 0.7 ** np.arange(40)
    lived = [_record([[0.0] * 4] * 2, [[0.0]], [reward]) for reward in rewards]
    return (
        Quadratics(4),
        TensorTasks({name: value.float() for name, value in tasks.items()}),
        History(tuple(lived), 1),
    )


def _examples() -> Case:
    """Two strokes for each class; the picture reads nothing of a task but the labels."""
    label = torch.tensor([[2, 0, 4, 1, 3, 3, 1, 0, 2, 4, *range(5), *range(5), *range(5), *range(5)]])
    tasks = {"classes": torch.arange(5).unsqueeze(0), "label": label, "image": torch.zeros_like(label)}

    def image(kind: int) -> Any:
        pixels = np.zeros((1, 14, 14), np.float32)
        pixels[0, 2 + 2 * kind, 2:12], pixels[0, 2:12, 11 - 2 * kind] = 1.0, 0.6
        return pixels

    guesses = [0] * 5 + [3, 1, 4, 2]
    lived = [
        _record([image(kind)] * 2, [guess], [float(kind == guess)])
        for kind, guess in zip(label[0].tolist(), guesses, strict=False)
    ]
    waiting = EpisodeRecord(image(4)[None], np.zeros(0), np.zeros(0), None, np.zeros(0))
    drawn = TensorTasks({**tasks, "jitter": torch.zeros(1, 30, 6)})
    return FewShot(), drawn, History((*lived, waiting), 1)


def _two_points() -> Case:
    law, places = MovingBandits(), torch.tensor([[[-0.6, 0.4], [0.7, 0.5]]])
    actions = [np.array([1, 3] * 6 + [1, 0]), np.array([2, 3, 2, 2])]
    lived = []
    for taken in actions:
        walked = 0.1 * np.concatenate([np.zeros((1, 2)), np.array(MOVES)[taken].cumsum(axis=0)])
        seen = np.concatenate([walked, np.repeat(places.reshape(1, 4).numpy(), len(walked), 0)], axis=1)
        lived.append(_record(seen, taken, np.zeros(len(taken)), ended=len(lived) == 0))
    return law, TensorTasks({"right": torch.tensor([1]), "points": places}), History(tuple(lived), 50)


def _cases() -> dict[str, Case]:
    def means(*of_arms: float) -> TensorTasks:
        return TensorTasks({"means": torch.tensor([of_arms])})

    search = (_moves([40, 31, 22, 13, 14, 15], 9, [0] * 5, True), _moves([40, 41, 42, 51], 9, [0] * 3, False))
    slip = (_moves([74, 85, 96, 97], 11, [0] * 3, True), _moves([74, 85, 84, 84, 95], 11, [0] * 4, False))
    fetch = (
        _moves([24, 23, 16, 15, 15], 7, [0, 0, 0, 1], True),
        _moves([16, 15, 8, 1, 2], 7, [1, 0, 0, 0], False),
    )
    paths = (_walk(0.5, 12, True), _walk(2.0, 9, True), _walk(4.0, 10, True), _walk(3.1, 5, False))
    return {
        "bernoulli_bandit": (
            BernoulliBandits(3),
            means(0.2, 0.8, 0.5),
            _pulls([0, 1, 2, 1, 1], [0, 1, 0, 1, 0]),
        ),
        "gaussian_bandit": (
            GaussianBandits(3),
            means(-1.0, 1.5, 0.3),
            _pulls([0, 1, 2, 1], [-2, 1.2, 0.8, 2]),
        ),
        "dependent_bandit": (DependentBandits("easy"), means(0.1, 0.9), _pulls([0, 1, 1], [0, 1, 1])),
        "two_step": _two_step(),
        "tabular_mdp": _mdp(),
        "dark_room": (DarkRooms(), TensorTasks({"goal": torch.tensor([52])}), History(search, 20)),
        "key_to_door": (
            KeyToDoor(size=7, layout="four_rooms"),
            TensorTasks({"key": torch.tensor([15]), "door": torch.tensor([2])}),
            History(fetch, 50),
        ),
        "navigation": (
            PointNavigation(),
            TensorTasks({"goal": torch.tensor([[-0.3, 0.35]])}),
            History(paths, 100),
        ),
        "sinusoid": _points(),
        "quadratic": _quadratic(),
        "few_shot": _examples(),
        "moving_bandits": _two_points(),
        "four_rooms": (FourRooms(), TensorTasks({"goal": torch.tensor([105])}), History(slip, 100)),
    }


CASES = _cases()
EVERY = pytest.mark.parametrize("name", sorted(CASES))


def _blocks(pixels: Any) -> Any:
    """Return the mean of each block, [height / 8, width / 8, 3]."""
    height, width = (length // BLOCK for length in pixels.shape[:2])
    return np.asarray(pixels, float).reshape(height, BLOCK, width, BLOCK, 3).mean(axis=(1, 3))


def _distance(one: Any, other: Any) -> float:
    return float(abs(_blocks(one) - _blocks(other)).mean())


def _golden(name: str) -> Any:
    return np.asarray(Image.open(GOLDEN / f"{name}.png").convert("RGB"))


@lru_cache
def _drawn(name: str) -> Any:
    law, tasks, history = CASES[name]
    return frame(law, tasks, 0, history, SIZE)


def _shorter(history: History) -> History:
    """Return the history without its last step, or without an episode that has none."""
    *before, last = history.episodes
    if last.num_steps < 2:
        return History(tuple(before), history.horizon)
    known = last.regrets[:-1] if last.regrets is not None else None
    last = EpisodeRecord(last.observations[:-1], last.actions[:-1], last.rewards[:-1], None, known)
    return History((*before, last), history.horizon)


@EVERY
def test_a_picture_is_the_golden_one(name: str) -> None:
    """And it is that of no other family."""
    drawn = _drawn(name)
    assert _distance(drawn, _golden(name)) < TOLERANCE
    assert all(_distance(drawn, _golden(other)) > 2 * TOLERANCE for other in CASES if other != name)


@EVERY
def test_a_picture_changes_with_the_history_alone(name: str) -> None:
    law, tasks, history = CASES[name]
    drawn = _drawn(name)
    shorter = frame(law, tasks, 0, _shorter(history), SIZE)
    assert _distance(drawn, _golden(name)) < _distance(shorter, _golden(name))
    assert np.array_equal(drawn, frame(law, tasks, 0, history, SIZE))  # also after another one


@EVERY
def test_a_picture_is_that_of_its_row(name: str) -> None:
    law, tasks, history = CASES[name]
    other = law.sample(1, torch.Generator().manual_seed(2), "test")
    assert other.to_dict() != tasks.to_dict()
    both = {key: torch.cat([other.parameters[key], value]) for key, value in tasks.parameters.items()}  # type: ignore[attr-defined]
    first, second = (frame(law, TensorTasks(both), row, history, SIZE) for row in (0, 1))
    assert np.array_equal(second, _drawn(name)) and not np.array_equal(first, second)


def test_golden_images_are_small() -> None:
    found = {path.stem: path.stat().st_size for path in GOLDEN.glob("*.png")}
    assert found.keys() == CASES.keys() and max(found.values()) < 15_000


@pytest.mark.parametrize("name", sorted(name for name in CASES if can_describe(CASES[name][0])))
def test_a_text_has_what_is_hidden(name: str) -> None:
    law, tasks, history = CASES[name]
    lines = text(law, tasks, 0, history).splitlines()
    if name == "dark_room":  # goal in row 5, column 7; the agent below and right of the start
        assert lines[2 + 5].split()[7] == "G" and lines[2 + 5].split()[6] == "@"
        assert [row.split().count("o") for row in lines[2:]] == [0, 0, 0, 0, 3, 0, 0, 0, 0]
    elif name == "four_rooms":
        assert lines[2 + 9].split()[6] == "G" and lines[2 + 8].split()[7] == "@"
        assert lines[2 + 6].split() == [*".....###o##"]
    elif name == "key_to_door":  # the agent stands on the door
        assert lines[2 + 2].split()[1] == "K" and lines[2].split()[2] == "@"
        assert lines[2 + 3].split() == ["#", ".", "#", "#", "#", ".", "#"]
    else:
        rows = [line.split() for line in lines[3:]]
        assert [float(row[1]) for row in rows] == [
            pytest.approx(mean) for mean in tasks.parameters["means"][0].tolist()
        ]
        pulls = [int((history.actions == arm).sum()) for arm in range(len(rows))]
        assert [int(row[2]) for row in rows] == pulls


@pytest.mark.parametrize("id", sorted(FAMILIES))
@pytest.mark.filterwarnings("ignore:.*we recommend using a symmetric and normalized:UserWarning")
@pytest.mark.filterwarnings("ignore:.*We recommend you to use a symmetric and normalized:UserWarning")
@pytest.mark.filterwarnings("ignore:It seems that your observation  is an image but its `dtype`:UserWarning")
@pytest.mark.filterwarnings("ignore:It seems that your observation space  is an image but the:UserWarning")
@pytest.mark.filterwarnings("ignore:The minimal resolution for an image is 36x36:UserWarning")
def test_both_checkers_are_content_with_rendering(id: str) -> None:
    from gymnasium.utils.env_checker import check_env
    from stable_baselines3.common.env_checker import check_env as check_sb3

    env = gym.make(id, render_mode="rgb_array").unwrapped
    assert {"rgb_array"} <= set(env.metadata["render_modes"]) and env.metadata["render_fps"] > 0
    check_env(env)
    check_sb3(env, skip_render_check=False)


def _draw_again() -> None:
    for name in CASES:
        image = Image.fromarray(_drawn(name)).quantize(64, dither=Image.Dither.NONE)
        image.save(GOLDEN / f"{name}.png", optimize=True)


if __name__ == "__main__":
    _draw_again()
