"""The pictures that stand beside the audit's page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from devil_pipe.stages.audit.config import AuditConfig
from devil_pipe.stages.audit.findings import Shown
from devil_pipe.stages.common.files import replacing
from devil_pipe.stages.saliency.gallery import safe_name, shown_picture
from devil_pipe.stages.saliency.overlays import Scale, overlay

LONGEST = 400  # pixels, twice what the page shows
SCALE = Scale(20.0)
"""Of every map on the page: a few words gain about so many nats where they become certain."""


class Album:
    """Writes pictures and overlays under `pictures/`, each once."""

    def __init__(self, config: AuditConfig, index: list[dict[str, Any]], *, pictures: bool) -> None:
        """`pictures` says whether the index's rows are pictures, and not units of a network."""
        self.config, self.index, self.pictures = config, index, pictures
        self.files: set[str] = set()

    def picture(self, row: int, label: str) -> tuple[Shown, ...]:
        """A picture of the data; none where the rows are no pictures."""
        opened = self._open(row)
        return () if opened is None else (self._save(opened, self._name(row, "picture"), label),)

    def overlay(self, row: int, values: np.ndarray, what: str, label: str) -> tuple[Shown, ...]:
        """A map over its picture, on the page's one scale; `what` tells its file from others of the picture."""
        opened = self._open(row)
        return () if opened is None else self.over(opened, values, self._name(row, what), label)

    def over(self, picture: Image.Image, values: np.ndarray, name: str, label: str) -> tuple[Shown, ...]:
        """The same of a picture that is at hand."""
        return (self._save(overlay(values.astype(np.float64), picture, SCALE), name, label),)

    def _open(self, row: int) -> Image.Image | None:
        entry = self.index[row]
        if not self.pictures:
            return None
        picture = shown_picture(entry, self.config.data_dir).convert("RGB")
        picture.thumbnail((LONGEST, LONGEST))
        return picture

    def _name(self, row: int, what: str) -> str:
        return f"{row:08d}-{safe_name(self.index[row]['key'])[:60]}-{safe_name(what)[:60]}"

    def _save(self, picture: Image.Image, name: str, label: str) -> Shown:
        file = f"pictures/{name}.webp"
        if file not in self.files:
            with replacing(Path(self.config.out) / file) as partial:
                picture.save(partial, format="WEBP", quality=82)
            self.files.add(file)
        return Shown(file, label)
