"""One worker of stage one: a loaded backbone that makes whole shards, one after another.

Four kinds of work overlap: pictures are read and decoded in threads ahead of the backbone, the backbone runs in the
caller's thread, and a finished shard is compressed, written and committed in another while the next one is computed.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from devil_pipe.stages.common.memory import keep_freed_memory
from devil_pipe.stages.common.progress import log
from devil_pipe.stages.extract import selftest
from devil_pipe.stages.extract.backbones import load
from devil_pipe.stages.extract.config import ExtractConfig
from devil_pipe.stages.extract.encode import encode
from devil_pipe.stages.extract.lanes import Lanes, lanes
from devil_pipe.stages.extract.layers import Taps, choose, layer_specs
from devil_pipe.stages.extract.units import Unit, decode_unit, encode_units, exemplars_a_row
from devil_pipe.stages.prepare.index import index_digest, read_index, read_picture
from devil_pipe.stages.prepare.milan.units import is_unit
from devil_pipe.store.errors import InputError
from devil_pipe.store.layout import DTYPES
from devil_pipe.store.schema import Identity
from devil_pipe.store.writer import StoreWriter

Item = Tensor | Unit
Decoded = Item | str
AHEAD = 3  # batches that are decoded before the backbone asks for them
KINDS = ("decode", "start", "wait", "forward", "encode", "hold", "write", "total")


@dataclass
class Times:
    """Seconds that each kind of work took, summed over threads and processes.

    `start`, `wait`, `forward`, `encode` and `hold` are the backbone's thread, one after another, and make up `total`
    but for a rest; `decode` and `write` go on beside it in threads of their own.
    """

    decode: float = 0.0
    start: float = 0.0
    """Until the first pictures were decoded."""
    wait: float = 0.0
    """Without a decoded picture, later on."""
    forward: float = 0.0
    encode: float = 0.0
    hold: float = 0.0
    """With a finished shard while the one before is still being written."""
    write: float = 0.0
    total: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    @contextmanager
    def count(self, kind: str) -> Iterator[None]:
        """Add what the block takes to one kind. Several threads may count at once."""
        begun = time.perf_counter()
        try:
            yield
        finally:
            self.add(kind, time.perf_counter() - begun)

    def add(self, kind: str, seconds: float) -> None:
        """Add seconds to one kind."""
        with self._lock:
            setattr(self, kind, getattr(self, kind) + seconds)

    def as_dict(self) -> dict[str, float]:
        """The seconds by kind."""
        return {kind: getattr(self, kind) for kind in KINDS}


class Worker:
    """A backbone with its weights, the pictures' index, and the store to write."""

    def __init__(self, config: ExtractConfig, *, check: bool = True) -> None:
        """Load all of it. With `check` the backbone first names known pictures (the self-test).

        Raises:
            InputError: index, weights or device that cannot be used.
        """
        keep_freed_memory()
        self.config, self.runtime = config, config.runtime
        self.index: pa.Table = read_index(config.data_dir / "index.parquet")
        self.exemplars = exemplars_a_row(self.index, config)
        self.device = pick_device(config.runtime.device)
        self.backbone = load(config.backbone, config.weights)
        self.backbone.module.to(self.device).to(memory_format=torch.channels_last)  # convolutions are faster so
        self.transform = self.backbone.spec.transform(config.image_size)
        if check:
            log(selftest.check(self.backbone, self.transform))
        self.taps = choose(self.backbone.spec, config.layers)
        if check and config.compute != "float32":
            log(selftest.precision(self.backbone, self.transform, self.taps, config.compute))
        self.identity = Identity(
            backbone=config.backbone,
            weights=self.backbone.weights,
            layers=layer_specs(self.backbone.module, self.taps, self.transform.size),
            transform=self.transform.describe(),
            dtype=config.stored_as.values,
            encoding=config.encoding,
            compute=config.compute,
            index=index_digest(self.index),
            rows=self.index.num_rows,
        )
        self.writer = StoreWriter(config.location, self.identity, config.shard_rows)

    def make(self, shards: Sequence[int], advance: Callable[[int], None] = lambda _: None) -> Times:
        """Compute and commit these shards; `advance` is told how many pictures were computed.

        A shard that has its marker is not written again (see `StoreWriter.forget_damaged`). Not to be called
        from two threads at once: the backbone is one.

        Raises:
            InputError: a map that is NaN or infinite, or a picture's file that is gone.
            OSError: the disk is full or failing; shards committed before stay.
        """
        times = Times()
        begun = time.perf_counter()
        with (
            Taps(self.backbone.module, self.taps) as read,
            ThreadPoolExecutor(self.runtime.decoders) as decoders,
            ThreadPoolExecutor(1) as disk,
            lanes(self.device, self.runtime.batch_size) as among,
        ):
            writing: Future[None] | None = None
            batches = self._decoded(shards, decoders, times)
            try:
                for shard in shards:
                    arrays, invalid = self._compute(shard, batches, read, among, times, advance)
                    if writing is not None:
                        with times.count("hold"):
                            writing.result()
                    writing = disk.submit(self._write, shard, arrays, invalid, times)
                if writing is not None:
                    with times.count("hold"):
                        writing.result()
            finally:
                batches.close()
        times.total = time.perf_counter() - begun
        return times

    def _write(self, shard: int, arrays: dict[str, np.ndarray], invalid: dict[int, str], times: Times) -> None:
        with times.count("write"):
            if not self.writer.is_committed(shard):  # else this process was given up for lost, and another took over
                self.writer.write_shard(shard, arrays, invalid)

    def _compute(
        self,
        shard: int,
        batches: Iterator[list[Decoded]],
        read: Taps,
        among: Lanes,
        times: Times,
        advance: Callable[[int], None],
    ) -> tuple[dict[str, np.ndarray], dict[int, str]]:
        """The arrays of a shard [rows, places, C], and why a row has no features."""
        rows = self.writer.ranges[shard]
        arrays = {
            array.name: np.zeros((len(rows), *array.shape), dtype=DTYPES[array.dtype]) for array in self.identity.arrays
        }
        invalid: dict[int, str] = {}
        for part in self._parts(rows):
            with times.count("wait" if times.forward else "start"):
                batch = next(batches)
            good = [(row, item) for row, item in zip(part, batch, strict=True) if not isinstance(item, str)]
            invalid |= {row: item for row, item in zip(part, batch, strict=True) if isinstance(item, str)}
            for numbers, made in self._maps(good, read, among, times):
                places = [row - rows.start for row in numbers]
                for name, values in made.items():
                    arrays[name][places] = values
            advance(len(batch))
        return arrays, invalid

    def _maps(
        self, good: Sequence[tuple[int, Item]], read: Taps, among: Lanes, times: Times
    ) -> Iterator[tuple[list[int], dict[str, np.ndarray]]]:
        """Pieces of a batch: their rows, and the arrays of these."""
        pieces = among.split(good)
        with times.count("forward"):
            found = among.each(lambda piece: self._forward([item for _, item in piece], read), pieces)
        for piece, maps in zip(pieces, found, strict=True):
            numbers = [row for row, _ in piece]
            units = [item for _, item in piece if isinstance(item, Unit)]
            made: dict[str, np.ndarray] = {}
            with torch.inference_mode(), times.count("encode"):
                for layer in self.identity.layers:
                    if units:
                        made |= encode_units(maps[layer.name], layer, units)
                    else:
                        made |= encode(maps[layer.name], layer, self.identity.stored_as, numbers)
            yield numbers, made

    def _forward(self, items: Sequence[Item], read: Taps) -> dict[str, Tensor]:
        with torch.inference_mode(), self._precision():
            pixels = torch.cat([item.pixels if isinstance(item, Unit) else item[None] for item in items])
            found = read(pixels.to(self.device, memory_format=torch.channels_last, non_blocking=True))
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)  # else the wait is counted where the result is first touched
        return found

    def _precision(self) -> torch.autocast:
        """Autocast to the type of the configuration; float32 is left as it is."""
        if self.config.compute == "float32":
            return torch.autocast(self.device.type, enabled=False)
        return torch.autocast(self.device.type, dtype=getattr(torch, self.config.compute))

    def _parts(self, rows: range) -> Iterator[range]:
        step = max(1, self.runtime.batch_size // self.exemplars)
        for begin in range(rows.start, rows.stop, step):
            yield range(begin, min(begin + step, rows.stop))

    def _decoded(
        self, shards: Iterable[int], decoders: ThreadPoolExecutor, times: Times
    ) -> Generator[list[Decoded], None, None]:
        """The decoded batches of all shards in order, some batches ahead of the one that is asked for."""
        waiting: deque[list[Future[Decoded]]] = deque()

        def first() -> list[Decoded]:
            batch = [item.result() for item in waiting[0]]
            waiting.popleft()  # no earlier: after an error its other pictures are to be cancelled too
            return batch

        try:
            for shard in shards:
                for part in self._parts(self.writer.ranges[shard]):
                    rows = self.index.slice(part.start, len(part)).to_pylist()
                    waiting.append([decoders.submit(self._decode, row, times) for row in rows])
                    if len(waiting) > AHEAD:
                        yield first()
            while waiting:
                yield first()
        finally:
            for batch in waiting:  # after an error nobody wants them
                for item in batch:
                    item.cancel()

    def _decode(self, row: dict[str, object], times: Times) -> Decoded:
        if row["status"] != "ok":
            return str(row["reason"])
        with times.count("decode"):
            if is_unit(row):
                return decode_unit(row, self.config.data_dir, self.transform, self.identity.layers)
            return self.transform.decode(read_picture(row, self.config.data_dir))


def pick_device(name: str) -> torch.device:
    """The device of that name; "auto" takes a GPU where one is. Raises InputError for a device that is not there."""
    if name == "auto":
        kind = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        return torch.device(kind)
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device {name!r}: cannot be used here: {str(error).splitlines()[0]}") from error
    return device
