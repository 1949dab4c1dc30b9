"""Pointing, overlap and the maps that know nothing, in closed form."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from devil_pipe.stages.saliency.localisation import (
    centre_prior,
    distance_from_centre,
    enlarge,
    overlap,
    points_at,
    random_map,
    read_mask_image,
)
from devil_pipe.stages.saliency.overlays import draw


def quarter(down: int, right: int, size: int = 32) -> np.ndarray:
    mask = np.zeros((size, size), dtype=bool)
    half = size // 2
    mask[down * half : (down + 1) * half, right * half : (right + 1) * half] = True
    return mask


def peak(down: int, right: int, size: int = 4) -> np.ndarray:
    values = np.zeros((size, size))
    values[down, right] = 1
    return values


def test_enlarging_keeps_constant_maps_and_means() -> None:
    assert np.array_equal(enlarge(np.full((3, 5), -2.5), 40, 60), np.full((40, 60), -2.5))
    values = np.random.default_rng(0).normal(size=(4, 4))
    assert enlarge(values, 64, 64).shape == (64, 64)
    assert np.allclose(enlarge(values, 4, 4), values)
    assert enlarge(values, 64, 64).max() <= values.max() + 1e-6


def test_enlarging_puts_values_at_the_middle_of_their_location() -> None:
    """Between the middles of two locations the map is a straight line: 0 and 1 at pixels 3.5 and 11.5 of 16."""
    line = enlarge(np.array([[0.0, 1.0]]), 1, 16)[0]
    assert np.allclose(line, np.clip((np.arange(16) - 3.5) / 8, 0, 1), atol=1e-6)


def test_enlarging_a_wide_map_keeps_rows_and_columns_apart() -> None:
    large = enlarge(np.array([[0.0, 0.0, 1.0], [0.0, 0.0, 0.0]]), 20, 60)
    assert np.unravel_index(large.argmax(), large.shape)[0] < 10
    assert np.unravel_index(large.argmax(), large.shape)[1] >= 40


@pytest.mark.parametrize(("down", "right"), [(0, 0), (0, 3), (3, 0), (3, 3)])
def test_a_peak_points_at_its_quarter_alone(down: int, right: int) -> None:
    for row in (0, 1):
        for column in (0, 1):
            assert points_at(peak(down, right), quarter(row, column)) == ((row, column) == (down // 2, right // 2))


def test_overlap_in_closed_form() -> None:
    mask = quarter(0, 1)
    values = np.random.default_rng(0).random((32, 32))
    assert overlap(values + 2 * mask, mask) == 1
    assert overlap(values - 2 * mask, mask) == 0
    half = mask & (np.arange(32)[:, None] < 8)  # the half of the mask, and as much outside it
    other = quarter(1, 0) & (np.arange(32)[:, None] >= 24)
    assert overlap(values + 2 * (half | other), mask) == pytest.approx(1 / 3)


def test_overlap_and_pointing_know_no_scale() -> None:
    values, mask = np.random.default_rng(1).normal(size=(7, 7)), quarter(1, 1)
    assert overlap(5 * values - 3, mask) == overlap(values, mask)
    assert points_at(5 * values - 3, mask) == points_at(values, mask)


def test_overlap_of_noise_is_that_of_chance() -> None:
    """Equal areas a, drawn at random: a² in common of 2a − a²."""
    mask = quarter(0, 0, 64)
    found = [overlap(random_map(0, picture, 64), mask) for picture in range(40)]
    assert np.mean(found) == pytest.approx((1 / 16) / (1 / 2 - 1 / 16), abs=0.01)


def test_a_mask_that_covers_all_is_always_hit() -> None:
    whole = np.ones((16, 24), dtype=bool)
    assert points_at(random_map(0, 0), whole)
    assert overlap(random_map(0, 0), whole) == 1


def test_the_centre_prior_is_highest_in_the_middle_and_falls_all_around() -> None:
    for size in (3, 7, 9):
        values = centre_prior(size)
        middle = size // 2
        assert np.unravel_index(values.argmax(), values.shape) == (middle, middle)
        assert np.array_equal(values, values.T)
        assert np.allclose(values, values[::-1, ::-1], atol=1e-12)
        assert (np.diff(values[middle, middle:]) < 0).all()
    square = np.zeros((64, 64), dtype=bool)
    square[24:40, 24:40] = True
    assert points_at(centre_prior(), square)
    assert not points_at(centre_prior(), ~square)


def test_random_maps_are_repeatable_and_differ() -> None:
    maps = [random_map(seed, picture) for seed in (0, 1) for picture in (0, 1)]
    assert np.array_equal(maps[0], random_map(0, 0))
    assert len({item.tobytes() for item in maps}) == 4


def test_distance_from_the_centre() -> None:
    assert distance_from_centre(np.ones((10, 20), dtype=bool)) == pytest.approx(0, abs=1e-12)
    assert distance_from_centre(quarter(0, 1)) == pytest.approx(0.25)
    wide = np.zeros((10, 100), dtype=bool)
    wide[5, 99] = True
    assert distance_from_centre(wide) == pytest.approx(0.495)
    assert distance_from_centre(wide.T) == pytest.approx(0.495)


def test_a_mask_is_what_is_not_black() -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.uint8([[0, 255], [255, 0]])).convert("RGB").save(buffer, "PNG")
    assert read_mask_image(buffer.getvalue()).tolist() == [[False, True], [True, False]]


GREY = np.uint8(np.tile(np.linspace(0, 255, 32), (32, 1)))


def overlay(values: np.ndarray, folder: Path, scale: float = 4.0) -> np.ndarray:
    colours = Image.merge("RGB", [Image.fromarray(GREY)] * 3)
    draw(values, colours, scale, folder / "overlay.png")
    return np.asarray(Image.open(folder / "overlay.png")).astype(float)


def test_a_map_of_zeros_leaves_a_grey_picture(tmp_path: Path) -> None:
    found = overlay(np.zeros((4, 4)), tmp_path)
    assert np.abs(found - found.mean(axis=2, keepdims=True)).max() <= 2
    assert (np.diff(found[0].mean(axis=1)) >= 0).all()
    assert np.corrcoef(found[..., 0].ravel(), GREY.ravel())[0, 1] > 0.999


def test_red_is_above_the_prior_and_blue_below_by_as_much(tmp_path: Path) -> None:
    above, below = (overlay(np.full((2, 2), sign * 3.0), tmp_path) for sign in (1, -1))
    assert (above[..., 0] > above[..., 2] + 20).all()
    assert (below[..., 2] > below[..., 0] + 20).all()


def test_the_scale_is_the_same_for_all_maps_and_clips(tmp_path: Path) -> None:
    """A map's own range plays no part: the same value has the same colour whatever stands beside it."""
    alone = overlay(np.full((2, 2), 1.0), tmp_path)
    beside = overlay(np.array([[1.0, 1.0], [1.0, -9.0]]), tmp_path)
    assert np.array_equal(alone[:4, :4], beside[:4, :4])
    assert np.array_equal(overlay(np.full((2, 2), 4.0), tmp_path), overlay(np.full((2, 2), 400.0), tmp_path))
    assert np.array_equal(overlay(np.full((2, 2), 1.0), tmp_path, 2.0), overlay(np.full((2, 2), 3.0), tmp_path, 6.0))
