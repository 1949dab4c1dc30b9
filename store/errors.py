"""The errors that a person can mend; everything else is a fault of ours and keeps its traceback."""


class InputError(ValueError):
    """A file, row or key is not as expected; the command line prints it without a traceback (exit 1).

    The message names the thing, says what was expected and what was found, and what to do about it.
    """


class UsageError(InputError):
    """The command or its configuration is wrong, before any work was done (exit 2)."""
