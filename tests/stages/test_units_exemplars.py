"""Frames, masks and features of units, against closed forms, slow loops and Pillow."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from devil_pipe.stages.extract.pictures import Transform
from devil_pipe.stages.prepare.index import read_index, read_picture
from devil_pipe.stages.units.exemplars import Frames, masks_of, mosaic, shaded, unit_feature
from devil_pipe.store.errors import InputError

from .. import tiny

TRANSFORM = Transform((24, 40), (0.5, 0.4, 0.3), (0.25, 0.3, 0.2), "bilinear")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    from devil_pipe.stages.prepare.index import to_table, write_index

    write_index(to_table(tiny.pictures(folder)), folder / "index.parquet")
    return folder


def test_a_frame_is_what_the_backbone_saw_before_its_scaling(data: Path) -> None:
    index = read_index(data / "index.parquet").to_pylist()
    rows = [4, 0, 4]
    found = Frames(index, data, TRANSFORM)(rows)
    assert found.shape == (3, 3, 24, 40)
    for row, frame in zip(rows, found, strict=True):
        pixels = TRANSFORM.decode(read_picture(index[row], data))
        assert isinstance(pixels, torch.Tensor)
        seen = pixels * torch.tensor(TRANSFORM.std)[:, None, None] + torch.tensor(TRANSFORM.mean)[:, None, None]
        np.testing.assert_allclose(frame, seen.numpy() * 255, atol=1e-3)


def test_a_picture_that_changed_is_named(data: Path) -> None:
    index = read_index(data / "index.parquet").to_pylist()
    index[2]["offset"] += 7
    with pytest.raises(InputError, match=f"key '{index[2]['key']}': expected the picture that features were made of"):
        Frames(index, data, TRANSFORM)([2])


def test_masks_are_the_upsampled_map_above_the_threshold() -> None:
    """Pillow enlarges bilinearly by another hand; a pixel at the very threshold may fall on either side."""
    maps = np.random.default_rng(0).normal(size=(4, 7, 7)).astype(np.float32)
    found = masks_of(maps, 0.3, (56, 84))
    assert (found.shape, found.dtype) == ((4, 56, 84), bool)
    for values, mask in zip(maps, found, strict=True):
        large = np.asarray(Image.fromarray(values).resize((84, 56), Image.Resampling.BILINEAR))
        clear = abs(large - 0.3) > 1e-5
        assert np.array_equal(mask[clear], large[clear] > 0.3)


def test_a_map_that_is_nowhere_above_has_no_mask() -> None:
    flat = np.full((2, 3, 3), 1.5, np.float16)
    assert not masks_of(flat, 1.5, (6, 6)).any()  # "above", not "at": a unit that is mostly 0 has a threshold of 0
    assert masks_of(flat, 1.499, (6, 6)).all()


def test_a_units_feature_is_the_mean_under_masks_then_over_exemplars() -> None:
    """Masks of whole locations, so that resizing them to the grid is exact; the second one is empty and counts not."""
    maps = torch.randn(3, 2, 2, 5, generator=torch.Generator().manual_seed(0))
    masks = np.zeros((3, 8, 8), dtype=bool)
    masks[0, :4, :] = True
    masks[2, 4:, 4:] = True
    feature, count = unit_feature(maps, masks)
    expected = ((maps[0, 0, 0] + maps[0, 0, 1]) / 2 + maps[2, 1, 1]) / 2
    assert count == 2
    torch.testing.assert_close(feature, expected)
    assert unit_feature(maps, np.zeros_like(masks))[1] == 0


def test_what_lies_under_the_mask_keeps_its_colour_and_the_rest_is_dark_grey() -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 3, 6, 8), dtype=np.uint8)
    masks = np.random.default_rng(1).random((2, 6, 8)) > 0.5
    found = shaded(images, masks)
    assert np.array_equal(found[masks], images.transpose(0, 2, 3, 1)[masks])
    rest = found[~masks].astype(int)
    assert (rest == rest[:, :1]).all()
    assert rest.max() < 255 / 2


@pytest.mark.parametrize(("count", "size"), [(7, (3 * 10 + 2 * 2, 3 * 5 + 2 * 2)), (2, (22, 5)), (1, (10, 5))])
def test_a_mosaic_has_room_for_every_tile(count: int, size: tuple[int, int]) -> None:
    tiles = np.full((count, 4, 8, 3), 200, np.uint8)
    whole = mosaic(tiles, columns=3, side=10, gap=2)
    assert whole.size == size
    opaque = np.asarray(whole)[..., 3] == 255
    assert opaque.sum() == count * 10 * 5
