"""What a study found: a table, the best config, all trials as CSV, and a figure."""

import csv
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import optuna
from optuna.trial import TrialState

from rl2meta.experiments.search_space import settings_text
from rl2meta.experiments.studies import SharedStudy, chosen, planned_params, quiet, value_of
from rl2meta.experiments.text_tables import aligned, short_keys
from rl2meta.files import make_folder, write_atomically, writing

if TYPE_CHECKING:
    from rl2meta.experiments.tuning_plan import Plan

_ENOUGH = 4  # completed trials, from which importance can be estimated


def write_report(shared: SharedStudy, plan: "Plan", folder: Path, figure: bool = True) -> None:
    """Write best.yaml and trials.csv into a folder, new or old; if ``figure`` is true, history.png, too."""
    with writing(folder):
        make_folder(folder)
        write_atomically(folder / "best.yaml", best_config(shared, plan))
        write_atomically(folder / "trials.csv", table_of_all(shared))
    if figure:
        draw_history(shared, folder / "history.png")


def best_config(shared: SharedStudy, plan: "Plan") -> str:
    """Return the config of the best trial, complete, with the seed and the threads of the config tuned."""
    best, options = shared.completed()[0], plan.options
    config = plan.config(*settings_text(chosen(plan.space, best.params)))
    ended = len(shared.ended())
    trainings = "1 training" if options.num_seeds == 1 else f"{options.num_seeds} trainings"
    return (
        f"# {plan.source}, tuned: trial {best.number} of study {options.study_name}, the best of {ended}; "
        f"its mean return was {value_of(best):.6g} on {options.tasks} tuning tasks, over {trainings}.\n"
        f"{config.to_yaml()}"
    )


def best_trials(shared: SharedStudy, most: int = 5) -> str:
    """Return a table of the best trials as text."""
    trials = shared.completed()[:most]
    keys = list(shared.settings.space)
    names = short_keys(keys)
    rows = [["trial", "held-out return", *(names[key] for key in keys)]]
    for trial in trials:
        values = chosen(shared.settings.space, trial.params)
        rows.append([str(trial.number), f"{value_of(trial):.4g}", *(_short(values.get(key)) for key in keys)])
    return aligned(rows)


def importance(shared: SharedStudy) -> dict[str, float]:
    """Return the share of each setting in the differences between trials; {} if Optuna cannot tell.

    Source: Watanabe, Bansal and Hutter, PED-ANOVA: Efficiently quantifying hyperparameter importance in
    arbitrary subspaces, IJCAI 2023.
    """
    if len(shared.completed()) < _ENOUGH:
        return {}
    try:
        with quiet():
            evaluator = optuna.importance.PedAnovaImportanceEvaluator()
            return dict(optuna.importance.get_param_importances(shared.study, evaluator=evaluator))
    except (RuntimeError, ValueError, ImportError):  # such as all values equal
        return {}


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def table_of_all(shared: SharedStudy) -> str:
    """Return all trials as CSV, also those that a kill cut short and those that are tried instead of them."""
    text, keys = io.StringIO(), list(shared.settings.space)
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["trial", "state", "value", "seconds", "instead_of", *keys])
    for trial in shared.trials():
        value = chosen(shared.settings.space, trial.params or planned_params(trial))
        seconds = "" if trial.duration is None else f"{trial.duration.total_seconds():.1f}"
        last = trial.value if trial.state.is_finished() and trial.state != TrialState.FAIL else None
        number = ["" if last is None else repr(last), seconds, shared.replaced_by(trial)]
        writer.writerow([trial.number, trial.state.name.lower(), *number, *(value.get(key) for key in keys)])
    return text.getvalue()


def draw_history(shared: SharedStudy, path: Path) -> Path:
    """Draw the values of the trials, in their order, and the best value so far."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    from rl2meta import drawing
    from rl2meta.colours import TRAINED
    from rl2meta.drawing import FAINT, GRID, INK, add_axes

    figure = Figure(figsize=(12, 4.9), dpi=150, facecolor="white")
    trials = shared.ended()
    done = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    cut = [trial for trial in trials if trial.state == TrialState.PRUNED and trial.value is not None]
    axes = add_axes(figure, 0.07, 0.78)
    axes.grid(color=GRID)
    numbers, values = [trial.number for trial in done], [value_of(trial) for trial in done]
    best = np.maximum.accumulate([*values, values[-1]])
    axes.step([*numbers, trials[-1].number], best, where="post", color=TRAINED[0], lw=3.4)
    axes.plot(numbers, values, "o", color=TRAINED[1], ms=6)
    axes.plot([t.number for t in cut], [value_of(t) for t in cut], "x", color=FAINT, ms=6)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("trial", color=INK, size=12)
    axes.set_ylabel("mean return on tuning tasks", color=INK, size=12)
    title = f"{len(done)} completed and {len(trials) - len(done)} pruned trials"
    figure.text(0.012, 0.93, f"Study {shared.settings.name}: {title}", size=15, weight="bold", color=INK)
    for place, (text, colour) in enumerate(
        (("best so far", TRAINED[0]), ("completed", TRAINED[1]), ("pruned, last value", FAINT))
    ):
        figure.text(0.86, 0.74 - 0.07 * place, text, size=11.5, color=colour)
    return drawing.save(figure, path)
