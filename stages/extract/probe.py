"""How fast a backbone's features can be made here, found out in some seconds and without writing a file.

The same work as `worker.py`'s on a few pictures: decoding in threads ahead of the backbone, encoding, and in another
thread what a shard takes (compression, checksums, digest). Only the disk is left out.
"""

from __future__ import annotations

import io
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from itertools import cycle, islice
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from devil_pipe.stages.common.memory import keep_freed_memory
from devil_pipe.stages.extract.backbones import Backbone, load
from devil_pipe.stages.extract.config import ExtractConfig
from devil_pipe.stages.extract.encode import encode
from devil_pipe.stages.extract.lanes import Lanes, lanes
from devil_pipe.stages.extract.layers import Taps, choose
from devil_pipe.stages.extract.pictures import Transform
from devil_pipe.stages.extract.worker import AHEAD, pick_device
from devil_pipe.stages.prepare.index import read_picture
from devil_pipe.store.errors import InputError
from devil_pipe.store.layout import CRC_BYTES, encode_shard, index_bytes
from devil_pipe.store.schema import ArraySpec, LayerSpec

PICTURES = 48
SECONDS = {"decode": 1.5, "forward": 2.0, "whole": 4.0}
BATCH_SECONDS = 0.25  # enough batches fit in the time that filling the queue of decoded pictures hardly counts
FEW = 4  # fewer pictures in a forward pass tell nothing of larger ones
PHOTOGRAPHS = ("coffee", "chelsea", "rocket", "astronaut")

Read = Callable[[], bytes]


@dataclass(frozen=True)
class Probe:
    """What was measured, and on what. Rates are pictures a second of one process on this machine."""

    decode: float
    """Reading and decoding alone, all decoder threads."""

    forward: float
    """The backbone alone, on pictures already on the device."""

    whole: float
    """Decode, forward, encode, compress and checksum, overlapping as in `extract`; no disk."""

    device: str
    batch_size: int
    pictures: str
    """Which pictures were decoded."""

    real_pictures: bool
    weights: str
    """`as configured`, or `random` and why."""

    real_weights: bool
    ratios: dict[str, float]
    """Array → stored bytes over uncompressed ones, on the probe's maps; 1 where nothing is compressed."""


def probe(config: ExtractConfig, layers: Sequence[LayerSpec], rows: Sequence[dict[str, Any]]) -> Probe:
    """Measure for about eight seconds, loading not counted.

    Args:
        config: the store that would be made.
        layers: its layers.
        rows: rows of the index to take pictures from; none takes photographs that scikit-image carries.

    Raises:
        InputError: a device that is not there, pictures that are gone, or none that can be decoded.
    """
    keep_freed_memory()
    if config.stored_as.reduce == "units":  # which cost what their pictures cost
        config = config.model_copy(update={"encoding": "float16"})
    device = pick_device(config.runtime.device)
    backbone, why_random = _backbone(config)
    backbone.module.to(device).to(memory_format=torch.channels_last)
    transform = backbone.spec.transform(config.image_size)
    reads = _of_index(config, rows) or _photographs()
    with (
        Taps(backbone.module, choose(backbone.spec, config.layers)) as read,
        ThreadPoolExecutor(config.runtime.decoders) as decoders,
        ThreadPoolExecutor(1) as disk,
        lanes(device, config.runtime.batch_size) as among,
        torch.inference_mode(),
    ):
        bench = _Bench(config, layers, read, among, device, transform, reads, decoders, disk)
        bench.choose_batch()
        decode, forward = bench.decode_alone(), bench.forward_alone()
        whole, ratios = bench.all_together(min(decode, forward))
    return Probe(
        decode=round(decode, 1),
        forward=round(forward, 1),
        whole=round(whole, 1),
        device=str(device),
        batch_size=bench.batch_size,
        pictures=f"{len(reads)} pictures of the index" if rows else f"{len(reads)} crops of scikit-image's photographs",
        real_pictures=bool(rows),
        weights=f"random ({why_random})" if why_random else "as configured",
        real_weights=not why_random,
        ratios=ratios,
    )


class _Bench:
    """The parts of a worker, run alone and together."""

    def __init__(
        self,
        config: ExtractConfig,
        layers: Sequence[LayerSpec],
        read: Taps,
        among: Lanes,
        device: torch.device,
        transform: Transform,
        reads: Sequence[Read],
        decoders: ThreadPoolExecutor,
        disk: ThreadPoolExecutor,
    ) -> None:
        self.config, self.layers, self.read, self.device, self.transform = config, layers, read, device, transform
        self.reads, self.decoders, self.disk, self.among = reads, decoders, disk, among
        self.arrays = [array for layer in layers for array in layer.arrays(config.stored_as)]
        self.batch_size = 1
        self.pixels = torch.stack([item for item in map(self._decode, reads) if isinstance(item, Tensor)] or _nothing())

    def choose_batch(self) -> None:
        """Pictures in one forward pass: the configured number, less where one would take longer than the probe may."""
        few = self._on_device(FEW)
        self._forward(few)
        begun = time.perf_counter()
        self._forward(few)
        rate = len(few) / (time.perf_counter() - begun)
        self.batch_size = min(self.config.runtime.batch_size, max(FEW, int(rate * BATCH_SECONDS)))

    def decode_alone(self) -> float:
        """Pictures a second."""

        def step() -> int:
            return len([item.result() for item in self._submit(self.batch_size, pictures)])

        pictures = cycle(self.reads)
        return _rate(step, SECONDS["decode"])

    def forward_alone(self) -> float:
        """Pictures a second."""
        batch = self._on_device(self.batch_size)

        def step() -> int:
            self._forward(batch)
            return len(batch)

        step()
        return _rate(step, SECONDS["forward"])

    def all_together(self, slowest: float) -> tuple[float, dict[str, float]]:
        """Pictures a second, and how far each array was compressed. `slowest` is the slowest part's rate."""
        batches = max(3, int(slowest * SECONDS["whole"] / self.batch_size))
        sizes: dict[str, int] = dict.fromkeys((array.name for array in self.arrays), 0)
        pictures, waiting, done, writing = cycle(self.reads), deque[list[Future[Tensor | str]]](), 0, None
        begun = time.perf_counter()
        for number in range(batches + AHEAD):
            if number < batches:
                waiting.append(self._submit(self.batch_size, pictures))
            if number < AHEAD or not waiting:
                continue
            good = [item for item in (one.result() for one in waiting.popleft()) if isinstance(item, Tensor)]
            if good:
                arrays = self._encode(self._forward(torch.stack(good)), range(done, done + len(good)))
                if writing is not None:
                    writing.result()
                writing = self.disk.submit(self._seal, arrays, len(good), sizes)
            done += len(good)
        if writing is not None:
            writing.result()
        rate = done / (time.perf_counter() - begun)
        return rate, {array.name: sizes[array.name] / (done * array.chunk_bytes) for array in self.arrays}

    def _submit(self, count: int, pictures: Iterator[Read]) -> list[Future[Tensor | str]]:
        return [self.decoders.submit(self._decode, one) for one in islice(pictures, count)]

    def _decode(self, one: Read) -> Tensor | str:
        return self.transform.decode(one())

    def _on_device(self, count: int) -> Tensor:
        chosen = torch.arange(count) % len(self.pixels)
        return self.pixels[chosen].to(self.device, memory_format=torch.channels_last)

    def _forward(self, pixels: Tensor) -> list[dict[str, Tensor]]:
        """The maps of each lane's piece of a batch."""
        return self.among.each(self._piece, torch.split(pixels, -(-len(pixels) // self.among.count)))

    def _piece(self, pixels: Tensor) -> dict[str, Tensor]:
        """The maps of one piece, in whatever thread: inference mode and autocast are a thread's own."""
        pixels = pixels.to(self.device, memory_format=torch.channels_last, non_blocking=True)
        low = self.config.compute != "float32"
        dtype = getattr(torch, self.config.compute) if low else None
        with (
            torch.inference_mode(),
            torch.autocast(self.device.type, dtype=dtype, enabled=low),
        ):  # both are a thread's own
            found = self.read(pixels)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return found

    def _encode(self, found: list[dict[str, Tensor]], rows: range) -> dict[str, np.ndarray]:
        parts: dict[str, list[np.ndarray]] = {array.name: [] for array in self.arrays}
        begin = rows.start
        for maps in found:
            own = range(begin, begin + len(maps[self.layers[0].name]))
            begin = own.stop
            for layer in self.layers:
                for name, values in encode(maps[layer.name], layer, self.config.stored_as, own).items():
                    parts[name].append(values)
        return {name: np.concatenate(values) for name, values in parts.items()}

    def _seal(self, arrays: dict[str, np.ndarray], count: int, sizes: dict[str, int]) -> None:
        for array in self.arrays:
            values = np.nan_to_num(arrays[array.name]) if array.dtype == "float16" else arrays[array.name]
            sizes[array.name] += len(self._shard(array, values, count)) - index_bytes(count) - count * CRC_BYTES

    def _shard(self, array: ArraySpec, values: np.ndarray, count: int) -> bytearray:
        content = encode_shard(array, self.config.stored_as, values, range(count), count, ())
        sha256(content).hexdigest()
        return content


def _rate(step: Callable[[], int], seconds: float) -> float:
    """Pictures a second of a step, repeated for about so many seconds and twice at least."""
    begun, done, steps = time.perf_counter(), 0, 0
    while (took := time.perf_counter() - begun) < seconds or steps < 2:
        done += step()
        steps += 1
    return done / took


def _backbone(config: ExtractConfig) -> tuple[Backbone, str]:
    """The backbone, with random weights where the configured ones are not at hand, and why; "" for real ones."""
    if config.weights == "random":
        return load(config.backbone, "random"), "as configured"
    try:
        with _offline():
            return load(config.backbone, config.weights), ""
    except InputError as error:
        if config.weights != "auto":
            raise  # a file that was named and cannot be used
        return load(config.backbone, "random"), f"a dry run fetches nothing: {_short(error)}"


def _short(error: InputError) -> str:
    return "its weights are not in the cache" if "cache" in str(error) or "hub" in str(error) else str(error)[:120]


@contextmanager
def _offline() -> Iterator[None]:
    """Keep the model hub's client from the network: it would download, or try in vain for most of a minute."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _of_index(config: ExtractConfig, rows: Sequence[dict[str, Any]]) -> list[Read]:
    return [lambda row=row: read_picture(row, config.data_dir) for row in rows]  # type: ignore[misc]


def _photographs() -> list[Read]:
    """JPEGs of random parts of real photographs, three quarters as high and wide: about 400 × 300 pixels."""
    import skimage.data

    draw = np.random.default_rng(0)
    wholes = [np.asarray(getattr(skimage.data, name)()) for name in PHOTOGRAPHS]
    reads: list[Read] = []
    for whole in islice(cycle(wholes), PICTURES):
        height, width = (3 * side // 4 for side in whole.shape[:2])
        top, left = (int(draw.integers(0, side // 4)) for side in whole.shape[:2])
        buffer = io.BytesIO()
        Image.fromarray(whole[top : top + height, left : left + width]).save(buffer, "JPEG", quality=92)
        reads.append(buffer.getvalue)
    return reads


def _nothing() -> list[Tensor]:
    raise InputError("none of the index's pictures that were tried can be decoded")
