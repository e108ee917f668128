"""``rl2meta reproduce`` fills tables, and goes on where it stopped."""

import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import rl2meta
from rl2meta.commands import reproduce as module
from rl2meta.commands.reproduce import reproduce
from rl2meta.errors import UserError
from rl2meta.experiments import checkpoints, contest
from rl2meta.experiments.components import read_config, references_of
from rl2meta.experiments.papers import Paper, load_paper, papers, with_core, with_origins
from rl2meta.experiments.restore import origin_of
from rl2meta.experiments.run_folder import RunFolder

UPDATE = 1024 * 10  # environment steps in an update of the cells with n=10


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contest, "TUNING_TASKS", 20)


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table with one cell, trained and judged once; not to be written to."""
    folder = tmp_path_factory.mktemp("filled") / "table"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(contest, "TUNING_TASKS", 20)
        fill(folder, "n=10,k=5")
    return folder


@pytest.fixture
def copy(filled: Path, tmp_path: Path) -> Path:
    """A copy of this table, to be written to."""
    return Path(shutil.copytree(filled, tmp_path / "table"))


def fill(
    out: Path,
    *cells: str,
    updates: int = 1,
    tasks: int | None = 30,
    core: str | None = None,
    seeds: str | None = None,
) -> dict[str, Any]:
    budget, table = updates * UPDATE + 5.0, "duan2016-bandits"
    code = reproduce(
        table,
        cells=cells,
        core=core,
        budget=budget,
        tasks=tasks,
        out=out,
        device="cpu",
        threads=1,
        seeds=seeds,
        jobs=None if seeds is None else 1,
    )
    assert code == 0
    table: dict[str, Any] = json.loads((out / "table.json").read_text())
    return table


def test_jobs_without_seeds_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--jobs: expected --seeds beside it, got --jobs 4"):
        reproduce(
            "duan2016-bandits", cells=(), budget=1.0, tasks=30, out=tmp_path / "t", device="cpu", jobs=4
        )
    assert not (tmp_path / "t").exists()


TABLES = [
    (name, core)
    for name in papers()
    for core in (load_paper(name).core, *load_paper(name).cores)
    if core  # the tables of RL²
]


@pytest.mark.parametrize(("name", "core"), TABLES)
def test_every_cell_names_an_experiment_and_agents_that_exist(name: str, core: str) -> None:
    paper = with_core(load_paper(name), core)
    assert next(iter(paper.agents)) == "rl2"
    assert list(paper.cells) == list(load_paper(name).cells)
    columns = {column for column in paper.agents.values() if column is not None}
    for label, cell in paper.cells.items():
        config = read_config(cell.config, cell.overrides)
        known = references_of(config, config.settings.training.episodes_per_trial)
        assert set(list(paper.agents)[1:]) <= known.keys()
        assert columns == cell.published.keys()
        assert config.flat()["agent.core.name"] == core
        said = dict(part.split("=") for part in label.split(","))
        assert config.settings.training.episodes_per_trial == int(said["n"])
        if "k" in said:
            assert config.distribution.num_arms == int(said["k"])


def test_the_cells_of_learned_optimisers_have_their_agents_and_steps() -> None:
    paper = load_paper("andrychowicz2016")
    for cell in paper.cells.values():
        config = read_config(cell.config, cell.overrides)
        assert config.agent.rule.name == "lstm"
        known = references_of(config, config.settings.training.episodes_per_trial)
        assert [config.agent_name, *known] == [*list(paper.agents)[:1], "random", *list(paper.agents)[1:]]
        phases = config.settings.training.episodes_per_trial // config.agent.episodes_per_phase
        assert phases == max(paper.blocks) + 1


def test_a_cell_is_filled_with_published_ours_error_and_ceiling(filled: Path) -> None:
    table = json.loads((filled / "table.json").read_text())
    assert list(table["cells"]) == ["n=10,k=5"]
    cell = table["cells"]["n=10,k=5"]
    assert (cell["num_tasks"], cell["env_steps"]) == (30, UPDATE)
    assert cell["bayes_optimal_return"] == pytest.approx(6.660, abs=1e-3)
    assert list(cell["agents"]) == list(load_paper("duan2016-bandits").agents)
    report = json.loads((filled / "n=10,k=5" / "evaluation" / "evaluation.json").read_text())
    gittins = cell["agents"]["gittins"]
    assert (gittins["column"], gittins["published"]) == ("Gittins", 6.6)
    assert gittins["mean_return"] == report["agents"]["gittins"]["mean_return"]
    assert gittins["standard_error"] == report["agents"]["gittins"]["return_standard_error"]
    text = (filled / "table.md").read_text()
    mean, error = gittins["mean_return"], gittins["standard_error"]
    share = mean / cell["bayes_optimal_return"]
    assert f"| gittins (Gittins) | 6.6 | {mean:.2f} | {error:.2f} | 6.66 | {share:.1%} |  |" in text


def fill_few_shot(out: Path, *cells: str, budget: float = 240.0) -> dict[str, Any]:
    """One update of 16 tasks with 15 examples each, and then three tasks."""
    usual = {"core": None, "budget": budget, "tasks": 3, "device": "cpu", "threads": 1}
    assert reproduce("few-shot-glyphs", cells=cells, out=out, **usual) == 0  # type: ignore[arg-type]
    table: dict[str, Any] = json.loads((out / "table.json").read_text())
    return table["cells"]


def test_a_table_of_blocks_has_one_row_for_each_agent_and_no_reference_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = fill_few_shot(tmp_path, "maml", "maml_transductive")
    report = json.loads((tmp_path / "maml" / "evaluation" / "evaluation.json").read_text())
    steps = report["agents"]["maml_classification"]["adaptation"]
    assert len(steps) == 11 and report["trained_with"]["agent.inner_steps"] == 1
    filled = cells["maml"]["agents"]["maml_classification"]["blocks"]
    assert {block: each["mean"] for block, each in filled.items()} == {
        str(block): steps[block]["mean"] for block in (0, 1, 3, 5, 10)
    }
    assert cells["maml_transductive"]["from"] == "maml"
    rows = [line for line in (tmp_path / "table.md").read_text().splitlines() if line.startswith("| ")]
    assert [row.split("|")[1].strip() for row in rows] == [
        *("agent", "---", "maml", "nearest_neighbour", "maml_transductive")
    ]
    mean, low, high = (steps[10][end] for end in ("mean", "low", "high"))
    assert f"| {mean:.3f} ± {(high - low) / 2:.3f} |  |" in rows[2]  # and nothing after 50 blocks
    monkeypatch.setattr(module, "evaluate_run", no_evaluation)
    assert fill_few_shot(tmp_path, "maml") == cells  # an evaluation with the changes of its cell fills it
    with pytest.raises(UserError, match="expected none, because agents of this table have no core"):
        with_core(load_paper("few-shot-glyphs"), "lstm")


def test_cells_with_other_tasks_have_a_table_of_their_own(tmp_path: Path) -> None:
    fill_few_shot(tmp_path, "scratch", "maml_20way_1shot", budget=640.0)
    text = (tmp_path / "table.md").read_text()
    one, other = text.split("\n## 5-way 1-shot\n")[1].split("\n## 20-way 1-shot\n")
    rows = [re.findall(r"^\| (\w+) \| [\d,]+ \|", part, re.MULTILINE) for part in (one, other)]
    assert rows == [["scratch", "nearest_neighbour"], ["maml_20way_1shot", "nearest_neighbour"]]


def test_cells_of_one_table_of_blocks_have_the_same_law_and_whole_phases() -> None:
    paper = load_paper("few-shot-glyphs")
    laws: dict[str, set[tuple[int, int]]] = {}
    for label, cell in paper.cells.items():
        config = read_config(cell.config, cell.overrides)
        law, settings = config.distribution, config.settings
        laws.setdefault(cell.heading, set()).add((law.ways, law.shots))
        lanes = config.agent.episodes_per_phase
        assert lanes == law.ways * law.shots, label
        assert settings.training.episodes_per_trial % lanes == 0, label
        assert settings.evaluation.episodes_per_trial // lanes > 10, label  # the table shows ten steps
        if config.agent_name == "sequence_classification":
            assert config.agent.core.span == lanes + 1, label
    assert laws == {"5-way 1-shot": {(5, 1)}, "5-way 5-shot": {(5, 5)}, "20-way 1-shot": {(20, 1)}}
    names = {read_config(cell.config, []).agent_name for cell in paper.cells.values()}
    assert names == {"maml_classification", "pretrained_classification", "reptile", "sequence_classification"}


def test_what_is_there_is_used_and_the_rest_added(copy: Path) -> None:
    first = json.loads((copy / "table.json").read_text())
    files = {path: path.stat().st_mtime_ns for path in (copy / "n=10,k=5").rglob("*.*")}
    both = fill(copy, "n=10, k=10", tasks=40)  # a cell of another call stays in the table
    assert both["cells"]["n=10,k=10"]["num_tasks"] == 40
    assert list(both["cells"]) == ["n=10,k=5", "n=10,k=10"]
    assert both["cells"]["n=10,k=5"] == first["cells"]["n=10,k=5"]
    fill(copy, "n=10,k=5")
    assert {path: path.stat().st_mtime_ns for path in files} == files
    assert not (copy / "n=10,k=5" / "evaluation_2").exists()


def test_a_run_that_was_cut_short_goes_on_and_is_judged_anew(tmp_path: Path) -> None:
    whole = fill(tmp_path / "cut", "n=10,k=5", updates=2)
    run = tmp_path / "cut" / "n=10,k=5"
    newest = max((run / "checkpoints").iterdir())
    shutil.rmtree(newest)  # as if it had stopped before the last update was saved
    report = run / "evaluation" / "evaluation.json"
    early = json.loads(report.read_text()) | {"update": 1}
    report.write_text(json.dumps(early))  # and had been judged then
    again = fill(tmp_path / "cut", "n=10,k=5", updates=2)
    assert again == whole
    assert (run / "evaluation_2").exists()


def test_other_numbers_of_tasks_are_evaluated_anew(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert fill(copy, "n=10,k=5", tasks=40)["cells"]["n=10,k=5"]["num_tasks"] == 40
    monkeypatch.setattr(module, "evaluate_run", no_evaluation)
    both = fill(copy, "n=10,k=5", tasks=30)  # that is still there
    assert both["cells"]["n=10,k=5"]["num_tasks"] == 30
    with pytest.raises(Evaluated, match="10000 tasks"):  # the config's number, not whatever is there
        fill(copy, "n=10,k=5", tasks=None)


class Evaluated(Exception):
    pass


def no_evaluation(run_dir: Path, overrides: Any, *, tasks: int, **_: Any) -> None:
    raise Evaluated(f"{tasks} tasks")


@pytest.mark.parametrize("change", [{"seed": 7}, {"update": 0}, {"trained_with": {"distribution.low": 0.0}}])
def test_what_was_evaluated_otherwise_fills_no_cell(
    copy: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]
) -> None:
    report = copy / "n=10,k=5" / "evaluation" / "evaluation.json"
    report.write_text(json.dumps(json.loads(report.read_text()) | change))
    monkeypatch.setattr(module, "evaluate_run", no_evaluation)
    with pytest.raises(Evaluated, match="30 tasks"):
        fill(copy, "n=10,k=5")


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
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = json.loads((copy / "table.json").read_text())
    run = copy / "n=10,k=5"
    text = (run / "evaluation" / "evaluation.json").read_text()
    (run / "evaluation").rename(run / "judged")
    odd = [each for each in odd_texts(text) if '"agents": {}' not in str(each)]  # no agents: of another table
    for number, each in enumerate(odd):
        path = run / f"evaluation_odd_{number}" / "evaluation.json"
        path.parent.mkdir()
        path.write_bytes(each if isinstance(each, bytes) else each.encode())
    put_in_place_of_files(run)
    assert fill(copy, "n=10,k=5") == whole
    said = capsys.readouterr().out
    for name in [*(f"odd_{number}" for number in range(len(odd))), "fifo", "folder"]:
        assert f"{name}/evaluation.json: expected an evaluation, got something else (" in said, name
    path = run / "evaluation" / "evaluation.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "bayes_optimal_return": 0}))
    assert fill(copy, "n=10,k=5")["cells"]["n=10,k=5"]["bayes_optimal_return"] == 0
    assert "| 0.00 |  |" in (copy / "table.md").read_text()  # no share of nothing


# Another core, and cells that begin with the weights of others

SLOT = "agent.core={name: slot, slot_size: 4, hidden_size: 4}"
CORES = {
    "slot": {
        "n=10,k=5": {"config": "rl2_bandit", "overrides": ["distribution.num_arms=5", SLOT]},
        "n=10,k=10": {
            "config": "rl2_bandit",
            "overrides": ["distribution.num_arms=10", SLOT],
            "from": "n=10,k=5",
        },
        "n=10,k=50": {
            "config": "rl2_bandit",
            "overrides": ["distribution.num_arms=50", SLOT],
            "from": "n=10,k=10",
        },
    }
}


def small_paper(**more: Any) -> Paper:
    """The table of bandits with a core of slots, and few references."""
    paper = load_paper("duan2016-bandits").model_dump(by_alias=True)
    agents = {name: paper["agents"][name] for name in ("rl2", "random")}
    return Paper(**{**paper, "agents": agents, "cores": CORES, **more})


@pytest.fixture
def slots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "load_paper", lambda name: small_paper())


def weights(run: Path, update: int) -> dict[str, torch.Tensor]:
    tensors = checkpoints.load(run / "checkpoints" / f"update_{update:08d}").tensors
    return {name: tensor for name, tensor in tensors.items() if name.startswith("network.")}


@pytest.mark.usefixtures("slots")
def test_a_cell_begins_with_the_trained_weights_of_another(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = fill(tmp_path, "n=10,k=10", core="slot")
    first, second = tmp_path / "n=10,k=5", tmp_path / "n=10,k=10"
    before, begun = weights(first, 1), weights(second, 0)
    assert before.keys() == begun.keys() and all(torch.equal(before[name], begun[name]) for name in begun)
    assert not all(torch.equal(weights(second, 1)[name], begun[name]) for name in begun)
    assert origin_of(RunFolder.open(second)) == (str(first), 1)
    assert not (first / "evaluation").exists()
    assert (
        "[1/2] duan2016-bandits n=10,k=5, whose weights another cell begins with" in capsys.readouterr().out
    )
    assert list(table["cells"]) == ["n=10,k=10"]
    cell = table["cells"]["n=10,k=10"]
    assert (cell["from"], cell["env_steps"]) == ("n=10,k=5", UPDATE)
    assert list(cell["agents"]) == ["rl2 (slot)", "random"]
    assert (cell["agents"]["rl2 (slot)"]["column"], cell["agents"]["rl2 (slot)"]["published"]) == ("RL²", 6.7)
    text = (tmp_path / "table.md").read_text()
    assert "trained on 10,240 environment steps, and began with the trained weights of n=10,k=5." in text
    assert "| rl2 (slot) (RL²) | 6.7 |" in text
    files = {path: path.stat().st_mtime_ns for cell in (first, second) for path in cell.rglob("*.*")}
    assert fill(tmp_path, "n=10,k=10", core="slot") == table
    assert {path: path.stat().st_mtime_ns for path in files} == files


@pytest.mark.usefixtures("slots")
def test_evaluations_from_before_rows_named_the_core_fill_cells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = fill(tmp_path, "n=10,k=5", core="slot")
    report = tmp_path / "n=10,k=5" / "evaluation" / "evaluation.json"
    report.write_text(report.read_text().replace('"rl2 (slot)"', '"rl2"'))
    monkeypatch.setattr(module, "evaluate_run", no_evaluation)
    assert fill(tmp_path, "n=10,k=5", core="slot") == table


@pytest.mark.usefixtures("slots")
def test_a_cell_with_several_seeds_goes_on_and_gets_more(tmp_path: Path) -> None:
    """None of them is the seed of the config."""
    wide = partial(fill, tmp_path, "n=10,k=5", core="slot")
    for seeds in ("3", "3,5", "3,5"):
        table = wide(seeds=seeds)
    row = table["cells"]["n=10,k=5"]["agents"]["rl2 (slot)"]
    assert row["seeds"] == [3, 5] and row["over_seeds"]["low"] < row["mean_return"]
    text = (tmp_path / "table.md").read_text()
    assert "rl2 (slot): a mean over 2 training seeds; 95 % over seeds and tasks: " in text
    folders = {path.name for path in (tmp_path / "n=10,k=5").glob("evaluation*")}
    assert folders == {"evaluation", "evaluation_2"}
    table = wide(seeds="3,5", tasks=20)  # the number of tasks to judge on is none of the training's settings
    assert table["cells"]["n=10,k=5"]["num_tasks"] == 20
    with pytest.raises(UserError, match="add --seeds 3,5"):
        wide()
    newest = max((tmp_path / "n=10,k=5" / "seed5" / "checkpoints").iterdir())
    shutil.rmtree(newest)  # now seed 5 is unfinished
    with pytest.raises(UserError, match=r"expected also the unfinished seeds \[5\]"):
        wide(seeds="3")


@pytest.mark.usefixtures("slots")
def test_a_run_that_began_with_other_weights_is_of_no_cell(tmp_path: Path) -> None:
    overrides = ["distribution.num_arms=10", SLOT, "training.updates=1", "evaluation.tasks=30", "threads=1"]
    rl2meta.train("rl2_bandit", overrides, run_dir=tmp_path / "n=10,k=10")
    with pytest.raises(
        UserError, match="began with the weights of its own seed, not the weights of n=10,k=5"
    ):
        fill(tmp_path, "n=10,k=10", core="slot")
    assert not (tmp_path / "n=10,k=5").exists()


@pytest.mark.usefixtures("slots")
def test_runs_of_another_core_have_a_folder_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for core in (None, "lstm", "slot"):
        options: dict[str, Any] = {"cells": ["n=10,k=5"], "budget": UPDATE, "tasks": 30, "out": None}
        assert reproduce("duan2016-bandits", core=core, **options, device="cpu", threads=1) == 0
    rows = {
        path.parent.name: next(iter(json.loads(path.read_text())["cells"]["n=10,k=5"]["agents"]))
        for path in Path("runs").glob("*/table.json")
    }
    assert rows == {"duan2016-bandits": "rl2", "duan2016-bandits-slot": "rl2 (slot)"}


def test_all_origins_of_a_cell_are_needed_and_stand_before_it() -> None:
    paper = with_core(small_paper(), "slot")
    last = {"n=10,k=50": paper.cells["n=10,k=50"]}
    assert list(with_origins(paper, last)) == ["n=10,k=5", "n=10,k=10", "n=10,k=50"]
    first = {"n=10,k=5": paper.cells["n=10,k=5"]}
    assert with_origins(paper, first) == first
    backwards = {"slot": dict(reversed(CORES["slot"].items()))}
    with pytest.raises(
        ValueError, match="n=10,k=50: from: expected a cell that stands before it, got n=10,k=10"
    ):
        small_paper(cores=backwards)


def test_another_budget_in_a_later_cell_is_told_before_the_first_is_trained(copy: Path) -> None:
    with pytest.raises(UserError, match="expected the run of this cell"):
        fill(copy, "n=10,k=10", "n=10,k=5", updates=2)
    assert not (copy / "n=10,k=10").exists()


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
        ("core", [], None, "--core: unknown core 'slots'; did you mean 'slot'? Known: lstm, slot"),
        ("few tasks", [], None, "evaluation.tasks: expected greater than or equal to 2, got 1"),
    ],
)
def test_mistakes_are_told_before_anything_is_written(
    tmp_path: Path, name: str, cells: list[str], budget: float | None, message: str
) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        table = {"few tasks": "duan2016-bandits", "core": "duan2016-mdps"}.get(name, name)
        tasks, core = 1 if name == "few tasks" else 30, "slots" if name == "core" else None
        options: dict[str, Any] = {"cells": cells, "core": core, "budget": budget, "tasks": tasks}
        reproduce(table, **options, out=tmp_path / "new", device="cpu")
    assert not (tmp_path / "new").exists()


def test_a_file_is_no_folder_for_tables(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="--out: expected a folder, or none yet, got the file"):
        fill(tmp_path / "file", "n=10,k=5")


def test_another_budget_does_not_mix_with_what_is_there(copy: Path) -> None:
    with pytest.raises(UserError, match=r"training.updates is 1, not 2\. Give the --budget"):
        fill(copy, "n=10,k=5", updates=2)
