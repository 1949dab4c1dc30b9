"""Scan, masks, descriptions and scores of a run's units, layer by layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from devil_pipe.stages.common.progress import log, track, warn
from devil_pipe.stages.evaluate.naming import Namer
from devil_pipe.stages.evaluate.run import Trained, open_run
from devil_pipe.stages.explain.describing import layer_called
from devil_pipe.stages.explain.opening import transform_of
from devil_pipe.stages.prepare.milan.units import Exemplars
from devil_pipe.stages.units import score
from devil_pipe.stages.units.config import UnitsConfig, drawn
from devil_pipe.stages.units.describe import Said, UnitWriter
from devil_pipe.stages.units.exemplars import Frames, masks_of, unit_feature
from devil_pipe.stages.units.export import PARTS, Annotation, Export, Put
from devil_pipe.stages.units.findings import Findings, Part, Unit
from devil_pipe.stages.units.fits import find_nouns
from devil_pipe.stages.units.scan import Scan, maxima_of, scan, with_locations
from devil_pipe.store.errors import InputError, UsageError
from devil_pipe.store.reader import FeatureStore
from devil_pipe.store.schema import LayerSpec

Show = Callable[[str, int, Exemplars], None]
"""Given the layer, the unit, and its exemplars."""

ALL = "all"


def run(config: UnitsConfig, show: Show) -> Findings:
    """Describe and score units; `show` is given the exemplars of those that the page shows.

    Raises:
        InputError: a store without locations, too few pictures, nothing trained, or a part that belongs to another.
        UsageError: no such layer or unit, or both splits are the same.
    """
    if config.split == config.score_split:
        raise UsageError(
            f"--score-split: expected another split than {config.split!r}, whose pictures the descriptions come from"
        )
    layers = _layers(config, FeatureStore(config.store))  # mistakes are said before a language model is loaded
    trained = open_run(config.out, config.store, config.data_dir, config.runtime.device, config.runtime.precision)
    export = None
    if config.export is not None:
        export = Export(config.export, trained.card.store.backbone, config.data_dir.name)
    work = _Work(config, trained, show, export)
    parts = [work.layer(layer) for layer in layers]
    if export is not None:
        log(f"exported {export.finish(work.annotations)}")
    every = [unit for part in parts for unit in part.units]
    return Findings(work.about(), parts, work.part(ALL, every), frozenset(work.shown))


def _layers(config: UnitsConfig, store: FeatureStore) -> list[LayerSpec]:
    """The layers that are looked at, in the store's order, their units known to be there."""
    for name in config.layers:
        layer_called(name, store.layers)
    found = [layer for layer in store.layers if layer.name in config.layers or not config.layers]
    for layer in found:
        with_locations(store, layer.name)
        config.chosen(layer)
    return found


@dataclass(frozen=True)
class _Seen:
    """A unit's feature."""

    feature: Float[Tensor, " channels"]
    masked: int
    parts: list[Float[Tensor, " _"]]
    """Of `PARTS`, for an export."""


class _Work:
    """What the layers of a run share."""

    def __init__(self, config: UnitsConfig, trained: Trained, show: Show, export: Export | None) -> None:
        self.config, self.trained, self.show, self.export = config, trained, show, export
        self.rows = trained.rows(config.split)
        if len(self.rows) < config.exemplars:
            raise InputError(
                f"{config.data_dir}: expected at least {config.exemplars} pictures with features in the split "
                f"{config.split!r}, got {len(self.rows)}; ask for fewer with --exemplars, or another --split"
            )
        self.kept = drawn(self.rows, config.rows, config.seed, config.split)
        self.score_rows = drawn(trained.rows(config.score_split), config.rows, config.seed, config.score_split)
        objects = [entry["object"] for entry in trained.index]
        self.namer = Namer(objects)
        self.nouns = find_nouns(self.namer, any(objects))
        if len(self.score_rows) < 2:
            self.nouns = f"the split {config.score_split!r} has {len(self.score_rows)} pictures with features"
        if isinstance(self.nouns, str):
            warn(f"descriptions are not scored: {self.nouns}")
        self.frames = Frames(trained.index, config.data_dir, transform_of(trained.card.store))
        self.writer = UnitWriter(trained, config.max_new_tokens, config.runtime.batch_size)
        self.annotations: list[Annotation] = []
        self.shown: list[tuple[str, int]] = []

    def layer(self, layer: LayerSpec) -> Part:
        """One layer, from its scan to its figures."""
        config = self.config
        found = scan(
            self.trained.store,
            layer,
            self.rows,
            config.chosen(layer),
            exemplars=config.exemplars,
            quantile=config.quantile,
            keep=self.kept,
        )
        seen = self._look(found)
        mean = torch.from_numpy(found.mean)
        there = [place for place, one in enumerate(seen) if one.masked]
        features = torch.stack([one.feature for one in seen])[there]
        said = dict(zip(there, self.writer.describe(layer.name, features, mean), strict=True))
        self._annotate(found, seen, there)
        units = self._units(found, seen, said)
        return self.part(layer.name, units, self.writer.write(layer.name, [mean])[0])

    def part(self, name: str, units: Sequence[Unit], mean_text: str = "") -> Part:
        """Units with their figures."""
        fitted, tied = [unit.fit for unit in units], [unit.tie for unit in units]
        how = {"seed": self.config.seed, "resamples": self.config.resamples}
        return Part(name, units, score.figures(fitted, tied, **how), mean_text)

    def _look(self, found: Scan) -> list[_Seen]:
        """Each unit's masks and feature; its exemplars go to the page and into the export on the way."""
        name, config = found.layer.name, self.config
        shown = set(drawn(found.units, config.shown, config.seed, f"{name} shown"))
        self.shown += [(name, unit) for unit in sorted(shown)]
        with ExitStack() as stack:
            put = None
            if self.export is not None:
                given = name, found.units, config.exemplars, self.frames.size
                put = stack.enter_context(self.export.layer(*given))
            places = track(range(len(found.units)), f"masks {name}", unit="units")
            return [self._unit(found, place, put, found.units[place] in shown) for place in places]

    def _unit(self, found: Scan, place: int, put: Put | None, shown: bool) -> _Seen:
        name, unit, rows = found.layer.name, found.units[place], found.rows[place]
        maps = self.trained.store[name].on_grid(rows)
        masks = masks_of(maps[..., unit], float(found.thresholds[place]), self.frames.size)
        if put is not None or shown:
            images = self.frames(rows.tolist())
            if put is not None:
                put(images, masks)
            if shown:
                self.show(name, unit, Exemplars(images, masks))
        features = torch.from_numpy(maps.astype(np.float32))
        whole, masked = unit_feature(features, masks)
        parts = []
        for _, some in PARTS if put is not None else ():
            feature, count = unit_feature(features[some], masks[some])
            parts.append(feature if count else whole)
        return _Seen(whole, masked, parts)

    def _annotate(self, found: Scan, seen: Sequence[_Seen], there: Sequence[int]) -> None:
        if self.export is None or not there:
            return
        name = found.layer.name
        texts = iter(self.writer.write(name, [feature for place in there for feature in seen[place].parts]))
        for place in there:
            for what, _ in PARTS:
                by = f"devil-pipe, run {self.config.run}, {what}"
                self.annotations.append(Annotation(name, found.units[place], next(texts), by))

    def _units(self, found: Scan, seen: Sequence[_Seen], said: dict[int, Said]) -> list[Unit]:
        index = self.trained.index
        texts = [said[place].text if place in said else "" for place in range(len(seen))]
        fitted = self._fits(found, texts)
        entries = [index[row] for row in self.kept]
        level, least = self.config.tied, self.config.tied_rows
        tied = score.ties(texts, found.maxima, entries, self.namer, level=level, least=least)
        return [
            Unit(
                layer=found.layer.name,
                unit=unit,
                exemplars=[index[row]["key"] for row in found.rows[place].tolist()],
                peaks=[float(value) for value in found.peaks[place]],
                threshold=float(found.thresholds[place]),
                masked=seen[place].masked,
                said=said.get(place),
                fit=fitted[place],
                tie=tied[place],
            )
            for place, unit in enumerate(found.units)
        ]

    def _fits(self, found: Scan, texts: Sequence[str]) -> list[score.Fit]:
        if isinstance(self.nouns, str):
            return [score.Fit(not_scored=self.nouns) for _ in texts]
        maxima = maxima_of(self.trained.store, found.layer, self.score_rows, found.units)
        captions = [self.trained.index[row]["captions"] for row in self.score_rows]
        return score.fits(texts, maxima, captions, self.nouns)

    def about(self) -> dict[str, object]:
        """What a figure's reader has to know."""
        config, card = self.config, self.trained.card
        return {
            "run": config.run,
            "data": config.data_dir.name,
            "data_note": card.data_note,
            "backbone": card.store.backbone,
            "weights": card.store.weights,
            "language_model": self.trained.language_model.name,
            "warmup": card.warmup,
            "training_seed": card.seed,
            "seed": config.seed,
            "command": command(config),
            "split": config.split,
            "scanned": len(self.rows),
            "tied_by": len(self.kept),
            "tied_level": config.tied,
            "score_split": config.score_split,
            "scored_on": len(self.score_rows),
            "nouns": f"not run: {self.nouns}" if isinstance(self.nouns, str) else self.nouns.label,
            "exemplars": config.exemplars,
            "quantile": config.quantile,
            "interval": f"95 % percentile bootstrap over units, {config.resamples} resamples, seed {config.seed}",
            "store_identity": card.store.digest,
        }


def command(config: UnitsConfig) -> str:
    """The command line that gives the same figures."""
    fields = UnitsConfig.model_fields
    words = ["devil-pipe", "units", config.run]
    words += ["--layer", ",".join(config.layers)] if config.layers else []
    words += ["--units", ",".join(map(str, config.units))] if config.units else ["--sample", str(config.sample)]
    for name in ("split", "score_split", "exemplars", "quantile", "rows", "tied", "seed"):
        value = getattr(config, name)
        if value != fields[name].default:
            words += [f"--{name.replace('_', '-')}", str(value)]
    return " ".join(words)
