"""Experiments from Python: a whole program, without a terminal and without a word."""

import gc
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import rl2meta
from rl2meta.evaluation import AgentResult, Ceilings
from rl2meta.experiments.catalogue import AGENTS, DISTRIBUTIONS
from rl2meta.experiments.components import AGENTS as KINDS
from rl2meta.experiments.components import FAMILIES

DOCS = Path(__file__).parents[2] / "docs"
LITTLE: dict[str, Any] = {
    "training.updates": 4,
    "training.trials_per_update": 8,
    "agent.core.hidden_size": 4,
    "distribution.low": 0.1,  # where no Bayes-optimal return is computed, which takes its time
    "device": "cpu",
    "threads": 1,
}
PUBLIC = rl2meta.__all__


def little(**more: Any) -> dict[str, Any]:
    return {**LITTLE, **{key.replace("__", "."): value for key, value in more.items()}}


def without_times(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    timing = {"seconds", "env_steps_per_second"}
    return [{key: value for key, value in row.items() if key not in timing} for row in rows]


def weights(run: rl2meta.Run) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in run.learner.state_dict().items()}


def same(some: dict[str, torch.Tensor], others: dict[str, torch.Tensor]) -> bool:
    return some.keys() == others.keys() and all(torch.equal(some[name], others[name]) for name in some)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> rl2meta.Run:
    """A run in a folder, not to be written to."""
    return rl2meta.train("rl2_bandit", LITTLE, run_dir=tmp_path_factory.mktemp("runs") / "trained")


@pytest.fixture(scope="module")
def in_memory() -> rl2meta.Run:
    """The same run, without a folder."""
    return rl2meta.train("rl2_bandit", LITTLE)


# A whole program


@pytest.mark.usefixtures("rendered")
def test_a_whole_program_prints_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run = rl2meta.train("rl2_bandit", little(distribution__low=0.0), run_dir=tmp_path / "wide")
    evaluation = rl2meta.evaluate(run, tasks=20, against=["gittins", "thompson"])
    table, figure = evaluation.table(), evaluation.figure("regret")
    assert capfd.readouterr() == ("", "")
    assert list(evaluation.results) == ["rl2", "gittins", "thompson"]
    assert repr(table) == table and re.search(r"^ *rl2 +\d\.\d{3} ± ", table, re.MULTILINE)
    assert figure.path == tmp_path / "wide" / "evaluation" / "regret.png" == evaluation.path / "regret.png"  # type: ignore[operator]
    assert figure._repr_png_().startswith(b"\x89PNG")  # IPython's name for what a notebook shows
    assert evaluation.results["rl2"].rewards.shape == (20, 10)
    assert evaluation.ceilings.bayes_optimal_return == pytest.approx(6.660, abs=1e-3)
    said = json.loads((tmp_path / "wide" / "evaluation" / "evaluation.json").read_text())
    assert said["subjects"] == evaluation.facts["subjects"] == ["rl2"] and said["num_tasks"] == 20


def test_what_a_run_says_of_itself(trained: rl2meta.Run) -> None:
    assert trained.path is not None and (trained.path / "config.yaml").exists()
    assert trained.config.agent.model_dump()["core"]["hidden_size"] == 4
    assert (trained.update, trained.env_steps, trained.episodes_per_trial) == (4, 4 * 8 * 10, 10)
    assert trained.finished and str(trained.distribution).startswith("BernoulliBandits(num_arms=5")
    assert [row["update"] for row in trained.metrics] == [1, 2, 3, 4]
    held_out = rl2meta.sample_tasks(trained.distribution, 3, 0, "test")
    trial = rl2meta.RolloutWorker(trained.distribution).run(trained.agent, held_out, 10, 0)
    assert trial.num_steps() == 30
    again = rl2meta.load_run(trained.path)
    assert (again.update, again.env_steps, again.path) == (4, 320, trained.path)
    assert same(weights(again), weights(trained)) and again.metrics == trained.metrics


def test_metrics_in_memory_equal_those_on_disk(trained: rl2meta.Run, in_memory: rl2meta.Run) -> None:
    assert without_times(in_memory.metrics) == without_times(trained.metrics)
    assert in_memory.metrics[0].keys() == trained.metrics[0].keys()
    assert same(weights(in_memory), weights(trained))
    assert (in_memory.path, in_memory.update, in_memory.env_steps) == (None, 4, 320)


# Without a folder


@pytest.mark.usefixtures("rendered")
def test_without_a_folder_nothing_is_left_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    run = rl2meta.train("rl2_bandit", little(training__updates=1))
    one = rl2meta.evaluate(run, tasks=10, against="none")
    both = rl2meta.compare({"a": run, "b": run}, tasks=10, against="none")
    assert list(tmp_path.iterdir()) == [] and one.path is both.path is None
    figures = [one.figure("regret"), both.figure("adaptation")]
    del one, both
    gc.collect()
    assert all(figure._repr_png_().startswith(b"\x89PNG") for figure in figures)  # they keep what they need
    del figures
    gc.collect()
    assert list(tmp_path.iterdir()) == []


def test_a_run_in_memory_is_judged_like_one_on_disk(
    trained: rl2meta.Run, in_memory: rl2meta.Run, tmp_path: Path
) -> None:
    ours = rl2meta.evaluate(in_memory, tasks=20, against="greedy")
    assert trained.path is not None and ours.path is None
    for number, run in enumerate((trained, str(trained.path))):
        other = rl2meta.evaluate(run, tasks=20, against=["greedy"], out=tmp_path / f"{number}")
        assert other.path == tmp_path / f"{number}" and (other.path / "adaptation.png").exists()
        for name in ("rl2", "greedy"):
            assert np.array_equal(ours.results[name].rewards, other.results[name].rewards)


def test_runs_are_compared_under_the_names_they_are_given(
    trained: rl2meta.Run, in_memory: rl2meta.Run, tmp_path: Path
) -> None:
    assert trained.path is not None
    runs = {"on disk": trained.path, "in memory": in_memory, "greedy": trained}
    with pytest.raises(rl2meta.UserError, match="expected different run folders, got the same one twice"):
        rl2meta.compare(runs)
    copy = Path(shutil.copytree(trained.path, tmp_path / "copy"))
    both = rl2meta.compare({**runs, "greedy": copy}, tasks=20, against="greedy", out=tmp_path / "out")
    assert list(both.results) == ["on disk", "in memory", "greedy (run)", "greedy"]
    paths = {name: said["path"] for name, said in both.facts["runs"].items()}
    assert paths == {"on disk": str(trained.path), "in memory": None, "greedy (run)": str(copy)}
    assert np.array_equal(both.results["on disk"].rewards, both.results["in memory"].rewards)
    unnamed = rl2meta.compare([in_memory, copy], tasks=20, against="none")
    assert list(unnamed.results) == ["run 1", "copy"] and unnamed.path is None


@pytest.mark.usefixtures("rendered")
def test_an_unknown_figure_is_refused(in_memory: rl2meta.Run) -> None:
    evaluation = rl2meta.evaluate(in_memory, tasks=10, against="none")
    with pytest.raises(rl2meta.UserError, match="adaptation, loss, profile, got 'regrets'"):
        evaluation.figure("regrets")
    steps = np.ones((10, 10), np.float32)
    silent = rl2meta.Evaluation(
        {"rl2": AgentResult(steps, None, steps, 1.0)}, Ceilings(None, None, None), evaluation.facts
    )
    with pytest.raises(rl2meta.UserError, match="no known optimum"):
        silent.figure("regret")
    assert silent.figure("returns")._repr_png_().startswith(b"\x89PNG")


# Callbacks


def test_a_callback_that_returns_false_stops_it_and_resume_goes_on(
    trained: rl2meta.Run, tmp_path: Path
) -> None:
    heard: list[int] = []

    def stop(run: rl2meta.Run, row: dict[str, Any]) -> bool:
        assert run.update == row["update"] and run.metrics[-1]["mean_return"] == row["mean_return"]
        return row["update"] < 2

    run = rl2meta.train(
        "rl2_bandit",
        LITTLE,
        run_dir=tmp_path / "run",
        callbacks=[stop, lambda run, row: heard.append(row["update"])],
    )
    assert heard == [1, 2]  # all callbacks hear of an update, the one that stops it too
    assert not run.finished and run.update == 2 and len(run.metrics) == 2
    assert (tmp_path / "run" / "checkpoints" / "update_00000002").is_dir()
    assert rl2meta.load_run(tmp_path / "run").update == 2
    on = rl2meta.resume(tmp_path / "run", callbacks=[lambda run, row: heard.append(row["update"])])
    assert heard == [1, 2, 3, 4] and on.finished
    assert without_times(on.metrics) == without_times(trained.metrics)
    assert same(weights(on), weights(trained))


@pytest.mark.parametrize("no", [False, np.False_, torch.tensor(False)])
def test_a_run_in_memory_stops_too(no: Any) -> None:
    run = rl2meta.train("rl2_bandit", LITTLE, callbacks=[lambda run, row: no])
    assert run.update == 1 and len(run.metrics) == 1 and not run.finished


@pytest.mark.parametrize("result", [None, 0, "", True, np.True_])
def test_only_false_stops_it(result: Any) -> None:
    assert rl2meta.train("rl2_bandit", LITTLE, callbacks=[lambda run, row: result]).finished


@pytest.mark.parametrize("callbacks", [print, [print, None]])
def test_callbacks_that_are_no_functions_leave_no_folder(callbacks: Any, tmp_path: Path) -> None:
    for seeds in (None, range(2)):
        with pytest.raises(rl2meta.UserError, match="callbacks: expected a list of functions"):
            rl2meta.train("rl2_bandit", LITTLE, seeds=seeds, callbacks=callbacks, run_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def numerics() -> tuple[int, bool]:
    return torch.get_num_threads(), torch.backends.cuda.matmul.allow_tf32


def test_what_a_callback_loads_and_judges_changes_no_threads_and_no_precision(tmp_path: Path) -> None:
    other = tmp_path / "other"
    rl2meta.train("rl2_bandit", little(precision="tf32", threads=2), run_dir=other)
    seen = []

    def judge(run: rl2meta.Run, row: dict[str, Any]) -> None:
        seen.append(numerics())
        rl2meta.evaluate(other, tasks=10, against="none", threads=2, out=tmp_path / f"judged{run.update}")

    rl2meta.train("rl2_bandit", LITTLE, callbacks=[judge], start_from=other)
    assert seen == [(1, False)] * 4


def test_a_callback_may_judge_the_run_without_disturbing_it(trained: rl2meta.Run) -> None:
    scores: list[float] = []

    def judge(run: rl2meta.Run, row: dict[str, Any]) -> None:
        results = rl2meta.evaluate(run, tasks=10, against="none").results
        scores.append(results["rl2"].returns().mean())

    run = rl2meta.train("rl2_bandit", LITTLE, callbacks=[judge])
    assert len(scores) == 4 and same(weights(run), weights(trained))


def test_a_callback_that_raises_leaves_a_folder_to_go_on_with(trained: rl2meta.Run, tmp_path: Path) -> None:
    def fail(run: rl2meta.Run, row: dict[str, Any]) -> None:
        if row["update"] == 3:
            raise RuntimeError("no space for plots")

    settings = little(training__checkpoint_every=2)
    with pytest.raises(RuntimeError, match="no space for plots"):
        rl2meta.train("rl2_bandit", settings, run_dir=tmp_path / "run", callbacks=[fail])
    run = rl2meta.resume(tmp_path / "run")
    assert without_times(run.metrics) == without_times(trained.metrics)
    assert same(weights(run), weights(trained))


def test_numpy_s_whole_numbers_will_do(trained: rl2meta.Run, tmp_path: Path) -> None:
    assert trained.path is not None
    some = {"tasks": np.int64(10), "seed": np.int64(3), "against": "none"}
    assert rl2meta.evaluate(trained, **some, out=tmp_path / "judged").facts["seed"] == 3
    copy = shutil.copytree(trained.path, tmp_path / "copy")
    both = rl2meta.compare([trained, copy], **some, episodes=np.int64(4), out=tmp_path / "compared")
    assert both.facts["episodes"] == 4
    rl2meta.watch(trained, task=np.int64(1), episodes=np.int64(3), out=tmp_path / "watched")


def test_where_one_run_is_expected_a_group_is_told_so(trained: rl2meta.Run) -> None:
    group = rl2meta.Group([trained])
    for given in ({"run": group}, {"run": trained, "against": group}):
        with pytest.raises(rl2meta.UserError, match=r"expected one run, got a group; name one of its runs"):
            rl2meta.watch(**given)


def test_a_run_is_resumed_by_itself(tmp_path: Path) -> None:
    half = rl2meta.train("rl2_bandit", LITTLE, callbacks=[lambda *_: False], run_dir=tmp_path / "half")
    assert rl2meta.resume(half).finished
    with pytest.raises(rl2meta.UserError, match="expected a run with a folder, got <Run of rl2"):
        rl2meta.resume(rl2meta.train("rl2_bandit", LITTLE))


def test_metrics_of_a_folder_that_is_not_there_are_not_called_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = rl2meta.train("rl2_bandit", LITTLE, run_dir="run")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    with pytest.raises(rl2meta.UserError, match="run: expected the run folder, got none; is the current"):
        run.metrics  # noqa: B018


def test_a_finished_run_is_returned_as_it_is(trained: rl2meta.Run, tmp_path: Path) -> None:
    assert trained.path is not None
    copy = Path(shutil.copytree(trained.path, tmp_path / "copy"))
    files = {path: path.stat().st_mtime_ns for path in copy.rglob("*")}
    heard: list[Any] = []
    run = rl2meta.resume(copy, callbacks=[lambda run, row: heard.append(row)], on_start=heard.append)
    assert run.finished and run.metrics == trained.metrics and same(weights(run), weights(trained))
    assert heard == [] and {path: path.stat().st_mtime_ns for path in files} == files
    with pytest.raises(rl2meta.UserError, match="expected a run folder"):
        rl2meta.resume(tmp_path / "nowhere")


# Beginning with the weights of another run


@pytest.mark.parametrize("by", ["run", "path", "memory"])
def test_a_run_begins_with_the_weights_of_another(
    trained: rl2meta.Run, in_memory: rl2meta.Run, tmp_path: Path, by: str
) -> None:
    first: list[dict[str, torch.Tensor]] = []
    assert trained.path is not None
    start_from = {"run": trained, "path": trained.path, "memory": in_memory}[by]
    before = weights(trained)
    longer = little(training__episodes_per_trial=12, seed=3, training__updates=2)
    run = rl2meta.train(
        "rl2_bandit",
        longer,
        run_dir=tmp_path / "it's",
        start_from=start_from,
        on_start=lambda run: first.append(weights(run)),
    )
    network = {name: tensor for name, tensor in before.items() if name.startswith("network.")}
    assert same(first[0], network)  # the optimiser starts anew: it has no moments yet
    assert same(weights(trained), before) and not same(weights(run), before)
    written = yaml.safe_load((tmp_path / "it's" / "config.yaml").read_text())
    said = None if by == "memory" else str(trained.path)
    assert written["started_from"] == {"path": said, "update": 4}
    assert rl2meta.load_run(tmp_path / "it's").update == 2
    again = rl2meta.train(tmp_path / "it's" / "config.yaml")  # from weights of its own this time
    assert again.finished and not same(weights(again), weights(run))


# Configs and overrides


def test_overrides_are_values_or_text(trained: rl2meta.Run) -> None:
    once = little(training__updates=1)
    values = {
        **once,
        "reveal_task": True,
        "evaluation.against": ["none"],
        "evaluation.episodes_per_trial": None,
        "agent.reward_signal": "sampled",
        "agent.core.embedding_sizes": (3, 2),
        "agent.learning_rate": 1e-5,
    }
    run = rl2meta.train("rl2_bandit", values)
    flat = run.config.flat()
    assert {key: flat[key] for key in values} == {**values, "agent.core.embedding_sizes": [3, 2]}
    texts = [f"{key}={value}" for key, value in once.items()]
    assert rl2meta.train("rl2_bandit", texts).config == rl2meta.train("rl2_bandit", once).config
    gru = rl2meta.train("rl2_bandit", {**once, "agent.core": {"name": "gru", "hidden_size": 3}})
    assert gru.config.flat()["agent.core.name"] == "gru"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"seed": object()}, "seed: expected a number, a string, .* got object <object"),
        ({"agent.learning_rate": float("nan")}, "agent.learning_rate: expected a number, .* got float nan"),
        ({"agent.learning_rate": [Path("x")]}, "agent.learning_rate: expected .* got list"),
        ({"agent.hiden": 3}, "agent.hiden: unknown key"),
        ({"training.updates": "3"}, "training.updates: expected a valid integer, got '3'"),
        ({"training.updates": True}, "training.updates: expected a valid integer, got True"),
        (["seed"], "expected an override of the form key.subkey=value"),
    ],
)
def test_bad_overrides_are_refused(overrides: Any, message: str) -> None:
    with pytest.raises(rl2meta.UserError, match=message):
        rl2meta.train("rl2_bandit", overrides)


def test_a_config_is_a_name_or_a_path_or_a_mapping(trained: rl2meta.Run, tmp_path: Path) -> None:
    assert trained.path is not None
    sections = yaml.safe_load((trained.path / "config.yaml").read_text())
    by_mapping = rl2meta.train(sections)
    by_path = rl2meta.train(trained.path / "config.yaml")
    for run in (by_mapping, by_path, rl2meta.train(str(trained.path / "config.yaml"))):
        assert without_times(run.metrics) == without_times(trained.metrics)
    with pytest.raises(rl2meta.UserError, match=r"config: expected a number, .* got \w+Path"):
        rl2meta.train({**sections, "device": tmp_path})
    with pytest.raises(rl2meta.UserError, match="config: 1 fault\n  sede: unknown key; did you mean 'seed'"):
        rl2meta.train({**sections, "sede": 3})
    with pytest.raises(rl2meta.UserError, match="got neither; did you mean 'rl2_bandit'"):
        rl2meta.train("rl2_bandits")


def test_a_folder_that_is_in_use_is_refused(trained: rl2meta.Run) -> None:
    assert trained.path is not None
    with pytest.raises(rl2meta.UserError, match="is already in use"):
        rl2meta.train("rl2_bandit", LITTLE, run_dir=trained.path)


# What is public


def _alone(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_importing_and_listing_load_nothing_heavy() -> None:
    heavy = "{'torch', 'numpy', 'gymnasium', 'pydantic', 'yaml', 'matplotlib'} & sys.modules.keys()"
    said = _alone(
        f"import sys, rl2meta; print(sorted({heavy})); "
        "made = rl2meta.list_agents(), rl2meta.list_distributions(), rl2meta.list_configs(); "
        f"print(sorted({heavy})); print(*[name for each in made for name in each])"
    )
    at_once, later, names = said.splitlines()
    assert (at_once, later) == ("[]", "[]")
    assert {"rl2", "maml_trpo", "bernoulli_bandits", "rl2_bandit"} <= set(names.split())


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_name_is_there_and_described(name: str) -> None:
    assert getattr(rl2meta, name) is not None
    assert name in dir(rl2meta)
    assert re.search(rf"`(rl2meta\.)?{name}\b", (DOCS / "api.md").read_text()), "expected it in docs/api.md"


def test_what_is_not_public_is_said_to_be_so() -> None:
    with pytest.raises(AttributeError, match=r"has no attribute 'trian'; it has Agent, .*\btrain\b"):
        rl2meta.trian  # noqa: B018
    assert {"__version__", *PUBLIC} <= set(dir(rl2meta))


def test_what_is_listed_says_what_its_own_file_says() -> None:
    assert rl2meta.list_agents().keys() >= AGENTS.keys()
    for name, entry in AGENTS.items():
        assert rl2meta.list_agents()[name] == entry.line == KINDS[name].line
    for name, entry in DISTRIBUTIONS.items():
        assert rl2meta.list_distributions()[name] == entry.line == FAMILIES[name].__doc__.split("\n")[0]
    for name, line in rl2meta.list_configs().items():
        text = (Path(__file__).parents[2] / "configs" / f"{name}.yaml").read_text()
        assert text.startswith(f"# {line}\n")
