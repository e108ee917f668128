"""A study of Optuna that several processes and machines share, and that may be killed at any moment.

A *trial* is here what Optuna calls so: one choice of the settings, and the trainings with it.
"""

import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from filelock import FileLock

from rl2meta.errors import UserError
from rl2meta.experiments.attendance import Attendance
from rl2meta.experiments.config import differing, suggestion
from rl2meta.experiments.search_space import Range, Space, Values
from rl2meta.files import make_folder, writing
from rl2meta.randomness import derive

try:
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
    from optuna.trial import FrozenTrial, Trial, TrialState
except ModuleNotFoundError as error:
    if error.name != "optuna":
        raise
    raise UserError(
        "expected the package optuna, got none; install it: pip install 'rl2meta[tune]'"
    ) from None

_IDENTITY, _WORKER, _INSTEAD_OF = "rl2meta", "worker", "instead of"
_BEGIN = b'{"op_code":'  # of a journal file
_SEEDS = 2**32  # of samplers
SAMPLERS: Mapping[str, Callable[..., Any]] = {
    "tpe": partial(optuna.samplers.TPESampler, constant_liar=True),  # avoids what other processes try now
    "random": optuna.samplers.RandomSampler,
}
PRUNERS: Mapping[str, Callable[[int, int], Any]] = {
    "median": lambda startup, warm_up: optuna.pruners.MedianPruner(startup, warm_up + 1),
    "halving": lambda startup, warm_up: optuna.pruners.SuccessiveHalvingPruner(),
    "none": lambda startup, warm_up: optuna.pruners.NopPruner(),
}


@dataclass(frozen=True)
class StudySettings:
    """What a study is, and how its trials are chosen.

    Attributes:
        name: of the study in its storage.
        storage: the journal file, which may hold several studies.
        space: what is varied.
        identity: what must be the same whenever the study goes on, such as the settings that are not varied.
        n_trials: the number of trials that end, completed or pruned, whichever process runs them.
        sampler, pruner: keys of ``SAMPLERS`` and ``PRUNERS``.
        startup_trials: the first trials, which are drawn at random, and before which none is pruned.
        warm_up: the number of a trial's first values after which it is never pruned.
        seed: of the draws.
    """

    name: str
    storage: Path
    space: Space
    identity: Mapping[str, Any]
    n_trials: int
    sampler: str
    pruner: str
    startup_trials: int
    warm_up: int
    seed: int


class SharedStudy:
    """A study, as one of the processes at work on it sees it.

    Args:
        settings: of the study; it is made if its storage does not hold it.

    Raises:
        UserError: for an unknown sampler or pruner, a storage that is none, and for a study of this name
            whose search space or other settings differ.
    """

    def __init__(self, settings: StudySettings) -> None:
        for option, name, known in (
            ("--sampler", settings.sampler, SAMPLERS),
            ("--pruner", settings.pruner, PRUNERS),
        ):
            if name not in known:
                raise UserError(f"{option}: unknown name {name!r}{suggestion(name, known)}")
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.settings = settings
        path = settings.storage
        with writing(path):
            make_folder(path.parent)
        self._door = FileLock(path.with_name(f"{path.name}.door"))
        self.attendance = Attendance(path.with_name(f"{path.name}.workers"))
        with self._alone():
            self.study = self._opened()

    def trials(self) -> list[FrozenTrial]:
        """Return all trials, in order of their numbers."""
        found: list[FrozenTrial] = self.study.get_trials(deepcopy=False)
        return found

    def completed(self) -> list[FrozenTrial]:
        """Return the trials that have a value, the best first; of equal ones, the first that was tried."""
        trials = [trial for trial in self.trials() if trial.state == TrialState.COMPLETE]
        return sorted(trials, key=lambda trial: (-value_of(trial), trial.number))

    def ended(self) -> list[FrozenTrial]:
        """Return the completed and the pruned trials, in order of their numbers."""
        return [trial for trial in self.trials() if _has_ended(trial)]

    def claim(self, worker: str) -> Trial | None:
        """Return a new trial for a process, or None if as many as wanted have ended or are at work.

        A trial of a process that is gone is marked as failed first, and its settings are tried again, once.
        """
        with self._alone():
            self._replace_stranded()
            active = [trial for trial in self.trials() if trial.state == TrialState.RUNNING]
            ended = len(self.ended())
            if ended + len(active) >= self.settings.n_trials:
                return None
            self.study.sampler = self._sampler(ended + len(active))
            with quiet():
                trial: Trial = self.study.ask()
                trial.set_user_attr(_WORKER, worker)
                for key, dimension in self.settings.space.items():
                    _suggest(trial, key, dimension)
            return trial

    def tell(self, trial: Trial, value: float | None) -> None:
        """Write down how a trial ended: its value, or None if it was pruned.

        If another process took this one for gone, the result is dropped: the trial is tried again there.
        """
        with quiet():
            state = TrialState.PRUNED if value is None else TrialState.COMPLETE
            self.study.tell(trial, value, state=state, skip_if_finished=True)

    def replaced_by(self, trial: FrozenTrial) -> int | None:
        """Return the number of the trial that was cut short and that this one is tried instead of, if any."""
        number: int | None = trial.user_attrs.get(_INSTEAD_OF)
        return number

    def _replace_stranded(self) -> None:
        """Enqueue the settings of each trial whose process is gone, then mark the trial as failed.

        A kill between the two leaves a trial that has its replacement already, which the next call sees.
        """
        trials = self.trials()
        replaced = {trial.user_attrs.get(_INSTEAD_OF) for trial in trials}
        for trial in trials:
            worker = trial.user_attrs.get(_WORKER)
            if trial.state != TrialState.RUNNING or (worker and self.attendance.is_present(worker)):
                continue
            if trial.number not in replaced:
                with quiet():
                    self.study.enqueue_trial(trial.params, user_attrs={_INSTEAD_OF: trial.number})
            self.study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)

    def _sampler(self, place: int) -> Any:
        """Return a sampler whose draws depend on the seed and on the number of trials before.

        So a study that one process works on draws the same settings whether it was killed or not.
        """
        seed = derive(self.settings.seed, "sampler", place) % _SEEDS
        startup = {"n_startup_trials": self.settings.startup_trials} if self.settings.sampler == "tpe" else {}
        with quiet():
            return SAMPLERS[self.settings.sampler](seed=seed, **startup)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep other processes from claiming trials in the block."""
        with writing(self.settings.storage):
            self._door.acquire(poll_interval=0.01)
        try:
            yield
        finally:
            self._door.release()

    def _opened(self) -> Any:
        settings, path = self.settings, str(self.settings.storage)
        with writing(settings.storage):
            _mend(settings.storage)
            backend = JournalFileBackend(path, lock_obj=JournalFileOpenLock(path))
        try:
            study = optuna.create_study(
                storage=JournalStorage(backend),
                study_name=settings.name,
                direction="maximize",
                load_if_exists=True,
                pruner=PRUNERS[settings.pruner](settings.startup_trials, settings.warm_up),
            )
        except (ValueError, LookupError, TypeError) as error:
            raise UserError(
                f"--storage {path}: expected a journal file of Optuna, got another or a damaged one "
                f"({error!s:.200}); choose another --storage"
            ) from None
        found = study.user_attrs.get(_IDENTITY)
        if found is None:
            study.set_user_attr(_IDENTITY, _identity(settings))
        else:
            _refuse_another(settings, found)
        return study


def planned_params(trial: FrozenTrial) -> dict[str, Any]:
    """Return the parameters that a trial in the queue will have; {} for others."""
    return dict(trial.system_attrs.get("fixed_params", {}))


def value_of(trial: FrozenTrial) -> float:
    """Return the value of a completed trial."""
    assert trial.value is not None
    return trial.value


def _has_ended(trial: FrozenTrial) -> bool:
    return trial.state in (TrialState.COMPLETE, TrialState.PRUNED)


def _suggest(trial: Trial, key: str, dimension: Range | Values) -> None:
    """Let Optuna choose the value of a setting."""
    if isinstance(dimension, Values):
        trial.suggest_categorical(key, list(_names(dimension)))
    elif dimension.whole:
        trial.suggest_int(key, int(dimension.low), int(dimension.high), log=dimension.log)
    else:
        trial.suggest_float(key, dimension.low, dimension.high, log=dimension.log)


def _names(dimension: Values) -> dict[Any, Any]:
    """Return the values by what stands for them in Optuna, which knows no lists and takes True for 1."""
    return {str(Values((value,)))[1:-1]: value for value in dimension.values}


def chosen(space: Space, params: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that a trial's parameters stand for, by dotted key."""
    return {key: _value(space[key], value) for key, value in params.items()}


def _value(dimension: Range | Values, value: Any) -> Any:
    return _names(dimension)[value] if isinstance(dimension, Values) else value


def _identity(settings: StudySettings) -> dict[str, Any]:
    space = {f"--search {key}": str(dimension) for key, dimension in settings.space.items()}
    return {**space, **settings.identity}


def _refuse_another(settings: StudySettings, found: Mapping[str, Any]) -> None:
    wanted = _identity(settings)
    changed = [
        f"{key} is {found.get(key)!s:.80}, not {wanted.get(key)!s:.80}" for key in differing(found, wanted)
    ]
    if changed:
        raise UserError(
            f"--storage {settings.storage}: expected the study {settings.name!r} of this search, got one "
            f"with other settings: {'; '.join(changed)}. Choose another --study-name, or undo the change"
        )


def _mend(path: Path) -> None:
    """Remove a part of a line at the end, which a power cut may have left; only one process may do this.

    Raises:
        UserError: for a file of something else, which stays as it is.
    """
    if not path.exists():
        return
    with open(path, "rb") as file:
        begin = file.read(len(_BEGIN))
    if not _BEGIN.startswith(begin):
        raise UserError(
            f"--storage {path}: expected a journal file of Optuna, got a file of something else; choose "
            "another --storage"
        )
    lock = JournalFileOpenLock(str(path))
    lock.acquire()
    try:
        with open(path, "rb+") as file:
            content = file.read()
            whole = content.rfind(b"\n") + 1
            if whole < len(content):
                file.truncate(whole)
                file.flush()
                os.fsync(file.fileno())
    finally:
        lock.release()


@contextmanager
def quiet() -> Iterator[None]:
    """Hide that parts of Optuna are new."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        yield
