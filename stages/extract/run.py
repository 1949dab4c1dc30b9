"""Stage one: run the frozen backbone once over every picture of the index and commit its feature maps."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor

from devil_pipe.stages.common.files import write_json
from devil_pipe.stages.common.memory import keep_freed_memory
from devil_pipe.stages.common.progress import Bar, bar, log, warn
from devil_pipe.stages.extract import selftest
from devil_pipe.stages.extract.backbones import Backbone, load
from devil_pipe.stages.extract.config import ExtractConfig
from devil_pipe.stages.extract.layers import Taps, choose, layer_specs
from devil_pipe.stages.extract.pictures import Transform
from devil_pipe.stages.prepare.index import index_digest, read_index, read_picture
from devil_pipe.store.errors import InputError
from devil_pipe.store.schema import Identity
from devil_pipe.store.writer import StoreWriter

Decoded = Tensor | str


def run(config: ExtractConfig) -> None:
    """Fill the store: only shards that are not committed are computed, so a stopped run goes on where it was.

    Raises:
        InputError: index, weights or pictures that cannot be used.
    """
    begun = time.monotonic()
    keep_freed_memory()
    index = read_index(config.data_dir / "index.parquet")
    device = pick_device(config.runtime.device)
    backbone = load(config.backbone, config.weights)
    backbone.module.to(device).to(memory_format=torch.channels_last)  # convolutions are faster so
    transform = Transform(config.image_size, backbone.spec.mean, backbone.spec.std)
    log(selftest.check(backbone, transform))
    if backbone.weights.startswith("random:"):
        warn(f"{config.backbone} has random weights: its features mean nothing, and every result will say so")
    taps = choose(backbone.spec, config.layers)
    identity = Identity(
        backbone=config.backbone,
        weights=backbone.weights,
        layers=layer_specs(backbone.module, taps, config.image_size),
        transform=transform.describe(),
        dtype=config.dtype,
        index=index_digest(index),
        rows=index.num_rows,
    )
    writer = StoreWriter(config.out, identity, config.shard_rows)
    missing = writer.missing_shards()
    rows = index.to_pylist()
    with Taps(backbone.module, taps) as read:
        _fill(writer, missing, rows, _Extractor(config, backbone, transform, read, device))
    manifest = writer.finalise()
    if len(manifest.invalid) == identity.rows:
        raise InputError(f"{config.data_dir}: no picture could be used, such as row 0: {manifest.invalid[0]}")
    write_json(config.out / "seconds.json", {"extract": round(time.monotonic() - begun, 1)})
    log(
        f"store {config.out}: {identity.rows - len(manifest.invalid)} of {identity.rows} pictures, "
        f"layers {', '.join(layer.name for layer in identity.layers)}, identity {identity.digest[:12]}"
    )


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


class _Extractor:
    """Computes one shard: pictures are decoded in threads one batch ahead of the backbone."""

    def __init__(
        self, config: ExtractConfig, backbone: Backbone, transform: Transform, read: Taps, device: torch.device
    ) -> None:
        self.runtime, self.data_dir = config.runtime, config.data_dir
        self.backbone, self.transform, self.read, self.device = backbone, transform, read, device

    def shard(
        self, rows: Sequence[dict[str, Any]], start: int, decoders: ThreadPoolExecutor, shown: Bar
    ) -> tuple[dict[str, np.ndarray], dict[int, str]]:
        """Maps float16 [rows, H·W, C] of each layer, and why a row has none."""
        maps: dict[str, np.ndarray] = {}
        invalid: dict[int, str] = {}
        done = 0
        for batch in self._batches(rows, decoders):
            good = [(done + place, item) for place, item in enumerate(batch) if isinstance(item, Tensor)]
            invalid |= {start + done + place: item for place, item in enumerate(batch) if isinstance(item, str)}
            if good:
                with torch.inference_mode():
                    pixels = torch.stack([item for _, item in good])
                    found = self.read(pixels.to(self.device, memory_format=torch.channels_last))
                places = [place for place, _ in good]
                for name, value in found.items():
                    if name not in maps:
                        maps[name] = np.zeros((len(rows), *value.shape[1:]), dtype=np.float16)
                    maps[name][places] = value.to(torch.float16).cpu().numpy()
            done += len(batch)
            shown.advance(len(batch))
        return maps, invalid

    def _batches(self, rows: Sequence[dict[str, Any]], decoders: ThreadPoolExecutor) -> Iterator[list[Decoded]]:
        size = self.runtime.batch_size
        pending: list[list[Future[Decoded]]] = []
        for begin in range(0, len(rows), size):
            pending.append([decoders.submit(self._decode, row) for row in rows[begin : begin + size]])
            if len(pending) > 1:
                yield [item.result() for item in pending.pop(0)]
        for batch in pending:
            yield [item.result() for item in batch]

    def _decode(self, row: dict[str, Any]) -> Decoded:
        if row["status"] != "ok":
            return str(row["reason"])
        return self.transform.decode(read_picture(row, self.data_dir))


def _fill(writer: StoreWriter, missing: Sequence[int], rows: Sequence[dict[str, Any]], extractor: _Extractor) -> None:
    """Compute and commit the missing shards; the write of one overlaps the computing of the next."""
    total = sum(len(writer.ranges[shard]) for shard in missing)
    with (
        bar("extract", total, "pictures") as shown,
        ThreadPoolExecutor(extractor.runtime.decoders) as decoders,
        ThreadPoolExecutor(1) as disk,
    ):
        writing: Future[object] | None = None
        for shard in missing:
            span = writer.ranges[shard]
            maps, invalid = extractor.shard(rows[span.start : span.stop], span.start, decoders, shown)
            for layer in writer.identity.layers:  # a shard in which no picture could be decoded
                empty = (len(span), layer.locations, layer.channels)
                maps.setdefault(layer.name, np.zeros(empty, dtype=np.float16))
            if writing is not None:
                writing.result()
            writing = disk.submit(writer.write_shard, shard, maps, invalid)
        if writing is not None:
            writing.result()
