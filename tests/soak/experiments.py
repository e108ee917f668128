"""The trainings that the probes disturb, and what an undisturbed one ends with."""

import shutil
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from children import command

import rl2meta
from rl2meta.experiments import checkpoints

_TRAINING = {"updates": 30, "trials_per_update": 8, "checkpoint_every": 3, "keep_checkpoints": 2}
_HERE = {"device": "cpu", "threads": 1, "evaluation": {"tasks": 20, "against": ["none"]}}
_ARMS = {"name": "bernoulli_bandits", "num_arms": 3}
_LSTM = {"name": "rl2", "core": {"name": "lstm", "hidden_size": 8}, "minibatches": 2}
_MAML = {"name": "maml_trpo", "hidden_sizes": [8], "episodes_per_phase": 4}
_CURVES = {"name": "maml_regression", "hidden_sizes": [8], "episodes_per_phase": 4}
_WALKS = {"name": "walks:Walks", "horizon": 4}


def _config(law: Any, agent: Any, episodes: int, **more: Any) -> dict[str, Any]:
    training = {**_TRAINING, "episodes_per_trial": episodes}
    return {"distribution": law, "agent": agent, "training": training, **_HERE, **more}


KINDS: dict[str, dict[str, Any]] = {
    "RL²": _config(_ARMS, _LSTM, 6),
    "MAML-TRPO": _config(_ARMS, _MAML, 8),
    "MAML regression": _config({"name": "sinusoids"}, _CURVES, 8),
    "RL² with workers": _config(_WALKS, _LSTM, 3, workers={"processes": 2}),
    "MAML-TRPO with workers": _config(_WALKS, _MAML, 8, workers={"processes": 2}),
}


class Outcome(NamedTuple):
    """What a finished run holds: names of files, rows of metrics without times, weights and moments."""

    files: list[str]
    rows: list[dict[str, Any]]
    update: int
    tensors: dict[str, bytes]


def differences(one: Outcome, other: Outcome) -> str:
    """Return in words what differs between two outcomes; nothing if they are equal."""
    files = sorted({*one.files} ^ {*other.files})
    tensors = [name for name in one.tensors if one.tensors[name] != other.tensors.get(name)]
    parts = {
        "files": files,
        "rows": [] if one.rows == other.rows else [len(one.rows), len(other.rows)],
        "updates": [] if one.update == other.update else [one.update, other.update],
        "tensors": tensors,
    }
    return "; ".join(f"{name} {found}" for name, found in parts.items() if found)


def write_config(name: str, folder: Path, **training: int) -> Path:
    """Write the config of a kind of training, and return its path."""
    config = {**KINDS[name], "training": {**KINDS[name]["training"], **training}}
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def words_to_go_on(config: Path, run: Path) -> list[object]:
    """Return the command that begins a run or, if it has begun, continues it."""
    if (run / "config.yaml").exists():
        return ["train", "--resume", "--run-dir", run, "--trust", "walks"]
    return ["train", config, "--run-dir", run]


def outcome(run: Path) -> Outcome:
    """Read what a run ended with."""
    # A run that was asked to stop saved then; which updates its last checkpoints have depends on that.
    names = sorted(path.name for path in (run / "checkpoints").iterdir() if path.name[7:].isdigit())
    numbered = {name: f"checkpoint {number}" for number, name in enumerate(names)}
    found = [path.relative_to(run).parts for path in run.rglob("*") if "tfevents" not in path.name]
    files = sorted("/".join(numbered.get(part, part) for part in parts) for parts in found)
    rows = [
        {key: value for key, value in row.items() if "second" not in key}
        for row in rl2meta.load_run(run, trust=["walks"]).metrics
    ]
    saved = checkpoints.newest(run / "checkpoints", print)
    assert saved is not None
    return Outcome(files, rows, saved.update, bits(saved))


def bits(saved: checkpoints.Checkpoint) -> dict[str, bytes]:
    """Return the tensors of a checkpoint as bytes, by name."""
    return {name: tensor.numpy().tobytes() for name, tensor in saved.tensors.items()}


def undisturbed(name: str, folder: Path, **training: int) -> Path:
    """Train one kind to its end in ``folder/undisturbed``; return the run folder."""
    folder.mkdir(parents=True, exist_ok=True)
    run = folder / "undisturbed"
    shutil.rmtree(run, ignore_errors=True)
    ended = command(words_to_go_on(write_config(name, folder, **training), run), folder)
    assert ended.code == 0, ended.said
    return run
