"""Reading img2dataset's shards: every sample is a row, every fault has its reason, bytes are found again."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from devil_pipe.stages.prepare.checks import split_of
from devil_pipe.stages.prepare.config import PrepareConfig, WebdatasetConfig
from devil_pipe.stages.prepare.index import read_index, read_mask, read_picture
from devil_pipe.stages.prepare.run import run
from devil_pipe.store.errors import InputError

from .odd_pictures import DAMAGED, ORIENTATIONS, encoded, noise, oriented, turned
from .webdataset_fixture import jpeg, png_mask, sample, write_shard


def prepare(folder: Path, out: Path, **more: Any) -> list[dict[str, Any]]:
    config = PrepareConfig(
        name="w", out=out, source="webdataset", webdataset=WebdatasetConfig(shards=folder), workers=1, **more
    )
    run(config)
    rows: list[dict[str, Any]] = read_index(out / "index.parquet").to_pylist()
    return rows


def test_byte_ranges_give_what_tarfile_gives(tmp_path: Path) -> None:
    shards = tmp_path / "cc3m"
    for shard in range(2):
        keys = [f"{shard:05d}{number:04d}" for number in range(5)]
        samples = [sample(key, seed=int(key)) for key in keys]
        samples[2][f"{keys[2]}.png"] = png_mask()
        write_shard(shards / f"{shard:05d}.tar", samples)
    rows = prepare(shards, tmp_path / "data")
    assert len(rows) == 10
    for row in rows:
        with tarfile.open(shards / f"{row['key'][:5]}.tar") as tar:
            names = tar.getnames()
            assert read_picture(row, tmp_path / "data") == tar.extractfile(f"{row['key']}.jpg").read()  # type: ignore[union-attr]
            mask = f"{row['key']}.png"
            expected = tar.extractfile(mask).read() if mask in names else None  # type: ignore[union-attr]
            assert read_mask(row, tmp_path / "data") == expected
        assert (row["width"], row["height"], row["captions"]) == (24, 16, ["a dog on a beach"])


def test_rows_are_found_behind_a_linked_data_folder(tmp_path: Path) -> None:
    write_shard(tmp_path / "here/shards/00000.tar", [sample("a", seed=3)])
    (tmp_path / "far/away/disk").mkdir(parents=True)
    (tmp_path / "data").symlink_to(tmp_path / "far/away/disk")
    (row,) = prepare(tmp_path / "here/shards", tmp_path / "data/w")
    assert read_picture(row, tmp_path / "data/w") == jpeg(3)


def faults() -> dict[str, tuple[dict[str, bytes], str]]:
    whole = sample("k")
    return {
        "cut picture": (whole | {"k.jpg": whole["k.jpg"][:200]}, f"picture cannot be decoded: JPEG {DAMAGED}"),
        "text as picture": (
            whole | {"k.jpg": b"<html>404</html>"},
            "picture cannot be decoded: not a picture: an HTML page",
        ),
        "no bytes": (whole | {"k.jpg": b""}, "picture cannot be decoded: an empty file"),
        "empty caption": (whole | {"k.txt": b" \n"}, "empty caption"),
        "latin-1 caption": (whole | {"k.txt": "café".encode("latin-1")}, "caption is not UTF-8"),
        "no caption": ({name: data for name, data in whole.items() if name != "k.txt"}, "no .txt"),
        "no picture": ({name: data for name, data in whole.items() if name != "k.jpg"}, "no picture"),
        "bad json": (whole | {"k.json": b"{"}, "json does not parse"),
        "deep json": (whole | {"k.json": b"[" * 100_000}, "json does not parse"),
        "list json": (whole | {"k.json": b"[]"}, "json is not an object"),
        "odd split": (whole | {"k.json": b'{"split": "../x"}'}, "json: split"),
        "odd object": (whole | {"k.json": b'{"object": 3}'}, "json: object is no text"),
        "other mask": (whole | {"k.png": png_mask(8, 8)}, "mask is 8×8, picture 24×16"),
        "no mask": (whole | {"k.png": b"none"}, "mask cannot be decoded: not a picture"),
    }


@pytest.mark.parametrize("fault", faults())
def test_a_broken_sample_is_a_row_with_a_reason(fault: str, tmp_path: Path) -> None:
    members, reason = faults()[fault]
    write_shard(tmp_path / "s/00000.tar", [sample("a"), members, sample("z")])
    rows = prepare(tmp_path / "s", tmp_path / "data")
    assert [row["status"] for row in rows] == ["ok", "broken", "ok"]
    assert rows[1]["key"] == "k"
    assert rows[1]["reason"].startswith(reason)
    summary = json.loads((tmp_path / "data/summary.json").read_text())
    assert summary["broken"] == {rows[1]["reason"]: 1}
    assert (summary["rows"], summary["pictures"]) == (3, 2)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_a_mask_belongs_to_the_picture_as_it_is_shown(orientation: int, tmp_path: Path) -> None:
    """A mask of the stored, turned size is refused; one that is stored turned and says so is accepted."""
    mask = np.zeros((16, 24, 3), dtype=np.uint8)
    stored = encoded(Image.fromarray(turned(mask, orientation)), "PNG")
    picture = oriented("JPEG", orientation)
    masks = {"upright": png_mask(), "turned": oriented("PNG", orientation, mask), "stored": stored}
    samples = [sample(key) | {f"{key}.jpg": picture, f"{key}.png": data} for key, data in masks.items()]
    write_shard(tmp_path / "s/00000.tar", samples)
    rows = prepare(tmp_path / "s", tmp_path / "data")
    assert [(row["width"], row["height"]) for row in rows] == [(24, 16)] * 3
    swapped = orientation >= 5
    assert [row["reason"] for row in rows] == ["", "", "mask is 16×24, picture 24×16" if swapped else ""]


@pytest.mark.parametrize("kind", ["jpeg", "webp", "avif", "gif", "bmp", "tiff", "png"])
def test_a_sample_may_hold_any_kind_of_picture(kind: str, tmp_path: Path) -> None:
    write_shard(tmp_path / "s/00000.tar", [{f"a.{kind}": noise(kind.upper()), "a.txt": b"noise"}])
    (row,) = prepare(tmp_path / "s", tmp_path / "data")
    assert (row["status"], row["width"], row["height"]) == ("ok", 24, 20)
    assert read_picture(row, tmp_path / "data") == noise(kind.upper())


def test_reasons_do_not_change_from_run_to_run(tmp_path: Path) -> None:
    write_shard(tmp_path / "s/00000.tar", [sample("a"), *({f"{i}.jpg": b"x", f"{i}.txt": b"y"} for i in "bc")])
    digests = set()
    for again in "12":
        prepare(tmp_path / "s", tmp_path / again)
        digests.add(json.loads((tmp_path / again / "summary.json").read_text())["index_digest"])
    assert len(digests) == 1


def test_a_key_in_two_shards_names_both(tmp_path: Path) -> None:
    for name in ("00000.tar", "00001.tar"):
        write_shard(tmp_path / "s" / name, [sample("k")])
    with pytest.raises(InputError, match=r"'k' in .*00000\.tar and in .*00001\.tar"):
        prepare(tmp_path / "s", tmp_path / "data")
    assert not (tmp_path / "data/index.parquet").exists()


def test_a_key_twice_in_a_shard_names_both_places(tmp_path: Path) -> None:
    write_shard(tmp_path / "s/00000.tar", [sample("k"), sample("l"), sample("k")])
    with pytest.raises(InputError, match=r"'k' at byte \d+ and again at byte \d+"):
        prepare(tmp_path / "s", tmp_path / "data")


@pytest.mark.parametrize("kept", [0.3, 0.5, 0.9])
def test_a_cut_tar_is_refused_by_name(kept: float, tmp_path: Path) -> None:
    path = write_shard(tmp_path / "s/00000.tar", [sample(f"k{i}", seed=i) for i in range(9)])
    data = path.read_bytes().rstrip(b"\0")
    path.write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(InputError, match=r"00000\.tar.*cut short"):
        prepare(tmp_path / "s", tmp_path / "data")


def test_a_tar_cut_between_two_members_is_refused(tmp_path: Path) -> None:
    path = write_shard(tmp_path / "s/00000.tar", [sample(f"k{i}") for i in range(3)])
    with tarfile.open(path) as tar:
        start = tar.getmembers()[6].offset
    path.write_bytes(path.read_bytes()[:start])
    with pytest.raises(InputError, match=r"00000\.tar.*cut short"):
        prepare(tmp_path / "s", tmp_path / "data")


@pytest.mark.parametrize("content", [b"", b"no tar at all" * 100, b"\x1f\x8b" + bytes(600)])
def test_what_is_no_tar_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    (tmp_path / "s/00000.tar").write_bytes(content)
    with pytest.raises(InputError, match=r"00000\.tar"):
        prepare(tmp_path / "s", tmp_path / "data")


def test_dead_links_are_counted_and_are_no_rows(tmp_path: Path) -> None:
    write_shard(tmp_path / "s/00000.tar", [sample("a")])
    status = ["success", "failed_to_download", "failed_to_resize"]
    pq.write_table(pa.table({"key": ["a", "b", "c"], "status": status}), tmp_path / "s/00000.parquet")
    (tmp_path / "s/00000_stats.json").write_text("{}")
    assert len(prepare(tmp_path / "s", tmp_path / "data")) == 1
    assert json.loads((tmp_path / "data/summary.json").read_text())["dead_links"] == 2


def test_a_shard_that_changed_after_indexing_is_noticed(tmp_path: Path) -> None:
    path = write_shard(tmp_path / "s/00000.tar", [sample("a")])
    (row,) = prepare(tmp_path / "s", tmp_path / "data")
    path.write_bytes(b"")
    with pytest.raises(InputError, match=r"'a'.*changed since it was indexed"):
        read_picture(row, tmp_path / "data")
    path.unlink()
    with pytest.raises(InputError, match="'a'"):
        read_picture(row, tmp_path / "data")


@pytest.mark.parametrize("empty", [True, False])
def test_no_shards_is_said(empty: bool, tmp_path: Path) -> None:
    if empty:
        (tmp_path / "s").mkdir()
    with pytest.raises(InputError, match=r"webdataset\.shards"):
        prepare(tmp_path / "s", tmp_path / "data")


def test_a_split_in_the_json_wins_over_the_drawn_one(tmp_path: Path) -> None:
    samples = [sample(f"k{i}", split="test" if i % 2 else "") for i in range(40)]
    write_shard(tmp_path / "s/00000.tar", samples)
    rows = prepare(tmp_path / "s", tmp_path / "data")
    assert all(row["split"] == "test" for row in rows[1::2])
    assert any(row["split"] == "train" for row in rows[::2])


def test_drawn_splits_have_their_shares() -> None:
    shares = {"train": 0.7, "val": 0.1, "test": 0.2}
    drawn = [split_of(f"{i:09d}", 0, shares) for i in range(20_000)]
    for split, share in shares.items():
        # Five standard errors of a binomial share.
        assert drawn.count(split) / 20_000 == pytest.approx(share, abs=5 * (share * (1 - share) / 20_000) ** 0.5)
    other = [split_of(f"{i:09d}", 1, shares) for i in range(20_000)]
    agree = sum(a == b for a, b in zip(drawn, other, strict=True)) / 20_000
    assert agree == pytest.approx(0.7**2 + 0.1**2 + 0.2**2, abs=0.02)  # two seeds draw independently


@given(st.text(min_size=1), st.integers(0, 2**31))
def test_a_share_of_nothing_is_never_drawn(key: str, seed: int) -> None:
    key = key.encode("utf-8", "replace").decode()
    assert split_of(key, seed, {"a": 0.0, "b": 1.0, "c": 0.0}) == "b"
