"""Standard output and standard error that may be full, closed or gone: work goes on, the end tells of it."""

import errno
import io
import select
import sys
import threading
from typing import Any, TextIO

_NAMES = ("stdout", "stderr")


class Output:
    """Takes over standard output and standard error; it loses what they do not take, and raises nothing.

    Streams that a program has replaced before, as a notebook or a test does, stay as they are.
    """

    def __init__(self) -> None:
        self._taken: list[_Tolerant] = []
        for name in _NAMES:
            stream = getattr(sys, name)
            if stream is not None and stream is not getattr(sys, f"__{name}__"):
                continue
            tolerant = _Tolerant(stream)
            self._taken.append(tolerant)
            setattr(sys, name, _text_stream(tolerant, stream))
        if self._taken:
            sys.unraisablehook, threading.excepthook = _unraisable, _in_thread

    def end(self, code: int) -> int:
        """Say on standard error whether something was lost; return the exit code: 2 instead of 0 if so."""
        for name in _NAMES:
            getattr(sys, name).flush()
        lost = next((each.lost for each in self._taken if each.lost is not None), None)
        if lost is None:
            return code
        print(
            "error: expected an output that takes what is printed, got: "
            f"{lost.strerror or lost}; the work is done, only text was lost. Free some space or choose "
            "another place for the output",
            file=sys.stderr,
            flush=True,
        )
        return code or 2


class _Tolerant(io.RawIOBase):
    """Writes to a stream and remembers the first error instead of raising it; None: the stream is closed."""

    def __init__(self, stream: TextIO | None) -> None:
        buffer: Any = None if stream is None else stream.buffer
        self._raw = buffer.raw if isinstance(buffer, io.BufferedWriter) else buffer
        self.lost: OSError | None = None

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return self._raw is not None and bool(self._raw.isatty())

    def fileno(self) -> int:
        if self._raw is None:
            raise io.UnsupportedOperation("fileno")
        return int(self._raw.fileno())

    def write(self, data: Any) -> int:
        size = memoryview(data).nbytes
        try:
            if self._raw is None:
                raise OSError(errno.EBADF, "it is closed")
            while (written := self._raw.write(data)) is None:  # the reader of a non-blocking pipe is slow
                select.select([], [self._raw], [])
        except (OSError, ValueError) as error:  # a ValueError: a library closed it
            self.lost = self.lost or (error if isinstance(error, OSError) else OSError(str(error)))
            return size
        return int(written)


def _text_stream(tolerant: _Tolerant, stream: TextIO | None) -> TextIO:
    """Return a text stream with the settings of the one it replaces; it never fails to encode."""
    return io.TextIOWrapper(
        io.BufferedWriter(tolerant),
        encoding="utf-8" if stream is None else stream.encoding,
        errors="replace",  # an ASCII terminal shows ? for ±, not an error
        line_buffering=isinstance(stream, io.TextIOWrapper) and stream.line_buffering,
        write_through=isinstance(stream, io.TextIOWrapper) and stream.write_through,
    )


def _unraisable(unraisable: Any) -> None:
    """Say nothing of a file that a full disk did not let a finaliser write: its owner met the error, too."""
    if not isinstance(unraisable.exc_value, OSError):
        sys.__unraisablehook__(unraisable)


def _in_thread(arguments: Any) -> None:
    """Say nothing of a disk's error in a thread, such as TensorBoard's: the main thread meets it, too."""
    if not isinstance(arguments.exc_value, OSError):
        threading.__excepthook__(arguments)
