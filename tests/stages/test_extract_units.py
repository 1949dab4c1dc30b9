"""Units of a network from their exemplars: against a slow loop over pictures, and what a layer does not know."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from devil_pipe.stages.extract.backbones import LITE, load
from devil_pipe.stages.extract.config import ExtractConfig, Runtime
from devil_pipe.stages.extract.pictures import Transform
from devil_pipe.stages.extract.run import run
from devil_pipe.stages.extract.units import mask_weights, unit_means
from devil_pipe.stages.prepare.index import Row, to_table, write_index
from devil_pipe.stages.prepare.milan.annotations import Unit
from devil_pipe.stages.prepare.milan.units import unit_key, writing_units
from devil_pipe.store.errors import InputError
from devil_pipe.store.reader import FeatureStore

UNITS, EXEMPLARS, SIDE = 5, 4, 64
NAME = "alexnet/imagenet"


def bilinear(mask: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resized by hand: the four pixels around each cell's centre."""
    rows, columns = mask.shape
    out = np.zeros((height, width))
    for y, x in np.ndindex(height, width):
        v = min(max((y + 0.5) * rows / height - 0.5, 0), rows - 1)
        u = min(max((x + 0.5) * columns / width - 0.5, 0), columns - 1)
        top, left = int(v), int(u)
        bottom, right = min(top + 1, rows - 1), min(left + 1, columns - 1)
        a, b = v - top, u - left
        out[y, x] = (
            (1 - a) * ((1 - b) * mask[top, left] + b * mask[top, right])
            + a * ((1 - b) * mask[bottom, left] + b * mask[bottom, right])
        )  # fmt: skip
    return out


@pytest.mark.parametrize(("height", "width"), [(7, 7), (3, 5), (20, 30), (1, 2)])
def test_a_mask_is_resized_bilinearly(height: int, width: int) -> None:
    masks = np.random.default_rng(0).random((3, 20, 30)) < 0.3
    found = mask_weights(torch.from_numpy(masks), height, width).numpy()
    for mask, weights in zip(masks, found, strict=True):
        np.testing.assert_allclose(weights.reshape(height, width), bilinear(mask, height, width), atol=1e-5)


def test_a_unit_is_the_mean_over_its_valid_exemplars_means() -> None:
    """A loop over units, exemplars and locations; the second unit has no valid exemplar, the third one of three."""
    random = np.random.default_rng(1)
    maps, weights = random.normal(size=(8, 6, 3)), random.random((8, 6)) * (random.random((8, 6)) < 0.6)
    units = np.array([0, 0, 1, 1, 2, 2, 2, 3])
    weights[[2, 3, 4, 6]] = 0
    expected, valid = np.zeros((4, 3)), np.zeros(4, dtype=int)
    for unit in range(4):
        means = []
        for picture in np.flatnonzero(units == unit):
            if weights[picture].sum() > 0:
                means.append(
                    sum(w * m for w, m in zip(weights[picture], maps[picture], strict=True)) / weights[picture].sum()
                )
        valid[unit] = len(means)
        expected[unit] = np.mean(means, axis=0) if means else 0
    found, counts = unit_means(
        torch.from_numpy(maps).float(), torch.from_numpy(weights).float(), torch.from_numpy(units), 4
    )
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)
    assert counts.tolist() == valid.tolist() == [2, 0, 1, 1]


def data(root: Path, masks: np.ndarray) -> Path:
    """Units of noise in an HDF5 file, and their index."""
    images = np.random.default_rng(3).integers(0, 256, (UNITS, EXEMPLARS, 3, SIDE, SIDE), dtype=np.uint8)
    units = [Unit("conv1", number, (f"thing {number}",), line=number) for number in range(UNITS)]
    folder = root / "data" / "units"
    folder.mkdir(parents=True)
    with writing_units(folder / "set.h5", NAME, units, (EXEMPLARS, SIDE, SIDE), []) as put:
        for number in range(UNITS):
            put(number, images[number], masks[number])
    np.save(root / "images.npy", images)
    rows = [
        Row(
            key=unit_key(NAME, unit.layer, unit.number),
            path="set.h5",
            offset=number,
            size=EXEMPLARS,
            captions=unit.captions,
            split="train",
            width=SIDE,
            height=SIDE,
        )
        for number, unit in enumerate(units)
    ]
    write_index(to_table(rows), folder / "index.parquet")
    return folder


def config(folder: Path, **changes: Any) -> ExtractConfig:
    values: dict[str, Any] = {
        "name": "store",
        "data": "units",
        "backbone": "effnet_lite0",
        "weights": "random",
        "layers": ("s8", "s32"),
        "image_size": SIDE,
        "encoding": "units",
        "runtime": Runtime(batch_size=9, decoders=2, device="cpu"),
        "data_dir": folder,
        "out": folder.parents[1] / "store",
    }
    return ExtractConfig(**values | changes)


def test_a_store_of_units_holds_what_a_loop_over_pictures_gives(tmp_path: Path) -> None:
    """timm's own reader of intermediate maps, a picture at a time. Unit 1's masks are empty, unit 2's too small for the
    coarse layer, and two of unit 3's exemplars have none."""
    masks = np.random.default_rng(4).random((UNITS, EXEMPLARS, SIDE, SIDE)) < 0.02
    masks[1] = False
    masks[2] = False
    masks[2, :, 4, 4] = True  # among the pixels around a cell's centre at stride 8, not at stride 32
    masks[3, :2] = False
    folder = data(tmp_path, masks)
    run(config(folder))
    store = FeatureStore(tmp_path / "store", None)
    assert store.identity.schema_version == "1.2"
    assert store.manifest.invalid == {1: "no exemplar's mask reaches a location of any layer"}
    images = np.load(tmp_path / "images.npy")
    module, transform = load("effnet_lite0", "random").module, Transform(SIDE, *LITE)
    for layer, index in (("s8", 2), ("s32", 4)):
        for unit in (0, 2, 3, 4):
            held = store[layer].stored([unit])
            assert held.exemplars is not None
            means = []
            for image, mask in zip(images[unit], masks[unit], strict=True):
                with torch.inference_mode():
                    pixels = transform(Image.fromarray(np.moveaxis(image, 0, 2)))[None]
                    _, maps = module.forward_intermediates(pixels, indices=[index])  # type: ignore[operator]
                weights = bilinear(mask, *maps[0].shape[2:])
                if weights.sum() > 0:
                    means.append((maps[0][0].numpy() * weights).sum(axis=(1, 2)) / weights.sum())
            assert held.exemplars.item() == len(means)
            expected = np.mean(means, axis=0) if means else np.zeros(held.values.shape[2])
            np.testing.assert_allclose(held.values[0, 0].astype(np.float32), expected, rtol=2e-3, atol=2e-3)
    counts = store["s32"].stored([0, 2, 3, 4]).exemplars
    assert counts is not None
    assert counts.flatten().tolist()[1] == 0, "the case that the coarse layer knows nothing is there"
    assert counts.flatten().tolist()[2] <= 2


@pytest.mark.parametrize("encoding", ["float16", "uint8", "partition:4"])
def test_units_need_their_own_encoding(tmp_path: Path, encoding: str) -> None:
    folder = data(tmp_path, np.ones((UNITS, EXEMPLARS, SIDE, SIDE), dtype=bool))
    with pytest.raises(InputError, match=rf"encoding: expected units for .*, which holds units, got '{encoding}'"):
        run(config(folder, encoding=encoding))
    assert not (tmp_path / "store").exists()


def test_pictures_have_no_exemplars(tiny_data: Any) -> None:
    folder = tiny_data(count=3)
    with pytest.raises(InputError, match=r"encoding: expected float16, .* which holds pictures, got 'units'"):
        run(config(folder))


def test_resizing_agrees_with_pytorch_s_without_smoothing() -> None:
    """The rule of SPEC.md, held to the function that MILAN's pooling calls."""
    masks = torch.rand(2, 1, 33, 47)
    expected = nn.functional.interpolate(masks, (5, 6), mode="bilinear", align_corners=False)
    by_hand = [bilinear(mask.numpy(), 5, 6) for mask in masks[:, 0]]
    np.testing.assert_allclose(expected[:, 0].numpy(), by_hand, atol=1e-5)
