"""Pictures that a run describes badly, found by a rule among random ones, so that a gallery cannot flatter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from devil_pipe.stages.common.files import replacing
from devil_pipe.stages.evaluate.naming import Namer
from devil_pipe.stages.evaluate.run import Trained
from devil_pipe.stages.saliency.config import SaliencyConfig
from devil_pipe.stages.saliency.gallery import safe_name, shown_picture
from devil_pipe.stages.train.batches import whole_features
from devil_pipe.stages.train.loop import row_losses, translate


def build(config: SaliencyConfig, trained: Trained, rows: Sequence[int]) -> dict[str, Any]:
    """Describe each row from all layers; of those that name no right object, show the lowest margins.

    A description's margin is in nats: its log-likelihood after the picture's own features minus that after the next
    row's, so around zero the words hardly depend on the picture. Where the index names no objects every row counts.
    At most half as many are shown as the gallery holds; their pictures go to `saliency/failures/`.

    Returns:
        `looked` and `failed` (counts; `failed` is None where no object is known) and `pictures`, lowest margin first.
    """
    namer = Namer(entry["object"] for entry in trained.index)
    rows = [row for row in rows if trained.index[row]["object"]] or list(rows)
    limit = (config.gallery + 1) // 2
    if len(rows) < 2 or not limit:  # one picture has no other whose features could stand in
        return {"looked": 0, "failed": None, "pictures": []}
    texts, margins = _described(config, trained, rows)
    known = any(trained.index[row]["object"] for row in rows)
    found = [
        (margin, row, text)
        for row, text, margin in zip(rows, texts, margins, strict=True)
        if not (known and namer.right(text, trained.index[row]["object"]))
    ]
    shown = [_entry(config, trained, row, text, margin) for margin, row, text in sorted(found)[:limit]]
    return {"looked": len(rows), "failed": len(found) if known else None, "pictures": shown}


@torch.inference_mode()
def _described(config: SaliencyConfig, trained: Trained, rows: Sequence[int]) -> tuple[list[str], list[float]]:
    """The description of each row from all layers, and its margin over the next row's features."""
    model, size = trained.language_model, config.runtime.batch_size
    prefixes = translate(trained.translator, whole_features(trained.store, rows), device=model.device)
    texts = [text for part in torch.split(prefixes, size) for text in model.write(part, config.max_new_tokens)]
    written = model.encode(texts)
    own, other = (row_losses(model, some, written)[0] for some in (prefixes, prefixes.roll(-1, 0)))
    return texts, (other - own).tolist()


def _entry(config: SaliencyConfig, trained: Trained, row: int, text: str, margin: float) -> dict[str, Any]:
    entry = trained.index[row]
    name = f"failures/{row:08d}-{safe_name(entry['key'])}.png"
    with replacing(config.out / "saliency" / name) as partial:
        shown_picture(entry, config.data_dir).save(partial, format="PNG", optimize=True)
    return {
        "key": entry["key"],
        "split": entry["split"],
        "object": entry["object"],
        "reference": entry["captions"][0],
        "picture": name,
        "description": text,
        "margin": round(margin, 3),
    }
