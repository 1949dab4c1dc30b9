"""What a data set is made of: the settings of configs/data/NAME.yaml."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

SplitName = Annotated[str, Field(pattern=r"^[a-z0-9_]+$")]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DemoConfig(_Section):
    """Composites of photographed objects on photographed scenes. The defaults are configs/data/demo.yaml's."""

    train: int = Field(default=4000, ge=1)
    """Pictures of seen objects on training scenes."""
    val: int = Field(default=300, ge=1)
    """Pictures of seen objects on validation scenes."""
    test: int = Field(default=300, ge=1)
    """Pictures of seen objects on test scenes; no test scene is ever trained on."""
    test_novel: int = Field(default=40, ge=0)
    """Pictures of objects that are in no other split, on test scenes."""
    novel_objects: int = Field(default=20, ge=0)
    """How many objects are held out for `test_novel`."""
    longest_side: tuple[float, float] = (0.5, 0.85)
    """Smallest and greatest longest side of the object, as a fraction of the frame."""
    min_colours: int = Field(default=120, ge=1)
    """Objects with fewer colours (4 bits a channel) are flat drawings and left out."""
    max_words: int = Field(default=3, ge=2)
    """Longest name of an object in words, its article counted."""
    frame: int = Field(default=224, ge=16)
    """Height and width of a picture in pixels."""
    quality: int = Field(default=92, ge=1, le=95)
    """JPEG quality."""
    shard_pictures: int = Field(default=1000, ge=1, le=10000)
    """Pictures in one tar shard; img2dataset's keys leave four digits for the number in the shard."""

    @model_validator(mode="after")
    def _sizes_in_order(self) -> DemoConfig:
        low, high = self.longest_side
        if not 0 < low <= high <= 1:
            raise ValueError(f"longest_side: expected 0 < low <= high <= 1, got {low} and {high}")
        if bool(self.test_novel) != bool(self.novel_objects):
            raise ValueError(
                "test_novel and novel_objects: expected both 0 or both above 0, "
                f"got {self.test_novel} and {self.novel_objects}"
            )
        return self


def _default_shares() -> dict[SplitName, float]:
    return {"train": 0.9, "val": 0.05, "test": 0.05}


class _SplitSource(_Section):
    shares: dict[SplitName, Annotated[float, Field(ge=0, le=1)]] = Field(default_factory=_default_shares)
    """Split → share of the pictures that name no split themselves; a seeded hash of the key decides."""

    @model_validator(mode="after")
    def _shares_sum_to_one(self) -> _SplitSource:
        total = sum(self.shares.values())
        if not math.isclose(total, 1, abs_tol=1e-6):
            raise ValueError(f"shares: expected fractions that sum to 1, got a sum of {total:g}")
        return self


class FolderConfig(_SplitSource):
    """A folder of pictures with captions."""

    pictures: Path
    """The folder; pictures may lie in folders inside it."""
    captions: Path | None = None
    """A CSV or JSONL file with `file`, `caption` and, if wanted, `split` and `object`; None: NAME.txt beside
    each picture."""


class WebdatasetConfig(_SplitSource):
    """Tar shards as img2dataset writes them (`output_format="webdataset"`)."""

    shards: Path
    """A folder of .tar files, or one .tar file."""


class PrepareConfig(_Section):
    """The prepare stage: where pictures and captions come from, and where their index goes."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    out: Path
    """The folder of the data set, data/NAME unless it is set."""
    source: Literal["demo", "folder", "webdataset"]
    seed: int = Field(default=0, ge=0)
    workers: int = Field(default=0, ge=0)
    """Processes that decode or compose pictures; 0: one for each core. Changes no result."""
    demo: DemoConfig = DemoConfig()
    folder: FolderConfig | None = None
    webdataset: WebdatasetConfig | None = None

    @model_validator(mode="before")
    @classmethod
    def _out_follows_name(cls, values: Any) -> Any:
        if isinstance(values, dict) and isinstance(values.get("name"), str):
            return {"out": Path("data") / values["name"], **values}
        return values

    @model_validator(mode="after")
    def _section_of_the_source(self) -> PrepareConfig:
        if self.source != "demo" and getattr(self, self.source) is None:
            raise ValueError(f"source: {self.source} needs a section `{self.source}:`, got none")
        return self
