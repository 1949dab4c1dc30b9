"""The table of failures: words, values in files and closed places; questions, tables and stores."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from .failures import Row, check
from .spoiled import NEWER, bomb, card, closed, edited, gone, section

USAGE, FAILURE = 2, 1
ASK = "saliency picture.png --query circle --run tiny"
TELL = "explain picture.png --run tiny"

TABLE: dict[str, tuple[Row, ...]] = {
    "explain": (
        Row("explain", USAGE, "Missing argument"),
        Row(TELL, FAILURE, "picture.png: expected a picture: more than 178,956,970 pixels", bomb),
        Row(
            "explain ~nobody-here/a.png --run tiny",
            FAILURE,
            "~nobody-here/a.png: expected a path, got one in the home folder",
        ),
        Row("explain pictures --run tiny", FAILURE, "pictures: expected a picture, and cannot read it: Is a directory"),
        Row("explain '' --run tiny", FAILURE, "expected a picture, and cannot read it"),
        Row("explain 'caf\udce9.png' --run tiny", FAILURE, "expected a picture, and cannot read it: No such file"),
        Row("explain /dev/zero --run tiny", FAILURE, "/dev/zero: expected a file, got a pipe, socket or device"),
        Row(f"{TELL} --at 1e400,3", USAGE, "--at: expected a place in the picture"),
        Row(f"{TELL} --at ,", USAGE, "--at: expected X,Y"),
        Row(f"{TELL} --box 0,0,1e400,3", USAGE, "--box: expected a box"),
        Row(f"{TELL} --resamples 0", USAGE, "--resamples"),
        Row(f"{TELL} --no-margin --max-new-tokens 100000", FAILURE, r"language model lm: expected at most \d+ places"),
        Row(
            f"{TELL} --weights captions.csv", FAILURE, "captions.csv: expected safetensors or a weights-only checkpoint"
        ),
        Row(f"{TELL} --language-model captions.csv", FAILURE, "language model 'captions.csv': cannot be loaded"),
        Row("explain picture.png --run tinyy", USAGE, r"did you mean tiny\?"),
        Row(
            "explain picture.png --translator runs/tiny/checkpoint",
            FAILURE,
            "config.json: expected an exported translator.*devil-pipe export",
        ),
        Row(
            "explain picture.png --translator captions.csv",
            FAILURE,
            "captions.csv: expected the folder of an exported translator",
        ),
        Row("explain picture.png --translator ~nobody-here/x", FAILURE, "~nobody-here/x: expected a path"),
        Row("explain picture.png --translator no/such", FAILURE, "no/such: no such folder, and it cannot be fetched"),
        Row(
            f"{TELL} --no-margin --out runs/new/a.png",
            FAILURE,
            "runs/new.*: Permission denied",
            closed("runs"),
            powerless=True,
        ),
        Row(f"{TELL} --no-margin --out captions.csv/a.png", FAILURE, "captions.csv.*: (Not a directory|File exists)"),
        Row(f"{TELL} --no-margin --out a.png", FAILURE, "File too large", full_at=500),
        Row(
            TELL,
            FAILURE,
            r"config.yaml: expected a translator's card: schema_version: .*got '9.0'$",
            lambda: card(store={"schema_version": "9.0"}),
        ),
    ),
    "saliency": (
        Row("saliency tinyy", USAGE, r"configs/runs/tinyy.yaml: no such file; did you mean tiny\?"),
        Row(f"{ASK} --scale inf", USAGE, "--scale: expected nats above 0, got inf"),
        Row(f"{ASK} --scale nan", USAGE, "--scale: expected nats above 0, got nan"),
        Row(f"{ASK} --smooth 99999999999999999999", USAGE, "--smooth: expected auto, 0 or an odd number"),
        Row(f"{ASK} --smooth -1", USAGE, "--smooth: expected auto, 0 or an odd number"),
        Row(f"{ASK} --grid -1", USAGE, "--grid"),
        Row(f"{ASK} --from-description nan,1", USAGE, "--from-description: expected a place in the picture"),
        Row(f"{ASK} --precision int4", USAGE, "--precision: expected auto"),
        Row(
            f"saliency picture.png --run tiny --query '{'circle ' * 2000}'",
            FAILURE,
            r"language model lm: expected at most \d+ places",
        ),
        Row(
            "saliency picture.png --query circle --run tiny --translator shared",
            USAGE,
            "expected --run .* or --translator .*, got both",
        ),
        Row(
            "saliency captions.csv --query circle --run tiny",
            FAILURE,
            "captions.csv: expected a picture: not a picture",
        ),
        Row(ASK, FAILURE, "picture.png: expected a picture: more than 178,956,970 pixels", bomb),
        Row(f"{ASK} --out captions.csv", FAILURE, "captions.csv: (File exists|Not a directory)"),
        Row(f"{ASK} --out runs/new", FAILURE, "runs/new: Permission denied", closed("runs"), powerless=True),
        Row(f"{ASK} --out made", FAILURE, "File too large", full_at=200, may_change=("made",)),
        Row("saliency tiny", FAILURE, "stores/drawn/manifest.json: expected a finished store", gone),
        Row("saliency tiny", USAGE, "saliency.pictures.*got -2", section("runs/tiny", saliency__pictures=-2)),
    ),
    "explore": (
        Row("explore --no-browser --run tinyy --port 0", USAGE, r"did you mean tiny\?"),
        Row(
            "explore --no-browser --run tiny --compare nobody --port 0", USAGE, "configs/runs/nobody.yaml: no such file"
        ),
        Row("explore --no-browser --run tiny --port 70000", USAGE, "--port"),
        Row("explore --no-browser --run tiny --upload 0", USAGE, "--upload"),
        Row("explore --no-browser --host nowhere.invalid --port 0", USAGE, "--host nowhere.invalid"),
        Row("explore --no-browser --run tiny --port 0 --device cuda:99", FAILURE, "device 'cuda:99'"),
        Row(
            "explore --no-browser --translator captions.csv --port 0",
            FAILURE,
            "captions.csv: expected the folder of an exported translator",
        ),
    ),
    "plan": (
        Row("plan smal", USAGE, "expected a table .*got 'smal'; the tables are small"),
        Row("plan small --pictures-a-second inf --measured-on here", USAGE, "expected rates above 0"),
        Row("plan small --seconds-a-step nan --measured-on here", USAGE, "expected rates above 0"),
        Row("plan small --seconds-a-step -1 --measured-on here", USAGE, "expected rates above 0"),
        Row("plan ../small", USAGE, "expected a table"),
        Row(
            "plan small",
            USAGE,
            "small.yaml: rows.both.colour: unknown key",
            section("experiments/small", rows__both__colour=1),
        ),
        Row("plan small", USAGE, "small.yaml: columns: expected some of", section("experiments/small", columns=["Z"])),
        Row(
            "plan small",
            FAILURE,
            "data/drawn/summary.json: pictures: expected a whole number, got 'ten'",
            edited("data/drawn/summary.json", lambda found: found.update(pictures="ten")),
        ),
    ),
    "experiment": (
        Row("experiment smal", USAGE, "expected a table .*got 'smal'"),
        Row(
            "experiment small",
            USAGE,
            "small.yaml.*nobody.yaml: no such file",
            section("experiments/small", base="nobody"),
        ),
        Row("experiment small", USAGE, "small.yaml.*seeds", section("experiments/small", seeds=[-1])),
    ),
    "tables": (
        Row("tables smal", USAGE, "expected a table .*got 'smal'"),
        Row("tables small --format pdf", USAGE, "--format: expected one of markdown, latex, html, got 'pdf'"),
        Row("tables small --out captions.csv", FAILURE, "captions.csv: (File exists|Not a directory)"),
        Row("tables small --out runs/new", FAILURE, "runs/new: Permission denied", closed("runs"), powerless=True),
        Row("tables small --out made", FAILURE, "File too large", full_at=20, may_change=("made",)),
    ),
    "store ls": (Row("store ls drawn", USAGE, "unexpected extra argument"),),
    "store info": (
        Row("store info drawm", USAGE, r"drawm: expected a store of configs/stores/ \(there are: drawn\)"),
        Row("store info pictures", FAILURE, "pictures: expected a store"),
        Row(
            "store info stores/drawn",
            FAILURE,
            "nothing can be read of this store: .*9.0",
            lambda: (NEWER(), [path.unlink() for path in Path("stores/drawn").glob("*/zarr.json")]),
        ),
        Row("store info nope://here", FAILURE, "nope://here: expected a protocol"),
    ),
    "store verify": (
        Row("store verify drawm", USAGE, "drawm: expected a store of"),
        Row("store verify drawn --threads 0", USAGE, "--threads"),
        Row("store verify drawn", FAILURE, "stores/drawn", gone),
        Row(
            "store verify drawn --discard",
            FAILURE,
            "Permission denied",
            lambda: (
                next(Path("stores/drawn").glob("*/s16/c.0.0.0")).write_bytes(b""),
                [path.chmod(0o555) for path in Path("stores").rglob("*") if path.is_dir()],
            ),
            errors=2,
            powerless=True,
        ),
    ),
    "store export": (
        Row("store export drawm new.h5", USAGE, "drawm: expected a store of"),
        Row("store export drawn drawn.h5", FAILURE, "drawn.h5: is there already; choose another name, or --force"),
        Row(
            "store export drawn device.h5 --force",
            FAILURE,
            "device.h5: is there already; choose another name",
            lambda: os.mkfifo("device.h5"),
        ),
        Row("store export drawn pictures --force", FAILURE, "pictures: is there already; choose another name"),
        Row("store export drawn no/new.h5", FAILURE, "no/new.h5: expected the folder no"),
        Row(
            "store export drawn runs/new.h5",
            FAILURE,
            "runs/new.h5: cannot be written: Permission denied",
            closed("runs"),
            powerless=True,
        ),
        Row("store export drawn new.h5", FAILURE, "new.h5: cannot be written: File too large", full_at=3000),
        Row("store export drawn new.h5", FAILURE, "identity.schema_version: .*got '9.0'", NEWER),
    ),
    "store import": (
        Row("store import picture.png copy", FAILURE, "picture.png: expected an HDF5 file"),
        Row("store import drawn.h5 drawn", FAILURE, "stores/drawn/manifest.json: a store is there already; .*--force"),
        Row("store import drawn.h5 nope://here", FAILURE, "nope://here: expected a protocol"),
        Row(
            "store import drawn.h5 copy", FAILURE, "stores/copy.*: Permission denied", closed("stores"), powerless=True
        ),
        Row(
            "store import drawn.h5 copy",
            FAILURE,
            "stores/copy.*File too large",
            full_at=2000,
            may_change=("stores/copy",),
        ),
    ),
}
ROWS = {f"{number} {row.words[:60]}": row for rows in TABLE.values() for number, row in enumerate(rows)}


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_a_mistake_is_one_plain_line_and_nothing_is_half_written(world: Path, row: Row) -> None:
    check(row)
