"""From pixels of a picture to locations of a layer's grid, and back.

Pictures are resized straight to the backbone's size, without a crop, so each grid covers all of the picture: a location
stands for an equal share of its width and height, and the location nearest to a pixel is the one whose share holds it.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool
from torch import Tensor

from devil_pipe.stages.explain.answers import Asked, Box, Point
from devil_pipe.store.errors import UsageError
from devil_pipe.store.schema import LayerSpec


def checked_point(at: Point, size: tuple[int, int]) -> Point:
    """The place, if it lies in a picture of that width and height. Raises UsageError."""
    (x, y), (width, height) = at, size
    if not (0 <= x < width and 0 <= y < height):
        raise UsageError(
            f"expected a place in the picture of {width} × {height} pixels, x from 0 to {width - 1} and y from 0 to "
            f"{height - 1}, got {x:g},{y:g}"
        )
    return at


def location(at: Point, size: tuple[int, int], layer: LayerSpec) -> tuple[int, int]:
    """Row and column of the location that holds a pixel.

    Args:
        at: x and y; a pixel n holds what lies from n to n + 1.
        size: the picture's width and height.
        layer: of any grid.

    Raises:
        UsageError: a place outside the picture.
    """
    (x, y), (width, height) = checked_point(at, size), size
    # The product of two numbers just below their limits may be rounded up to the limit.
    row, column = int(y * layer.height / height), int(x * layer.width / width)
    return min(row, layer.height - 1), min(column, layer.width - 1)


def share(row: int, column: int, size: tuple[int, int], layer: LayerSpec) -> Box:
    """The part of the picture that a location stands for, in pixels."""
    across, down = size[0] / layer.width, size[1] / layer.height
    return column * across, row * down, (column + 1) * across, (row + 1) * down


def checked_box(box: Box, size: tuple[int, int]) -> Box:
    """The box, if it has an area and lies in the picture. Raises UsageError."""
    (left, top, right, bottom), (width, height) = box, size
    if not all(math.isfinite(side) for side in box) or not (left < right and top < bottom):
        raise UsageError(
            "expected a box LEFT,TOP,RIGHT,BOTTOM in pixels with LEFT below RIGHT and TOP below BOTTOM, got "
            f"{left:g},{top:g},{right:g},{bottom:g}, which is empty"
        )
    if not (left >= 0 and top >= 0 and right <= width and bottom <= height):
        raise UsageError(
            f"expected a box inside the picture of {width} × {height} pixels, got {left:g},{top:g},{right:g},{bottom:g}"
        )
    return box


def pooled(asked: Asked, size: tuple[int, int], layer: LayerSpec) -> Bool[Tensor, " locations"]:
    """Which locations of a layer are averaged for what is asked, row by row; at least one.

    Of a box those whose middle lies in it; where it is too small for any, the location that holds the box's own middle.

    Raises:
        UsageError: a place or box outside the picture, an empty box, or both at once.
    """
    if asked.at is not None and asked.box is not None:
        raise UsageError("expected a place or a box, got both; ask twice")
    if asked.at is not None:
        return _only(location(asked.at, size, layer), layer)
    if asked.box is None:
        return torch.ones(layer.locations, dtype=torch.bool)
    left, top, right, bottom = checked_box(asked.box, size)
    x = (torch.arange(layer.width, dtype=torch.float64) + 0.5) * size[0] / layer.width
    y = (torch.arange(layer.height, dtype=torch.float64) + 0.5) * size[1] / layer.height
    there = ((y >= top) & (y < bottom))[:, None] & ((x >= left) & (x < right))[None, :]
    if there.any():
        return there.flatten()
    return _only(location(((left + right) / 2, (top + bottom) / 2), size, layer), layer)


def _only(place: tuple[int, int], layer: LayerSpec) -> Bool[Tensor, " locations"]:
    there = torch.zeros(layer.height, layer.width, dtype=torch.bool)
    there[place] = True
    return there.flatten()


def around(there: Bool[Tensor, " locations"], layer: LayerSpec) -> Bool[Tensor, " locations"]:
    """The locations that touch one of `there`, itself included: of a single location the 3 × 3 around it."""
    grid = there.reshape(1, 1, layer.height, layer.width).float()
    return torch.nn.functional.max_pool2d(grid, 3, stride=1, padding=1).flatten() > 0


def covered(there: Bool[Tensor, " locations"], size: tuple[int, int], layer: LayerSpec) -> Box:
    """What these locations stand for together, in pixels; they fill a rectangle."""
    rows, columns = there.reshape(layer.height, layer.width).nonzero().unbind(dim=1)
    left, top, _, _ = share(int(rows.min()), int(columns.min()), size, layer)
    _, _, right, bottom = share(int(rows.max()), int(columns.max()), size, layer)
    return left, top, right, bottom
