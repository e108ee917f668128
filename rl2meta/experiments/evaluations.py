"""Evaluate trained agents on held-out tasks, from Python: one run, or several side by side."""

import shutil
import tempfile
import weakref
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rl2meta.agents.references.reference import Reference
from rl2meta.errors import UserError
from rl2meta.evaluation import AgentResult, Ceilings
from rl2meta.evaluation_files import write_evaluation
from rl2meta.experiments.agreement import refuse_others
from rl2meta.experiments.comparing import field_of, together
from rl2meta.experiments.components import chosen_references, row_name
from rl2meta.experiments.entry import load_run
from rl2meta.experiments.groups import Group
from rl2meta.experiments.judging import (
    Say,
    Watch,
    facts_of,
    make_contest,
    make_method,
    play,
    silent,
    unwatched,
)
from rl2meta.experiments.overrides import judged
from rl2meta.experiments.run import Run
from rl2meta.experiments.run_folder import new_folder
from rl2meta.experiments.tables import tables
from rl2meta.experiments.trainings import Overrides
from rl2meta.experiments.trust import modules_named
from rl2meta.experiments.yaml_text import overrides_of
from rl2meta.experiments.zoo import results_of
from rl2meta.ranks import ONE, Ranks
from rl2meta.reports import is_loss

Against = str | Sequence[str]


class Text(str):
    """Text that a notebook and the prompt show without quotes and escapes."""

    def __repr__(self) -> str:
        return str(self)


@dataclass(frozen=True)
class Figure:
    """A figure in a file; a notebook shows it as an image.

    Attributes:
        path: of the PNG.
    """

    path: Path
    _of: object = field(default=None, repr=False)  # the owner of a temporary folder, which it keeps

    def _repr_png_(self) -> bytes:
        return self.path.read_bytes()


@dataclass(frozen=True)
class Evaluation:
    """Results of agents on the same held-out tasks.

    Attributes:
        results: by name, the trained agents first: ``rewards``, ``regrets``, ``steps`` by task and episode.
        ceilings: the exact values that no agent can beat; None where unknown.
        facts: the facts about the evaluation in evaluation.json.
        path: the folder with evaluation.json, curves, arrays and figures; None for a run without a folder.
    """

    results: Mapping[str, AgentResult]
    ceilings: Ceilings
    facts: Mapping[str, Any]
    path: Path | None = None
    _temporary: list[Path] = field(default_factory=list, repr=False)

    def table(self, iqm: bool = False) -> Text:
        """Return a table of the agents as text: returns and regrets with 95 % intervals.

        Args:
            iqm: add the interquartile mean of the returns.
        """
        return Text(tables(self.results, self.ceilings, self.facts, iqm))

    def figure(self, name: str = "regret") -> Figure:
        """Return a figure, drawn from the files of the evaluation; a notebook shows it.

        Args:
            name: ``regret`` or ``returns``, cumulative over the trial; ``adaptation``, the return of an
                episode over the number of episodes before it; ``loss``, minus that on a logarithmic scale, if
                the optimum of the tasks is 0; or ``profile``, which share of the trials' returns lies above
                each value.

        Raises:
            UserError: for another name, for ``regret`` if the family's optimum is unknown, and for ``loss``
                if it is not 0.
        """
        from rl2meta.loss_plot import plot_loss
        from rl2meta.plotting import plot_adaptation, plot_regret, plot_returns  # loads matplotlib

        plots: dict[str, Callable[[Path], Path]] = {
            "regret": plot_regret,
            "returns": plot_returns,
            "adaptation": plot_adaptation,
            "loss": plot_loss,
            "profile": self._plot_profile,
        }
        if name not in plots:
            raise UserError(f"figure: expected one of {', '.join(plots)}, got {name!r}")
        folder = self._folder()
        path = folder / f"{name}.png"
        return Figure(path if path.exists() else plots[name](folder), self)

    def _plot_profile(self, folder: Path) -> Path:
        from rl2meta.experiments.profiles import profiles_of  # loads matplotlib
        from rl2meta.profile_plot import plot_profile

        return plot_profile(profiles_of(self.results, self.facts), folder)

    def _folder(self) -> Path:
        """Return the folder of the files; without a folder, a temporary one that exists as long as self."""
        if self.path is not None:
            return self.path
        if not self._temporary:
            folder = Path(tempfile.mkdtemp(prefix="rl2meta-"))
            weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
            self._write(folder)
            self._temporary.append(folder)
        return self._temporary[0]

    def _write(self, folder: Path) -> None:
        write_evaluation(folder, self.results, self.ceilings, self.facts)


def evaluate(
    run: Run | Group | str | Path,
    overrides: Overrides | None = None,
    *,
    tasks: int | None = None,
    seed: int | None = None,
    against: Against | None = None,
    scratch: int = 0,
    out: str | Path | None = None,
    device: str = "auto",
    threads: int | None = None,
    trust: Collection[str] = (),
    say: Say = silent,
    watch: Watch = unwatched,
    ranks: Ranks = ONE,
) -> Evaluation:
    """Evaluate a trained agent by its regret on held-out tasks, beside references and exact ceilings.

    For options that are None, the values of the run's config apply.

    Args:
        run: a run, or a run folder, whose newest complete checkpoint is evaluated; or a group, or its folder:
            then intervals are over training seeds and tasks. ``zoo:NAME`` comes with the package.
        overrides: settings of the evaluation that differ from training: other tasks
            (``{"distribution.high": 0.5}``), longer trials (``evaluation.episodes_per_trial``), or settings
            of the agent that may change after training.
        tasks: number of held-out tasks.
        seed: of the held-out tasks, and of the random streams of environments and agents.
        against: names of references, ``"all"`` or ``"none"``.
        scratch: number of tasks on which Stable-Baselines3's PPO also learns from scratch.
        out: a new folder for the results; by default ``evaluation``, ``evaluation_2``, ... in the run folder.
            Of a zoo agent, ``zoo-NAME-evaluation`` in the current folder. For a run without a folder, the
            default is to write nothing.
        device: of the environments and the agent.
        threads: number of CPU threads.
        trust: modules that a run folder from elsewhere may import, beyond those that ``overrides`` name.
        say: called with one line of text before each step.
        watch: called after each batch of trials with the number of trials done, and of all.
        ranks: the processes that share the tasks; each calls this function, and only the first writes.

    Raises:
        UserError: for a folder without a run, an option out of range, or an override that does not fit.
    """
    changes = overrides_of(overrides)
    group = _loaded(run, {*trust, *modules_named(changes)})
    configs = [judged(each.config, changes) for each in group.runs]
    config = configs[0]
    references = chosen_references(config, _names_of(against))
    options: dict[str, Any] = {"tasks": tasks, "seed": seed, "threads": threads, "scratch": scratch}
    ranks.agree({"the overrides": changes, "the updates": [each.update for each in group.runs], **options})
    refuse_others(ranks, config)
    contest = make_contest(config, device=device, ranks=ranks, **options)
    name = row_name(config)
    methods = {name: make_method(name, group.runs, configs, contest)}
    default = None if group.path is None else results_of(group.path, "evaluation")
    with _target(default, out, ranks) as target:
        results, ceilings = play(contest, methods, references, say, watch)
        facts = {**facts_of(contest, methods, _played(references, results)), **methods[name].facts()}
        return ranks.together(lambda: _written(Evaluation(results, ceilings, facts, target)))


def compare(
    runs: Sequence[Run | Group | str | Path] | Mapping[str, Run | Group | str | Path],
    *,
    tasks: int | None = None,
    seed: int | None = None,
    episodes: int | None = None,
    against: Against = "all",
    settings: Sequence[str] = (),
    scratch: int = 0,
    out: str | Path | None = None,
    device: str = "auto",
    threads: int | None = None,
    trust: Collection[str] = (),
    say: Say = silent,
    watch: Watch = unwatched,
    ranks: Ranks = ONE,
) -> Evaluation:
    """Evaluate several trained agents side by side, on the same held-out tasks and with the same luck.

    For options that are None, the values of the first run's config apply; a trial has as many episodes as the
    longest trial of the runs.

    Args:
        runs: runs, groups or their folders with the same task distribution, in a list (their names are those
            of the folders) or in a mapping by name. Differences in the results are to the first. Runs in a
            list that differ in the seed alone become one group.
        tasks: number of held-out tasks.
        seed: of the held-out tasks, and of the random streams of environments and agents.
        episodes: number of episodes in a trial.
        against: names of references, ``"all"`` or ``"none"``.
        settings: changes to the agent of a run, as ``NAME:agent.KEY=VALUE``.
        scratch: number of tasks on which Stable-Baselines3's PPO also learns from scratch.
        out: a new folder for the results; by default ``compare-NAME1-NAME2`` beside the first run, or in the
            current folder if that is a zoo agent.
        device: of the environments and the agents.
        threads: number of CPU threads.
        trust: modules that run folders from elsewhere may import.
        say: called with one line of text before each step.
        watch: called after each batch of trials with the number of trials done, and of all.
        ranks: the processes that share the tasks; each calls this function, and only the first writes.

    Raises:
        UserError: for fewer than two runs, different task distributions, or an option out of range.
    """
    labels: Sequence[str | None] = list(runs) if isinstance(runs, Mapping) else [None] * len(runs)
    loaded = [_loaded(each, trust) for each in (runs.values() if isinstance(runs, Mapping) else runs)]
    if not isinstance(runs, Mapping):
        labels, loaded = together(loaded)
    rivals = field_of(labels, loaded, episodes, settings)
    references = chosen_references(rivals.common, _names_of(against))
    options: dict[str, Any] = {"tasks": tasks, "seed": seed, "threads": threads, "scratch": scratch}
    updates = [each.update for group in loaded for each in group.runs]
    ranks.agree({"the settings": list(settings), "the updates": updates, **options})
    refuse_others(ranks, rivals.common)
    contest = make_contest(rivals.common, device=device, ranks=ranks, **options)
    methods = {
        name: make_method(name, group.runs, configs, contest)
        for name, (group, configs) in rivals.named(references).items()
    }
    with _target(rivals.default_folder(), out, ranks) as target:
        results, ceilings = play(contest, methods, references, say, watch)
        facts = {**facts_of(contest, methods, _played(references, results)), "runs": rivals.facts(methods)}
        return ranks.together(lambda: _written(Evaluation(results, ceilings, facts, target)))


def _loaded(run: Run | Group | str | Path, trust: Collection[str]) -> Group:
    """Return a group; of one run if it is no other."""
    found = run if isinstance(run, Run | Group) else load_run(run, trust=trust)
    return found if isinstance(found, Group) else Group([found], found.path)


def _played(references: Mapping[str, Reference], results: Mapping[str, Any]) -> dict[str, Reference]:
    """Return the references that have results."""
    return {name: reference for name, reference in references.items() if name in results}


def _names_of(against: Against | None) -> Sequence[str] | None:
    return against.split(",") if isinstance(against, str) else against


@contextmanager
def _target(default: Path | None, out: str | Path | None, ranks: Ranks) -> Iterator[Path | None]:
    """Make the folder for the results; yield None if there is neither a default nor ``out``.

    Only the leader makes and gets one.
    """
    wanted = ranks.leads and not (default is None and out is None)
    with ExitStack() as stack:
        folder = new_folder(default or Path("evaluation"), None if out is None else Path(out))
        yield ranks.together(lambda: stack.enter_context(folder) if wanted else None)


def _written(evaluation: Evaluation) -> Evaluation:
    """Write the files and draw the figures, if there is a folder for them."""
    if evaluation.path is not None:
        evaluation._write(evaluation.path)
        regret = any(result.regrets is not None for result in evaluation.results.values())
        evaluation.figure("regret" if regret else "returns")
        evaluation.figure("adaptation")
        if is_loss(evaluation.path):
            evaluation.figure("loss")
    return evaluation
