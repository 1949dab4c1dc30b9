"""The page's folder: made beside its place, and moved there whole."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import TracebackType
from typing import Self

from devil_pipe.pipeline.report.anchors import anchor
from devil_pipe.pipeline.report.exports import files
from devil_pipe.pipeline.report.images import Shown
from devil_pipe.pipeline.units_page.page import exports, render
from devil_pipe.stages.common.files import write_json
from devil_pipe.stages.common.progress import log
from devil_pipe.stages.prepare.milan.units import Exemplars
from devil_pipe.stages.units.exemplars import mosaic, shaded
from devil_pipe.stages.units.findings import Findings
from devil_pipe.store.errors import UsageError

FIGURES = "units.json"
"""The figures; a folder that has them is an earlier page's, and gives way to a new one."""

COLUMNS, SIDE, GAP = 5, 144, 6
"""Of an exemplars' mosaic, in pixels twice what the page shows so that a dense screen is served."""

QUALITY = 84


class Page:
    """The folder of a page under way; what is written appears on success alone."""

    def __init__(self, folder: Path) -> None:
        """Raises UsageError where another folder lies there: it would be lost."""
        self.folder = folder
        if folder.exists() and not (folder / FIGURES).is_file() and (not folder.is_dir() or any(folder.iterdir())):
            raise UsageError(f"{folder}: expected no folder, an empty one or a page of units; name another --out")
        self._pictures: dict[tuple[str, int], Shown] = {}
        self._partial = folder.with_name(f".{folder.resolve().name}.partial")

    def __enter__(self) -> Self:
        shutil.rmtree(self._partial, ignore_errors=True)
        (self._partial / "exemplars").mkdir(parents=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        shutil.rmtree(self._partial, ignore_errors=True)

    def picture(self, layer: str, unit: int, found: Exemplars) -> None:
        """Draw a unit's exemplars: in colour where it is active, dark elsewhere."""
        whole = mosaic(shaded(found.images, found.masks), COLUMNS, SIDE, GAP)
        name = f"exemplars/{anchor(layer, str(unit))}.webp"
        whole.save(self._partial / name, "WEBP", quality=QUALITY)
        self._pictures[layer, unit] = Shown(name, name, "", *whole.size)

    def write(self, found: Findings) -> None:
        """Write page, tables and figures, and put the folder in its place."""
        beside = files(exports(found))
        for name, text in {**beside, "index.html": render(found, self._pictures, beside)}.items():
            (self._partial / name).parent.mkdir(exist_ok=True)
            (self._partial / name).write_text(text, encoding="utf-8")
        write_json(self._partial / FIGURES, found.as_dict())
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        self._partial.rename(self.folder)
        log("units written", page=str(self.folder / "index.html"))
