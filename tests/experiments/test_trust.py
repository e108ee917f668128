"""A run folder from elsewhere imports nothing that the user does not trust."""

import logging
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import gymnasium as gym
import pytest
import yaml

import rl2meta
from rl2meta import cli
from rl2meta.experiments import checkpoints
from rl2meta.experiments.checks import examine
from rl2meta.experiments.components import read_config
from rl2meta.experiments.run_folder import RunFolder
from rl2meta.experiments.search_space import Range, refuse_misfits
from rl2meta.experiments.trust import STAMP, modules_in

MODULE = """
from pathlib import Path

import gymnasium as gym

Path("imported_{name}").touch()


class Chain(gym.Env):
    observation_space = gym.spaces.Discrete(2)
    action_space = gym.spaces.Discrete(2)
    sample_tasks = lambda self, count: [0] * count
    set_task = lambda self, task: None

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return 0, {{}}

    def step(self, action):
        return 0, float(action), False, False, {{}}


class Chains:
    horizon = 2

    def __init__(self, helper=None):
        pass

    def sample(self, rng, split):
        return {{"number": int(rng.integers(2))}}

    def make_env(self, task):
        return Chain()


def chains(**keys):
    Path("called").touch()
    return Chains()


gym.register("Chain-v0", Chain, max_episode_steps=2)
"""
SMALL = {
    "agent": {"name": "rl2", "core": {"name": "lstm", "hidden_size": 4}},
    "training": {"updates": 1, "trials_per_update": 2, "episodes_per_trial": 1},
    "evaluation": {"tasks": 2},
    "workers": {"processes": 0},
    "threads": 1,
    "device": "cpu",
}
CARTPOLE = {"name": "gymnasium", "id": "CartPole-v1", "horizon": 2, "vary_attributes": {"length": [0.4, 0.6]}}
WAYS = {
    "family": {"distribution": {"name": "evil.tasks:Chains"}},
    "any callable": {"distribution": {"name": "os:system", "command": "touch called"}},
    "a function": {"distribution": {"name": "evil.tasks:chains"}},
    "a class": {"distribution": {"name": "subprocess:Popen", "args": ["touch", "called"]}},
    "agent": {"agent": {"name": "evil.tasks:AGENT"}},
    "set_task": {"distribution": {"name": "set_task_envs", "env": "evil.tasks:Chain", "horizon": 2}},
    "set_task with a function": {
        "distribution": {
            "name": "set_task_envs",
            "env": "os:system",
            "horizon": 2,
            "kwargs": {"command": "touch called"},
        }
    },
    "set_task with an id": {
        "distribution": {"name": "set_task_envs", "env": "evil.tasks:Chain-v0", "horizon": 2}
    },
    "benchmark": {
        "distribution": {
            "name": "benchmark_tasks",
            "benchmark": "subprocess:Popen",
            "horizon": 2,
            "kwargs": {"args": "touch called", "shell": True},
        }
    },
    "wrapper": {"distribution": {**CARTPOLE, "wrappers": [{"name": "evil.tasks:Chain"}]}},
    "wrapper that is a function": {
        "distribution": {
            **CARTPOLE,
            "wrappers": [{"name": "os:system", "kwargs": {"command": "touch called"}}],
        }
    },
    "id": {"distribution": {"name": "gymnasium", "id": "evil.tasks:Chain-v0", "vary_options": {"x": [0, 1]}}},
    "id of a module with a colon": {
        "distribution": {"name": "gymnasium", "id": "evil:tasks:Chain-v0", "vary_options": {"x": [0, 1]}}
    },
}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Make a current folder with a stranger's module in it, which leaves a trace if it is imported."""
    for name in ("evil", "mine"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "tasks.py").write_text(MODULE.format(name=name))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for name in [name for name in sys.modules if name.split(".")[0] in ("evil", "mine")]:
        del sys.modules[name]
    gym.registry.pop("Chain-v0", None)


def config(**sections: object) -> str:
    return yaml.safe_dump({"distribution": CARTPOLE, **SMALL, **sections})


def untouched(here: Path) -> bool:
    imported = {name.split(".")[0] for name in sys.modules}
    return not (here / "called").exists() and not (here / "imported_evil").exists() and "evil" not in imported


READERS: dict[str, Callable[[str], object]] = {
    "load": rl2meta.load_run,
    "evaluate": rl2meta.evaluate,
    "compare": lambda folder: rl2meta.compare([folder, folder]),
    "resume": rl2meta.resume,
    "start from": lambda folder: rl2meta.train("rl2_bandit", start_from=folder),
    "train": lambda folder: rl2meta.train(f"{folder}/config.yaml"),
    "check": lambda folder: examine(f"{folder}/config.yaml"),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("way", WAYS)
def test_a_folder_from_elsewhere_runs_nothing(here: Path, way: str, reader: str) -> None:
    Path("stranger").mkdir()
    Path("stranger/config.yaml").write_text(config(**WAYS[way]))
    (module,) = {name for name in modules_in(WAYS[way]) if name != "evil" or "colon" not in way}
    with pytest.raises(rl2meta.UserError, match=f"elsewhere that imports .*{module}.*--trust"):
        READERS[reader]("stranger")
    assert untouched(here)


@pytest.mark.parametrize("way", ["any callable", "a function", "a class"])
def test_what_is_no_family_is_not_called_even_if_it_is_trusted(here: Path, way: str) -> None:
    Path("mine.yaml").write_text(config(**WAYS[way]))
    with pytest.raises(rl2meta.UserError, match=r"expected a (class|family of tasks), got"):
        read_config("mine.yaml")
    assert not (here / "called").exists()


def test_what_was_trained_here_needs_no_trust_and_may_be_moved(here: Path) -> None:
    Path("mine.yaml").write_text(config(distribution={"name": "mine.tasks:Chains"}))
    rl2meta.train("mine.yaml", run_dir="run")
    shutil.move("run", "moved")
    assert rl2meta.load_run("moved").update == 1
    assert rl2meta.resume("moved").finished
    path = Path("moved/config.yaml")
    path.write_text(path.read_text().replace("mine.tasks", "evil.tasks"))
    with pytest.raises(rl2meta.UserError, match="--trust evil"):
        rl2meta.load_run("moved")
    assert untouched(here)


@pytest.fixture
def elsewhere(here: Path) -> Path:
    """Make a folder that was trained elsewhere: the stamp has another key."""
    Path("mine.yaml").write_text(config(distribution={"name": "mine.tasks:Chains"}))
    rl2meta.train("mine.yaml", run_dir="run")
    Path("run", STAMP).write_text("0" * 64 + "\n")
    return Path("run")


@pytest.mark.parametrize("trust", [["mine"], ["mine.tasks"], ["other", "mine.tasks:Chains"]])
def test_a_module_may_be_trusted(elsewhere: Path, trust: list[str]) -> None:
    assert rl2meta.load_run(elsewhere, trust=trust).update == 1
    assert rl2meta.evaluate(elsewhere, trust=trust).path is not None
    shutil.copytree(elsewhere, "copy")
    assert rl2meta.compare([elsewhere, "copy"], trust=trust).path is not None
    assert rl2meta.resume(elsewhere, trust=trust).finished
    assert rl2meta.train("mine.yaml", start_from=elsewhere).finished  # the config names the same module


def test_tune_asks_for_no_trust_again(elsewhere: Path) -> None:
    source, trust = str(elsewhere / "config.yaml"), ["mine.tasks"]
    space = {"agent.discount": Range(0.9, 1.0)}
    refuse_misfits(space, source, [], read_config(source, [], trust), trust)
    with pytest.raises(rl2meta.UserError, match="--trust mine"):
        refuse_misfits(space, source, [], read_config(source, [], trust))


@pytest.mark.parametrize("trust", [[], ["min"], ["mine.task"], ["tasks"], ["mine.tasks.more"], [""]])
def test_another_module_is_not(elsewhere: Path, trust: list[str]) -> None:
    with pytest.raises(rl2meta.UserError, match=r"imports 'mine\.tasks'.*--trust mine\.tasks"):
        rl2meta.load_run(elsewhere, trust=trust)


def test_who_names_the_module_again_trusts_it(elsewhere: Path) -> None:
    assert rl2meta.evaluate(elsewhere, {"distribution.name": "mine.tasks:Chains"}).path is not None
    assert rl2meta.resume(elsewhere, "mine.yaml").finished
    with pytest.raises(rl2meta.UserError, match="--trust"):
        rl2meta.evaluate(elsewhere, {"distribution.horizon": 3})


def test_the_command_line_says_it_and_takes_it(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def said(*arguments: str) -> tuple[object, str]:
        monkeypatch.setattr(sys, "argv", ["rl2meta", *arguments])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        return stop.value.code, capsys.readouterr().err

    code, errors = said("evaluate", "run")
    assert code == 2 and "--trust mine.tasks" in errors and not Path("run/evaluation").exists()
    assert said("evaluate", "run", "--trust", "mine.tasks", "--trust", "other")[0] == 0


def test_the_config_in_a_checkpoint_imports_nothing(here: Path) -> None:
    Path("mine.yaml").write_text(config())
    run = rl2meta.train("mine.yaml", run_dir="run")
    folder = RunFolder.open(Path("run"))
    saved = checkpoints.load(folder.checkpoints_path / "update_00000001")
    for change in (
        {"distribution.name": "evil.tasks:Chains"},
        {"distribution.id": "evil.tasks:Chain-v0"},
        {"distribution.name": "set_task_envs", "distribution.env": "evil.tasks:Chain"},
        {"agent.name": "evil.tasks:AGENT"},
        {"agent.name": "maml_trpo"},
    ):
        state = {**saved.state, "config": {**saved.state["config"], **change}}
        checkpoints.save(folder.checkpoints_path, checkpoints.Checkpoint(1, saved.tensors, state))
        with pytest.raises(rl2meta.UserError, match="expected the settings that the run was started with"):
            rl2meta.load_run(run.path)
        assert untouched(here)


def test_the_secret_is_the_users_alone(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(here / "state"))
    Path("mine.yaml").write_text(config(distribution={"name": "mine.tasks:Chains"}))
    rl2meta.train("mine.yaml", run_dir="run")
    secret = here / "state" / "rl2meta" / "secret"
    assert secret.stat().st_mode & 0o777 == 0o600 and len(secret.read_bytes()) == 32
    assert [path.name for path in secret.parent.iterdir()] == ["secret"]
    rl2meta.train("mine.yaml", run_dir="again")
    assert rl2meta.load_run("run").update == rl2meta.load_run("again").update == 1  # by the same secret
    secret.chmod(0o644)
    with pytest.raises(rl2meta.UserError, match="--trust"):
        rl2meta.load_run("run")  # others may have read it


def test_without_a_place_for_the_secret_training_goes_on(
    here: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (here / "file").touch()
    monkeypatch.setenv("XDG_STATE_HOME", str(here / "file"))
    Path("mine.yaml").write_text(config(distribution={"name": "mine.tasks:Chains"}))
    with caplog.at_level(logging.WARNING, "rl2meta"):
        assert rl2meta.train("mine.yaml", run_dir="run").finished
    assert "name its modules with --trust" in caplog.text
    assert rl2meta.load_run("run", trust=["mine"]).update == 1
    caplog.clear()
    rl2meta.train(yaml.safe_load(config()), run_dir="built_in")  # asks for no trust
    assert not caplog.text and not Path("built_in", STAMP).exists()
