"""The command line as a person meets it: what it writes, what it says, and how it fails."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from forked import COMMAND, Forked

import rl2meta
from rl2meta import cli
from rl2meta.commands.signals import Interrupted, handled, raise_interrupted
from rl2meta.commands.train import Terminal
from rl2meta.experiments import checkpoints
from rl2meta.experiments.catalogue import AGENTS, DISTRIBUTIONS, shipped_configs
from rl2meta.experiments.papers import papers

Result = tuple[int, str, str]
Run = Callable[..., Result]
SMALL = ("training.updates=12", "training.trials_per_update=32", "training.checkpoint_every=5", "threads=1")


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run ``rl2meta ARGS`` in this process -> (exit code, stdout, stderr)."""

    def call(*args: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["rl2meta", *map(str, args)])
        try:
            cli.main()
            code = 0
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 0
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small run, trained once, not to be written to."""
    return by_library(tmp_path_factory.mktemp("runs") / "trained", SMALL)


@pytest.fixture
def copy(trained: Path, tmp_path: Path) -> Path:
    """A copy of the small run, to be written to."""
    return Path(shutil.copytree(trained, tmp_path / "copy"))


def by_library(folder: Path, overrides: tuple[str, ...]) -> Path:
    """Train without a command, in this process; commands must come to the same numbers."""
    rl2meta.train("smoke", overrides, run_dir=folder)
    return folder


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def without_times(folder: Path) -> list[dict[str, Any]]:
    timing = {"seconds", "env_steps_per_second"}
    return [{key: value for key, value in row.items() if key not in timing} for row in rows(folder)]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    newest = checkpoints.newest(folder / "checkpoints", pytest.fail)
    assert newest is not None
    return newest.tensors


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# What is written


def test_a_run_folder_holds_what_is_promised(trained: Path) -> None:
    config = yaml.safe_load((trained / "config.yaml").read_text())
    assert config["versions"]["torch"] == torch.__version__
    assert config["device"] in ("cpu", "cuda:0") and config["threads"] == 1
    assert config["training"]["updates"] == 12 and config["agent"]["name"] == "rl2"
    assert [row["update"] for row in rows(trained)] == list(range(1, 13))
    keys = {"update", "env_steps", "seconds", "env_steps_per_second", "mean_return"}
    keys |= {"policy_loss", "value_loss", "entropy", "kl"}
    assert keys <= rows(trained)[0].keys()
    assert rows(trained)[-1]["env_steps"] == 12 * 32 * 5
    names = sorted(path.name for path in (trained / "checkpoints").iterdir())
    assert names == ["update_00000005", "update_00000010", "update_00000012"]
    assert list((trained / "tensorboard").glob("events.*"))


def test_tensorboard_holds_the_metrics(trained: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(trained / "tensorboard"))
    events.Reload()
    scalars = events.Scalars("train/mean_return")
    assert [event.step for event in scalars] == [row["env_steps"] for row in rows(trained)]
    assert scalars[-1].value == pytest.approx(rows(trained)[-1]["mean_return"])


@pytest.mark.usefixtures("rendered")
def test_an_evaluation_holds_what_is_promised(run: Run, copy: Path) -> None:
    code, out, _ = run("evaluate", copy, "--tasks", 200, "--seed", 7, "--against", "gittins,ucb1")
    assert code == 0 and "gittins" in out
    folder = copy / "evaluation"
    report = json.loads((folder / "evaluation.json").read_text())
    assert (report["num_tasks"], report["seed"], report["episodes"]) == (200, 7, 5)
    assert list(report["agents"]) == ["rl2", "gittins", "ucb1"]
    for said in report["agents"].values():
        assert said["mean_return"] + said["mean_regret"] == pytest.approx(report["oracle_return"], abs=1e-5)
    assert report["agents"]["ucb1"]["constants"].keys() == {"c"}
    assert report["bayes_optimal_return"] == pytest.approx(2.889, abs=1e-3)
    assert np.load(folder / "arrays.npz")["rl2/regrets"].shape == (200, 5)
    assert (folder / "regret.png").read_bytes().startswith(b"\x89PNG")
    head = "agent,episode,step,mean,low,high,gap,gap_low,gap_high\n"
    assert (folder / "regret.csv").read_text().startswith(head)


def test_an_agent_is_judged_on_other_tasks_than_it_was_trained_on(run: Run, copy: Path) -> None:
    brief = ("--tasks", 300, "--against", "greedy")
    assert run("evaluate", copy, *brief)[0] == 0
    changes = ("distribution.low=0.9", "evaluation.episodes_per_trial=8")
    code, out, _ = run("evaluate", copy, *changes, *brief)
    assert code == 0
    assert "rl2 was trained with distribution.low=0.0, training.episodes_per_trial=5" in out
    home, abroad = (
        json.loads((copy / name / "evaluation.json").read_text()) for name in ("evaluation", "evaluation_2")
    )
    assert home["trained_with"] == {}
    assert abroad["trained_with"] == {"distribution.low": 0.0, "training.episodes_per_trial": 5}
    assert abroad["distribution"] == "BernoulliBandits(num_arms=2, low=0.9, high=1.0)"
    assert abroad["episodes"] == 8 and 0.95 * 8 < abroad["bayes_optimal_return"] < 0.97 * 8
    for said in abroad["agents"].values():
        assert 0.9 * 8 < said["mean_return"] < 8
    assert np.load(copy / "evaluation_2" / "arrays.npz")["rl2/regrets"].shape == (300, 8)


def test_a_second_evaluation_never_overwrites_the_first(run: Run, copy: Path, tmp_path: Path) -> None:
    brief = ("--tasks", 20, "--against", "none")
    assert run("evaluate", copy, *brief)[0] == 0
    first = (copy / "evaluation" / "evaluation.json").read_bytes()
    assert run("evaluate", copy, *brief, "--seed", 5)[0] == 0
    assert (copy / "evaluation" / "evaluation.json").read_bytes() == first
    assert (copy / "evaluation_2" / "evaluation.json").exists()
    assert run("evaluate", copy, *brief, "--out", tmp_path / "out")[0] == 0
    code, _, err = run("evaluate", copy, *brief, "--out", tmp_path / "out")
    assert code == 2 and "expected a new folder" in err


def test_the_same_evaluation_twice_gives_the_same_numbers(run: Run, copy: Path) -> None:
    for _ in range(2):
        assert run("evaluate", copy, "--tasks", 50, "--against", "thompson")[0] == 0
    first, second = ((copy / name / "regret.csv").read_text() for name in ("evaluation", "evaluation_2"))
    assert first == second


def test_the_same_command_twice_gives_the_same_run(run: Run, trained: Path, tmp_path: Path) -> None:
    assert run("train", "smoke", *SMALL, "--run-dir", tmp_path / "twin")[0] == 0
    assert without_times(tmp_path / "twin") == without_times(trained)
    assert same(weights(tmp_path / "twin"), weights(trained))


def test_a_run_can_be_trained_again_from_its_own_config(run: Run, trained: Path, tmp_path: Path) -> None:
    assert run("train", trained / "config.yaml", "--run-dir", tmp_path / "again")[0] == 0
    assert same(weights(tmp_path / "again"), weights(trained))


# Stop and go


def start(folder: Path, *more: str) -> Forked:
    return Forked(SLOWLY + COMMAND, "train", *more, "--run-dir", folder)


def wait_for_update(folder: Path, update: int) -> None:
    deadline = time.monotonic() + 60
    path = folder / "metrics.jsonl"
    while not (path.exists() and path.read_text().count("\n") >= update):
        assert time.monotonic() < deadline, "expected training to begin within a minute"
        time.sleep(0.005)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return by_library(tmp_path_factory.mktemp("undisturbed") / "run", LONGER)


LONGER = (*SMALL, "training.updates=40")
SLOWLY = """
import time
from rl2meta.experiments import trainings
after = trainings._after_update
def later(*given):
    time.sleep(0.05)
    return after(*given)
trainings._after_update = later
"""
"""What gives a test the time to stop a training before it is over."""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_stopped_run_goes_on_with_the_bits_of_the_undisturbed(
    number: signal.Signals, undisturbed: Path, tmp_path: Path, run: Run
) -> None:
    folder = tmp_path / "run"
    with start(folder, "smoke", *LONGER) as process:
        wait_for_update(folder, 7)
        os.kill(process.pid, number)
        said, code = process.communicate(), process.returncode
    assert len(rows(folder)) < 40, "the run was over before the signal came"
    if number != signal.SIGKILL:
        assert code == 128 + number
        assert f"rl2meta train --resume --run-dir {folder}" in said
    code, out, _ = run("train", "--resume", "--run-dir", folder)
    assert code == 0 and "resuming" in out
    assert without_times(folder) == without_times(undisturbed)
    assert same(weights(folder), weights(undisturbed))


def test_a_corrupt_checkpoint_is_named_and_the_older_one_used(run: Run, copy: Path, trained: Path) -> None:
    newest = copy / "checkpoints" / "update_00000012" / "tensors.safetensors"
    newest.write_bytes(newest.read_bytes()[:-7])
    code, out, _ = run("train", "--resume", "--run-dir", copy)
    assert code == 0 and "update_00000012" in out and "at update 10" in out
    assert same(weights(copy), weights(trained))
    assert without_times(copy) == without_times(trained)


def test_no_whole_checkpoint_is_an_error_and_never_a_fresh_start(run: Run, copy: Path) -> None:
    for path in (copy / "checkpoints").glob("*/tensors.safetensors"):
        path.write_bytes(b"")
    before = (copy / "metrics.jsonl").read_bytes()
    for command in (("train", "--resume", "--run-dir", copy), ("evaluate", copy)):
        code, _, err = run(*command)
        assert code == 2 and "expected a whole checkpoint" in err
    shutil.rmtree(copy / "checkpoints")
    assert run("train", "--resume", "--run-dir", copy)[0] == 2
    assert (copy / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("key", "old", "new"),
    [("seed", "seed: 0", "seed: 1"), ("training.episodes_per_trial", "trial: 5", "trial: 6")],
)
def test_a_config_that_was_edited_is_refused(run: Run, copy: Path, key: str, old: str, new: str) -> None:
    path = copy / "config.yaml"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))
    for command in (("train", "--resume", "--run-dir", copy), ("evaluate", copy)):
        code, _, err = run(*command)
        assert code == 2 and "expected the settings that the run was started with" in err
        assert f"{key} is {new.split()[-1]}, was {old.split()[-1]}" in err


def test_a_checkpoint_of_something_else_is_named(run: Run, copy: Path) -> None:
    shutil.rmtree(copy / "checkpoints")
    checkpoints.save(copy / "checkpoints", checkpoints.Checkpoint(3, {}, {"other": 1}))
    code, _, err = run("evaluate", copy)
    assert code == 2 and "got one that holds ['other']" in err


def test_a_second_signal_ends_it_at_once_and_says_how_to_go_on(tmp_path: Path, run: Run) -> None:
    folder = tmp_path / "run"
    slow = ("smoke", *SMALL, "training.trials_per_update=100000", "training.updates=50")
    with start(folder, *slow) as process:
        wait_for_update(folder, 1)
        time.sleep(0.5)  # into the second update, which takes seconds: no stop is under way yet
        for _ in range(2):
            process.terminate()
            time.sleep(0.1)
        said, code = process.communicate(), process.returncode
    assert code == 128 + signal.SIGTERM and f"rl2meta train --resume --run-dir {folder}" in said
    assert "Traceback" not in said


def test_a_signal_that_leads_to_another_error_is_told_as_a_signal(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It came while a lock was being taken, so that giving it back failed."""

    def interrupted(terminal: Terminal, of: rl2meta.Run, row: dict[str, Any]) -> bool:
        try:
            raise Interrupted(signal.SIGTERM)
        finally:
            raise RuntimeError("release unlocked lock")

    monkeypatch.setattr(Terminal, "after_update", interrupted)
    code, out, err = run("train", "smoke", *SMALL, "--run-dir", tmp_path / "run")
    assert code == 128 + signal.SIGTERM and "stopped at once" in out and "lock" not in out + err
    with pytest.raises(Interrupted), handled(raise_interrupted):
        interrupted(None, None, {})  # type: ignore[arg-type]
    with pytest.raises(ZeroDivisionError), handled(raise_interrupted):
        1 / 0  # noqa: B018


def test_sigterm_during_an_evaluation_leaves_nothing_behind(copy: Path) -> None:
    with Forked(COMMAND, "evaluate", copy, "--tasks", 1000000) as process:
        assert "evaluating rl2" in process.stdout.readline()
        process.terminate()
        said = process.communicate()
    assert process.returncode == 128 + signal.SIGTERM and "interrupted by SIGTERM" in said
    assert not (copy / "evaluation").exists()


def test_an_output_that_is_gone_does_not_stop_training(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with start(folder, "smoke", *SMALL) as process:
        process.stdout.close()
        process.wait()
    assert len(rows(folder)) == 12


def test_an_ascii_terminal_gets_figures_and_no_traceback(copy: Path) -> None:
    command = [sys.executable, "-m", "rl2meta", "evaluate", str(copy), "--tasks", "10", "--against", "none"]
    said = subprocess.run(
        command, env={**os.environ, "PYTHONIOENCODING": "ascii"}, capture_output=True, text=True, check=True
    )
    assert "?" in said.stdout


def test_resume_refuses_another_config_and_takes_the_same(run: Run, copy: Path) -> None:
    code, _, err = run("train", "smoke", "agent.core.hidden_size=3", *SMALL, "--resume", "--run-dir", copy)
    assert code == 2 and "agent.core.hidden_size is 16, not 3" in err
    assert run("train", "smoke", *SMALL, "--resume", "--run-dir", copy)[0] == 0


def test_a_run_begins_with_weights_that_the_command_line_names(
    run: Run, trained: Path, tmp_path: Path
) -> None:
    longer = ("smoke", "training.episodes_per_trial=7", *SMALL, "training.updates=1")
    for option in ("--from", "--start-from"):  # the second is that of earlier versions
        folder = tmp_path / option
        code, out, _ = run("train", *longer, option, trained, "--run-dir", folder)
        assert code == 0
        assert f"it begins with the weights of {trained} after 12 updates" in out
        first = checkpoints.load(folder / "checkpoints" / "update_00000000").tensors
        network = {name: it for name, it in weights(trained).items() if name.startswith("network.")}
        assert same(first, network)
    assert "--from" in run("train", "--help")[1]


# What is wrong


def test_bad_input_ends_with_code_2_and_one_message(run: Run, trained: Path, tmp_path: Path) -> None:
    empty, broken = tmp_path / "empty.yaml", tmp_path / "broken.yaml"
    empty.write_text("")
    broken.write_bytes(b"\xff\xfe\x00")
    new = ("--run-dir", tmp_path / "new")
    cases: list[tuple[tuple[object, ...], str]] = [
        (("train", "smoke"), "--run-dir: expected a folder"),
        (("train", *new), "CONFIG: expected a YAML file or a shipped config's name"),
        (
            ("train", "smok", *new),
            "expected a YAML file or a shipped config, got neither; did you mean 'smoke'?",
        ),
        (("train", empty, *new), "got an empty file"),
        (("train", broken, *new), "expected a readable text file"),
        (("train", tmp_path, *new), "expected a readable text file"),
        (
            ("train", "smoke", "agent.core.hiden_size=3", *new),
            "agent.core.hiden_size: unknown key; did you mean",
        ),
        (("train", "smoke", "device=cuda:7", *new), "'cuda:7'; it is not there"),
        (("train", "smoke", "--run-dir", trained), "is already in use"),
        (("train", "smoke", "--run-dir", empty), "is already in use (a file)"),
        (("train", "--resume", *new), "expected a run folder"),
        (("train", "smoke", "--from", tmp_path / "nowhere", *new), "expected a run folder"),
        (
            ("train", "--resume", "--run-dir", trained, "--from", trained),
            "--from: expected a new run, got --res",
        ),
        (
            ("train", "smoke", "agent.core.hidden_size=3", "--from", trained, *new),
            "hidden_size, which is 3 here",
        ),
        (("evaluate", tmp_path / "nowhere"), "expected a run folder"),
        (("evaluate", trained, "--against", "gitins"), "unknown reference 'gitins'; did you mean 'gittins'?"),
        (("evaluate", trained, "distribution.num_arms=3"), "expected tasks with the action_space of the"),
        (("evaluate", trained, "distribution.low=0.9", "distribution.high=0.5"), "expected low < high"),
        (("evaluate", trained, "distribution.lo=0.9"), "distribution.lo: unknown key; did you mean 'low'"),
        (
            ("evaluate", trained, "agent.core.hidden_size=3"),
            "expected an override of a setting that may change",
        ),
        (("evaluate", trained, "seed=3"), "expected an override of a setting that may change"),
        (("evaluate", trained, "distribution.name=gausian"), "did you mean 'gaussian_bandits'"),
        (("reproduce", "duan"), "unknown table 'duan'"),
        (("evaluate", trained, "--tasks", 1), "--tasks: expected a number from 2 to 10000000, got 1"),
        (("evaluate", trained, "--seed", -1), "--seed: expected a number from 0"),
        (("evaluate", trained, "--device", "cuda:7"), "it is not there"),
        (("evaluate", trained, "--device", "tpu"), "it is not there"),
        (("benchmark", "--against", "sb4"), "--against: expected 'sb3' or 'jax', got 'sb4'"),
        (("benchmark", "--suite", "mam"), "--suite: unknown suite 'mam'; did you mean 'maml'?"),
        (("benchmark", "--suite", "maml", "--against", "sb3"), "--against: expected --suite train"),
        (("benchmark", "--seconds", 0), "--seconds: expected a number more than 0"),
        (("train", "smoke", "agent.name=[1]", *new), "agent.name: unknown agent [1]"),
        (("train", "smoke", "agent.core.hidden_size=" + "9" * 30, *new), "expected less than or equal to"),
        (("train", "smoke", "distribution.num_arms=" + "9" * 30, *new), "expected less than or equal to"),
        (("train", "smoke", "agent.core.hidden_size=1000000", *new), "expected a size that fits into memory"),
        (("train", "x" * 5000, *new), "expected a YAML file or a shipped config"),
        (("train", "smoke", "--run-dir", tmp_path / ("x" * 300)), "File name too long"),
        (("evaluate", "x" * 5000), "File name too long"),
        (("train", "training.updates=3", "--resume", "--run-dir", trained), "expected no override"),
        (("benchmark", "--seconds", "nan"), "--seconds: expected a number more than 0"),
        (("benchmark", "--threads", 0), "--threads: expected at least 1"),
        (("benchmark", "--out", tmp_path / "none" / "x.json"), "in a folder that exists"),
        (("train", "smoke", "evaluation.against=[gitins]", *new), "did you mean 'gittins'?"),
        (("benchmark", "--out", empty), "expected a new file"),
    ]
    before = sorted(trained.rglob("*"))
    for command, message in cases:
        code, out, err = run(*command)
        assert (code, out) == (2, ""), command
        plain = " ".join(err.split())
        assert message in plain, (command, err)
        assert "Traceback" not in err
    assert not (tmp_path / "new").exists()
    assert sorted(trained.rglob("*")) == before


def test_a_mistyped_command_or_option_ends_with_code_2(run: Run) -> None:
    assert run("trian")[0] == 2
    assert run("train", "smoke", "--run-dri", "x")[0] == 2
    assert run("evaluate", "x", "--tasks", "many")[0] == 2


def test_two_processes_never_train_in_one_folder(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with start(folder, "smoke", *SMALL, "training.updates=100000") as process:
        wait_for_update(folder, 1)
        code, _, err = run("train", "--resume", "--run-dir", folder)
        process.terminate()
    assert code == 2 and "another process is writing to" in err


# What is shown


@pytest.mark.parametrize("words", ["--help", "train --help", "list"])
def test_what_only_tells_something_loads_little(words: str) -> None:
    """They are to answer within half a second of CPU, of which each of these would take a large part."""
    code = f"import sys; sys.argv = ['rl2meta', *{words.split()}]\nfrom rl2meta import cli\n"
    code += "try: cli.main()\nexcept SystemExit: pass\n"
    code += "heavy = {'torch', 'gymnasium', 'numpy', 'pydantic', 'yaml', 'matplotlib', 'scipy', 'numba'}\n"
    code += "print('HEAVY', heavy & sys.modules.keys())"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "HEAVY set()" in said and ("rl2_bandit" if words == "list" else "Usage") in said


def test_the_version_is_told(run: Run) -> None:
    assert run("--version")[1] == "rl2meta 0.1.0\n"


def test_list_names_everything(run: Run) -> None:
    code, out, _ = run("list")
    assert code == 0
    for name in (*DISTRIBUTIONS, *AGENTS, *shipped_configs(), *papers(), "rl2meta list NAME"):
        assert re.search(rf"\b{name}\b", out), name
    assert re.search(r"U\[low,\s+high\]", out)  # not taken for markup
    assert "hidden_size" not in out and "gittins" not in out  # they are told of one part at a time


def test_plain_lines_where_there_is_no_terminal(run: Run, tmp_path: Path) -> None:
    code, out, _ = run("train", "smoke", *SMALL, "--run-dir", tmp_path / "run")
    assert code == 0 and "\x1b" not in out
    assert re.search(r"update 12/12  1,920 steps  [\d,]+ steps/s  mean return [\d.]+  0:00 left", out)
