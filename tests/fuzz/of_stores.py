"""A store's manifest, markers, metadata, shards and row arrays; and a store as one HDF5 file."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np

from devil_pipe.store.errors import InputError
from devil_pipe.store.hdf5 import export_hdf5, import_hdf5
from devil_pipe.store.reader import FeatureStore
from devil_pipe.store.verify import discard, verify
from devil_pipe.store.writer import StoreWriter

from ..store.stores import ENCODINGS, files, identity, keys, random_maps, write_store
from .choices import Choices
from .edits import edit_bytes, edit_json

ROWS, SHARD_ROWS = 5, 3
INVALID = {1: "not a picture"}


class _Stores:
    """A small store of each encoding, put back after each input."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.whole: dict[str, dict[str, bytes]] = {}
        self.maps: dict[str, dict[str, np.ndarray]] = {}
        for encoding in ENCODINGS:
            of = identity(ROWS, encoding)
            self.maps[encoding] = random_maps(of)
            root = folder / encoding.replace(":", "-")
            write_store(root, of, self.maps[encoding], SHARD_ROWS, INVALID, keys(of))
            self.whole[encoding] = files(root)
        self.touched: dict[str, set[str] | None] = {encoding: set() for encoding in ENCODINGS}
        """What has to be put back; None: anything may be elsewhere."""

        self.blind = False
        """Whether a shard was changed together with its checksums, which no reader can see."""

    def damaged(self, choices: Choices) -> tuple[str, Path, set[str]]:
        """The encoding, the folder, and the names of the files that were changed and do not fit the others."""
        encoding = choices.pick(ENCODINGS)
        root, names = self.folder / encoding.replace(":", "-"), sorted(self.whole[encoding])
        self._put_back(encoding, root)
        changed: set[str] = set()
        self.blind = False
        for _ in range(1 + choices.one_in(3)):
            changed |= self._change(encoding, root, choices.pick(names), choices)
        return encoding, root, changed

    def _put_back(self, encoding: str, root: Path) -> None:
        touched, whole = self.touched[encoding], self.whole[encoding]
        if touched is None:
            shutil.rmtree(root)
            touched = set(whole)
        for name in touched:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(whole[name])
        self.touched[encoding] = set()

    def _touch(self, encoding: str, *names: str) -> None:
        if (touched := self.touched[encoding]) is not None:
            touched.update(names)

    def _change(self, encoding: str, root: Path, name: str, choices: Choices) -> set[str]:
        path = root / name
        self._touch(encoding, name)
        if not path.is_file():
            return set()
        content = path.read_bytes()
        if choices.one_in(40):
            path.unlink()
            return {name}
        if not name.endswith(".json"):
            return self._change_values(encoding, root, name, content, choices)
        if mending := choices.one_in(2):
            self.touched[encoding] = None
        path.write_bytes(edit_json(content, choices, lambda values: _fitting(root, values) if mending else values))
        if path.stat().st_size < 10**5 and mending and name != "manifest.json":
            _rename(root)
        return {name}

    def _change_values(self, encoding: str, root: Path, name: str, content: bytes, choices: Choices) -> set[str]:
        """Change a shard or row array, also so that checksums and records agree with what was changed."""
        how = choices.below(4)
        if how == 0:
            table = choices.below(len(content))
            content = edit_bytes(content[:table], choices) + content[table:]
        else:
            content = edit_bytes(content, choices)
        if how >= 2 and len(content) >= 4:
            self.blind |= name.endswith(".0.0")
            body = content[:-4]
            content = body + google_crc32c.value(body).to_bytes(4, "little")
            if how == 3 and len(body) >= 16 * SHARD_ROWS:
                index = body[-16 * SHARD_ROWS :]
                content = body + google_crc32c.value(index).to_bytes(4, "little")
        (root / name).write_bytes(content)
        if how >= 2 and choices.one_in(2):
            self._touch(encoding, *(other for other in self.whole[encoding] if other.endswith(".json")))
            _record(root, name, content)
            return set()
        return {name}


def _digest(identity_values: Any) -> str:
    return hashlib.sha256(json.dumps(identity_values, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _fitting(root: Path, values: Any) -> Any:
    """A manifest whose folder follows from its identity, as SPEC.md, 4 has it; the folder is renamed."""
    if isinstance(values, dict) and isinstance(values.get("folder"), str) and "identity" in values:
        before = next((path for path in root.iterdir() if len(path.name) == 12), None)
        values["folder"] = _digest(values["identity"])[:12]
        if before is not None and not (root / values["folder"]).exists():
            before.rename(root / values["folder"])
            if (root / "commits" / before.name).is_dir():
                (root / "commits" / before.name).rename(root / "commits" / values["folder"])
    return values


def _rename(root: Path) -> None:
    """Give a folder the name that its own metadata now ask for, and leave the manifest out: an unfinished store."""
    for path in list(root.glob("*/zarr.json")):
        try:
            name = _digest(json.loads(path.read_bytes())["attributes"]["devil_pipe"]["identity"])[:12]
        except (ValueError, KeyError, TypeError, RecursionError):
            continue
        if path.parent.name != name and not (root / name).exists():
            if (root / "commits" / path.parent.name).is_dir():
                (root / "commits" / path.parent.name).rename(root / "commits" / name)
            path.parent.rename(root / name)
            (root / "manifest.json").unlink(missing_ok=True)


def _record(root: Path, name: str, content: bytes) -> None:
    """Write a file's new size and digest wherever the old ones stand."""
    record = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    parts = name.split("/")
    for path in (root / "manifest.json", *root.glob("commits/*/*.json")):
        try:
            values = json.loads(path.read_bytes())
            for shard in values.get("shards", [values]):
                if parts[2] == f"c.{shard['shard']}.0.0" and parts[1] in shard["files"]:
                    shard["files"][parts[1]] = record
            if parts[1] in values.get("rows", {}):
                values["rows"][parts[1]] = record
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, IndexError, FileNotFoundError):
            continue
        path.write_text(json.dumps(values, indent=2, sort_keys=True), encoding="utf-8")


class StoreFiles(_Stores):
    """Reading: what comes back with `verify=True` is what was written."""

    def __call__(self, choices: Choices) -> None:
        encoding, root, _ = self.damaged(choices)
        reader = FeatureStore(root)
        good = [row for row, there in enumerate(reader.valid()) if there]
        for layer in reader.layers:
            opened = reader[layer.name]
            found = opened.stored(good[::-1], verify=True)
            if not self.blind:
                for array, values in zip(opened.arrays, found.arrays(), strict=True):
                    written = self.maps[encoding].get(array.name)
                    assert written is not None, f"array {array.name} was never written"
                    assert values.tobytes() == written[good[::-1]].tobytes(), f"other values of {array.name}"
            opened.prefetch(good)
            opened.stored(good)
            if opened.grid is not None:
                opened[: min(good, default=0)]
                opened.on_grid(good)
        for key in reader.keys:
            reader.row(key)


class StoreVerified(_Stores):
    """Verifying and going on: damage of a shard is found whatever it is, and nothing raises for it."""

    def __call__(self, choices: Choices) -> None:
        encoding, root, changed = self.damaged(choices)
        report = verify(root, threads=1)
        hurt = {name for name in changed if name.endswith(".0.0") and self._differs(encoding, root, name)}
        assert not hurt or not report.whole, f"{hurt}: not found"
        for finding in report.findings:
            assert str(finding).isprintable(), f"not for a terminal: {str(finding)!r}"
        if not choices.one_in(3):
            return
        self.touched[encoding] = None
        discard(root, report)
        try:
            writer = StoreWriter(root, identity(ROWS, encoding), SHARD_ROWS)
        except InputError:
            return  # rows a shard were changed, and it says so
        again = dict.fromkeys(writer.missing_shards(), self.maps[encoding])
        for shard, maps in again.items():
            rows = writer.ranges[shard]
            part = {name: values[rows.start : rows.stop] for name, values in maps.items()}
            writer.write_shard(shard, part, {row: why for row, why in INVALID.items() if row in rows})
        writer.finalise(keys(writer.identity))
        left = verify(root, threads=1)
        assert left.whole, left.findings

    def _differs(self, encoding: str, root: Path, name: str) -> bool:
        path = root / name
        return not path.is_file() or path.read_bytes() != self.whole[encoding][name]


class StoreExported:
    """Importing a store from an HDF5 file."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.seeds = folder, []
        for encoding in ("float16", "uint8+zstd", "partition:3", "units"):
            of = identity(ROWS, encoding)
            write_store(folder / "store", of, random_maps(of), SHARD_ROWS, INVALID, keys(of))
            export_hdf5(FeatureStore(folder / "store"), folder / "seed.h5", force=True)
            self.seeds.append((folder / "seed.h5").read_bytes())
            shutil.rmtree(folder / "store")

    def __call__(self, choices: Choices) -> None:
        path, target = self.folder / "file.h5", self.folder / "imported"
        words = (b"fine", b"valid", b"key", b".reason", b"devil_pipe", b'"rows": 5', b"TREE", b"HEAP", b"SNOD")
        path.write_bytes(edit_bytes(choices.pick(self.seeds), choices, words))
        shutil.rmtree(target, ignore_errors=True)
        import_hdf5(path, target)
        assert verify(target, threads=1).whole
