"""A run that is killed before any of its file operations goes on, and ends with the undisturbed bits."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

# The audit hook runs before each of Python's file operations: the n-th one is where the child dies.
SCRIPT = """
import json, os, random, shutil, signal, sys
from pathlib import Path

import torch

import rl2meta
from rl2meta.experiments import checkpoints

torch.set_num_threads(1)
home, every = Path(sys.argv[1]), int(sys.argv[2])
run, other = home / "run", home / "other"
watched = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree", "os.listdir", "os.link"}
random.seed(int(sys.argv[3]))
CONFIG = {
    "distribution": {"name": "bernoulli_bandits", "num_arms": 2},
    "agent": {"name": "rl2", "core": {"name": "lstm", "hidden_size": 4}},
    "training": {
        "updates": 3, "trials_per_update": 4, "episodes_per_trial": 2, "checkpoint_every": 1,
        "keep_checkpoints": 1,
    },
    "device": "cpu",
    "threads": 1,
}
rl2meta.train({**CONFIG, "seed": 7}, run_dir=other)


def go():
    if (run / "config.yaml").exists():
        rl2meta.resume(run)
    else:
        rl2meta.train(CONFIG, run_dir=run, start_from=other)


def die_at(n):
    steps = 0

    def hook(event, arguments):
        nonlocal steps
        if event in watched and str(run) in str(arguments[0]):
            steps += 1
            if steps == n:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def killed(n):
    child = os.fork()
    if not child:
        die_at(n)
        go()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


def outcome():
    files = sorted(str(path.relative_to(run)) for path in run.rglob("*") if "tfevents" not in path.name)
    rows = [{k: v for k, v in row.items() if "second" not in k} for row in rl2meta.load_run(run).metrics]
    saved = checkpoints.newest(run / "checkpoints", print)
    weights = {name: tensor.numpy().tobytes() for name, tensor in saved.tensors.items()}
    return files, rows, saved.update, weights


go()
undisturbed = outcome()
assert undisturbed[2] == 3
assert "torch._dynamo" not in sys.modules  # slow to import; nothing here is compiled
n, trials = random.randrange(every), 0
while True:
    n += every
    shutil.rmtree(run)
    if not killed(n):
        break
    killed(random.randrange(1, 60))  # the next process, too
    go()
    go()  # a finished run stays as it is
    assert outcome() == undisturbed, (n, outcome()[0])
    trials += 1
print(trials, n)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="forks")
def test_two_kills_at_any_file_operations_lose_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-c", SCRIPT, tmp_path, "13", "0"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    trials, operations = map(int, done.stdout.split())
    assert trials >= 8 and operations > 80  # the hook saw the start, the metrics and the checkpoints
