"""``rl2meta watch``: a page and an animation that show the trial that was played, and nothing else."""

import json
import re
import shutil
import time
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from PIL import Image

import rl2meta
from rl2meta import cli, evaluation
from rl2meta.beliefs import Betas, Normals, Number, Probabilities, TellingAgent, numbers, policy_told
from rl2meta.errors import UserError
from rl2meta.experiments import watch_pictures
from rl2meta.experiments.components import make_learner, read_config, references_of
from rl2meta.experiments.watch_page import MOST_POSITIONS, page, positions
from rl2meta.experiments.watch_pictures import MOST_BYTES, drawing, encoded, pictures_of
from rl2meta.experiments.watched_trial import watch_trial
from rl2meta.networks import action_distribution
from rl2meta.randomness import derive
from rl2meta.rollout import RolloutWorker
from rl2meta.tasks import sample_tasks
from rl2meta.workers.plugged_in import PluggedIn
from rl2meta.workers.settings import WorkerSettings

SMALL = ["training.updates=2", "training.trials_per_update=8", "training.evaluate_every=null", "threads=1"]
EVIL = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two updates on two arms, in a folder whose name is markup."""
    path = tmp_path_factory.mktemp("runs") / "<b>first<b>"
    overrides = [*SMALL, "distribution.num_arms=3", "agent.core.hidden_size=8", "device=cpu"]
    rl2meta.train("rl2_bandit", overrides, run_dir=path)
    return path


@pytest.fixture(scope="module")
def seen(run_dir: Path) -> rl2meta.Watch:
    """Two agents side by side on task 7."""
    return rl2meta.watch(run_dir, task=7, episodes=3, against="thompson")


class _Parsed(HTMLParser):
    """The elements of a page, and the text of its data."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.data, self.title = "", ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))
        if tag not in ("meta", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        attributes = self.elements[-1][1] if self.elements else {}
        if self.open[-1:] == ["script"] and attributes.get("id") == "data":
            self.data += data
        if self.open[-1:] == ["title"]:
            self.title += data


def _data(seen: rl2meta.Watch) -> Any:
    return json.loads(_Parsed(seen.page.read_text()).data)


def test_the_page_holds_the_trial_that_an_evaluation_plays(run_dir: Path, seen: rl2meta.Watch) -> None:
    """Task 7 alone, with the same seed: the rewards and regrets of ``rl2meta.evaluation.evaluate``."""
    run = rl2meta.load_run(run_dir)
    task = sample_tasks(run.distribution, run.config.settings.evaluation.tasks, 0, "test")[7:8]
    worker = RolloutWorker(run.distribution)
    agents = [run.agent, references_of(run.config, 3)["thompson"].build()]
    data = _data(seen)
    assert data["at"] == list(range(4)) and data["regret"]
    assert data["best"] == pytest.approx(3 * float(task.parameters["means"].max()))
    for agent, shown in zip(agents, data["agents"], strict=True):
        result = evaluation.evaluate(agent, worker, task, 3, 0)
        assert np.diff(shown["expected"]) == pytest.approx(result.rewards[0])
        assert np.diff(shown["curve"]) == pytest.approx(result.regrets[0])
        trial = worker.run(agent, task, 3, derive(0, "evaluate", 0))
        actions = [int(action) for phase in trial.phases for action in phase.action[:, 0]]
        rewards = [float(reward) for phase in trial.phases for reward in phase.reward[:, 0]]
        assert shown["action"] == actions and shown["reward"] == rewards
        assert shown["total"] == pytest.approx([0, *np.cumsum(rewards)])
        assert shown["steps"] == shown["last"] == 3 and shown["episode"] == [0, 1, 2]


def test_a_policy_is_that_of_the_log_probabilities_in_the_notes(seen: rl2meta.Watch) -> None:
    trial, (shown, _) = seen.trials["rl2"], _data(seen)["agents"]
    policy = next(each for each in shown["beliefs"] if each["name"] == "policy")
    assert policy["kind"] == "probabilities" and len(policy["at"]) == 4
    noted = trial.steps(lambda phase: phase.notes["log_prob"]).exp().tolist()
    taken = [each[0][action] for each, action in zip(policy["at"], shown["action"], strict=False)]
    assert taken == pytest.approx(noted, rel=1e-3)


def test_a_posterior_counts_the_rewards_of_the_page(seen: rl2meta.Watch) -> None:
    _, shown = _data(seen)["agents"]
    (posterior,) = shown["beliefs"]
    assert posterior["kind"] == "betas" and (posterior["low"], posterior["high"]) == (0, 1)
    for step in range(3):
        before = list(zip(shown["action"][:step], shown["reward"][:step], strict=True))
        successes = [sum(reward for arm, reward in before if arm == k) for k in range(3)]
        failures = [sum(1 - reward for arm, reward in before if arm == k) for k in range(3)]
        assert posterior["at"][step] == [[s + 1 for s in successes], [f + 1 for f in failures]]


def test_the_page_needs_nothing_else_and_takes_names_for_text(seen: rl2meta.Watch) -> None:
    text = seen.page.read_text()
    parsed = _Parsed(text)
    assert not parsed.open
    assert not re.search(r"https?:|[\"'(]//|url\(|@import", text)
    assert all(not ({"src", "href", "srcset"} & attributes.keys()) for _, attributes in parsed.elements)
    shown = _data(seen)["agents"]
    assert all(uri.startswith("data:image/webp;base64,") for agent in shown for uri in agent["pictures"])
    assert [len(agent["pictures"]) for agent in shown] == [4, 4]
    evil = _Parsed(page({"title": EVIL, "@@DATA@@": "@@TITLE@@ </script>"}, EVIL))
    assert evil.title == EVIL and json.loads(evil.data) == {"title": EVIL, "@@DATA@@": "@@TITLE@@ </script>"}
    assert [tag for tag, _ in evil.elements].count("script") == 2


def test_the_animation_has_a_frame_for_each_picture(seen: rl2meta.Watch) -> None:
    with Image.open(seen.animation) as animation:
        assert animation.n_frames == 4 and animation.info["loop"] == 0
        frames = [np.asarray(animation.convert("RGB")) for _ in _each_frame(animation)]
    assert all((a != b).any() for a, b in pairwise(frames))


def _each_frame(animation: Any) -> Iterator[None]:
    for number in range(animation.n_frames):
        animation.seek(number)
        yield


PULLS = ["agent.episodes_per_phase=4", "training.episodes_per_trial=8"]
CASES = {
    "rl2_bandit": [],
    "rl2_gaussian_bandit": [],
    "rl2_dependent_bandit": [],
    "rl2_two_step": [],
    "rl2_dark_room": ["distribution.size=3", "distribution.horizon=6"],
    "slot_mdp_n10": ["distribution.num_states=3", "distribution.horizon=4"],
    "maml_bandit": PULLS,
    "maml_sinusoid": [],
    "rl2_navigation": ["distribution.horizon=5"],
    "mlsh_moving_bandits": ["distribution.horizon=12", "agent.episodes_per_phase=2"],
}


WITHOUT_MODEL = ("rl2_dark_room", "maml_sinusoid", "rl2_navigation", "mlsh_moving_bandits")
"""Their ``random`` has nothing to tell."""


@pytest.mark.parametrize("name", CASES)
def test_who_is_watched_acts_as_ever(name: str) -> None:
    """The same draws, actions and rewards, for each agent and each reference; all tell the same names."""
    config = read_config(name, [*CASES[name], "device=cpu", "threads=1"])
    law, learner = config.distribution, make_learner(config, torch.device("cpu"))
    lanes = learner.agent.phase.lanes_per_task
    length = 2 * lanes if lanes > 1 else 3
    task, worker = sample_tasks(law, 3, 0, "test")[1:2], RolloutWorker(law)
    agents = {"trained": learner.agent, **{k: r.build() for k, r in references_of(config, length).items()}}
    for key, agent in agents.items():
        plain = worker.run(agent, task, length, derive(5, "evaluate", 0))
        watched = watch_trial(worker, agent, task, length, 5)
        for ours, theirs in zip(watched.trial.phases, plain.phases, strict=True):
            assert torch.equal(ours.action, theirs.action) and torch.equal(ours.reward, theirs.reward)
        assert len({tuple(told) for phase in watched.told for told in phase}) == 1
        assert isinstance(agent, TellingAgent) == (key != "random" or name not in WITHOUT_MODEL)
        places = watched.places
        assert len(places) == watched.trial.num_steps()
        assert watched.history(places, len(places)).num_steps == len(places)


def test_an_adaptation_is_shown_before_and_after_it() -> None:
    """Bandits always show the same observation, so what changed is what the phases themselves told."""
    config = read_config("maml_bandit", [*PULLS, "device=cpu", "threads=1"])
    agent = make_learner(config, torch.device("cpu")).agent
    length = 3 * agent.phase.lanes_per_task
    task = sample_tasks(config.distribution, 2, 0, "test")[:1]
    watched = watch_trial(RolloutWorker(config.distribution), agent, task, length, 1)
    assert [change.step for change in watched.changes] == [length // 3, 2 * length // 3]
    for number, change in enumerate(watched.changes):
        told = [numbers(each["policy"], 0) for each in (change.before, change.after)]
        assert told[0] == numbers(watched.told[number][0]["policy"], 0)
        assert told[1] == numbers(watched.told[number + 1][0]["policy"], 0) != told[0]


@pytest.mark.parametrize("seconds", [0.0, 1e9])
def test_no_more_positions_and_pictures_than_time_and_bytes_allow(
    seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch_pictures, "SECONDS", seconds)
    picture = Image.new("RGB", (2, 2))
    for lengths in ([5], [100], [8000, 130]):
        (first, *others), drawn = pictures_of(
            [lambda steps: dict.fromkeys(steps, picture)] * len(lengths), lengths
        )
        assert sorted(first) == drawn and drawn[0] == 0 and drawn[-1] == lengths[0]
        assert [sorted(each) for each in others] == [sorted({min(step, 130) for step in drawn})] * len(others)
        strides = {b - a for a, b in pairwise(drawn[:-1])}
        assert len(strides) == 1 and len(lengths) * len(drawn) <= watch_pictures.MOST + 2
        assert (strides == {1}) == (lengths == [5] or (lengths == [100] and seconds > 0))
        at = positions(lengths[0], drawn)
        assert set(drawn) <= set(at) and len(at) <= MOST_POSITIONS + len(drawn)


class _Walk(gym.Env[Any, Any]):
    """A random walk; it pays its place, and its picture is as bright."""

    observation_space = gym.spaces.Box(0, 255, (1,), np.float32)
    action_space = gym.spaces.Discrete(3)

    def __init__(self, render_mode: str | None) -> None:
        self.render_mode, self._place, self._left = render_mode, 0, 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self._place, self._left = int(self.np_random.integers(100)), 4
        return np.array([self._place], np.float32), {}

    def step(self, action: Any) -> Any:
        self._place, self._left = self._place + int(action) + int(self.np_random.integers(30)), self._left - 1
        seen = np.array([self._place], np.float32)
        return seen, float(self._place), self._left == 0, False, {}

    def render(self) -> Any:
        return np.full((4, 4, 3), self._place, np.uint8)


class _Walks:
    """Random walks, all the same task."""

    horizon = 4

    def sample(self, rng: np.random.Generator, split: str) -> dict[str, int]:
        return {"task": 0}

    def make_env(self, task: Any, render_mode: str | None = None) -> _Walk:
        return _Walk(render_mode)


@pytest.mark.parametrize("lanes", [1, 3])
def test_single_environments_play_the_trial_again(lanes: int, next_arm: Callable[[int], Any]) -> None:
    """Each picture is as bright as the reward of the step before it: only the same draws give that."""
    law = PluggedIn(_Walks(), WorkerSettings(processes=0))
    task, steps = law.sample(1, torch.Generator(), "test"), 12 * lanes
    watched = watch_trial(RolloutWorker(law), next_arm(lanes), task, 3 * lanes, 2)
    replay, rewards = drawing(law, task, watched), watched.known("reward")
    assert replay is not None and rewards is not None and len(watched.places) == steps
    pictures = replay(range(steps + 1))
    bright = [int(np.asarray(pictures[step])[0, 0, 0]) for step in range(1, steps + 1)]
    assert bright == rewards.tolist() and len(set(bright)) > 5
    watched.trial.phases[-1].reward[-1] += 1
    again = drawing(law, task, watched)
    with pytest.raises(UserError, match="got the reward"):
        assert again is not None and again([steps])


def test_pictures_that_are_too_large_become_smaller() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (12, 360, 480, 3), dtype=np.uint8)
    (uris,) = encoded([{step: Image.fromarray(each) for step, each in enumerate(noise)}])
    assert 3 / 4 * sum(map(len, uris.values())) <= MOST_BYTES


def test_what_distributions_tell() -> None:
    from gymnasium.spaces import Box, Discrete, MultiDiscrete

    logits = torch.tensor([[0.0, 1.0, 2.0]])
    (policy,) = policy_told(action_distribution(Discrete(3))(logits)).values()
    assert isinstance(policy, Probabilities) and torch.allclose(policy.each, logits.softmax(1))
    entries = policy_told(action_distribution(MultiDiscrete([2, 1]))(logits))
    assert torch.allclose(entries["policy of entry 0"].each[:, :2], logits[:, :2].softmax(1))
    (normal,) = policy_told(action_distribution(Box(-1, 1, (1,)))(torch.tensor([[0.5, 0.0]]))).values()
    assert isinstance(normal, Normals) and (normal.mean, normal.deviation) == (0.5, 1.0)
    assert numbers(Betas(logits, logits), 0) == [[0, 1, 2]] * 2 and numbers(Number(logits[0]), 2) == [2]


def test_a_diverged_agent_is_a_mistake_that_is_explained(tmp_path: Path) -> None:
    run = rl2meta.train("rl2_bandit", [*SMALL, "agent.core.hidden_size=4", "device=cpu"])
    state = run.learner.state_dict()
    run.learner.load_state_dict({name: torch.full_like(each, torch.nan) for name, each in state.items()})
    with pytest.raises(UserError, match="expected finite numbers"):
        rl2meta.watch(run, episodes=2, out=tmp_path / "watch")
    assert not list(tmp_path.iterdir())


MISTAKES = {
    "a task beyond the last": (["--task", "10000"], "--task: expected a number from 0 to 9999, got 10000"),
    "an unknown reference": (["--against", "thomson"], "did you mean 'thompson'"),
    "a seed below 0": (["--seed", "-1"], "--seed: expected a number from 0"),
    "no episode": (["--episodes", "0"], "--episodes: expected a number from 1"),
    "a folder without a run": (["--against", "."], "expected"),
    "a folder that exists": (["--out", "."], "expected a new folder"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_explained(
    name: str, run_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, tmp_path: Path
) -> None:
    arguments, said = MISTAKES[name]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["rl2meta", "watch", str(run_dir), "--episodes", "2", *arguments])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    told = capsys.readouterr().err
    assert stop.value.code == 2 and said in told and "Traceback" not in told
    assert not list(tmp_path.iterdir())


def test_a_second_call_writes_beside_the_first(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch_pictures, "can_draw", lambda law: False)
    first, second = (rl2meta.watch(run_dir, task=k, episodes=2) for k in (0, 1))
    assert first.path != second.path and first.page.exists()
    assert first.path.parent == second.path.parent == run_dir and second.path.name.startswith("watch")
    (shown,) = _data(second)["agents"]
    assert not shown["pictures"] and shown["observation"] == [0, 0]
    with pytest.raises(UserError, match="out: expected a folder"):
        rl2meta.watch(rl2meta.train("rl2_bandit", SMALL))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless Chromium; the tests that need it are skipped where there is none."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs pip install -e '.[test]'")
    chromium, driver = (shutil.which(name) for name in ("chromium", "chromedriver"))
    if chromium is None or driver is None:
        pytest.skip("needs a browser and its driver: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    window = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield window
    window.quit()


def test_the_page_plays_in_a_browser(browser: Any, seen: rl2meta.Watch) -> None:
    """From the disk: keys, button and slider move it, and nothing is fetched or complained about."""
    from selenium.webdriver.common.keys import Keys

    browser.get(seen.page.as_uri())

    def text(name: str) -> str:
        return str(browser.execute_script(f"return document.getElementById('{name}').textContent"))

    def press(key: str) -> str:
        browser.find_element("tag name", "body").send_keys(key)
        return text("where")

    assert text("title") == _data(seen)["title"]
    assert text("where") == "step 0 of 3"
    assert press(Keys.ARROW_RIGHT) == "step 1 of 3" and press(Keys.ARROW_LEFT) == "step 0 of 3"
    assert press(Keys.ARROW_LEFT) == "step 0 of 3" and press(Keys.END) == "step 3 of 3"
    assert "over after 3 steps" in browser.find_element("id", "agents").text
    assert press(Keys.HOME) == "step 0 of 3"
    browser.find_element("id", "slider").send_keys(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    assert text("where") == "step 2 of 3"
    browser.execute_script(
        "const s = document.getElementById('slider'); s.value = 1; s.dispatchEvent(new Event('input'))"
    )
    assert text("where") == "step 1 of 3"
    sources = "return [...document.images].map(image => [image.src, image.naturalWidth])"
    for agent, (source, width) in zip(_data(seen)["agents"], browser.execute_script(sources), strict=True):
        assert source == agent["pictures"][1] and width == 480
    press(Keys.HOME)
    press(" ")
    assert text("play") == "❚❚ stop"
    _wait(lambda: text("where"), "step 3 of 3")
    _wait(lambda: text("play"), "▶ play")
    browser.find_element("id", "play").send_keys(" ")
    _wait(lambda: text("play"), "❚❚ stop")
    browser.find_element("id", "play").click()
    assert text("play") == "▶ play"
    assert browser.execute_script("return document.querySelectorAll('.agent svg').length") == 3
    assert browser.get_log("browser") == []
    told = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [each["params"] for each in told if each["method"] == "Network.requestWillBeSent"]
    urls = [each["request"]["url"] for each in asked]
    assert {url.split(":")[0] for url in urls} <= {"file", "data"}


def _wait(said: Callable[[], str], expected: str) -> None:
    for _ in range(100):
        if (got := said()) == expected:
            return
        time.sleep(0.05)
    assert got == expected
