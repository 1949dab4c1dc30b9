"""Pictures of every format through the project's decoder."""

from __future__ import annotations

from pathlib import Path

from devil_pipe.stages.common import decoding
from devil_pipe.stages.explain.images import as_picture

from ..stages.odd_pictures import noise
from .choices import Choices
from .edits import edit_bytes

KINDS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM", "TGA", "ICO", "DDS")
WORDS = {
    "PNG": (b"IHDR", b"IDAT", b"tRNS", b"acTL", b"fcTL", b"eXIf", b"iCCP", b"PLTE", b"IEND"),
    "JPEG": (b"\xff\xd8", b"\xff\xda", b"\xff\xe1\x00\x10Exif\0\0", b"\xff\xc0", b"\xff\xc2", b"\xff\xee", b"\xff\xd9"),
    "TIFF": (b"II*\0", b"MM\0*", b"II+\0", b"\x00\x01\x03\x00", b"\x02\x01\x03\x00"),
}


class Pictures:
    """A picture in RGB of at most so many pixels, or a reason."""

    def __init__(self, folder: Path) -> None:
        decoding.MOST_PIXELS = 10**6  # so that what is allowed takes a moment
        self.files = {kind: noise(kind) for kind in KINDS}
        self.path = folder / "picture"

    def __call__(self, choices: Choices) -> None:
        kind = choices.pick(KINDS)
        content = self.files[kind]
        part = len(content) if choices.one_in(3) else min(len(content), 96)  # rather in the headers
        self.path.write_bytes(edit_bytes(content[:part], choices, WORDS.get(kind, ())) + content[part:])
        picture = as_picture(self.path)
        assert picture.mode == "RGB"
        assert 0 < picture.width * picture.height <= decoding.MOST_PIXELS
        assert picture.tobytes() == as_picture(self.path).tobytes()
