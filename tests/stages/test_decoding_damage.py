"""Files that are damaged, cut, too large or no pictures: a reason, in bounded memory, and never an error."""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from devil_pipe.stages.common.decoding import PictureError, open_picture

from .odd_pictures import DAMAGED, TOO_LARGE, bomb, broken, noise, oriented

KINDS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM", "TGA", "ICO", "DDS")


def shown(content: bytes) -> np.ndarray:
    return np.asarray(open_picture(content))


def reason(content: bytes) -> str:
    with pytest.raises(PictureError) as said:
        open_picture(content)
    return str(said.value)


@pytest.mark.parametrize("name", broken())
def test_a_file_that_gives_no_picture_has_its_reason(name: str) -> None:
    content, expected = broken()[name]
    assert reason(content) == reason(bytes(bytearray(content))) == expected


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_cut_anywhere_gives_all_pixels_or_none(kind: str) -> None:
    """Only what lies behind the last pixel may be missing."""
    content = noise(kind)
    whole = shown(content)
    for length in range(0, len(content), max(len(content) // 150, 1)):
        with contextlib.suppress(PictureError):
            np.testing.assert_array_equal(shown(content[:length]), whole)


def test_the_limit_does_not_hang_on_a_setting_of_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert reason(bomb()) == TOO_LARGE
    assert reason(bomb(178_956_971, 1)) == TOO_LARGE
    assert DAMAGED in reason(bomb(60_000, 60))  # below the limit it is read, and found to be too short


def python(script: str, *options: str) -> list[int]:
    """Run it in a process of its own, which must say nothing but numbers."""
    done = subprocess.run(
        [sys.executable, *options, "-c", script], capture_output=True, text=True, timeout=300, check=True
    )
    assert done.stderr == ""
    return [int(word) for word in done.stdout.split()]


MEASURED = """
import io, random, resource, sys
from PIL import Image
from devil_pipe.stages.common import decoding
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
def read(content):
    try:
        return decoding.open_picture(content).size
    except decoding.PictureError as error:
        return str(error)
def encoded(picture, kind, **options):
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()
read(encoded(Image.new("RGB", (9, 9)), "JPEG"))
before = peak()
"""


def test_a_large_picture_is_read_in_silence_and_bounded_memory() -> None:
    """90.25 megapixels, which Pillow warns of: 4 bytes each as RGB, one as they come, and some strips."""
    script = MEASURED + 'content = encoded(Image.new("1", (9500, 9500)), "PNG")\n'
    script += "assert read(content) == (9500, 9500)\nprint(peak() - before)"
    assert python(script, "-W", "always")[0] < 600
    assert python(script, "-W", "error")[0] < 600


def test_a_bomb_costs_no_memory() -> None:
    script = (
        MEASURED
        + f"for content in [{bomb()!r}] * 20:\n    assert read(content) == {TOO_LARGE!r}\nprint(peak() - before)"
    )
    assert python(script, "-W", "always")[0] < 20


def test_what_is_damaged_takes_memory_within_the_limit() -> None:
    """With a limit of a million pixels damage makes no decoder take more than a few times 4 MB."""
    script = MEASURED + (
        "decoding.MOST_PIXELS = 10**6\n"
        'picture = Image.effect_noise((50, 40), 90).convert("RGB")\n'
        'more, draw = {"save_all": True, "append_images": [picture.rotate(90)]}, random.Random(0)\n'
        'for kind in ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF"):\n'
        '    content = encoded(picture, kind, **(more if kind in ("PNG", "GIF", "WEBP") else {}))\n'
        "    for _ in range(1500):\n"
        "        damaged = bytearray(content)\n"
        "        for _ in range(draw.choice((1, 2, 5))):\n"
        "            damaged[draw.randrange(min(len(damaged), draw.choice((64, 10**6))))] = draw.randrange(256)\n"
        "        read(bytes(damaged))\n"
        "print(peak() - before)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300, check=True)
    assert int(done.stdout) < 100  # what libtiff says on the way is its own


REASONS = (
    "an empty file",
    "not a picture(: .+)?",
    rf"(\w+|picture) {DAMAGED}",
    TOO_LARGE,
    "floating-point pixels have no known range",
    "signed or 32-bit pixels have no known range",
)


def outcome(content: bytes) -> str | tuple[str, tuple[int, int], bytes]:
    try:
        picture = open_picture(content)
    except PictureError as error:
        return str(error)
    return picture.mode, picture.size, picture.tobytes()


FILES = {kind: noise(kind) for kind in ("JPEG", "PNG", "GIF")}


@given(
    kind=st.sampled_from(sorted(FILES)),
    changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.binary(max_size=6)), max_size=6),
    kept=st.floats(0, 1),
)
@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_damage_gives_a_picture_or_a_reason(kind: str, changes: list[tuple[float, bytes]], kept: float) -> None:
    damaged = bytearray(FILES[kind])
    for place, data in changes:
        at = int(place**2 * len(damaged))  # rather in the headers
        damaged[at : at + len(data)] = data
    content = bytes(damaged[: int(kept * len(damaged)) if kept < 0.5 else None])
    first, second = outcome(content), outcome(content)
    assert first == second
    if isinstance(first, str):
        assert any(re.fullmatch(words, first) for words in REASONS), first
    else:
        assert first[0] == "RGB"


def test_silence_holds_in_threads_and_for_pillow_alone() -> None:
    content = oriented("MPO", 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with ThreadPoolExecutor(8) as pool:
            assert set(pool.map(lambda _: open_picture(content).size, range(200))) == {(24, 16)}
        assert sum("PIL" in getattr(rule[3], "pattern", "") for rule in warnings.filters) == 1
        with pytest.raises(UserWarning, match="mine"):
            warnings.warn("mine", stacklevel=1)
