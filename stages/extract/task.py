"""What a Dask worker does for stage one: a task is some whole shards.

The scheduler imports this module to pass tasks on, so nothing heavy is imported before a worker runs one.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from distributed import get_worker
from distributed.core import Status
from pydantic import ValidationError

from devil_pipe.stages.extract.config import ExtractConfig
from devil_pipe.store.errors import InputError
from devil_pipe.store.layout import folder_of
from devil_pipe.store.place import place
from devil_pipe.store.schema import Identity

if TYPE_CHECKING:
    from devil_pipe.stages.extract.worker import Worker

SAY_EVERY = 1.0  # seconds between two messages of progress

_one_at_a_time = threading.Lock()  # a worker of several threads gets several tasks, but has one backbone
_loaded: dict[str, Worker] = {}


@dataclass(frozen=True)
class Job:
    """What all tasks of one command have in common."""

    name: str
    """Of the command; also the topic of its messages."""

    config: str
    identity: str
    """Both as JSON: a worker of another version says so instead of failing somewhere."""

    threads: int
    """Of the backbone on a CPU; 0: as many as the worker or OMP_NUM_THREADS says, whichever is more."""

    spread: bool
    """Whether the workers share out this machine's GPUs by their numbers."""


class Unwanted(Exception):
    """The command was stopped, or another worker was given the task."""


def offers(dask_scheduler: Any) -> list[dict[str, float]]:
    """The resources that each worker was started with; runs in the scheduler."""
    return [dict(worker.resources) for worker in dask_scheduler.workers.values()]


def ready() -> bool:
    """Runs in each worker, if this module can be imported there; a task that cannot be read would end the worker."""
    return True


def make_shards(job: Job, number: int, shards: Sequence[int]) -> dict[str, float]:
    """Compute and commit the shards of one task that are not committed yet; gives the seconds by kind of work.

    Raises:
        InputError: the worker has other weights or another index than the command, or does not see its store; and as
            `Worker.make`.
        OSError: as `Worker.make`.
    """
    import torch

    dask_worker = get_worker()
    with _one_at_a_time:
        torch.set_num_threads(job.threads or max(dask_worker.state.nthreads, torch.get_num_threads()))
        worker = _worker(job, dask_worker)
        todo = [shard for shard in shards if not worker.writer.is_committed(shard)]
        there = sum(len(worker.writer.ranges[shard]) for shard in set(shards) - set(todo))
        return worker.make(todo, _Teller(dask_worker, job.name, number, there)).as_dict()


class _Teller:
    """Tells the command how many pictures of a task are done, and stops the task when nobody wants it any more."""

    def __init__(self, dask_worker: Any, name: str, number: int, done: int) -> None:
        self.dask_worker, self.name, self.number, self.done = dask_worker, name, number, done
        self.said = time.monotonic()

    def __call__(self, count: int) -> None:
        self.done += count
        if not self._wanted():
            raise Unwanted
        if time.monotonic() - self.said > SAY_EVERY:
            self.said = time.monotonic()
            self.dask_worker.log_event(self.name, [self.number, self.done])

    def _wanted(self) -> bool:
        state = self.dask_worker.state.tasks.get((self.name, self.number))
        stopping = self.dask_worker.status in (Status.closing, Status.closed, Status.failed)
        return not stopping and state is not None and state.state != "cancelled"


def _worker(job: Job, dask_worker: Any) -> Worker:
    """This process's backbone, loaded once for all tasks of a configuration. Raises InputError."""
    expected = _read_identity(job)
    if (found := _loaded.get(job.config)) is not None and found.identity == expected:
        return found
    _loaded.clear()  # a backbone of an earlier command, or one whose index or weights have changed since
    import torch

    from devil_pipe.stages.common.progress import Mode, speak
    from devil_pipe.stages.extract.worker import Worker

    speak(Mode.QUIET)
    here = f"worker {dask_worker.address} on {socket.gethostname()}"
    config = ExtractConfig.model_validate_json(job.config)
    if job.spread and config.runtime.device in ("auto", "cuda"):
        device = f"cuda:{int(dask_worker.name) % torch.cuda.device_count()}"
        config = config.model_copy(update={"runtime": config.runtime.model_copy(update={"device": device})})
    store = place(config.location)
    if store.sizes([f"{folder_of(expected)}/zarr.json"]) == [None]:
        raise InputError(
            f"{here}: expected the store that the command made in {store.show(folder_of(expected))}, found none; "
            "its folder must be one and the same on all machines (docs/cluster.md)"
        )
    try:
        worker = Worker(config)
    except InputError as error:
        raise InputError(f"{here}: {error}") from None
    if worker.identity != expected:
        lines = "; ".join(expected.differences(worker.identity))
        raise InputError(f"{here}: would make other features than the command (the command's against its own): {lines}")
    _loaded[job.config] = worker
    return worker


def _read_identity(job: Job) -> Identity:
    """The command's identity. Raises InputError where its version of devil-pipe is another."""
    try:
        ExtractConfig.model_validate_json(job.config)
        return Identity.model_validate_json(job.identity)
    except ValidationError as error:
        raise InputError(
            f"a worker on {socket.gethostname()} does not understand the command ({error.errors()[0]['msg']}): "
            "expected the same version of devil-pipe in the environments of the workers and the command"
        ) from None
