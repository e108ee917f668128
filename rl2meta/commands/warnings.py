"""What the library warns of, in plain lines of the terminal."""

import logging

import typer


def show_warnings() -> None:
    """Print what the library logs from now on, such as ``warning: ...``."""
    log, handler = logging.getLogger("rl2meta"), _Printing()
    log.handlers = [each for each in log.handlers if not isinstance(each, _Printing)] + [handler]


class _Printing(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        typer.echo(f"{record.levelname.lower()}: {record.getMessage()}")
