"""The table of a backbone's layers: what can be explained, and what is unless one chooses."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any

from devil_pipe.stages.extract.backbones import BackboneSpec, load, spec, without_weights
from devil_pipe.stages.extract.config import Size
from devil_pipe.stages.extract.estimate import columns
from devil_pipe.stages.extract.layers import RULES, layer_specs
from devil_pipe.stages.extract.pictures import sides
from devil_pipe.stages.extract.taps import Tap
from devil_pipe.store.schema import LayerSpec


@dataclass(frozen=True)
class Row:
    """One layer as the trial forward found it."""

    name: str
    alias: str
    module: str
    norm: str
    """Of transformer blocks: `pre-norm`, the residual stream before any final norm, or `post-norm`; else empty."""

    prefix_tokens: int
    """Tokens taken off before the patches, registers not counted."""

    register_tokens: int
    suffix_tokens: int
    default: bool
    block: bool
    """Whether the rules `all`, `last:N` and `every:N` count it."""

    grid: tuple[int, int]
    channels: int
    stride: tuple[float, float]
    """Pixels from one location to the next, down and across; where no whole number fits, on average."""


@dataclass(frozen=True)
class Overview:
    """A backbone and all its layers."""

    backbone: BackboneSpec
    size: tuple[int, int]
    weights: str
    """Digest of the weights that were looked at; empty for shapes alone."""

    rows: tuple[Row, ...]

    def text(self, as_json: bool) -> str:
        """A table for a person, or JSON.

        JSON: `backbone`, `image_size` [height, width], `mean`, `std`, `interpolation`, `self_test` ("imagenet", "clip"
        or "none"), `pretrained` (the library's tag), `weights` (digest or ""), `layers` (a list of `Row`s' fields).
        """
        return json.dumps(self._values(), indent=2, ensure_ascii=False) if as_json else "\n".join(self._table())

    def _values(self) -> dict[str, Any]:
        found = self.backbone
        return {
            "backbone": found.name,
            "image_size": list(self.size),
            "mean": list(found.mean),
            "std": list(found.std),
            "interpolation": found.interpolation,
            "self_test": found.test,
            "pretrained": found.pretrained,
            "weights": self.weights,
            "layers": [dataclasses.asdict(row) for row in self.rows],
        }

    def _table(self) -> list[str]:
        head = ("layer", "alias", "module", "norm", "tokens taken off", "default", "grid", "channels", "stride")
        cells = [head]
        for row in self.rows:
            grid = f"{row.grid[0]}×{row.grid[1]}"
            mark = "yes" if row.default else "" if row.block else "(no block)"
            about = (row.name, row.alias, row.module, row.norm, _tokens(row), mark)
            cells.append((*about, grid, str(row.channels), _stride(row.stride)))
        height, width = self.size
        known = {
            "imagenet": "ImageNet's classes of known pictures",
            "clip": "known pictures and their captions",
            "none": "no known answer; maps finite and different",
        }
        looked = f"; weights {self.weights}" if self.weights else ""
        return [
            f"{self.backbone.name}: pictures of {height} × {width} pixels, {self.backbone.interpolation}{looked}",
            *columns(cells),
            f"checked before extraction: {known[self.backbone.test]}",
            f"choose with --layers: layers, aliases or modules, separated by commas, or a rule: {', '.join(RULES)}",
        ]


def overview(name: str, weights: str | None = None, size: Size | None = None) -> Overview:
    """Find the layers of a backbone and their shapes; fetches nothing unless weights are asked for.

    Args:
        name: as in `spec`.
        weights: as in `load`; None looks at shapes alone.
        size: pixels of the pictures; None takes the backbone's own.

    Raises:
        UsageError: unknown backbone.
        InputError: weights that cannot be used, or a size that the backbone does not take.
    """
    wanted = spec(name)
    chosen = wanted.size if size is None else size
    if weights is None:
        shapes = without_weights(wanted, lambda module: layer_specs(module, wanted.taps, chosen))
        digest = ""
    else:
        loaded = load(name, weights)
        shapes, digest = layer_specs(loaded.module, wanted.taps, chosen), loaded.weights
    rows = tuple(_row(tap, shape, wanted, sides(chosen)) for tap, shape in zip(wanted.taps, shapes, strict=True))
    return Overview(wanted, sides(chosen), digest, rows)


def _row(tap: Tap, shape: LayerSpec, wanted: BackboneSpec, size: tuple[int, int]) -> Row:
    return Row(
        name=tap.name,
        alias=tap.alias,
        module=tap.module,
        norm=tap.norm,
        prefix_tokens=tap.prefix_tokens - tap.register_tokens,
        register_tokens=tap.register_tokens,
        suffix_tokens=tap.suffix_tokens,
        default=tap.name in wanted.default,
        block=tap.block,
        grid=(shape.height, shape.width),
        channels=shape.channels,
        stride=(_step(size[0], shape.height), _step(size[1], shape.width)),
    )


def _step(pixels: int, locations: int) -> float:
    """A whole number where one fits: without padding, a map has a location or two less than its stride would give."""
    whole = pixels // locations
    return float(whole) if pixels // whole - locations <= 2 else pixels / locations


def _tokens(row: Row) -> str:
    said = [f"{row.prefix_tokens} class"] if row.prefix_tokens else []
    said += [f"{row.register_tokens} registers"] if row.register_tokens else []
    said += [f"{row.suffix_tokens} at the end"] if row.suffix_tokens else []
    return " + ".join(said)


def _stride(stride: tuple[float, float]) -> str:
    down, across = (f"{side:.1f}".removesuffix(".0") for side in stride)
    return down if down == across else f"{down}×{across}"
