"""``rl2meta reproduce`` fills tables, and goes on where it stopped."""

import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rl2meta.commands import reproduce as module
from rl2meta.commands.reproduce import reproduce
from rl2meta.errors import UserError
from rl2meta.experiments import contest
from rl2meta.experiments.components import read_config, references_of
from rl2meta.experiments.papers import load_paper, papers

UPDATE = 1024 * 10  # environment steps in an update of the cells with n=10


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contest, "TUNING_TASKS", 20)


def fill(out: Path, *cells: str, updates: int = 1, tasks: int | None = 30) -> dict[str, Any]:
    budget = updates * UPDATE + 5.0
    code = reproduce(
        "duan2016-bandits", cells=cells, budget=budget, tasks=tasks, out=out, device="cpu", threads=1
    )
    assert code == 0
    table: dict[str, Any] = json.loads((out / "table.json").read_text())
    return table


@pytest.mark.parametrize("name", papers())
def test_every_cell_names_an_experiment_and_agents_that_exist(name: str) -> None:
    paper = load_paper(name)
    assert next(iter(paper.agents)) == "rl2"
    columns = {column for column in paper.agents.values() if column is not None}
    for label, cell in paper.cells.items():
        config = read_config(cell.config, cell.overrides)
        known = references_of(config, config.settings.training.episodes_per_trial)
        assert set(list(paper.agents)[1:]) <= known.keys()
        assert columns == cell.published.keys()
        said = dict(part.split("=") for part in label.split(","))
        assert config.settings.training.episodes_per_trial == int(said["n"])
        if "k" in said:
            assert config.distribution.num_arms == int(said["k"])


def test_a_cell_is_filled_with_published_ours_error_and_ceiling(tmp_path: Path) -> None:
    table = fill(tmp_path, "n=10,k=5")
    assert list(table["cells"]) == ["n=10,k=5"]
    cell = table["cells"]["n=10,k=5"]
    assert (cell["num_tasks"], cell["env_steps"]) == (30, UPDATE)
    assert cell["bayes_optimal_return"] == pytest.approx(6.660, abs=1e-3)
    assert list(cell["agents"]) == list(load_paper("duan2016-bandits").agents)
    report = json.loads((tmp_path / "n=10,k=5" / "evaluation" / "evaluation.json").read_text())
    gittins = cell["agents"]["gittins"]
    assert (gittins["column"], gittins["published"]) == ("Gittins", 6.6)
    assert gittins["mean_return"] == report["agents"]["gittins"]["mean_return"]
    assert gittins["standard_error"] == report["agents"]["gittins"]["return_standard_error"]
    text = (tmp_path / "table.md").read_text()
    mean, error = gittins["mean_return"], gittins["standard_error"]
    share = mean / cell["bayes_optimal_return"]
    assert f"| gittins (Gittins) | 6.6 | {mean:.2f} | {error:.2f} | 6.66 | {share:.1%} |  |" in text


def test_what_is_there_is_used_and_the_rest_added(tmp_path: Path) -> None:
    first = fill(tmp_path, "n=10,k=5")
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "n=10,k=5").rglob("*.*")}
    both = fill(tmp_path, "n=10, k=10")
    assert list(both["cells"]) == ["n=10,k=5", "n=10,k=10"]
    assert both["cells"]["n=10,k=5"] == first["cells"]["n=10,k=5"]
    fill(tmp_path, "n=10,k=5")
    assert {path: path.stat().st_mtime_ns for path in files} == files
    assert not (tmp_path / "n=10,k=5" / "evaluation_2").exists()


def test_a_run_that_was_cut_short_goes_on_and_is_judged_anew(tmp_path: Path) -> None:
    whole = fill(tmp_path / "whole", "n=10,k=5", updates=2)
    fill(tmp_path / "cut", "n=10,k=5", updates=2)
    run = tmp_path / "cut" / "n=10,k=5"
    newest = max((run / "checkpoints").iterdir())
    shutil.rmtree(newest)  # as if it had stopped before the last update was saved
    report = run / "evaluation" / "evaluation.json"
    early = json.loads(report.read_text()) | {"update": 1}
    report.write_text(json.dumps(early))  # and had been judged then
    again = fill(tmp_path / "cut", "n=10,k=5", updates=2)
    assert again == whole
    assert (run / "evaluation_2").exists()


def test_other_numbers_of_tasks_are_evaluated_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, "n=10,k=5")
    assert fill(tmp_path, "n=10,k=5", tasks=40)["cells"]["n=10,k=5"]["num_tasks"] == 40
    monkeypatch.setattr(module, "evaluate_run", no_evaluation)
    both = fill(tmp_path, "n=10,k=5", tasks=30)  # that is still there
    assert both["cells"]["n=10,k=5"]["num_tasks"] == 30
    with pytest.raises(Evaluated, match="10000 tasks"):  # the config's number, not whatever is there
        fill(tmp_path, "n=10,k=5", tasks=None)


class Evaluated(Exception):
    pass


def no_evaluation(run_dir: Path, overrides: Any, *, tasks: int, **_: Any) -> None:
    raise Evaluated(f"{tasks} tasks")


@pytest.mark.parametrize("change", [{"seed": 7}, {"update": 0}, {"trained_with": {"distribution.low": 0.0}}])
def test_what_was_evaluated_otherwise_fills_no_cell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]
) -> None:
    fill(tmp_path, "n=10,k=5")
    report = tmp_path / "n=10,k=5" / "evaluation" / "evaluation.json"
    report.write_text(json.dumps(json.loads(report.read_text()) | change))
    monkeypatch.setattr(module, "evaluate_run", no_evaluation)
    with pytest.raises(Evaluated, match="30 tasks"):
        fill(tmp_path, "n=10,k=5")


ODD: dict[str, Any] = {
    "num_tasks": ["30", 30.0, None, True, -30, 10**30, [30]],
    "seed": ["0", None, [0], 0.5, -1],
    "update": ["1", None, True, {}],
    "env_steps": ["many", None, 1e9, 10**400, [], -1],
    "trained_with": [None, [], "", 0],
    "bayes_optimal_return": ["6.7", float("nan"), float("inf"), 10**400, [6.7], True],
    "oracle_return": ["6.7", float("-inf"), {}, False, 1e308],
    "agents": [None, [], 3, "rl2", {}, {"rl2": None}, {"rl2": []}],
}
ODD_AGENTS: dict[str, Any] = {
    "mean_return": ["6.6", None, True, float("nan"), 10**400, [6.6], {}],
    "return_standard_error": ["0.1", None, float("inf"), []],
    "constants": [None, [], "c", {"c": "1"}, {"c": None}, {"c": [1]}, {"c": float("nan")}, {"c": {}}],
}
DEEP = "[" * 10**5


def odd_texts(text: str) -> Iterator[str | bytes]:
    """Evaluations that are JSON and yet none, or none at all."""
    said = json.loads(text)
    for key, values in ODD.items():
        yield json.dumps({name: value for name, value in said.items() if name != key})
        yield from (json.dumps({**said, key: value}) for value in values)
    first = next(iter(said["agents"]))
    for key, values in ODD_AGENTS.items():
        for value in values:
            agents = {**said["agents"], first: {**said["agents"][first], key: value}}
            yield json.dumps({**said, "agents": agents})
    yield from ("x", "{}", "[]", '{"agents": 3}', "", "null", DEEP, f'{{"agents": {DEEP}', text[:-9])
    yield from (text.encode("utf-16"), text.encode("utf-32"), b"\xff" + text.encode(), b"\0" * 100)
    yield text.replace('"env_steps": ', '"env_steps": 1e400, "x": ')
    yield text.replace('"rl2": {', '"rl2": {"constants": {"\\ud800": 1}, ')


def put_in_place_of_files(folder: Path) -> None:
    """What is no file, each in a folder of an evaluation."""
    for kind in ("fifo", "folder", "loop", "nowhere"):
        path = folder / f"evaluation_{kind}" / "evaluation.json"
        path.parent.mkdir()
        if kind == "fifo":
            os.mkfifo(path)
        elif kind == "folder":
            path.mkdir()
        else:
            path.symlink_to(path if kind == "loop" else "nowhere")


@pytest.mark.skipif(sys.platform == "win32", reason="no FIFOs")
def test_odd_evaluations_are_passed_over_and_one_is_made_anew(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = fill(tmp_path, "n=10,k=5")
    run = tmp_path / "n=10,k=5"
    text = (run / "evaluation" / "evaluation.json").read_text()
    (run / "evaluation").rename(run / "judged")
    odd = [each for each in odd_texts(text) if '"agents": {}' not in str(each)]  # no agents: of another table
    for number, each in enumerate(odd):
        path = run / f"evaluation_odd_{number}" / "evaluation.json"
        path.parent.mkdir()
        path.write_bytes(each if isinstance(each, bytes) else each.encode())
    put_in_place_of_files(run)
    assert fill(tmp_path, "n=10,k=5") == whole
    said = capsys.readouterr().out
    for name in [*(f"odd_{number}" for number in range(len(odd))), "fifo", "folder"]:
        assert f"{name}/evaluation.json: expected an evaluation, got something else (" in said, name
    path = run / "evaluation" / "evaluation.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "bayes_optimal_return": 0}))
    assert fill(tmp_path, "n=10,k=5")["cells"]["n=10,k=5"]["bayes_optimal_return"] == 0
    assert "| 0.00 |  |" in (tmp_path / "table.md").read_text()  # no share of nothing


def test_a_cell_of_another_call_stays_in_the_table(tmp_path: Path) -> None:
    fill(tmp_path, "n=10,k=5", tasks=30)
    table = fill(tmp_path, "n=10,k=10", tasks=40)
    assert {name: cell["num_tasks"] for name, cell in table["cells"].items()} == {
        "n=10,k=5": 30,
        "n=10,k=10": 40,
    }


def test_another_budget_in_a_later_cell_is_told_before_the_first_is_trained(tmp_path: Path) -> None:
    fill(tmp_path, "n=10,k=10")
    with pytest.raises(UserError, match="expected the run of this cell"):
        fill(tmp_path, "n=10,k=5", "n=10,k=10", updates=2)
    assert not (tmp_path / "n=10,k=5").exists()


@pytest.mark.parametrize(
    ("name", "cells", "budget", "message"),
    [
        ("duan2016-bandit", [], None, "unknown table 'duan2016-bandit'; did you mean 'duan2016-bandits'"),
        ("duan2016-mdps", ["n=11"], None, "--cells: unknown cell 'n=11'; did you mean 'n=1"),
        (
            "duan2016-bandits",
            [],
            100.0,
            "--budget: expected at least the 10,240 environment steps of one update",
        ),
        ("duan2016-bandits", [], float("nan"), "--budget: expected"),
        ("few tasks", [], None, "evaluation.tasks: expected greater than or equal to 2, got 1"),
    ],
)
def test_mistakes_are_told_before_anything_is_written(
    tmp_path: Path, name: str, cells: list[str], budget: float | None, message: str
) -> None:
    with pytest.raises(UserError, match=message.replace("(", r"\(")):
        few = name == "few tasks"
        table, tasks = ("duan2016-bandits", 1) if few else (name, 30)
        reproduce(table, cells=cells, budget=budget, tasks=tasks, out=tmp_path / "new", device="cpu")
    assert not (tmp_path / "new").exists()


def test_a_file_is_no_folder_for_tables(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="--out: expected a folder, or none yet, got the file"):
        fill(tmp_path / "file", "n=10,k=5")


def test_another_budget_does_not_mix_with_what_is_there(tmp_path: Path) -> None:
    fill(tmp_path, "n=10,k=5")
    with pytest.raises(UserError, match=r"training.updates is 1, not 2\. Give the --budget"):
        fill(tmp_path, "n=10,k=5", updates=2)
