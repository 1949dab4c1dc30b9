"""What stage one needs to know."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from devil_pipe.store.schema import Encoding


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
    layers: tuple[str, ...] = Field((), description="names of layers; empty takes the backbone's usual ones")
    image_size: int = Field(224, ge=32)
    encoding: str = Field("float16", description="float16, uint8, partition:GROUPS or pool:SIDE, also with +zstd")
    compute: Literal["float32", "bfloat16", "float16"] = Field("float32", description="the backbone's arithmetic")
    shard_rows: int | None = Field(None, ge=1, description="pictures a shard; none takes what suits the encoding")
    place: str = Field("", description="URL of a folder for the store, such as s3://bucket/stores; empty: stores/")
    runtime: Runtime = Runtime()
    data_dir: Path = Field(description="folder of index.parquet")
    out: Path = Field(description="folder of manifest.json")

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
