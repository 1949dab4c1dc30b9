"""From a file's bytes to an upright RGB picture, or the reason why there is none: the same for every stage.

What `prepare` accepts `extract` can decode, and a report shows a picture as the backbone saw it.
"""

from __future__ import annotations

import io
import re
import struct
import threading
import warnings
from collections.abc import Iterator
from functools import cache

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

MOST_PIXELS = 178_956_970  # where Pillow itself refuses; decoding one takes 1.4 GB, an animated WebP 2.5 GB
_STRIP = 1 << 22  # pixels that are converted at a time, which keeps all steps in between small

# Named one by one: Pillow would start Ghostscript for an EPS file, and take a few stray bytes for a rare format.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM", "TGA", "ICO", "DDS")
_MAGIC = {
    rb"\xff\xd8": "JPEG",
    rb"\x89PNG": "PNG",
    rb"GIF8": "GIF",
    rb"BM": "BMP",
    rb"II[*+]\0|MM\0[*+]": "TIFF",
    rb"RIFF....WEBP": "WEBP",
    rb"....ftypavi[fs]": "AVIF",
}
_OTHERS = {
    rb"\s*(<!--.*?-->\s*)?<(!doctype html|html|head|body)\b": "an HTML page",
    rb"\s*(<\?xml.*?\?>|<!--.*?-->|<!doctype svg.*?>|\s)*<svg\b": "SVG, which has no pixels",
    rb"%PDF": "a PDF",
    rb"%!PS": "PostScript",
    rb"8BPS": "a Photoshop file",
    rb"....ftyp(hei[cfmsx]|hev[cfmsx]|mif1|msf1)": "HEIC, which is not read: save it as JPEG",
}
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_TIFF_BITS, _TIFF_PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0
_PNG_KEPT = {b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"eXIf"}
_TOO_LARGE = f"more than {MOST_PIXELS:,} pixels"
_DAMAGED = "that is cut short, damaged or of an unknown kind"
_PILLOW = re.compile(r"PIL\.")
_filtering = threading.Lock()


class PictureError(Exception):
    """A file is no picture that can be used; the message is the reason, the same in every run."""


def open_picture(content: bytes, ground: str = "white") -> Image.Image:
    """A file's first picture, decoded to its last byte, as `as_rgb` gives it; profiles and comments are left behind.

    Args:
        content: the file.
        ground: the colour that shows through where the picture is transparent.

    Raises:
        PictureError: empty, no picture, cut short, damaged, too large, or pixels of no known range.
    """
    if not content:
        raise PictureError("an empty file")
    _silence()
    try:
        picture = as_rgb(_load(content), ground)
    except (PictureError, MemoryError):
        raise
    except UnidentifiedImageError:
        raise PictureError(_what_else(content)) from None
    except Image.DecompressionBombError:
        raise PictureError(_TOO_LARGE) from None
    except Exception:  # a decoder that meets garbage may raise anything, in words that change with its version
        raise PictureError(f"{_format(content) or 'picture'} {_DAMAGED}") from None
    picture.info.clear()  # a viewer would turn it again, or apply a CMYK profile to RGB
    return picture


def as_rgb(picture: Image.Image, ground: str = "white") -> Image.Image:
    """A picture of any mode as RGB of 8 bits: upright, alpha put on `ground`, deeper grey scaled.

    Raises:
        PictureError: floating-point or 32-bit pixels, whose range nobody knows.
    """
    turn = _turn(picture)
    if picture.mode == "F":
        raise PictureError("floating-point pixels have no known range")
    if picture.mode == "I" and picture.format == "TIFF":
        raise PictureError("signed or 32-bit pixels have no known range")
    if picture.mode != "RGB" or "transparency" in picture.info:
        flat = Image.new("RGB", picture.size)
        for top, strip in _strips(picture):
            flat.paste(_flat(strip, picture, ground), (0, top))
        picture = flat
    if turn is not None:
        picture = picture.transpose(turn)
        picture.info = {}  # else its EXIF would turn it once more
    return picture


def _silence() -> None:
    """Pillow's remarks on odd files would be printed for row after row; catch_warnings is not safe in threads."""
    with _filtering:
        if not any(kind == "ignore" and module == _PILLOW for kind, _, _, module, _ in warnings.filters):
            warnings.filterwarnings("ignore", module=_PILLOW.pattern)


def _load(content: bytes) -> Image.Image:
    try:
        return _loaded(content)
    except (Image.DecompressionBombError, MemoryError, PictureError):
        raise
    except Exception:  # a decoder that meets garbage may raise anything; what it was is raised again below
        pixels = _png_without_extras(content)
        if pixels is None:
            raise
    return _loaded(pixels)


def _loaded(content: bytes) -> Image.Image:
    picture = Image.open(io.BytesIO(content), formats=_known_formats())
    if picture.width * picture.height > MOST_PIXELS:  # Pillow's own limit may have been lifted by another library
        raise PictureError(_TOO_LARGE)
    picture.load()
    if picture.format == "PNG" and "transparency" in picture.info:
        picture.info["transparency"] = _transparent(picture.info["transparency"], depth=content[24])
    return picture


def _transparent(colour: int | bytes | tuple[int, ...], depth: int) -> int | bytes | tuple[int, ...]:
    """A PNG's transparent colour in the pixels' scale: Pillow scales grey of 2 and 4 bits and RGB of 16, not this."""
    if isinstance(colour, int) and depth in (2, 4):
        return colour * 255 // ((1 << depth) - 1)
    if isinstance(colour, tuple) and depth == 16:
        return tuple(value >> 8 for value in colour)
    return colour


@cache
def _known_formats() -> tuple[str, ...]:
    """Those of the formats that this Pillow was built with."""
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def _turn(picture: Image.Image) -> Image.Transpose | None:
    """What sets a picture upright, from its EXIF; broken EXIF is as good as none."""
    try:
        return _TURNS.get(picture.getexif().get(ExifTags.Base.Orientation, 1))
    except MemoryError:
        raise
    except Exception:  # Pillow's parser meets bytes that no camera wrote, and may raise anything
        return None


def _strips(picture: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """The picture from top to bottom, some rows at a time, with each strip's first row."""
    rows = max(_STRIP // max(picture.width, 1), 1)
    for top in range(0, picture.height, rows):
        yield top, picture.crop((0, top, picture.width, min(top + rows, picture.height)))


def _flat(strip: Image.Image, whole: Image.Image, ground: str) -> Image.Image:
    if strip.mode.startswith("I"):
        strip = _eight_bits(strip, whole)
    if strip.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in strip.info:
        rgba = strip.convert("RGBA")
        strip = Image.alpha_composite(Image.new("RGBA", rgba.size, ground), rgba)
    return strip.convert("RGB")


def _eight_bits(strip: Image.Image, whole: Image.Image) -> Image.Image:
    """Grey levels of 12 or 16 bits as 8: Pillow's own conversion cuts them off at 255."""
    tags = getattr(whole, "tag_v2", {})
    most = 2 ** tags.get(_TIFF_BITS, (16,))[0] - 1
    levels = np.asarray(strip).astype(np.int64)
    grey = ((levels.clip(0, most) * 255 + most // 2) // most).astype(np.uint8)
    if tags.get(_TIFF_PHOTOMETRIC) == _WHITE_IS_ZERO:  # Pillow turns these round for 8 bits, and not for 16
        grey = 255 - grey
    key = strip.info.get("transparency")
    if key is None:
        return Image.fromarray(grey)
    return Image.fromarray(np.stack([grey, np.where(levels == key, 0, 255).astype(np.uint8)], axis=-1))


def _png_without_extras(content: bytes) -> bytes | None:
    """A PNG without what its pixels do not need, such as a broken profile or animation; None for anything else."""
    if not content.startswith(b"\x89PNG\r\n\x1a\n"):
        return None
    kept, at = [content[:8]], 8
    while at + 8 <= len(content):
        length, kind = struct.unpack(">I4s", content[at : at + 8])
        if kind in _PNG_KEPT:
            kept.append(content[at : at + 12 + length])
        at += 12 + length
    return b"".join(kept)


def _format(content: bytes) -> str | None:
    return next((name for magic, name in _MAGIC.items() if re.match(magic, content[:16], re.DOTALL)), None)


def _what_else(content: bytes) -> str:
    """What bytes are that no decoder takes for its own."""
    if name := _format(content):
        return f"{name} {_DAMAGED}"
    for pattern, name in _OTHERS.items():
        if re.match(pattern, content[:2048].removeprefix(b"\xef\xbb\xbf"), re.DOTALL | re.IGNORECASE):
            return f"not a picture: {name}"
    return "not a picture"
