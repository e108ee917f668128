"""The house rules, read off the sources, and what drifts when nobody looks."""

import ast
import os
import re
import shutil
import statistics
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from forked import Forked

from rl2meta.experiments.catalogue import shipped_configs
from rl2meta.experiments.components import read_config

ROOT = Path(__file__).parents[1]
FOLDERS = {"rl2meta": ROOT / "rl2meta", "rl2meta.envs": ROOT / "envs", "rl2meta.agents": ROOT / "agents"}
FOLDERS["rl2meta.configs"] = ROOT / "configs"
LINKS = {"envs", "agents", "configs"}
ENVS_MAY = {"counted", "tasks", "randomness", "dynamic_programming", "parts", "models", "predictions"}
ENVS_MAY |= {"colours", "errors", "history", "rendering", "files"}
ROOMS = {"envs": "envs", "agents": "agents", "configs": "configs", "experiments": "experiments"}
ROOMS |= {"speed": "speed", "commands": "terminal", "cli": "terminal", "__main__": "terminal"}
"""The rooms that know agents and families; every other file of the package belongs to the spine."""
MAY_IMPORT = {
    "spine": {"spine"},
    "experiments": {"spine", "envs", "agents", "configs", "experiments"},
    "speed": {"spine", "envs", "agents", "configs", "experiments", "speed"},
    "terminal": {"spine", "envs", "agents", "configs", "experiments", "speed", "terminal"},
}
AGENTS_MAY = {
    "adam",
    "beliefs",
    "errors",
    "models",
    "predictions",
    "tasks",
    "trial",
    "returns",
    "dynamic_programming",
    "trust_region",
    "networks",
    "layers",
    "kernels",
    "divided",
    "vectors",
    "images",
    "learner_state",
    "shards",
    "training",
    "deprecation",
    "spaces",
    "units",
    "randomness",
    "parts",
}


def _sources() -> dict[str, Path]:
    """Module name -> file, through the real folders and not the links."""
    found = {}
    for package, folder in FOLDERS.items():
        for path in folder.rglob("*.py"):
            parts = path.relative_to(folder).with_suffix("").parts
            if package == "rl2meta" and parts[0] in LINKS:
                continue
            found[".".join((package, *parts)).removesuffix(".__init__")] = path
    return found


SOURCES = _sources()


def _imports(module: str, at_import_time: bool = False) -> set[str]:
    """The modules of the package that ``module`` imports (or names in a string that Gymnasium imports)."""
    tree = ast.parse(SOURCES[module].read_text())
    nodes = tree.body if at_import_time else ast.walk(tree)
    targets = set()
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.module:
            targets |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            targets |= {alias.name for alias in node.names}
    return {target for target in targets if target in SOURCES and target != module} - {"rl2meta"}


def _room(module: str) -> str:
    """The part of the package that a module belongs to: envs, agents, the command line, or the spine."""
    second = [*module.split("."), ""][1]
    return ROOMS.get(second, "spine")


@pytest.mark.parametrize("module", sorted(SOURCES))
def test_who_imports_whom(module: str) -> None:
    for target in _imports(module):
        room, other = _room(module), _room(target)
        if room == "envs":
            assert other == "envs" or target.split(".")[1] in ENVS_MAY, (module, target)
        if room == "agents":
            assert other == "agents" or target.split(".")[1] in AGENTS_MAY, (module, target)
        if room in MAY_IMPORT:
            assert other in MAY_IMPORT[room], (module, target)


def test_no_import_cycle() -> None:
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join((*path, module))
        if module not in done:
            for target in sorted(_imports(module, at_import_time=True)):
                visit(target, (*path, module))
            done.add(module)

    for module in sorted(SOURCES):
        visit(module, ())
    assert done == set(SOURCES)


@pytest.mark.parametrize("module", sorted(name for name in SOURCES if _room(name) == "spine"))
def test_the_spine_names_no_agent_and_no_family(module: str) -> None:
    """Every file that stands in no other room is guarded from its birth."""
    text = SOURCES[module].read_text()
    if module == "rl2meta.models":
        text = text.replace("BernoulliArms", "")  # a model of the world, which families of any name may say
    found = re.search(r"RL2\w|RL²|MAML|[Bb]ernoulli|Thompson|LSTM", text)
    assert not found, (module, found)


def test_what_is_of_a_terminal_is_little() -> None:
    files = [path for module, path in SOURCES.items() if module.startswith("rl2meta.commands")]
    assert sum(len(path.read_text().splitlines()) for path in files) < 2500


def test_functions_are_short() -> None:
    """From ``def`` to the last line, the docstring aside."""
    lines = sorted(length for path in SOURCES.values() for length in _lengths(path))
    assert 4 <= statistics.median(lines) <= 6
    assert statistics.quantiles(lines, n=10)[-1] < 20


def _lengths(path: Path) -> Iterator[int]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef):
            described = ast.get_docstring(node) is not None
            yield _span(node) - (_span(node.body[0]) if described else 0)


def _span(node: ast.stmt) -> int:
    assert node.end_lineno is not None  # of what was parsed from a text
    return node.end_lineno - node.lineno + 1


def test_an_update_is_read_in_few_files() -> None:
    """Whoever follows a plain update of RL² from the outer loop to the environment opens no more files."""
    import torch

    from rl2meta.experiments.components import make_learner, make_worker
    from rl2meta.training import Budget, meta_train

    config = read_config("rl2_bandit", ["device=cpu", "threads=1", "agent.surrogate=sampled"])
    cpu, law = torch.device("cpu"), config.distribution
    worker, learner = make_worker(config, cpu), make_learner(config, cpu)
    of_the_learner: set[str] = set()

    class Traced:
        agent = learner.agent
        state_dict, load_state_dict = learner.state_dict, learner.load_state_dict

        def update(self, *given: Any) -> Any:
            metrics, files = _entered(lambda: learner.update(*given))
            of_the_learner.update(files)
            return metrics

    _, entered = _entered(lambda: meta_train(Traced(), law, worker, Budget(1, 8, 10), 0, lambda row: True))
    worker.close()
    entered |= of_the_learner
    assert {"rl2meta/training.py", "rl2meta/rollout.py", "envs/bandits.py", "agents/ppo.py"} <= entered
    assert len(entered) <= 14, " ".join(sorted(entered))
    assert "agents/ppo.py" in of_the_learner and len(of_the_learner) <= 9, sorted(of_the_learner)


def _entered(call: Callable[[], Any]) -> tuple[Any, set[str]]:
    """Return what ``call`` returns, and the files of the package in which it calls functions."""
    ours = {os.path.realpath(path) for path in SOURCES.values()}
    seen: set[str] = set()

    def watch(frame: Any, event: str, argument: Any) -> None:
        if event == "call":
            seen.add(frame.f_code.co_filename)

    former = sys.getprofile()
    sys.setprofile(watch)
    try:
        result = call()
    finally:
        sys.setprofile(former)
    found = {os.path.realpath(name) for name in seen} & ours
    return result, {os.path.relpath(name, ROOT) for name in found}


@pytest.mark.parametrize("folder", ["envs", "agents"])
def test_a_second_copy_of_a_top_level_folder_is_refused(folder: str) -> None:
    said = subprocess.run(
        [sys.executable, "-c", f"import {folder}"], cwd=ROOT, capture_output=True, text=True
    )
    assert said.returncode == 1 and f"expected 'import rl2meta.{folder}'" in said.stderr


def test_a_wheel_holds_every_module_and_nothing_else(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name in ("rl2meta", *LINKS):
        shutil.copytree(
            ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__")
        )
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = [
        sys.executable,
        "-m",
        "build",
        "--wheel",
        "--no-isolation",
        "--outdir",
        str(tmp_path),
        str(source),
    ]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    want = {
        f"{module.replace('.', '/')}{'/__init__' if path.stem == '__init__' else ''}.py"
        for module, path in SOURCES.items()
    }
    want |= {f"rl2meta/{path.relative_to(ROOT)}" for path in (ROOT / "configs").rglob("*.yaml")}
    want |= {path.relative_to(ROOT).as_posix() for path in (ROOT / "rl2meta" / "experiments").glob("*.html")}
    agents = {str(path.relative_to(ROOT)) for path in (ROOT / "rl2meta" / "zoo").rglob("*") if path.is_file()}
    assert agents, "expected the agents of the zoo"
    want |= agents
    assert names == want | {"rl2meta/py.typed", "rl2meta/__init__.pyi"}


@pytest.mark.parametrize("name", sorted(shipped_configs()))
def test_a_shipped_config_is_complete_and_trains(name: str) -> None:
    import torch

    from rl2meta.experiments.components import make_learner, make_worker
    from rl2meta.training import meta_train

    module = yaml.safe_load(shipped_configs()[name])["distribution"].get("id", "").rpartition(":")[0]
    if module:  # of a package that is not ours, which the tests do not demand
        pytest.importorskip(module)
    text = yaml.safe_load(shipped_configs()[name])
    trials = 8 if text["agent"]["name"] == "rl2" else 2  # RL² divides them into minibatches
    overrides = ["training.updates=2", f"training.trials_per_update={trials}", "device=cpu"]
    if "workers" in text:  # environments that are not batched take longer
        overrides += ["distribution.horizon=3", "workers.processes=0"]
    elif text["distribution"].get("horizon", 0) > 20:
        overrides += ["distribution.horizon=20"]
    if text["agent"]["name"] == "rl2" and text["training"]["episodes_per_trial"] > 4:  # long trials take long
        overrides += ["training.episodes_per_trial=4"]
    if text["agent"]["name"] == "learned_optimiser":  # a few of its hundred steps
        overrides += [f"training.episodes_per_trial={4 * text['agent']['episodes_per_phase']}"]
    if text["distribution"]["name"] == "digits":
        pytest.importorskip("sklearn")
    config = read_config(name, overrides)
    written = yaml.safe_load(read_config(name, []).to_yaml())
    shipped = yaml.safe_load(shipped_configs()[name])
    assert shipped.keys() == written.keys()
    for section in ("distribution", "agent", "training", "evaluation"):
        assert shipped[section].keys() == written[section].keys()
    rows: list[float] = []
    worker = make_worker(config, torch.device("cpu"))
    learner = make_learner(config, torch.device("cpu"))
    meta_train(
        learner,
        config.distribution,
        worker,
        config.settings.training.budget(),
        0,
        lambda row: rows.append(row["mean_return"]) or False,
    )
    worker.close()
    assert len(rows) == 2


@pytest.mark.parametrize("document", ["README.md", "docs/commands.md"])
def test_the_commands_of_a_document_are_real(document: str, tmp_path: Path) -> None:
    """Every ``rl2meta`` command in it parses; its configs, overrides and references exist."""
    from typer.testing import CliRunner

    from rl2meta.cli import app

    lines = re.findall(r"^ {4}(rl2meta [^#\n]+)", (ROOT / document).read_text(), flags=re.MULTILINE)
    assert len(lines) >= 5
    for line in lines:
        words = [re.sub(r"\bruns/", f"{tmp_path}/", word) for word in line.split()[1:]]
        if words[0] == "train" and "--resume" not in words:
            settings = [word for word in words[2:] if "=" in word]
            assert read_config(words[1], settings), line
        help_text = CliRunner().invoke(
            app, [words[0], "--help"] if not words[0].startswith("-") else ["--help"]
        )
        assert help_text.exit_code == 0, line
        for option in (word for word in words[1:] if word.startswith("--")):
            assert option in re.sub(r"\x1b\[[\d;]*m", "", help_text.output), (line, option)


def test_the_readmes_configs_are_ones() -> None:
    from rl2meta.experiments.components import COMPONENTS
    from rl2meta.experiments.config import load_config

    blocks = re.findall(r"```yaml\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    bandits, poles = (load_config(block, "README", [], COMPONENTS) for block in blocks)
    assert bandits.distribution.num_arms == 10 and poles.law.horizon == 200


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the run that the README's commands would have left; not to be written to."""
    from rl2meta.commands.train import start_run

    folder = tmp_path_factory.mktemp("demo") / "runs"
    start_run("rl2_bandit", ["training.updates=2", "training.trials_per_update=16"], folder / "demo")
    return folder


@pytest.mark.parametrize("document", ["README.md", "docs/api.md", "docs/families.md", "docs/new_family.md"])
def test_the_python_of_a_document_runs(document: str, demo: Path, tmp_path: Path) -> None:
    """As it stands; what takes minutes is cut short. The README's runs in a new interpreter."""
    shutil.copytree(demo, tmp_path / "runs")
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / document).read_text(), flags=re.DOTALL)
    assert blocks
    program = "\n".join(blocks).replace('{"agent.core.hidden_size": 64}', '{"training.updates": 2}')
    program = re.sub(r'("training\.updates": |\bupdates=)\d+', r"\g<1>2", program)
    program = re.sub(r"\btasks=\d[\d_]+", "tasks=100", program)
    if document == "README.md":
        command = [sys.executable, "-c", program]
        said = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert said.returncode == 0, said.stderr
    else:
        with Forked(program, folder=tmp_path) as process:
            printed = process.communicate()
        assert process.returncode == 0, printed


def test_no_document_is_left_behind() -> None:
    """Paths that the documents name exist."""
    for document in (
        "README.md",
        "CONTRIBUTING.md",
        "docs/api.md",
        "docs/architecture.md",
        "docs/commands.md",
        "docs/families.md",
        "docs/glossary.md",
        "docs/learned_optimisers.md",
        "docs/many_runs.md",
        "docs/new_agent.md",
        "docs/new_family.md",
        "docs/pretraining.md",
        "docs/your_own_environment.md",
        "docs/reliability.md",
        "docs/results.md",
        "docs/several_machines.md",
        "docs/watch.md",
        "docs/zoo.md",
    ):
        text = (ROOT / document).read_text()
        for target in re.findall(r"\]\((?!http)([^)#]+)\)", text):
            assert ((ROOT / document).parent / target).exists(), (document, target)
