"""The columns that a table may have: where a figure comes from, its scale, and which way is better."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Source = Literal["evaluate", "train", "language", "saliency", "faithfulness", "crops"]


@dataclass(frozen=True)
class Column:
    """One figure of a row."""

    name: str
    label: str
    source: Source
    """The stage whose file holds it."""

    metric: str
    """Its key there."""

    factor: float = 1.0
    """From the file's natural scale to the paper's."""

    digits: int = 2
    lower_is_better: bool = False


COLUMNS = {
    column.name: column
    for column in (
        Column("B4", "BLEU-4", "evaluate", "bleu_4", 100),
        Column("M", "METEOR", "evaluate", "meteor", 100),
        Column("RL", "ROUGE-L", "evaluate", "rouge_l", 100),
        Column("C", "CIDEr", "evaluate", "cider", 100),
        Column("S", "SPICE", "evaluate", "spice", 100),
        Column("BS", "BERTScore", "evaluate", "bertscore", digits=3),
        Column("named", "object named, %", "evaluate", "object_accuracy", 100, digits=1),
        Column("loss", "loss, nats a token", "evaluate", "loss", digits=3, lower_is_better=True),
        Column("params", "parameters, millions", "train", "trainable_parameters", 1e-6, digits=2, lower_is_better=True),
        Column("adjectives", "adjectives, %", "language", "adjectives", 100),
        Column("verbs", "verbs, %", "language", "verbs", 100),
        Column("words", "different words", "language", "different_words", digits=0),
        Column("deletion", "deletion", "faithfulness", "deletion", digits=3, lower_is_better=True),
        Column("insertion", "insertion", "faithfulness", "insertion", digits=3),
        Column("pointing", "pointing game, %", "saliency", "pointing", 100, digits=1),
        Column("off_centre", "pointing, off centre, %", "saliency", "pointing_off_centre", 100, digits=1),
        Column("iou", "IoU", "saliency", "iou", digits=3),
        *(Column(f"crop_{side}", f"{side} × {side}, %", "crops", str(side), 100) for side in (32, 64, 128, 224)),
    )
}
"""Every column by the name that configurations and `paper.yaml` use."""

STAGES_OF: dict[Source, tuple[str, ...]] = {
    "train": ("train",),
    "evaluate": ("train", "evaluate"),
    "language": ("train", "evaluate"),
    "saliency": ("train", "saliency"),
    "faithfulness": ("train", "saliency"),
    "crops": ("train", "saliency"),
}
"""The commands of a run that must be done before a source can be read."""
