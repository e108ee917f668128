"""The one kind of error that is the user's to mend."""


class UserError(Exception):
    """A mistake in what the user gave: the command line shows the message alone and exits with code 2.

    The message says what was expected, what came, and what to do.
    """
