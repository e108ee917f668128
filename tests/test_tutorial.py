"""The tutorial, from an empty folder to its curves, as it stands."""

import re
import shlex
import sys
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from forked import Forked

from rl2meta import cli

PAGE = Path(__file__).parents[1] / "docs" / "your_own_environment.md"
_BLOCK = re.compile(r"(?:^`(?P<file>[\w.]+)`:\n\n)?^```(?P<language>\w+)\n(?P<text>.*?)^```$", re.M | re.S)


@pytest.mark.usefixtures("rendered")
def test_the_tutorial_leads_to_its_curves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = list(_BLOCK.finditer(PAGE.read_text()))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    assert [block["file"] for block in blocks if block["file"]] == [
        "poles.yaml",
        "quay.py",
        "quay.yaml",
        "sb3.py",
    ]
    for block in blocks:
        if block["file"]:
            (tmp_path / block["file"]).write_text(_shorter(block["text"]))
        else:
            assert block["language"] == "bash", block["text"]
            for line in _shorter(block["text"]).splitlines():
                _run(line, monkeypatch)
    _look_at(tmp_path / "runs")


def _shorter(text: str) -> str:
    """Return a file or commands with less to train and to judge, enough for what this test asks."""
    for long, short in (
        ("updates: 60, trials_per_update: 64", "updates: 30, trials_per_update: 32"),
        ("tasks: 200}", "tasks: 60}"),
        ("updates=8 ", "updates=2 "),
        ("--episodes 60 --tasks 40", "--episodes 20 --tasks 10"),
    ):
        text = text.replace(long, short)
    return text


def _run(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a line of bash without a new interpreter, which would import torch for seconds."""
    if line.startswith("rl2meta "):
        monkeypatch.setattr(sys, "argv", shlex.split(line))
        with pytest.raises(SystemExit) as stop:
            cli.main()
        assert stop.value.code == 0, line
        return
    python, *words = shlex.split(line)
    assert python == "python", line
    program = f"import runpy, sys; sys.path.insert(0, ''); runpy.run_path({words[0]!r}, run_name='__main__')"
    with Forked(program) as process:
        said = process.communicate()
    assert process.returncode == 0, said


def _look_at(runs: Path) -> None:
    for figure in (
        "poles/evaluation/returns.png",
        "quay/evaluation/regret.png",
        "quay/evaluation/adaptation.png",
    ):
        assert np.ptp(matplotlib.image.imread(runs / figure)) > 0.5, figure
    with np.load(runs / "quay" / "evaluation" / "arrays.npz") as arrays:
        regret = {name: arrays[f"{name}/regrets"].sum(axis=1).mean() for name in ("rl2", "random")}
        assert regret["rl2"] < regret["random"] / 2  # it learnt to learn
        ours = arrays["rl2/regrets"].mean(axis=0)
        assert ours[2] < ours[0]  # and does so from one episode to the next
    assert (runs / "compare-quay-quay_maml" / "regret.csv").exists()
