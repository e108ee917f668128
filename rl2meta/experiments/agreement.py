"""What ranks that train together must have in common, and what the leader gives to the others."""

import hashlib
import json
import platform
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import rl2meta
from rl2meta.experiments.config import WHERE, RunConfig
from rl2meta.experiments.run import Run
from rl2meta.experiments.trust import modules_in
from rl2meta.kernels import Kernels
from rl2meta.ranks import Ranks
from rl2meta.training import Learner

_PACKAGES = ("torch", "numpy", "gymnasium", "stable-baselines3")


def versions(kernels: Kernels | None) -> dict[str, str]:
    """Return the versions of what the numbers of a run depend on."""
    packages = [*_PACKAGES, *(["numba"] if kernels == "compiled" else [])]
    return {
        "rl2meta": rl2meta.__version__,
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
    }


def refuse_others(ranks: Ranks, config: RunConfig) -> None:
    """Refuse ranks with another config, number of threads, kernels, version or code.

    Raises:
        UserError: on every rank, with what differs.
    """
    if ranks.size == 1:
        return
    settings = {key: value for key, value in config.flat().items() if not key.startswith(WHERE)}
    code = {"the code of rl2meta": _code_digest()}
    code |= {f"the code of {name}": _module_digest(name) for name in sorted(modules_in(settings))}
    computing = {"threads": torch.get_num_threads(), "kernels": config.settings.kernels}
    known = {f"the version of {name}": number for name, number in versions(config.settings.kernels).items()}
    ranks.agree(settings | computing | known | code)


def refuse_drift(ranks: Ranks, learner: Learner, update: int) -> None:
    """Refuse ranks whose learners are no longer the same to the bit.

    Raises:
        UserError: on every rank.
    """
    if ranks.size > 1:
        ranks.agree({f"the learner after update {update}": _state_digest(learner.state_dict())})


def share(ranks: Ranks, run: Run) -> None:
    """Give the leader's run to all ranks: the state of its learner, and how far it is."""
    if ranks.size == 1:
        return
    mine: dict[str, Tensor] = {}
    if ranks.leads:
        mine = {f"state.{name}": tensor for name, tensor in run.learner.state_dict().items()}
        mine["done"] = torch.tensor([run.update, run.env_steps])
    given = ranks.gather_tensors(mine)[0]
    run.update, run.env_steps = given.pop("done").tolist()
    if not ranks.leads:
        own = run.learner.state_dict()
        state = {name.removeprefix("state."): tensor for name, tensor in given.items()}
        device = next((tensor.device for tensor in own.values()), torch.device("cpu"))
        run.learner.load_state_dict({name: tensor.to(device) for name, tensor in state.items()})


def _state_digest(state: dict[str, Tensor]) -> str:
    found = hashlib.sha256()
    for name, tensor in sorted(state.items()):  # an order that loading a state may have changed
        found.update(name.encode())
        found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:16]


def _code_digest() -> str:
    return _digest_of(path for root in rl2meta.__path__ for path in _sources(Path(root)))


def _module_digest(name: str) -> str:
    """Return a digest of the file of an imported module of the user's; of nothing if it has none."""
    file = getattr(sys.modules.get(name), "__file__", None)
    return _digest_of([Path(file)] if file else [])


def _sources(root: Path) -> Iterator[Path]:
    """Yield the Python files below a folder in a fixed order, through links to folders."""
    for path in sorted(root.iterdir()):
        if path.is_dir():
            yield from _sources(path)
        elif path.suffix == ".py":
            yield path


def _digest_of(paths: Any) -> str:
    digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]
    return hashlib.sha256(json.dumps(digests).encode()).hexdigest()[:16]
