"""What a run needs that no command here can make: pictures and weights of others."""

from __future__ import annotations

from pathlib import Path

from devil_pipe.pipeline.experiments.experiment import PlannedRun
from devil_pipe.stages.common.assets import table
from devil_pipe.stages.extract.backbones import spec
from devil_pipe.stages.prepare.config import PrepareConfig
from devil_pipe.stages.train.pretrained import KNOWN


def missing(planned: PlannedRun, data: PrepareConfig) -> list[str]:
    """Pictures and weights of a run that lie neither here nor in the asset table, each with what would bring it."""
    found = []
    store, model = planned.run.store, planned.run.train.language_model
    if not (data.out / "index.parquet").is_file() and (source := _source(data)) is not None:
        found.append(source)
    known = spec(store.backbone)
    if store.weights == "auto" and not known.asset_weights and store.backbone not in table():
        found.append(f"the weights of {store.backbone}: fetched at first use where there is a network")
    if model not in table() and not Path(model).exists() and not _cached(model):
        found.append(f"the language model {model}: fetched from the hub at first use where there is a network")
    return found


def _source(data: PrepareConfig) -> str | None:
    """What a person must bring for a data set; None where its command fetches all of it."""
    if data.img2dataset is not None and data.source == "img2dataset":
        if data.img2dataset.shards.exists():
            return None
        links = "--tsv Train_GCC-training.tsv --tsv-val Validation_GCC-1.1.0-Validation.tsv"
        how = links if data.name == "cc3m" else "--tsv FILE"
        return f"the pictures of {data.name}: devil-pipe prepare {data.name} {how}"
    if data.milan is not None and data.source == "milan":
        there = data.milan.zips.exists()
        return None if there else f"MILANNOTATIONS in {data.milan.zips}: docs/milannotations.md says what to download"
    return None if data.source == "demo" else f"the pictures of {data.name}: devil-pipe prepare {data.name}"


def _cached(model: str) -> bool:
    """Whether the hub's cache holds a language model's configuration."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    name = KNOWN[model].source if model in KNOWN else model
    try:
        return isinstance(try_to_load_from_cache(name, "config.json"), str)
    except HFValidationError:  # a folder's path is no name of the hub
        return False
