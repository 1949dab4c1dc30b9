"""What the audit needs to know."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from devil_pipe.stages.evaluate.config import EvaluateRuntime
from devil_pipe.store.place import StoreRoot


class RandomRun(BaseModel):
    """A run of the same settings on the features of a backbone that was never trained."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    run: str
    store: StoreRoot
    data_dir: Path
    out: Path


class AuditConfig(BaseModel):
    """How much of a trained run is looked at, and with which seed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    run: str
    seed: int = Field(0, ge=0)
    split: str = "test"
    pictures: int = Field(24, ge=4, description="that are asked for maps and descriptions; other counts follow from it")
    grid: int = Field(7, ge=2, description="finer layers are averaged down to so many locations a side before maps")
    distractors: int = Field(99, ge=1, description="other pictures among which a description has to find its own")
    max_new_tokens: int = Field(16, ge=1)
    resamples: int = Field(1000, ge=10)
    steps: int = Field(32, ge=2, description="by which deletion empties a picture")
    only: tuple[str, ...] = Field((), description="names of checks; none: all")
    weights: str = Field("auto", description="the backbone's, as in the store's file, where they come from a file")
    command: str = Field("", description="that was given, as the page shows it")
    random: RandomRun | None = None
    runtime: EvaluateRuntime = EvaluateRuntime()
    store: StoreRoot = Field(description="folder or URL of the store")
    data_dir: Path
    run_dir: Path = Field(description="runs/RUN, which is only read")
    out: Path = Field(description="where audit.json and the page go")

    @property
    def captioned(self) -> int:
        """Pictures whose caption's loss alone is asked for, which is cheap."""
        return 4 * self.pictures

    @property
    def few(self) -> int:
        """Pictures of the checks that ask for every map several times."""
        return max(4, self.pictures // 3)
