"""``rl2meta benchmark --against-commit``: two commits in turns, on checkouts whose speed is known."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.stats import binom

from rl2meta.commands.benchmark import run_guard
from rl2meta.errors import UserError
from rl2meta.speed.checkouts import checked_out, resolved, root
from rl2meta.speed.commit_side import MAKERS, timed, units
from rl2meta.speed.commits import GUARDED, TURNS, Plan, comparison_table, judged
from rl2meta.speed.report import SUITES
from rl2meta.statistics import fewest_for_median, median_interval

CPU = torch.device("cpu")
SPEED = """
import time
from collections import namedtuple

Workload, Suite = namedtuple("Workload", "unit rival_of"), namedtuple("Suite", "workloads")


def busy(seconds):
    def unit():
        end = time.process_time() + seconds
        while time.process_time() < end:
            pass
        return 10

    return Workload(unit, None)


def train_suite(device, slow=1):
    rival = Workload(None, "rl2meta")
    return Suite({"rl2meta": busy(SECONDS * slow), "LSTM 256": busy(0.004), "RecurrentPPO": rival, **MORE})
"""
DEVICES = "def resolve_device(name): return name\nset_threads = set_precision = resolve_device\n"
"""A package that does nothing but keep its processor busy for a known time."""


def _git(folder: Path, *words: str) -> str:
    who = ["-c", "user.name=a", "-c", "user.email=a@b.example", "-c", "commit.gpgsign=false"]
    return subprocess.run(["git", *who, "-C", str(folder), *words], capture_output=True, text=True).stdout


def _commit(folder: Path, seconds: float, more: str = "{}") -> str:
    text = SPEED.replace("SECONDS", str(seconds)).replace("MORE", more)
    (folder / "rl2meta" / "speed" / "recurrent.py").write_text(text)
    _git(folder, "add", "-A")
    _git(folder, "commit", "-m", "speed", "--allow-empty")
    return _git(folder, "rev-parse", "--short", "HEAD").strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A repository of three commits: one that takes 8 ms for a unit, one 2 ms, and then 4 ms."""
    folder = tmp_path / "checkout"
    (folder / "rl2meta" / "speed").mkdir(parents=True)
    (folder / "rl2meta" / "link").symlink_to("../rl2meta/speed")
    for name, text in {"devices": DEVICES, "speed/machine": "def finish(device): pass\n"}.items():
        (folder / "rl2meta" / f"{name}.py").write_text(text)
    for name in ("rl2meta", "rl2meta/speed"):
        (folder / name / "__init__.py").touch()
    _git(folder.parent, "init", str(folder))
    for name, seconds in {"slow": 0.008, "fast": 0.002, "now": 0.004}.items():
        _commit(folder, seconds, "{'new': busy(0.001)}" if name == "now" else "{}")
        _git(folder, "tag", name)
    return folder


PLAN = Plan({"train": {}}, "cpu", 1, turns=8, life=4)


def _guard(checkout: Path, revision: str, plan: Plan = PLAN, **options: Any) -> int:
    usual = {"suite": None, "turns": None, "device": "cpu", "precision": "float32", "threads": 1, "out": None}
    given = {**usual, "seconds": 0.05, **options}
    return run_guard(revision, plan=plan, folder=checkout / "rl2meta", **given)


# What a comparison says


def test_a_slower_checkout_is_called_slower_and_only_where_it_is(
    checkout: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = _git(checkout, "worktree", "list"), sorted(os.listdir(checkout))
    assert _guard(checkout, "fast", out=tmp_path / "x.json") == 1
    commit = resolved(checkout, "fast")
    report = json.loads((tmp_path / "x.json").read_text())
    slower, same = report["rows"]  # without the rival, and without what the other commit does not have
    assert [slower["workload"], same["workload"]] == ["rl2meta", "LSTM 256"]
    assert 0.4 < slower["low"] <= slower["ratio"] <= slower["high"] < 0.6 and slower["verdict"] == "slower"
    assert len(slower["ratios"]) == 8 and same["low"] < 1.05 and same["high"] > 0.95
    assert (report["commit"], report["clock"], report["turns"]) == (commit, "cpu", 8)
    out, err = capsys.readouterr()
    assert f"slower than {commit}: train: rl2meta" in out and "CPU time, 1 threads, 8 turns" in out
    assert err.splitlines() == [f"turn {turn} of 8" for turn in range(1, 9)]
    assert (_git(checkout, "worktree", "list"), sorted(os.listdir(checkout))) == before


def test_a_faster_checkout_is_not_called_slower(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _guard(checkout, "slow") == 0
    said = capsys.readouterr().out
    assert "faster" in said and "no row is found to be slower than" in said


def test_what_is_not_committed_counts_for_this_side(checkout: Path) -> None:
    _commit(checkout, 0.002)
    path = checkout / "rl2meta" / "speed" / "recurrent.py"
    path.write_text(path.read_text().replace("0.002", "0.008"))
    assert _guard(checkout, "HEAD") == 1


def test_verdicts_follow_from_the_interval() -> None:
    there = [100.0] * 8
    noisy = [80.0, 95.0, 97.0, 99.0, 101.0, 103.0, 105.0, 190.0]
    assert judged(noisy, there, 0.95)["verdict"] == "no difference found"
    slower = judged([each - 12 for each in noisy[:-1]] + [99.0], there, 0.95)
    assert slower["verdict"] == "slower" and slower["ratio"] == pytest.approx(0.88)
    assert judged([each + 30 for each in noisy], there, 0.95)["verdict"] == "faster"
    row = {"suite": "train", "workload": "a", "here": [1.0, 2.0, 3.0], "there": [2.0] * 3, **slower}
    assert comparison_table([row], "abc")[1].split()[:5] == ["train:", "a", "2", "2", "0.880"]
    assert (
        comparison_table([{**row, "verdict": "faster"}], "abc")[-1] == "no row is found to be slower than abc"
    )


@pytest.mark.parametrize(("n", "place", "covered"), [(6, 1, 0.96875), (10, 2, 0.97852), (20, 6, 0.95861)])
def test_the_interval_of_a_median_is_that_of_the_sign_test(n: int, place: int, covered: float) -> None:
    """Places and coverage as in published tables of the sign test (Conover 1999), and by scipy's law."""
    samples = torch.randperm(n, generator=torch.Generator().manual_seed(n)).tolist()
    median, low, high = median_interval(samples)
    assert (median, low, high) == ((n - 1) / 2, place - 1, n - place)
    assert 1 - 2 * binom.cdf(place - 1, n, 0.5) == pytest.approx(covered, abs=1e-5)
    assert 1 - 2 * binom.cdf(place, n, 0.5) < 0.95  # the next narrower one would not cover


def test_too_few_samples_have_no_interval() -> None:
    assert fewest_for_median(0.95) == 6 and fewest_for_median(0.5) == 2
    with pytest.raises(ValueError, match="at least 6 samples"):
        median_interval([1.0] * 5)


# What is refused


def test_what_cannot_be_compared_is_refused(checkout: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a branch of .*, got '--upload-pack=x'; 'git log --oneline'"):
        _guard(checkout, "--upload-pack=x")
    outside = tmp_path / "installed" / "rl2meta"
    outside.mkdir(parents=True)
    with pytest.raises(UserError, match=r"expected rl2meta to run from a git checkout, got .*installed"):
        root(outside)
    with pytest.raises(UserError, match=r"--turns: expected at least 7 for an interval .* 2 medians, got 3"):
        _guard(checkout, "fast", turns=3)
    with pytest.raises(UserError, match=r"No module named 'rl2meta.speed.maml'; choose a later one"):
        _guard(checkout, "fast", suite="maml")
    with pytest.raises(UserError, match="expected workloads that both commits have, got none"):
        _guard(checkout, "fast", PLAN._replace(workloads={"train": ("new",)}))


def test_an_installed_copy_inside_another_repository_is_no_checkout(checkout: Path) -> None:
    installed = checkout / "venv" / "rl2meta"
    installed.mkdir(parents=True)
    (installed / "__init__.py").touch()
    with pytest.raises(UserError, match="expected rl2meta to run from a git checkout"):
        root(installed)


def test_without_git_it_says_so(checkout: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="git: No such file or directory"):
        root(checkout / "rl2meta")


def test_the_files_of_a_commit_are_there_for_a_while(checkout: Path) -> None:
    with checked_out(checkout, "slow") as there:
        assert "0.008" in (there / "rl2meta" / "speed" / "recurrent.py").read_text()
        assert (there / "rl2meta" / "link" / "machine.py").is_file() and not (there / ".git").exists()
    assert not there.exists()


# This checkout as a side


def test_this_checkout_can_be_a_side() -> None:
    assert MAKERS.keys() == SUITES.keys()
    found = units({"rollout": {"base": [4, 2, 8]}, "train": {}, "maml": {}}, CPU)
    for suite, names in GUARDED.items():
        assert set(names) <= found[suite].keys()
    done = timed(found["rollout"]["rl2meta"], 0.0, CPU)
    assert done["steps"] == 4 * 2 and done["wall"] > 0 and done["cpu"] > 0
    assert fewest_for_median(1 - 0.05 / sum(map(len, GUARDED.values()))) < TURNS
