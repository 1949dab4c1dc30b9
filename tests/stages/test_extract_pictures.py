"""From bytes to pixels: every kind of picture that people have, and a reason for every one that is broken."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from devil_pipe.stages.extract.backbones import IMAGENET
from devil_pipe.stages.extract.pictures import Transform

from .odd_pictures import ORIENTATIONS, broken, corners, encoded, noise, oriented

PLAIN = Transform(32, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def decoded(content: bytes, transform: Transform = PLAIN) -> Tensor:
    pixels = transform.decode(content)
    assert isinstance(pixels, Tensor), pixels
    return pixels


def colour(content: bytes) -> np.ndarray:
    """The one colour, 0 to 255, of a picture that has only one."""
    pixels = decoded(content)
    assert pixels.shape == (3, 32, 32)
    first = pixels[:, :1, :1]
    torch.testing.assert_close(pixels, first.expand_as(pixels))
    return first.flatten().numpy() * 255


def on_white(values: tuple[int, ...], alpha: int) -> list[float]:
    return [value * alpha / 255 + 255 * (1 - alpha / 255) for value in values]


def test_scaling_is_by_channel() -> None:
    pixels = decoded(encoded(Image.new("RGB", (50, 20), (10, 100, 250)), "PNG"), Transform(40, *IMAGENET))
    assert (pixels.dtype, pixels.shape) == (torch.float32, (3, 40, 40))
    for channel, value in enumerate((10, 100, 250)):
        expected = (value / 255 - IMAGENET[0][channel]) / IMAGENET[1][channel]
        assert pixels[channel].flatten().tolist() == pytest.approx([expected] * 1600, abs=1e-5)


def test_the_whole_picture_is_seen_without_a_crop() -> None:
    """A wide picture with a red left edge and a blue right edge keeps both, and its top stays at the top."""
    picture = Image.new("RGB", (400, 64), "black")
    picture.paste((255, 0, 0), (0, 0, 40, 64))
    picture.paste((0, 0, 255), (360, 0, 400, 64))
    picture.paste((0, 255, 0), (40, 0, 360, 16))
    pixels = decoded(encoded(picture, "PNG"))
    assert pixels[0, 20, 0] == 1
    assert pixels[2, 20, 31] == 1
    assert pixels[1, 1, 16] == 1
    assert pixels[:, 30, 16].max() == 0


@pytest.mark.parametrize("alpha", [0, 1, 128, 255])
def test_transparency_is_put_on_white(alpha: int) -> None:
    kinds: list[tuple[Image.Image, tuple[int, ...]]] = [
        (Image.new("RGBA", (9, 7), (200, 30, 90, alpha)), (200, 30, 90)),
        (Image.new("LA", (9, 7), (40, alpha)), (40, 40, 40)),
    ]
    for picture, bare in kinds:
        np.testing.assert_allclose(colour(encoded(picture, "PNG")), on_white(bare, alpha), atol=1)


def test_transparency_by_palette_or_by_colour_key_is_put_on_white() -> None:
    palette = Image.new("P", (9, 7), 1)
    palette.putpalette([1, 2, 3, 200, 30, 90])
    np.testing.assert_allclose(colour(encoded(palette, "PNG")), [200, 30, 90])
    half = encoded(palette, "PNG", transparency=b"\xff\x80")
    np.testing.assert_allclose(colour(half), on_white((200, 30, 90), 128), atol=1)
    assert colour(encoded(palette, "GIF", transparency=1)).tolist() == [255, 255, 255]
    key = Image.new("RGB", (9, 7), (7, 8, 9))
    assert colour(encoded(key, "PNG", transparency=(7, 8, 9))).tolist() == [255, 255, 255]
    np.testing.assert_allclose(colour(encoded(key, "PNG", transparency=(7, 8, 10))), [7, 8, 9])


@pytest.mark.parametrize("level", [0, 1, 77, 254, 255])
def test_grey_of_any_depth_is_the_same_grey(level: int) -> None:
    deep = Image.fromarray(np.full((7, 9), level * 257, dtype=np.uint16))  # 65535 is white
    kinds = [
        encoded(Image.new("L", (9, 7), level), "PNG"),
        encoded(Image.new("L", (9, 7), level), "JPEG", quality=100),
        encoded(deep, "PNG"),
        encoded(deep, "TIFF"),
    ]
    for content in kinds:
        np.testing.assert_allclose(colour(content), [level] * 3, atol=1e-4)


def test_black_and_white_and_cmyk() -> None:
    assert colour(encoded(Image.new("1", (9, 7), 1), "PNG")).tolist() == [255, 255, 255]
    ink = (10, 200, 60, 40)
    expected = [(255 - part) * (255 - ink[3]) / 255 for part in ink[:3]]
    for kind, options in (("JPEG", {"quality": 100}), ("TIFF", {})):
        np.testing.assert_allclose(colour(encoded(Image.new("CMYK", (16, 16), ink), kind, **options)), expected, atol=3)


def test_float_pixels_have_no_known_range() -> None:
    content = encoded(Image.fromarray(np.zeros((4, 4), dtype=np.float32)), "TIFF")
    assert PLAIN.decode(content) == "cannot be decoded: floating-point pixels have no known range"


@pytest.mark.parametrize("name", broken())
def test_what_gives_no_picture_gives_the_reason(name: str) -> None:
    content, reason = broken()[name]
    assert PLAIN.decode(content) == f"cannot be decoded: {reason}"


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_a_turned_picture_has_the_pixels_of_the_upright_one(orientation: int) -> None:
    shown = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    upright = encoded(Image.fromarray(shown), "PNG")
    torch.testing.assert_close(decoded(oriented("PNG", orientation, shown)), decoded(upright), rtol=0, atol=0)
    red, green, blue = decoded(oriented("PNG", orientation, corners())).round()
    assert [
        (int(red[row, column]), int(green[row, column]), int(blue[row, column]))
        for row in (1, -2)
        for column in (1, -2)
    ] == [
        (1, 0, 0),
        (0, 1, 0),
        (0, 0, 1),
        (1, 1, 0),
    ]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP"])
@pytest.mark.parametrize("share", [0.5, 0.9])
def test_a_cut_picture_has_a_reason(kind: str, share: float) -> None:
    content = noise(kind)
    reason = PLAIN.decode(content[: int(len(content) * share)])
    assert isinstance(reason, str)
    assert reason == f"cannot be decoded: {kind} that is cut short, damaged or of an unknown kind"


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "DDS"])
def test_damage_anywhere_gives_pixels_or_a_reason_never_an_error(kind: str) -> None:
    content, draw = noise(kind), random.Random(0)
    for _ in range(300):
        damaged = bytearray(content)
        for _ in range(draw.choice((1, 2, 5, 20))):
            damaged[draw.randrange(min(len(damaged), draw.choice((16, 64, 400, 10**6))))] = draw.randrange(256)
        result = PLAIN.decode(bytes(damaged[: draw.randrange(1, len(damaged) + 1)]))
        if isinstance(result, str):
            assert result.startswith("cannot be decoded: ")
            assert len(result) <= 200
        else:
            assert result.shape == (3, 32, 32)


def test_what_enters_the_identity_is_all_that_decides() -> None:
    described = Transform(64, (0.1, 0.2, 0.3), (1.0, 2.0, 3.0)).describe()
    assert described == {
        "resize": [64, 64],
        "interpolation": "bicubic",
        "orientation": "exif",
        "transparency": "white",
        "mean": [0.1, 0.2, 0.3],
        "std": [1.0, 2.0, 3.0],
    }
