"""Stage one: run the frozen backbone once over every picture of the index and commit its feature maps."""

from __future__ import annotations

import time
from contextlib import nullcontext
from pathlib import Path

from devil_pipe.stages.common.alone import alone
from devil_pipe.stages.common.files import write_json
from devil_pipe.stages.common.progress import bar, log, warn
from devil_pipe.stages.extract.config import ExtractConfig
from devil_pipe.stages.extract.worker import Times, Worker
from devil_pipe.store.errors import InputError
from devil_pipe.store.schema import json_bytes

STARVED = 0.2


def run(config: ExtractConfig) -> None:
    """Fill the store: only shards that are not committed are computed, so a stopped run goes on where it was.

    Raises:
        InputError: index, weights or pictures that cannot be used; another command at work on the same store.
    """
    local = "://" not in config.location
    with alone(Path(config.location), f"devil-pipe extract {config.name}") if local else nullcontext():
        _run(config)


def _run(config: ExtractConfig) -> None:
    begun = time.monotonic()
    worker = Worker(config)
    writer, identity = worker.writer, worker.identity
    if identity.weights.startswith("random:"):
        warn(f"{config.backbone} has random weights: its features mean nothing, and every result will say so")
    missing = writer.missing_shards()
    writer.forget_damaged()
    with bar("extract", sum(len(writer.ranges[shard]) for shard in missing), "pictures") as shown:
        if config.runtime.scheduler or config.runtime.workers > 1:
            from devil_pipe.stages.extract import cluster

            times = cluster.make(worker, missing, shown.advance)
        else:
            times = worker.make(missing, shown.advance)
    manifest = writer.finalise(worker.index["key"].to_pylist())
    if len(manifest.invalid) == identity.rows:
        raise InputError(f"{config.data_dir}: no picture could be used, such as row 0: {manifest.invalid[0]}")
    if config.location != str(config.out):
        write_json(config.out / "manifest.json", manifest.content())  # what DVC watches, beside the configuration
    seconds = {"extract": round(time.monotonic() - begun, 1)}
    writer.place.commit("seconds.json", json_bytes(seconds))
    if missing:
        report_times(times, config)
    log(
        f"store {config.location}: {identity.rows - len(manifest.invalid)} of {identity.rows} pictures, "
        f"layers {', '.join(layer.name for layer in identity.layers)}, identity {identity.digest[:12]}"
    )


def report_times(times: Times, config: ExtractConfig) -> None:
    """Say where the time went, and warn where the backbone had to wait for pictures."""
    log("where the time went", **{kind: f"{seconds:.1f} s" for kind, seconds in times.as_dict().items()})
    if times.hold > STARVED * times.total:
        warn(f"the backbone waited for shards to be written {times.hold / times.total:.0%} of the time")
    if times.wait > STARVED * times.total:
        warn(
            f"the backbone waited for pictures {times.wait / times.total:.0%} of the time: "
            f"more decoders (now {config.runtime.decoders}; key runtime.decoders) or a faster disk would help"
        )
