"""A trained run, opened for the audit: which pictures are looked at, and what all checks ask of them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from devil_pipe.stages.audit.album import Album
from devil_pipe.stages.audit.backbone import Explained, open_backbone
from devil_pipe.stages.audit.config import AuditConfig
from devil_pipe.stages.audit.findings import Needs
from devil_pipe.stages.audit.synonyms import alike
from devil_pipe.stages.evaluate.bootstrap import Interval, bootstrap_mean
from devil_pipe.stages.evaluate.conditions import ALL
from devil_pipe.stages.evaluate.naming import Namer, bare
from devil_pipe.stages.evaluate.run import Trained
from devil_pipe.stages.prepare.index import read_mask
from devil_pipe.stages.saliency.likelihood import Likelihoods, averaged
from devil_pipe.stages.saliency.localisation import read_mask_image
from devil_pipe.stages.train.batches import Features, whole_features
from devil_pipe.stages.train.loop import row_losses, translate
from devil_pipe.store.errors import InputError

ABSENT = 3
"""Words for what is not in a picture, that each picture is asked for."""


class Audited:
    """What the checks work with; maps that several of them need are computed once."""

    def __init__(self, config: AuditConfig, trained: Trained) -> None:
        """Take an opened run. Raises InputError where the split has too few pictures to tell anything."""
        self.config, self.trained = config, trained
        self.layers = trained.store.layers
        self.model = trained.language_model
        self.engine = Likelihoods(trained.translator, self.layers, self.model, config.runtime.batch_size)
        rows = trained.rows(config.split)
        if len(rows) < 4:
            raise InputError(
                f"{config.data_dir}: the audit needs 4 pictures in the split {config.split!r}, got {len(rows)}"
            )
        order = np.random.default_rng([config.seed, 3]).permutation(len(rows))
        self.shuffled = [rows[place] for place in order]
        self.album = Album(config, trained.index, pictures=trained.store.identity.stored_as.reduce != "units")
        self.namer = Namer(entry["object"] for entry in trained.index)
        self._maps: dict[int, dict[str, np.ndarray]] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """All layers together, then each alone."""
        return (ALL, *(layer.name for layer in self.layers))

    @property
    def deepest(self) -> str:
        """The last explained layer, on whose maps rules rest: which one was settled before any was looked at."""
        return self.layers[-1].name

    def rows(self, count: int) -> list[int]:
        """So many random rows of the split; a smaller count takes the first of a larger one."""
        return self.shuffled[:count]

    def entry(self, row: int) -> dict[str, Any]:
        """A row of the index."""
        return self.trained.index[row]

    def named(self, count: int, *, masked: bool = False) -> list[int]:
        """Random rows whose object is known, and has a mask where that is asked for. Raises Needs for too few."""
        found = [
            row for row in self.shuffled if self.entry(row)["object"] and (self.entry(row)["mask_size"] or not masked)
        ][:count]
        if len(found) < 4:
            wanted = "pictures whose object is named" + (" and has a mask" if masked else "")
            raise Needs(f"four {wanted} in the index's split {self.config.split!r}, which has {len(found)}")
        return found

    def needs_locations(self) -> None:
        """Raise Needs where the store's rows have no locations."""
        held = self.trained.store.identity.stored_as.reduce
        if held in ("units", "partition"):
            raise Needs(f"a store of full feature maps; this one holds {self.trained.store.identity.encoding}")

    def captions(self, rows: Sequence[int]) -> list[list[int]]:
        """Token ids of each row's first caption."""
        return self.model.encode([self.entry(row)["captions"][0] for row in rows])

    def features(self, rows: Sequence[int]) -> Features:
        """Pooled features, from the store."""
        return whole_features(self.trained.store, rows)

    def prefixes(self, features: Features, name: str = ALL) -> Float[Tensor, "rows queries width"]:
        """Prefix tokens of pooled features, seen by all layers or by one."""
        layers = None if name == ALL else [[layer.name for layer in self.layers].index(name)]
        return translate(self.trained.translator, features, layers, device=self.model.device)

    def losses(self, features: Features, captions: Sequence[Sequence[int]], name: str = ALL) -> np.ndarray:
        """Nats a token of each row's caption after its features."""
        nats, tokens = row_losses(self.model, self.prefixes(features, name), captions)
        return (nats / tokens).numpy().astype(np.float64)

    def written(self, prefixes: Float[Tensor, "rows queries width"]) -> list[list[int]]:
        """Token ids of each row's description, without the EOS."""
        size = self.config.runtime.batch_size
        found: list[list[int]] = []
        for part in torch.split(prefixes, size):
            found += self.model.write_tokens(part, self.config.max_new_tokens)
        return [[token for token in ids if token != self.model.eos] for ids in found]

    def described(self, row: int) -> str:
        """What all layers say of a picture."""
        return self.model.decode(self.written(self.prefixes(self.features([row])))[0])

    def mean(self, values: Sequence[float] | np.ndarray) -> Interval:
        """The mean over pictures with its bootstrap interval; all draw with one seed, so differences are paired."""
        return bootstrap_mean(
            np.asarray(values, dtype=np.float64), seed=self.config.seed, resamples=self.config.resamples
        )

    def mask(self, row: int) -> np.ndarray:
        """The object's mask."""
        content = read_mask(self.entry(row), self.config.data_dir)
        assert content is not None, "rows were chosen by their masks"
        return read_mask_image(content)

    @cached_property
    def words(self) -> list[str]:
        """Objects that training named, in order; those of all pictures where training's are not known."""
        known = [entry for entry in self.trained.index if entry["object"]]
        return sorted({entry["object"] for entry in known if entry["split"] == "train"} or {e["object"] for e in known})

    def absent(self, row: int) -> list[str]:
        """Random words for what a picture does not show, always the same for a picture.

        Left out is what its captions and its scene name, what is called by the same last word ("a dog", "a brown dog"),
        and synonyms.
        """
        entry = self.entry(row)
        there = [bare(entry["object"]), *self.namer.named(" . ".join([*entry["captions"], entry["scene"]]))]
        lasts = {name.split()[-1] for name in there if name}
        others = [
            name
            for name in self.words
            if bare(name).split()[-1] not in lasts and not any(alike(bare(name), known) for known in there)
        ]
        random = np.random.default_rng([self.config.seed, 4, row])
        return [others[place] for place in random.permutation(len(others))[:ABSENT]]

    def query(self, row: int) -> str:
        """What a picture's maps are asked for: its object's name, else its caption."""
        return str(self.entry(row)["object"] or self.entry(row)["captions"][0])

    def locations(self, row: int) -> dict[str, Tensor]:
        """The feature map of each layer, on the grid."""
        return {
            layer.name: averaged(
                torch.from_numpy(self.trained.store[layer.name].on_grid([row])[0]).float(), self.config.grid
            )
            for layer in self.layers
        }

    def scores(self, name: str, maps: dict[str, Tensor], queries: Sequence[str]) -> np.ndarray:
        """Maps [queries, height, width] in nats above the language model's prior."""
        return self.engine.scores(None if name == ALL else name, maps, queries).numpy()

    def maps(self, row: int) -> dict[str, np.ndarray]:
        """Of all layers and of each: the maps of a picture's object and of its absent words, in this order."""
        if row not in self._maps:
            queries, maps = [self.query(row), *self.absent(row)], self.locations(row)
            self._maps[row] = {name: self.scores(name, maps, queries) for name in self.names}
        return self._maps[row]

    @cached_property
    def backbone(self) -> Explained:
        """The explained backbone with its weights. Raises Needs where it cannot be had here."""
        return open_backbone(self.trained.card.store, self.config.weights, self.model.device)
