"""The error for mistakes that the user can correct."""


class UserError(Exception):
    """A mistake in the user's input; the command line shows only the message and exits with code 2.

    The message says what was expected, what the program got, and what to do.
    """
