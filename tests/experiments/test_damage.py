"""Damage to the files of a run: a message or the right result, and nothing is overwritten silently."""

import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import rl2meta
from rl2meta.errors import UserError
from rl2meta.experiments import checkpoints
from rl2meta.experiments.checkpoints import Checkpoint

LITTLE: dict[str, Any] = {
    "training.updates": 4,
    "training.trials_per_update": 8,
    "training.checkpoint_every": 2,
    "training.keep_checkpoints": 2,
    "agent.core.hidden_size": 4,
    "distribution.low": 0.1,
    "device": "cpu",
    "threads": 1,
}


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that stopped after three of its four updates, not to be written to."""
    path = tmp_path_factory.mktemp("runs") / "stopped"
    rl2meta.train("rl2_bandit", LITTLE, run_dir=path, callbacks=[lambda run, row: run.update < 3])
    return path


@pytest.fixture
def run(stopped: Path, tmp_path: Path) -> Path:
    """A copy of that run."""
    return Path(shutil.copytree(stopped, tmp_path / "run"))


def resave(run: Path, change: Callable[[Checkpoint], Checkpoint]) -> Checkpoint:
    """Replace the newest checkpoint by another one, undamaged as far as its digests go."""
    saved = checkpoints.newest(run / "checkpoints", pytest.fail)
    assert saved is not None
    changed = change(saved)
    checkpoints.save(run / "checkpoints", changed)
    return changed


def with_number(name: str, number: float) -> Callable[[Checkpoint], Checkpoint]:
    def change(saved: Checkpoint) -> Checkpoint:
        tensor = saved.tensors[name].clone()
        tensor.view(-1)[0] = number
        return Checkpoint(saved.update, {**saved.tensors, name: tensor}, saved.state)

    return change


def refuse_everything(run: Path, message: str) -> None:
    """Loading, evaluating and resuming give the message, and leave every file as it is."""
    before = content(run)
    calls: list[Callable[[Path], Any]] = [rl2meta.load_run, rl2meta.evaluate, rl2meta.resume]
    for call in calls:
        with pytest.raises(UserError, match=message):
            call(run)
    assert content(run) == before


def content(run: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name != ".lock"}


@pytest.mark.parametrize("kind", ["network.", "optimizer."])
def test_weights_that_are_no_numbers_are_refused_by_name(run: Path, kind: str) -> None:
    saved = checkpoints.newest(run / "checkpoints", pytest.fail)
    assert saved is not None
    names = [name for name, tensor in saved.tensors.items() if name.startswith(kind) and tensor.dim() > 0]
    resave(run, with_number(names[-1], float("-inf")))  # as in a mask
    assert rl2meta.load_run(run).update == 3
    resave(run, with_number(names[-1], float("nan")))
    refuse_everything(run, f"in the checkpoint of update 3, got NaN in {names[-1]}; remove this checkpoint")
    shutil.rmtree(run / "checkpoints" / "update_00000003")
    assert rl2meta.resume(run).finished


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"env_steps": "7"}, "expected checkpoints of `rl2meta train`, got one that holds .*'7'"),
        ({"env_steps": -7}, "got one that holds .*-7"),
        ({"env_steps": True}, "got one that holds .*True"),
        ({"env_steps": None}, "got one that holds .*None"),
        ({"config": None}, "got one that holds .*None"),
        ({"config": ["seed"]}, "got one that holds .*seed"),
        ({"config": {}}, "expected the settings that the run was started with, got others"),
        ({"config": {"agent": 3, "agent.name": "rl2"}}, "got others"),
    ],
)
def test_a_sealed_state_that_no_training_writes_is_refused(
    run: Path, state: dict[str, Any], message: str
) -> None:
    resave(run, lambda saved: Checkpoint(saved.update, saved.tensors, {**saved.state, **state}))
    refuse_everything(run, message)


def test_a_setting_nested_without_end_is_refused(run: Path) -> None:
    deep: list[Any] = []
    for _ in range(400):
        deep = [deep]
    resave(
        run,
        lambda saved: Checkpoint(
            saved.update, saved.tensors, {**saved.state, "config": {**saved.state["config"], "seed": deep}}
        ),
    )
    refuse_everything(run, "expected the settings that the run was started with, got others: ")


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors: dict(list(tensors.items())[1:]),
        lambda tensors: {**tensors, "network.another": torch.ones(3)},
        lambda tensors: {**tensors, "optimizer.x.y.z": torch.ones(3)},
        lambda tensors: {name: tensor[None] for name, tensor in tensors.items()},
        lambda tensors: {name: each for name, each in tensors.items() if name != "optimizer.1.exp_avg"},
        lambda tensors: {**tensors, "optimizer.1.exp_avg": torch.ones(2, 2, 2)},
        lambda tensors: {**tensors, "optimizer.999.exp_avg": torch.ones(2, 2, 2)},
        lambda tensors: {},
    ],
)
def test_tensors_of_another_network_are_refused(run: Path, change: Any) -> None:
    resave(run, lambda saved: Checkpoint(saved.update, change(saved.tensors), saved.state))
    refuse_everything(run, "expected the config that the checkpoint of update 3 was trained with")


def test_a_flipped_digit_in_the_metrics_stops_the_run_and_says_how_to_go_on(run: Path) -> None:
    path = run / "metrics.jsonl"
    text = path.read_text()
    path.write_text(text.replace('"update": 2, "env_steps": 1', '"update": 2, "env_steps": 7'))
    assert path.read_text() != text
    loaded = rl2meta.load_run(run)
    for read in (lambda: loaded.metrics, lambda: rl2meta.resume(run)):
        with pytest.raises(UserError, match=r"in line 2 of .*metrics\.jsonl .* got another row"):
            read()
    (run / "metrics.digests").unlink()
    assert len(rl2meta.resume(run).metrics) == 4


def test_lost_rows_are_told(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = run / "metrics.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))
    with caplog.at_level(logging.WARNING, "rl2meta"):
        assert len(rl2meta.load_run(run).metrics) == 2
    assert "metrics.jsonl has 2 rows for 3 updates; the others are lost" in caplog.text


def test_damage_to_what_nobody_reads_changes_nothing(run: Path, stopped: Path) -> None:
    for path in (run / "tensorboard").iterdir():
        path.write_bytes(path.read_bytes()[:50] + b"\0" * 9)
    evaluation = run / "evaluation"
    evaluation.mkdir()
    os.mkfifo(evaluation / "evaluation.json")
    said = rl2meta.evaluate(run, tasks=20, against="none")
    assert said.path == run / "evaluation_2"
    other = rl2meta.evaluate(stopped, tasks=20, against="none", out=run.parent / "other")
    for name in ("arrays.npz", "regret.csv"):
        assert (said.path / name).read_bytes() == (other.path / name).read_bytes()  # type: ignore[operator]
    whole = Path(shutil.copytree(stopped, run.parent / "whole"))
    returns = [[row["mean_return"] for row in rl2meta.resume(each).metrics] for each in (run, whole)]
    assert returns[0] == returns[1] and len(returns[0]) == 4


def test_a_checkpoint_that_is_too_large_is_named_and_the_older_one_goes_on(
    run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    os.truncate(run / "checkpoints" / "update_00000003" / "tensors.safetensors", 2**40)
    with caplog.at_level(logging.WARNING, "rl2meta"):
        assert rl2meta.resume(run).finished
    assert "update_00000003: tensors.safetensors cannot be read: its 1,099,511,627,776 bytes" in caplog.text
    assert [json.loads(line)["update"] for line in (run / "metrics.jsonl").read_text().splitlines()] == [
        1,
        2,
        3,
        4,
    ]
