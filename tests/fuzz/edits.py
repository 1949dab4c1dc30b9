"""What may become of a valid file: bits flipped, parts cut, moved or repeated, values and words swapped."""

from __future__ import annotations

import copy
import json
import struct
from collections.abc import Callable, Sequence
from typing import Any

from .choices import Choices

NUMBERS = (0, 1, 2, 3, 7, 127, 128, 255, 256, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1)
ODD: tuple[Any, ...] = (
    None,
    True,
    0,
    -1,
    1,
    2,
    4,
    65536,
    2**31,
    2**63,
    2**64,
    10**30,
    10**12,
    -(10**12),
    0.5,
    1e308,
    float("inf"),
    float("nan"),
    "",
    "a",
    "0",
    "\0",
    "\ud800",
    "é/../../x",
    "..",
    "/etc/passwd",
    "x" * 300,
    "9" * 5000,
    "float16",
    "partition:99999999999",
    "pool:1000000",
    "units+zstd",
    [],
    {},
    [[]],
    {"": None},
    [0, 0],
    [10**9, 10**9],
)
DEEP = 100_000
"""Brackets in brackets: more than Python's recursion takes."""


def edit_bytes(content: bytes, choices: Choices, words: Sequence[bytes] = ()) -> bytes:
    """One to four edits of bytes; `words` are what the format itself may hold."""
    found = bytearray(content)
    for _ in range(1 + choices.below(4)):
        at, length = choices.below(len(found) + 1), 1 + choices.below(choices.pick((4, 16, 64, 1024)))
        kind = choices.below(9)
        if kind == 0 and at < len(found):
            found[at] ^= 1 << choices.below(8)
        elif kind == 1:
            found[at : at + 1] = choices.take(1)
        elif kind == 2:
            size = choices.pick(["<B", "<H", "<I", "<Q", ">H", ">I", ">Q"])
            width = struct.calcsize(size)
            found[at : at + width] = struct.pack(size, choices.pick(NUMBERS) % (1 << (8 * width)))
        elif kind == 3:
            del found[at:]
        elif kind == 4:
            del found[at : at + length]
        elif kind == 5:
            found[at:at] = found[at : at + length]
        elif kind == 6:
            found[at : at + length] = bytes(length)
        elif kind == 7:
            other = choices.below(len(found) + 1)
            found[at : at + length] = found[other : other + length]
        else:
            word = choices.pick(words) if words else choices.take(1 + choices.below(8))
            found[at : at + (len(word) if choices.one_in(2) else 0)] = word
    return bytes(found)


def edit_values(value: Any, choices: Choices) -> Any:
    """One to three edits of what JSON or YAML holds: values replaced, left out, repeated, swapped or renamed."""
    found = copy.deepcopy(value)
    for _ in range(1 + choices.below(3)):
        places = list(_places(found))
        if not places:
            return choices.pick(ODD)
        parent, key = choices.pick(places)
        kind = choices.below(6)
        if kind <= 1:
            parent[key] = copy.deepcopy(choices.pick(ODD))
        elif kind == 2:
            parent[key] = _shifted(parent[key], choices)
        elif kind == 3:
            del parent[key]
        elif kind == 4:
            other, name = choices.pick(places)
            if name in other if isinstance(other, dict) else name < len(other):
                parent[key] = copy.deepcopy(other[name])
        elif isinstance(parent, dict):
            parent[str(choices.pick(ODD))] = parent.pop(key)
        else:
            parent.insert(key, copy.deepcopy(parent[key]))
    return found


def _places(value: Any) -> Any:
    """Every (container, key) below a value."""
    if isinstance(value, dict | list):
        for key in list(value) if isinstance(value, dict) else range(len(value)):
            yield value, key
            yield from _places(value[key])


def _shifted(value: Any, choices: Choices) -> Any:
    """Nearly the value."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value + choices.pick((1, -1, -value, 16, value * 1000))
    if isinstance(value, str) and value:
        at = choices.below(len(value))
        return value[:at] + choices.pick(("", "0", "é", "\n", value)) + value[at + 1 :]
    if isinstance(value, list | dict):
        return type(value)()
    return choices.pick(ODD)


def edit_json(content: bytes, choices: Choices, mend: Callable[[Any], Any] = lambda values: values) -> bytes:
    """JSON with edited values, or with edited bytes, or brackets without end; `mend` may make values fit again."""
    if choices.one_in(6):
        return edit_bytes(content, choices, (b"[", b"{", b"}", b'"', b",", b":", b"NaN", b"1e999", b"\\ud800", b"\xff"))
    if choices.one_in(24):
        return b'{"attributes":' * choices.below(2) + b"[" * DEEP
    try:
        values = json.loads(content)
    except (ValueError, RecursionError):  # edited before
        return edit_bytes(content, choices)
    return json.dumps(mend(edit_values(values, choices))).encode()


def edit_text(content: str, choices: Choices, words: Sequence[str]) -> str:
    """One to four edits of lines and words of a text; `words` are odd ones of its format."""
    for _ in range(1 + choices.below(4)):
        kind = choices.below(5)
        if kind == 0:
            lines = content.split("\n")
            lines.insert(choices.below(len(lines)), lines.pop(choices.below(len(lines))))
            content = "\n".join(lines)
        elif kind == 1:
            lines = content.split("\n")
            lines.insert(choices.below(len(lines)), choices.pick(lines))
            content = "\n".join(lines)
        elif kind == 2:
            at = choices.below(len(content) + 1)
            content = content[:at] + choices.pick(words) + content[at:]
        elif kind == 3:
            parts = content.split(" ")
            parts[choices.below(len(parts))] = choices.pick(words)
            content = " ".join(parts)
        else:
            at = choices.below(len(content) + 1)
            content = content[:at] + content[at + 1 + choices.below(20) :]
    return content
