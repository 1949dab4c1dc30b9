"""What the saliency stage needs to know."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from devil_pipe.store.place import StoreRoot


class SaliencyRuntime(BaseModel):
    """How fast, never what; nothing here reruns a stage."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    batch_size: int = Field(64, ge=1, description="locations computed together")
    device: str = "auto"
    precision: str = Field("auto", pattern="^(auto|float32|bfloat16)$")


class FaithfulnessConfig(BaseModel):
    """Deletion and insertion on the explained classifier, beside Grad-CAM (Table 5)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    pictures: int = Field(0, ge=0, description="random pictures that are scored; 0: none, for it takes long")
    steps: int = Field(32, ge=2, description="by which a picture is emptied or filled")
    weights: str = Field("auto", description="the backbone's, as in the store's file, where they come from a file")


class CropsConfig(BaseModel):
    """Which size of centre crop a location's description fits best (Figure 7)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    pictures: int = Field(0, ge=0, description="random pictures; 0: none")
    scorer: Literal["clip", "classes"] = Field("clip", description="the paper's, or the classifier's class names")
    weights: str = Field("auto", description="of clip_rn50, for the scorer clip")


class SaliencyConfig(BaseModel):
    """Maps of each layer for the objects of some test pictures, and a gallery of random ones."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    run: str
    seed: int = 0
    split: str = "test"
    pictures: int = Field(80, ge=1, description="random pictures with a mask that are scored")
    gallery: int = Field(12, ge=0, description="random pictures that are shown, failures included")
    grid: int = Field(0, ge=0, description="average layers with a finer grid down to this one; 0 keeps every location")
    max_new_tokens: int = Field(20, ge=1)
    off_centre: float = Field(0.15, gt=0, lt=0.5, description="distance of the mask's centroid, fraction of the frame")
    resamples: int = Field(1000, ge=10)
    faithfulness: FaithfulnessConfig = FaithfulnessConfig()
    crops: CropsConfig = CropsConfig()
    runtime: SaliencyRuntime = SaliencyRuntime()
    store: StoreRoot = Field(description="folder or URL of the store")
    data_dir: Path
    out: Path = Field(description="runs/RUN")
