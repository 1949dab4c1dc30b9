"""What fuzzing found, each with its input made by hand: a reader says what is wrong, where it once raised or hung."""

from __future__ import annotations

import hashlib
import json
import lzma
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from safetensors.torch import save_file

from devil_pipe.pipeline import config
from devil_pipe.stages.prepare.config import FolderConfig
from devil_pipe.stages.prepare.folder import read_folder
from devil_pipe.stages.prepare.img2dataset_layouts import copy_to_tar
from devil_pipe.stages.prepare.index import Row, read_index, read_picture, to_table
from devil_pipe.stages.prepare.links import tally
from devil_pipe.stages.prepare.milan.annotations import read_annotations
from devil_pipe.stages.prepare.milan.archive import open_archive
from devil_pipe.stages.prepare.milan.pictures import SourcePictures
from devil_pipe.stages.prepare.milan.published import Published
from devil_pipe.stages.prepare.milan.splits import read_splits
from devil_pipe.stages.prepare.milan.units import open_units
from devil_pipe.stages.prepare.webdataset import read_shard
from devil_pipe.stages.train import checkpoint
from devil_pipe.stages.train.config import TranslatorConfig
from devil_pipe.stages.train.translator import build
from devil_pipe.store.errors import InputError, UsageError
from devil_pipe.store.layout import encode_keys
from devil_pipe.store.reader import FeatureStore
from devil_pipe.store.schema import LayerSpec
from devil_pipe.store.verify import verify

from ..stages.img2dataset_fixture import Link, write
from ..stages.milan_fixture import image_folder, members
from ..stages.webdataset_fixture import sample, write_shard
from ..store.stores import identity, keys, random_maps, write_store
from .of_milan import HEADERS, NAME, _npy
from .of_settings import BOMB
from .of_shards import _extended

DEEP = "[" * 100_000


# --- stores


@pytest.fixture
def store(tmp_path: Path) -> Path:
    of = identity(7)
    write_store(tmp_path / "s", of, random_maps(of), 3, {4: "gone"}, keys(of))
    return tmp_path / "s"


def edit(path: Path, change: Callable[[Any], object]) -> None:
    values = json.loads(path.read_bytes())
    change(values)
    path.write_text(json.dumps(values), encoding="utf-8")


def renamed(root: Path) -> None:
    """Give the folder the name of the identity that its own metadata now hold (SPEC.md, 4); the manifest is gone."""
    (path,) = root.glob("*/zarr.json")
    values = json.loads(path.read_bytes())["attributes"]["devil_pipe"]["identity"]
    text = json.dumps(values, sort_keys=True, separators=(",", ":"))
    path.parent.rename(root / hashlib.sha256(text.encode()).hexdigest()[:12])
    (root / "manifest.json").unlink()


def test_brackets_without_end_are_damage_of_the_metadata(store: Path) -> None:
    """Python's own parser of JSON gives up with a RecursionError, which is no ValueError."""
    for path in [*store.glob("*/zarr.json"), *store.glob("*/fine/zarr.json")]:
        path.write_text(DEEP, encoding="utf-8")
    problems = {finding.problem for finding in verify(store, threads=1).findings}
    assert problems == {"metadata"}
    (store / "manifest.json").unlink()
    assert any("metadata" in str(finding) for finding in verify(store, threads=1).findings)


def test_what_damage_holds_is_shown_as_a_terminal_can_show_it(store: Path) -> None:
    for path in store.glob("*/fine/zarr.json"):
        edit(path, lambda values: values.update({"\0\x1b[2J": 1}))
    (finding,) = verify(store, threads=1).findings
    assert str(finding).isprintable()
    assert "x1b" in str(finding)


@pytest.mark.parametrize("rows", [10**15, 2**62])
def test_a_manifest_of_more_shards_than_memory_holds(store: Path, rows: int) -> None:
    def change(values: Any) -> None:
        values["identity"]["rows"] = rows
        text = json.dumps(values["identity"], sort_keys=True, separators=(",", ":"))
        values["folder"] = hashlib.sha256(text.encode()).hexdigest()[:12]

    edit(store / "manifest.json", change)
    with pytest.raises(InputError, match=r"manifest\.json.*shards: expected"):
        FeatureStore(store)
    assert not verify(store, threads=1).whole


def test_an_unfinished_store_of_more_shards_than_memory_holds(store: Path) -> None:
    (path,) = store.glob("*/zarr.json")
    edit(path, lambda values: values["attributes"]["devil_pipe"]["identity"].update(rows=10**15))
    renamed(store)
    assert any("at most" in str(finding) for finding in verify(store, threads=1).findings)


def test_one_shard_of_more_rows_than_memory_holds(store: Path) -> None:
    """Its one range is quickly made; a mask of its rows is not."""
    rows = 10**14

    def change(values: Any) -> None:
        values["identity"]["rows"] = values["shard_rows"] = rows
        values["shards"] = [{**values["shards"][0], "start": 0, "stop": rows, "invalid": {}}]
        values["rows"]["valid"]["size"] = rows + 4
        text = json.dumps(values["identity"], sort_keys=True, separators=(",", ":"))
        values["folder"] = hashlib.sha256(text.encode()).hexdigest()[:12]

    edit(store / "manifest.json", change)
    with pytest.raises(InputError, match=r"manifest\.json: shard 0 of fine: expected"):
        FeatureStore(store)
    assert not verify(store, threads=1).whole


def test_another_row_without_features_does_not_move_the_rows_behind_it(store: Path) -> None:
    """A digit of the manifest: as many rows lack features as before, so every size agrees, and row 4 took row 3's."""

    def change(values: Any) -> None:
        values["shards"][1]["invalid"] = {"5": "gone"}

    edit(store / "manifest.json", change)
    with pytest.raises(InputError, match=r"manifest\.json: valid: expected the SHA-256"):
        FeatureStore(store)


def test_a_compressed_shard_of_no_bytes(tmp_path: Path) -> None:
    """Its index was empty, and so was the index's checksum."""
    of = identity(2, "float16+zstd")
    writer = write_store(tmp_path, of, random_maps(of), 2)
    (tmp_path / writer.file("fine", 0)).write_bytes(b"")
    edit(tmp_path / "manifest.json", lambda values: values["shards"][0]["files"]["fine"].update(size=0))
    with pytest.raises(
        InputError, match=r"shard 0 of fine: expected at least \d+ bytes for 2 rows, the manifest says 0"
    ):
        FeatureStore(tmp_path)


def test_a_layer_with_a_name_that_no_folder_takes(store: Path) -> None:
    def change(values: Any) -> None:
        values["identity"]["layers"][0]["name"] = "x" * 300

    edit(store / "manifest.json", change)
    with pytest.raises(InputError, match="at most 200 bytes, got 300"):
        FeatureStore(store)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "expected a count"),
        (b"\x07\x00\x00\x00\x02\x00\x00\x00\xff\xfe", "expected a count"),
        (b"\xff\xff\xff\xff", "expected a count"),
        (encode_keys(["a"] * 7)[:-4] + b"more", "end at byte"),
        (encode_keys(["a"] * 6)[:-4], "expected 7 keys, found 6"),
    ],
)
def test_keys_with_a_right_checksum_and_wrong_bytes(store: Path, content: bytes, said: str) -> None:
    import google_crc32c

    stored = content + google_crc32c.value(content).to_bytes(4, "little") if content else b""
    (path,) = store.glob("*/key/c.0")
    path.write_bytes(stored)
    record = {"size": len(stored), "sha256": hashlib.sha256(stored).hexdigest()}
    edit(store / "manifest.json", lambda values: values["rows"].update(key=record))
    with pytest.raises(InputError, match=said):
        _ = FeatureStore(store).keys
    assert not verify(store, threads=1).whole


HEAP = """
import sys
from pathlib import Path
import h5py, numpy as np
from devil_pipe.store.errors import InputError
from devil_pipe.store.hdf5 import import_hdf5
path = Path(sys.argv[1])
whole = path.read_bytes()
refused = 0
draw = np.random.default_rng(0)
for _ in range(60):
    content = bytearray(whole)
    for at in draw.integers(0, len(content), 3):
        content[at] ^= int(draw.integers(1, 256))
    path.write_bytes(content)
    try:
        import_hdf5(path, path.with_name("made"), force=True)
    except InputError:
        refused += 1
print(refused)
"""


def test_a_damaged_hdf5_file_comes_to_an_end(tmp_path: Path) -> None:
    """HDF5 ran for ever on a damaged heap of texts of variable length: none is read now, and records have checksums."""
    import h5py

    from devil_pipe.store.hdf5 import export_hdf5

    of = identity(5)
    write_store(tmp_path / "s", of, random_maps(of), 3, {1: "gone"}, keys(of))
    path = tmp_path / "s.h5"
    export_hdf5(FeatureStore(tmp_path / "s"), path)
    with h5py.File(path) as file:
        assert file.attrs.get_id("devil_pipe").dtype.kind == "S"
        assert {file[name].dtype.kind for name in (".reason", "key")} == {"S"}
    assert b"OHDR" in path.read_bytes()  # the signature of an object's header with a checksum
    done = subprocess.run([sys.executable, "-c", HEAP, path], capture_output=True, text=True, timeout=120, check=True)
    assert int(done.stdout) > 20


# --- the index, captions, shards of img2dataset


@pytest.mark.parametrize(("offset", "size"), [(0, 2**62), (-1, 1), (0, -1), (2**63 - 1, 1), (10, 1)])
def test_an_index_that_asks_for_more_than_the_shard_holds(tmp_path: Path, offset: int, size: int) -> None:
    (tmp_path / "s.tar").write_bytes(b"0123456789")
    row = to_table([Row("k", shard="s.tar", offset=offset, size=size)]).to_pylist()[0]
    with pytest.raises(InputError, match=r"key 'k'.*run `devil-pipe prepare` again"):
        read_picture(row, tmp_path)


def test_an_index_with_texts_that_are_no_utf8(tmp_path: Path) -> None:
    path = tmp_path / "index.parquet"
    pq.write_table(to_table([Row("kkkk", path="p", captions=("c",))]), path, compression="none", use_dictionary=False)
    path.write_bytes(path.read_bytes().replace(b"kkkk", b"\xff\xfe\xff\xfe"))
    with pytest.raises(InputError, match="expected a Parquet file"):
        read_index(path)


def test_a_list_with_a_column_as_long_as_a_book(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "captions.csv").write_text(f"file,{'caption' * 10_000}\na.jpg,a dog\n", encoding="utf-8")
    with pytest.raises(InputError, match="expected a column 'caption'") as said:
        read_folder(FolderConfig(pictures=tmp_path / "pictures", captions=tmp_path / "captions.csv"), 0, tmp_path, 1)
    assert len(str(said.value)) < 5000


def test_a_list_that_names_a_file_as_no_file_can_be_named(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "captions.csv").write_text(f"file,caption\n{'x' * 300}.jpg,a dog\n", encoding="utf-8")
    listed = FolderConfig(pictures=tmp_path / "pictures", captions=tmp_path / "captions.csv")
    assert [row.reason for row in read_folder(listed, 0, tmp_path, 1).rows] == ["no such file"]


@pytest.mark.parametrize(
    ("record", "kind"),
    [
        ("size=-600", "x"),  # led back to its own header, for ever, before Python 3.11.14
        ("size=99999999999999", "x"),
        ("GNU.sparse.realsize=99999999999", "x"),  # and was asked of memory in one piece
        ("GNU.sparse.realsize=-1", "x"),
    ],
)
def test_a_tar_whose_members_have_impossible_sizes(tmp_path: Path, record: str, kind: str) -> None:
    path = write_shard(tmp_path / "00000.tar", [sample("0001")])
    path.write_bytes(_extended(record, kind) + path.read_bytes())
    with pytest.raises(InputError, match=r"00000\.tar: expected .*cut short"):
        read_shard(path, "00000.tar", 0, {"train": 1.0})


def parquet(folder: Path) -> Path:
    return write(folder, "parquet", [[Link(caption="a cow in a meadow")]]) / "00000.parquet"


def test_a_parquet_shard_with_a_damaged_page(tmp_path: Path) -> None:
    """Arrow raises OSError for it, which is not its own error."""
    path = parquet(tmp_path / "shards")
    whole = path.read_bytes()
    column = pq.ParquetFile(path).metadata.row_group(0).column(1)
    at = column.dictionary_page_offset or column.data_page_offset
    path.write_bytes(whole[:at] + bytes(60) + whole[at + 60 :])
    with pytest.raises(InputError, match=r"00000\.parquet: expected a Parquet file"):
        copy_to_tar(path, tmp_path / "t.tar")
    assert not (tmp_path / "t.tar").exists()


def test_a_parquet_shard_with_texts_that_are_no_utf8(tmp_path: Path) -> None:
    path = parquet(tmp_path / "shards")
    table = pq.read_table(path)
    pq.write_table(table, path, compression="none", use_dictionary=False)
    path.write_bytes(path.read_bytes().replace(b"a cow in", b"\xff\xfe\xff in"))
    with pytest.raises(InputError, match=r"00000\.parquet: expected a Parquet file"):
        copy_to_tar(path, tmp_path / "t.tar")


@pytest.mark.parametrize("key", ["k" * 300, ""])
def test_a_parquet_shard_with_a_key_that_no_tar_takes(tmp_path: Path, key: str) -> None:
    path = parquet(tmp_path / "shards")
    table = pq.read_table(path)
    pq.write_table(table.set_column(table.schema.get_field_index("key"), "key", pa.array([key])), path)
    with pytest.raises(InputError, match=r"row 1: expected a key( of at most 90 bytes)?, got"):
        copy_to_tar(path, tmp_path / "t.tar")


def test_a_list_of_links_with_numbers_for_errors(tmp_path: Path) -> None:
    path = tmp_path / "00000.parquet"
    pq.write_table(pa.table({"status": pa.array([3, 4]), "error_message": pa.array([1.5, None])}), path)
    (tmp_path / "00000_stats.json").write_text(DEEP, encoding="utf-8")
    assert sum(tally(path).dead.values()) == 2


# --- MILANNOTATIONS


def zipped(folder: Path, change: Callable[[dict[str, bytes]], object], codec: int = zipfile.ZIP_STORED) -> Path:
    found = members(NAME, units=2, exemplars=2, side=8)
    change(found)
    with zipfile.ZipFile(folder / "set.zip", "w", codec) as file:
        for name, content in found.items():
            file.writestr(name, content)
    return folder / "set.zip"


def read(path: Path, folder: Path, pictures: Path | None = None) -> None:
    with open_archive(path, NAME) as archive:
        Published(archive, SourcePictures(pictures, "places365", "crop")).write(folder / "set.h5", workers=1)


@pytest.mark.parametrize("header", HEADERS[1:], ids=lambda header: header[:30])
def test_an_array_with_any_header(tmp_path: Path, header: str) -> None:
    """The header is a Python literal: its parser raises SyntaxError, RecursionError, MemoryError and more."""

    def change(found: dict[str, bytes]) -> None:
        found["conv1/masks.npy"] = _npy(header, found["conv1/masks.npy"][128:])

    with pytest.raises(InputError, match=r"set\.zip, conv1/masks\.npy: expected"):
        read(zipped(tmp_path, change), tmp_path)


def test_a_member_that_lzma_cannot_unpack(tmp_path: Path) -> None:
    path = zipped(tmp_path, lambda _: None, zipfile.ZIP_LZMA)
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as file:
        info = file.getinfo("annotations.csv")
    at = info.header_offset + 30 + len(info.filename) + 20
    content[at : at + 40] = b"\xff" * 40
    path.write_bytes(content)
    with zipfile.ZipFile(path) as file, pytest.raises(lzma.LZMAError):
        file.read("annotations.csv")
    with pytest.raises(InputError, match=r"annotations\.csv: cut short or damaged"):
        read(path, tmp_path)


def test_a_member_without_a_name(tmp_path: Path) -> None:
    path = zipped(tmp_path, lambda _: None)
    content = path.read_bytes()
    at = content.find(b"PK\x01\x02")
    path.write_bytes(content[: at + 28] + b"\0\0" + content[at + 30 :])  # the name's length in the zip's directory
    with pytest.raises(InputError, match=r"set\.zip: expected"):
        read(path, tmp_path)


def test_annotations_that_unpack_to_more_than_memory(tmp_path: Path) -> None:
    found = members(NAME, units=2, exemplars=2, side=8)
    path = tmp_path / "set.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file:
        for name, content in found.items():
            with file.open(name, "w") as member:
                member.write(content)
                for _ in range(300 if name == "annotations.csv" else 0):
                    member.write(bytes(1 << 20))
    assert path.stat().st_size < 10**7
    with pytest.raises(InputError, match=r"annotations\.csv: expected at most 268435456 bytes"):
        read(path, tmp_path)


@pytest.mark.parametrize("number", ["9" * 5000, str(2**63), "9" * 19])
def test_numbers_beyond_any_integer(tmp_path: Path, number: str) -> None:
    """Python reads no text of more than 4300 digits as a number, and NumPy no number beyond 64 bits."""
    rows = [["layer", "unit", "summary"], *(["conv1", number, f"text {text}"] for text in range(3))]
    with pytest.raises(InputError, match=r"line 2: column 'unit': expected a whole number from 0"):
        read_annotations("\n".join(",".join(row) for row in rows).encode(), "annotations.csv")

    def change(found: dict[str, bytes]) -> None:
        del found["conv1/images.npy"]
        found["conv1/ids.csv"] = f"{number},1\n0,1\n".encode()

    with pytest.raises(InputError, match=r"ids\.csv, line 1: expected"):
        read(zipped(tmp_path, change), tmp_path, image_folder(tmp_path / "pictures", 4, 2))


def test_a_picture_on_which_its_decoder_raises_anything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow raises struct.error, EOFError, IndexError, … where bytes are damaged; which, changes with its version."""
    from PIL import Image

    def opened(*_: Any, **__: Any) -> None:
        raise IndexError("of a decoder")

    pictures = SourcePictures(image_folder(tmp_path, 4, 2), "places365", "crop")
    monkeypatch.setattr(Image, "open", opened)
    with pytest.raises(InputError, match=r"val_00000000\.png: expected a picture: of a decoder"):
        pictures.load(0, (8, 8))


@pytest.mark.filterwarnings("ignore:Validating sparse")
def test_a_split_file_with_a_sparse_tensor(tmp_path: Path) -> None:
    torch.save({"test": torch.tensor([1.0, 0.0]).to_sparse()}, tmp_path / "s.pth")
    with pytest.raises(InputError, match=r"s\.pth, 'test': expected a list of numbers, got Tensor"):
        read_splits(tmp_path / "s.pth", 3)


def test_units_with_an_attribute_or_arrays_of_another_kind(tmp_path: Path) -> None:
    import h5py

    read(zipped(tmp_path, lambda _: None), tmp_path)
    path = tmp_path / "set.h5"
    whole = path.read_bytes()
    changes: list[Callable[[h5py.File], object]] = [
        lambda file: file.attrs.create("devil_pipe_units", "[1]"),
        lambda file: file.attrs.create("devil_pipe_units", "{"),
        lambda file: file.attrs.create("devil_pipe_units", '{"version": 1}'),
        lambda file: (file.pop("layer"), file.create_dataset("layer", data=[1, 2, 3, 4])),
        lambda file: (file.pop("unit"), file.create_dataset("unit", data=[1, 2, 3])),
        lambda file: (file.pop("masks"), file.create_dataset("masks", data=3)),
        lambda file: (file.pop("masks"), file.create_dataset("masks", (4, 2, 8, 8), "f4")),
        lambda file: (file.pop("layer"), file.create_dataset("layer", data=np.array([b"\xff"] * 4))),
    ]
    for change in changes:
        path.write_bytes(whole)
        with h5py.File(path, "r+") as file:
            change(file)
        with pytest.raises(InputError, match=r"set\.h5: expected"):
            open_units(path)
    assert b"GCOL" not in whole


# --- configurations and translators

TAGS = {
    "bool": "seed: !!bool maybe",
    "int": "seed: !!int ''",
    "float": "seed: !!float ''",
    "timestamp": "seed: !!timestamp soon",
    "sixties": "seed: " + "1:" * 300 + "1.5",
    "digits": "seed: " + "9" * 5000,
    "brackets": "seed: " + "[" * 3000,
}


@pytest.mark.parametrize("text", TAGS.values(), ids=TAGS)
def test_yaml_on_which_pyyaml_raises_anything(tmp_path: Path, text: str) -> None:
    """KeyError, IndexError, AttributeError, OverflowError, RecursionError; none of them a YAMLError."""
    path = tmp_path / "c.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UsageError, match=r"c\.yaml: expected YAML"):
        config.read_yaml(path)
    (tmp_path / "config.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=r"config\.yaml: expected a translator's card"):
        checkpoint.load(tmp_path)


def test_aliases_that_stand_for_more_values_than_memory_holds(tmp_path: Path) -> None:
    """Half a thousand bytes, and 9⁹ values for whoever writes one of them into a message."""
    path = tmp_path / "c.yaml"
    path.write_text(BOMB + "source: *i\n", encoding="utf-8")
    with pytest.raises(UsageError, match=r"at most 100000 values, aliases written out"):
        config.read_yaml(path)
    path.write_text("a: &a {x: [1, 2]}\nb: *a\nc: [*a, *a]\n", encoding="utf-8")
    assert config.read_yaml(path)["c"] == [{"x": [1, 2]}] * 2


LAYERS = (LayerSpec(name="l", channels=3, height=1, width=1),)
SMALL = TranslatorConfig(layers=1, width=4, heads=2, feedforward=4, queries=2)


def card(**translator: Any) -> checkpoint.Card:
    of = SMALL.model_copy(update=translator)
    return checkpoint.Card(of, None, 1, "opt-125m", identity(7, layers=LAYERS), "none", 0)


@pytest.mark.parametrize("sizes", [{"layers": 10**9}, {"width": 10**7}, {"queries": 10**12}, {"feedforward": 2**62}])
def test_a_card_that_describes_more_than_memory_holds(tmp_path: Path, sizes: dict[str, int]) -> None:
    """The weights are small; what the card says is compared with them before it is built."""
    checkpoint.save(tmp_path, build(SMALL, LAYERS, 8), card())
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(card(**sizes).as_dict()), encoding="utf-8")
    with pytest.raises(
        InputError, match=r"translator\.safetensors: expected the weights that .*config\.yaml describes"
    ):
        checkpoint.load(tmp_path)


@pytest.mark.parametrize("field", ["prefix_norm", "prefix_repeats", "language_model", "seed", "warmup"])
def test_a_card_with_values_of_another_type(tmp_path: Path, field: str) -> None:
    checkpoint.save(tmp_path, build(SMALL, LAYERS, 8), card())
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(card().as_dict() | {field: [1]}), encoding="utf-8")
    with pytest.raises(InputError, match=rf"config\.yaml: expected a translator's card: .*{field}"):
        checkpoint.load(tmp_path)


@pytest.mark.parametrize("text", ["[]", "3", '{"step": "three", "loss": 1.0, "digest": "d"}', DEEP, "{", '{"step": 3}'])
def test_a_best_step_or_a_state_that_says_something_else(tmp_path: Path, text: str) -> None:
    save_file({"x": torch.ones(1)}, tmp_path / "f", metadata={"best": text, "progress": text})
    with pytest.raises(InputError, match="expected the best step's weights; remove it"):
        checkpoint.read_best(tmp_path / "f")
    with pytest.raises(InputError, match="expected a training state; remove it"):
        checkpoint.read_progress(tmp_path / "f")


@pytest.mark.parametrize(
    "name", ["optimizer.0", "optimizer.x.step", "optimizer.99.exp_avg", "optimizer.0.exp_avg", "model.y"]
)
def test_a_state_with_tensors_of_another_translator(tmp_path: Path, name: str) -> None:
    translator = build(SMALL, LAYERS, 8)
    optimizer = torch.optim.AdamW(translator.parameters())
    checkpoint.save_progress(tmp_path / "state", translator, optimizer, checkpoint.Progress("main", 0, 0.0, "d"))
    checkpoint.restore_progress(tmp_path / "state", translator, optimizer)
    tensors = {f"model.{key}": value for key, value in translator.state_dict().items()} | {name: torch.ones(7)}
    save_file(tensors, tmp_path / "state")
    with pytest.raises(InputError, match="state: expected a training state; remove it"):
        checkpoint.restore_progress(tmp_path / "state", translator, optimizer)


def test_a_message_is_never_as_long_as_a_file() -> None:
    said = str(InputError("here: expected a word, got " + "x" * 10**6 + "; write one"))
    assert said.startswith("here: expected a word")
    assert said.endswith("; write one")
    assert len(said) < 5000
