"""Configurations in YAML, and trained translators: safetensors with YAML or JSON beside them."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import torch
import torch._dynamo
import yaml

from devil_pipe.pipeline import config
from devil_pipe.pipeline.experiments import experiment
from devil_pipe.stages.train import checkpoint
from devil_pipe.stages.train.config import ClipCapMlpConfig, ClipCapTransformerConfig, TranslatorConfig
from devil_pipe.stages.train.sharing import from_pretrained
from devil_pipe.stages.train.translator import build
from devil_pipe.store.errors import UsageError
from devil_pipe.store.schema import LayerSpec

from ..store.stores import identity
from .choices import Choices
from .edits import edit_bytes, edit_json, edit_text, edit_values
from .harnesses import TOP

GOOD: dict[str, dict[str, Any]] = {
    "pipeline": {"data": ["d"], "stores": {"s": {"data": "d"}}, "runs": {"r": {"store": "s"}}},
    "data/d": {"source": "folder", "folder": {"pictures": "pictures", "shares": {"train": 0.5, "val": 0.5}}},
    "stores/s": {
        "data": "d",
        "backbone": "effnet_lite0",
        "layers": ["a"],
        "encoding": "float16",
        "image_size": [64, 32],
    },
    "runs/r": {"store": "s", "seed": 3, "train": {"phase": {"steps": 5}}},
}
BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join(['*' + before] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
WORDS = (
    *("!!bool x", "!!int ''", "!!float ''", "!!timestamp x", "!!binary x", "!!set {a}", "!!omap [a]", "!!pairs [a: b]"),
    *(
        "!!python/object:os.system {}",
        "!x",
        "&a",
        "*a",
        "<<: *a",
        "? ",
        ": ",
        "- ",
        "|",
        ">",
        "'",
        '"',
        "{",
        "}",
        "[",
        "]",
    ),
    *(
        "0x",
        "0b",
        "1:" * 200 + "1",
        ".nan",
        "-.inf",
        "1e999",
        "2024-99-99",
        "0000-00-00",
        "9" * 5000,
        "~",
        "\0",
        "\udcff",
    ),
    *(
        "\t",
        "...",
        "---",
        "%YAML 9.9\n",
        "%TAG ! x\n",
        "[" * 2000,
        "x" * 300,
        "../s",
        "null",
        "2001-01-01 0:0:0 +99:99",
    ),
)


class Configurations:
    """Every file of configs/, shipped or small."""

    def __init__(self, folder: Path) -> None:
        self.texts = {name: yaml.safe_dump(values) for name, values in GOOD.items()}
        for name in ("data/demo", "stores/demo", "runs/demo", "experiments/demo-table1"):
            path = TOP / "configs" / f"{name}.yaml"
            if path.exists():
                self.texts[name] = path.read_text(encoding="utf-8")
        os.chdir(folder)
        for name in self.texts:
            (Path("configs") / name).parent.mkdir(parents=True, exist_ok=True)
            self._put(name, self.texts[name].encode())

    @staticmethod
    def _put(name: str, content: bytes) -> None:
        (Path("configs") / f"{name}.yaml").write_bytes(content)

    def __call__(self, choices: Choices) -> None:
        name = choices.pick(sorted(self.texts))
        text = self.texts[name]
        how = choices.below(8)
        if how <= 2:
            text = yaml.safe_dump(edit_values(yaml.safe_load(text), choices), allow_unicode=True)
        elif how <= 5:
            text = edit_text(text, choices, WORDS)
        elif how == 6:
            text = BOMB + text.replace(
                "store:", f"{choices.pick(('train', 'seed', 'source', 'data', 'store'))}: *i\nstore:"
            )
        content = text.encode("utf-8", "surrogateescape" if how in (3, 4, 5) else "backslashreplace")
        self._put(name, edit_bytes(content, choices) if how == 7 else content)
        try:
            kind, _, rest = name.partition("/")
            loaders = {
                "data": config.load_data,
                "stores": config.load_store,
                "runs": config.Run,
                "experiments": experiment.load,
            }
            if rest:
                loaders[kind](rest)
            else:
                config.read_pipeline()
                config.first("runs")
        except UsageError as error:
            if "configs/" not in str(error):
                raise AssertionError(f"names no file: {error}") from error
            raise
        finally:
            self._put(name, self.texts[name].encode())


LAYERS = (
    LayerSpec(name="fine", channels=3, height=2, width=2),
    LayerSpec(name="coarse", channels=5, height=1, width=1),
)
KINDS = {
    "devil": TranslatorConfig(layers=1, width=4, heads=2, feedforward=4, queries=2),
    "clipcap-mlp": ClipCapMlpConfig(queries=2),
    "clipcap-transformer": ClipCapTransformerConfig(layers=1, heads=2, clip_length=1, queries=2),
}


class _Translators:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.whole: dict[str, tuple[dict[str, Any], bytes]] = {}
        for name, of in KINDS.items():
            layers = LAYERS if name == "devil" else LAYERS[1:]
            norm = 1.5 if name == "devil" else None
            card = checkpoint.Card(of, norm, 1, "opt-125m", identity(7, layers=layers), "none", 0)
            checkpoint.save(folder, build(of, layers, 8, norm), card)
            self.whole[name] = (card.as_dict(), (folder / "translator.safetensors").read_bytes())

    def _weights(self, content: bytes, choices: Choices) -> bytes:
        """Weights with an edited header, of another shape or type, or with flipped bits."""
        length = int.from_bytes(content[:8], "little")
        how = choices.below(4)
        if how == 0:
            return edit_bytes(content, choices)
        if how == 1:
            header = edit_json(content[8 : 8 + length], choices)
            return len(header).to_bytes(8, "little") + header + content[8 + length :]
        if how == 2:
            size = choices.pick((0, 1, 2**31, 2**63, 2**64 - 1, length + 1))
            return size.to_bytes(8, "little") + content[8:]
        return content

    @staticmethod
    def _use(found: tuple[Any, checkpoint.Card]) -> None:
        translator, card = found
        features = [torch.ones(2, layer.channels) for layer in card.store.layers]
        translator(features, torch.ones(2, len(features), dtype=torch.bool))


class Checkpoints(_Translators):
    """A run's own files: config.yaml and translator.safetensors, the best step, the state of a run under way."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        of, layers = KINDS["devil"], LAYERS
        self.translator = build(of, layers, 8)
        self.optimizer = torch.optim.AdamW(self.translator.parameters())
        self._use((self.translator, checkpoint.Card(of, None, 1, "opt-125m", identity(7, layers=layers), "none", 0)))
        sum(value.sum() for value in self.translator.parameters()).backward()
        self.optimizer.step()
        checkpoint.save_progress(
            folder / "state", self.translator, self.optimizer, checkpoint.Progress("main", 3, 1.5, "d")
        )
        checkpoint.save_best(folder / "best", self.translator, checkpoint.Best(3, 1.5, "d"))
        self.state, self.best = (folder / "state").read_bytes(), (folder / "best").read_bytes()

    def __call__(self, choices: Choices) -> None:
        how = choices.below(3)
        if how == 0:
            card, weights = self.whole[choices.pick(sorted(self.whole))]
            text = yaml.safe_dump(edit_values(card, choices) if choices.one_in(2) else card, allow_unicode=True)
            text = edit_text(text, choices, WORDS) if choices.one_in(3) else text
            (self.folder / "config.yaml").write_bytes(text.encode("utf-8", "backslashreplace"))
            (self.folder / "translator.safetensors").write_bytes(self._weights(weights, choices))
            self._use(checkpoint.load(self.folder))
        elif how == 1:
            (self.folder / "best").write_bytes(self._weights(self.best, choices))
            best = checkpoint.read_best(self.folder / "best")
            assert best is not None
            assert (type(best.step), type(best.loss), type(best.digest)) == (int, float, str)
        else:
            (self.folder / "state").write_bytes(self._weights(self.state, choices))
            at = checkpoint.read_progress(self.folder / "state")
            assert at is not None
            assert (type(at.phase), type(at.step), type(at.digest)) == (str, int, str)
            checkpoint.restore_progress(self.folder / "state", self.translator, self.optimizer)


class ExportedTranslator(_Translators):
    """What others share: config.json and translator.safetensors, also with a digest that fits."""

    def __call__(self, choices: Choices) -> None:
        card, weights = self.whole[choices.pick(sorted(self.whole))]
        content = self._weights(weights, choices)
        named = content if choices.one_in(2) else weights
        record = {"sha256": hashlib.sha256(named).hexdigest(), "size": len(named)}
        values = {
            "format": "devil-pipe translator",
            "format_version": 1,
            "made_by": "x",
            "weights": record,
            "card": card,
        }
        text = json.dumps(values).encode()
        if choices.one_in(2):
            text = edit_json(text, choices)
        elif choices.one_in(2):
            text = json.dumps({**values, "card": edit_values(card, choices)}).encode()
        (self.folder / "config.json").write_bytes(text)
        (self.folder / "translator.safetensors").write_bytes(content)
        self._use(from_pretrained(self.folder))
