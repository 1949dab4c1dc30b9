"""What the explorer offers: random draws of a run's pictures, and its units with exemplars and descriptions."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from devil_pipe.pipeline.explorer.pictures import PHOTOGRAPHS, Dropped, GoneError, Library, RunPictures
from devil_pipe.pipeline.explorer.units import units_of_run
from devil_pipe.stages.prepare.index import OK, Row, read_index, to_table, write_index
from devil_pipe.stages.prepare.milan.annotations import Unit
from devil_pipe.stages.prepare.milan.units import unit_key, writing_units
from devil_pipe.store.errors import InputError


def test_the_draw_is_random_repeatable_and_of_the_test_split_alone(tiny_data: Callable[..., Path]) -> None:
    def spoil(folder: Path) -> None:
        (folder / "004.png").write_bytes(b"broken")

    data = tiny_data(count=40, spoil=spoil)
    rows = {row["key"]: row for row in read_index(data / "index.parquet").to_pylist()}
    test = {key for key, row in rows.items() if row["split"] == "test" and row["status"] == OK}
    one, same, other = RunPictures(data, "test", 1), RunPictures(data, "test", 1), RunPictures(data, "test", 2)
    assert len(one) == len(test) == 7
    assert set(one.draw(0, 99)) == test
    assert one.draw(3, 5) == same.draw(3, 5)
    assert len({tuple(which.draw(number, 5)) for which in (one, other) for number in (0, 1)}) == 4
    library = Library(one, Dropped(data))
    samples = library.samples(0, 5)
    assert [sample.name for sample in samples[:5]] == one.draw(0, 5)
    assert {sample.name.removeprefix("photo:") for sample in samples[5:]} == set(PHOTOGRAPHS)
    for sample in samples:
        assert library.open("sample", sample.name).size[0] > 0
    (train,) = [key for key, row in rows.items() if row["split"] == "train"][:1]
    assert library.open("sample", train).size == (64, 64)  # a link may name any
    with pytest.raises(GoneError, match="none so named"):
        library.content("sample", "photo:../data/cell")


@pytest.fixture
def units(tmp_path: Path) -> tuple[Path, Path]:
    """Two units with exemplars, of which one was described."""
    made = [Unit("conv1", 3, ("dogs", "a dog", "fur"), 2), Unit("conv1", 9, ("the sky", "blue", "above"), 5)]
    path = tmp_path / "data" / "milan" / "set.h5"
    path.parent.mkdir(parents=True)
    with writing_units(path, "alexnet/places365", made, (2, 8, 8), []) as put:
        masks = np.zeros((2, 8, 8), dtype=bool)
        masks[:, :, :4] = True
        for row, shade in enumerate((200, 100)):
            put(row, np.full((2, 3, 8, 8), shade, dtype=np.uint8), masks)
    keys = [unit_key("alexnet/places365", unit.layer, unit.number) for unit in made]
    rows = [
        Row(key=key, path=str(path), offset=number, size=2, captions=unit.captions, split="test", width=8, height=8)
        for number, (key, unit) in enumerate(zip(keys, made, strict=True))
    ]
    write_index(to_table(rows), tmp_path / "data" / "units" / "index.parquet")
    said = {"key": [keys[0]] * 2, "condition": ["all", "shuffled"], "description": ["a furry dog", "windows"]}
    pq.write_table(pa.table(said), tmp_path / "predictions.parquet")
    return tmp_path / "data" / "units", tmp_path / "predictions.parquet"


def test_units_are_listed_as_they_were_described_with_their_null(units: tuple[Path, Path]) -> None:
    found = units_of_run(*units)
    assert found is not None
    (unit,) = found.listed(0, "")["units"]  # the other was not described
    assert (unit["text"], unit["null"], unit["annotations"]) == ("a furry dog", "windows", ["dogs", "a dog", "fur"])
    assert [found.listed(0, word)["found"] for word in ("FURRY", "fur", "conv1", "sky", "windows")] == [1, 1, 1, 0, 0]
    strip = np.asarray(Image.open(io.BytesIO(found.exemplars(unit["key"]))), dtype=int)
    height, width, _ = strip.shape
    assert width == 2 * height
    lit, dim = strip[:, : height // 2 - 8], strip[:, height // 2 + 8 : height - 8]
    assert abs(lit - 200).max() < 6
    assert abs(dim - (0.3 * 200 + 0.7 * 128)).max() < 6
    with pytest.raises(GoneError):
        found.exemplars("no-such-unit")


def test_a_run_on_pictures_or_without_evaluation_has_no_units(
    units: tuple[Path, Path], tiny_data: Callable[..., Path]
) -> None:
    data, predictions = units
    assert units_of_run(tiny_data(), predictions) is None
    assert units_of_run(data, data / "none.parquet") is None
    assert len(RunPictures(data, "test", 0)) == 0
    (data / "bad.parquet").write_bytes(b"no Parquet")
    with pytest.raises(InputError, match="devil-pipe evaluate"):
        units_of_run(data, data / "bad.parquet")
