"""How every command ends: what a person can mend is one line and an exit code."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

import typer

# What a person can mend: a full or closed disk, and a file where a folder should be.
_PLAIN = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EROFS, errno.EPERM, errno.EMFILE}
_PLAIN |= {errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENAMETOOLONG}


def example(text: str) -> str:
    """The last line of a command's help."""
    return f"[bold]Example:[/bold] {text}"


@contextmanager
def plainly() -> Iterator[None]:
    """Turn what a person can mend into one line and an exit code; anything else keeps its traceback."""
    from devil_pipe.store.errors import InputError, UsageError

    try:
        yield
    except UsageError as error:
        _fail(str(error), 2)
    except InputError as error:
        _fail(str(error), 1)
    except OSError as error:
        if error.errno not in _PLAIN:
            raise
        _fail(f"{error.filename or 'disk'}: {error.strerror}; what was committed before is kept", 1)
    except KeyboardInterrupt:
        _fail("stopped; the same command goes on where it was", 130)


def _fail(message: str, code: int) -> None:
    from devil_pipe.stages.common.progress import fail

    fail(message)
    raise typer.Exit(code)
