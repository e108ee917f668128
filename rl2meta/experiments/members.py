"""Train one run of a group, as a whole or in slices; in this process or in one of several jobs."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rl2meta.experiments.group_folder import wait_for_orphans
from rl2meta.experiments.run import Callback, Run
from rl2meta.experiments.run_folder import has_run
from rl2meta.experiments.trainings import resume, train


class Member(NamedTuple):
    """One run of a group.

    Attributes:
        seed: its seed.
        settings: the config of the group, with this seed.
        path: its run folder; None for a run without a folder.
        start_from: the run whose weights it begins with.
        trust: modules that run folders may import.
    """

    seed: int
    settings: Mapping[str, Any]
    path: Path | None = None
    start_from: Run | Path | None = None
    trust: Sequence[str] = ()


def train_member(
    member: Member,
    callbacks: Sequence[Callback] = (),
    on_start: Callable[[Run], None] | None = None,
    until: int | None = None,
) -> Run:
    """Begin or continue a run of a group; return a finished run without changes.

    Args:
        member: the run.
        callbacks: as for ``train``.
        on_start: called with the run before its next update.
        until: stop and save after so many updates of the run; None: train all of them.
    """
    stops: list[Callback] = [] if until is None else [lambda run, row: run.update < until]
    every = [*callbacks, *stops]
    if member.path is not None:
        wait_for_orphans(member.path)
        if has_run(member.path):
            return resume(
                member.path, member.settings, callbacks=every, on_start=on_start, trust=member.trust
            )
    return train(
        member.settings,
        run_dir=member.path,
        start_from=member.start_from,
        callbacks=every,
        on_start=on_start,
        trust=member.trust,
    )
