"""Keeping freed memory in the process: on Linux that is worth a factor of two to three in CPU inference."""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def keep_freed_memory() -> None:
    """Ask glibc to reuse large freed blocks instead of giving them back to the kernel after every batch.

    PyTorch's CPU allocator has no cache: each layer's output is mapped, zeroed page by page and unmapped again, which
    took more time than the arithmetic (benchmarks/allocator.py). Elsewhere than on glibc this does nothing.
    """
    if not sys.platform.startswith("linux"):
        return
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):  # another C library, such as musl
        return
    for option in (_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD):
        mallopt(option, 1 << 30)
