"""What became of each link: counts by reason, from the list that img2dataset keeps beside each shard."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from devil_pipe.stages.common.progress import warn

# img2dataset's sentences name hosts, sizes and counts of bytes: as reasons they would be as many as links.
_REASONS = (
    (r"infinite loop", "redirect loop"),
    (r"HTTP Error (\d{3})", r"HTTP {}"),
    (r"timed out", "timed out"),
    (r"Name or service not known|getaddrinfo|nodename nor servname|name resolution|No address", "no such host"),
    (r"Connection refused", "connection refused"),
    (r"CERTIFICATE|certificate|SSL", "TLS or certificate"),
    (r"IncompleteRead", "cut short on the way"),
    (r"Connection reset|Remote end closed|Connection aborted|Broken pipe", "connection lost"),
    (r"X-Robots-Tag", "forbidden by X-Robots-Tag"),
    (r"unreachable|No route to host", "host unreachable"),
    (r"Image decoding error", "no picture, or damaged"),
    (r"image too small|image area too large|aspect ratio too large", "size"),
    (r"hash mismatch", "hash mismatch"),
)


@dataclass
class Tally:
    """Links of one or more shards, and those that gave no picture."""

    links: int = 0
    dead: Counter[str] = field(default_factory=Counter)

    def __add__(self, other: Tally) -> Tally:
        return Tally(self.links + other.links, self.dead + other.dead)

    def notes(self) -> dict[str, Any]:
        """What summary.json tells: dead links and, where lists of links lie there, their share and reasons."""
        dead = sum(self.dead.values())
        if not self.links:
            return {"dead_links": dead}
        by_reason = dict(sorted(self.dead.items()))
        share = round(dead / self.links, 4)
        return {"links": self.links, "dead_links": dead, "dead_share": share, "dead_links_by_reason": by_reason}


def tally(parquet: Path) -> Tally:
    """Count a shard's links from its Parquet file, and from NNNNN_stats.json those that the Parquet lacks."""
    if not parquet.is_file():
        return Tally()
    try:
        with pq.ParquetFile(parquet) as file:
            columns = [name for name in ("status", "error_message") if name in file.schema_arrow.names]
            if "status" not in columns:
                return Tally()
            counted = Tally(file.metadata.num_rows)
            for batch in file.iter_batches(columns=columns):
                for row in batch.to_pylist():
                    if row["status"] != "success":
                        counted.dead[reason(str(row.get("error_message") or row["status"] or "no status"))] += 1
    except (OSError, ValueError, LookupError, pa.ArrowException) as error:
        warn(f"{parquet}: not read, its dead links are not counted ({error})")
        return Tally()
    lost = _links_of(parquet.with_name(f"{parquet.stem}_stats.json")) - counted.links
    if lost > 0:  # img2dataset met an error of its own and wrote no line
        counted.dead["lost by img2dataset"] += lost
        counted.links += lost
    return counted


def reason(message: str) -> str:
    """An error of urllib or OpenCV, in as few different words as there are causes."""
    for pattern, words in _REASONS:
        if match := re.search(pattern, message):
            return words.format(*match.groups())
    return "other: " + re.sub(r"[\d.]+|'[^']*'|<|>", "…", message.splitlines()[0])[:60] if message.strip() else "other"


def _links_of(stats: Path) -> int:
    try:
        count = json.loads(stats.read_text(encoding="utf-8")).get("count", 0)
    except (OSError, ValueError, AttributeError, RecursionError):
        return 0
    return count if isinstance(count, int) else 0
