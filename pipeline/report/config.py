"""What the report needs to know: which run, and where it lies."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict


class ReportConfig(BaseModel):
    """One run's report; everything else is read from the run's own files."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    run: str
    """The run's name, as in `configs/runs/RUN.yaml`."""
    run_dir: Path
    """The run's folder, `runs/RUN`; the page goes to its `report/index.html`."""
