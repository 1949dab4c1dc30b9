"""What is wrong with one shard file: its bytes held against its marker and against what `SPEC.md` says of them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256

import numpy as np

from devil_pipe.store import layout
from devil_pipe.store.errors import InputError
from devil_pipe.store.schema import ArraySpec, Encoding, FileRecord

SHOWN = 8  # rows that are named before "and n more"


@dataclass(frozen=True)
class Finding:
    """One thing that is not as it should be, or a note on something that a reader never looks at."""

    problem: str
    """A word for it: missing, truncated, longer, bits, index, swapped, foreign, values, marker, manifest, metadata,
    rows, identity, unfinished, unreadable; of notes: partial, stray, beside, uncommitted, unchecked."""

    file: str
    """The file, as a person can find it."""

    what: str
    mend: str = ""
    shard: int | None = None
    array: str | None = None
    rows: tuple[int, ...] = ()
    remove: tuple[str, ...] = ()
    """Names of the files that have to go, so that `extract` makes them again."""

    note: bool = False

    def __str__(self) -> str:
        return f"{self.file}: {self.what}" + (f"; {self.mend}" if self.mend else "")


@dataclass(frozen=True)
class Wrong:
    """What is wrong with a shard file, in a word and in a sentence."""

    problem: str
    what: str
    rows: tuple[int, ...] = ()


@dataclass(frozen=True)
class ShardFile:
    """What one shard file should be."""

    array: ArraySpec
    encoding: Encoding
    rows: range
    shard_rows: int
    invalid: Collection[int]
    record: FileRecord

    @property
    def good(self) -> list[int]:
        """The rows that have features, in order."""
        return [row for row in self.rows if row not in self.invalid]


def examine(content: bytes, expected: ShardFile, known: Mapping[str, Sequence[tuple[str, int]]]) -> list[Wrong]:
    """Everything that is wrong with a shard file's bytes; nothing where they are what was committed and can be read.

    Args:
        content: the whole file.
        expected: what it should be.
        known: SHA-256 of every committed shard file of the store → (array, shard) that have it.
    """
    digest, size = sha256(content).hexdigest(), expected.record.size
    inside = _inside(content, expected)
    if (digest, len(content)) == (expected.record.sha256, size):
        return inside
    lengths = f"expected {size} bytes, found {len(content)}"
    if digest == expected.record.sha256:
        return [Wrong("marker", f"is what was committed, but {lengths}")]
    if digest in known:
        array, shard = known[digest][0]
        whose = "this array" if array == expected.array.name else f"array {array}"
        return [Wrong("swapped", f"holds shard {shard} of {whose}")]
    if not inside:
        return [Wrong("foreign", f"a whole shard, but not the one that was committed ({lengths})")]
    if len(content) != size:
        return [Wrong("truncated" if len(content) < size else "longer", lengths)]
    return [_NOTHING_RIGHT] if _nothing_right(inside, expected) else inside


_NOTHING_RIGHT = Wrong("foreign", "has the right size, but neither its index nor any row is what was committed")


def _nothing_right(inside: Sequence[Wrong], expected: ShardFile) -> bool:
    hurt = {row for wrong in inside if wrong.problem == "bits" for row in wrong.rows}
    return len(hurt) == len(expected.good) > 1 and any(wrong.problem == "index" for wrong in inside)


def _inside(content: bytes, expected: ShardFile) -> list[Wrong]:
    """What is wrong with a file taken by itself: its index, the checksums of its rows, its values."""
    body = np.frombuffer(content, dtype=np.uint8)
    table = layout.index_bytes(expected.shard_rows)
    if len(body) < table:
        return [Wrong("truncated", f"{len(body)} bytes are less than its index of {table}")]
    wrong, places = _places(body, table, expected)
    changed, unreadable, infinite = [], [], []
    for row, (start, stop) in places.items():
        stored = body[start:stop]
        if not layout.chunk_matches(stored):
            changed.append(row)
            continue
        try:
            values = layout.decode_chunk(expected.array, expected.encoding, stored)
        except (ValueError, RuntimeError):
            unreadable.append(row)
            continue
        if layout.first_not_finite(values[None], range(row, row + 1), ()) is not None:
            infinite.append(row)
    if changed:
        wrong.append(Wrong("bits", f"{name_rows(changed)} not what was written (checksum)", tuple(changed)))
    if unreadable:
        wrong.append(Wrong("bits", f"{name_rows(unreadable)} not to be decoded", tuple(unreadable)))
    if infinite:
        wrong.append(Wrong("values", f"{name_rows(infinite)} NaN or infinite", tuple(infinite)))
    return wrong


def _places(body: np.ndarray, table: int, expected: ShardFile) -> tuple[list[Wrong], dict[int, tuple[int, int]]]:
    """What is wrong with the index, and where the chunk of each row lies as far as that can be known."""
    index: np.ndarray | None
    try:
        index = layout.read_index(body[-table:], "")
        wrong = _index_faults(index, len(body) - table, expected)
    except InputError:
        index, wrong = None, [Wrong("index", "its index does not match its checksum")]
    good, end = expected.good, len(body) - table
    if not expected.encoding.compressed:  # the place follows from the row, whatever the index says
        stride = expected.array.chunk_bytes + layout.CRC_BYTES
        ends = {row: (number * stride, (number + 1) * stride) for number, row in enumerate(good)}
    elif index is None or wrong:
        return wrong, {}
    else:
        entries = {row: index[row - expected.rows.start] for row in good}
        ends = {row: (int(offset), int(offset) + int(length)) for row, (offset, length) in entries.items()}
    return wrong, {row: (start, stop) for row, (start, stop) in ends.items() if stop <= end}


def _index_faults(index: np.ndarray, end: int, expected: ShardFile) -> list[Wrong]:
    """Entries that point elsewhere than SPEC.md, 2 says: chunks one after another, in the order of the valid rows."""
    place, elsewhere = 0, []
    stride = expected.array.chunk_bytes + layout.CRC_BYTES
    for number in range(expected.shard_rows):
        row = expected.rows.start + number
        offset, length = (int(value) for value in index[number])
        if row >= expected.rows.stop or row in expected.invalid:
            right = (offset, length) == (layout.MISSING, layout.MISSING)
        else:
            fits = length > layout.CRC_BYTES if expected.encoding.compressed else length == stride
            right = offset == place and fits and offset + length <= end
            place += length if right else stride
        if not right:
            elsewhere.append(row)
    if elsewhere:
        return [Wrong("index", f"its index points elsewhere for {_rows(elsewhere)}", tuple(elsewhere))]
    if place != end:
        return [Wrong("index", f"its rows end at byte {place}, its index begins at {end}")]
    return []


def name_rows(rows: Sequence[int]) -> str:
    """`row 4 is`, or `rows 4, 5 and 7 more are`."""
    return f"{_rows(rows)} {'is' if len(rows) == 1 else 'are'}"


def _rows(rows: Sequence[int]) -> str:
    shown = ", ".join(map(str, rows[:SHOWN]))
    return f"row{'s' * (len(rows) > 1)} {shown}" + (f" and {len(rows) - SHOWN} more" if len(rows) > SHOWN else "")
