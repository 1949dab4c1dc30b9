"""Configurations of stage one over the demo's composites."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from devil_pipe.stages.extract.config import ExtractConfig

DEMO = Path(__file__).parents[1] / "data" / "demo"


def over_demo(folder: Path, rows: int, **settings: Any) -> ExtractConfig:
    """A configuration whose index is the demo's composites, begun again under new keys as often as `rows` asks.

    Args:
        folder: where the index and the store are put.
        rows: pictures of the index.
        settings: of the configuration.
    """
    if not (DEMO / "index.parquet").exists():
        sys.exit(f"{DEMO}: expected the demo's pictures, found none; run `make demo` first")
    index = pq.read_table(DEMO / "index.parquet")
    index = pa.concat_tables([index] * -(-rows // index.num_rows)).slice(0, rows).combine_chunks()
    keys = pa.array([f"{row:09d}" for row in range(rows)], index.schema.field("key").type)
    index = index.set_column(index.schema.get_field_index("key"), index.schema.field("key"), keys)
    data = folder / "data"
    data.mkdir()
    (data / "shards").symlink_to(DEMO / "shards", target_is_directory=True)
    pq.write_table(index, data / "index.parquet")
    defaults: dict[str, Any] = {"name": "benchmark", "data": "demo", "backbone": "effnet_lite0"}
    return ExtractConfig(**defaults | settings, data_dir=data, out=folder / "store")
