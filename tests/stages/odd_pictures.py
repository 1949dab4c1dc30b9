"""Pictures as people have them, and files that are none: written by Pillow, or byte by byte where it writes none."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

DAMAGED = "that is cut short, damaged or of an unknown kind"
TOO_LARGE = "more than 178,956,970 pixels"
# EXIF 2.3, tag 0x0112: the sides of the picture as it is shown that the stored row 0 and column 0 are.
ORIENTATIONS = {
    1: ("top", "left"),
    2: ("top", "right"),
    3: ("bottom", "right"),
    4: ("bottom", "left"),
    5: ("left", "top"),
    6: ("right", "top"),
    7: ("right", "bottom"),
    8: ("left", "bottom"),
}


def encoded(picture: Image.Image, kind: str, **options: Any) -> bytes:
    """A picture as a file of that kind."""
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(kind: str, **options: Any) -> bytes:
    """A small file of noise."""
    pixels = np.random.default_rng(0).integers(0, 256, (20, 24, 3), dtype=np.uint8)
    return encoded(Image.fromarray(pixels), kind, **options)


def corners() -> np.ndarray:
    """24 wide, 16 high: red, green, blue and yellow from the top left corner round by rows, none like another."""
    shown = np.zeros((16, 24, 3), dtype=np.uint8)
    shown[:8, :12], shown[:8, 12:], shown[8:, :12], shown[8:, 12:] = (
        (255, 0, 0),
        (0, 255, 0),
        (0, 0, 255),
        (255, 255, 0),
    )
    return shown


def turned(shown: np.ndarray, orientation: int) -> np.ndarray:
    """What a camera stores, by EXIF's own words, for a viewer to show `shown`."""
    row, column = ORIENTATIONS[orientation]
    stored = shown.swapaxes(0, 1) if row in ("left", "right") else shown
    if row in ("bottom", "right"):
        stored = stored[::-1]
    if column in ("bottom", "right"):
        stored = stored[:, ::-1]
    return np.ascontiguousarray(stored)


def oriented(kind: str, orientation: int, shown: np.ndarray | None = None, **options: Any) -> bytes:
    """A file that is stored turned and says so in its EXIF."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = turned(corners() if shown is None else shown, orientation)
    return encoded(Image.fromarray(stored), kind, exif=exif, **options)


def chunk(kind: bytes, data: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, depth: int, colour: int, rows: Sequence[bytes], *extra: bytes) -> bytes:
    """A PNG of any depth (bits) and colour type (0 grey, 2 RGB, 3 palette, 4 grey and alpha, 6 RGBA)."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows)))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(extra) + pixels + chunk(b"IEND", b"")


def bomb(width: int = 40_000, height: int = 40_000) -> bytes:
    """A PNG that claims more than it has."""
    return png(width, height, 1, 0, [bytes(5001)])


def grey_tiff(width: int, height: int, bits: int, data: bytes, white_is_zero: bool = False) -> bytes:
    """An uncompressed grey TIFF of one strip."""
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: int(not white_is_zero), 273: 8, 277: 1, 278: height}
    entries = [struct.pack("<HHII", tag, 4 if tag == 273 else 3, 1, value) for tag, value in tags.items()]
    entries.append(struct.pack("<HHII", 279, 4, 1, len(data)))
    folder = struct.pack("<H", len(entries)) + b"".join(entries) + bytes(4)
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + folder


def broken() -> dict[str, tuple[bytes, str]]:
    """Files that give no picture, and the reason for each."""
    return {
        "nothing": (b"", "an empty file"),
        "text": (b"a text that is called .jpg\n", "not a picture"),
        "zeros": (bytes(5000), "not a picture"),
        "HTML": (b"<!DOCTYPE html>\n<html><body>404</body></html>", "not a picture: an HTML page"),
        "HTML with a mark": (b"\xef\xbb\xbf\r\n<HTML lang='en'>", "not a picture: an HTML page"),
        "SVG": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not a picture: SVG, which has no pixels"),
        "SVG as XML": (
            b"<?xml version='1.0'?>\n<!-- drawn -->\n<svg width='9'/>",
            "not a picture: SVG, which has no pixels",
        ),
        "PDF": (b"%PDF-1.7\n", "not a picture: a PDF"),
        "EPS": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "not a picture: PostScript"),
        "HEIC": (b"\0\0\0\x18ftypheic" + bytes(40), "not a picture: HEIC, which is not read: save it as JPEG"),
        "JPEG's first bytes": (b"\xff\xd8\xff", f"JPEG {DAMAGED}"),
        "PNG's first bytes": (b"\x89PNG\r\n\x1a\n", f"PNG {DAMAGED}"),
        "half a JPEG": (noise("JPEG")[:600], f"JPEG {DAMAGED}"),
        "half a PNG": (noise("PNG")[:600], f"PNG {DAMAGED}"),
        "half a GIF": (noise("GIF")[:900], f"GIF {DAMAGED}"),
        "half a TIFF": (noise("TIFF", compression="tiff_lzw")[:600], f"TIFF {DAMAGED}"),
        "half a WebP": (noise("WEBP", lossless=True)[:600], f"WEBP {DAMAGED}"),
        "a bomb": (bomb(), TOO_LARGE),
        "floats": (
            encoded(Image.fromarray(np.zeros((4, 4), dtype=np.float32)), "TIFF"),
            "floating-point pixels have no known range",
        ),
        "32 bits": (
            encoded(Image.fromarray(np.zeros((4, 4), dtype=np.int32)), "TIFF"),
            "signed or 32-bit pixels have no known range",
        ),
    }
