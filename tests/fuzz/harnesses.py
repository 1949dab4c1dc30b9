"""Every harness by name. Each is imported when it is asked for, so that atheris can watch what it imports."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path

TOP = Path(__file__).resolve().parents[2]
"""The folder that holds tests/."""

_PLACES = {
    "store": "of_stores:StoreFiles",
    "store-verify": "of_stores:StoreVerified",
    "store-hdf5": "of_stores:StoreExported",
    "index": "of_lists:IndexFile",
    "captions": "of_lists:CaptionLists",
    "img2dataset-tar": "of_shards:TarShard",
    "img2dataset-parquet": "of_shards:ParquetShard",
    "milan-zip": "of_milan:PublishedZip",
    "milan-units": "of_milan:UnitsHdf5",
    "milan-splits": "of_milan:SplitFile",
    "configurations": "of_settings:Configurations",
    "checkpoints": "of_settings:Checkpoints",
    "translators": "of_settings:ExportedTranslator",
    "pictures": "of_pictures:Pictures",
}


def _loader(place: str) -> Callable[[], Callable[[Path], Callable[..., None]]]:
    def load() -> Callable[[Path], Callable[..., None]]:
        module, _, name = place.partition(":")
        found: Callable[[Path], Callable[..., None]] = getattr(import_module(f".{module}", __package__), name)
        return found

    return load


HARNESSES = {name: _loader(place) for name, place in _PLACES.items()}
