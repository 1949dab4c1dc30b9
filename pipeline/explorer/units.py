"""The gallery of units: of a run on units, what `devil-pipe evaluate` wrote of each, beside its exemplars."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image

from devil_pipe.pipeline.explorer.pictures import GoneError
from devil_pipe.stages.evaluate.conditions import ALL
from devil_pipe.stages.prepare.index import read_index
from devil_pipe.stages.prepare.milan.units import read_unit, units_of
from devil_pipe.store.errors import InputError

NULL = "shuffled"
_A_PAGE = 24
_SHOWN = 112  # pixels along an exemplar's side
_DIM, _GREY = 0.3, 128


class Units:
    """The units that a run described, in the order of the index."""

    def __init__(self, index: pa.Table, predictions: pa.Table, data_dir: Path) -> None:
        """Take the rows of both tables whose key both know."""
        self.data_dir = data_dir
        self._rows = {row["key"]: row for row in index.to_pylist()}
        self._texts: dict[str, dict[str, str]] = {}
        for row in predictions.select(["key", "condition", "description"]).to_pylist():
            if row["key"] in self._rows:
                self._texts.setdefault(row["key"], {})[row["condition"]] = row["description"]

    def about(self) -> dict[str, Any]:
        """How many there are, and how many a page shows."""
        return {"count": len(self._texts), "page": _A_PAGE}

    def listed(self, start: int, word: str) -> dict[str, Any]:
        """A page of those whose key, description or annotations hold `word`, from the `start`-th."""
        wanted = word.casefold().strip()
        keys = [key for key in self._texts if wanted in self._words(key)]
        return {"found": len(keys), "from": start, "units": [self._unit(key) for key in keys[start : start + _A_PAGE]]}

    def _words(self, key: str) -> str:
        return "\n".join([key, self._texts[key].get(ALL, ""), *self._rows[key]["captions"]]).casefold()

    def _unit(self, key: str) -> dict[str, Any]:
        texts = self._texts[key]
        return {
            "key": key,
            "text": texts.get(ALL, ""),
            "null": texts.get(NULL, ""),
            "annotations": list(self._rows[key]["captions"]),
            "exemplars": self._rows[key]["size"],
        }

    def exemplars(self, key: str) -> bytes:
        """A unit's exemplars side by side as a JPEG, dimmed where the mask is off. Raises GoneError, InputError."""
        if key not in self._rows:
            raise GoneError(f"unit {key!r}: there is none of this key")
        found = read_unit(self._rows[key], self.data_dir)
        weight = np.where(found.masks, 1.0, _DIM)[:, None]
        lit = (found.images * weight + _GREY * (1 - weight)).astype(np.uint8).transpose(0, 2, 3, 1)
        strip = Image.new("RGB", (_SHOWN * len(lit), _SHOWN))
        for place, pixels in enumerate(lit):
            strip.paste(Image.fromarray(pixels).resize((_SHOWN, _SHOWN)), (place * _SHOWN, 0))
        buffer = io.BytesIO()
        strip.save(buffer, "JPEG", quality=88)
        return buffer.getvalue()


def units_of_run(data_dir: Path, predictions: Path) -> Units | None:
    """The gallery of a run, None where its data are pictures or it was not evaluated. Raises InputError."""
    index = read_index(data_dir / "index.parquet")
    chosen = index.filter(units_of(index))
    if not chosen.num_rows or not predictions.is_file():
        return None
    try:
        written = pq.read_table(predictions, columns=["key", "condition", "description"])
    except (OSError, pa.ArrowInvalid) as error:
        raise InputError(f"{predictions}: expected what `devil-pipe evaluate` writes: {error}; run it again") from None
    return Units(chosen.filter(pc.is_in(chosen["key"], written["key"].combine_chunks())), written, data_dir)
