"""What `devil-pipe units` needs to know."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from devil_pipe.store.errors import UsageError
from devil_pipe.store.place import StoreRoot
from devil_pipe.store.schema import LayerSpec


class UnitsRuntime(BaseModel):
    """How fast, never what."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    batch_size: int = Field(32, ge=1, description="units described together")
    device: str = "auto"
    precision: str = Field("auto", pattern="^(auto|float32|bfloat16)$")


class UnitsConfig(BaseModel):
    """Which units of a run's store are looked at, and how; the defaults are MILAN's where it says something."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    run: str
    seed: int = Field(0, ge=0, description="of the sample of units, of rows, and of the bootstrap")
    layers: tuple[str, ...] = Field((), description="none: all that the store holds")
    units: tuple[int, ...] = Field((), description="these channels of each layer; none: a sample")
    sample: int = Field(40, ge=0, description="random units of each layer; 0: every one")
    split: str = Field("train", description="that exemplars, thresholds and objects are taken from")
    score_split: str = Field("test", description="whose pictures descriptions are scored on")
    rows: int = Field(10_000, ge=2, description="random rows of a split that scores are taken over, if it has more")
    exemplars: int = Field(15, ge=1, le=255)
    quantile: float = Field(0.99, gt=0, lt=1, description="of a unit's activations: what lies above it is in its mask")
    tied: float = Field(0.9, gt=0.5, le=1, description="AUC from which on a unit is tied to an object")
    tied_rows: int = Field(5, ge=1, description="fewest pictures of an object that can tie a unit to it")
    shown: int = Field(60, ge=1, description="random units of each layer on the page; the files beside it hold all")
    max_new_tokens: int = Field(20, ge=1)
    resamples: int = Field(1000, ge=10)
    export: Path | None = Field(None, description="folder for MILANNOTATIONS' layout")
    runtime: UnitsRuntime = UnitsRuntime()
    store: StoreRoot = Field(description="folder or URL of the store")
    data_dir: Path
    out: Path = Field(description="runs/RUN")

    def chosen(self, layer: LayerSpec) -> list[int]:
        """The units of a layer that are looked at, ascending. Raises UsageError for one that it does not have."""
        if self.units:
            if wrong := [unit for unit in self.units if not 0 <= unit < layer.channels]:
                raise UsageError(
                    f"--units: expected units of layer {layer.name}, 0 to {layer.channels - 1}, got {wrong[0]}"
                )
            return sorted(set(self.units))
        return drawn(range(layer.channels), self.sample or layer.channels, self.seed, layer.name)


def drawn(items: range | list[int], count: int, seed: int, name: str) -> list[int]:
    """`count` of the items at random, or all where there are no more, in their order; `name` makes draws differ."""
    if count >= len(items):
        return list(items)
    places = np.random.default_rng([seed, *name.encode()]).choice(len(items), count, replace=False)
    return [items[int(place)] for place in np.sort(places)]
