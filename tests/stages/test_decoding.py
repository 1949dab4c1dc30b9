"""Every stage sees a file as a person sees it: upright, whole, of the right colours; or there is a reason."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from devil_pipe.stages.common.decoding import as_rgb, open_picture

from .odd_pictures import (
    ORIENTATIONS,
    chunk,
    corners,
    encoded,
    grey_tiff,
    noise,
    oriented,
    png,
)

LOSSLESS: dict[str, tuple[str, dict[str, Any]]] = {
    "PNG": ("PNG", {}),
    "WebP": ("WEBP", {"lossless": True}),
    "TIFF": ("TIFF", {}),
    "TIFF, compressed": ("TIFF", {"compression": "tiff_lzw"}),
}


def shown(content: bytes) -> np.ndarray:
    """The pixels [rows, columns, 3] from 0 to 255."""
    return np.asarray(open_picture(content))


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("kind", LOSSLESS)
def test_a_turned_picture_is_set_upright(kind: str, orientation: int) -> None:
    form, options = LOSSLESS[kind]
    np.testing.assert_array_equal(shown(oriented(form, orientation, **options)), corners())


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("kind", ["JPEG", "MPO"])
def test_a_turned_photograph_is_set_upright(kind: str, orientation: int) -> None:
    content = oriented(kind, orientation, quality=100, subsampling=0)
    np.testing.assert_allclose(shown(content).astype(int), corners(), atol=3)


def test_a_picture_that_is_upright_is_not_turned_again() -> None:
    upright = open_picture(oriented("PNG", 6))
    np.testing.assert_array_equal(np.asarray(as_rgb(upright)), corners())
    again = encoded(upright, "PNG")  # as a report shows it
    np.testing.assert_array_equal(shown(again), corners())
    with Image.open(io.BytesIO(again)) as picture:
        assert dict(picture.getexif()) == {}


@pytest.mark.parametrize(
    "exif",
    [
        b"",
        b"Exif\0\0",
        b"Exif\0\0junk",
        b"Exif\0\0II*\0\xff\xff\xff\xff",
        b"Exif\0\0MM\0*\0\0\0\x08\xff\xff",
        b"\0" * 99,
    ],
)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_broken_exif_is_as_good_as_none(kind: str, exif: bytes) -> None:
    options: dict[str, Any] = {"lossless": True} if kind == "WEBP" else {}
    np.testing.assert_array_equal(shown(noise(kind, exif=exif, **options)), shown(noise(kind, **options)))


@pytest.mark.parametrize(("kind", "value"), [(3, 0), (3, 9), (3, 65535), (2, ord("6")), (11, 6), (99, 6)])
def test_an_orientation_that_is_none_turns_nothing(kind: int, value: int) -> None:
    """A number that means nothing, a text, half a float, a type that does not exist."""
    exif = b"Exif\0\0II*\0\x08\0\0\0\x01\0" + struct.pack("<HHII", 0x0112, kind, 1, value) + bytes(4)
    np.testing.assert_array_equal(shown(encoded(Image.fromarray(corners()), "PNG", exif=exif)), corners())


@pytest.mark.parametrize(
    "extra",
    {
        "profile of an unknown kind": chunk(b"iCCP", b"x\0\7junk"),
        "profile that does not inflate": chunk(b"iCCP", b"x\0\0junk"),
        "text that inflates to 10 MB": chunk(b"zTXt", b"x\0\0" + zlib.compress(bytes(10**7))),
        "wrong checksum": chunk(b"gAMA", b"\0\0\0\1")[:-1] + b"\0",
        "short chunk": chunk(b"pHYs", b"\0"),
        "animation of no frames": chunk(b"acTL", bytes(8)),
        "stray frame": chunk(b"fcTL", bytes(26)),
    }.items(),
    ids=lambda item: item[0],
)
def test_a_png_is_read_whatever_is_wrong_beside_its_pixels(extra: tuple[str, bytes]) -> None:
    assert shown(png(1, 1, 8, 2, [b"\1\2\3"], extra[1])).tolist() == [[[1, 2, 3]]]


@pytest.mark.parametrize("profile", [b"junk", b"\0" * 128, b"x" * 200_000])
@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "TIFF"])
def test_a_broken_profile_changes_no_pixel(kind: str, profile: bytes) -> None:
    np.testing.assert_array_equal(shown(noise(kind, icc_profile=profile)), shown(noise(kind)))


INK = (10, 200, 60, 40)


def test_cmyk_of_adobe() -> None:
    """Adobe's JPEGs hold 255 − ink; a YCCK file holds YCbCr of the RGB that the first three stand for."""
    expected = [(255 - part) * (255 - INK[3]) / 255 for part in INK[:3]]
    content = encoded(Image.new("CMYK", (16, 16), INK), "JPEG", quality=100)
    np.testing.assert_allclose(shown(content)[5, 5], expected, atol=2)
    mark = content.index(b"Adobe") + 11
    assert content[mark] == 0  # the colour transform: none
    luma, blue, red = (255 - part for part in INK[:3])  # what the file holds, read now as Y, Cb and Cr
    rgb = (
        np.array([1.402 * (red - 128), -0.344136 * (blue - 128) - 0.714136 * (red - 128), 1.772 * (blue - 128)]) + luma
    )
    # libjpeg gives CMY as 255 − RGB, and Adobe's turned-round ink makes that the light that is left.
    light = (255 - rgb.clip(0, 255)) * (255 - INK[3]) / 255
    np.testing.assert_allclose(shown(content[:mark] + b"\2" + content[mark + 1 :])[5, 5], light, atol=3)


def test_sixteen_bits_of_colour() -> None:
    deep = np.array([[0, 257, 65535], [25700, 30000, 65000]], dtype=">u2")
    pixels = shown(png(2, 1, 16, 2, [deep.tobytes()]))
    np.testing.assert_allclose(pixels[0], deep.astype(int) / 257, atol=1)
    with_alpha = np.array([[40 * 257, 128 * 257], [40 * 257, 0]], dtype=">u2")
    expected = [40 * 128 / 255 + 255 * 127 / 255, 255]
    np.testing.assert_allclose(shown(png(2, 1, 16, 4, [with_alpha.tobytes()]))[0, :, 0], expected, atol=1)


@pytest.mark.parametrize("white_is_zero", [False, True])
@pytest.mark.parametrize("bits", [12, 16])
def test_deep_grey_tiffs(bits: int, white_is_zero: bool) -> None:
    if bits == 12 and white_is_zero:
        pytest.skip("Pillow knows no such TIFF")
    levels = [0, 1000, 2048, 4095]
    if bits == 12:
        packed = b"".join((a << 12 | b).to_bytes(3, "big") for a, b in zip(levels[::2], levels[1::2], strict=True))
    else:
        levels = [level * 16 for level in levels]
        packed = np.array(levels, dtype="<u2").tobytes()
    light = np.array(levels) / (2**bits - 1) * 255
    pixels = shown(grey_tiff(4, 1, bits, packed, white_is_zero))
    np.testing.assert_allclose(pixels[0, :, 0], 255 - light if white_is_zero else light, atol=0.51)


@pytest.mark.parametrize(
    ("depth", "row"), [(1, b"\x40"), (2, b"\x60"), (4, b"\x5a"), (8, b"\x05\x0a"), (16, b"\x12\x34\x56\x78")]
)
def test_a_transparent_grey_of_any_depth_shows_the_ground(depth: int, row: bytes) -> None:
    first = int.from_bytes(row) >> (8 * len(row) - depth)
    second = (int.from_bytes(row) >> (8 * len(row) - 2 * depth)) % 2**depth
    content = png(2, 1, depth, 0, [row], chunk(b"tRNS", first.to_bytes(2)))
    seen = second / (2**depth - 1) * 255
    np.testing.assert_allclose(shown(content)[0, :, 0], [255, seen], atol=0.51)
    np.testing.assert_allclose(np.asarray(open_picture(content, "black"))[0, :, 0], [0, seen], atol=0.51)


def test_a_transparent_colour_of_sixteen_bits_shows_the_ground() -> None:
    colours = np.array([[0x1234, 0x5678, 0x9ABC], [0x4321, 0x5678, 0x9ABC]], dtype=">u2")
    pixels = shown(png(2, 1, 16, 2, [colours.tobytes()], chunk(b"tRNS", colours[0].tobytes())))
    assert pixels[0].tolist() == [[255, 255, 255], [0x43, 0x56, 0x9A]]


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF", "MPO", "AVIF"])
def test_of_several_frames_the_first_is_seen(kind: str) -> None:
    frames = [Image.new("RGB", (24, 16), colour) for colour in ("red", "lime", "blue")]
    content = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    with Image.open(io.BytesIO(content)) as picture:
        assert getattr(picture, "n_frames", 1) == 3
    np.testing.assert_allclose(shown(content).astype(int), np.broadcast_to([255, 0, 0], (16, 24, 3)), atol=3)


@pytest.mark.parametrize("size", [(1, 1), (1, 40_000), (40_000, 40), (40_000, 1)])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "BMP"])
def test_any_shape_is_read(kind: str, size: tuple[int, int]) -> None:
    """The first half along the longer side is red, the second blue."""
    pixels = np.zeros((size[1], size[0], 3), dtype=np.uint8)
    pixels[:, :] = (0, 0, 255)
    pixels[: (size[1] + 1) // 2 if size[1] > size[0] else None, : None if size[1] > size[0] else (size[0] + 1) // 2] = (
        255,
        0,
        0,
    )
    options = {"quality": 100, "subsampling": 0} if kind == "JPEG" else {}
    np.testing.assert_allclose(shown(encoded(Image.fromarray(pixels), kind, **options)).astype(int), pixels, atol=3)


@pytest.mark.parametrize("kind", ["RGBA", "P", "I;16", "CMYK"])
def test_a_picture_made_rgb_in_strips_is_that_made_at_once(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (31, 24, 4), dtype=np.uint8)
    picture = Image.fromarray(pixels)
    if kind == "I;16":
        picture = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
    elif kind != "RGBA":
        picture = picture.convert("RGB").convert(kind)
    content = encoded(picture, "TIFF" if kind == "CMYK" else "PNG")
    whole = shown(content)
    monkeypatch.setattr("devil_pipe.stages.common.decoding._STRIP", 7 * 24)
    np.testing.assert_array_equal(shown(content), whole)
    if kind == "RGBA":
        opaque = pixels[..., 3:] / 255
        np.testing.assert_allclose(whole, pixels[..., :3] * opaque + 255 * (1 - opaque), atol=1)
