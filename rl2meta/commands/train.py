"""``rl2meta train``: what a person sees and does while an agent is trained."""

import signal
from collections.abc import Collection, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import FrameType
from typing import Any

from rl2meta.commands.progress import TrainingProgress, say
from rl2meta.commands.signals import Interrupted, handled, unmasked
from rl2meta.experiments.components import row_name
from rl2meta.experiments.entry import train
from rl2meta.experiments.run import Run
from rl2meta.experiments.run_folder import has_run
from rl2meta.experiments.trainings import quoted, resume, resume_command
from rl2meta.ranks import Ranks, joined, restarts


class Terminal:
    """Shows how a training goes, and stops it when a signal asks.

    Args:
        ranks: that train together; only the leader shows anything, but all hear signals.
    """

    def __init__(self, ranks: Ranks) -> None:
        self.ranks = ranks
        self.started: Run | None = None
        self.interrupted: Interrupted | None = None
        self._shown = ExitStack()
        self._progress: TrainingProgress

    def begin(self, run: Run) -> None:
        """Say what is about to be trained."""
        self.started, where = run, run.config.settings.device
        if run.config.settings.kernels == "compiled":
            where += ", compiled kernels"
        self._shown.enter_context(handled(self._request_stop))
        if not self.ranks.leads:
            return
        if self.ranks.size > 1:
            shards = run.config.settings.training.shards
            say(f"{self.ranks.size} ranks, {shards // self.ranks.size} of {shards} shards in each")
        if run.update:
            say(f"resuming {run.path} at update {run.update} ({where})")
        else:
            say(f"training {row_name(run.config)} on {run.distribution} in {run.path} ({where})")
            if run.origin is not None:
                say(f"it begins with the weights of {run.origin.path} after {run.origin.update:,} updates")
        progress = TrainingProgress(run.config.settings.training.updates, run.update)
        self._progress = self._shown.enter_context(progress)

    def after_update(self, run: Run, row: dict[str, Any]) -> bool:
        """Show an update; return False once a signal asked to stop."""
        if self.ranks.leads:
            self._progress.show(row)
        return self.interrupted is None

    def close(self) -> None:
        """Take the progress bar away, and give the signals back."""
        self._shown.close()

    def _request_stop(self, number: int, frame: FrameType | None) -> None:
        """Stop after this update; a second signal ends it at once."""
        if self.interrupted is not None:
            raise self.interrupted
        self.interrupted = Interrupted(number)


def start_run(
    source: str,
    overrides: Sequence[str],
    run_dir: Path,
    start_from: Path | None = None,
    trust: Collection[str] = (),
) -> int:
    """Train the experiment called ``source`` in a new folder; return the exit code.

    If ``torchrun`` has started the ranks again after a failure, they go on with the run in the folder.
    """
    with joined() as ranks:
        if restarts() and ranks.of_the_leader(lambda: "there" if has_run(run_dir) else ""):
            return _resumed(run_dir, source, overrides, trust, ranks)
        terminal = Terminal(ranks)
        return _shown(
            terminal,
            run_dir,
            lambda: train(
                source,
                overrides,
                run_dir=run_dir,
                start_from=start_from,
                callbacks=[terminal.after_update],
                on_start=terminal.begin,
                trust=trust,
                ranks=ranks,
            ),
        )


def resume_run(
    run_dir: Path, source: str | None, overrides: Sequence[str], trust: Collection[str] = ()
) -> int:
    """Continue the run in ``run_dir`` from its newest checkpoint; return the exit code."""
    with joined() as ranks:
        return _resumed(run_dir, source, overrides, trust, ranks)


def _resumed(
    run_dir: Path, source: str | None, overrides: Sequence[str], trust: Collection[str], ranks: Ranks
) -> int:
    terminal = Terminal(ranks)
    options = {"callbacks": [terminal.after_update], "on_start": terminal.begin, "trust": trust}
    return _shown(
        terminal,
        run_dir,
        lambda: resume(run_dir, source, overrides, **options, ranks=ranks),  # type: ignore[arg-type]
    )


def _shown(terminal: Terminal, run_dir: Path, go: Any) -> int:
    """Train, and say at the end what to do next; return the exit code."""
    try:
        with unmasked():
            run: Run = go()
    except Interrupted as stop:
        if terminal.started is None:
            raise
        terminal.close()
        return _stopped(stop, run_dir, "stopped at once; from the newest checkpoint continue with:")
    finally:
        terminal.close()
    updates = run.config.settings.training.updates
    asked = terminal.interrupted or _asked_elsewhere(terminal.ranks)
    if asked is not None and not run.finished:
        said = f"stopped and saved at update {run.update}/{updates}; continue with:"
        return _stopped(asked, run_dir, said) if terminal.ranks.leads else asked.exit_code
    if not terminal.ranks.leads:
        return 0
    if terminal.started is None:
        say(f"{run_dir} is trained already: {run.update} updates; judge the agent with:")
    else:
        say(f"trained {updates} updates; judge the agent with:")
    say(f"  rl2meta evaluate {quoted(run_dir)}")
    return 0


def _asked_elsewhere(ranks: Ranks) -> Interrupted | None:
    """Return the signal that stopped this rank, if only another one has got it."""
    return Interrupted(signal.SIGTERM) if ranks.size > 1 else None


def _stopped(stop: Interrupted, run_dir: Path, said: str) -> int:
    say(said)
    say(f"  {resume_command(run_dir)}")
    return stop.exit_code
