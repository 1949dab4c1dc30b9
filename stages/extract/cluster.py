"""Stage one in several processes: Dask workers on this machine, or those of a cluster's scheduler (docs/cluster.md).

A task owns whole shards, so no shard has two writers. What a worker does with a task is in `task.py`.
"""

from __future__ import annotations

import logging
import math
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import dask
import torch
from distributed import Client, Future, KilledWorker, LocalCluster
from distributed.comm import CommClosedError
from distributed.utils import silence_logging_cmgr

from devil_pipe.stages.common.progress import log, warn
from devil_pipe.stages.extract.config import ExtractConfig
from devil_pipe.stages.extract.task import Job, make_shards, offers, ready
from devil_pipe.stages.extract.worker import Times, Worker
from devil_pipe.store.errors import InputError
from devil_pipe.store.writer import StoreWriter

CONNECT = 10.0  # seconds that a scheduler may take to answer
PATIENCE = 60.0  # seconds without any worker, or without a committed shard coming into sight
POLL = 2.0
TASK_SHARDS = 4  # of these the writing of one overlaps with computing the next
GOES_ON = "what was committed before is kept, and the same command goes on there"
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_LOCAL_SETTINGS = {"distributed.worker.profile.enabled": False}
# What our own workers run first. Ctrl-C reaches every process of the terminal: the command alone is to act on it, and
# closes its workers. A worker that closes ends at once: Python takes seconds to tear PyTorch down, for nothing.
_PRELOAD = """
import os, signal
signal.signal(signal.SIGINT, signal.SIG_IGN)
def dask_teardown(worker):
    os._exit(0)
"""


def make(worker: Worker, missing: Sequence[int], advance: Callable[[int], None] = lambda _: None) -> Times:
    """Have these shards computed and committed by Dask workers; `advance` is told how many pictures are done.

    The workers are those of `config.runtime.scheduler`, or `config.runtime.workers` processes started for this.

    Returns:
        Times summed over the workers.

    Raises:
        InputError: no scheduler or no worker to be had, a scheduler that went away, workers with other weights or
            another index or that do not see this store's folder; and what a worker raises (see `Worker.make`).
        OSError: as a worker raised it; shards committed before stay.
    """
    if not missing:
        return Times()
    config = _absolute(worker.config)
    with _quiet(), _scheduler(config) if config.runtime.scheduler else _processes(config) as client:
        offered = _offered(client, config)
        gpus = any("GPU" in resources for resources in offered)
        tasks = split(missing, len(offered))
        sizes = [sum(len(worker.writer.ranges[shard]) for shard in shards) for shards in tasks]
        progress = _Progress(sizes, advance)
        job = Job(
            name=f"devil-pipe-{uuid.uuid4().hex}",
            config=config.model_dump_json(),
            identity=worker.identity.model_dump_json(),
            threads=0 if config.runtime.scheduler else _threads(len(offered)),
            spread=gpus and not config.runtime.scheduler,
        )
        client.subscribe_topic(job.name, progress.heard)
        keys = [(job.name, number) for number in range(len(tasks))]
        resources = {"GPU": 1} if gpus else None
        futures = client.map(
            make_shards, [job] * len(tasks), range(len(tasks)), tasks, key=keys, pure=False, resources=resources
        )
        try:
            times = _collect(client, futures, progress, config)
        except BaseException:
            if client.status == "running":
                client.cancel(futures)  # tasks that run notice it after a batch
            raise
    _see(worker.writer, missing)
    return times


def split(shards: Sequence[int], workers: int) -> list[list[int]]:
    """Tasks of some neighbouring shards each: several, so that writing overlaps, but at least four for each worker."""
    size = min(TASK_SHARDS, math.ceil(len(shards) / (4 * workers)))
    return [list(shards[begin : begin + size]) for begin in range(0, len(shards), size)]


class _Progress:
    """Counts each picture once, though a task may be begun again by another worker."""

    def __init__(self, sizes: Sequence[int], advance: Callable[[int], None]) -> None:
        self.sizes, self.advance = sizes, advance
        self.done = [0] * len(sizes)
        self.lock = threading.Lock()

    def heard(self, event: tuple[float, Sequence[int]]) -> None:
        """A worker's message: the number of a task, and how many of its pictures are done. Called by Dask's thread."""
        number, done = event[1]
        self.reach(number, done)

    def reach(self, number: int, done: int) -> None:
        """So many pictures of a task are done."""
        with self.lock:
            more = done - self.done[number]
            if more > 0:
                self.done[number] = done
                self.advance(more)


def _collect(client: Client, futures: Sequence[Future], progress: _Progress, config: ExtractConfig) -> Times:
    """Wait for every task; the first error ends it."""
    times = Times()
    left = {future.key: number for number, future in enumerate(futures)}
    ready: SimpleQueue[Future] = SimpleQueue()
    for future in futures:
        future.add_done_callback(ready.put)
    watch = _Watch(client, config)
    while left:
        watch.look()
        try:
            future = ready.get(timeout=POLL)
            spent = _result(future, config)
        except (Empty, TimeoutError):
            continue
        if spent is None:  # its worker was lost with the result: another makes it again, and finds the shards committed
            future.add_done_callback(ready.put)
            continue
        for kind, seconds in spent.items():
            times.add(kind, seconds)
        number = left.pop(future.key)
        progress.reach(number, progress.sizes[number])
    return times


def _result(future: Future, config: ExtractConfig) -> dict[str, float] | None:
    """What a task returned; None where it has to be waited for again. Raises what the task raised."""
    if future.status == "cancelled":
        raise _lost(config)
    if future.status not in ("finished", "error"):
        return None
    try:
        if future.status == "error":
            error = future.exception(timeout=CONNECT)
            if isinstance(error, KilledWorker):
                raise InputError(
                    f"the workers of one task died {error.allowed_failures + 1} times, "
                    f"lastly {error.last_worker.address}: too little memory, most likely "
                    f"(smaller runtime.batch_size, fewer workers); {GOES_ON}"
                )
        found: dict[str, float] = future.result(timeout=CONNECT)
    except TimeoutError:
        return None
    except CommClosedError:  # a worker or the scheduler died while it answered: `_Watch` finds out which
        time.sleep(POLL / 10)
        return None
    return found


class _Watch:
    """Notices that the scheduler or every worker is gone."""

    def __init__(self, client: Client, config: ExtractConfig) -> None:
        self.client, self.config = client, config
        self.looked = self.seen = time.monotonic()
        self.known: set[str] = set()

    def look(self) -> None:
        """Look, if the last time was some seconds ago. Raises InputError."""
        now = time.monotonic()
        if now - self.looked < POLL:
            return
        self.looked = now
        try:
            found = set(self.client.nthreads()) if self.client.status == "running" else None
        except (OSError, ValueError):  # the connection broke at this moment
            found = None
        if found is None:
            raise _lost(self.config)
        for address in sorted(self.known - found):
            log(f"worker {address} is gone; others take over what it had not committed")
        self.known = found
        if found:
            self.seen = now
        elif now - self.seen > PATIENCE:
            raise InputError(f"no worker is left since {PATIENCE:.0f} s; {GOES_ON}")


@contextmanager
def _scheduler(config: ExtractConfig) -> Iterator[Client]:
    """A client of the scheduler at the configuration's address."""
    address = config.runtime.scheduler
    try:
        client = Client(address, timeout=CONNECT, set_as_default=False)
    except (OSError, ValueError) as error:
        what = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"scheduler {address}: expected a Dask scheduler there, none answers ({what}); "
            "`dask scheduler` starts one and says its address (docs/cluster.md)"
        ) from error
    with client:
        yield client


@contextmanager
def _processes(config: ExtractConfig) -> Iterator[Client]:
    """A client of as many worker processes on this machine as the configuration says; they end with the block."""
    gpus = _gpus(config)
    count = min(config.runtime.workers, gpus or config.runtime.workers)
    if count < config.runtime.workers:
        warn(f"{config.runtime.workers} workers for {gpus} GPUs: one worker a GPU, so {count} are started")
    # One arena: else a task's thread gives its memory back after every batch (`keep_freed_memory` reaches but the main
    # arena), which took a third of the processor's time.
    settings = {"MALLOC_ARENA_MAX": "1", **{name: str(_threads(count)) for name in _THREADS}}
    with ExitStack() as stack:
        stack.enter_context(_environment(settings))
        stack.enter_context(dask.config.set(_LOCAL_SETTINGS))
        try:
            cluster = LocalCluster(
                n_workers=count,
                threads_per_worker=1,
                processes=True,
                scheduler_kwargs={"dashboard": False, "dashboard_address": "127.0.0.1:0"},
                memory_limit=0,
                silence_logs=logging.CRITICAL,
                resources={"GPU": 1} if gpus else {},
                preload=[_PRELOAD],
            )
            client = stack.enter_context(Client(stack.enter_context(cluster), timeout=PATIENCE, set_as_default=False))
        except (RuntimeError, OSError) as error:
            raise InputError(f"runtime.workers: {count} processes could not be started here: {error}") from error
        yield client


def _offered(client: Client, config: ExtractConfig) -> list[dict[str, float]]:
    """The resources of each worker, once there is one. Raises InputError."""
    where = config.runtime.scheduler or "this machine"
    try:
        client.wait_for_workers(1 if config.runtime.scheduler else config.runtime.workers, timeout=PATIENCE)
        found: list[dict[str, float]] = client.run_on_scheduler(offers)
        answers: dict[str, Any] = client.run(ready, on_error="return")
    except TimeoutError:
        raise InputError(
            f"scheduler {where}: expected a worker, found none in {PATIENCE:.0f} s; "
            "`dask worker ADDRESS` starts one (docs/cluster.md)"
        ) from None
    except ImportError as error:
        raise InputError(_not_installed(f"the scheduler {where}", error)) from error
    except (OSError, ValueError) as error:
        raise _lost(config) from error
    for worker, answer in answers.items():
        if isinstance(answer, Exception) and not isinstance(answer, OSError):  # that would be one that has just gone
            raise InputError(_not_installed(f"worker {worker}", answer))
    log(f"{len(found)} worker{'s' * (len(found) != 1)} of {where}")
    return found


def _see(writer: StoreWriter, shards: Sequence[int]) -> None:
    """Wait until committed shards come into sight: network file systems show new files late. Raises InputError."""
    deadline = time.monotonic() + PATIENCE
    while unseen := sorted(set(writer.missing_shards()) & set(shards)):
        if time.monotonic() > deadline:
            raise InputError(
                f"{writer.place.show()}: {len(unseen)} of {len(shards)} shards that workers committed cannot be seen "
                f"from here, such as {unseen[0]}; expected one folder on all machines (docs/cluster.md)"
            )
        time.sleep(POLL)


def _absolute(config: ExtractConfig) -> ExtractConfig:
    """The configuration with absolute paths: a worker may run in another folder."""
    changed: dict[str, Any] = {"data_dir": config.data_dir.absolute(), "out": config.out.absolute()}
    if config.weights not in ("auto", "random"):
        changed["weights"] = str(Path(config.weights).absolute())
    if config.place and "://" not in config.place:
        changed["place"] = str(Path(config.place).absolute())
    return config.model_copy(update=changed)


def _gpus(config: ExtractConfig) -> int:
    """How many GPUs worker processes of this machine are spread over; 0: they compute on its processors."""
    device = config.runtime.device
    if device in ("auto", "cuda"):
        return torch.cuda.device_count() if torch.cuda.is_available() else 0
    return 1 if device.startswith("cuda") else 0


def _threads(workers: int) -> int:
    """Threads of each worker's backbone: those that this process would have used, shared out."""
    return max(1, torch.get_num_threads() // workers)


def _lost(config: ExtractConfig) -> InputError:
    where = config.runtime.scheduler or "of this machine"
    return InputError(f"scheduler {where}: the connection was lost; {GOES_ON}")


def _not_installed(who: str, error: Exception) -> str:
    return (
        f"{who} cannot import what this command sends it ({error}): expected the same devil-pipe in the environments "
        "of the scheduler, the workers and this command"
    )


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """Variables that processes started meanwhile inherit. Dask sets some more, which are taken back as well."""
    before = dict(os.environ)
    os.environ.update(values)
    try:
        yield
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Dask's own log lines back: each error that they tell of is said once, by us."""
    with ExitStack() as stack:
        for name in ("distributed", "tornado.application"):
            stack.enter_context(silence_logging_cmgr(logging.CRITICAL, root=name))
        yield
