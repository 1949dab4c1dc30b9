"""What each encoding of the store costs and changes, against full float16 maps.

`python benchmarks/encodings.py`: bytes a picture, and the distortion of the vector that training sees (the mean after
spatial dropout), on EfficientNet-Lite0's maps of demo composites.
`… --table`: what three backbones' stores take for 3,000,000 pictures, by encoding, as Markdown.
`… --train 3`: the demo's translator trained on each of four encodings with three seeds (hours; goes on where it was).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
from pathlib import Path
from typing import Any

import torch
from _encoding_training import train_on_each
from _measure import RESULTS

from devil_pipe.stages.extract.backbones import spec
from devil_pipe.stages.extract.config import ExtractConfig
from devil_pipe.stages.extract.estimate import layer_sizes, size
from devil_pipe.stages.extract.layers import planned_layers
from devil_pipe.stages.extract.run import run as extract
from devil_pipe.stages.prepare.config import DemoConfig, PrepareConfig
from devil_pipe.stages.prepare.run import run as prepare
from devil_pipe.stages.train.dropout import pool, whole_mean
from devil_pipe.store.layout import CRC_BYTES, index_bytes
from devil_pipe.store.reader import FeatureStore
from devil_pipe.store.schema import Encoding

FULL = "float16"
ENCODINGS = (FULL, "float16+zstd", "uint8", "uint8+zstd", "partition:16", "pool:14", "pool:7")
TABLE = {"clip_rn50": 3_000_000, "clip_vit_b32": 3_000_000, "effnet_lite0": 3_000_000}
RATE, BATCH = 0.5, 64
RESULT = RESULTS / "encodings.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=256)
    parser.add_argument("--draws", type=int, default=32, help="dropout masks for each picture and layer")
    parser.add_argument("--table", action="store_true", help="print the sizes of three backbones' stores and end")
    parser.add_argument("--train", type=int, default=0, metavar="SEEDS", help="train the demo's translator on each")
    parser.add_argument("--steps", type=float, default=1.0, metavar="FACTOR", help="of the demo's steps, with --train")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "devil-pipe-encodings")
    chosen = parser.parse_args()
    if chosen.table:
        print("\n".join(size_table()))
    elif chosen.train:
        train_on_each(chosen.train, chosen.steps, chosen.folder, keep)
    else:
        keep(distortion(chosen.pictures, chosen.draws))
        print("\n".join(distortion_table()))


def kept() -> dict[str, Any]:
    """What results/encodings.json holds."""
    found: dict[str, Any] = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.exists() else {}
    return found


def keep(values: dict[str, Any]) -> None:
    """Put values into results/encodings.json beside what lies there."""
    facts = {"benchmark": "encodings", "cores": os.cpu_count(), "python": platform.python_version()}
    RESULTS.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps({**kept(), **facts, **values}, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def distortion(pictures: int, draws: int) -> dict[str, Any]:
    """Write a store for each encoding by the stages themselves, and compare each with the first."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        demo = DemoConfig(train=pictures - 2, val=1, test=1, test_novel=0, novel_objects=0)
        prepare(PrepareConfig(name="demo", out=folder / "data", source="demo", seed=1, demo=demo))
        stores = {encoding: _store(folder, encoding) for encoding in ENCODINGS}
        _assert_same(stores["float16+zstd"], stores[FULL])
        _assert_same(stores["uint8+zstd"], stores["uint8"])
        full = {layer.name: _Reference(stores[FULL], layer.name, draws) for layer in stores[FULL].layers}
        found = {}
        for encoding, store in stores.items():
            per_picture = _bytes(store)
            layers = {
                name: {"bytes_per_picture": round(per_picture[name], 1), **reference.compare(store)}
                for name, reference in full.items()
            }
            found[encoding] = {"bytes_per_picture": round(sum(per_picture.values()), 1), "layers": layers}
            shown = "  ".join(f"{name} {item['variance_ratio']:.3f}" for name, item in layers.items())
            print(f"encodings: {encoding} {size(sum(per_picture.values()))} a picture, variance of the noise {shown}")
    return {
        "command": "python benchmarks/encodings.py",
        "distortion": found,
        "distortion_of": f"demo composites (seed 1), n = {pictures}, {draws} masks each, spatial dropout {RATE}",
        "backbone": "effnet_lite0",
    }


def _store(folder: Path, encoding: str) -> FeatureStore:
    config = ExtractConfig(
        name=encoding,
        data="demo",
        backbone="effnet_lite0",
        encoding=encoding,
        data_dir=folder / "data",
        out=folder / encoding.replace(":", ""),
    )
    extract(config)
    return FeatureStore(config.out)


def _assert_same(one: FeatureStore, other: FeatureStore) -> None:
    """Compression changes no bit of what is read."""
    for layer in one.layers:
        left, right = (store[layer.name].stored(range(store.rows)) for store in (one, other))
        assert left.values.tobytes() == right.values.tobytes(), layer.name
        assert (left.bounds is None) == (right.bounds is None)
        assert left.bounds is None or right.bounds is None or left.bounds.tobytes() == right.bounds.tobytes()


def _bytes(store: FeatureStore) -> dict[str, float]:
    """Bytes a picture of each layer as they lie on disk, checksums included, without the shards' indices."""
    index = index_bytes(store.manifest.shard_rows)
    return {
        layer.name: sum(
            shard.files[array.name].size - index
            for shard in store.manifest.shards
            for array in layer.arrays(store.identity.stored_as)
        )
        / store.rows
        for layer in store.layers
    }


class _Reference:
    """One layer's full float16 maps: their mean, and the moments of the pooled vector under spatial dropout."""

    def __init__(self, store: FeatureStore, layer: str, draws: int) -> None:
        self.layer, self.draws = layer, draws
        rows = range(store.rows)
        parts = [rows[begin : begin + BATCH] for begin in range(0, len(rows), BATCH)]
        self.parts = parts
        self.mean = torch.cat(
            [torch.from_numpy(store[layer].stored(part).values).double().mean(dim=1) for part in parts]
        )
        self.variance, self.cosine, _ = self._moments(store, None)
        self.store = store

    def compare(self, store: FeatureStore) -> dict[str, float]:
        """An encoding's distortion.

        `bias`: distance of the whole map's mean from the full grid's, over that mean's length, averaged over pictures.
        `variance_ratio`: summed variance of the pooled vector over masks, over the full grid's.
        `cosine`: of a pooled vector to the full grid's mean, averaged; `cosine_full`: the same of the full grid.
        `pooled_error`: the same mask on both, distance over length; only where both have the same locations.
        """
        whole = torch.cat([whole_mean(store[self.layer].stored(part)) for part in self.parts]).double()
        same = store[self.layer].grid == self.store[self.layer].grid
        variance, cosine, error = self._moments(store, self.store if same else None)
        bias = (whole - self.mean).norm(dim=1) / self.mean.norm(dim=1)
        found = {
            "bias": float(f"{float(bias.mean()):.3g}"),
            "variance_ratio": round(variance / self.variance, 4),
            "cosine": round(cosine, 5),
            "cosine_full": round(self.cosine, 5),
        }
        return found | ({"pooled_error": float(f"{error:.3g}")} if same else {})

    def _moments(self, store: FeatureStore, beside: FeatureStore | None) -> tuple[float, float, float]:
        """Summed variance over masks, mean cosine to the full mean, and mean distance to `beside` under one mask."""
        variance, cosine, error, seen = 0.0, 0.0, 0.0, 0
        for number, part in enumerate(self.parts):
            stored = store[self.layer].stored(part)
            other = None if beside is None else beside[self.layer].stored(part)
            mean = self.mean[seen : seen + len(part)]
            seen += len(part)
            pooled = []
            for draw in range(self.draws):
                seed = number * self.draws + draw
                drawn = pool(stored, RATE, torch.Generator().manual_seed(seed)).double()
                pooled.append(drawn)
                cosine += float(torch.nn.functional.cosine_similarity(drawn, mean, dim=1).sum())
                if other is not None:
                    exact = pool(other, RATE, torch.Generator().manual_seed(seed)).double()
                    error += float(((drawn - exact).norm(dim=1) / exact.norm(dim=1)).sum())
            variance += float(torch.stack(pooled).var(dim=0).sum())
        count = seen * self.draws
        return variance, cosine / count, error / count


def distortion_table() -> list[str]:
    """The kept distortion as Markdown."""
    found = kept()["distortion"]
    names = [layer.name for layer in planned_layers(spec(kept()["backbone"]), ())]  # in the backbone's order
    told = ", ".join(names)
    heads = ("encoding", "a picture", "bias of the mean", f"variance of the noise ({told})", f"cosine ({told})")
    lines = [f"| {' | '.join(heads)} |", "|---|---|---|---|---|"]
    for encoding in ENCODINGS:
        layers = [found[encoding]["layers"][name] for name in names]
        bias = max(layer["bias"] for layer in layers)
        cells = (
            f"`{encoding}`",
            size(found[encoding]["bytes_per_picture"]),
            f"{bias:.1e}",
            " / ".join(f"{layer['variance_ratio']:.2f}" for layer in layers),
            " / ".join(f"{layer['cosine']:.4f}" for layer in layers),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def size_table() -> list[str]:
    """What a store takes, by backbone and encoding; compression as measured on the demo's maps, else not known."""
    lines = ["| encoding | " + " | ".join(f"{name}, a picture | in all" for name in TABLE) + " |"]
    lines.append("|" + "---|" * (1 + 2 * len(TABLE)))
    for text in ENCODINGS:
        cells = [f"`{text}`"]
        for name, rows in TABLE.items():
            encoding = Encoding.parse(text)
            ratios = _measured_ratios(name, text)
            if encoding.compressed and not ratios:
                cells += ["not known", "not known"]
                continue
            shards = -(-rows // encoding.shard_rows)
            planned = planned_layers(spec(name), ())
            sizes = layer_sizes(planned, encoding, rows, shards, encoding.shard_rows, ratios).values()
            cells += [size(sum(one.bytes_per_picture for one in sizes)), size(sum(one.bytes for one in sizes))]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _measured_ratios(backbone: str, text: str) -> dict[str, float]:
    """Layer by layer, stored over uncompressed bytes as this benchmark measured them; none for other backbones."""
    if "zstd" not in text or backbone != kept().get("backbone"):
        return {}
    measured = kept()["distortion"][text]["layers"]
    ratios = {}
    for layer in planned_layers(spec(backbone), ()):
        arrays = layer.arrays(Encoding.parse(text))
        stored = measured[layer.name]["bytes_per_picture"] - len(arrays) * CRC_BYTES
        plain = sum(array.chunk_bytes for array in arrays)
        ratios |= {array.name: stored / plain for array in arrays}
    return ratios


if __name__ == "__main__":
    main()
