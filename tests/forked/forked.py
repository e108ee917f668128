"""Programs in processes that are forked, with everything imported: a start takes milliseconds and no seconds.

A server has imported ``everything`` and forks each of them. What a new interpreter does and a forked process
does not (imports, the start of the streams, what runs at exit) is for tests that start an interpreter.
"""

import multiprocessing
import os
import sys
from collections.abc import Mapping
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Self

COMMAND = "from rl2meta.cli import main; main()"
"""The program ``python -m rl2meta``."""
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["everything"])


class Forked:
    """What tests use of ``subprocess.Popen``; ``stdout`` has both outputs, unless they go to files.

    Args:
        program: Python code.
        argv: its arguments, without its name.
        env: more of the environment.
        folder: where it runs; default: here.
        files: for what it prints, and for its errors.
        descriptor: one that it inherits; the program finds it as ``descriptor``, by its number there.
    """

    def __init__(
        self,
        program: str,
        *argv: object,
        env: Mapping[str, str] | None = None,
        folder: Path | None = None,
        files: tuple[Path, Path] | None = None,
        descriptor: int | None = None,
    ) -> None:
        given = {
            "program": program,
            "argv": ["rl2meta", *map(str, argv)],
            "folder": str(folder or Path.cwd()),
        }
        given |= {"env": {**os.environ, **(env or {})}}
        if files is None:
            ours, theirs = os.pipe()
            self.stdout: Any = os.fdopen(ours, errors="replace")
            outputs = [theirs]
        else:
            self.stdout = None
            outputs = [os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND) for path in files]
        passed = [Connection(output) for output in outputs]
        inherited = None if descriptor is None else Connection(os.dup(descriptor))
        _ensure_server()
        self._process = _CONTEXT.Process(target=_run, args=(given, passed, inherited))
        self._process.start()
        for each in [*passed, *filter(None, [inherited])]:
            each.close()
        self.pid = self._process.pid or 0

    @property
    def returncode(self) -> int | None:
        """The exit code; None while it runs."""
        return self._process.exitcode

    def poll(self) -> int | None:
        """Return the exit code; None while it runs."""
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        """Send a signal."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """Send SIGTERM."""
        self._process.terminate()

    def kill(self) -> None:
        """Send SIGKILL."""
        self._process.kill()

    def wait(self, timeout: float | None = 120) -> int | None:
        """Wait for the end; return the exit code."""
        self._process.join(timeout)
        assert self.returncode is not None, f"it still runs after {timeout} s"
        return self.returncode

    def communicate(self) -> str:
        """Wait for the end; return the rest of both outputs."""
        with self.stdout:
            said: str = self.stdout.read()
        self.wait()
        return said

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.stdout.close()
        self.wait()


def _ensure_server() -> None:
    """Start the server if it does not run; it finds modules where this process does."""
    former = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)
    try:
        forkserver.ensure_running()
    finally:
        del os.environ["PYTHONPATH"]
        if former is not None:
            os.environ["PYTHONPATH"] = former


def _run(given: dict[str, Any], outputs: list[Connection], inherited: Connection | None) -> None:
    os.dup2(outputs[0].fileno(), 1)
    os.dup2(outputs[-1].fileno(), 2)
    for each in outputs:
        each.close()
    os.environ.clear()
    os.environ.update(given["env"])
    os.chdir(given["folder"])
    sys.argv = given["argv"]
    descriptor = None if inherited is None else inherited.fileno()
    exec(given["program"], {"__name__": "__main__", "descriptor": descriptor})
