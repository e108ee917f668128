"""What a machine refuses: outputs that take nothing, a folder that is gone, few files, little memory."""

import json
import os
import resource
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rl2meta.agents.references.anything import UniformAgent
from rl2meta.commands.limits import message_of
from rl2meta.errors import UserError
from rl2meta.experiments.components import read_config
from rl2meta.experiments.rehearsal import rehearse
from rl2meta.experiments.sizes import _step_bytes, bytes_of, refuse
from rl2meta.memory import available, limited
from rl2meta.rollout import RolloutWorker
from rl2meta.tasks import MappingTasks, sample_tasks

CPU = torch.device("cpu")
SMALL = ("training.updates=3", "training.trials_per_update=8", "threads=1", "device=cpu")
COMMAND = f"{shlex.quote(sys.executable)} -m rl2meta"


def shell(script: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a script in which $RL2META is the command; no test may see a traceback."""
    done = subprocess.run(
        ["bash", "-c", script.replace("$RL2META", COMMAND)],
        cwd=folder,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=120,
    )
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr, done.stderr
    return done


# Outputs that take nothing


@pytest.mark.parametrize("where", [">/dev/full", ">&-", "| true", "1</dev/null"])
def test_an_output_that_takes_nothing_is_told_of_once(where: str, tmp_path: Path) -> None:
    pause = "sleep 0.3; " if where == "| true" else ""  # until the reader is gone
    done = shell(f"set -o pipefail; ({pause}$RL2META --version) {where}", tmp_path)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and "expected an output that takes what is printed" in done.stderr


def test_without_any_output_the_exit_code_tells(tmp_path: Path) -> None:
    assert shell("$RL2META --version 2>&-", tmp_path).stdout.startswith("rl2meta ")
    assert shell("$RL2META --version >&- 2>&-", tmp_path).returncode == 2
    assert shell("$RL2META trian 2>&-", tmp_path).returncode == 2
    assert shell("$RL2META --version <&- >/dev/full 2>/dev/full", tmp_path).returncode == 2


def test_work_goes_on_without_an_output(tmp_path: Path) -> None:
    config = " ".join(SMALL)
    done = shell(f"$RL2META train smoke {config} --run-dir run <&- >&-", tmp_path)
    assert (done.returncode, done.stderr.count("error:")) == (2, 1)
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 3
    done = shell("$RL2META evaluate run --tasks 20 --against none >/dev/full", tmp_path)
    assert (done.returncode, done.stderr.count("error:")) == (2, 1)
    assert json.loads((tmp_path / "run" / "evaluation" / "evaluation.json").read_text())["num_tasks"] == 20


# Folders and names


@pytest.mark.parametrize(
    "command", ["--version", "list", "train smoke --run-dir x", "evaluate x", "--help", ""]
)
def test_a_current_folder_that_is_gone(command: str, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    done = shell(f"rmdir {shlex.quote(str(gone))}; $RL2META {command}", gone)
    assert (done.returncode, done.stdout) == (2, "")
    assert "expected a current folder that is there" in done.stderr


def test_names_that_are_not_text(tmp_path: Path) -> None:
    for command in (
        "train smoke --run-dir $'\\xff'",
        "evaluate $'a\\xff'",
        "train $'\\xff.yaml' --run-dir x",
    ):
        done = shell(f"$RL2META {command}", tmp_path)
        assert done.returncode == 2 and "expected names in UTF-8" in done.stderr
    os.mkdir(os.fsencode(tmp_path) + b"/\xff")
    assert "expected names in UTF-8" in shell("cd $'\\xff'; $RL2META list", tmp_path).stderr


# Sizes


@pytest.mark.parametrize(
    "sizes",
    [
        ["training.trials_per_update=1000000000"],
        ["training.episodes_per_trial=1000000000"],
        ["evaluation.episodes_per_trial=1000000000"],
        ["agent.core.hidden_size=1000000"],
        [
            "distribution.name=tabular_mdps",
            "distribution.num_states=1000",
            "training.trials_per_update=10000",
        ],
        ["distribution.num_arms=1000000", "training.episodes_per_trial=10000"],
        ["distribution.num_arms=1000", "training.trials_per_update=10000000"],
    ],
    ids="-".join,
)
def test_sizes_that_do_not_fit_are_refused_at_once(sizes: list[str]) -> None:
    config = read_config("smoke", [*SMALL, *sizes])
    before = resource.getrlimit(resource.RLIMIT_DATA)
    with pytest.raises((UserError, RuntimeError, MemoryError)) as caught:
        rehearse(config, CPU)
    assert "expected a size that fits into memory; lower the sizes" in str(message_of(caught.value))
    assert resource.getrlimit(resource.RLIMIT_DATA) == before


@pytest.mark.parametrize(
    ("family", "least"),
    [
        (["bernoulli_bandits", "num_arms=500"], 0.95),  # nearly all are encoded actions and regrets
        (["tabular_mdps", "num_states=2", "num_actions=500"], 0.95),
        (["gaussian_bandits"], 0.3),
        (["dependent_bandits"], 0.3),
        (["two_step"], 0.3),
        (["dark_rooms"], 0.05),  # of which the encoded observation is not counted
        (["key_to_door"], 0.05),
        (["point_navigation"], 0.3),
    ],
    ids=str,
)
def test_estimates_of_a_step_are_lower_bounds(family: list[str], least: float) -> None:
    name, *settings = family
    changes = [f"distribution.name={name}", *(f"distribution.{each}" for each in settings)]
    config = read_config("smoke", [*SMALL, *changes])
    law = config.distribution
    trial = RolloutWorker(law).run(UniformAgent(law.action_space), sample_tasks(law, 3, 0, "train"), 2, 0)
    steps = sum(phase.mask.numel() for phase in trial.phases)
    without_tasks = replace(trial, tasks=MappingTasks(({},) * 3))
    assert least < _step_bytes(config) * steps / bytes_of(without_tasks) <= 1


def test_what_fits_is_not_refused() -> None:
    refuse(10, 10, "x")
    refuse(10**30, None, "x")
    room = available()
    assert room is None or 10**7 < room < 10**14
    with limited():
        assert torch.zeros(2**26).sum() == 0
    rehearse(read_config("smoke", ["training.trials_per_update=100000"]), CPU)


def test_more_memory_than_there_is_is_not_promised() -> None:
    room = available()
    if room is None:
        pytest.skip("the system does not tell how much memory there is")
    with limited(), pytest.raises(RuntimeError) as caught:
        torch.empty(room + 2**31, dtype=torch.uint8)
    assert "expected a size that fits into memory" in str(message_of(caught.value))


# What is a bug


def test_bugs_keep_their_tracebacks() -> None:
    for bug in (
        ValueError("x"),
        RuntimeError("mat1 and mat2"),
        KeyError(3),
        ImportError("no name"),
        TypeError(),
    ):
        assert message_of(bug) is None
    for limit in (
        OSError(28, "No space left on device", "run/metrics.jsonl"),
        OSError(24, "Too many open files"),
        MemoryError(),
        RuntimeError("can't start new thread"),
        ImportError("libtorch_cpu.so: failed to map segment from shared object"),
        ImportError("libc10.so: cannot open shared object file: Error 24"),
        UserError("expected"),
    ):
        assert message_of(limit)
    assert "run/metrics.jsonl" in str(message_of(OSError(28, "No space left on device", "run/metrics.jsonl")))
