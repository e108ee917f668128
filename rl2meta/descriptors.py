"""Standard descriptors that are closed: no other file may take their place."""

import os


def fill_standard_descriptors() -> None:
    """Open the null device in place of each of standard input, output and error that is closed.

    The system gives what is opened the lowest free descriptor. A file that got 0, 1 or 2 would receive all
    that libraries print, and programs that are started would take it for their own input or output.

    Raises:
        OSError: if no descriptor is left.
    """
    while (opened := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(opened, True)
    os.close(opened)
