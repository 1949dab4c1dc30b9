"""The store's records: what makes two stores the same, how maps are encoded, and what is known of each shard.

Normative text: `SPEC.md` beside this file.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from devil_pipe.store.errors import InputError

Version = Literal["1.0", "1.1", "1.2"]
SCHEMA_VERSION: Version = "1.2"
_SINCE_1_1 = ("encoding", "compute")
_TOLD = 5  # keys that are named, of many that are wrong
BOUNDS, EXEMPLARS = ".bounds", ".exemplars"
LONGEST_NAME = 200  # bytes; systems of files take 255, of which the store's own endings need some
MOST_SHARDS = 1_000_000
_ENCODING = re.compile(r"(?:(float16|uint8)|(partition|pool):([1-9][0-9]*)|(units))(\+zstd)?")


class Record(BaseModel):
    """A frozen record in which an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


R = TypeVar("R", bound="Record")


def _plain_name(name: str) -> str:
    """A layer's name is a folder's name: one part, no way out of the store, and none of the store's own."""
    if len(name.encode()) > LONGEST_NAME:
        raise ValueError(f"expected a name of at most {LONGEST_NAME} bytes, got {len(name.encode())}: {name[:40]!r} …")
    if not name or name.startswith(".") or any(sign in name for sign in "/\\\0"):
        raise ValueError(f"expected a name without slashes that starts with no dot, got {name!r}")
    if name.endswith((BOUNDS, EXEMPLARS)) or name in ("key", "valid"):
        raise ValueError(f"{name!r} is the name of one of the store's own arrays")
    return name


@dataclass(frozen=True)
class Encoding:
    """How maps are written: all locations, groups, a coarser grid, or a unit's mean; the type; the codec."""

    values: Literal["float16", "uint8"]
    reduce: Literal["none", "partition", "pool", "units"]
    size: int
    """Groups of a partition, or side of the pooled grid; 0 otherwise."""

    compressed: bool

    @classmethod
    def parse(cls, text: str) -> Encoding:
        """Read `float16`, `uint8`, `partition:GROUPS`, `pool:SIDE` or `units`, also with `+zstd`. Raises ValueError."""
        found = _ENCODING.fullmatch(text)
        if not found:
            known = "float16, uint8, partition:GROUPS, pool:SIDE or units"
            raise ValueError(f"expected {known}, also with +zstd, got {text!r}")
        values: Literal["float16", "uint8"] = "uint8" if found[1] == "uint8" else "float16"
        reduce: Literal["none", "partition", "pool", "units"] = found[2] or found[4] or "none"  # type: ignore[assignment] # as the pattern has it
        return cls(values, reduce, int(found[3] or 0), bool(found[5]))

    @property
    def since(self) -> Version:
        """The first schema that knows it, beside the float16 maps of 1.0."""
        return "1.2" if self.reduce == "units" else "1.1"

    @property
    def shard_rows(self) -> int:
        """Rows a shard where nobody asks for another number: shards of some hundred megabytes."""
        return 4096 if self.reduce in ("partition", "units") else 256


@dataclass(frozen=True)
class ArraySpec:
    """One Zarr array of the store, [N, *shape]; a chunk is one row."""

    name: str
    layer: str
    shape: tuple[int, int]
    """Places and channels of a row."""

    dtype: Literal["float16", "uint8"]
    dimensions: tuple[str, str, str]
    attributes: dict[str, Any]

    @property
    def chunk_bytes(self) -> int:
        """Bytes of one row, uncompressed and without its checksum."""
        return self.shape[0] * self.shape[1] * (2 if self.dtype == "float16" else 1)


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

    def grid(self, encoding: Encoding) -> tuple[int, int] | None:
        """Height and width of what is stored; None where the locations were mixed into groups or a unit's mean."""
        if encoding.reduce in ("partition", "units"):
            return None
        if encoding.reduce == "pool":
            return min(self.height, encoding.size), min(self.width, encoding.size)
        return self.height, self.width

    def group_sizes(self, groups: int) -> tuple[int, ...]:
        """Locations in each group of a partition: as even as can be, the larger ones first."""
        groups = min(groups, self.locations)
        least, more = divmod(self.locations, groups)
        return (least + 1,) * more + (least,) * (groups - more)

    def arrays(self, encoding: Encoding) -> tuple[ArraySpec, ...]:
        """The arrays of this layer: the values; then the bounds of uint8 values, or the exemplars of a unit's mean."""
        places, channels = f"location_{self.name}", f"channel_{self.name}"
        attributes: dict[str, Any] = {"of_grid": [self.height, self.width], "channels": self.channels}
        grid = self.grid(encoding)
        if encoding.reduce == "units":
            return self._of_units(attributes)
        if grid is None:
            sizes = self.group_sizes(encoding.size)
            places = f"group_{self.name}"
            attributes |= {"kind": "partition", "group_sizes": list(sizes)}
            count = len(sizes)
        else:
            attributes |= {"kind": "pool" if encoding.reduce == "pool" else "map", "grid": list(grid)}
            count = grid[0] * grid[1]
        shape = (count, self.channels)
        dimensions = ("row", places, channels)
        values = ArraySpec(self.name, self.name, shape, encoding.values, dimensions, attributes)
        if encoding.values != "uint8":
            return (values,)
        name = self.name + BOUNDS
        bounds = {"kind": "bounds", "of": self.name, "rule": "low + value * (high - low) / 255"}
        return values, ArraySpec(name, self.name, (2, self.channels), "float16", ("row", "bound", channels), bounds)

    def _of_units(self, attributes: dict[str, Any]) -> tuple[ArraySpec, ...]:
        unit, kind = f"unit_{self.name}", {"kind": "units"}
        channels = ("row", unit, f"channel_{self.name}")
        count = {"kind": "exemplars", "of": self.name}
        return (
            ArraySpec(self.name, self.name, (1, self.channels), "float16", channels, attributes | kind),
            ArraySpec(self.name + EXEMPLARS, self.name, (1, 1), "uint8", ("row", unit, "count"), count),
        )


class Identity(Record):
    """All that decides what the features are. Two stores with one digest hold the same numbers."""

    schema_version: Version = Field("1.1", description="the oldest schema that has what the store needs")
    backbone: str
    weights: str = Field(description="digest of the weights, or random:SEED")
    layers: tuple[LayerSpec, ...] = Field(min_length=1)
    transform: dict[str, Any]
    dtype: Literal["float16", "uint8"] = "float16"
    encoding: str = Field("float16", description="how the maps are written")
    compute: Literal["float32", "bfloat16", "float16"] = Field("float32", description="the backbone's arithmetic")
    index: str = Field(description="digest of the picture index")
    rows: int = Field(gt=0, description="N, one row a picture of the index")

    @model_validator(mode="before")
    @classmethod
    def _as_old_as_can_be(cls, values: Any) -> Any:
        """A store that needs nothing new keeps its version, and with it its digest."""
        if isinstance(values, dict) and _ENCODING.fullmatch(str(values.get("encoding", "float16"))):
            since = Encoding.parse(str(values.get("encoding", "float16"))).since
            return {"schema_version": since, **values}
        return values

    @model_validator(mode="after")
    def _one_meaning(self) -> Identity:
        if self.dtype != Encoding.parse(self.encoding).values:
            raise ValueError(f"dtype: expected that of encoding {self.encoding!r}, got {self.dtype!r}")
        if len({layer.name for layer in self.layers}) < len(self.layers):
            raise ValueError("layers: expected names that differ")
        if self.schema_version == "1.0" and (self.encoding, self.compute) != ("float16", "float32"):
            raise ValueError("schema 1.0 knows float16 maps of float32 arithmetic alone")
        since = self.stored_as.since
        if self.schema_version not in ("1.0", since):
            raise ValueError(f"schema_version: expected {since} for {self.encoding!r}, got {self.schema_version}")
        return self

    def fields(self) -> dict[str, Any]:
        """The record as its schema version has it, ready for JSON."""
        values = self.model_dump(mode="json")
        return {key: value for key, value in values.items() if self.schema_version != "1.0" or key not in _SINCE_1_1}

    @property
    def digest(self) -> str:
        """Hex SHA-256 over the sorted JSON of this record."""
        text = json.dumps(self.fields(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def stored_as(self) -> Encoding:
        """The encoding, taken apart."""
        return Encoding.parse(self.encoding)

    @property
    def arrays(self) -> tuple[ArraySpec, ...]:
        """Every array of the store, the layers in order."""
        return tuple(array for layer in self.layers for array in layer.arrays(self.stored_as))

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
    files: dict[str, FileRecord] = Field(description="array → its shard file")


class Manifest(Record):
    """The store as committed: identity and shards. Free of time stamps, so equal content is equal bytes."""

    identity: Identity
    shard_rows: int = Field(gt=0)
    folder: str = Field(description="where the arrays lie, beside the manifest")
    shards: tuple[ShardRecord, ...]
    rows: dict[str, FileRecord] = Field({}, description="the arrays `key` and `valid` → their file")

    @model_validator(mode="after")
    def _whole(self) -> Manifest:
        """A reader finds files by these fields alone, so they have to fit together."""
        if self.folder != self.identity.digest[:12]:
            raise ValueError(f"folder: expected {self.identity.digest[:12]}, after the identity, got {self.folder!r}")
        count = shard_count(self.identity.rows, self.shard_rows)
        # Counted first: a list of all that a damaged number asks for may be longer than memory.
        if len(self.shards) != count or [(shard.shard, shard.start, shard.stop) for shard in self.shards] != [
            (number, rows.start, rows.stop)
            for number, rows in enumerate(shard_ranges(self.identity.rows, self.shard_rows))
        ]:
            raise ValueError(f"shards: expected {count} that hold rows 0 to {self.identity.rows - 1} in order")
        names = {array.name for array in self.identity.arrays}
        for shard in self.shards:
            if set(shard.files) != names:
                raise ValueError(f"shard {shard.shard}: expected files of {sorted(names)}, got {sorted(shard.files)}")
            if any(not shard.start <= row < shard.stop for row in shard.invalid):
                raise ValueError(f"shard {shard.shard}: names rows without features that are not its own")
        return self

    def content(self) -> dict[str, Any]:
        """The manifest as its schema version has it, ready for JSON."""
        values = {**self.model_dump(mode="json"), "identity": self.identity.fields()}
        if self.identity.schema_version == "1.0":
            values.pop("rows")
        return values

    @property
    def invalid(self) -> dict[int, str]:
        """Rows without features, with the reason."""
        return {row: why for shard in self.shards for row, why in shard.invalid.items()}


def parse_record(kind: type[R], content: bytes, source: str) -> R:
    """Read a JSON record; InputError names the source and every key that is wrong."""
    try:
        return kind.model_validate_json(content)
    except (UnicodeDecodeError, ValidationError) as error:
        what = f"{source}: expected a {kind.__name__.lower()} of schema {' or '.join(Version.__args__)}"  # type: ignore[attr-defined]
        raise InputError(f"{what}: {told(error)}") from error


def told(error: Exception) -> str:
    """What is wrong with a record, on one line, each key with what was found there."""
    if not isinstance(error, ValidationError):
        return " ".join(str(error).split())[:300]
    found = error.errors(include_url=False, include_context=False)
    keys = [".".join(map(str, item["loc"])) or "all of it" for item in found]
    lines = [f"{key}: {item['msg']}, got {item['input']!r:.80}" for key, item in zip(keys, found, strict=True)]
    more = f"; and {len(lines) - _TOLD} more" if len(lines) > _TOLD else ""
    return "; ".join(lines[:_TOLD]) + more


def json_bytes(value: Any) -> bytes:
    """A value as JSON: sorted keys, UTF-8, a newline at its end."""
    return (json.dumps(value, indent=2, sort_keys=True) + "\n").encode()


def shard_count(rows: int, shard_rows: int) -> int:
    """How many shards hold so many rows."""
    return -(-rows // shard_rows)


def shard_ranges(rows: int, shard_rows: int) -> list[range]:
    """The row range of each shard, the last one cut at N."""
    return [range(start, min(start + shard_rows, rows)) for start in range(0, rows, shard_rows)]
