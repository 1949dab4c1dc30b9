"""What a translator knows at one moment of its training: losses, named objects, words, single layers and locations."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import torch

from devil_pipe.stages.evaluate.naming import Namer
from devil_pipe.stages.prepare.index import read_index, read_mask
from devil_pipe.stages.saliency.localisation import read_mask_image
from devil_pipe.stages.train.batches import Features, whole_features
from devil_pipe.stages.train.loop import Parts, derangement, mean_loss, translate

NEW_TOKENS = 12
SMALL = frozenset("a an and at by for from in is of on or the to two with".split())  # noqa: SIM905


class Looking:
    """Looks at validation pictures, the same ones in every run."""

    def __init__(self, parts: Parts, rows: int, data_dir: Path) -> None:
        self.parts, self.data_dir = parts, data_dir
        drawn = np.random.default_rng(0).permutation(len(parts.validation))[:rows]
        chosen = [parts.validation[int(place)] for place in sorted(drawn)]
        self.rows = [example.row for example in chosen]
        self.captions = [example.caption for example in chosen]
        self.index = read_index(data_dir / "index.parquet").to_pylist()
        self.features = whole_features(parts.store, self.rows)
        self.other = torch.from_numpy(derangement(len(self.rows), parts.config.seed))
        objects = [self.index[row]["object"] for row in self.rows]
        self.namer = Namer(entry["object"] for entry in self.index) if all(objects) else None
        self.facts = {"n_validation": len(self.rows), "n_train": len({example.row for example in parts.train})}

    @torch.inference_mode()
    def look(self, *, whole: bool) -> dict[str, Any]:
        """Losses and descriptions from all layers; with `whole` from each alone and at single locations, too."""
        parts = self.parts
        parts.translator.eval()
        prefixes = translate(parts.translator, self.features, device=parts.accelerator.device)
        own = mean_loss(parts.language_model, prefixes, self.captions)
        shuffled = mean_loss(parts.language_model, prefixes[self.other], self.captions)
        texts = parts.language_model.write(prefixes, NEW_TOKENS)
        found: dict[str, Any] = {"loss": own, "shuffled": shuffled, "gap": shuffled - own, **self._right(texts)}
        if whole:
            found["layers"] = {}
            for place, layer in enumerate(parts.store.layers):
                alone = translate(parts.translator, self.features, [place], device=parts.accelerator.device)
                loss = mean_loss(parts.language_model, alone, self.captions)
                found["layers"][layer.name] = {
                    "loss": loss, **self._right(parts.language_model.write(alone, NEW_TOKENS))
                }  # fmt: skip
            found["at_locations"] = self._at_locations() if self.namer else None
            found["examples"] = [
                [self.index[row]["captions"][0], text] for row, text in list(zip(self.rows, texts, strict=True))[:6]
            ]
        parts.translator.train()
        return _rounded(found)

    def _right(self, texts: list[str]) -> dict[str, float]:
        """Share of the captions' words that are written, beside another picture's description; and named objects."""
        wanted = [_words(self.index[row]["captions"][0]) for row in self.rows]
        written = [_words(text) for text in texts]
        shuffled = [written[int(place)] for place in self.other]
        found = {"words": _recall(wanted, written), "words_shuffled": _recall(wanted, shuffled)}
        if self.namer:
            named = [
                self.namer.right(text, self.index[row]["object"]) for row, text in zip(self.rows, texts, strict=True)
            ]
            found["object_accuracy"] = float(np.mean(named))
        return found

    def _at_locations(self) -> dict[str, float]:
        """Deepest layer, one location: how often it names the object on its middle, and far away from it."""
        assert self.namer is not None
        place, layer = len(self.parts.store.layers) - 1, self.parts.store.layers[-1]
        maps = torch.from_numpy(np.asarray(self.parts.store[layer.name].on_grid(self.rows))).float()
        on, off = [], []
        for number, row in enumerate(self.rows):
            content = read_mask(self.index[row], self.data_dir)
            assert content is not None, "composites have masks"
            mask = read_mask_image(content)
            cells = np.add.reduceat(
                np.add.reduceat(mask.astype(float), _starts(mask.shape[0], layer.height), axis=0),
                _starts(mask.shape[1], layer.width),
                axis=1,
            )
            on.append(maps[number].flatten(0, 1)[int(cells.argmax())])
            off.append(maps[number].flatten(0, 1)[int(cells.argmin())])
        found = {}
        for name, vectors in (("on the object", on), ("off the object", off)):
            layers = [torch.zeros(len(self.rows), spec.channels) for spec in self.parts.store.layers]
            layers[place] = torch.stack(vectors)
            features = Features(layers, torch.ones(len(self.rows), len(layers), dtype=torch.bool))
            prefix = translate(self.parts.translator, features, [place], device=self.parts.accelerator.device)
            found[name] = self._right(self.parts.language_model.write(prefix, NEW_TOKENS))["object_accuracy"]
        return found


def _starts(pixels: int, cells: int) -> list[int]:
    return [cell * pixels // cells for cell in range(cells)]


def _words(text: str) -> set[str]:
    return set(re.findall(r"[a-z]+", text.lower())) - SMALL


def _recall(wanted: list[set[str]], written: list[set[str]]) -> float:
    return float(np.mean([len(one & other) / len(one) for one, other in zip(wanted, written, strict=True) if one]))


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return round(value, 4) if isinstance(value, float) else value
