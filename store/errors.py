"""The errors that a person can mend; everything else is a fault of ours and keeps its traceback."""

LONGEST = 4000
"""Characters of a message."""


class InputError(ValueError):
    """A file, row or key is not as expected; the command line prints it without a traceback (exit 1).

    The message names the thing, says what was expected and what was found, and what to do about it. What was found may
    be a whole file of garbage: of a long message both ends are kept.
    """

    def __init__(self, message: str) -> None:
        """`message` as it is to be printed."""
        half = LONGEST // 2
        super().__init__(message if len(message) <= LONGEST else f"{message[:half]} … {message[-half:]}")


class UsageError(InputError):
    """The command or its configuration is wrong, before any work was done (exit 2)."""
