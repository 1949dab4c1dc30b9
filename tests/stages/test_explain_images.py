"""Any form of a picture is the same upright RGB; other shapes, types and ranges are refused with what would do."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from devil_pipe.stages.explain.images import as_picture
from devil_pipe.store.errors import InputError

from .odd_pictures import ORIENTATIONS, corners, oriented

PIXELS = np.random.default_rng(0).integers(0, 256, (12, 20, 3), dtype=np.uint8)


def forms(folder: Path) -> dict[str, Any]:
    """One picture in every form that keeps its pixels."""
    picture = Image.fromarray(PIXELS)
    picture.save(folder / "a.png")
    rgba = np.dstack([PIXELS, np.full(PIXELS.shape[:2], 255, dtype=np.uint8)])
    tensor = torch.from_numpy(PIXELS).permute(2, 0, 1)
    return {
        "pil": picture,
        "path": folder / "a.png",
        "text": str(folder / "a.png"),
        "array": PIXELS,
        "strided": np.asfortranarray(PIXELS),
        "rgba": rgba,
        "rgba_pil": Image.fromarray(rgba),
        "bytes": tensor,
        "floats": tensor.float() / 255,
        "halves": tensor.double() / 255,
    }


FORMS = ("pil", "path", "text", "array", "strided", "rgba", "rgba_pil", "bytes", "floats", "halves")


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_one_picture(form: str, tmp_path: Path) -> None:
    np.testing.assert_array_equal(np.asarray(as_picture(forms(tmp_path)[form])), PIXELS)


def test_a_gradient_is_left_behind() -> None:
    pixels = torch.rand(3, 4, 5, requires_grad=True)
    assert as_picture(pixels).size == (5, 4)


def test_transparent_is_white_and_grey_is_grey() -> None:
    clear = np.zeros((2, 2, 4), dtype=np.uint8)
    assert np.asarray(as_picture(clear)).min() == 255
    grey = np.array([[0, 100], [200, 255]], dtype=np.uint8)
    assert (np.asarray(as_picture(grey)) == grey[..., None]).all()
    assert (np.asarray(as_picture(Image.fromarray(grey).convert("LA"))) == grey[..., None]).all()
    palette = Image.fromarray(grey).convert("P")
    assert (np.asarray(as_picture(palette)) == grey[..., None]).all()


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_pictures_are_set_upright(orientation: int, tmp_path: Path) -> None:
    """From a file, and from a PIL image that was opened and not turned."""
    (tmp_path / "a.jpg").write_bytes(oriented("JPEG", orientation, quality=100, subsampling=0))
    with Image.open(tmp_path / "a.jpg") as opened:
        for form in (tmp_path / "a.jpg", opened):
            found = as_picture(form)
            assert found.size == (24, 16)
            np.testing.assert_allclose(np.asarray(found).astype(int), corners(), atol=3)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((4, 5, 3)), "of uint8, got float64; of values in [0, 1] that is"),
        (np.zeros((4, 5, 3), dtype=np.int64), "of uint8, got int64"),
        (np.zeros((3, 4, 5), dtype=np.uint8), "(3, 4, 5); channels come last in arrays: array.transpose(1, 2, 0)"),
        (np.zeros((2, 4, 5, 3), dtype=np.uint8), "(2, 4, 5, 3); pass one picture at a time"),
        (np.zeros((0, 5, 3), dtype=np.uint8), "got (0, 5, 3)"),
        (np.zeros(7, dtype=np.uint8), "got (7,)"),
        (torch.zeros(4, 5, 3), "got shape [4, 5, 3]; channels come first in tensors: tensor.permute(2, 0, 1)"),
        (torch.zeros(1, 3, 4, 5), "got shape [1, 3, 4, 5]; pass one picture of the batch"),
        (torch.zeros(3, 0, 5), "got shape [3, 0, 5]"),
        (torch.zeros(3, 4, 5, dtype=torch.long), "got int64"),
        (torch.full((3, 4, 5), 2.0), "got values from 2 to 2; pass it as it was before it was normalised"),
        (torch.full((3, 4, 5), -0.5), "got values from -0.5"),
        (torch.full((3, 4, 5), torch.nan), "got values from nan to nan"),
        (Image.new("F", (3, 3)), "floating-point pixels"),
        (Image.new("RGB", (0, 3)), "no pixels"),
    ],
)
def test_other_shapes_and_types_are_refused(image: Any, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        as_picture(image, "mine")


def test_files_that_are_none_are_named(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("not a picture")
    whole = oriented("JPEG", 1)
    (tmp_path / "cut.jpg").write_bytes(whole[:-40])
    for name in ("no-such.png", "text.png", "cut.jpg", ""):
        with pytest.raises(InputError, match=f"{name}: expected a picture"):
            as_picture(tmp_path / name)
    with Image.open(tmp_path / "cut.jpg") as late, pytest.raises(InputError, match="its pixels cannot be read"):
        as_picture(late)
