"""The bars of training and evaluation at 80 columns, plain lines elsewhere, and nothing from Python."""

import io
import re
from typing import Any

import pytest
from rich.console import Console

from rl2meta.commands import progress
from rl2meta.commands.progress import TrainingProgress, TrialProgress
from rl2meta.evaluation import evaluate
from rl2meta.experiments.components import chosen_references, read_config
from rl2meta.experiments.contest import Contest
from rl2meta.experiments.judging import play
from rl2meta.rollout import RolloutWorker

CONFIG = read_config("smoke", ["training.updates=2"])
ROW = {"update": 10_000, "env_steps": 59_999_000, "env_steps_per_second": 123_456.7, "mean_return": -1234.567}


def _console(width: int) -> Console:
    return Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)


def _last_line(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", console.file.getvalue())
    return [line for line in re.split(r"[\r\n]+", text) if line.strip()][-1]


@pytest.mark.parametrize("width", [80, 100, 200])
def test_the_training_bar_keeps_its_bar_and_its_facts(width: int) -> None:
    console = _console(width)
    with TrainingProgress(10_000, 0, console) as shown:
        shown.show(ROW)
    line = _last_line(console)
    assert len(line) <= width
    assert len(re.findall("[━╸╺]", line)) >= 10
    for fact in ("update", "10000/10000", "60.0M steps", "123.5k/s", "return -1234.567"):
        assert fact in line, line


def test_even_a_narrow_terminal_has_a_bar() -> None:
    console = _console(50)
    with TrainingProgress(10_000, 0, console) as shown:
        shown.show(ROW)
    assert len(re.findall("[━╸╺]", _last_line(console))) >= 10


def test_the_bar_of_an_evaluation_shows_how_much_is_done() -> None:
    console = _console(80)
    with TrialProgress(console) as shown:
        shown.say("evaluating [one] ...")
        shown.watch(1000, 1000)
    assert isinstance(console.file, io.StringIO)
    assert "evaluating [one] ..." in console.file.getvalue()
    assert "100%" in _last_line(console) and len(re.findall("[━╸╺]", _last_line(console))) >= 10


def test_elsewhere_a_line_comes_every_few_seconds(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 100.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    with TrialProgress() as shown:
        for second in range(1, 13):
            now = 100.0 + second
            shown.watch(second * 100, 2400)
    said = capsys.readouterr().out.split("\n")
    assert said == ["  500/2,400 trials  0:19 left", "  1,000/2,400 trials  0:14 left", ""]


def test_every_trial_is_counted_those_of_the_tuning_too(capsys: pytest.CaptureFixture[str]) -> None:
    contest = Contest(CONFIG, RolloutWorker(CONFIG.distribution), 0, 50)
    seen: list[tuple[int, int]] = []
    references = chosen_references(CONFIG, ["ucb1", "greedy"])
    play(contest, {}, references, lambda line: None, lambda done, total: seen.append((done, total)))
    # UCB1 has eleven constants to choose from, each on 1,000 training tasks.
    assert seen[-1] == (11_000 + 50 + 50, 11_100)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen) and len(seen) == 13
    assert capsys.readouterr().out == ""


def test_batches_are_told_as_they_are_played(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rl2meta.evaluation.TENSORS_TOGETHER", 20)
    contest = Contest(CONFIG, RolloutWorker(CONFIG.distribution), 0, 50)
    played: list[Any] = []
    agent = chosen_references(CONFIG, ["random"])["random"].build()
    evaluate(agent, contest.worker, contest.held_out, 5, 0, played.append)
    assert played == [20, 20, 10]
