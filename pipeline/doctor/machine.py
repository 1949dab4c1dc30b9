"""Processors, memory and open files: what this process may really use, not what the machine has."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from rich.filesize import decimal

from devil_pipe.pipeline.doctor.finding import Finding, Wish, note, ok, problem

LITTLE_MEMORY = 4_000_000_000
"""Bytes. METEOR alone may take 2 GB (its -Xmx2G) beside PyTorch."""

FEW_FILES, TOO_FEW_FILES = 1024, 256
"""Open files: a store keeps a memory map of each shard file it reads, 64 at the very least, and libraries need more."""

_CGROUP = Path("/sys/fs/cgroup")


def processors(wish: Wish) -> Iterator[Finding]:
    """Cores that may be used (affinity and container's limit), and how many threads PyTorch takes of them."""
    from dask.system import cpu_count

    usable, there = cpu_count(), os.cpu_count() or 1
    limited = f" of the machine's {there}" if usable < there else ""
    if wish.quick:
        yield ok("machine.processors", f"{usable} cores{limited}")
        return
    import torch

    threads = torch.get_num_threads()
    what = f"{usable} cores{limited}, {threads} threads for PyTorch"
    if threads > usable:
        advice = "more threads than cores wait for each other"
        yield note("machine.processors", what, f"export OMP_NUM_THREADS={usable}", advice)
    elif threads < usable // 2 and os.environ.get("OMP_NUM_THREADS"):
        yield note("machine.processors", what, "unset OMP_NUM_THREADS", "that setting keeps cores idle")
    else:
        yield ok("machine.processors", what)


def memory(_: Wish) -> Iterator[Finding]:
    """Memory of the machine, or of the container where that has less."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = _container_limit()
    most = min(total, limit) if limit else total
    what = f"{decimal(most)} of memory"
    if most < total:
        what += f" (this container's limit; the machine has {decimal(total)})"
    if (free := _available()) is not None:
        what += f", {decimal(min(free, most))} of it free"
    if most < LITTLE_MEMORY:
        advice = "METEOR may take 2 GB beside PyTorch: give it more, or lower batch_size under runtime: in configs/"
        yield note("machine.memory", what, advice=advice)
    else:
        yield ok("machine.memory", what)


def _container_limit() -> int | None:
    """The least memory limit of the control groups that this process is in; version 2, else version 1."""
    groups = [_CGROUP]
    with suppress(OSError):
        own = Path("/proc/self/cgroup").read_text(encoding="utf-8").strip().rpartition(":")[2].strip("/")
        groups += [_CGROUP / own, *(_CGROUP / own).parents] if own else []
    files = [folder / "memory.max" for folder in groups if folder.is_relative_to(_CGROUP)]
    found = []
    for file in [*files, _CGROUP / "memory" / "memory.limit_in_bytes"]:
        with suppress(OSError, ValueError):  # no such file, or "max"
            found.append(int(file.read_text(encoding="utf-8")))
    return min(found, default=None)


def _available() -> int | None:
    with suppress(OSError):
        for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return None


def files(_: Wish) -> Iterator[Finding]:
    """How many files a process may have open: stores raise the soft limit to the hard one, so that one counts."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY:
        yield ok("machine.files", f"{soft:,} open files, and stores may ask for more")
        return
    what = f"{hard:,} open files at most"
    advice = "raise it where it is set: `docker run --ulimit nofile=65536`, LimitNOFILE= of systemd, or limits.conf"
    if hard < TOO_FEW_FILES:
        yield problem("machine.files", f"{what}, expected {FEW_FILES:,} at least", advice=advice)
    elif hard < FEW_FILES:
        yield note("machine.files", f"{what}: large stores will be read more slowly", advice=advice)
    else:
        yield ok("machine.files", what)
