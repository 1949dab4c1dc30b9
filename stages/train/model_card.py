"""The model card of a shared translator: its data, its scores beside their null controls, how to use it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from devil_pipe.stages.common.assets import table
from devil_pipe.stages.extract.backbones import SPECS
from devil_pipe.stages.train.checkpoint import Card
from devil_pipe.stages.train.config import TranslatorConfig
from devil_pipe.stages.train.pretrained import KNOWN

LABELS = {
    "loss": "loss of the reference, nats a token (lower is better)",
    "object_accuracy": "object named",
    "cider": "CIDEr",
    "bleu_1": "BLEU-1",
    "bleu_2": "BLEU-2",
    "bleu_3": "BLEU-3",
    "bleu_4": "BLEU-4",
    "meteor": "METEOR",
    "rouge_l": "ROUGE-L",
    "spice": "SPICE",
    "bertscore": "BERTScore",
}
CONTROLS = {
    "shuffled": "features of another picture",
    "mean": "the mean feature",
    "zero": "zeros",
    "lm_alone": "language model alone",
}


@dataclass(frozen=True)
class About:
    """What the files of a run do not say."""

    name: str
    data: str
    """Name of the pictures it was trained on."""

    licence: str = ""
    """Of the weights, as the hub spells it; "" where the exporter chose none."""

    data_licences: Mapping[str, str] = field(default_factory=dict)
    """Part of the data → its licence."""


def model_card(
    card: Card, parameters: int, captions: Mapping[str, int], metrics: Mapping[str, Any] | None, about: About
) -> str:
    """README.md with the hub's metadata on top.

    Args:
        card: of the translator.
        parameters: how many numbers were trained.
        captions: split → how many captions training used of it.
        metrics: what `devil-pipe evaluate` wrote; None where it was not run.
        about: what only the exporter knows.
    """
    env = Environment(  # Markdown: nothing of it is HTML, and values of configurations are names
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
    return env.get_template("model_card.md.j2").render(
        metadata=yaml.safe_dump(_metadata(card, about), sort_keys=False, allow_unicode=True).strip(),
        card=card,
        parameters=parameters,
        captions=captions,
        random=card.store.weights.startswith("random:"),
        metrics=metrics,
        tables=_tables(metrics) if metrics else [],
        not_run=_not_run(metrics) if metrics else {},
        is_devil=isinstance(card.translator, TranslatorConfig),
        about=about,
        licences=_licences(card),
    )


def _metadata(card: Card, about: About) -> dict[str, Any]:
    """The header that the Hugging Face hub reads."""
    source = KNOWN[card.language_model].source if card.language_model in KNOWN else card.language_model
    base = [source] if source.count("/") == 1 else []
    return {
        "license": about.licence or "unknown",
        "library_name": "devil-pipe",
        "pipeline_tag": "image-to-text",
        "language": ["en"],
        "tags": ["interpretability", "vision", "captioning", "devil"],
        **({"base_model": base} if base else {}),
    }


def _licences(card: Card) -> dict[str, str]:
    """Licences of the frozen parts, where they are known."""
    found = {}
    spec, known = SPECS.get(card.store.backbone), KNOWN.get(card.language_model)
    if spec and spec.asset_weights:
        found[f"backbone {spec.name}"] = table()[spec.asset_weights].licence
    if known and known.from_assets:
        found[f"language model {card.language_model}"] = table()[known.source].licence
    return found


def _tables(metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    """All layers beside the null controls, then each layer alone; a row a metric."""
    scores, controls = metrics["scores"], metrics["controls"]
    order = sorted(controls, key=lambda name: list(CONTROLS).index(name) if name in CONTROLS else len(CONTROLS))
    whole = {"all layers": scores["all"], **{CONTROLS.get(name, name): controls[name] for name in order}}
    layers = {f"{name} alone": scores[name] for name in metrics["layers"]}
    tables = []
    for columns in (whole, {"all layers": scores["all"], **layers}):
        keys = sorted(scores["all"], key=lambda key: (list(LABELS).index(key) if key in LABELS else len(LABELS), key))
        rows = [(LABELS.get(key, key), [_cell(column.get(key)) for column in columns.values()]) for key in keys]
        tables.append({"columns": list(columns), "rows": rows})
    return tables


def _not_run(metrics: Mapping[str, Any]) -> dict[str, str]:
    """Metric → why it has no value."""
    whole = metrics["scores"]["all"]
    return {LABELS.get(key, key): score["not_run"] for key, score in whole.items() if "not_run" in score}


def _cell(score: Mapping[str, Any] | None) -> str:
    if not score or "value" not in score:
        return "not run"
    interval = f" [{score['low']:.3f}, {score['high']:.3f}]" if score.get("low") is not None else ""
    return f"{score['value']:.3f}{interval}"
