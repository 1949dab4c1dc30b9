"""Keeping freed memory in the process: on Linux that is worth a factor of two to three in CPU inference."""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8


def keep_freed_memory(*, of_all_threads: bool = False) -> None:
    """Ask glibc to reuse large freed blocks instead of giving them back to the kernel after every batch.

    PyTorch's CPU allocator has no cache: each layer's output is mapped, zeroed page by page and unmapped again, which
    took more time than the arithmetic (benchmarks/allocator.py). Elsewhere than on glibc this does nothing.

    Args:
        of_all_threads: have one heap for all threads. Otherwise threads beside the first have heaps of their own, which
            give every block of 64 MiB and more back. It has to come before the process starts a second thread, which
            importing NumPy or PyTorch may do.
    """
    if not sys.platform.startswith("linux"):
        return
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):  # another C library, such as musl
        return
    for option in (_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD):
        mallopt(option, 1 << 30)
    if of_all_threads:
        mallopt(_M_ARENA_MAX, 1)
