"""The notebooks run as they stand, on fewer pictures and with fewer steps."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from devil_pipe.stages.common.assets import asset
from devil_pipe.store.errors import InputError

SOURCE = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((SOURCE / "docs/notebooks").glob("*.ipynb"))
SAYS = {
    "own_model": ["expected the weights that the features were made with", r"nats \[-?\d"],
    "reading_a_run": [
        r"nats \[-?\d",
        *(rf"\n{name} +\d\.\d\d \[" for name in ("all", "s8", "s16", "s32", "shuffled", "mean", "zero", "lm_alone")),
        r"the object's map +highest point on the object: \d\.\d\d \[",
        r"centre prior +highest point on the object: \d\.\d\d \[",
    ],
}
"""What each prints, with whatever figures: patterns."""


def test_it_is_known_what_each_notebook_prints() -> None:
    assert [path.stem for path in NOTEBOOKS] == sorted(SAYS)


@pytest.mark.tree  # it takes minutes, and finds the source tree above itself
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        for name in ("efficientnet-lite0", "smollm2-135m", "stamps", "scenes"):
            asset(name)
    except InputError as error:
        pytest.skip(str(error))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    notebook = nbformat.read(path, as_version=4)
    quick = [re.subn(r"^SCALE = 1\.0", "SCALE = 0.02", cell.source, flags=re.MULTILINE) for cell in notebook.cells]
    assert sum(count for _, count in quick) == 1
    for cell, (source, _) in zip(notebook.cells, quick, strict=True):
        cell.source = source
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(path.parent)}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    said = "".join(output.get("text", "") for output in outputs)
    assert not [pattern for pattern in SAYS[path.stem] if not re.search(pattern, said)]
    assert any("image/png" in output.get("data", {}) for output in outputs)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_kept_with_what_it_printed_and_without_paths(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1)), "run it from a fresh kernel"
    assert not [output for cell in code for output in cell.outputs if output.output_type == "error"]
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"/(home|root|tmp|Users|work)/", text)
