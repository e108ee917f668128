"""``rl2meta tune``: search spaces, and a study that is shared, killed and continued."""

import csv
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from forked import COMMAND, Forked
from typer.testing import CliRunner

from rl2meta import UserError, sample_tasks
from rl2meta.cli import app
from rl2meta.experiments import tuning, tuning_trial
from rl2meta.experiments.attendance import Attendance
from rl2meta.experiments.components import read_config
from rl2meta.experiments.search_space import Range, Values, parse_dimension, read_space, refuse_misfits
from rl2meta.experiments.side_by_side import side_by_side
from rl2meta.experiments.studies import SharedStudy, StudySettings, chosen
from rl2meta.experiments.study_report import table_of_all
from rl2meta.experiments.tuning_plan import Plan, TuningOptions
from rl2meta.experiments.tuning_trial import TrialRun

TINY = ["training.updates=2", "training.trials_per_update=4", "agent.core.hidden_size=4", "device=cpu"]
TINY += ["agent.epochs=1", "agent.minibatches=1"]
RATE = "agent.learning_rate=1e-3..0.1[log]"


def settings(folder: Path, **more: Any) -> StudySettings:
    usual: dict[str, Any] = {
        "name": "study",
        "storage": folder / "study.log",
        "space": {"x": Range(0.0, 1.0)},
        "identity": {},
        "n_trials": 10,
        "sampler": "tpe",
        "pruner": "none",
        "startup_trials": 3,
        "warm_up": 0,
        "seed": 0,
    }
    return StudySettings(**{**usual, **more})


def journal(path: Path) -> list[dict[str, Any]]:
    """The trials in a journal by number, read without Optuna, from the operations of its format."""
    trials: list[dict[str, Any]] = []
    for line in path.read_text().split("\n")[:-1]:  # the last one may be cut
        entry = json.loads(line)
        code = entry["op_code"]
        if code == 4:  # a new trial
            trials.append({"state": entry.get("state", 0), "params": {}, "value": None, "attrs": {}})
            trials[-1]["attrs"] |= entry.get("user_attrs", {})
        elif code == 5:
            trials[entry["trial_id"]]["params"][entry["param_name"]] = entry["param_value_internal"]
        elif code == 6:
            trials[entry["trial_id"]] |= {"state": entry["state"], "value": (entry["values"] or [None])[0]}
    return trials


def ended(trials: list[dict[str, Any]]) -> list[tuple[Any, Any]]:
    """Parameters and values of the completed (1) and the pruned (2) trials."""
    return [(trial["params"], trial["value"]) for trial in trials if trial["state"] in (1, 2)]


@pytest.mark.parametrize(
    ("said", "want"),
    [
        ("1e-4..1e-2[log]", Range(1e-4, 1e-2, log=True)),
        ("-1..2.5", Range(-1.0, 2.5)),
        ("1..8[int]", Range(1, 8, whole=True)),
        ("1..64[int,log]", Range(1, 64, log=True, whole=True)),
        ("1..64[log][int]", Range(1, 64, log=True, whole=True)),
        (["a", None, 2], Values(("a", None, 2))),
        ([1, True], Values((1, True))),
    ],
)
def test_a_range_is_read(said: Any, want: Any) -> None:
    dimension = parse_dimension("key", said, "--search")
    assert dimension == want
    if isinstance(dimension, Range):
        assert parse_dimension("key", str(dimension), "--search") == dimension
        assert isinstance(dimension.low, int) == dimension.whole


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("2..1", "low < high"),
        ("1..1", "low < high"),
        ("0..1[log]", "low > 0"),
        ("1..2[lgo]", "did you mean 'log'"),
        ("1.5..3[int]", "whole ends"),
        ("a..b", "a number at each end"),
        ("1..inf", "a number at each end"),
        ("0.5", "LOW..HIGH"),
        ([], "at least one value"),
        ([1, 1], "twice"),
    ],
)
def test_a_range_with_a_fault_is_refused(said: Any, words: str) -> None:
    with pytest.raises(UserError, match=r"(?s)--search: key: .*" + words):
        parse_dimension("key", said, "--search")


@pytest.mark.parametrize(
    ("search", "words"),
    [
        (["agent.lerning_rate=0.1..1"], "did you mean 'agent.learning_rate'"),
        (["learning_rate=0.1..1"], "did you mean 'agent.learning_rate'"),
        (["distribution.high=0.1..1"], "a setting of the agent or of training"),
        (["agent.epochs=1..4"], r"write \[int\]"),
        (["agent.discount=0.5..2"], "less than or equal to 1"),
        (["training.episodes_per_trial=5..10[int]"], "evaluation.episodes_per_trial"),
        (["nowhere.yaml"], "neither"),
    ],
)
def test_a_search_that_does_not_fit_ends_with_code_2(search: list[str], words: str, tmp_path: Path) -> None:
    options = [word for each in search for word in ("--search", each)]
    said = CliRunner().invoke(app, ["tune", "smoke", *options, "--run-dir", str(tmp_path / "s")])
    assert isinstance(said.exception, UserError)  # for which main returns 2
    with pytest.raises(UserError, match="(?s)" + words):
        raise said.exception
    assert not (tmp_path / "s").exists()


def test_an_empty_search_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.yaml").write_text("{}\n")
    with pytest.raises(UserError, match="empty search space"):
        read_space([str(tmp_path / "empty.yaml")], read_config("smoke"))


@pytest.mark.parametrize(("agent", "config"), [("rl2", "slot_two_step"), ("maml_trpo", "maml_bandit")])
def test_a_shipped_search_space_fits_configs_of_its_agent(agent: str, config: str) -> None:
    experiment = read_config(config)
    space = read_space([], experiment)
    assert space == read_space([agent], experiment) and len(space) > 4
    refuse_misfits(space, config, [], experiment)


def test_a_long_list_is_no_file() -> None:
    values = [round(0.1 + i / 1000, 3) for i in range(60)]
    space = read_space([f"agent.clip_range={values}"], read_config("smoke"))
    assert space == {"agent.clip_range": Values(tuple(values))}


def test_numpy_s_whole_numbers_will_do() -> None:
    assert type(TuningOptions(n_trials=np.int64(3)).n_trials) is int


def test_lists_and_booleans_come_back_from_optuna(tmp_path: Path) -> None:
    values = ([1.0], [1.0, 2.0], True, 1, "1", None, "a")
    shared = SharedStudy(settings(tmp_path, space={"v": Values(values)}, n_trials=60, sampler="random"))
    seen = []
    with shared.attendance.attending() as name:
        while trial := shared.claim(name):
            seen.append(chosen(shared.settings.space, trial.params)["v"])
            shared.tell(trial, 0.0)
    assert {(type(value), str(value)) for value in seen} == {(type(value), str(value)) for value in values}


def tuned(folder: Path, *words: str) -> list[str]:
    common = ["--n-trials", "4", "--num-seeds", "1", "--tasks", "20", "--n-startup-trials", "2"]
    return ["tune", "smoke", *TINY, "--search", RATE, *common, "--run-dir", str(folder), *words]


@pytest.mark.usefixtures("rendered")
def test_a_study_writes_its_results_and_goes_on(tmp_path: Path) -> None:
    said = CliRunner().invoke(app, tuned(tmp_path / "s", "--n-trials", "3"), catch_exceptions=False)
    assert said.exit_code == 0 and "trial 2 (3/3)" in said.output
    once = (tmp_path / "s" / "study.log").read_bytes()
    said = CliRunner().invoke(app, tuned(tmp_path / "s", "--n-trials", "5"), catch_exceptions=False)
    assert "which has 3 of 5 trials" in said.output and "trial 4 (5/5)" in said.output
    assert (tmp_path / "s" / "study.log").read_bytes().startswith(once)  # what ended stays as it is
    rows = list(csv.DictReader((tmp_path / "s" / "trials.csv").read_text().splitlines()))
    best = max((row for row in rows if row["state"] == "complete"), key=lambda row: float(row["value"]))
    config = read_config(str(tmp_path / "s" / "best.yaml"))
    assert config.agent.model_dump()["learning_rate"] == float(best["agent.learning_rate"])
    assert config.settings.seed == 0 and config.settings.threads is None
    assert yaml.safe_load((tmp_path / "s" / "best.yaml").read_text())["training"]["updates"] == 2
    assert (tmp_path / "s" / "history.png").stat().st_size > 1000


def test_another_search_in_the_same_study_is_refused(tmp_path: Path) -> None:
    SharedStudy(settings(tmp_path))
    with pytest.raises(UserError, match=r"--search x is 0\.\.1, not 0\.\.2.*--study-name"):
        SharedStudy(settings(tmp_path, space={"x": Range(0.0, 2.0)}))
    with pytest.raises(UserError, match=r"agent\.epochs is None, not 3"):
        SharedStudy(settings(tmp_path, identity={"agent.epochs": 3}))
    assert SharedStudy(settings(tmp_path, name="other", space={"x": Range(0.0, 2.0)})).trials() == []
    (tmp_path / "text").write_text("no journal\n" * 2)
    with pytest.raises(UserError, match="expected a journal file"):
        SharedStudy(settings(tmp_path, storage=tmp_path / "text"))


def test_a_part_of_a_line_at_the_end_of_the_journal_is_removed(tmp_path: Path) -> None:
    whole = run_through(SharedStudy(settings(tmp_path, n_trials=2)))
    with (tmp_path / "study.log").open("a") as file:
        file.write('{"op_code": 6, "trial')
    assert run_through(SharedStudy(settings(tmp_path, n_trials=3)))[: len(whole)] == whole


@pytest.mark.parametrize("content", ["notes of mine\n", "notes without an end of the line"])
def test_a_storage_that_is_a_file_of_something_else_stays_as_it_is(content: str, tmp_path: Path) -> None:
    (tmp_path / "study.log").write_text(content)
    with pytest.raises(UserError, match="a file of something else; choose another --storage"):
        run_through(SharedStudy(settings(tmp_path, n_trials=1)))
    assert (tmp_path / "study.log").read_text() == content


def run_through(shared: SharedStudy) -> list[tuple[Any, Any]]:
    """Give each trial that is left the value x."""
    with shared.attendance.attending() as name:
        while trial := shared.claim(name):
            shared.tell(trial, trial.params["x"])
    return ended(journal(shared.settings.storage))


def test_without_optuna_the_command_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "rl2meta.experiments.studies")
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(UserError, match=r"pip install 'rl2meta\[tune\]'"):
        tuning.tune("smoke", TINY, run_dir=Path("nowhere"), searches=[RATE])


class Told:
    """Stands in for Optuna's trial."""

    number = 0

    def __init__(self, prune_at: int | None = None) -> None:
        self.values: dict[int, float] = {}
        self._prune_at = prune_at

    def report(self, value: float, step: int) -> None:
        self.values[step] = value

    def should_prune(self) -> bool:
        return self._prune_at is not None and len(self.values) >= self._prune_at


class Judge:
    """Stands in for the tuning tasks: the n-th look sees the return n², and is counted."""

    def __init__(self) -> None:
        self.looks: list[int] = []

    def evaluate(self, agent: Any) -> Any:
        self.looks.append(len(self.looks) + 1)
        look = self.looks[-1]
        return type("Result", (), {"returns": lambda self: torch.tensor([float(look**2)])})()


def planned(folder: Path, **options: Any) -> Plan:
    return Plan("smoke", [*TINY, "training.updates=4"], {}, TuningOptions(**options), folder / "study.log")


def test_the_value_of_a_trial_is_the_mean_over_its_trainings(tmp_path: Path) -> None:
    told, judge = Told(), Judge()
    outcome = TrialRun(planned(tmp_path, num_seeds=3, n_evaluations=4), judge, told, {}).run()  # type: ignore[arg-type]
    assert outcome is not None
    # four looks at the first training, then one at the end of each other one
    assert told.values == {1: 1, 2: 4, 3: 9, 4: 16, 5: (16 + 25) / 2, 6: (16 + 25 + 36) / 3}
    assert outcome.value == (16 + 25 + 36) / 3


def test_a_pruned_trial_trains_no_further(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    updates: list[int] = []
    train = tuning_trial.train

    def watched(*given: Any, callbacks: list[Callable[..., Any]], **more: Any) -> Any:
        noted = [lambda run, row: updates.append(row["update"]), *callbacks]
        return train(*given, callbacks=noted, **more)

    monkeypatch.setattr(tuning_trial, "train", watched)
    told = Told(prune_at=2)
    outcome = TrialRun(planned(tmp_path, num_seeds=2, n_evaluations=4), Judge(), told, {}).run()  # type: ignore[arg-type]
    assert outcome is not None and outcome.value is None and "pruned at 4" in outcome.said
    assert updates == [1, 2]


def test_settings_that_cannot_be_trained_end_their_trial_alone(tmp_path: Path) -> None:
    run = TrialRun(planned(tmp_path), Judge(), Told(), {"training.trials_per_update": 10**9})  # type: ignore[arg-type]
    outcome = run.run()
    assert outcome is not None and outcome.value is None and "cannot be trained" in outcome.said


def test_tuning_tasks_are_those_of_no_training_and_no_final_evaluation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judges: list[Any] = []

    class Watched(tuning.Contest):
        def __init__(self, *given: Any) -> None:
            super().__init__(*given)
            judges.append(self)

    monkeypatch.setattr(tuning, "Contest", Watched)
    options = TuningOptions(n_trials=1, num_seeds=1, tasks=50)
    tuning.tune("smoke", TINY, run_dir=tmp_path / "s", searches=[RATE], options=options)
    law = read_config("smoke").distribution
    (judge,) = judges
    (tuned_on,) = judge.held_out.parameters.values()
    for seed in range(3):
        for split in ("train", "test"):
            others = sample_tasks(law, 1000, seed, split)  # type: ignore[arg-type]
            (theirs,) = others.parameters.values()
            assert not torch.isin(tuned_on, theirs).any()


def take_part(folder: Path, me: str) -> None:
    """Wait until two processes are here, then run trials until none is left."""
    shared = SharedStudy(settings(folder, n_trials=16, sampler="random"))
    (folder / f"ready-{me}").touch()
    while len(list(folder.glob("ready-*"))) < 2:
        time.sleep(0.001)
    with shared.attendance.attending() as name:
        while trial := shared.claim(name):
            (folder / f"ran-{trial.number}-{me}").touch()
            time.sleep(0.02)  # its training
            shared.tell(trial, trial.params["x"])


@pytest.mark.skipif(sys.platform == "win32", reason="fork")
def test_two_processes_on_one_study_lose_no_trial_and_run_none_twice(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")  # a spawned process would load torch again
    pair = [context.Process(target=take_part, args=(tmp_path, me)) for me in "ab"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of a fork beside threads, which take no part
        for process in pair:
            process.start()
    for process in pair:
        process.join(60)
    assert [process.exitcode for process in pair] == [0, 0]
    trials = journal(tmp_path / "study.log")
    assert [trial["state"] for trial in trials] == [1] * 16  # all completed, and not one too many
    assert all(trial["value"] == trial["params"]["x"] for trial in trials)
    assert len({trial["params"]["x"] for trial in trials}) == 16
    ran = [path.name.split("-")[1:] for path in tmp_path.glob("ran-*")]
    assert sorted(int(number) for number, _ in ran) == list(range(16))
    assert {process for _, process in ran} == {"a", "b"}  # both took part


def test_the_results_of_another_study_are_kept(tmp_path: Path) -> None:
    (tmp_path / "best.yaml").write_text(
        "# smoke, tuned: trial 3 of study first, the best of 9; ...\nseed: 0\n"
    )
    said = CliRunner().invoke(app, tuned(tmp_path, "--study-name", "second"))
    assert isinstance(said.exception, UserError) and "another's results" in str(said.exception)
    assert (tmp_path / "best.yaml").read_text().startswith("# smoke, tuned: trial 3 of study first")


def test_a_killed_study_goes_on_as_if_it_had_not_been(tmp_path: Path) -> None:
    longer = ["training.updates=12", "--n-trials", "3", "--n-evaluations", "2", "--pruner", "none"]
    process = Forked(COMMAND, *tuned(tmp_path / "killed", *longer))
    while "trial 0 " not in process.stdout.readline():
        assert process.poll() is None
    while len(trials := journal(tmp_path / "killed" / "study.log")) < 2 or not trials[1]["params"]:
        time.sleep(0.001)  # until it is in the midst of the next one
    process.kill()
    process.communicate()
    before = journal(tmp_path / "killed" / "study.log")
    assert [trial["state"] for trial in before] == [1, 0]  # the last one was cut short
    for folder in ("killed", "undisturbed"):
        said = CliRunner().invoke(app, tuned(tmp_path / folder, *longer), catch_exceptions=False)
        assert said.exit_code == 0, said.output
    after = journal(tmp_path / "killed" / "study.log")
    assert after[0] == before[0]
    assert after[1]["state"] == 3 and after[1]["params"] == before[1]["params"]  # it has failed,
    assert [trial["params"] for trial in after].count(before[1]["params"]) == 2  # and is tried again, once
    assert len(ended(after)) == 3
    assert ended(after) == ended(journal(tmp_path / "undisturbed" / "study.log"))


def test_a_kill_between_the_two_steps_of_a_replacement_replaces_once(tmp_path: Path) -> None:
    shared = SharedStudy(settings(tmp_path, n_trials=2))
    with shared.attendance.attending() as name:
        lost = shared.claim(name)
    assert lost is not None
    shared.study.enqueue_trial(lost.params, user_attrs={"instead of": lost.number})  # then the kill
    assert len(run_through(SharedStudy(settings(tmp_path, n_trials=2)))) == 2
    trials = journal(tmp_path / "study.log")
    assert [trial["state"] for trial in trials] == [3, 1, 1]
    assert trials[1]["params"] == trials[0]["params"] != trials[2]["params"]


def test_the_table_of_all_trials_tells_of_those_that_were_cut_short(tmp_path: Path) -> None:
    shared = SharedStudy(settings(tmp_path, n_trials=2))
    with shared.attendance.attending() as name:
        first = shared.claim(name)
        assert first is not None
        shared.tell(first, 0.5)
        assert shared.claim(name) is not None
    assert (
        SharedStudy(settings(tmp_path, n_trials=1)).claim("another") is None
    )  # all that is wanted has ended
    rows = list(csv.DictReader(table_of_all(shared).splitlines()))
    assert [row["state"] for row in rows] == ["complete", "fail", "waiting"]
    assert [row["value"] for row in rows] == ["0.5", "", ""] and rows[2]["instead_of"] == "1"
    assert rows[1]["x"] == rows[2]["x"] != rows[0]["x"]


def test_who_is_at_work_is_seen_from_another_process(tmp_path: Path) -> None:
    ours, theirs = Attendance(tmp_path), Attendance(tmp_path)
    with ours.attending() as name:
        assert ours.is_present(name) and theirs.is_present(name)
    assert not theirs.is_present(name)
    elsewhere = tmp_path / "1-a@another-machine"  # its lock may not be seen here, but its signs of life are
    elsewhere.touch()
    assert theirs.is_present(elsewhere.name)
    os.utime(elsewhere, (time.time() - 1000, time.time() - 1000))
    assert not theirs.is_present(elsewhere.name) and not elsewhere.exists()


SIDE_BY_SIDE = """
import os, sys, time
from pathlib import Path
from rl2meta.errors import UserError
from rl2meta.experiments.side_by_side import side_by_side

def call(folder, number, say):
    (Path(folder) / f"pid{number}-{os.getpid()}").touch()
    if number == 7:
        raise UserError("seven")
    if number >= 100:
        time.sleep(60)
    say(f"{number} in {os.getpid()}")

if __name__ == "__main__":
    numbers = [int(word) for word in sys.argv[2:]]
    calls = [(sys.argv[1], number) for number in numbers]
    try:
        side_by_side(call, calls, 2, lambda line: print(line, flush=True))
    except UserError as error:
        print(f"error: {error}")
    except KeyboardInterrupt:
        print("interrupted")
"""


def test_calls_side_by_side_are_all_made_whatever_one_says(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(SIDE_BY_SIDE)
    command = [sys.executable, str(tmp_path / "program.py"), str(tmp_path), "1", "7", "3"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert sorted(line.split()[0] for line in lines) == ["1", "3", "error:"] and "error: seven" in lines
    assert len({path.name.split("-")[1] for path in tmp_path.glob("pid*")}) == 3
    here: list[str] = []
    with pytest.raises(UserError, match="a\nb"):
        side_by_side(_fails_or_says, [("a",), ("",), ("b",)], 1, here.append)
    assert here == ["said"]


def _fails_or_says(fault: str, say: Callable[[str], None]) -> None:
    if fault:
        raise UserError(fault)
    say("said")


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_ctrl_c_ends_all_processes(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(SIDE_BY_SIDE)
    command = [sys.executable, str(tmp_path / "program.py"), str(tmp_path), "100", "101"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    while len(found := list(tmp_path.glob("pid*"))) < 2:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    said, _ = process.communicate(timeout=10)
    assert said == "interrupted\n"
    for path in found:
        with pytest.raises(ProcessLookupError):
            os.kill(int(path.name.split("-")[1]), 0)
