"""The store's layout as data: what makes two stores the same, and where each byte of a shard lies.

Normative text: `SPEC.md` beside this file.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from devil_pipe.store.errors import InputError

SCHEMA_VERSION: Literal["1.0"] = "1.0"
CRC_BYTES = 4
INDEX_ENTRY_BYTES = 16  # offset and length of a chunk, two little-endian uint64
MISSING = 2**64 - 1  # Zarr's mark for a chunk that was never written


class Record(BaseModel):
    """A frozen record in which an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


R = TypeVar("R", bound="Record")


def _plain_name(name: str) -> str:
    """A layer's name is a folder's name: one part, no way out of the store."""
    if not name or name.startswith(".") or any(sign in name for sign in "/\\\0"):
        raise ValueError(f"expected a name without slashes that starts with no dot, got {name!r}")
    return name


class LayerSpec(Record):
    """One explained layer: its name on disk, C channels, and a grid of H × W locations."""

    name: Annotated[str, AfterValidator(_plain_name)]
    channels: int = Field(gt=0)
    height: int = Field(gt=0)
    width: int = Field(gt=0)

    @property
    def locations(self) -> int:
        """H · W."""
        return self.height * self.width

    @property
    def chunk_bytes(self) -> int:
        """Bytes of one picture's float16 map, without its checksum."""
        return self.locations * self.channels * 2


class Identity(Record):
    """All that decides what the features are. Two stores with one digest hold the same numbers."""

    schema_version: Literal["1.0"] = SCHEMA_VERSION
    backbone: str
    weights: str = Field(description="digest of the weights, or random:SEED")
    layers: tuple[LayerSpec, ...] = Field(min_length=1)
    transform: dict[str, Any]
    dtype: Literal["float16"] = "float16"
    index: str = Field(description="digest of the picture index")
    rows: int = Field(gt=0, description="N, one row a picture of the index")

    @property
    def digest(self) -> str:
        """Hex SHA-256 over the sorted JSON of this record."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def layer(self, name: str) -> LayerSpec:
        """The layer of that name. Raises InputError with the names there are."""
        for layer in self.layers:
            if layer.name == name:
                return layer
        names = ", ".join(layer.name for layer in self.layers)
        raise InputError(f"layer {name!r}: the store holds {names}")

    def differences(self, other: Identity) -> list[str]:
        """One line for each field in which `other` differs: name, ours, theirs."""
        mine, theirs = self.model_dump(mode="json"), other.model_dump(mode="json")
        return [f"{key}: {mine[key]!r} against {theirs[key]!r}" for key in mine if mine[key] != theirs[key]]


class FileRecord(Record):
    """Size in bytes and SHA-256 of a file as it lies on disk."""

    size: int
    sha256: str


class ShardRecord(Record):
    """What is known of a committed shard: rows [start, stop), the rows without features, and its files."""

    shard: int = Field(ge=0)
    start: int = Field(ge=0)
    stop: int = Field(gt=0)
    invalid: dict[int, str] = Field(description="row → why it has no features")
    files: dict[str, FileRecord] = Field(description="layer → its shard file")


class Manifest(Record):
    """The store as committed: identity and shards. Free of time stamps, so equal content is equal bytes."""

    identity: Identity
    shard_rows: int
    folder: str = Field(description="where the arrays lie, beside the manifest")
    shards: tuple[ShardRecord, ...]

    @property
    def invalid(self) -> dict[int, str]:
        """Rows without features, with the reason."""
        return {row: why for shard in self.shards for row, why in shard.invalid.items()}


def read_record(kind: type[R], path: Path) -> R:
    """Read a JSON record; InputError names the file and every key that is wrong."""
    try:
        return kind.model_validate_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: expected a {kind.__name__.lower()}, found no such file") from None
    except (UnicodeDecodeError, ValidationError) as error:
        raise InputError(f"{path}: expected a {kind.__name__.lower()} of schema {SCHEMA_VERSION}: {error}") from error


def shard_ranges(rows: int, shard_rows: int) -> list[range]:
    """The row range of each shard, the last one cut at N."""
    return [range(start, min(start + shard_rows, rows)) for start in range(0, rows, shard_rows)]


def shard_file(store: Path, layer: str, shard: int) -> Path:
    """Where Zarr's default chunk keys put the shard of an [N, HW, C] array."""
    return store / layer / "c" / str(shard) / "0" / "0"


def array_metadata(layer: LayerSpec, rows: int, shard_rows: int) -> dict[str, Any]:
    """The `zarr.json` of one layer's array: [N, HW, C], one picture a chunk, `shard_rows` chunks a shard."""
    crc = {"name": "crc32c"}
    little = {"name": "bytes", "configuration": {"endian": "little"}}
    sharding = {
        "chunk_shape": [1, layer.locations, layer.channels],
        "codecs": [little, crc],
        "index_codecs": [little, crc],
        "index_location": "end",
    }
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": [rows, layer.locations, layer.channels],
        "data_type": "float16",
        "chunk_grid": {
            "name": "regular",
            "configuration": {"chunk_shape": [shard_rows, layer.locations, layer.channels]},
        },
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": "NaN",
        "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
        "dimension_names": ["row", "location", "channel"],
        "attributes": {"grid": [layer.height, layer.width], "channels": layer.channels},
    }
