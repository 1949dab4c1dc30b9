"""What a data set is made of: the settings of configs/data/NAME.yaml."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from devil_pipe.stages.prepare.milan.config import MilanConfig

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
    renders: bool = False
    """Also the things that the asset `fluent` shows: rendered, not photographed (names in renders.csv)."""
    empty_scenes: float = Field(default=0.0, ge=0, le=0.5)
    """Share of the training pictures that show a scene alone; their mask is empty and they name no object."""
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


class DownloadConfig(_Section):
    """How img2dataset fetches the pictures of a list of links."""

    image_size: int = Field(default=256, ge=16)
    """Pixels of the shorter side (keep_ratio), the longer side (keep_ratio_largest, border) or both (center_crop)."""
    resize_mode: Literal["keep_ratio", "keep_ratio_largest", "no", "border", "center_crop"] = "keep_ratio"
    """The first three keep a picture whole, as the method needs it; `no` keeps its size too."""
    resize_only_if_bigger: bool = True
    """Leave a picture that is already small as it is."""
    encode_quality: int = Field(default=95, ge=1, le=100)
    """JPEG quality of what is encoded anew; a JPEG that is not resized keeps its bytes."""
    shard_pictures: int = Field(default=10_000, ge=10, le=100_000)
    """Links in one shard; a stopped download does its open shards again, whole."""
    processes: int = Field(default=0, ge=0)
    """0: one for each core."""
    threads: int = Field(default=64, ge=1)
    """Connections of one process."""
    timeout: int = Field(default=10, ge=1)
    """Seconds without an answer after which a link counts as dead."""
    retries: int = Field(default=1, ge=0)
    """Further attempts at a link that failed."""
    command: str = ""
    """What starts img2dataset; "": the one on PATH, else `uv tool run`, in an environment of its own."""


class Img2datasetConfig(_SplitSource):
    """What img2dataset wrote, in any of its layouts, or shall write from the links of Conceptual Captions (CC3M)."""

    shards: Path
    """The folder that img2dataset wrote, or will write where `tsv` is given."""
    layout: Literal["auto", "webdataset", "files", "parquet"] = "auto"
    """img2dataset's output_format; auto: as what lies in the folder shows."""
    tsv: Path | None = None
    """Lines of caption TAB link, without a header, as published (Train_GCC-training.tsv)."""
    tsv_val: Path | None = None
    """The same for the split `val` (Validation_GCC-1.1.0-Validation.tsv); then all of `tsv` is `train`."""
    download: DownloadConfig = DownloadConfig()

    @model_validator(mode="after")
    def _links_and_layout(self) -> Img2datasetConfig:
        if self.tsv_val and not self.tsv:
            raise ValueError("tsv_val: expected tsv (the training links) beside it, got none")
        if self.tsv and self.layout not in ("auto", "webdataset"):
            raise ValueError(f"layout: expected webdataset where tsv is given, got {self.layout}")
        return self


class CocoConfig(_SplitSource):
    """COCO's captions: the published JSON files, Karpathy's file, or both."""

    pictures: Path
    """The folder with train2014/, val2014/ …, or with the pictures themselves."""
    annotations: tuple[Path, ...] = ()
    """captions_train2014.json and the like. The word after `captions_` is the split of its pictures, without
    Karpathy's file; where it names none, `shares` decide."""
    karpathy: Path | None = None
    """dataset_coco.json: split and captions of every picture; with `annotations`, the captions are theirs."""
    restval: Literal["train", "restval"] = "train"
    """The split of the pictures that Karpathy's file calls restval."""
    instances: tuple[Path, ...] = ()
    """instances_train2014.json and the like: a named object of each picture, drawn by the seed, and its mask."""

    @model_validator(mode="after")
    def _some_captions(self) -> CocoConfig:
        if not self.annotations and self.karpathy is None:
            raise ValueError("annotations: expected COCO's JSON files, or karpathy, got neither")
        return self


class PrepareConfig(_Section):
    """The prepare stage: where pictures and captions come from, and where their index goes."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    out: Path
    """The folder of the data set, data/NAME unless it is set."""
    source: Literal["demo", "folder", "webdataset", "img2dataset", "coco", "milan"]
    seed: int = Field(default=0, ge=0)
    workers: int = Field(default=0, ge=0)
    """Processes that decode or compose pictures; 0: one for each core. Changes no result."""
    demo: DemoConfig = DemoConfig()
    folder: FolderConfig | None = None
    webdataset: WebdatasetConfig | None = None
    img2dataset: Img2datasetConfig | None = None
    coco: CocoConfig | None = None
    milan: MilanConfig | None = None

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
