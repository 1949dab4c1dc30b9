"""How every command ends: what a person can mend is one line and an exit code."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

import typer

# What a person can mend: a full, closed or failing disk, a file that went away, a file where a folder should be.
_PLAIN = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EROFS, errno.EPERM, errno.EMFILE}
_PLAIN |= {errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENAMETOOLONG, errno.ENOTEMPTY, errno.ELOOP, errno.EIO}
_PLAIN |= {errno.ENOENT, errno.ESTALE, errno.ENXIO, errno.ENODEV, errno.EBUSY, errno.ETXTBSY}


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
    except (MemoryError, RuntimeError) as error:
        if not _out_of_memory(error):
            raise
        _fail(f"not enough memory: {_first_line(error)}; smaller batches or pictures, or fewer workers, need less", 1)
    except KeyboardInterrupt:
        _fail("stopped; the same command goes on where it was", 130)


def _out_of_memory(error: MemoryError | RuntimeError) -> bool:
    """Whether it is Python, NumPy or PyTorch that asked for more than there is."""
    named = type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error)
    return isinstance(error, MemoryError) or named


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["a part of the work"])[0][:200]


def _fail(message: str, code: int) -> None:
    from devil_pipe.stages.common.progress import fail

    fail(message)
    raise typer.Exit(code)
