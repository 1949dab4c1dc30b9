"""From a pixel to the nearest location of any grid and back, also through the transform; boxes; what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from devil_pipe.stages.explain.answers import Asked
from devil_pipe.stages.explain.places import around, covered, location, pooled, share
from devil_pipe.stages.extract.pictures import Transform
from devil_pipe.store.errors import UsageError
from devil_pipe.store.schema import LayerSpec

GRID, SIZE = st.integers(1, 40), st.integers(1, 3000)


def layer(height: int, width: int) -> LayerSpec:
    return LayerSpec(name="l", channels=1, height=height, width=width)


@settings(deadline=None)
@given(st.data(), GRID, GRID, SIZE, SIZE)
def test_a_pixel_lies_in_the_share_of_its_location(data: st.DataObject, down: int, across: int, w: int, h: int) -> None:
    """In whole numbers, so exactly; and no other location's middle is nearer to the pixel's."""
    x, y = data.draw(st.integers(0, w - 1)), data.draw(st.integers(0, h - 1))
    grid = layer(down, across)
    row, column = location((x, y), (w, h), grid)
    assert row * h <= y * down < (row + 1) * h
    assert column * w <= x * across < (column + 1) * w
    left, top, right, bottom = share(row, column, (w, h), grid)
    assert left <= x + 1e-9 * w
    assert x < right + 1e-9 * w
    assert top <= y + 1e-9 * h
    assert y < bottom + 1e-9 * h
    middles = (np.arange(across) + 0.5) * w / across
    assert abs(middles[column] - x) <= np.abs(middles - x).min() + 1e-9 * w


@settings(deadline=None)
@given(st.data(), GRID, GRID, SIZE, SIZE)
def test_any_place_in_the_picture_has_a_location(data: st.DataObject, down: int, across: int, w: int, h: int) -> None:
    x = data.draw(st.floats(0, w, exclude_max=True))
    y = data.draw(st.floats(0, h, exclude_max=True))
    row, column = location((x, y), (w, h), layer(down, across))
    assert 0 <= row < down
    assert 0 <= column < across
    there = pooled(Asked("l", at=(x, y)), (w, h), layer(down, across))
    assert there.reshape(down, across).nonzero().tolist() == [[row, column]]


@settings(deadline=None)
@given(st.data(), st.integers(1, 6), st.integers(1, 6), st.integers(60, 300), st.integers(60, 300))
def test_what_is_painted_at_a_place_reaches_its_location(
    data: st.DataObject, down: int, across: int, w: int, h: int
) -> None:
    """Through the resize of pictures of any shape to the backbone's pixels."""
    row, column = data.draw(st.integers(0, down - 1)), data.draw(st.integers(0, across - 1))
    left, top, right, bottom = share(row, column, (w, h), layer(down, across))
    pixels = np.zeros((h, w, 3), dtype=np.uint8)
    pixels[round(top) : round(bottom), round(left) : round(right)] = 255
    made = Transform((down * 8, across * 8), (0.0,) * 3, (1.0,) * 3)(Image.fromarray(pixels))
    blocks = made[0].reshape(down, 8, across, 8).mean(dim=(1, 3))
    assert divmod(int(blocks.argmax()), across) == (row, column)
    x, y = (round(left) + round(right) - 1) // 2, (round(top) + round(bottom) - 1) // 2
    assert location((x, y), (w, h), layer(down, across)) == (row, column)


@settings(deadline=None)
@given(st.data(), GRID, GRID, SIZE, SIZE)
def test_a_box_pools_the_locations_whose_middle_it_holds(
    data: st.DataObject, down: int, across: int, w: int, h: int
) -> None:
    """Counted one by one; a box between all middles takes the location that holds its own middle."""
    x = sorted(data.draw(st.lists(st.integers(0, w), min_size=2, max_size=2, unique=True)))
    y = sorted(data.draw(st.lists(st.integers(0, h), min_size=2, max_size=2, unique=True)))
    grid, box = layer(down, across), (x[0], y[0], x[1], y[1])
    there = pooled(Asked("l", box=box), (w, h), grid).reshape(down, across)
    # (place + ½) · side / count lies in [low, high), in whole numbers
    rows = [place for place in range(down) if 2 * y[0] * down <= (2 * place + 1) * h < 2 * y[1] * down]
    columns = [place for place in range(across) if 2 * x[0] * across <= (2 * place + 1) * w < 2 * x[1] * across]
    if rows and columns:
        assert there.nonzero().tolist() == [[row, column] for row in rows for column in columns]
    else:
        middle = location(((x[0] + x[1]) / 2, (y[0] + y[1]) / 2), (w, h), grid)
        assert there.nonzero().tolist() == [list(middle)]


def test_around_is_the_neighbourhood() -> None:
    grid = layer(4, 5)
    there = torch.zeros(20, dtype=torch.bool)
    there[0] = True
    assert around(there, grid).nonzero().flatten().tolist() == [0, 1, 5, 6]
    assert around(there.roll(7), grid).sum() == 9
    assert covered(there.roll(7), (100, 40), grid) == (40, 10, 60, 20)


@pytest.mark.parametrize("at", [(-1, 5), (5, -0.1), (40, 5), (5, 30), (float("nan"), 5), (float("inf"), 5)])
def test_a_place_outside_is_refused(at: tuple[float, float]) -> None:
    with pytest.raises(UsageError, match=r"picture of 40 × 30 pixels, x from 0 to 39 and y from 0 to 29"):
        location(at, (40, 30), layer(3, 4))


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ((5, 5, 5, 9), "which is empty"),
        ((9, 5, 5, 9), "which is empty"),
        ((0, 0, float("nan"), 9), "which is empty"),
        ((0, 0, 41, 9), "inside the picture of 40 × 30"),
        ((-1, 0, 4, 9), "inside the picture of 40 × 30"),
    ],
)
def test_a_wrong_box_is_refused(box: tuple[float, float, float, float], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        pooled(Asked("l", box=box), (40, 30), layer(3, 4))
    with pytest.raises(UsageError, match="got both"):
        pooled(Asked("l", at=(1, 1), box=(0, 0, 3, 3)), (40, 30), layer(3, 4))
