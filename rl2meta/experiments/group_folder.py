"""The folder of a group on disk: runs that differ in the seed alone, each in a folder of its own."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from rl2meta.errors import UserError
from rl2meta.experiments import trust
from rl2meta.experiments.run_folder import LARGEST_CONFIG, LOCK, has_run, locked
from rl2meta.experiments.yaml_text import parse, text_of
from rl2meta.experiments.zoo import refuse_results_in_zoo, refuse_zoo
from rl2meta.files import (
    is_leftover,
    make_folder,
    read_text,
    reading,
    remove_leftovers,
    write_atomically,
    writing,
)

GROUP = "group.yaml"
"""The file with the settings of all runs of a group, and their seeds."""
_ORPHANS = 120.0  # seconds that the trainings of a killed command may take to notice it and to save


@dataclass(frozen=True)
class GroupFolder:
    """The folder of a group; ``create`` makes a new one or returns the same one, ``open`` an existing one.

    Attributes:
        path: the folder; it has a group.yaml.
    """

    path: Path

    @classmethod
    def create(cls, path: Path, settings: Mapping[str, Any], seeds: Sequence[int]) -> Self:
        """Make the folder of a group, or add seeds to a group that is there; the caller compares settings.

        Args:
            path: of the folder.
            settings: the config of all runs, without a seed.
            seeds: of the runs.

        Raises:
            UserError: if ``path`` is a file or a folder with something else in it, or cannot be written; or
                if another command is training the group, and there are seeds to add.
        """
        refuse_zoo(path)
        _refuse_used(path)
        folder = cls(path)
        with writing(path):
            make_folder(path)
        if is_group(path) and set(seeds) <= set(folder.members()):
            return folder
        with folder.locked():  # another command may add seeds, too
            known = list(folder.members()) if is_group(path) else []
            text = text_of({"seeds": sorted({*known, *seeds}), **settings})
            with writing(path):
                trust.stamp(path, text)
                write_atomically(folder.settings_path, text)
        return folder

    @classmethod
    def open(cls, path: Path) -> Self:
        """Return the folder of a group.

        Raises:
            UserError: if it is none.
        """
        if not is_group(path):
            raise UserError(f"expected the folder of a group, with a {GROUP}, got {path}; give another")
        return cls(path)

    @property
    def settings_path(self) -> Path:
        """The file with the settings and the seeds."""
        return self.path / GROUP

    def settings(self) -> dict[str, Any]:
        """Return the config of all runs, without a seed.

        Raises:
            UserError: if the file cannot be read, or is no config.
        """
        return {key: value for key, value in self._said().items() if key != "seeds"}

    def members(self) -> dict[int, Path]:
        """Return the run folder of each seed, in the order of the seeds; a run may not have begun.

        Raises:
            UserError: if the file says no seeds.
        """
        seeds = self._said().get("seeds")
        if not isinstance(seeds, list) or not seeds or not all(map(_is_seed, seeds)):
            raise UserError(
                f"{self.settings_path}: expected the seeds of a group under 'seeds', got {seeds!r:.200}; "
                "restore the file from a copy"
            )
        if len(set(seeds)) < len(seeds):
            raise UserError(
                f"{self.settings_path}: expected different seeds, got one twice in {seeds!r:.200}; restore "
                "the file from a copy"
            )
        return {seed: self.path / f"seed{seed}" for seed in sorted(seeds)}

    def text(self) -> str:
        """Return the text of group.yaml."""
        with reading(self.settings_path):
            return read_text(self.settings_path, LARGEST_CONFIG)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Prevent other commands from training the group until the block or this process ends.

        Raises:
            UserError: if another command is training it.
        """
        with locked(self.path, f"another command is training the group {self.path}; wait until it ends"):
            with writing(self.path):
                remove_leftovers(self.path)
            yield

    def _said(self) -> dict[str, Any]:
        return parse(self.text(), str(self.settings_path))


def _is_seed(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**63


def is_group(path: str | Path) -> bool:
    """Return whether a folder is that of a group."""
    return (Path(path) / GROUP).is_file()


def members(path: str | Path) -> dict[int, Path]:
    """Return the run folder of each seed of the group in a folder, in the order of the seeds."""
    return GroupFolder.open(Path(path)).members()


def first_run(path: Path) -> Path:
    """Return the run folder of a group's first seed; any other path is returned as it is."""
    return next(iter(members(path).values())) if is_group(path) else path


def refuse_trained(path: Path) -> None:
    """Refuse a file, the zoo, and the folder of a run or a group, as the folder of a study or a sweep.

    Raises:
        UserError: says what is there.
    """
    refuse_results_in_zoo(path, "--run-dir")
    with writing(path):
        if path.exists() and not path.is_dir():
            raise UserError(f"--run-dir: expected a folder, or none yet, got the file {path}")
        kind = "a group" if is_group(path) else "a run" if has_run(path) else ""
    if kind:
        raise UserError(f"--run-dir: expected a new folder, or that of an earlier call, got {kind}, {path}")


def wait_for_orphans(path: Path) -> None:
    """Wait until nobody writes to a run; what trains after its command was killed saves and ends soon.

    Raises:
        UserError: if it takes too long.
    """
    if path.is_dir():
        with locked(path, f"another process is writing to {path}; wait until it ends", _ORPHANS):
            pass


def _refuse_used(path: Path) -> None:
    with writing(path):
        free = (
            not path.exists() or is_group(path) or (path.is_dir() and all(map(_of_a_start, path.iterdir())))
        )
    if not free:
        kind = "a run" if has_run(path) else "something else"
        raise UserError(f"--run-dir: expected a new folder or that of a group, got {path} with {kind} in it")


def _of_a_start(entry: Path) -> bool:
    """Return whether ``create`` makes an entry before it writes group.yaml."""
    return entry.name in (LOCK, trust.STAMP) or is_leftover(entry)
