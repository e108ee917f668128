"""Draw the learning curves of runs and groups, from Python."""

import shutil
import tempfile
import weakref
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TypeAlias, get_args

from rl2meta.errors import UserError
from rl2meta.experiments.comparing import law_of
from rl2meta.experiments.components import judged_episodes
from rl2meta.experiments.config import RunConfig, differing
from rl2meta.experiments.evaluations import Figure
from rl2meta.experiments.group_folder import is_group, members
from rl2meta.experiments.groups import Group
from rl2meta.experiments.judging import Say, folder_name, silent
from rl2meta.experiments.known_values import levels_of
from rl2meta.experiments.learning_curves import (
    ACROSS,
    Of,
    Over,
    Source,
    Trained,
    chosen_metric,
    curve_of,
    is_held_out,
    updates_per_point,
)
from rl2meta.experiments.restore import load_run_config
from rl2meta.experiments.run import Run
from rl2meta.experiments.run_folder import RunFolder, has_run
from rl2meta.experiments.zoo import located, refuse_results_in_zoo, results_of, zoo_name
from rl2meta.files import make_folder, read_file, reading, writing
from rl2meta.learning_plot import MADE_BY, LearningCurve, LearningPicture, plot_learning_curves

_CHUNKS = 4096  # bytes at the beginning of a PNG file, in which its text is

Drawn: TypeAlias = Run | Group | str | Path


def plot(
    runs: Drawn | Sequence[Drawn],
    *,
    over: Over = "steps",
    of: Of | None = None,
    out: str | Path | None = None,
    trust: Collection[str] = (),
    say: Say = silent,
) -> Figure:
    """Draw learning curves: the score of the agents over the length of their training.

    The score is the regret or return of a trial on held-out tasks, in the rows where the agent was judged
    (``training.evaluate_every``); without them, the return on the training tasks, and the title says so. A
    group is its mean over training seeds with Student's 95 % interval, over the range that all its seeds
    have. Horizontal lines are the exact ceilings, and the references of the newest evaluation.

    Args:
        runs: a run, a group, their folders, or a list of them; all on the same tasks.
        over: the horizontal axis: ``steps`` of the environments, ``seconds`` of training (without those of
            judging), or ``updates``.
        of: ``regret`` or ``return``; None: the regret where all runs know it.
        out: the PNG file; None: ``learning.png`` in the folder of the run or group, or
            ``plot-NAME1-NAME2.png`` beside the first of several; a temporary file for a run without a folder.
            Of a zoo agent, it is in the current folder.
        trust: modules that run folders from elsewhere may import.
        say: called with one line of text if an earlier figure is replaced.

    Returns:
        The figure, which a notebook shows; its file is ``path``.

    Raises:
        UserError: for runs on different tasks, without metrics or without what ``of`` asks for, and for an
            ``out`` that is a file of something else.
    """
    given = [runs] if isinstance(runs, str | Path) or not isinstance(runs, Sequence) else list(runs)
    if over not in get_args(Over):
        raise UserError(f"--over: expected {', '.join(get_args(Over))}, got {over!r}")
    if not given:
        raise UserError("DIR: expected at least one run or group, got none")
    folders = [_folder_of(each) for each in given]
    _refuse_twice(folders)
    target, owner = _target(folders, out)
    replaces = _refuse_another_file(target)
    sources = [Source(name, _members(each, trust)) for name, each in zip(_names(folders), given, strict=True)]
    picture = _picture(sources, [folder for folder in folders if folder is not None], over, of)
    if replaces:
        say(f"replacing the earlier figure {target}")
    with writing(target):
        make_folder(target.parent)
    return Figure(plot_learning_curves(picture, target), owner)


def _picture(
    sources: Sequence[Source], folders: Sequence[Path], over: Over, of: Of | None
) -> LearningPicture:
    metric = chosen_metric(sources, of)
    config, held_out, regret = sources[0].runs[0].config, is_held_out(metric), metric.endswith("regret")
    for source in sources:
        for run in source.runs:
            _refuse_other_tasks(source.name, run.config, config, held_out)
    episodes = _episodes(config, held_out)
    curves = [curve_of(source, metric, over) for source in sources]
    better = "lower is better" if regret else "higher is better"
    return LearningPicture(
        _title(held_out, regret),
        f"{config.distribution}; {_said_points(sources, held_out)}{_said_band(curves)}",
        ACROSS[over],
        f"{'Regret' if regret else 'Return'} of a trial of {episodes:,} episodes ({better})",
        regret,
        curves,
        levels_of(config, folders, episodes, regret),
    )


def _title(held_out: bool, regret: bool) -> str:
    if held_out:
        return f"{'Regret' if regret else 'Return'} on held-out tasks during training"
    return "Return on the training tasks (not all runs have held-out scores)"


def _said_points(sources: Sequence[Source], held_out: bool) -> str:
    if held_out:
        tasks = {run.config.settings.training.evaluation_tasks for source in sources for run in source.runs}
        return f"each point: {' or '.join(f'{number:,}' for number in sorted(tasks))} held-out tasks"
    most = max(map(updates_per_point, sources))
    return "each point: one update" if most == 1 else f"each point: a mean over up to {most} updates"


def _said_band(curves: Sequence[LearningCurve]) -> str:
    if all(curve.low is None for curve in curves):
        return "; one training seed each" if len(curves) > 1 else "; one training seed"
    return "; bold: mean over training seeds, band: its 95 % interval, thin: each seed"


def _episodes(config: RunConfig, held_out: bool) -> int:
    return judged_episodes(config) if held_out else config.settings.training.episodes_per_trial


def _refuse_other_tasks(name: str, config: RunConfig, first: RunConfig, held_out: bool) -> None:
    """Refuse a run whose scores mean something else than those of the first run."""
    ours, theirs = law_of(first), law_of(config)
    key = "evaluation.episodes_per_trial" if held_out else "training.episodes_per_trial"
    ours[key], theirs[key] = _episodes(first, held_out), _episodes(config, held_out)
    if changed := differing(theirs, ours):
        said = "; ".join(f"{each} is {theirs.get(each)!r}, not {ours.get(each)!r}" for each in changed)
        raise UserError(
            f"{name}: expected a run on the first one's tasks, in trials of the same length, got {said}; "
            "draw it in another figure"
        )


def _members(given: Drawn, trust: Collection[str]) -> list[Trained]:
    """Return the run, or the runs of a group in the order of their seeds."""
    if not isinstance(given, str | Path):
        runs = [given] if isinstance(given, Run) else given.runs
        return [Trained(run.config, run.metrics) for run in runs]
    folder = Path(given)
    paths = _runs_of_group(folder) if is_group(folder) else [folder]
    return [_read(RunFolder.open(path), trust) for path in paths]


def _read(folder: RunFolder, trust: Collection[str]) -> Trained:
    return Trained(load_run_config(folder, trust=trust), folder.read_metrics())


def _runs_of_group(folder: Path) -> list[Path]:
    found = [path for path in members(folder).values() if has_run(path)]
    if not found:
        raise UserError(f"{folder}: expected a group with runs in seed0, seed1, ..., got none yet")
    return found


def _folder_of(given: Drawn) -> Path | None:
    return located(given) if isinstance(given, str | Path) else given.path


def _refuse_twice(folders: Sequence[Path | None]) -> None:
    known = [folder.resolve() for folder in folders if folder is not None]
    if twice := next((each for each in known if known.count(each) > 1), None):
        raise UserError(f"DIR: expected different runs or groups, got {twice} twice; give it once")


def _names(folders: Sequence[Path | None]) -> list[str]:
    """Return the names of the folders, with as many parents as tell them apart."""
    parts = [
        (f"run {place + 1}",) if folder is None else folder.resolve().parts
        for place, folder in enumerate(folders)
    ]
    depth = 1
    while len({each[-depth:] for each in parts}) < len(set(parts)):
        depth += 1
    return ["/".join(each[-depth:]) for each in parts]


class _Temporary:
    """A folder that is removed with this object."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="rl2meta-"))
        weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)


def _target(folders: Sequence[Path | None], out: str | Path | None) -> tuple[Path, object]:
    """Return where the figure is written, and what keeps that place while the figure is in use."""
    first = folders[0]
    if out is not None:
        refuse_results_in_zoo(Path(out), "--out")
        return Path(out), None
    if first is None:
        temporary = _Temporary()
        return temporary.path / "learning.png", temporary
    if len(folders) == 1:
        return results_of(first, "learning.png"), None
    names = ["run" if folder is None else folder_name(folder) for folder in folders]
    beside = first.parent if zoo_name(first) is None else Path()
    return beside / f"{'-'.join(['plot', *names])[:120]}.png", None


def _refuse_another_file(path: Path) -> bool:
    """Refuse to write over a file that is not a figure of learning curves; return whether one is there."""
    with reading(path):
        if not path.exists():
            if path.suffix.lower() != ".png":
                raise UserError(f"--out: expected a file that ends in .png, got {path}; choose another name")
            return False
        begin = b"" if path.is_dir() else read_file(path)[:_CHUNKS]
    if MADE_BY.encode() not in begin:
        raise UserError(
            f"--out: expected a new file, or an earlier figure of `rl2meta plot`, got {path} with something "
            "else in it; choose another file"
        )
    return True
