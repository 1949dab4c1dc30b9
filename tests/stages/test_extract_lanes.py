"""A batch divided among threads: each picture's features are its own, and an error in one lane is the command's."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from devil_pipe.stages.extract.backbones import LITE, load
from devil_pipe.stages.extract.config import ExtractConfig, Runtime
from devil_pipe.stages.extract.lanes import LEAST, Lanes, lanes
from devil_pipe.stages.extract.layers import Taps
from devil_pipe.stages.extract.pictures import Transform
from devil_pipe.stages.extract.run import run
from devil_pipe.store.reader import FeatureStore

CPU = torch.device("cpu")


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@settings(deadline=None)
@given(count=st.integers(1, 9), items=st.lists(st.integers(), max_size=40))
def test_pieces_hold_every_item_once_in_order_and_are_even(count: int, items: list[int]) -> None:
    pieces = Lanes(count, None).split(items)
    assert [item for piece in pieces for item in piece] == items
    assert len(pieces) <= count
    assert all(pieces)
    assert all(len(piece) == len(pieces[0]) for piece in pieces[:-1])


def test_results_come_in_order_from_threads_of_their_own(two_threads: None) -> None:
    together = threading.Barrier(2, timeout=20)

    def work(piece: Sequence[int]) -> tuple[int, int, int]:
        together.wait()  # both lanes are at work at once, else this breaks
        return piece[0], threading.get_ident(), torch.get_num_threads()

    with lanes(CPU, 2 * LEAST) as among:
        found = among.each(work, among.split([5, 6, 7]))
    assert [first for first, _, _ in found] == [5, 7]
    assert len({thread for _, thread, _ in found} | {threading.get_ident()}) == 3
    assert [threads for _, _, threads in found] == [1, 1], "the backbone's threads are shared out"
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize(("device", "batch"), [("cpu", 2 * LEAST - 1), ("cuda", 64)])
def test_small_batches_and_gpus_are_not_divided(two_threads: None, device: str, batch: int) -> None:
    with lanes(torch.device(device), batch) as among:
        assert among.split([1, 2, 3]) == [[1, 2, 3]]
        assert among.each(lambda _: threading.get_ident(), [0]) == [threading.get_ident()]


def config(data: Path) -> ExtractConfig:
    return ExtractConfig(
        name="store",
        data=data.name,
        backbone="effnet_lite0",
        weights="random",
        layers=("s8", "s32"),
        image_size=64,
        shard_rows=16,
        runtime=Runtime(batch_size=2 * LEAST, decoders=2, device="cpu"),
        data_dir=data,
        out=data.parents[1] / "store",
    )


def test_each_row_has_its_own_picture_s_features(two_threads: None, tiny_data: Callable[..., Path]) -> None:
    """Against the pictures one at a time through timm's own reader of intermediate maps; a broken one in a lane."""

    def spoil(pictures: Path) -> None:
        (pictures / "003.png").write_text("a text that is called a picture")

    data = tiny_data(count=27, spoil=spoil)
    run(config(data))
    store = FeatureStore(data.parents[1] / "store")
    module, transform = load("effnet_lite0", "random").module, Transform(64, *LITE)
    assert list(store.manifest.invalid) == [3]
    for row in (0, 2, 4, 7, 8, 9, 15, 16, 26):
        with Image.open(data.parents[1] / "pictures" / f"{row:03d}.png") as picture, torch.inference_mode():
            _, maps = module.forward_intermediates(transform(picture)[None], indices=[2, 4])  # type: ignore[operator]
        for layer, expected in zip(("s8", "s32"), maps, strict=True):
            np.testing.assert_allclose(
                store[layer][row].astype(np.float32), expected[0].flatten(1).T.numpy(), rtol=1e-3, atol=1e-3
            )


def test_an_error_in_one_lane_stops_the_stage(
    two_threads: None, tiny_data: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the store is not finished."""
    plain, calls = Taps.__call__, iter(range(1000))

    def sometimes(taps: Taps, pixels: Tensor) -> dict[str, Tensor]:
        if len(pixels) == LEAST and next(calls) == 1:
            raise RuntimeError("out of memory")
        return plain(taps, pixels)

    data = tiny_data(count=16)
    monkeypatch.setattr(Taps, "__call__", sometimes)
    with pytest.raises(RuntimeError, match="out of memory"):
        run(config(data))
    assert not (data.parents[1] / "store" / "manifest.json").exists()
    assert torch.get_num_threads() == 2


def test_taps_keep_the_threads_apart(two_threads: None) -> None:
    """Two threads read different pictures through the same hooks at once, many times."""
    backbone = load("effnet_lite0", "random")
    pixels = [torch.full((1, 3, 32, 32), value) for value in (-1.0, 1.0)]
    with Taps(backbone.module, backbone.spec.taps[-1:]) as read:

        def each(piece: Any) -> Tensor:
            with torch.inference_mode():
                return torch.stack([next(iter(read(piece).values())) for _ in range(20)])

        alone = [each(piece) for piece in pixels]
        with lanes(CPU, 2 * LEAST) as among:
            found = among.each(each, pixels)
    assert not torch.allclose(alone[0], alone[1], rtol=1e-3), "the pictures differ, else nothing is shown"
    for own, together in zip(alone, found, strict=True):
        torch.testing.assert_close(together, own, rtol=1e-4, atol=1e-5)
