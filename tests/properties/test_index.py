"""The index: any rows survive Parquet, keys stay unique, and a picture keeps its split whatever else there is."""

from __future__ import annotations

import dataclasses
import hashlib
import tempfile
from fractions import Fraction
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from devil_pipe.stages.prepare.checks import split_of
from devil_pipe.stages.prepare.index import Row, index_digest, read_index, read_picture, to_table, write_index
from devil_pipe.store.errors import InputError

from .profiles import cases

TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=12)
NUMBER = st.integers(0, 2**31 - 1)
ROW = st.builds(
    Row,
    key=TEXT,
    shard=TEXT,
    path=TEXT,
    offset=st.integers(0, 2**63 - 1),
    size=st.integers(0, 2**63 - 1),
    captions=st.lists(TEXT, min_size=1, max_size=3).map(tuple),
    split=st.sampled_from(["train", "val", "test", "é"]),
    width=NUMBER,
    height=NUMBER,
    object=TEXT,
    scene=TEXT,
    mask_offset=st.integers(0, 2**63 - 1),
    mask_size=NUMBER,
)
BROKEN = st.builds(
    lambda row, why, some: dataclasses.replace(row.broken(why), captions=row.captions[:some]), ROW, TEXT, NUMBER
)
ROWS = st.tuples(ROW, st.lists(st.one_of(ROW, BROKEN), max_size=6)).map(lambda pair: [pair[0], *pair[1]])
DISTINCT = ROWS.filter(lambda rows: len({row.key for row in rows}) == len(rows))


def plain(row: Row) -> dict[str, object]:
    return {**dataclasses.asdict(row), "captions": list(row.captions)}


@cases
@given(DISTINCT, st.randoms(use_true_random=False))
def test_rows_survive_parquet_and_decide_the_digest(rows: list[Row], random: object) -> None:
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "index.parquet"
        write_index(to_table(rows), path)
        found = read_index(path)
        assert found.to_pylist() == [plain(row) for row in rows]
        digest = index_digest(found)
        # Another codec, other pages: other bytes, the same rows.
        pq.write_table(found, path, compression="none", row_group_size=2, use_dictionary=False)
        assert index_digest(read_index(path)) == digest == index_digest(to_table(rows))
    if len(rows) > 1:
        assert index_digest(to_table([*rows[1:], rows[0]])) != digest
    assert index_digest(to_table([dataclasses.replace(rows[0], width=rows[0].width ^ 1), *rows[1:]])) != digest


@cases
@given(DISTINCT, st.data())
def test_what_an_index_promises_is_checked(rows: list[Row], data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(rows) - 1))
    wrong = {
        "each key once": [*rows, dataclasses.replace(rows[at], shard="another")],
        "status ok or broken": [*rows[:at], dataclasses.replace(rows[at], status="fine"), *rows[at + 1 :]],
        "a caption for key": [*rows, Row("a key that none of them has: " + "x" * 12)],
        "a picture with a caption": [row.broken("gone") for row in rows],
    }
    with tempfile.TemporaryDirectory() as place:
        for said, spoiled in wrong.items():
            path = Path(place) / "index.parquet"
            with pytest.raises(InputError, match=said):
                write_index(to_table(spoiled), path)
            assert not path.exists()
            pq.write_table(to_table(spoiled), path)
            with pytest.raises(InputError, match=said):
                read_index(path)
            path.unlink()


@cases
@given(
    st.lists(TEXT, min_size=1, max_size=40, unique=True),
    st.integers(0, 2**31),
    st.lists(st.integers(0, 20), min_size=1, max_size=4).filter(any),
)
def test_a_split_is_a_function_of_seed_and_key(names: list[str], seed: int, parts: list[int]) -> None:
    """As whole numbers: the hash's first 64 bits against the shares' running sum. No other key has a say in it."""
    shares = {f"s{place}": part / sum(parts) for place, part in enumerate(parts)}
    ends = [Fraction(sum(parts[: place + 1]), sum(parts)) for place in range(len(parts))]
    for name in names:
        drawn = Fraction(int(hashlib.sha256(f"{seed}:{name}".encode()).hexdigest()[:16], 16), 2**64)
        found = split_of(name, seed, shares)
        assert shares[found] > 0
        if all(abs(drawn - end) > Fraction(1, 10**9) for end in ends):  # beyond the rounding of shares
            assert found == next(f"s{place}" for place, end in enumerate(ends) if drawn < end)


@cases
@given(st.binary(max_size=40), st.integers(-5, 60), st.integers(-5, 2**63 - 1))
def test_a_range_is_read_exactly_or_refused(content: bytes, offset: int, size: int) -> None:
    """Also where a damaged number asks for more than memory."""
    with tempfile.TemporaryDirectory() as place:
        (Path(place) / "s.tar").write_bytes(content)
        row = plain(Row("k", shard="s.tar", offset=offset, size=size))
        if offset >= 0 and size >= 0 and offset + size <= len(content):
            assert read_picture(row, Path(place)) == content[offset : offset + size]
        elif size == 0 and offset >= 0:
            assert read_picture(row, Path(place)) == b""
        else:
            with pytest.raises(InputError, match="key 'k'"):
                read_picture(row, Path(place))
