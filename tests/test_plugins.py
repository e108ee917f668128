"""Families of somebody else's package, from its installation to the figures."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

from rl2meta import cli
from rl2meta.envs.two_step import TwoStep
from rl2meta.errors import UserError
from rl2meta.experiments.catalogue import DISTRIBUTIONS, FAMILY_GROUP, Entry, offered
from rl2meta.experiments.components import FAMILIES
from rl2meta.experiments.plugins import Parts, load, load_family

OUTSIDE = Path(__file__).parent / "outside"
ONE = "{choice: [0, 1, 2, 3]}"
SMALL = """
training: {updates: 2, trials_per_update: 4, episodes_per_trial: 4}
evaluation: {tasks: 4, against: [random]}
device: cpu
threads: 1
workers: {processes: 1}
"""
# Every way in: what stands under ``distribution`` of a config.
WAYS = {
    "yaml_alone": "name: gymnasium\nid: CartPole-v1\nhorizon: 8\n"
    "vary_attributes: {length: [0.4, 0.8], gravity: {log_uniform: [5, 20]}}",
    "entry_point": "name: lamps\nhorizon: 5",
    "import_path": 'name: "lamps.families:Lamps"',
    "set_task": 'name: set_task_envs\nenv: "lamps.envs:SettableLamp"\nhorizon: 6',
    "benchmark": 'name: benchmark_tasks\nbenchmark: "lamps.benchmark:LampBenchmark"\nhorizon: 6',
    "reset_options": f'name: gymnasium\nid: "lamps:Lamp-v0"\nvary_options: {{switch: {ONE}}}',
    "native": "name: lamp_rows\nnum_switches: 3",
}
AGENTS = {
    "rl2": "{name: rl2, core: {hidden_size: 8}}",
    "maml_trpo": "{name: maml_trpo, episodes_per_phase: 2}",
}
CHECKED = {"entry_point", "benchmark", "reset_options"}  # a check takes its time: each kind of family once
Shell = Callable[..., "list[Said]"]


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which pip has installed the package."""
    folder = tmp_path_factory.mktemp("outside")
    source = shutil.copytree(OUTSIDE, folder / "source", ignore=shutil.ignore_patterns("__pycache__"))
    alone = ("--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check", "--quiet")
    target = folder / "installed"
    command = [sys.executable, "-m", "pip", "install", *alone, "--target", str(target), str(source)]
    subprocess.run(command, check=True, capture_output=True)
    return target


# Several commands in one process: torch is slow to import.
DRIVER = """
import json, sys
from rl2meta import cli
for arguments in json.loads(sys.argv[1]):
    sys.argv = ["rl2meta", *arguments]
    code = 0
    try:
        cli.main()
    except SystemExit as stop:
        code = stop.code
    print(json.dumps({"code": code}), flush=True)
"""


class Said(NamedTuple):
    """What a command said, and its exit code; ``errors`` are those of all commands of a process."""

    code: int
    text: str
    errors: str


@pytest.fixture
def shell(installed: Path, tmp_path: Path) -> Shell:
    """Run ``rl2meta ARGS`` one after another in an empty folder, where only the package is to be found."""
    env = {**os.environ, "PYTHONPATH": str(installed), "COLUMNS": "200"}

    def call(*commands: str) -> list[Said]:
        driven = [sys.executable, "-c", DRIVER, json.dumps([command.split() for command in commands])]
        done = subprocess.run(driven, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=500)
        assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
        parts = re.split(r'^\{"code": (\d+)\}\n', done.stdout, flags=re.MULTILINE)
        return [Said(int(parts[i + 1]), parts[i], done.stderr) for i in range(0, len(parts) - 1, 2)]

    return call


def config(folder: Path, way: str, agent: str) -> Path:
    indented = "".join(f"  {line}\n" for line in WAYS[way].splitlines())
    path = folder / f"{way}.yaml"
    path.write_text(f"distribution:\n{indented}agent: {AGENTS[agent]}\n{SMALL}")
    return path


def test_the_families_of_a_package_are_known_by_name(shell: Shell) -> None:
    listed, rows, tomorrow, unknown = shell(
        "list",
        "check lamp_rows distribution.num_switches=2",
        "check lamps_of_tomorrow",
        "check lampz",
    )
    assert listed.code == 0
    (ours,) = re.findall(
        rf"other packages \(entry points {FAMILY_GROUP}\)\n(.*?)\n\n", listed.text, re.DOTALL
    )
    assert re.search(r"^ +lamps +Rooms in each of which another switch is the right .*\(lamps\.f", ours, re.M)
    assert re.search(r"^ +lamp_rows +Press one switch a day; .* \(lamps\.batched:LampRows\)", ours, re.M)
    assert re.search(r"^ +lamps_of_tomorrow +cannot be imported: .*'electricity_of_tomorrow'", ours, re.M)
    assert rows.code == 0 and rows.text.endswith("all is well\n"), rows
    assert tomorrow.code == 2 and re.search(r"'electricity_of_tomorrow'\n +File .*line 3", tomorrow.errors)
    assert unknown.code == 2 and "did you mean 'lamps'?" in unknown.errors


@pytest.fixture
def entries(monkeypatch: pytest.MonkeyPatch, installed: Path) -> None:
    """The package can be found from here."""
    monkeypatch.syspath_prepend(str(installed))


@pytest.fixture
def here(
    entries: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[[str], Said]:
    """Run ``rl2meta ARGS`` in this process, in an empty folder; the package can be found."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def call(command: str) -> Said:
        monkeypatch.setattr(sys, "argv", ["rl2meta", *command.split()])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        assert isinstance(stop.value.code, int)
        return Said(stop.value.code, *capsys.readouterr())

    return call


@pytest.mark.parametrize(("way", "agent"), [*((way, "rl2") for way in WAYS), ("set_task", "maml_trpo")])
def test_every_way_in_is_checked_trained_on_and_judged(
    here: Callable[[str], Said], tmp_path: Path, way: str, agent: str
) -> None:
    name = config(tmp_path, way, agent).name
    if way in CHECKED:
        checked = here(f"check {name}")
        assert checked.code == 0 and checked.text.endswith("all is well\n"), checked
    trained = here(f"train {name} --run-dir run")
    assert trained.code == 0 and "trained 2 updates" in trained.text + trained.errors, trained
    here_alone = "" if way == "native" else " workers.processes=0"  # training started workers already
    judged = here(f"evaluate run{here_alone}")
    assert judged.code == 0, judged
    evaluation = tmp_path / "run" / "evaluation"
    figure = "returns" if way == "yaml_alone" else "regret"  # CartPole does not tell
    files = {path.name for path in evaluation.iterdir()}
    assert {f"{figure}.csv", f"{figure}.png", "adaptation.csv"} <= files
    rows = list(csv.DictReader((evaluation / f"{figure}.csv").read_text().splitlines()))
    assert {row["agent"] for row in rows} == {agent, "random"} and len(rows) >= 4


def test_a_run_whose_package_is_gone_says_so(here: Callable[[str], Said], tmp_path: Path) -> None:
    path = config(tmp_path, "entry_point", "rl2")
    trained = here(f"train {path.name} --run-dir run")
    written = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert trained.code == 0 and written["distribution"] == {"name": "lamps", "horizon": 5}
    without = {**os.environ, "PYTHONPATH": ""}
    command = [sys.executable, "-m", "rl2meta", "evaluate", "run"]
    said = subprocess.run(command, cwd=tmp_path, env=without, capture_output=True, text=True)
    assert said.returncode == 2 and "'lamps'" in said.stderr and "Traceback" not in said.stderr, said.stderr


@pytest.mark.usefixtures("entries")
def test_a_package_offers_what_its_entry_points_name() -> None:
    found = offered(FAMILY_GROUP)
    assert {"lamps", "lamp_rows", "lamps_of_tomorrow"} <= found.keys()
    assert found["lamps"].value == "lamps.families:Lamps"


@pytest.mark.usefixtures("entries")
def test_families_are_a_mapping_of_all_that_a_config_may_name() -> None:
    families = FAMILIES
    known = {*DISTRIBUTIONS, *offered(FAMILY_GROUP)}
    assert set(families) == known and len(families) == len(known)
    assert families["two_step"] is TwoStep
    assert families["lamps"] is families["lamps.families:Lamps"] and families["lamps"].__name__ == "Lamps"
    for name in ("two_step", "lamps", "lamps_of_tomorrow", "anything:At_all"):
        assert name in families
    for name in ("lampz", "", 3, None):
        assert name not in families
    with pytest.raises(KeyError):
        families["lampz"]
    with pytest.raises(UserError, match="electricity_of_tomorrow"):
        families["lamps_of_tomorrow"]


@pytest.mark.usefixtures("entries")
def test_a_built_in_family_wins_over_a_packages_of_the_same_name() -> None:
    built_in = {"lamps": Entry("rl2meta.envs.two_step:TwoStep", "")}
    assert Parts(built_in, FAMILY_GROUP, load_family)["lamps"] is TwoStep


def test_an_entry_point_is_imported_when_it_is_asked_for_and_not_before(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    package = tmp_path / "late-1.0.dist-info"
    package.mkdir()
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: late\nVersion: 1.0\n")
    offer = f"[{FAMILY_GROUP}]\nlate = a_module_that_is_not_there:Family\n"
    (package / "entry_points.txt").write_text(offer)
    monkeypatch.syspath_prepend(str(tmp_path))
    families = Parts({}, FAMILY_GROUP, load_family)
    assert "late" in list(families) and "late" in families
    with pytest.raises(UserError, match="got none of the name a_module_that_is_not_there"):
        families["late"]


def test_a_path_leads_into_classes() -> None:
    assert load("collections:OrderedDict.fromkeys", "module:name")([1]) == {1: None}


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("json", "expected module:Class, such as"),
        (":Family", "expected module:Class, such as"),
        ("json:", "expected module:Class, such as"),
        ("json.nothing:Family", "expected a module that can be imported, got none of the name json.nothing"),
        ("nothing.json:Family", "got none of the name nothing; install its package, or run rl2meta in"),
        ("json:dumpss", "json has no 'dumpss'; did you mean 'dumps'"),
        ("json:dumps.dumps", "json has no 'dumps'"),
        ("math:pi", "expected a class, got float 3.14159"),
        ("os:system", "expected a class, got builtin_function_or_method"),
        ("subprocess:Popen", "expected a family of tasks, got <class 'subprocess.Popen'>"),
        ("random:Random", "expected a family of tasks, got <class 'random.Random'>"),
        (
            "gymnasium.envs.classic_control:CartPoleEnv",
            "expected a family of tasks, got an environment",
        ),
        ("..x:Family", "expected module:Class"),
        ("json:a:b", "json has no 'a:b'"),
    ],
)
def test_a_path_that_names_no_family_is_refused(path: str, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        load_family(path)


def test_ctrl_c_during_an_import_is_no_fault_of_the_module(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "interrupted_lamp.py").write_text("raise KeyboardInterrupt\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(KeyboardInterrupt):
        load_family("interrupted_lamp:Lamp")
