"""Pixel, location and box on any grid and any picture size, in whole numbers; beside `test_explain_places.py`."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from devil_pipe.stages.explain.answers import Asked
from devil_pipe.stages.explain.places import covered, location, pooled, share
from devil_pipe.stages.extract.pictures import Transform, sides
from devil_pipe.stages.saliency.crops import SIZES, centre_crops
from devil_pipe.store.schema import LayerSpec

from .profiles import cases, few

GRID, SIZE = st.integers(1, 40), st.integers(1, 3000)


def layer(height: int, width: int) -> LayerSpec:
    return LayerSpec(name="l", channels=1, height=height, width=width)


@cases
@given(GRID, GRID, SIZE, SIZE)
def test_shares_tile_the_frame(down: int, across: int, w: int, h: int) -> None:
    """Edge to edge without gap or overlap, from 0 to the picture's size, all of one size."""
    of = layer(down, across)
    assert share(0, 0, (w, h), of)[:2] == (0, 0)
    assert share(down - 1, across - 1, (w, h), of)[2:] == pytest.approx((w, h))
    for row in range(down):
        for column in range(across):
            left, top, right, bottom = share(row, column, (w, h), of)
            assert (left, top) == pytest.approx((float(Fraction(column * w, across)), float(Fraction(row * h, down))))
            if column:
                assert share(row, column - 1, (w, h), of)[2] == left
            if row:
                assert share(row - 1, column, (w, h), of)[3] == top
            # The middle of a share lies in it, so there and back again is the same place.
            middle = ((left + right) / 2, (top + bottom) / 2)
            assert location(middle, (w, h), of) == (row, column)


@cases
@given(st.data(), GRID, GRID, SIZE, SIZE)
def test_further_right_is_never_further_left(data: st.DataObject, down: int, across: int, w: int, h: int) -> None:
    of = layer(down, across)
    xs = sorted(data.draw(st.lists(st.floats(0, w, exclude_max=True), min_size=2, max_size=9)))
    ys = sorted(data.draw(st.lists(st.floats(0, h, exclude_max=True), min_size=len(xs), max_size=len(xs))))
    found = [location((x, y), (w, h), of) for x, y in zip(xs, ys, strict=True)]
    rows, columns = [row for row, _ in found], [column for _, column in found]
    assert rows == sorted(rows)
    assert columns == sorted(columns)
    # Mirrored, a place that is not on an edge has the mirrored location.
    for x, (_, column) in zip(xs, found, strict=True):
        exact = Fraction(x) * across / w
        if abs(exact - round(exact)) > Fraction(1, 10**6):
            assert location((w - x, 0), (w, h), of)[1] == across - 1 - column


@cases
@given(st.data(), GRID, GRID, SIZE, SIZE)
def test_what_a_box_takes_covers_nearly_the_box(data: st.DataObject, down: int, across: int, w: int, h: int) -> None:
    """The shares of what is pooled reach over the box's edges by half a share at most; larger boxes take no less."""
    of = layer(down, across)
    x = sorted(data.draw(st.lists(st.integers(0, w), min_size=2, max_size=2, unique=True)))
    y = sorted(data.draw(st.lists(st.integers(0, h), min_size=2, max_size=2, unique=True)))
    there = pooled(Asked("l", box=(x[0], y[0], x[1], y[1])), (w, h), of)
    assert bool(there.any())
    left, top, right, bottom = covered(there, (w, h), of)
    assert 0 <= left < right <= w * (1 + 1e-12)
    assert 0 <= top < bottom <= h * (1 + 1e-12)
    grid = there.reshape(down, across)
    rows, columns = int(grid.any(dim=1).sum()), int(grid.any(dim=0).sum())
    assert rows * columns == int(there.sum())  # a rectangle
    if x[1] - x[0] >= w / across and y[1] - y[0] >= h / down:  # holds a middle for certain
        for edge, end, part in ((left, x[0], w / across), (right, x[1], w / across)):
            assert abs(edge - end) <= part / 2 + 1e-6 * w
        for edge, end, part in ((top, y[0], h / down), (bottom, y[1], h / down)):
            assert abs(edge - end) <= part / 2 + 1e-6 * h
    whole = pooled(Asked("l", box=(0, 0, w, h)), (w, h), of)
    assert bool(whole.all())
    assert covered(whole, (w, h), of) == pytest.approx((0, 0, w, h))


@few
@given(st.data(), st.integers(1, 7), st.integers(1, 7), st.integers(1, 200), st.integers(1, 200))
def test_the_transform_turns_a_pixel_into_its_location(
    data: st.DataObject, down: int, across: int, w: int, h: int
) -> None:
    """A gradient through the resize: its value in the middle of a location's share is that of the share's middle."""
    ramp = np.zeros((h, w, 3), dtype=np.uint8)
    ramp[..., 0] = np.round((np.arange(w) + 0.5) * 255 / w)[None, :]
    ramp[..., 1] = np.round((np.arange(h) + 0.5) * 255 / h)[:, None]
    size = (down * 16, across * 16)
    made = Transform(size, (0.0,) * 3, (1.0,) * 3, "bilinear")(Image.fromarray(ramp)) * 255
    assert made.shape[1:] == sides(size)
    row, column = data.draw(st.integers(0, down - 1)), data.draw(st.integers(0, across - 1))
    left, top, right, bottom = share(row, column, (w, h), layer(down, across))
    x, y = (left + right) / 2 / w * 255, (top + bottom) / 2 / h * 255
    part = made[:, row * 16 : row * 16 + 16, column * 16 : column * 16 + 16].mean(dim=(1, 2))
    # Of a small picture the resize repeats the outermost pixels: half of one at each edge.
    assert abs(float(part[0]) - x) <= 1 + 127.5 / w
    assert abs(float(part[1]) - y) <= 1 + 127.5 / h


@few
@given(st.integers(1, 600), st.integers(1, 600))
def test_crops_keep_the_middle(w: int, h: int) -> None:
    """Each crop is the middle of the next larger one; the largest is the whole picture, whatever its aspect."""
    noise = np.random.default_rng(w * h).integers(0, 256, (h, w, 3), dtype=np.uint8)
    crops = [np.asarray(crop) for crop in centre_crops(Image.fromarray(noise))]
    assert [crop.shape for crop in crops] == [(size, size, 3) for size in SIZES]
    for small, large in pairwise(crops):
        edge = (len(large) - len(small)) // 2
        np.testing.assert_array_equal(large[edge : edge + len(small), edge : edge + len(small)], small)
    whole = torch.from_numpy(np.array(Image.fromarray(noise).resize((224, 224), Image.Resampling.BICUBIC)))
    np.testing.assert_array_equal(crops[-1], whole.numpy())
