"""Groups of runs that differ in the seed alone: training, going on, evaluation."""

import json
import math
import os
import shutil
import signal
import socket
import sys
import time
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from forked import COMMAND, Forked

import rl2meta
from rl2meta.commands.train import start_run
from rl2meta.commands.train_group import GroupProgress, _shown, seeds_of
from rl2meta.errors import UserError
from rl2meta.evaluation import AgentResult
from rl2meta.experiments import jobs
from rl2meta.experiments.comparing import together
from rl2meta.experiments.group_folder import GroupFolder, is_group, members, refuse_trained
from rl2meta.experiments.groups import train_group
from rl2meta.experiments.jobs import number_of_slices
from rl2meta.levels import both_levels, difference, interval, merged, of_trials
from rl2meta.reports import read_evaluation
from rl2meta.statistics import mean_interval

TINY = ["training.updates=6", "training.trials_per_update=16", "training.checkpoint_every=2", "threads=1"]


def _weights(run_dir: Path) -> bytes:
    newest = sorted((run_dir / "checkpoints").glob("update_*"))[-1]
    return (newest / "tensors.safetensors").read_bytes()


def _rows(run_dir: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if "second" not in key} for row in rows]


@pytest.fixture(scope="module")
def group(tmp_path_factory: pytest.TempPathFactory) -> rl2meta.Group:
    path = tmp_path_factory.mktemp("groups") / "wide"
    return rl2meta.train("smoke", TINY, seeds=range(3), run_dir=path)


@pytest.fixture
def forked_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs whose processes have imported everything; other tests start them as they are."""
    program = "import sys; sys.argv.append(str(descriptor)); from rl2meta.experiments.job import main; main()"

    def start() -> tuple[Forked, Connection]:
        ours, theirs = socket.socketpair()
        with theirs:
            nowhere = Path(os.devnull)
            process = Forked(program, files=(nowhere, nowhere), descriptor=theirs.fileno())
        return process, Connection(ours.detach())

    monkeypatch.setattr(jobs, "_start", start)


def test_each_run_is_what_it_is_alone(group: rl2meta.Group, tmp_path: Path) -> None:
    assert group.path is not None and group.seeds == [0, 1, 2] and group.finished
    rl2meta.train("smoke", [*TINY, "seed=1"], run_dir=tmp_path / "alone")
    assert _weights(group.path / "seed1") == _weights(tmp_path / "alone")
    assert _rows(group.path / "seed1") == _rows(tmp_path / "alone")
    assert _weights(group.path / "seed1") != _weights(group.path / "seed2")


@pytest.mark.usefixtures("forked_jobs")
def test_jobs_change_no_bit(group: rl2meta.Group, tmp_path: Path) -> None:
    """Three runs in two processes, so each in two slices; one of them is there already."""
    begun = rl2meta.train("smoke", TINY, seeds=[2], run_dir=tmp_path / "wide")
    whole = train_group("smoke", TINY, seeds=[0, 1, 2], run_dir=tmp_path / "wide", jobs=2)
    assert begun.seeds == [2] and whole.seeds == [0, 1, 2] and list(members(tmp_path / "wide")) == [0, 1, 2]
    for seed, path in members(tmp_path / "wide").items():
        assert group.path is not None
        assert _weights(path) == _weights(group.path / f"seed{seed}")
        assert _rows(path) == _rows(group.path / f"seed{seed}")


@pytest.mark.parametrize("jobs", range(1, 9))
def test_slices_give_all_jobs_equal_shares(jobs: int) -> None:
    for count in range(1, 20):
        slices = number_of_slices(count, jobs)
        assert count <= jobs or count * slices % jobs == 0
        assert slices <= jobs


def test_a_killed_group_ends_with_the_same_bits(group: rl2meta.Group, tmp_path: Path) -> None:
    """SIGKILL hits the command alone: its jobs notice, save and end, and the next command waits for them."""
    path = tmp_path / "wide"
    first = Forked(COMMAND, "train", "smoke", *TINY, "--seeds", "0-2", "--jobs", "2", "--run-dir", path)
    until = time.monotonic() + 60
    while not list(path.glob("seed*/metrics.jsonl")) and time.monotonic() < until:
        time.sleep(0.01)
    first.kill()
    first.wait()
    first.stdout.close()
    assert train_group("smoke", TINY, seeds=range(3), run_dir=path).finished
    assert group.path is not None
    assert all(_weights(place) == _weights(group.path / place.name) for place in members(path).values())


class _StopsAtOnce:
    stopping = True

    def begun(self, seed: int, update: int, updates: int) -> None:
        raise AssertionError("nothing was to begin")

    def after_update(self, seed: int, row: Any) -> None:
        raise AssertionError("nothing was to begin")


def test_a_watch_can_stop_it(tmp_path: Path) -> None:
    for number in (1, 2):
        stopped = train_group(
            "smoke", TINY, seeds=[0, 1], run_dir=tmp_path / "wide", jobs=number, watch=_StopsAtOnce()
        )
        assert stopped.runs == [] and not stopped.finished
    with pytest.raises(UserError, match="expected a run of at least one seed, got none"):
        rl2meta.load_run(tmp_path / "wide")


class _StopsAfterAnUpdate:
    stopping = False

    def begun(self, seed: int, update: int, updates: int) -> None:
        pass

    def after_update(self, seed: int, row: Any) -> None:
        self.stopping = True


def test_seeds_that_have_not_begun_are_no_trained_ones(
    group: rl2meta.Group, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ctrl-C may come with the last update of one seed, before another begins."""

    def go(progress: GroupProgress, jobs: int) -> rl2meta.Group:
        progress.request_stop(signal.SIGTERM, None)
        return rl2meta.Group(group.runs[:2], group.path)

    assert _shown(go, "training", 3, tmp_path, 1) == 128 + signal.SIGTERM
    assert "stopped and saved; continue with" in capsys.readouterr().out


def test_ctrl_c_does_not_end_a_job_that_has_just_started() -> None:
    """The terminal sends it to all processes; the first one asks the others to save and to stop."""
    process, connection = jobs._start()
    process.send_signal(signal.SIGINT)
    connection.send(None)
    assert process.wait(60) == 0


def test_a_job_that_is_gone_is_told_as_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start = jobs._start

    def gone() -> Any:
        process, connection = start()
        process.kill()
        process.wait()
        return process, connection

    monkeypatch.setattr(jobs, "_start", gone)
    with pytest.raises(UserError, match=r"faults in 2(?s:.*)seed 0: its process was killed by SIGKILL"):
        train_group("smoke", TINY, seeds=[0, 1], run_dir=tmp_path / "wide", jobs=2)


def test_weights_that_cannot_be_had_leave_no_folder(group: rl2meta.Group, tmp_path: Path) -> None:
    """A folder would name them, and refuse the corrected command."""
    assert group.path is not None
    shaped = [*TINY, "agent.core.hidden_size=3"]
    for settings, seeds, origin in (
        (TINY, [0, 7], group.path),
        (TINY, [0], tmp_path / "mistyped"),
        (shaped, [0], group.path),
    ):
        with pytest.raises(UserError, match="expected"):
            rl2meta.train("smoke", settings, seeds=seeds, start_from=origin, run_dir=tmp_path / "new")
        assert not (tmp_path / "new").exists()


def test_a_group_does_not_forget_that_it_began_with_weights_in_memory(tmp_path: Path) -> None:
    origin = rl2meta.train("smoke", [*TINY, "training.updates=1"])
    path, watch = tmp_path / "wide", _StopsAfterAnUpdate()
    stopped = train_group("smoke", TINY, seeds=[0, 1], run_dir=path, start_from=origin, watch=watch)
    assert stopped.seeds == [0] and not stopped.finished
    with pytest.raises(UserError, match=r"seed 1 begins with.*start_from"):
        rl2meta.resume(path)
    with pytest.raises(UserError, match="started_from is"):
        rl2meta.train("smoke", TINY, seeds=[0, 1], run_dir=path)
    assert not (path / "seed1").exists()
    whole = rl2meta.train("smoke", TINY, seeds=[0, 1], run_dir=path, start_from=origin)
    assert whole.finished and all(run.origin is not None for run in whole.runs)


def test_a_group_that_is_being_trained_gets_no_seeds(group: rl2meta.Group) -> None:
    assert group.path is not None
    folder = GroupFolder(group.path)
    before = folder.text()
    with folder.locked(), pytest.raises(UserError, match="another command is training"):
        rl2meta.train("smoke", TINY, seeds=[0, 9], run_dir=group.path)
    assert folder.text() == before


def test_a_group_from_elsewhere_imports_nothing(
    group: rl2meta.Group, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if it is only compared with the settings of a new command."""
    assert group.path is not None
    (tmp_path / "strange_tasks.py").write_text("raise AssertionError('it was imported')")
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "wide").mkdir()
    text = GroupFolder(group.path).text().replace("bernoulli_bandits", "strange_tasks:Tasks")
    assert "strange_tasks" in text
    (tmp_path / "wide" / "group.yaml").write_text(text)
    for call in (
        lambda: rl2meta.train("smoke", TINY, seeds=[0], run_dir=tmp_path / "wide"),
        lambda: rl2meta.resume(tmp_path / "wide"),
    ):
        with pytest.raises(UserError, match="elsewhere that imports 'strange_tasks'"):
            call()


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_a_signal_while_a_job_still_imports_is_no_fault_of_its_seed(tmp_path: Path) -> None:
    class Watch(_StopsAfterAnUpdate):
        def after_update(self, seed: int, row: Any) -> None:
            pass

    start, watch = jobs._start, Watch()

    def start_and_signal() -> Any:
        process, connection = start()
        process.send_signal(signal.SIGTERM)
        watch.stopping = True
        return process, connection

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jobs, "_start", start_and_signal)
        stopped = train_group("smoke", TINY, seeds=[0, 1], run_dir=tmp_path / "wide", jobs=2, watch=watch)
    assert not stopped.finished
    assert train_group("smoke", TINY, seeds=[0, 1], run_dir=tmp_path / "wide").finished


@pytest.mark.usefixtures("forked_jobs")
@pytest.mark.parametrize("jobs", [1, 2])
def test_a_seed_that_fails_is_told_and_the_others_are_kept(tmp_path: Path, jobs: int) -> None:
    (tmp_path / "wide").mkdir()
    folder = rl2meta.train("smoke", TINY, seeds=[0], run_dir=tmp_path / "wide").path
    assert folder is not None
    (folder / "seed1").write_text("in the way")
    with pytest.raises(UserError, match=r"faults in 1.*\n  seed 1: .*already in use"):
        train_group("smoke", TINY, seeds=[0, 1, 2], run_dir=folder, jobs=jobs)
    assert len(_rows(folder / "seed2")) == 6


def test_faults_are_told_before_anything_is_written(group: rl2meta.Group, tmp_path: Path) -> None:
    assert group.path is not None
    with pytest.raises(
        UserError, match=r"agent.learning_rate is .*Give the settings that it was started with"
    ):
        rl2meta.train("smoke", [*TINY, "agent.learning_rate=0.5"], seeds=[0], run_dir=group.path)
    with pytest.raises(UserError, match="expected none beside --seeds"):
        rl2meta.train("smoke", ["seed=1"], seeds=[0], run_dir=tmp_path / "new")
    with pytest.raises(UserError, match="different integers"):
        rl2meta.train("smoke", seeds=[1, 1], run_dir=tmp_path / "new")
    with pytest.raises(UserError, match="unknown key"):
        rl2meta.train("smoke", ["agent.learning_rat=1"], seeds=[0, 1], run_dir=tmp_path / "new")
    with pytest.raises(UserError, match=r"got .*with a run in it"):
        rl2meta.train("smoke", TINY, seeds=[0, 1], run_dir=group.path / "seed0")
    with pytest.raises(UserError, match="name one of its runs"):
        rl2meta.train("smoke", TINY, start_from=group)
    with pytest.raises(UserError, match="name one of its runs"):
        start_run("smoke", TINY, tmp_path / "new", group.path)
    with pytest.raises(UserError, match=r"expected a run folder at .*nowhere, got nothing"):
        rl2meta.train("smoke", TINY, seeds=[0], run_dir=tmp_path / "new", start_from=tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"one without \[7\]"):
        rl2meta.train("smoke", TINY, seeds=[0, 7], run_dir=tmp_path / "new", start_from=group)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("seeds", ["[0, 0]", "[0, -2]", "[a]", "[true]", "[]", "3", f"[{2**63}]"])
def test_a_group_with_damaged_seeds_is_refused(seeds: str, tmp_path: Path) -> None:
    (tmp_path / "group.yaml").write_text(f"seeds: {seeds}\n")
    with pytest.raises(UserError, match=r"different seeds, got one twice|'seeds', got .*restore the file"):
        members(tmp_path)


def test_seeds_as_text() -> None:
    assert (
        seeds_of("0-4") == [0, 1, 2, 3, 4]
        and seeds_of("0,3,7") == [0, 3, 7]
        and seeds_of("0-2, 9") == [0, 1, 2, 9]
    )
    with pytest.raises(UserError, match="at most 10,000 seeds"):
        seeds_of("0-20000")
    for text in ("", "a", "3-1", "0-", "-1", "0..4", "1,,2", "0-999999999"):
        with pytest.raises(UserError, match="--seeds"):
            seeds_of(text)


def test_a_group_begins_with_the_weights_of_another(group: rl2meta.Group) -> None:
    origins: list[Any] = []
    rl2meta.train(
        "smoke",
        [*TINY, "training.updates=1"],
        seeds=[1, 2],
        start_from=group,
        on_start=lambda run: origins.append(run.origin),
    )
    assert [Path(origin.path).name for origin in origins] == ["seed1", "seed2"]
    with pytest.raises(UserError, match=r"got one without \[7\]"):
        rl2meta.train("smoke", TINY, seeds=[1, 7], start_from=group)


def test_an_evaluation_has_two_levels(group: rl2meta.Group, tmp_path: Path) -> None:
    assert group.path is not None
    together = rl2meta.evaluate(group.path, tasks=200, against=["random"], out=tmp_path / "all")
    alone = [
        rl2meta.evaluate(run, tasks=200, against="none", out=tmp_path / str(i)).results["rl2"]
        for i, run in enumerate(group.runs)
    ]
    ours = together.results["rl2"]
    assert ours.seeds == (0, 1, 2)
    for one, other in zip(ours.per_seed, alone, strict=True):
        np.testing.assert_array_equal(one.rewards, other.rewards)
    np.testing.assert_allclose(ours.returns(), np.mean([one.returns() for one in alone], axis=0), rtol=1e-6)
    said = json.loads((tmp_path / "all" / "evaluation.json").read_text())
    row, reference = said["agents"]["rl2"], said["agents"]["random"]
    assert said["seeds"] == row["over_seeds"]["seeds"] == [0, 1, 2] and reference["over_seeds"]["seeds"] == []
    assert reference["over_seeds"]["return"] == reference["over_tasks"]["return"]
    means = [one.returns().mean() for one in alone]
    assert [each["mean_return"] for each in row["over_seeds"]["per_seed"]] == pytest.approx(means)
    for level in ("over_tasks", "over_seeds"):
        assert row[level]["return"]["mean"] == pytest.approx(np.mean(means))
    assert _width(row["over_seeds"]["regret"]) > 0.9 * _width(row["over_tasks"]["regret"])
    report = read_evaluation(tmp_path / "all", "regret.csv")
    assert (
        "rl2: mean of 3 training seeds, intervals over seeds and tasks (others: over tasks)"
        in report.subtitle
    )
    assert "3 training seeds" in together.table() and "± over tasks" in together.table()


def _width(ends: dict[str, float]) -> float:
    return ends["high"] - ends["low"]


def test_seeds_that_differ_much_widen_the_interval_over_seeds() -> None:
    """If every seed is alike on all tasks, the spread of the seeds' means alone is the interval."""
    steps = np.ones((50, 1), np.float32)
    results = [
        AgentResult(np.full((50, 1), value, np.float32), None, steps, 0.0) for value in (1.0, 2.0, 6.0)
    ]
    said = both_levels(merged(results, (0, 1, 2)))
    assert _width(said["over_tasks"]["return"]) == 0
    deviation = math.sqrt(np.var([1, 2, 6]) / 3)
    assert 3 * deviation < _width(said["over_seeds"]["return"]) <= 5.0


def test_tasks_with_many_trials_weigh_more_for_groups_too() -> None:
    """With equal seeds, the bootstrap's deviation is the cluster-robust standard error but for √((G−1)/G)."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(8), [64, 32, 16, 8, 4, 2, 1, 1])
    returns = (labels**2 + rng.normal(size=128))[:, None].astype(np.float32)
    alone = AgentResult(returns, None, np.ones_like(returns), 0.0, labels=labels)
    other = replace(alone, rewards=np.sqrt(returns + 9))
    wide, narrow = merged([alone] * 3, (0, 1, 2)), merged([other] * 2, (0, 1))
    for found, values in (
        (interval(wide, of_trials(wide)), returns),
        (difference(wide, narrow), returns - other.rewards),
    ):
        want = mean_interval(values[:, 0], clusters=labels)
        assert found.mean == pytest.approx(want.mean)
        assert found.standard_error == pytest.approx(want.standard_error * math.sqrt(7 / 8), rel=0.06)


def test_compare_puts_runs_together_that_differ_in_the_seed_alone(
    group: rl2meta.Group, tmp_path: Path
) -> None:
    assert group.path is not None
    other = rl2meta.train("smoke", [*TINY, "agent.learning_rate=0.02"], seeds=[5], run_dir=tmp_path / "other")
    runs = [*(group.path / f"seed{seed}" for seed in (0, 2)), other]
    compared = rl2meta.compare(runs, tasks=100, against="none", out=tmp_path / "compared")
    first, second = compared.results
    assert compared.results[first].seeds == (0, 2) and second == "other"
    assert compared.facts["runs"][first]["path"] == [str(group.path / f"seed{seed}") for seed in (0, 2)]
    gap = json.loads((tmp_path / "compared" / "evaluation.json").read_text())["agents"]["other"][
        "return_minus_first"
    ]
    means = [compared.results[name].returns().mean() for name in (first, second)]
    assert gap["mean"] == pytest.approx(means[1] - means[0]) and gap["low"] < gap["mean"] < gap["high"]


def test_runs_of_several_configs_become_groups_of_several_names(
    group: rl2meta.Group, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in ``rl2meta compare runs/*/seed*``: all their folders are called seed0 and seed1."""
    assert group.path is not None
    other = rl2meta.train("smoke", [*TINY, "training.updates=1"], seeds=range(2), run_dir=tmp_path / "narrow")
    folders = [run.path for runs in (group.runs[:2], other.runs) for run in runs if run.path is not None]
    compared = rl2meta.compare(folders, tasks=20, against="none", out=tmp_path / "compared")
    assert list(compared.results) == ["wide", "narrow"]
    assert list(compared.facts["runs"]) == ["wide", "narrow"]
    nowhere = [rl2meta.Group([replace(run, path=None) for run in runs]) for runs in (group.runs, other.runs)]
    names = list(rl2meta.compare(nowhere, tasks=20, against="none", out=tmp_path / "again").results)
    assert names == ["run and 2 more", "run and 1 more"]
    like = shutil.copytree(folders[0], tmp_path / "narrow_alone" / "narrow")
    monkeypatch.chdir(like.parent)
    compared = rl2meta.compare([like.name, *folders[2:]], tasks=20, against="none", out=tmp_path / "alike")
    assert list(compared.results) == ["narrow", "narrow (2)"]  # a run, and a group that would be called so
    twice, _ = together([nowhere[1], nowhere[1]])
    assert twice == ["run and 1 more", "run and 1 more (2)"]


def test_runs_that_began_with_those_of_a_group_are_a_group(group: rl2meta.Group) -> None:
    later = rl2meta.train("smoke", [*TINY, "training.updates=1"], seeds=[1, 2], start_from=group)
    alone = rl2meta.train("smoke", [*TINY, "training.updates=1"], seeds=[2], start_from=group.runs[0])
    _, found = together([rl2meta.Group([run]) for run in (*later.runs, *alone.runs)])
    assert [each.seeds for each in found] == [[1, 2], [2]]


def test_a_group_is_loaded_where_a_run_is(group: rl2meta.Group) -> None:
    assert group.path is not None and is_group(group.path)
    loaded = rl2meta.load_run(group.path)
    assert isinstance(loaded, rl2meta.Group) and loaded.seeds == group.seeds
    resumed = rl2meta.resume(group.path)
    assert isinstance(resumed, rl2meta.Group) and resumed.finished
    assert "seeds 0, 1, 2" in repr(loaded)
    assert GroupFolder.open(group.path).settings()["threads"] == 1


def test_the_folder_of_a_group_is_none_for_a_study_or_a_sweep(group: rl2meta.Group) -> None:
    assert group.path is not None
    for path, kind in (
        (group.path, "a group"),
        (group.path / "seed0", "a run"),
        (GroupFolder(group.path).settings_path, "the file"),
    ):
        with pytest.raises(UserError, match=f"got {kind}"):
            refuse_trained(path)
    refuse_trained(group.path / "nothing yet")
