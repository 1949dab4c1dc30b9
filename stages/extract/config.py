"""What stage one needs to know."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from devil_pipe.store.schema import Encoding

Size = int | tuple[int, int]
"""Pixels of a square, or height and width."""


class Runtime(BaseModel):
    """How fast, never what: nothing here changes a feature beyond rounding, and nothing here reruns a stage."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    batch_size: int = Field(32, ge=1, description="pictures in one forward pass")
    decoders: int = Field(2, ge=1, description="threads that decode pictures")
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1, mps")
    workers: int = Field(1, ge=1, description="processes on this machine")
    scheduler: str = Field("", description="address of a Dask scheduler, whose workers do the work")


class ExtractConfig(BaseModel):
    """One feature store: pictures × backbone × layers."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    data: str = Field(description="name of the prepared pictures")
    backbone: str
    weights: str = Field("auto", description="auto, random, or a file of weights")
    layers: tuple[str, ...] = Field((), description="names, aliases, module paths or rules; empty: the usual ones")
    image_size: Size | None = Field(None, description="pixels, or [height, width]; none: the backbone's own")
    encoding: str = Field("float16", description="float16, uint8, partition:GROUPS, pool:SIDE or units, +zstd")
    compute: Literal["float32", "bfloat16", "float16"] = Field("float32", description="the backbone's arithmetic")
    shard_rows: int | None = Field(None, ge=1, description="pictures a shard; none takes what suits the encoding")
    place: str = Field("", description="URL of a folder for the store, such as s3://bucket/stores; empty: stores/")
    runtime: Runtime = Runtime()
    data_dir: Path = Field(description="folder of index.parquet")
    out: Path = Field(description="folder of manifest.json")

    @field_validator("image_size", mode="before")
    @classmethod
    def _pixels(cls, value: object) -> object:
        """One sentence for what is neither a number nor two of them."""
        sides = value if isinstance(value, list | tuple) else [value, value]
        if value is None or (len(sides) == 2 and all(type(side) is int and side >= 32 for side in sides)):
            return tuple(sides) if isinstance(value, list) else value
        raise ValueError(f"expected pixels, 32 at least, or [height, width], got {value!r}")

    @field_validator("encoding")
    @classmethod
    def _known_encoding(cls, text: str) -> str:
        Encoding.parse(text)
        return text

    @property
    def stored_as(self) -> Encoding:
        """The encoding, taken apart."""
        return Encoding.parse(self.encoding)

    @property
    def location(self) -> str:
        """Folder or URL of the store's files."""
        return f"{self.place.rstrip('/')}/{self.name}" if self.place else str(self.out)
