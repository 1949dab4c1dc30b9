"""The settings of MILANNOTATIONS: the section `milan:` of configs/data/NAME.yaml."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from devil_pipe.stages.prepare.milan.experiments import EXPERIMENTS


class MilanConfig(BaseModel):
    """One of the thirteen experiments over MILANNOTATIONS, and where its files lie."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    experiment: str
    """A row of Table 6 by name; see `experiments.EXPERIMENTS`."""
    zips: Path
    """The folder of the published files, ARCH-DATASET.zip each."""
    units: Path = Path("data/milan")
    """Where a set's HDF5 file is kept; all experiments share it."""
    imagenet: Path | None = None
    """ImageNet's validation pictures, a folder for each class: for sets that come without pictures."""
    places365: Path | None = None
    """The same of Places365, for sets that come without them."""
    fit: Literal["crop", "stretch"] = "crop"
    """How such a picture becomes as large as its mask. `crop`: as the masks were computed, the shorter side resized
    to 8/7 of the mask's and the centre cut out. `stretch`: as MILAN's library joins them, straight to the mask's
    size, which shifts pictures against masks."""
    held_out: float = Field(default=0.1, gt=0, lt=1)
    """Within a network: the share of its units that is the test split."""
    validation: float = Field(default=0.1, gt=0, lt=1)
    """The share of the training units that is the split val, by which a model is chosen."""
    splits: Path | None = None
    """Within a network: a file of MILAN's that says which units are held out; `held_out` is then not used."""

    @model_validator(mode="after")
    def _known(self) -> MilanConfig:
        if self.experiment not in EXPERIMENTS:
            raise ValueError(f"experiment: expected one of {', '.join(EXPERIMENTS)}; got {self.experiment!r}")
        if self.splits is not None and not EXPERIMENTS[self.experiment].within:
            raise ValueError(
                f"splits: expected none for {self.experiment}: whole sets are held out there, not units of one"
            )
        return self
