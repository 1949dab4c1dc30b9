"""What a store will take before anything is written: bytes of each layer, shards, files, and hours on this machine."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow.compute as pc

from devil_pipe.stages.common.progress import log
from devil_pipe.stages.extract.backbones import spec
from devil_pipe.stages.extract.config import ExtractConfig
from devil_pipe.stages.extract.layers import planned_layers
from devil_pipe.stages.extract.probe import PICTURES, Probe, probe
from devil_pipe.stages.extract.units import MILANNOTATIONS, exemplars_a_row
from devil_pipe.stages.prepare.index import OK, read_index
from devil_pipe.store.errors import InputError
from devil_pipe.store.layout import CRC_BYTES, index_bytes
from devil_pipe.store.schema import Encoding, LayerSpec


@dataclass(frozen=True)
class LayerSize:
    """What one layer takes: its values, and the bounds of quantised ones."""

    grid: tuple[int, int]
    channels: int
    stored: tuple[int, int]
    """Places (locations or groups) and channels of a stored row."""

    dtype: str
    bytes_per_picture: float
    """With its checksums, without its share of the shards' indices."""

    bytes: int
    """Of all the layer's shard files."""


@dataclass(frozen=True)
class Estimate:
    """A dry run's answer; `text` says it."""

    store: str
    backbone: str
    encoding: str
    compute: str
    rows: int
    usable_rows: int
    shard_rows: int
    shards: int
    files: int
    layers: dict[str, LayerSize]
    bytes_are: Literal["exact", "estimated", "at most"]
    probe: Probe
    free_bytes: int | None
    warnings: tuple[str, ...]
    exemplars: int
    """Pictures that a row stands for; 1 but for units."""

    @property
    def bytes(self) -> int:
        """Of all shard files."""
        return sum(layer.bytes for layer in self.layers.values())

    @property
    def hours(self) -> float:
        """One process on this machine, at the probe's rate."""
        return self.usable_rows * self.exemplars / self.probe.whole / 3600

    def text(self, as_json: bool) -> str:
        """The answer as a table for a person, or as JSON with sorted keys.

        JSON: `store`, `backbone`, `encoding`, `compute`; `rows`, and `usable_rows` of them with a picture; `shards` of
        `shard_rows` pictures; `files` (shard files and markers; metadata adds a dozen); `layers` (name → `grid`,
        `channels`, `stored` [places, channels], `dtype`, `bytes_per_picture`, `bytes`); `bytes_per_picture`, `bytes`
        (all layers) and `bytes_are` ("exact"; "estimated" from the probe's maps; "at most" where compression cannot be
        foreseen); `hours` (one process, this machine); `free_bytes` (of the store's disk; null for a URL); `probe`
        (`decode`, `forward`, `whole` in pictures a second, `device`, `batch_size`, `pictures`, `real_pictures`,
        `weights`, `real_weights`, `ratios` by array); `warnings`; `exemplars` (pictures that a row stands for).
        """
        if not as_json:
            return "\n".join([*self._table(), *self._lines(), *(f"warning: {line}" for line in self.warnings)])
        values: dict[str, Any] = dataclasses.asdict(self)
        per_picture = round(sum(layer.bytes_per_picture for layer in self.layers.values()), 1)
        values |= {"bytes": self.bytes, "bytes_per_picture": per_picture, "hours": round(self.hours, 2)}
        return json.dumps(values, indent=2, sort_keys=True, ensure_ascii=False)

    def _table(self) -> list[str]:
        rows = [("layer", "grid", "channels", "stored", "a picture", "in all")]
        for name, layer in self.layers.items():
            stored = f"{layer.stored[0]} × {layer.stored[1]} {layer.dtype}"
            cells = (name, "×".join(map(str, layer.grid)), str(layer.channels), stored)
            rows.append((*cells, size(layer.bytes_per_picture), size(layer.bytes)))
        per_picture = sum(layer.bytes_per_picture for layer in self.layers.values())
        rows.append(("in all", "", "", f"({self.bytes_are})", size(per_picture), size(self.bytes)))
        return [f"{self.store}: {self.backbone}, {self.encoding}, computed in {self.compute}", *columns(rows)]

    def _lines(self) -> list[str]:
        told = self.probe
        usable = "" if self.usable_rows == self.rows else f", {self.usable_rows:,} of them usable"
        hours = f"{self.hours:,.{2 if self.hours < 10 else 0}f}"
        disk = "not known (a URL)" if self.free_bytes is None else size(self.free_bytes)
        return [
            f"rows: {self.rows:,}{usable}",
            f"shards: {self.shards:,} of {self.shard_rows} pictures; {self.files:,} files",
            f"free on the store's disk: {disk}",
            f"hours: {hours} for one process on this machine, at {told.whole:,.1f} pictures/s "
            "(decode, forward, encode and checksums overlapping; without the disk)",
            f"  decode alone {told.decode:,.1f} pictures/s, forward alone {told.forward:,.1f} pictures/s",
            f"  measured with batches of {told.batch_size} on {told.device}; {told.pictures}; weights {told.weights}",
        ]


def estimate(config: ExtractConfig, rows: int | None = None) -> Estimate:
    """Say what a store would take. Writes nothing and fetches nothing; takes about ten seconds.

    Args:
        config: the store.
        rows: as if there were so many pictures; None counts those of the index.

    Raises:
        UsageError: an unknown backbone or layer.
        InputError: neither an index nor `rows`; a device, pictures or weights that cannot be used.
    """
    layers = planned_layers(spec(config.backbone), config.layers, config.image_size)
    count, usable, chosen, exemplars = _pictures(config, rows)
    log("measuring for about ten seconds")
    measured = probe(config, layers, chosen)
    foreseen = not config.stored_as.compressed or measured.real_weights
    ratios = measured.ratios if foreseen else {}
    shard_rows = config.shard_rows or config.stored_as.shard_rows
    shards = -(-count // shard_rows)
    found = Estimate(
        store=config.location,
        backbone=config.backbone,
        encoding=config.encoding,
        compute=config.compute,
        rows=count,
        usable_rows=usable,
        shard_rows=shard_rows,
        shards=shards,
        files=shards * (1 + sum(len(layer.arrays(config.stored_as)) for layer in layers)),
        layers=layer_sizes(layers, config.stored_as, usable, shards, shard_rows, ratios),
        bytes_are="exact" if not config.stored_as.compressed else "estimated" if foreseen else "at most",
        probe=measured,
        free_bytes=None if "://" in config.location else _free(Path(config.location)),
        warnings=(),
        exemplars=exemplars,
    )
    return dataclasses.replace(found, warnings=tuple(_warnings(config, found)))


def layer_sizes(
    layers: Sequence[LayerSpec],
    encoding: Encoding,
    rows: int,
    shards: int,
    shard_rows: int,
    ratios: Mapping[str, float],
) -> dict[str, LayerSize]:
    """What each layer takes, as SPEC.md lays a shard out.

    Args:
        layers: the store's layers.
        encoding: of the store.
        rows: rows with features.
        shards: shard files of each array.
        shard_rows: rows of a full shard, which its index names all of.
        ratios: array → stored bytes over uncompressed ones; 1 where an array is not named.
    """
    found = {}
    for layer in layers:
        arrays = layer.arrays(encoding)
        row = sum(array.chunk_bytes * ratios.get(array.name, 1.0) + CRC_BYTES for array in arrays)
        found[layer.name] = LayerSize(
            grid=(layer.height, layer.width),
            channels=layer.channels,
            stored=arrays[0].shape,
            dtype=arrays[0].dtype,
            bytes_per_picture=round(row, 1),
            bytes=round(rows * row) + shards * index_bytes(shard_rows) * len(arrays),
        )
    return found


def size(count: float) -> str:
    """Bytes in a unit that suits, powers of a thousand."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:,.0f} B" if unit == "B" else f"{count:,.2f} {unit}"
        count /= 1000
    return f"{count:,.2f} TB"


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """A plain table: the first columns to the left, the last two, which are numbers, to the right."""
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    last = len(widths) - 2
    padded = [
        [cell.ljust(width) if place < last else cell.rjust(width) for place, (cell, width) in enumerate(pairs)]
        for pairs in (list(zip(row, widths, strict=True)) for row in rows)
    ]
    return ["  ".join(cells).rstrip() for cells in padded]


def _pictures(config: ExtractConfig, rows: int | None) -> tuple[int, int, list[dict[str, Any]], int]:
    """Rows of the store, rows with a picture, some of them to measure with, and the pictures that a row stands for."""
    path = config.data_dir / "index.parquet"
    if not path.is_file():
        if rows is None:
            raise InputError(
                f"{path}: no such file, so nobody knows how many pictures there are; "
                f"run `devil-pipe prepare {config.data}`, or give --rows N"
            )
        return rows, rows, [], MILANNOTATIONS if config.stored_as.reduce == "units" else 1
    index = read_index(path)
    exemplars = exemplars_a_row(index, config)
    good = index.filter(pc.equal(index["status"], OK))
    places = range(0, good.num_rows, max(1, good.num_rows // PICTURES))[:PICTURES]  # from its beginning to its end
    some = good.take(list(places)).to_pylist() if exemplars == 1 else []  # else photographs are as good
    return (index.num_rows, good.num_rows, some, exemplars) if rows is None else (rows, rows, some, exemplars)


def _free(folder: Path) -> int:
    """Free bytes where a folder lies, or will lie."""
    there = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    return shutil.disk_usage(there).free


def _warnings(config: ExtractConfig, found: Estimate) -> list[str]:
    said = []
    told = found.probe
    if found.free_bytes is not None and found.bytes > found.free_bytes:
        short = size(found.bytes - found.free_bytes)
        said.append(f"the disk of {config.location} does not suffice: {short} too little, what lies there not counted")
    if not told.real_weights:
        said.append("measured with random weights: shapes and speed are the same")
        if config.stored_as.compressed:
            said.append("what zstd saves cannot be known with random weights: the sizes are those without it")
    elif config.stored_as.compressed:
        said.append(f"what zstd saves is estimated from the maps of {told.pictures}")
    if not told.real_pictures:
        said.append("no index of pictures: decoding was measured on other pictures than yours")
    if told.forward > 1.25 * told.whole and told.decode < told.forward:
        said.append("the backbone would wait for pictures: more decoders (key runtime.decoders) or cores would help")
    if config.runtime.workers > 1 or config.runtime.scheduler:
        said.append("hours are those of one process: divide by the workers that have cores or a GPU of their own")
    return said
