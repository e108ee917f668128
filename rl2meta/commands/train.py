"""``rl2meta train``: what a person sees and does while an agent is trained."""

from collections.abc import Collection, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import FrameType
from typing import Any

from rl2meta.commands.progress import TrainingProgress, say
from rl2meta.commands.signals import Interrupted, handled
from rl2meta.experiments.components import row_name
from rl2meta.experiments.entry import train
from rl2meta.experiments.run import Run
from rl2meta.experiments.trainings import quoted, resume, resume_command


class Terminal:
    """Shows how a training goes, and stops it when a signal asks."""

    def __init__(self) -> None:
        self.started: Run | None = None
        self.interrupted: Interrupted | None = None
        self._shown = ExitStack()
        self._progress: TrainingProgress

    def begin(self, run: Run) -> None:
        """Say what is about to be trained."""
        self.started, device = run, run.config.settings.device
        if run.update:
            say(f"resuming {run.path} at update {run.update} ({device})")
        else:
            say(f"training {row_name(run.config)} on {run.distribution} in {run.path} ({device})")
            if run.origin is not None:
                say(f"it begins with the weights of {run.origin.path} after {run.origin.update:,} updates")
        progress = TrainingProgress(run.config.settings.training.updates, run.update)
        self._progress = self._shown.enter_context(progress)
        self._shown.enter_context(handled(self._request_stop))

    def after_update(self, run: Run, row: dict[str, Any]) -> bool:
        """Show an update; return False once a signal asked to stop."""
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
    """Train the experiment called ``source`` in a new folder; return the exit code."""
    terminal = Terminal()
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
        ),
    )


def resume_run(
    run_dir: Path, source: str | None, overrides: Sequence[str], trust: Collection[str] = ()
) -> int:
    """Continue the run in ``run_dir`` from its newest checkpoint; return the exit code."""
    terminal = Terminal()
    callbacks = [terminal.after_update]
    return _shown(
        terminal,
        run_dir,
        lambda: resume(run_dir, source, overrides, callbacks=callbacks, on_start=terminal.begin, trust=trust),
    )


def _shown(terminal: Terminal, run_dir: Path, go: Any) -> int:
    """Train, and say at the end what to do next; return the exit code."""
    try:
        run: Run = go()
    except Interrupted as stop:
        if terminal.started is None:
            raise
        terminal.close()
        return _stopped(stop, run_dir, "stopped at once; from the newest checkpoint continue with:")
    finally:
        terminal.close()
    updates = run.config.settings.training.updates
    if terminal.interrupted is not None and not run.finished:
        said = f"stopped and saved at update {run.update}/{updates}; continue with:"
        return _stopped(terminal.interrupted, run_dir, said)
    if terminal.started is None:
        say(f"{run_dir} is trained already: {run.update} updates; judge the agent with:")
    else:
        say(f"trained {updates} updates; judge the agent with:")
    say(f"  rl2meta evaluate {quoted(run_dir)}")
    return 0


def _stopped(stop: Interrupted, run_dir: Path, said: str) -> int:
    say(said)
    say(f"  {resume_command(run_dir)}")
    return stop.exit_code
