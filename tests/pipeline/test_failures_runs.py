"""The table of failures: words, values in files and closed places; the stages of a run."""

from __future__ import annotations

from pathlib import Path

import pytest

from .failures import Row, check
from .spoiled import LAUGHS, NEWER, card, closed, edited, gone, section, text, values

USAGE, FAILURE = 2, 1

TABLE: dict[str, tuple[Row, ...]] = {
    "train": (
        Row("train tinyy", USAGE, r"configs/runs/tinyy.yaml: no such file; did you mean tiny\?"),
        Row("train tiny --json --processes 0", USAGE, "--processes"),
        Row("train ''", USAGE, "expected the name of a file in configs/runs/"),
        Row("train tiny", USAGE, "seed: .*less than 4294967296, got", section("runs/tiny", seed=10**30)),
        Row("train tiny", USAGE, "seed: .*greater than or equal to 0, got -1", section("runs/tiny", seed=-1)),
        Row("train tiny", USAGE, "seed: .*valid integer.*'one'", section("runs/tiny", seed="one")),
        Row(
            "train tiny",
            USAGE,
            "train.phase.lr: .*finite number, got nan",
            section("runs/tiny", train__phase__lr=float("nan")),
        ),
        Row(
            "train tiny",
            USAGE,
            "runs/tiny.yaml: expected YAML: .*line",
            values("runs/tiny", "saliency:\n\tpictures: 2\n"),
        ),
        Row(
            "train tiny",
            USAGE,
            "runs/tiny.yaml: ",
            text("configs/runs/tiny.yaml", f"a0: &a0 [x]\n{LAUGHS}store: *a9\n"),
        ),
        Row("train tiny", USAGE, "runs/tiny.yaml: ", text("configs/runs/tiny.yaml", "store: &a [*a]\n")),
        Row(
            "train tiny",
            USAGE,
            "expected a configuration of 1,000,000 bytes at most, got 2,0",
            text("configs/runs/tiny.yaml", "store: drawn\n" + "#" * 2_000_000),
        ),
        Row(
            "train tiny", USAGE, "runs/tiny.yaml: expected YAML", text("configs/runs/tiny.yaml", "store: " + "[" * 5000)
        ),
        Row(
            "train tiny",
            USAGE,
            "runs/tiny.yaml: expected YAML.*utf-8",
            text("configs/runs/tiny.yaml", "store: café".encode("latin-1")),
        ),
        Row(
            "train tiny", USAGE, "runs/tiny.yaml: expected YAML", text("configs/runs/tiny.yaml", "seed: " + "9" * 5000)
        ),
        Row("train tiny", FAILURE, "not enough memory.*smaller", section("runs/tiny", train__translator__width=10**12)),
        Row(
            "train tiny",
            FAILURE,
            r"language model lm: expected at most \d+ places",
            section("runs/tiny", train__translator__queries=500),
            may_change=("runs/tiny/train",),
        ),
        Row(
            "train tiny",
            FAILURE,
            "language model 'no-such-model': cannot be loaded",
            section("runs/tiny", train__language_model="no-such-model"),
        ),
        Row(
            "train tiny",
            FAILURE,
            "language model '~nobody-here/lm'|~nobody-here/lm: expected a path",
            section("runs/tiny", train__language_model="~nobody-here/lm"),
        ),
        Row(
            "train tiny",
            FAILURE,
            r"manifest.json: expected a manifest of schema .*identity.schema_version: .*got '9.0'",
            NEWER,
        ),
        Row(
            "train tiny",
            FAILURE,
            "stores/drawn/manifest.json: expected a finished store.*devil-pipe extract drawn",
            gone,
        ),
        Row(
            "train tiny",
            FAILURE,
            "runs/tiny/train/[a-z.]+: (Permission denied|cannot be written)|log.jsonl: Permission denied",
            lambda: (section("runs/tiny", seed=7)(), closed("runs/tiny/train")()),
            powerless=True,
        ),
        Row(
            "train tiny",
            FAILURE,
            "cannot be written|File too large",
            section("runs/tiny", seed=7),
            full_at=4000,
            may_change=("runs/tiny",),
        ),
        Row(
            "train tiny --dry-run",
            USAGE,
            "runs/tiny.yaml: train.translator",
            section("runs/tiny", train__translator__heads=3),
        ),
    ),
    "evaluate": (
        Row("evaluate tinyy", USAGE, r"configs/runs/tinyy.yaml: no such file; did you mean tiny\?"),
        Row("evaluate tiny extra", USAGE, "unexpected extra argument"),
        Row("evaluate demo", FAILURE, "runs/demo/checkpoint/config.yaml: expected a translator's card"),
        Row("evaluate tiny", FAILURE, "stores/drawn/manifest.json: expected a finished store", gone),
        Row("evaluate tiny", FAILURE, "identity.schema_version: .*got '9.0'", NEWER),
        Row(
            "evaluate tiny", USAGE, "evaluate.max_new_tokens.*got -1", section("runs/tiny", evaluate__max_new_tokens=-1)
        ),
        Row("evaluate tiny", FAILURE, "device 'cuda:99'", section("runs/tiny", runtime__evaluate__device="cuda:99")),
        Row(
            "evaluate tiny",
            FAILURE,
            "config.yaml: expected a translator's card: .*language_model.*str",
            lambda: card(language_model=5),
        ),
        Row(
            "evaluate tiny", FAILURE, "config.yaml: expected a translator's card: .*colour", lambda: card(colour="red")
        ),
        Row(
            "evaluate tiny",
            FAILURE,
            "split.*'nowhere'|expected.*nowhere",
            section("runs/tiny", evaluate__split="nowhere"),
        ),
    ),
    "units": (
        Row("units tinyy", USAGE, r"did you mean tiny\?"),
        Row("units tiny --units 99999999999999999999", USAGE, "--units: expected whole numbers from 0"),
        Row(f"units tiny --units {'9' * 5000}", USAGE, "--units: expected whole numbers from 0"),
        Row("units tiny --units -1", USAGE, "--units: expected whole numbers|No such option"),
        Row("units tiny --quantile nan", USAGE, "--quantile: expected a number between 0 and 1, got nan"),
        Row("units tiny --tied 1e400", USAGE, "--tied: expected a number between 0.5 and 1, got inf"),
        Row("units tiny --seed 4294967296", USAGE, "--seed"),
        Row("units tiny --split nowhere", FAILURE, "pictures with features in the split 'nowhere', got 0"),
        Row(
            "units tiny --out captions.csv", USAGE, "captions.csv: expected no folder, an empty one or a page of units"
        ),
        Row(
            "units tiny --out runs/new",
            FAILURE,
            r"runs/\.new\.partial.*: Permission denied",
            closed("runs"),
            powerless=True,
        ),
        Row("units tiny", FAILURE, "stores/drawn/manifest.json: expected a finished store", gone),
    ),
    "audit": (
        Row("audit tinyy", USAGE, r"did you mean tiny\?"),
        Row("audit tiny --only contrls", USAGE, "--only: expected some of controls"),
        Row("audit tiny --pictures 3", USAGE, "--pictures"),
        Row("audit tiny --seed 4294967296", USAGE, "--seed"),
        Row("audit tiny --random-run nobody", USAGE, "configs/runs/nobody.yaml: no such file"),
        Row("audit tiny --pictures 4", FAILURE, "data/drawn: the audit needs 4 pictures in the split 'test', got 2"),
        Row("audit tiny", FAILURE, "stores/drawn/manifest.json: expected a finished store", gone),
    ),
    "report": (
        Row("report dmeo", USAGE, r"configs/runs/dmeo.yaml: no such file; did you mean demo\?"),
        Row("report demo extra", USAGE, "unexpected extra argument"),
        Row(
            "report tiny",
            FAILURE,
            "runs/tiny/evaluate/metrics.json: expected this file, found nothing.*devil-pipe evaluate tiny",
        ),
        Row(
            "report demo",
            FAILURE,
            r"runs/demo/\.report\.partial: Permission denied",
            closed("runs/demo"),
            powerless=True,
        ),
        Row("report demo", FAILURE, "File too large", full_at=2000),
        Row(
            "report demo",
            FAILURE,
            "evaluate/metrics.json, scores.all",
            edited(
                "runs/demo/evaluate/metrics.json",
                lambda found: found["scores"]["all"].update(cider={"value": float("nan"), "low": 0, "high": 1}),
            ),
        ),
        Row(
            "report demo",
            FAILURE,
            "train/summary.json",
            edited("runs/demo/train/summary.json", lambda found: found.update(seconds="long")),
        ),
        Row(
            "report demo",
            FAILURE,
            "gallery.json, pictures.1: .*got 7",
            edited("runs/demo/saliency/gallery.json", lambda found: found["pictures"].append(7)),
        ),
    ),
    "export": (
        Row("export tinyy new", USAGE, r"did you mean tiny\?"),
        Row("export demo new", FAILURE, "runs/demo/checkpoint/config.yaml: expected a translator's card"),
        Row("export tiny shared", USAGE, "shared: expected a folder that is still to be made, or --force"),
        Row("export tiny pictures --force", USAGE, "pictures: --force replaces an exported translator alone"),
        Row("export tiny captions.csv", USAGE, "captions.csv: expected a folder that is still to be made, got a file"),
        Row("export tiny captions.csv/x", FAILURE, "captions.csv.*: (Not a directory|File exists)"),
        Row("export tiny runs/new", FAILURE, "runs/.*: Permission denied", closed("runs"), powerless=True),
        Row("export tiny new", FAILURE, "File too large", full_at=300),
    ),
}
ROWS = {f"{number} {row.words[:60]}": row for rows in TABLE.values() for number, row in enumerate(rows)}


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_a_mistake_is_one_plain_line_and_nothing_is_half_written(world: Path, row: Row) -> None:
    check(row)
