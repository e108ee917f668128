"""What happened, as environments and trajectories tell it, and what render modes make of it."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

import rl2meta.envs
from rl2meta import rendering
from rl2meta.agents.references.anything import UniformAgent
from rl2meta.envs.batched import TaskEnv, TensorVectorEnv
from rl2meta.envs.gym_tasks import GymnasiumTasks
from rl2meta.envs.mazes import DarkRooms
from rl2meta.envs.navigation import PointNavigation
from rl2meta.errors import UserError
from rl2meta.history import EpisodeRecord, History, history_at
from rl2meta.interop import TrialEnv
from rl2meta.rendering import Screen, frame, modes_of
from rl2meta.revealed import Revealed
from rl2meta.rollout import RolloutWorker
from rl2meta.tasks import sample_tasks
from rl2meta.workers.family import make_shown

CPU = torch.device("cpu")
DARK = "rl2meta/DarkRoom-v0"


class Silent:
    """A law of another package that draws nothing."""

    horizon = 1


def _replayed(law: Any, tasks: Any, trial: Any, seed: int) -> TensorVectorEnv:
    """Environments with a screen, in which the actions of a trial of one phase were taken again."""
    envs = law.make_envs(len(tasks), CPU)
    envs.screen = Screen.__new__(Screen)  # one that never shows anything, so the law need not draw
    envs.screen._recorder, envs.screen._law = rendering.Recorder(law.horizon), law
    envs.reset(seed=seed, options={"tasks": tasks})
    for action in trial.phases[0].action:
        envs.step(action)
    return envs


def test_trajectories_and_environments_tell_the_same(corridor: Callable[..., Any]) -> None:
    """Of episodes of unequal length with padding, up to what only one of the two knows."""
    from rl2meta.randomness import derive

    law = corridor(horizon=4)
    tasks = sample_tasks(law, 5, 1, "test")
    agent = UniformAgent(law.action_space)
    agent.phase = rl2meta.Phase(episodes=3)
    trial = RolloutWorker(law).run(agent, tasks, 3, 7)
    envs = _replayed(law, tasks, trial, derive(7, "envs"))
    for row in range(5):
        steps = int(trial.phases[0].mask[:, row].sum())
        told = history_at(trial.phases, row, steps)
        assert told.num_steps == steps and told.num_ended == len(told.episodes) == 3
        for one, other in zip(told.episodes, envs.screen.history(row).episodes, strict=False):
            assert np.array_equal(one.observations[:-1], other.observations[:-1])
            for name in ("actions", "rewards", "expected_rewards", "regrets"):
                assert np.array_equal(getattr(one, name), getattr(other, name)), name
            arrived = other.rewards[-1] > 0.5 or other.num_steps == 4
            assert one.ended and other.ended and arrived


def test_a_history_grows_step_by_step(corridor: Callable[..., Any]) -> None:
    law = corridor(horizon=3)
    trial = RolloutWorker(law).run(UniformAgent(law.action_space), sample_tasks(law, 4, 0, "test"), 6, 0)
    total = int(torch.stack([phase.mask[:, 2] for phase in trial.phases]).sum())
    histories = [history_at(trial.phases, 2, step) for step in range(total + 1)]
    assert [history.num_steps for history in histories] == list(range(total + 1))
    rewards = trial.per_task("reward")[2]  # [steps], padding is 0
    assert histories[-1].rewards.sum() == pytest.approx(float(rewards.sum()), abs=1e-5)
    assert histories[-1].regret == pytest.approx(float(trial.per_task("regret")[2].sum()))
    assert list(histories[-1].counts(2)) == [int((histories[-1].actions == arm).sum()) for arm in (0, 1)]
    ends = [history.current.ended for history in histories]
    assert sum(ends) == 6 and ends[-1] and not ends[0]
    for bad in (-1, total + 1):
        with pytest.raises(ValueError, match=rf"step: expected 0 … {total} steps of column 2, got {bad}"):
            history_at(trial.phases, 2, bad)
    with pytest.raises(ValueError, match="row: expected a column 0 … 3"):
        history_at(trial.phases, 4, 0)


def test_records_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected 2 observations, .* for 1 actions; got \[3, 1\]"):
        EpisodeRecord(np.zeros(3), np.zeros(1), np.zeros(1))
    with pytest.raises(ValueError, match="at least one episode"):
        History(())


def _histories(env: TaskEnv) -> tuple[list[int], list[bool]]:
    history = env._screen.history(0)
    history = history.settled() if env._ended else history
    return [each.num_steps for each in history.episodes], [each.ended for each in history.episodes]


def test_a_task_environment_keeps_the_trial_of_its_task() -> None:
    env = TaskEnv(DarkRooms(size=3, horizon=2), "ansi")
    with pytest.raises(gym.error.ResetNeeded, match="first picture"):
        env.render()
    env.reset(seed=0)
    assert _histories(env) == ([0], [False])
    env.step(1), env.step(2)
    assert _histories(env) == ([2], [True]) and "step 2 of 2" in env.render()
    env.reset()
    assert _histories(env) == ([2, 0], [True, False]) and "episode 2, step 0 of 2" in env.render()
    env.step(1)
    env.reset()  # breaks the episode off
    env.step(1)
    assert _histories(env) == ([2, 1, 1], [True, False, False])
    env.reset(seed=1)  # another task
    assert _histories(env) == ([0], [False])


def test_many_environments_render_their_rows() -> None:
    """Each as a single environment would with the same task and actions."""
    law = DarkRooms()
    tasks = sample_tasks(law, 3, 3, "test")
    envs = gym.make_vec(DARK, num_envs=3, render_mode="rgb_array")
    envs.reset(seed=0, options={"tasks": tasks})
    moves = torch.tensor([[1, 2, 3], [1, 4, 4]])
    for action in moves:
        envs.step(action)
    frames = envs.render()
    assert len(frames) == 3
    for row, pixels in enumerate(frames):
        env = gym.make(DARK, render_mode="rgb_array")
        env.reset(seed=5, options={"tasks": tasks[row : row + 1]})
        for action in moves[:, row]:
            env.step(int(action))
        assert np.array_equal(pixels, env.render())
    some = gym.make_vec(DARK, num_envs=3, render_mode="ansi", render_rows=[2, 0])
    some.reset(seed=0, options={"tasks": tasks})
    for action in moves:
        some.step(action)
    texts = some.render()
    goals = [int(tasks.parameters["goal"][row]) for row in (2, 0)]
    assert ["".join(told.splitlines()[2:]).replace(" ", "").index("G") for told in texts] == goals


def test_without_a_mode_nothing_is_kept() -> None:
    envs = gym.make_vec(DARK, num_envs=2)
    envs.reset(seed=0)
    assert envs.screen is None
    with pytest.raises(
        UserError, match=r"expected a render mode, got None; use gym.make_vec\(..., render_mode="
    ):
        envs.render()
    with pytest.warns(UserWarning, match="expected a render mode to render, got None"):
        assert gym.make(DARK, disable_env_checker=True).unwrapped.render() is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"sise": 5},
            r"DarkRooms: expected arguments among size, horizon, .*got 'sise'; did you mean 'size'\?",
        ),
        ({"size": 2}, r"DarkRooms: size: expected greater than or equal to 3, got 2"),
        ({"size": 8, "layout": "four_rooms"}, "layout four_rooms: expected an odd size"),
        ({"render_mod": "ansi"}, r"got 'render_mod'; did you mean 'render_mode'\?"),
    ],
)
def test_wrong_arguments_of_make_are_explained(arguments: dict[str, Any], message: str) -> None:
    for make in (gym.make, lambda id, **kwargs: gym.make_vec(id, num_envs=2, **kwargs)):
        with pytest.raises(UserError, match=message) as caught:
            make(DARK, **arguments)
        assert "pydantic" not in str(caught.value)


def test_wrong_modes_and_rows_are_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    import matplotlib

    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("sys.platform", "linux")
    assert modes_of(DarkRooms()) == ["rgb_array", "ansi"] and modes_of(Silent()) == []
    with pytest.raises(UserError, match="expected a display, got neither DISPLAY"):
        gym.make(DARK, render_mode="human")
    with pytest.raises(UserError, match=r"expected one of 'rgb_array', 'ansi', or None, got 'depth'"):
        TaskEnv(DarkRooms(), "depth")
    with pytest.raises(UserError, match="expected None, as the family draws nothing, got 'rgb_array'"):
        Screen(Silent(), "rgb_array", [0])  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"render_rows: expected rows 0 … 1, got \[2\]"):
        gym.make_vec(DARK, num_envs=2, render_mode="ansi", render_rows=[2])
    with pytest.raises(UserError, match="render_rows: expected rows 0 … 1, got 3"):
        gym.make_vec(DARK, num_envs=2, render_mode="ansi", render_rows=3)
    with pytest.raises(UserError, match="render_rows: expected rows"):
        gym.make_vec(DARK, num_envs=2, render_mode="ansi", render_rows=[0.5])
    with pytest.raises(UserError, match="'rgb_array' or 'ansi' for many environments, got 'human'"):
        gym.make_vec(DARK, num_envs=2, render_mode="human")
    monkeypatch.setenv("DISPLAY", ":99")
    matplotlib.use("agg")
    assert modes_of(DarkRooms())[0] == "human"
    env = TaskEnv(DarkRooms(), "human")
    with pytest.raises(
        UserError, match=r"expected a toolkit for windows and .*, got matplotlib's backend agg"
    ):
        env.reset(seed=0)


def test_frames_do_not_depend_on_the_users_settings_and_leave_none() -> None:
    import matplotlib
    from matplotlib import _pylab_helpers

    law = DarkRooms(size=4)
    tasks = sample_tasks(law, 2, 0, "test")
    history = History((EpisodeRecord(np.array([5]), np.zeros(0), np.zeros(0)),), 20)
    plain = frame(law, tasks, 1, history, (200, 151))
    assert plain.shape == (151, 200, 3) and plain.dtype == np.uint8
    with matplotlib.rc_context({"font.size": 30, "lines.linewidth": 9, "figure.facecolor": "red"}):
        assert np.array_equal(frame(law, tasks, 1, history, (200, 151)), plain)
        assert matplotlib.rcParams["font.size"] == 30
    assert not _pylab_helpers.Gcf.figs
    with pytest.raises(ValueError, match="row: expected one of 2 tasks"):
        frame(law, tasks, 2, history)
    with pytest.raises(UserError, match="expected a law with a method draw"):
        frame(Silent(), tasks, 0, history)  # type: ignore[arg-type]


def test_a_revealed_task_looks_like_the_hidden_one() -> None:
    """Of Discrete and of Box observations, with the same luck and actions."""
    for law in (DarkRooms(horizon=3), PointNavigation(horizon=3)):
        tasks = sample_tasks(law, 2, 0, "test")
        pictures = []
        for shown in (law, Revealed(law)):
            trial = RolloutWorker(shown).run(UniformAgent(law.action_space), tasks, 2, 0)
            pictures.append(frame(shown, tasks, 1, history_at(trial.phases, 1, 5), (200, 150)))
        assert np.array_equal(*pictures) and modes_of(Revealed(law)) == modes_of(law)
    assert not rendering.can_draw(Revealed(Silent()))  # type: ignore[arg-type]


def test_a_trial_environment_renders_the_inner_one() -> None:
    env = TrialEnv(gym.make(DARK, horizon=2, render_mode="ansi"), num_episodes=3)
    env.reset(seed=0)
    for action in (1, 1, 4):
        env.step(action)
    assert env.render_mode == "ansi" and "episode 2, step 1 of 2" in env.render()


def test_plugged_in_environments_render_in_their_own_way() -> None:
    poles = GymnasiumTasks(id="CartPole-v1", vary_attributes={"length": [0.3, 0.7]})
    env = make_shown(poles, {"attributes": {"length": 0.4}}, "rgb_array")
    assert env.render_mode == "rgb_array" and env.unwrapped.length == 0.4
    assert poles.make_env({"attributes": {"length": 0.4}}).render_mode is None

    class Mute:
        def make_env(self, task: Any) -> Any: ...

    with pytest.raises(UserError, match=r"Mute: expected make_env\(task, render_mode=None\)"):
        make_shown(Mute(), {}, "rgb_array")  # type: ignore[arg-type]


def test_record_video_records(tmp_path: Path) -> None:
    pytest.importorskip("moviepy", reason="films need the extra: pip install 'rl2meta[video]'")
    env = gym.make(DARK, horizon=3, render_mode="rgb_array")
    film = gym.wrappers.RecordVideo(
        env, str(tmp_path / "films"), episode_trigger=lambda number: True, disable_logger=True
    )
    film.reset(seed=0)
    for _ in range(3):
        film.step(1)
    film.close()
    (video,) = (tmp_path / "films").glob("*.mp4")
    assert video.stat().st_size > 1000


def test_a_window_shows_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a toolkit for windows that only this test has."""
    import matplotlib
    from matplotlib.backend_bases import FigureManagerBase
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    shown: list[Any] = []

    class Manager(FigureManagerBase):
        def show(self) -> None: ...

    class Canvas(FigureCanvasAgg):
        required_interactive_framework = "headless"
        manager_class = Manager

        def start_event_loop(self, timeout: float = 0) -> None:
            self.draw()
            shown.append((timeout, np.asarray(self.buffer_rgba())[..., :3].copy()))

    toolkit = ModuleType("toolkit_of_a_test")
    toolkit.__dict__.update(FigureCanvas=Canvas, FigureManager=Manager)
    monkeypatch.setitem(sys.modules, toolkit.__name__, toolkit)
    monkeypatch.setattr(rendering, "has_display", lambda: True)
    matplotlib.use(f"module://{toolkit.__name__}")
    try:
        window, array = (TaskEnv(DarkRooms(), mode) for mode in ("human", "rgb_array"))
        for env in (window, array):
            env.reset(seed=0)
        for action in (1, 4):
            window.step(action), array.step(action)
            assert np.array_equal(shown[-1][1], array.render())
        assert len(shown) == 3 and {timeout for timeout, _ in shown} == {1 / rendering.FPS}
        window.close()
        window.close()
        window.step(1)  # begins a new window
        assert len(shown) == 4
        window.close()
    finally:
        matplotlib.use("agg")
