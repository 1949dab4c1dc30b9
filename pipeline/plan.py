"""What a run would train, from its configuration alone: no weights, no store, no network."""

from __future__ import annotations

from typing import Any

from devil_pipe.pipeline.config import Run
from devil_pipe.stages.extract.backbones import spec
from devil_pipe.stages.extract.layers import planned_layers
from devil_pipe.stages.train.language_model import embedding_width
from devil_pipe.stages.train.translator import planned_parameters


def plan(run: Run) -> dict[str, Any]:
    """Sizes of a run's parts; `trainable_parameters` is exact. Raises UsageError: a translator that cannot be built."""
    layers = planned_layers(spec(run.store.backbone), run.store.layers, run.store.image_size)
    width = embedding_width(run.train.language_model)
    return {
        "run": run.name,
        "translator": run.train.translator.kind,
        "trainable_parameters": planned_parameters(run.train.translator, layers, width),
        "layers": {layer.name: f"{layer.channels}×{layer.height}×{layer.width}" for layer in layers},
        "bytes_per_picture": sum(array.chunk_bytes for layer in layers for array in layer.arrays(run.store.stored_as)),
        "language_model": run.train.language_model,
        "warmup": run.train.warmup.kind,
        "steps": {"alignment": run.train.warmup.phase.steps, "language": run.train.phase.steps},
    }
