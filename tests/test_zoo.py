"""The zoo: every entry is what it claims to be, and an installed package is only read."""

import math
import re
import shlex
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

import rl2meta
from rl2meta.distinct import repeated, same_tasks
from rl2meta.errors import UserError
from rl2meta.evaluation import evaluate as play
from rl2meta.experiments import zoo, zoo_building, zoo_page
from rl2meta.experiments.components import judged_episodes, make_worker, read_config
from rl2meta.experiments.group_folder import refuse_trained
from rl2meta.experiments.groups import Group
from rl2meta.experiments.run import Run
from rl2meta.statistics import mean_interval
from rl2meta.tasks import sample_tasks
from rl2meta.workers.plugged_in import PluggedIn

ROOT = Path(__file__).parents[1]
NAMES = zoo.zoo_names()
KINDS = {".yaml", ".json", ".jsonl", ".digests", ".csv", ".safetensors"}
PLACES = re.compile(r"/(tmp|home|root|work|Users|var|mnt|opt)/|site-packages|[A-Z]:\\")
TASKS, FEW = 500, 40  # single environments in worker processes take too long for many
SLOW = {"maml_navigation": 150, "mlsh_moving_bandits": 150}  # long trials of large agents
FAR = 4.0  # standard errors; chance passes this once in 16,000 entries
TINY = {"training.updates": 2, "training.trials_per_update": 16, "training.evaluate_every": None}


def _score(name: str, run: Run) -> tuple[float, float]:
    """Return an agent's regret (or return) on tasks that its entry has not seen, and its standard error."""
    number = FEW if isinstance(run.config.law, PluggedIn) else SLOW.get(name, TASKS)
    tasks = sample_tasks(run.distribution, number, 1, "test")
    worker = make_worker(run.config, torch.device("cpu"))
    result = play(run.agent, worker, tasks, judged_episodes(run.config), seed=1)
    worker.close()
    known = result.rewards if result.regrets is None else result.regrets
    interval = mean_interval(known.sum(axis=1, dtype=float), clusters=repeated(same_tasks(tasks)))
    return float(interval.mean), float(interval.standard_error)


def _without_folder(run: Run) -> Run:
    return Run(run.config, run.learner, None, run.update, run.env_steps)  # so that nothing is written


def _distance(name: str, run: Run) -> float:
    """Return how many standard errors lie between what an agent plays and what an entry claims."""
    claim = zoo_page.page(name).subject
    mean, error = _score(name, run)
    return (mean - claim.mean) / math.hypot(error, (claim.high - claim.low) / 2 / 1.96)


@pytest.mark.parametrize("name", NAMES)
def test_an_agent_plays_as_its_entry_claims(name: str) -> None:
    run = rl2meta.load_run(f"zoo:{name}")
    assert isinstance(run, Run)
    assert abs(_distance(name, run)) < FAR


def test_the_test_of_a_claim_finds_another_agent() -> None:
    """An agent that was trained a little is far from the claim."""
    worse = rl2meta.train("rl2_bandit", {**TINY, "threads": 1})
    assert _distance("rl2_bandit", worse) > 2 * FAR


@pytest.mark.parametrize("name", NAMES)
def test_an_entry_is_small_and_says_how_it_was_made(name: str) -> None:
    folder, entry, claim = zoo.ZOO / name, zoo.read_entry(zoo.ZOO / name), zoo_page.page(name).subject
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert zoo_page.size_of(folder) <= zoo_building.LARGEST and {path.suffix for path in files} == KINDS
    (weights,) = folder.rglob("*.safetensors")
    texts = [path.read_text(encoding="utf-8") for path in files if path != weights]
    assert not any(map(PLACES.search, texts))
    assert not [key for key in load_file(weights) if "optimizer." in key]
    scores = {int(score["seed"]): score[claim.of] for score in entry.scores}
    assert scores[entry.seed] == pytest.approx(claim.mean, rel=1e-5)  # files keep six decimals
    better = sum(score < scores[entry.seed] for score in scores.values())
    assert better == len(scores) // 2, "expected the median, of two in the middle the worse one"
    _refuse_another_command(entry, rl2meta.load_run(f"zoo:{name}"))


def _refuse_another_command(entry: zoo.ZooEntry, run: Run | Group) -> None:
    program, command, config, *words = shlex.split(entry.command)
    assert (program, command) == ("rl2meta", "train")
    settings = [word for word in words if "=" in word]
    wanted = read_config(config, [*settings, f"seed={entry.seed}"])
    assert wanted.identity() == run.config.identity()


def test_the_page_is_what_the_command_writes() -> None:
    assert (ROOT / "docs" / "zoo.md").read_text(encoding="utf-8") == zoo_page.document(), (
        "run `rl2meta zoo document`"
    )


def _call(*words: str) -> str:
    from rl2meta.cli import app

    said = CliRunner().invoke(app, list(words), catch_exceptions=False)
    assert said.exit_code == 0
    return said.output


def test_the_list_shows_each_agent_and_its_score() -> None:
    said = _call("list", "zoo")
    for name in NAMES:
        (found,) = re.findall(rf"^zoo:{name} +re\w+ +([\d.]+) ± ([\d.]+) ", said, re.M)
        claim = zoo_page.page(name).subject
        half = (claim.high - claim.low) / 2
        assert float(found[0]) == pytest.approx(claim.mean, abs=half / 10)
        assert float(found[1]) == pytest.approx(half, rel=0.1)
    told = _call("list", "zoo:rl2_bandit")
    assert zoo.read_entry(zoo.ZOO / "rl2_bandit").command in told and "gittins" in told
    assert rl2meta.list_zoo().keys() == set(NAMES)


def test_results_go_into_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    before = _contents(zoo.ZOO)
    other = rl2meta.train("rl2_bandit", TINY | {"seed": 7}, run_dir="mine")
    said = _call("evaluate", "zoo:rl2_bandit", "--tasks", "50", "--against", "none")
    assert "wrote zoo-rl2_bandit-evaluation " in said
    beside = rl2meta.compare(["zoo:rl2_bandit", other], tasks=50, against="none")
    assert list(beside.results) == ["rl2_bandit", "mine"] and beside.path == Path("compare-rl2_bandit-mine")
    assert beside.facts["runs"]["rl2_bandit"]["path"] == "zoo:rl2_bandit"
    rl2meta.plot("zoo:rl2_bandit")
    made = {"mine", "zoo-rl2_bandit-evaluation", "zoo-rl2_bandit-learning.png", "compare-rl2_bandit-mine"}
    assert {path.name for path in tmp_path.iterdir()} == made and _contents(zoo.ZOO) == before


def test_a_zoo_agent_and_a_run_of_another_seed_are_no_group() -> None:
    from rl2meta.experiments.comparing import together

    ours = rl2meta.load_run("zoo:rl2_bandit")
    assert isinstance(ours, Run)
    settings = ours.config.settings.model_copy(update={"seed": 7})
    other = Run(replace(ours.config, settings=settings), ours.learner, None, ours.update)
    apart = [Group([ours], ours.path), Group([other])]
    assert [len(group.runs) for group in together(apart)[1]] == [1, 1]
    assert len(together([Group([_without_folder(ours)]), Group([other])])[1]) == 1


def _contents(folder: Path) -> Mapping[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_training_begins_with_the_weights_of_an_agent(tmp_path: Path) -> None:
    group = rl2meta.train(
        "rl2_bandit", TINY, seeds=range(2), start_from="zoo:rl2_bandit", run_dir=tmp_path / "group"
    )
    assert group.runs[0].metrics[0]["mean_return"] > 5.5  # chance earns 5
    shutil.rmtree(tmp_path / "group" / "seed1")
    resumed = rl2meta.resume(tmp_path / "group")
    assert isinstance(resumed, Group) and group.finished and resumed.seeds == [0, 1]
    assert [each.origin and each.origin.path for each in resumed.runs] == ["zoo:rl2_bandit"] * 2


def test_a_zoo_agent_is_only_read(tmp_path: Path) -> None:
    there = zoo.ZOO / "rl2_bandit"
    calls: list[Any] = [
        lambda: rl2meta.resume("zoo:rl2_bandit"),
        lambda: rl2meta.resume(there),
        lambda: rl2meta.train("rl2_bandit", TINY, run_dir="zoo:rl2_bandit"),
        lambda: rl2meta.train("rl2_bandit", TINY, run_dir="zoo:rl2_bandit", seeds=[0, 1]),
    ]
    for call in calls:
        with pytest.raises(UserError, match=r"only read .* --from zoo:rl2_bandit --run-dir runs/MINE"):
            call()
    assert not (there / ".lock").exists()


@pytest.mark.parametrize("place", ["zoo:mine", zoo.ZOO / "rl2_bandit" / "mine"])
def test_nothing_is_written_into_the_zoo(
    place: str | Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = _contents(zoo.ZOO)
    agent = "zoo:rl2_bandit"
    calls: list[Callable[[], Any]] = [
        lambda: rl2meta.train("rl2_bandit", TINY, run_dir=place),
        lambda: rl2meta.train("rl2_bandit", TINY, run_dir=place, seeds=[0, 1]),
        lambda: rl2meta.evaluate(agent, tasks=2, against="none", out=place),
        lambda: rl2meta.watch(agent, episodes=1, out=place),
        lambda: rl2meta.plot(agent, out=f"{place}.png" if place == "zoo:mine" else Path(place) / "x.png"),
        lambda: refuse_trained(Path(place)),  # tune and sweep
        lambda: _call("reproduce", "duan2016-mdps", "--cells", "n=10", "--out", str(place)),
        lambda: _call("zoo", "document", "--out", str(place)),
    ]
    for call in calls:
        with pytest.raises(UserError, match="only read"):
            call()
    assert not list(tmp_path.iterdir()) and _contents(zoo.ZOO) == before


def test_the_page_is_not_written_over_another_file(tmp_path: Path) -> None:
    (tmp_path / "notes.md").write_text("# Notes\n")
    with pytest.raises(UserError, match="--out: expected a new file, or an earlier page"):
        _call("zoo", "document", "--out", str(tmp_path / "notes.md"))
    assert (tmp_path / "notes.md").read_text() == "# Notes\n"
    for _ in range(2):  # its own page is written again
        _call("zoo", "document", "--out", str(tmp_path / "zoo.md"))
    assert (tmp_path / "zoo.md").read_text(encoding="utf-8") == zoo_page.document()


@pytest.mark.parametrize("said", ["", "[", "3", "{}", "[" * 100_000, '{"agents": {"rl2": {}}}'])
def test_a_damaged_evaluation_is_explained(said: str, tmp_path: Path) -> None:
    shutil.copytree(zoo.ZOO / "rl2_bandit", tmp_path / "mine")
    (tmp_path / "mine" / "evaluation" / "evaluation.json").write_text(said)
    with pytest.raises(UserError, match=r"evaluation.json: expected the evaluation .*Install rl2meta again"):
        zoo_page.document(tmp_path)


@pytest.mark.parametrize("name", ["", ".", "../x", "a/b", ".hidden", "<b>", "x" * 61, "a|b", "a\nb"])
def test_a_name_that_would_be_no_entry(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--name: expected at most 60 letters"):
        zoo_building.add_entry(name, ["zoo:rl2_bandit"], config="rl2_bandit", into=tmp_path)
    assert not list(tmp_path.iterdir())


def test_an_unknown_name_gets_the_nearest_one() -> None:
    for call in (rl2meta.load_run, rl2meta.evaluate, rl2meta.plot, lambda name: _call("list", name)):
        with pytest.raises(
            UserError, match=r"zoo:rl2_bandt: .* did you mean 'rl2_bandit'. Known: .*rl2_bandit"
        ):
            call("zoo:rl2_bandt")


@pytest.mark.parametrize("damaged", ["tensors.safetensors", "state.json", "config.yaml"])
def test_a_damaged_agent_says_so(damaged: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zoo, "ZOO", tmp_path)
    shutil.copytree(ROOT / "rl2meta" / "zoo" / "rl2_bandit", tmp_path / "rl2_bandit")
    rl2meta.load_run("zoo:rl2_bandit")
    (path,) = tmp_path.rglob(damaged)
    data = path.read_bytes()
    path.write_bytes(data.replace(b"0.05", b"0.04") if damaged == "config.yaml" else _flipped(data))
    with pytest.raises(UserError, match=r"zoo:rl2_bandit is damaged: .* pip install --force-reinstall"):
        rl2meta.load_run("zoo:rl2_bandit")


def _flipped(data: bytes) -> bytes:
    half = len(data) // 2
    return data[:half] + bytes([data[half] ^ 1]) + data[half + 1 :]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A group of three short trainings."""
    folder = tmp_path_factory.mktemp("trained") / "group"
    settings = TINY | {"training.updates": 9, "distribution.num_arms": 2}
    rl2meta.train("rl2_bandit", settings, seeds=[3, 4, 6], run_dir=folder)
    return folder


def _regret(run: Run | Group) -> float:
    assert isinstance(run, Run)
    regrets = rl2meta.evaluate(_without_folder(run), tasks=200, against="none").results["rl2"].regrets
    assert regrets is not None
    return float(regrets.sum(axis=1).mean())


def test_an_entry_is_the_seed_with_the_median_score(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zoo_building, "_ROWS", 5)
    folder = zoo_building.add_entry(
        "new", [trained], config="rl2_bandit", tasks=200, against="none", into=tmp_path / "zoo"
    )
    regrets = {seed: _regret(rl2meta.load_run(trained / f"seed{seed}")) for seed in (3, 4, 6)}
    entry, run = zoo.read_entry(folder), rl2meta.load_run(folder)
    assert isinstance(run, Run)
    assert entry.seed == sorted(regrets, key=lambda seed: regrets[seed])[1] == run.config.settings.seed
    said = {score["seed"]: score["regret"] for score in entry.scores}
    assert said == pytest.approx(regrets, rel=1e-5)
    assert " distribution.num_arms=2 training.updates=9 training.trials_per_update=16 " in entry.command
    assert " --seeds 3,4,6 " in entry.command
    _refuse_another_command(entry, run)
    assert [row["update"] for row in run.metrics] == [2, 4, 6, 8, 9]
    assert not list((trained / "seed3").glob("evaluation_*")) and not list(trained.glob("evaluation*"))
    text = zoo_page.document(tmp_path / "zoo")
    assert "## zoo:new" in text and entry.command in text and f"{min(regrets.values()):.2f}" in text


def test_runs_that_make_no_entry(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    half = rl2meta.train("rl2_bandit", TINY, callbacks=[lambda *_: False], run_dir=tmp_path / "half")
    runs = [trained / "seed3", trained / "seed4"]
    cases: list[tuple[list[Any], str, str]] = [
        ([half.path], "rl2_bandit", "finished"),
        ([*runs, "zoo:rl2_bandit"], "rl2_bandit", "differ in the seed alone, got 2 kinds"),
        (runs, "rl2_bandti", "--config: expected the shipped config"),
        (
            runs,
            "rl2_two_step",
            "--config: expected the config of these runs, got rl2_two_step: .*distribution",
        ),
    ]
    for given, config, said in cases:
        with pytest.raises(UserError, match=said):
            zoo_building.add_entry("new", given, config=config, tasks=20, into=tmp_path / "zoo")
    monkeypatch.setattr(zoo_building, "LARGEST", 1000)
    with pytest.raises(UserError, match="at most 1,000 bytes, got"):
        zoo_building.add_entry(
            "new", runs, config="rl2_bandit", tasks=20, against="none", into=tmp_path / "zoo"
        )
    assert not list((tmp_path / "zoo").iterdir())
