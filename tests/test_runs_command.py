"""``rl2meta runs``: what is below a folder, also if parts of it are damaged."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from rl2meta import UserError, evaluate, train
from rl2meta.cli import app
from rl2meta.experiments.components import read_config
from rl2meta.experiments.overview import differences, overview, read_run

TINY = ["training.updates=3", "training.trials_per_update=4", "device=cpu", "threads=1"]


def written(folder: Path, overrides: dict[str, Any], updates: int, **last: Any) -> Path:
    """A run folder with a config and metrics, and nothing else."""
    folder.mkdir(parents=True)
    said = [f"{key}={value}" for key, value in overrides.items()]
    (folder / "config.yaml").write_text(read_config("smoke", said).to_yaml(versions={"torch": "1"}))
    rows = [{"update": update, "mean_return": 0.5} for update in range(1, updates + 1)]
    if last:
        rows[-1] |= last
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def evaluated(folder: Path, name: str, agents: dict[str, Any], age: float = 0) -> None:
    """An evaluation that is so many seconds old."""
    (folder / name).mkdir()
    path = folder / name / "evaluation.json"
    path.write_text(json.dumps({"agents": agents}))
    os.utime(path, (1e9 - age, 1e9 - age))


def table(folder: Path) -> list[str]:
    said = CliRunner().invoke(app, ["runs", str(folder)], catch_exceptions=False)
    assert said.exit_code == 0
    return said.output.splitlines()


def test_a_real_run_is_told_as_it_is(tmp_path: Path) -> None:
    run = train("smoke", TINY, run_dir=tmp_path / "runs" / "a")
    result = evaluate(run, tasks=20, against="none")
    (agent,) = result.results.values()
    entry = read_run(tmp_path / "runs" / "a")
    assert (entry.done, entry.total, entry.fault) == (3, 3, "")
    assert entry.scores["return"] == pytest.approx(agent.returns().mean())
    assert agent.regrets is not None
    assert entry.scores["regret"] == pytest.approx(agent.regrets.sum(axis=1).mean())
    assert entry.agent == "rl2 on bernoulli_bandits"
    lines = table(tmp_path)
    assert lines[0].split() == ["run", "agent", "updates", "return", "regret"]  # nothing else differs
    assert lines[1].startswith("runs/a ") and " 3/3 " in lines[1]
    assert table(tmp_path / "runs" / "a")[1].startswith(str(tmp_path))  # the folder is the run


def test_only_what_differs_is_told(tmp_path: Path) -> None:
    written(tmp_path / "a", {"agent.discount": 0.9, "threads": 1}, 2)
    written(
        tmp_path / "deep" / "b",
        {"agent.core.name": "gru", "agent.core.hidden_size": 16, "threads": 2},
        2,
        held_out_return=2.5,
    )
    entries = overview(tmp_path)
    assert [entry.path.name for entry in entries] == ["a", "b"]
    assert differences(entries) == [
        {"agent.core.name": "lstm", "agent.discount": 0.9},
        {"agent.core.name": "gru", "agent.discount": 1.0},
    ]
    lines = table(tmp_path)
    assert lines[0] == "all: rl2 on bernoulli_bandits"
    assert "discount=0.9" in lines[3] and "core.name=gru" in lines[4] and lines[4].endswith("2.500")
    assert "threads" not in "".join(lines) and "torch" not in "".join(lines)


def test_a_group_is_one_row(tmp_path: Path) -> None:
    for seed in (0, 1, 10):
        written(tmp_path / "g" / f"seed{seed}", {"seed": seed}, 10 + seed, held_out_return=1.0 + seed)
    (tmp_path / "g" / "group.yaml").write_text("seeds: [0, 1, 10]\n")
    levels = {
        "over_tasks": {"return": {"mean": 1.0}, "regret": {"mean": 2.0}},
        "over_seeds": {"return": {"mean": 3.0}, "regret": None, "seeds": [0, 1, 10]},
    }
    evaluated(tmp_path / "g", "evaluation", {"rl2": levels})
    written(tmp_path / "single", {"agent.discount": 0.9, "seed": 5}, 60)
    group, single = overview(tmp_path)
    assert group.seeds == 3 and (group.done, group.total) == (10 + 11 + 20, 180)
    assert group.scores["return"] == 3.0  # over seeds, where that is known
    assert group.scores["regret"] == 2.0 and group.scores["held_out_return"] == pytest.approx(14 / 3)
    assert differences([group, single]) == [{"agent.discount": 1.0}, {"agent.discount": 0.9}]
    assert single.scores == {}


def test_the_newest_evaluation_counts(tmp_path: Path) -> None:
    folder = written(tmp_path / "a", {}, 1)
    evaluated(folder, "evaluation", {"rl2": {"mean_return": 1.0, "mean_regret": None}}, age=50)
    evaluated(folder, "evaluation_2", {"rl2": {"mean_return": 2.0, "mean_regret": 0.5}, "random": {}}, age=5)
    evaluated(folder, "evaluation_3", {"rl2": {"mean_return": 3.0, "mean_regret": 0.5}}, age=500)
    assert read_run(folder).scores == {"return": 2.0, "regret": 0.5}


def test_the_newest_held_out_return_may_be_in_an_earlier_row(tmp_path: Path) -> None:
    folder = written(tmp_path / "a", {}, 5, held_out_return=4.0, held_out_regret=1.0)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"update": 6, "mean_return": 1.0}) + "\n" + '{"update": 7, "mean')
    entry = read_run(folder)
    assert (entry.done, entry.fault) == (6, "")
    assert entry.scores == {"held_out_return": 4.0, "held_out_regret": 1.0}


def test_only_the_end_of_long_metrics_is_read(tmp_path: Path) -> None:
    folder = written(tmp_path / "a", {}, 1)
    row = '{"update": %d, "mean_return": 0.123456789}\n'
    (folder / "metrics.jsonl").write_text("damaged\n" + "".join(row % update for update in range(1, 20_000)))
    entry = read_run(folder)
    assert (entry.done, entry.fault) == (19_999, "")


def _no_config(folder: Path) -> None:
    (folder / "config.yaml").unlink()


def _write(name: str, content: str) -> Any:
    return lambda folder: (folder / name).write_text(content)


def _fifo(folder: Path) -> None:
    (folder / "metrics.jsonl").unlink()
    os.mkfifo(folder / "metrics.jsonl")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (_no_config, "no config.yaml"),
        (_write("config.yaml", "[1, 2"), "config.yaml"),
        (_write("config.yaml", "a: 1\n"), "no config of a run"),
        (_write("config.yaml", "agent: {name: x}\ndistribution: {name: y}\n"), "training.updates"),
        (_write("metrics.jsonl", "{\n"), "damaged"),
        (_write("metrics.jsonl", "[1]\n"), "no JSON object"),
        (_write("metrics.jsonl", '{"update": "a"}\n'), "no number of the update"),
        (_write("metrics.jsonl", '{"update": 1, "held_out_return": "x"}\n'), "damaged"),
        (_write("evaluation/evaluation.json", "{"), "evaluation/evaluation.json: damaged"),
        (_write("evaluation/evaluation.json", '{"agents": {}}'), "no agents"),
        (_write("evaluation/evaluation.json", '{"agents": {"a": {"over_seeds": {"return": 1}}}}'), "damaged"),
        pytest.param(
            _fifo, "expected a file", marks=pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="FIFOs")
        ),
    ],
)
def test_a_damaged_folder_gets_a_row_that_says_so(damage: Any, words: str, tmp_path: Path) -> None:
    written(tmp_path / "sound", {}, 2)
    folder = written(tmp_path / "odd", {}, 2)
    evaluated(folder, "evaluation", {"rl2": {"mean_return": 1.0}})
    damage(folder)
    odd, sound = overview(tmp_path)
    assert words in odd.fault and sound.fault == ""
    lines = table(tmp_path)
    row = next(line for line in lines if line.startswith("odd"))
    assert words in row and any("damaged" in line.split() for line in lines)


def test_a_damaged_member_of_a_group_is_named(tmp_path: Path) -> None:
    for seed in (0, 1):
        written(tmp_path / "g" / f"seed{seed}", {"seed": seed}, 2)
    (tmp_path / "g" / "group.yaml").touch()
    (tmp_path / "g" / "seed1" / "metrics.jsonl").write_text("{\n")
    (group,) = overview(tmp_path)
    assert group.seeds == 2 and group.fault.startswith("seed1: damaged")
    assert group.fault.endswith("group.yaml: no list of seeds")


def test_seeds_that_have_not_begun_count(tmp_path: Path) -> None:
    written(tmp_path / "g" / "seed0", {"seed": 0}, 60)
    (tmp_path / "g" / "group.yaml").write_text("seeds: [0, 1, 2]\n")
    (group,) = overview(tmp_path)
    assert group.seeds == 3 and (group.done, group.total) == (60, 180) and not group.fault


def test_folders_without_runs_are_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="got nothing at"):
        overview(tmp_path / "nowhere")
    said = CliRunner().invoke(app, ["runs", str(tmp_path)])
    assert isinstance(said.exception, UserError) and "expected runs below" in str(said.exception)


def test_the_table_loads_no_torch(tmp_path: Path) -> None:
    written(tmp_path / "a", {}, 2)
    program = (
        "import sys; from pathlib import Path; from rl2meta.commands.runs import print_runs; "
        f"print_runs(Path({str(tmp_path)!r})); "
        "assert not {'torch', 'optuna', 'matplotlib'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
