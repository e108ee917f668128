"""Agents of other packages: the page that writes one, and one that a package offers by name."""

import re
import shlex
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import rl2meta
from rl2meta import cli
from rl2meta.errors import UserError
from rl2meta.experiments.catalogue import AGENT_GROUP, AGENTS, offered
from rl2meta.experiments.components import AGENTS as KINDS
from rl2meta.experiments.components import read_config
from rl2meta.experiments.restore import load_run

PAGE = Path(__file__).parents[1] / "docs" / "new_agent.md"
OUTSIDE = Path(__file__).parent / "outside"
_BLOCK = re.compile(r"(?:^`(?P<file>[\w.]+)`:\n\n)?^```(?P<language>\w+)\n(?P<text>.*?)^```$", re.M | re.S)
LITTLE = {"updates: 200": "updates: 4", "trials_per_update: 1024": "trials_per_update: 16"}
LITTLE |= {"tasks: 10000": "tasks: 50", "checkpoint_every: 50": "checkpoint_every: 2"}
RL2 = "training.updates=2 training.trials_per_update=16 agent.core.hidden_size=8 evaluation.tasks=50"
TIMES = ("seconds", "env_steps_per_second")
Run = Callable[[str], tuple[int, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Iterator[Run]:
    """Run a line of a shell in this process, in an empty folder -> (exit code, all that was said)."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)
    before = set(sys.modules)

    def call(line: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", shlex.split(line))
        code: Any = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = stop.code or 0
        captured = capfd.readouterr()
        return code, captured.out + captured.err

    yield call
    for name in set(sys.modules) - before:
        if name == "reinforce":  # another test's is another file
            del sys.modules[name]


@pytest.fixture
def page(run: Run, tmp_path: Path) -> list[str]:
    """Write the files of the page, with a small budget, and return its commands."""
    commands = []
    for block in _BLOCK.finditer(PAGE.read_text()):
        text = block["text"]
        if block["file"] == "reinforce.yaml":
            for much, little in LITTLE.items():
                assert text.count(much) == 1, much
                text = text.replace(much, little)
        if block["file"]:
            (tmp_path / block["file"]).write_text(text)
        else:
            assert block["language"] == "bash", text
            commands += text.splitlines()
    assert {path.name for path in tmp_path.iterdir()} == {"reinforce.py", "reinforce.yaml"}
    return commands


def test_the_page_leads_from_a_file_to_a_comparison(run: Run, page: list[str], tmp_path: Path) -> None:
    said = {}
    for command in page:
        code, said[command] = run(command + f" {RL2}" * ("rl2_bandit" in command))
        assert code == 0, said[command]
    checked, _, judged, resumed, greedy, _, compared = said.values()
    assert checked.startswith("checking agent reinforce:REINFORCE\n") and checked.endswith("all is well\n")
    assert re.search(r"reinforce:REINFORCE +\d\.\d+ ± ", judged) and re.search(r"gittins +\d", judged)
    assert "is trained already: 4 updates" in resumed
    assert re.search(r"^ +rl2 .*\n(.*\n)* +reinforce .*", compared, re.M), compared
    assert _returns(judged) != _returns(greedy)  # the key that may change after training did
    code, refused = run("rl2meta evaluate runs/reinforce agent.discount=0.5")
    assert code == 2 and "expected an override" in refused and "agent.greedy=VALUE" in refused, refused


def _returns(said: str) -> list[str]:
    return re.findall(r"reinforce:REINFORCE +(\d\.\d+) ±", said)


@pytest.mark.usefixtures("page")
def test_a_killed_run_of_the_page_ends_with_the_bits_of_an_undisturbed_one(run: Run) -> None:
    class Killed(BaseException):
        pass

    def kill(killed: rl2meta.Run, row: dict[str, Any]) -> None:
        if row["update"] == 3:  # the checkpoint is of update 2
            raise Killed

    sys.path.append(".")
    whole = rl2meta.train("reinforce.yaml", run_dir="whole")
    with pytest.raises(Killed):
        rl2meta.train("reinforce.yaml", run_dir="killed", callbacks=[kill])
    code, said = run("rl2meta train --resume --run-dir killed")
    assert code == 0 and "at update 2" in said, said
    resumed = load_run("killed")
    rows, again = (
        [{name: value for name, value in row.items() if name not in TIMES} for row in run.metrics]
        for run in (whole, resumed)
    )
    assert len(rows) == 4 and rows == again and "entropy" in rows[0]
    ours, theirs = whole.learner.state_dict(), resumed.learner.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.usefixtures("page")
def test_the_page_learns(run: Run) -> None:
    """A tenth of the page's budget leads well above random."""
    sys.path.append(".")
    few = {"training.updates": 40, "training.trials_per_update": 256}
    trained = rl2meta.train("reinforce.yaml", few)
    judged = rl2meta.evaluate(trained, tasks=1000, against=["random"]).results
    ours, random = (judged[name].returns().mean() for name in ("reinforce:REINFORCE", "random"))
    assert ours > random + 0.5


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch, run: Run, tmp_path: Path) -> None:
    """The package of ``outside`` with its entry points, as an installation leaves them; pip takes longer."""
    points = tomllib.loads((OUTSIDE / "pyproject.toml").read_text())["project"]["entry-points"]
    info = tmp_path / "site" / "lamps-0.1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: lamps\nVersion: 0.1\n")
    groups = [
        f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in named.items()) for group, named in points.items()
    ]
    (info / "entry_points.txt").write_text("\n".join(groups))
    for folder in (info.parent, OUTSIDE):
        monkeypatch.syspath_prepend(str(folder))


@pytest.mark.usefixtures("package")
def test_an_agent_of_a_package_is_listed_by_name_and_a_broken_one_with_the_reason(run: Run) -> None:
    code, said = run("rl2meta list")
    (ours,) = re.findall(rf"other packages \(entry points {AGENT_GROUP}\)\n(.*?)\n\n", said, re.DOTALL)
    assert code == 0
    assert re.search(r"^ +switcher +presses what paid \(lamps\.agents:SWITCHER\)", ours, re.M), ours
    assert re.search(r"^ +agent_of_tomorrow +cannot be imported: .*'electricity_of_tomorrow'", ours, re.M), (
        ours
    )
    assert re.search(
        r"^ +no_agent +cannot be imported: .*expected an rl2meta.AgentKind, got type", ours, re.M
    ), ours


@pytest.mark.usefixtures("package")
def test_agents_are_a_mapping_of_all_that_a_config_may_name() -> None:
    assert set(KINDS) == {*AGENTS, *offered(AGENT_GROUP)} >= {"rl2", "switcher", "agent_of_tomorrow"}
    assert KINDS["switcher"] is KINDS["lamps.agents:SWITCHER"] and "switcher" in rl2meta.list_agents()
    assert KINDS["rl2"] is KINDS["rl2meta.agents.rl2:RL2"]
    for name, message in {
        "agent_of_tomorrow": "electricity_of_tomorrow",
        "no_agent": "lamps.families:Lamps: expected an rl2meta.AgentKind, got type",
        "lamps.agents:SWITCHR": "lamps.agents has no 'SWITCHR'; did you mean 'SWITCHER'",
        "lamps.agent:SWITCHER": "expected a module that can be imported, got none of the name lamps.agent",
        "math:pi": r"math:pi: expected an rl2meta.AgentKind, got float 3.14159\d*; write MY_AGENT =",
        "lamps.agents:": "expected module:name, such as my_package.my_module:MY_AGENT",
    }.items():
        with pytest.raises(UserError, match=message):
            KINDS[name]
    with pytest.raises(KeyError):
        KINDS["switchr"]


def _config(folder: Path, **agent: Any) -> str:
    small = {
        "distribution": {"name": "bernoulli_bandits", "num_arms": 3},
        "agent": agent,
        "training": {"updates": 3, "trials_per_update": 32, "episodes_per_trial": 4},
        "evaluation": {"tasks": 100, "against": ["none"]},
        "device": "cpu",
        "threads": 1,
    }
    (folder / "switcher.yaml").write_text(yaml.safe_dump(small))
    return "switcher.yaml"


@pytest.mark.usefixtures("package")
@pytest.mark.parametrize(
    ("agent", "message"),
    [
        ({"name": "switchr"}, r"agent.name: unknown agent 'switchr'; did you mean 'switcher'\? Known: .*rl2"),
        (
            {"name": "switcher", "rat": 1.0},
            r"agent.rat: unknown key; did you mean 'rate'\? Known: rate, stubborn",
        ),
        (
            {"name": "lamps.families:Lamps"},
            r"agent: .*: expected an rl2meta.AgentKind, got type .*; write MY_AGENT",
        ),
        ({"name": "agent_of_tomorrow"}, r"agent: lamps.tomorrow:AGENT: .*'electricity_of_tomorrow'"),
    ],
)
def test_an_agent_that_cannot_be_is_refused_with_what_to_do(
    run: Run, tmp_path: Path, agent: dict[str, Any], message: str
) -> None:
    code, said = run(f"rl2meta train {_config(tmp_path, **agent)} --run-dir run")
    assert code == 2 and re.search(message, said) and "Traceback" not in said, said
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("package")
def test_an_agent_of_a_package_is_checked_trained_and_judged_as_its_kind_allows(
    run: Run, tmp_path: Path
) -> None:
    for command in (
        "rl2meta check switcher agent.rate=0.5",
        f"rl2meta train {_config(tmp_path, name='switcher', rate=0.5)} --run-dir run",
        "rl2meta evaluate run --out plain",
        "rl2meta evaluate run agent.stubborn=true --out stubborn",
    ):
        code, said = run(command)
        assert code == 0, said
    plain, stubborn = (
        np.load(tmp_path / name / "arrays.npz")["switcher/regrets"] for name in ("plain", "stubborn")
    )
    assert not np.array_equal(plain, stubborn)
    written = read_config(str(tmp_path / "run" / "config.yaml"))
    assert written.agent.model_dump() == {"rate": 0.5, "stubborn": False}
    code, said = run("rl2meta evaluate run agent.rate=0.1")
    assert code == 2 and "agent.stubborn=VALUE" in said, said
