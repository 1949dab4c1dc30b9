"""What a report shows, its mask and its maps lie over each other as the backbone saw the picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch import Tensor

from devil_pipe.stages.extract.pictures import Transform
from devil_pipe.stages.prepare.config import PrepareConfig, WebdatasetConfig
from devil_pipe.stages.prepare.index import read_index, read_mask, read_picture
from devil_pipe.stages.prepare.run import run
from devil_pipe.stages.saliency.gallery import LONGEST, shown_picture
from devil_pipe.stages.saliency.localisation import overlap, points_at, read_mask_image
from devil_pipe.stages.saliency.overlays import draw
from devil_pipe.store.errors import InputError

from .odd_pictures import ORIENTATIONS, corners, encoded, noise, oriented
from .webdataset_fixture import write_shard

PLAIN = Transform(32, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_picture_mask_and_map_agree(orientation: int, tmp_path: Path) -> None:
    """The green corner is top right in the picture, in the mask, and where the backbone's pixels are green."""
    mask = np.zeros((16, 24, 3), dtype=np.uint8)
    mask[:8, 12:] = 255
    members = {
        "a.jpg": oriented("JPEG", orientation, quality=100, subsampling=0),
        "a.png": oriented("PNG", orientation, mask),
        "a.txt": b"four corners",
    }
    write_shard(tmp_path / "s/0.tar", [members])
    out = tmp_path / "data"
    run(PrepareConfig(name="w", out=out, source="webdataset", webdataset=WebdatasetConfig(shards=tmp_path / "s")))
    (row,) = read_index(out / "index.parquet").to_pylist()
    shown = shown_picture(row, out)
    assert shown.size == (row["width"], row["height"]) == (24, 16)
    np.testing.assert_allclose(np.asarray(shown).astype(int), corners(), atol=3)
    content = read_mask(row, out)
    assert content is not None
    read = read_mask_image(content)
    np.testing.assert_array_equal(read, mask[..., 0] > 0)
    pixels = PLAIN.decode(read_picture(row, out))
    assert isinstance(pixels, Tensor)
    green = (pixels[1] - pixels[0] - pixels[2]).reshape(4, 8, 4, 8).mean(dim=(1, 3)).numpy()  # a map of 4 × 4
    assert points_at(green, read)
    assert overlap(green, read) > 0.8
    draw(green, shown, 1.0, tmp_path / "overlay.png")
    with Image.open(tmp_path / "overlay.png") as drawn:
        levels = np.asarray(drawn).astype(int)
    assert levels.shape == (16, 24, 3)
    warm = levels[..., 0] - levels[..., 2]  # red above the prior
    assert warm[read].mean() > 40
    assert warm[~read].mean() < 0


def test_a_large_picture_is_shown_at_a_pages_size(tmp_path: Path) -> None:
    Image.new("RGB", (3000, 1000)).save(tmp_path / "a.png")
    Image.new("RGB", (40_000, 4)).save(tmp_path / "b.png")
    assert shown_picture({"key": "a", "shard": "", "path": "a.png"}, tmp_path).size == (LONGEST, round(LONGEST / 3))
    wide = shown_picture({"key": "b", "shard": "", "path": "b.png"}, tmp_path)
    assert wide.size == (LONGEST, 1)
    draw(np.eye(3), wide, 1.0, tmp_path / "overlay.png")


def test_a_picture_that_broke_since_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(noise("PNG")[:90])
    with pytest.raises(InputError, match=r"key 'a'.*PNG that is cut short.*devil-pipe prepare"):
        shown_picture({"key": "a", "shard": "", "path": "a.png"}, tmp_path)
    with pytest.raises(InputError, match=r"mask cannot be decoded: not a picture"):
        read_mask_image(b"no mask")


@pytest.mark.parametrize("mode", ["1", "L", "RGB", "RGBA", "LA", "P", "I;16"])
def test_a_mask_of_any_mode_covers_the_same_pixels(mode: str) -> None:
    mask = np.zeros((6, 8), dtype=bool)
    mask[1:3, 2:7] = True
    if mode == "I;16":
        picture = Image.fromarray(mask.astype(np.uint16) * 65535)
    else:
        picture = Image.fromarray(mask.astype(np.uint8) * 255).convert(mode)
    np.testing.assert_array_equal(read_mask_image(encoded(picture, "PNG")), mask)
    if "A" in mode:  # the object cut out, nothing around it
        picture = Image.new(mode, (8, 6), (255,) * (len(mode) - 1) + (0,))
        picture.putalpha(Image.fromarray(mask.astype(np.uint8) * 255))
        np.testing.assert_array_equal(read_mask_image(encoded(picture, "PNG")), mask)
