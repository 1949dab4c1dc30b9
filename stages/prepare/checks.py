"""Checks that every source shares: does the picture decode, is there a caption, which split."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping

from devil_pipe.stages.common.decoding import PictureError, open_picture
from devil_pipe.store.errors import InputError


class BrokenError(Exception):
    """A picture or caption cannot be used; the message is the row's reason. Never leaves the stage."""


def picture_size(data: bytes, what: str = "picture") -> tuple[int, int]:
    """Decode a picture to its last byte, as `extract` will, and give (width, height) in pixels as it is shown.

    Args:
        data: the file.
        what: its name in the reason.

    Raises:
        BrokenError: it does not decode.
    """
    try:
        return open_picture(data).size
    except PictureError as error:
        raise BrokenError(f"{what} cannot be decoded: {error}") from None


def check_mask(data: bytes, size: tuple[int, int]) -> None:
    """Check that a mask decodes and has the size, (width, height), of the picture as it is shown.

    Raises:
        BrokenError: it does not.
    """
    got = picture_size(data, "mask")
    if got != size:
        raise BrokenError(f"mask is {got[0]}×{got[1]}, picture {size[0]}×{size[1]}")


def clean_caption(raw: bytes | str) -> str:
    """A caption as one line with single spaces.

    Raises:
        BrokenError: it is empty or not UTF-8 (a str is not where it holds lone surrogates).
    """
    try:
        text = raw.decode("utf-8-sig") if isinstance(raw, bytes) else raw.encode("utf-8").decode("utf-8")
    except UnicodeError:
        raise BrokenError("caption is not UTF-8") from None
    words = re.sub(r"[\x00-\x1f\x7f]", " ", text).split()
    if not words:
        raise BrokenError("empty caption")
    return " ".join(words)


def split_of(key: str, seed: int, shares: Mapping[str, float]) -> str:
    """The split that a hash of the seed and the key draws, each split as often as its share.

    A picture keeps its split when others are added or removed.
    """
    digest = hashlib.sha256(f"{seed}:{key}".encode()).digest()
    drawn = int.from_bytes(digest[:8]) / 2**64
    for split, share in shares.items():
        drawn -= share
        if drawn < 0:
            return split
    return [split for split, share in shares.items() if share > 0][-1]  # the shares' sum was a hair below 1


def safe_key(name: str, where: str) -> str:
    """A name as a key: a key names files of reports, so folders in it become underscores.

    Raises:
        InputError: the name is no printable UTF-8.
    """
    if not name.isprintable():
        raise InputError(f"{where}: expected printable UTF-8 in a picture's name, got {name!r}: rename it")
    return name.replace("/", "_")
