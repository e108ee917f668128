"""Which kernels a run uses, where it says so, and that it goes on with the same."""

import importlib
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import rl2meta
from rl2meta import kernels
from rl2meta.errors import UserError
from rl2meta.experiments.components import COMPONENTS
from rl2meta.experiments.restore import load_run
from rl2meta.kernels import chosen, compiled, resolve_kernels, set_kernels

CPU = torch.device("cpu")
LONG = 2**24


@pytest.fixture(autouse=True)
def by_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Begin with torch, and end with what was there."""
    monkeypatch.setattr(kernels, "_chosen", ["torch"])


@pytest.fixture
def no_numba(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(kernels, "import_module", missing)


@pytest.fixture
def any_numba(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "import_module", lambda name: name)


def test_long_trainings_on_a_cpu_use_compiled_kernels(any_numba: None) -> None:
    assert resolve_kernels(None, CPU, LONG) == "compiled"
    assert resolve_kernels(None, CPU, 1000) == "torch"
    assert resolve_kernels("compiled", CPU, 1000) == "compiled"
    assert resolve_kernels("torch", CPU, LONG) == "torch"
    assert resolve_kernels(None, torch.device("meta"), LONG) == "torch"
    with pytest.raises(UserError, match="kernels: expected a CPU, got device meta"):
        resolve_kernels("compiled", torch.device("meta"), LONG)


def test_agents_say_whether_kernels_compute_most_of_a_training() -> None:
    rl2, maml = (COMPONENTS.agents[name] for name in ("rl2", "maml_trpo"))
    assert rl2.compiled(rl2.config()) and not rl2.compiled(rl2.config(core={"name": "gru"}))
    assert maml.compiled(maml.config()) and not maml.compiled(maml.config(hidden_sizes=[]))
    assert not COMPONENTS.agents["maml_regression"].compiled(maml.config())


def test_without_numba_torch_computes_unless_compiled_kernels_are_asked_for(no_numba: None) -> None:
    assert resolve_kernels(None, CPU, LONG) == "torch"
    assert resolve_kernels("torch", CPU, LONG) == "torch"
    with pytest.raises(UserError, match=r"expected Numba \(pip install 'rl2meta\[fast\]'\).*kernels=torch"):
        resolve_kernels("compiled", CPU, LONG)


def test_only_float32_on_a_cpu_is_compiled() -> None:
    x = torch.zeros(2)
    assert not compiled(x)
    set_kernels("compiled")
    assert chosen() == "compiled" and compiled(x)
    assert not compiled(x.double()) and not compiled(x.to("meta"))


def test_kernels_get_the_threads_of_torch_only_where_they_compute() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with kernels.threads_to_kernels(True):
            assert kernels.threads() == torch.get_num_threads() == 3  # torch was chosen
        set_kernels("compiled")
        with kernels.threads_to_kernels(False):
            assert kernels.threads() == torch.get_num_threads() == 3
        with pytest.raises(KeyError), kernels.threads_to_kernels(True):
            assert kernels.threads() == 3 and torch.get_num_threads() == 1
            raise KeyError
        assert kernels.threads() == torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


SMALL = {
    "training.updates": 4,
    "training.trials_per_update": 64,
    "training.checkpoint_every": 1,
    "threads": 1,
}
SMALL |= {"device": "cpu", "agent.core.hidden_size": 24}


def _run(folder: Path, until: int, **more: Any) -> Any:
    given = {**SMALL, **more}
    return rl2meta.train("smoke", given, run_dir=folder, callbacks=[lambda run, row: run.update < until])


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    pytest.importorskip("numba", reason="compiled kernels need the extra: pip install 'rl2meta[fast]'")
    folder = tmp_path_factory.mktemp("kernels") / "whole"
    before = chosen()
    _run(folder, 99, kernels="compiled")
    yield folder
    set_kernels(before)


def test_a_run_says_its_kernels_and_goes_on_with_the_same_bits(whole: Path, tmp_path: Path) -> None:
    half = tmp_path / "half"
    _run(half, 2, kernels="compiled")
    said = yaml.safe_load((half / "config.yaml").read_text())
    assert said["kernels"] == "compiled" and "numba" in said["versions"]
    set_kernels("torch")
    again = rl2meta.resume(half)
    assert chosen() == "compiled" and again.finished
    one, other = (load_run(folder).learner.state_dict() for folder in (whole, half))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_run_of_maml_goes_on_with_the_same_bits(whole: Path, tmp_path: Path) -> None:
    small: Any = {"training.updates": 3, "training.trials_per_update": 6, "training.checkpoint_every": 1}
    small |= {"device": "cpu", "agent.episodes_per_phase": 4, "training.episodes_per_trial": 12}
    small |= {"kernels": "compiled", "threads": 1, "distribution.horizon": 20}

    def run(name: str, until: int) -> Any:
        callbacks = [lambda run, row: run.update < until]
        return rl2meta.train("maml_navigation", small, run_dir=tmp_path / name, callbacks=callbacks)

    undisturbed = run("whole", 99).learner.state_dict()
    run("half", 1)
    set_kernels("torch")
    again = rl2meta.resume(tmp_path / "half")
    assert chosen() == "compiled" and again.finished
    assert all(torch.equal(again.learner.state_dict()[name], value) for name, value in undisturbed.items())


def test_an_evaluation_in_a_callback_does_not_change_the_kernels(whole: Path) -> None:
    seen = []

    def judge(run: rl2meta.Run, row: Any) -> None:
        seen.append(chosen())
        rl2meta.evaluate(run, tasks=4)
        assert chosen() == "torch"

    given = {**SMALL, "kernels": "compiled"}
    run = rl2meta.train("smoke", given, callbacks=[judge], on_start=lambda run: set_kernels("torch"))
    assert seen == 4 * ["compiled"]
    one, other = load_run(whole).learner.state_dict(), run.learner.state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("damage", [b"", b"damaged", "refused"])
def test_a_damaged_cache_or_a_full_disk_changes_no_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: Any
) -> None:
    caching = pytest.importorskip("numba.core.caching", reason="needs the extra: pip install 'rl2meta[fast]'")
    (tmp_path / "kept_twice.py").write_text("def twice(x):\n    return 2 * x\n")
    monkeypatch.setattr(caching.config, "CACHE_DIR", "")
    twice = runpy.run_path(str(tmp_path / "kept_twice.py"))["twice"]
    if damage == "refused":

        def full(*_: Any) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(caching.IndexDataCacheFile, "save", full)
    else:
        assert kernels.kept_on_disk(twice)(3) == 6
        (index,) = tmp_path.rglob("*.nbi")
        index.write_bytes(damage)
    assert kernels.kept_on_disk(twice)(3) == 6 and kernels.kept_on_disk(twice)(3) == 6
    assert damage == "refused" or len(index.read_bytes()) > 500  # it is kept again


@pytest.mark.parametrize("changed", ["vectors.py", "kernels.py"])
def test_a_change_of_what_is_compiled_with_it_compiles_again(
    changed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    caching = pytest.importorskip("numba.core.caching", reason="needs the extra: pip install 'rl2meta[fast]'")
    (tmp_path / "kept_twice.py").write_text("def twice(x):\n    return 2 * x\n")
    monkeypatch.setattr(caching.config, "CACHE_DIR", "")
    twice = runpy.run_path(str(tmp_path / "kept_twice.py"))["twice"]
    kept = kernels.kept_with(kernels)
    kept(twice)(3)
    (index,) = tmp_path.rglob("*.nbi")
    first, stamp = index.read_bytes(), kernels._stamp
    kept(twice)(3)
    assert index.read_bytes() == first
    monkeypatch.setattr(kernels, "_stamp", lambda file: (1.0, 2) if file.name == changed else stamp(file))
    assert kept(twice)(3) == 6 and index.read_bytes() != first


def test_a_run_with_compiled_kernels_does_not_go_on_without_them(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    half = tmp_path / "half"
    _run(half, 2, kernels="compiled")
    monkeypatch.setattr(kernels, "import_module", lambda name: importlib.import_module("no_such_module"))
    with pytest.raises(UserError, match="goes on only with them"):
        rl2meta.resume(half)
    load_run(half)  # to play it needs none


def test_a_run_of_a_version_without_the_setting_goes_on_by_torch(tmp_path: Path) -> None:
    folder = tmp_path / "old"
    _run(folder, 2, kernels="torch")
    config = folder / "config.yaml"
    said = yaml.safe_load(config.read_text())
    assert said.pop("kernels") == "torch"
    config.write_text(yaml.safe_dump(said))
    set_kernels("compiled")
    assert rl2meta.resume(folder).finished and chosen() == "torch"
