"""The weights that the runs of a group begin with: those of one run, or of the runs of another group."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from rl2meta.errors import UserError
from rl2meta.experiments import restore
from rl2meta.experiments.components import make_learner
from rl2meta.experiments.config import RunConfig
from rl2meta.experiments.group import Group
from rl2meta.experiments.group_folder import GroupFolder, is_group
from rl2meta.experiments.inheriting import begin_with
from rl2meta.experiments.run import Run
from rl2meta.experiments.run_folder import RunFolder, has_run
from rl2meta.experiments.zoo import said_path, zoo_name


def origins_of(
    start_from: Run | Group | str | Path | None, seeds: Sequence[int], jobs: int
) -> dict[int, Run | Path | None]:
    """Return for each seed the run whose weights it begins with."""
    if isinstance(start_from, str | Path):
        path = Path(start_from)
        if not is_group(path):
            return dict.fromkeys(seeds, path)
        by_seed: Mapping[int, Run | Path] = GroupFolder(path).members()
    elif isinstance(start_from, Group):
        by_seed = dict(zip(start_from.seeds, start_from.runs, strict=True))
    else:
        return dict.fromkeys(seeds, _on_disk(start_from, jobs))
    if missing := [seed for seed in seeds if seed not in by_seed]:
        raise UserError(
            f"--from (start_from): expected a group with a run of every seed, got one without {missing}; "
            "give a single run, or these seeds only"
        )
    return {seed: _on_disk(by_seed[seed], jobs) for seed in seeds}


def said_origin(start_from: Run | Group | str | Path | None) -> dict[str, Any]:
    """Return what group.yaml says about the weights that the runs begin with."""
    if start_from is None:
        return {}
    path = start_from.path if isinstance(start_from, Run | Group) else start_from
    return {"started_from": {"path": None if path is None else _lasting(Path(path))}}


def _lasting(path: Path) -> str:
    """Return a path that means the same when the current folder is another one."""
    return str(path.resolve()) if zoo_name(path) is None else said_path(path)


def known_origin(folder: GroupFolder) -> str | None:
    """Return the path in group.yaml of the weights that the runs begin with; None if they begin anew.

    Raises:
        UserError: if the weights have no path, and a run has yet to begin with them.
    """
    said = folder.settings().get("started_from")
    path = said.get("path") if isinstance(said, Mapping) else None
    waiting = [seed for seed, place in folder.members().items() if not has_run(place)]
    if said is not None and not isinstance(path, str) and waiting:
        raise UserError(
            f"{folder.settings_path}: expected the path of the weights that seed "
            f"{', '.join(map(str, waiting))} begins with, got {said!r:.100}; they were in memory: call "
            "train(..., seeds=..., start_from=...) again"
        )
    return path if isinstance(path, str) else None


def refuse_misfits(
    experiment: RunConfig, device: torch.device, origins: Sequence[Run | Path | None], trust: Sequence[str]
) -> None:
    """Refuse weights that cannot be read or do not fit, before there is a folder that names them."""
    for origin in origins:
        if isinstance(origin, Path):
            RunFolder.open(origin)
    if (first := origins[0]) is not None:
        run = Run(experiment, make_learner(experiment, device))
        begin_with(run, first if isinstance(first, Run) else restore.load_run(first, trust=trust))


def _on_disk(run: Run | Path | None, jobs: int) -> Run | Path | None:
    """Return the folder of a run if other processes must load it."""
    if jobs == 1 or not isinstance(run, Run):
        return run
    if run.path is None:
        raise UserError("start_from: expected a run with a folder for several jobs; use jobs=1")
    return run.path
