"""What a store holds, as `devil-pipe store info` and `ls` show it: values for JSON, and tables for a person."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from devil_pipe.store.errors import InputError
from devil_pipe.store.place import Root
from devil_pipe.store.schema import LayerSpec, ShardRecord
from devil_pipe.store.survey import Header, Survey


def describe(root: Root) -> dict[str, Any]:
    """What is known of the store, finished or not, from its manifest or its markers; no shard is read.

    Raises:
        InputError: there is no store, or nothing that can be read of it.
    """
    survey = Survey(root)
    headers = survey.current()
    if not headers:
        why = "; ".join([survey.trouble, *survey.troubles.values()]).strip("; ")
        raise InputError(f"{survey.place.show()}: nothing can be read of this store: {why}")
    of_each = {header.folder: _records(survey, header) for header in headers}
    header = max(headers, key=lambda item: len(of_each[item.folder]))
    records, sizes = of_each[header.folder], survey.sizes()
    rows = sum(record.stop - record.start for record in records.values())
    reasons = Counter(why for record in records.values() for why in record.invalid.values())
    return {
        "place": survey.place.show().rstrip("/"),
        "state": _state(survey, header, records),
        "identity": header.identity.fields(),
        "digest": header.identity.digest,
        "shard_rows": header.shard_rows,
        "shards": {"committed": len(records), "of": len(header.ranges)},
        "rows": {
            "of": header.identity.rows,
            "with_features": rows - reasons.total(),
            "without_features": reasons.total(),
            "reasons": dict(reasons.most_common()),
        },
        "layers": [_layer(header, layer, records) for layer in header.identity.layers],
        "bytes": sizes[header.folder],
        "beside": {folder: size for folder, size in sizes.items() if folder not in ("", header.folder)},
    }


def _records(survey: Survey, header: Header) -> dict[int, ShardRecord]:
    if survey.manifest is not None:
        return {record.shard: record for record in survey.manifest.shards}
    return dict(survey.markers(header).records)


def _state(survey: Survey, header: Header, records: dict[int, ShardRecord]) -> str:
    count = f"{len(records)} of {len(header.ranges)} shards"
    if survey.trouble:
        return f"manifest cannot be read, {count}"
    if not survey.files_as_recorded(header, records):
        return "damaged: see `devil-pipe store verify`"
    return "whole" if survey.manifest is not None else count


def _layer(header: Header, layer: LayerSpec, records: dict[int, ShardRecord]) -> dict[str, Any]:
    arrays = layer.arrays(header.identity.stored_as)
    files = [record.files[array.name] for record in records.values() for array in arrays if array.name in record.files]
    grid = layer.grid(header.identity.stored_as)
    return {
        "name": layer.name,
        "grid": [layer.height, layer.width],
        "stored": f"{arrays[0].shape[0]} groups" if grid is None else f"{grid[0]}×{grid[1]}",
        "channels": layer.channels,
        "dtype": arrays[0].dtype,
        "bytes_a_picture": sum(array.chunk_bytes for array in arrays),
        "bytes": sum(file.size for file in files),
    }


def show(values: dict[str, Any]) -> None:
    """Print what `describe` found."""
    identity, rows, shards = values["identity"], values["rows"], values["shards"]
    reasons = ", ".join(f"{why} ({count})" for why, count in list(rows["reasons"].items())[:5])
    more = f", and {len(rows['reasons']) - 5} other reasons" if len(rows["reasons"]) > 5 else ""
    encoding, compute = identity.get("encoding", "float16"), identity.get("compute", "float32")
    lines = {
        "store": values["place"],
        "state": values["state"],
        "identity": f"{values['digest'][:12]}, schema {identity['schema_version']}",
        "backbone": f"{identity['backbone']}, weights {identity['weights']}",
        "encoding": f"{encoding}, computed in {compute}",
        "index": identity["index"],
        "rows": f"{rows['of']:,}: {rows['with_features']:,} with features, {rows['without_features']:,} without"
        + (f": {reasons}{more}" if reasons else ""),
        "shards": f"{shards['committed']:,} of {shards['of']:,} committed, {values['shard_rows']:,} rows each",
        "on disk": decimal(values["bytes"]),
    }
    for folder, size in values["beside"].items():
        lines[f"beside {folder}"] = f"{decimal(size)} of another identity"
    wide = max(map(len, lines))
    console = Console(highlight=False, soft_wrap=True)
    for name, text in lines.items():
        console.print(Text(f"{name:<{wide}}  {text}"))
    head = ("layer", "grid", "stored", "channels", "type", "a picture", "total")
    cells = [
        (
            layer["name"],
            "{}×{}".format(*layer["grid"]),
            layer["stored"],
            str(layer["channels"]),
            layer["dtype"],
            f"{layer['bytes_a_picture']:,} B",
            decimal(layer["bytes"]),
        )
        for layer in values["layers"]
    ]
    _table(head, cells, console)


def row_of(name: str, root: Root) -> dict[str, Any]:
    """One line of `ls`: what lies under a name, also where that is no store or cannot be reached."""
    try:
        found = describe(root)
    except InputError as error:
        return {"name": name, "state": str(error)}
    identity = found["identity"]
    return {
        "name": name,
        "backbone": identity["backbone"],
        "layers": [layer["name"] for layer in identity["layers"]],
        "encoding": identity.get("encoding", "float16"),
        "rows": identity["rows"],
        "bytes": found["bytes"],
        "state": found["state"],
        "beside": found["beside"],
    }


def show_list(rows: list[dict[str, Any]]) -> None:
    """Print the lines of `ls`."""
    cells = []
    for row in rows:
        beside = [f"{folder} beside, {decimal(size)}" for folder, size in row.get("beside", {}).items()]
        cells.append(
            (
                row["name"],
                row.get("backbone", "–"),
                ", ".join(row.get("layers", [])),
                row.get("encoding", "–"),
                f"{row['rows']:,}" if "rows" in row else "–",
                decimal(row["bytes"]) if "bytes" in row else "–",
                "; ".join([row["state"], *beside]),
            )
        )
    head = ("store", "backbone", "layers", "encoding", "rows", "on disk", "state")
    _table(head, cells, Console(highlight=False, soft_wrap=True))


def _table(head: tuple[str, ...], cells: Sequence[tuple[str, ...]], console: Console) -> None:
    """A table as wide as its text: names are to be copied from it whole."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in head:
        table.add_column(name, no_wrap=True)
    for row in cells:
        table.add_row(*map(Text, row))
    wide = Console(highlight=False, width=10_000)  # rich would cut names at the width of the terminal
    width = wide.measure(table).maximum if cells else console.width
    Console(highlight=False, width=max(width, console.width)).print(table)
