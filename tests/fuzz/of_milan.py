"""MILANNOTATIONS: the published zips with their arrays and CSV, the HDF5 file made of them, and split files."""

from __future__ import annotations

import io
import json
import struct
import zipfile
from pathlib import Path

import numpy as np
import torch
import torchvision.datasets  # noqa: F401 - what is imported late is taken for the reader's doing

from devil_pipe.stages.prepare.milan.archive import open_archive
from devil_pipe.stages.prepare.milan.pictures import SourcePictures
from devil_pipe.stages.prepare.milan.published import Published
from devil_pipe.stages.prepare.milan.splits import read_splits
from devil_pipe.stages.prepare.milan.units import open_units, read_unit

from ..stages.milan_fixture import image_folder, members, npy
from .choices import Choices
from .edits import NUMBERS, edit_bytes, edit_text, edit_values

NAME = "alexnet/places365"
CSV_WORDS = (
    '"',
    ",",
    "\n",
    "\0",
    "\udcff",
    "-1",
    "9" * 5000,
    str(2**63),
    "..",
    "conv2",
    "nan",
    "layer",
    "summary",
    "\ufeff",
)
HEADERS = (
    "{'descr': '|u1', 'fortran_order': False, 'shape': (2, 2, 1, 8, 8), }",
    "{'descr': '|O', 'fortran_order': False, 'shape': (2,), }",
    "{'descr': '<f2', 'fortran_order': True, 'shape': (2, 2, 1, 8, 8), }",
    "{'descr': '|u1', 'fortran_order': False, 'shape': (-2, -2, 1, 8, 8), }",
    "{'descr': '|u1', 'fortran_order': False, 'shape': (True, 2**99), }",
    "{'descr': '<u8', 'fortran_order': False, 'shape': (2,), }",
    "{'descr': '|V0', 'fortran_order': False, 'shape': (99999999999999,), }",
    "{'descr': [('a', '<u1')], 'fortran_order': False, 'shape': (2,), }",
    "{'descr': ('<u1', (2, 2)), 'fortran_order': False, 'shape': (2,), }",
    "(" * 400,
    "{" * 5000,
    "-" * 9000 + "1",
    "__import__('os').system('true')",
    "{'descr': '|u1', 'fortran_order': False, 'shape': (2L,), }",
    "",
)


def _npy(header: str, body: bytes) -> bytes:
    """An array's file with any header."""
    text = header.encode().ljust(118) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text) & 0xFFFF) + text + body


class PublishedZip:
    """A set's zip: its directory, its members, and what is made of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.members = {
            kind: members(NAME, units=2, exemplars=2, side=8, pictures=kind, sources=4) for kind in (True, False)
        }
        for found in self.members.values():
            found["conv1/units.npy"] = npy(np.array([0, 1]))
        self.pictures = image_folder(folder / "pictures", 4, 2, (12, 10))

    def _edited(self, choices: Choices) -> bytes:
        found = dict(self.members[choices.one_in(2)])
        for _ in range(choices.below(3)):
            name = choices.pick(sorted(found))
            content = found.pop(name)
            if name.endswith(".csv") and choices.one_in(2):
                text = edit_text(content.decode(errors="surrogateescape"), choices, CSV_WORDS)
                content = text.encode("utf-8", "surrogateescape")
            elif name.endswith(".npy") and choices.one_in(2):
                content = _npy(choices.pick(HEADERS), content[128:])
            elif choices.one_in(2):
                content = edit_bytes(content, choices)
            if not choices.one_in(6):
                other = choices.pick(
                    (name, name, name, "../x", "/x", "conv1/" + name, "a\\b", name.upper(), "conv1/ids.csv")
                )
                found[other] = content
        buffer = io.BytesIO()
        codec = choices.pick((zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED, zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2))
        with zipfile.ZipFile(buffer, "w", codec) as file:
            for name, content in found.items():
                file.writestr(zipfile.ZipInfo(name) if codec == zipfile.ZIP_STORED else name, content)
        content = buffer.getvalue()
        if choices.one_in(2):
            words = (b"PK\x01\x02", b"PK\x03\x04", b"PK\x05\x06", b"PK\x06\x06", b"\xff\xff\xff\xff", b"../", b"\0")
            at = 0 if choices.one_in(2) else content.find(b"PK\x01\x02")
            content = content[:at] + edit_bytes(content[at:], choices, words)
        return content

    def __call__(self, choices: Choices) -> None:
        path = self.folder / "set.zip"
        path.write_bytes(self._edited(choices))
        with open_archive(path, NAME) as archive:
            published = Published(archive, SourcePictures(self.pictures, "places365", "crop"))
            assert published.source
            published.write(self.folder / "set.h5", workers=1)
        made = open_units(self.folder / "set.h5")
        for number, key in enumerate(made.keys()):
            found = read_unit({"key": key, "path": "set.h5", "offset": number}, self.folder)
            assert found.images.shape[1:] == (3, made.height, made.width)
            assert found.masks.dtype == bool


class UnitsHdf5:
    """The HDF5 file of a set, as `train` and `extract` read it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        zipped = PublishedZip(folder)
        with zipfile.ZipFile(folder / "set.zip", "w") as file:
            for name, content in zipped.members[True].items():
                file.writestr(name, content)
        with open_archive(folder / "set.zip", NAME) as archive:
            Published(archive, SourcePictures(None, "places365", "crop")).write(folder / "set.h5", workers=1)
        self.whole = (folder / "set.h5").read_bytes()
        self.keys = open_units(folder / "set.h5").keys()
        self.said = [self.whole.find(word) for word in (b"images", b"masks", b"layer", b"annotations", b"devil_pipe")]

    def __call__(self, choices: Choices) -> None:
        path = self.folder / "set.h5"
        content = self.whole
        if choices.one_in(2):  # near what the file says of itself
            at = max(0, choices.pick(self.said) - 64 + choices.below(512))
            content = content[:at] + edit_bytes(content[at : at + 64], choices) + content[at + 64 :]
        else:
            content = edit_bytes(content, choices, (b'"version": 1', b"TREE", b"SNOD", b"HEAP", b"OHDR", b"\xff" * 8))
        path.unlink()
        path.write_bytes(content)
        open_units(path)
        for number, key in enumerate(self.keys):
            read_unit({"key": key, "path": "set.h5", "offset": number}, self.folder)


class SplitFile:
    """.pth, .json, .npy and .txt; nothing of them is unpickled that could run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.values = {"train": [0, 2, 4, 5], "test": [1, 3]}
        self.torch = []
        for values in (
            self.values,
            {"test": torch.tensor([1, 3])},
            [1, 3],
            torch.tensor([1, 3]).to_sparse(),
            torch.ones(2),
        ):
            buffer = io.BytesIO()
            torch.save(values, buffer)
            self.torch.append(buffer.getvalue())
        old = io.BytesIO()
        torch.save(self.values, old, _use_new_zipfile_serialization=False)
        self.torch.append(old.getvalue())

    def __call__(self, choices: Choices) -> None:
        kind = choices.pick((".pth", ".json", ".npy", ".txt", ".pt"))
        if kind in (".pth", ".pt"):
            words = (
                b"cos\nsystem\n(S'true'\ntR.",
                b"\x80\x02",
                b"ctorch\nTensor\n",
                b"R",
                b"b.",
                b"]q\x00",
                b"PK\x03\x04",
            )
            content = edit_bytes(choices.pick(self.torch), choices, words)
        elif kind == ".json":
            content = json.dumps(edit_values(self.values, choices)).encode()
            content = b"[" * 100_000 if choices.one_in(20) else content
        elif kind == ".npy":
            dtype = choices.pick(("<i8", "<u8", "<f4", "<U3", "|b1", "<M8[s]"))
            content = npy(np.array(choices.pick(([1, 3], 1, [[1], [3]], [NUMBERS[-3]])), dtype=dtype))
            content = _npy(choices.pick(HEADERS), content[128:]) if choices.one_in(2) else edit_bytes(content, choices)
        else:
            content = edit_text("1\n3\n", choices, CSV_WORDS).encode("utf-8", "surrogateescape")
        path = self.folder / f"split{kind}"
        path.write_bytes(content)
        found = read_splits(path, 6)
        assert len(set(found)) == len(found)
        assert set(found) < set(range(6))
