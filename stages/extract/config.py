"""What stage one needs to know."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Runtime(BaseModel):
    """How fast, never what: nothing here changes a feature beyond rounding, and nothing here reruns a stage."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    batch_size: int = Field(32, ge=1, description="pictures in one forward pass")
    decoders: int = Field(2, ge=1, description="threads that decode pictures")
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1, mps")


class ExtractConfig(BaseModel):
    """One feature store: pictures × backbone × layers."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    data: str = Field(description="name of the prepared pictures")
    backbone: str
    weights: str = Field("auto", description="auto, random, or a file of weights")
    layers: tuple[str, ...] = Field((), description="names of layers; empty takes the backbone's usual ones")
    image_size: int = Field(224, ge=32)
    dtype: Literal["float16"] = "float16"
    shard_rows: int = Field(256, ge=1)
    runtime: Runtime = Runtime()
    data_dir: Path = Field(description="folder of index.parquet")
    out: Path = Field(description="folder of manifest.json")
