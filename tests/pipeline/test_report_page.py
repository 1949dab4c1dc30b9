"""The report's addresses, its files beside the tables, its failures, units in place of pictures, and its colours."""

from __future__ import annotations

import csv
import json
import re
from importlib import resources
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from devil_pipe.pipeline.report.anchors import anchor
from devil_pipe.pipeline.report.images import OVERLAY, PICTURE, TINY
from devil_pipe.pipeline.report.predictions import Described, draw
from devil_pipe.pipeline.report.run import run
from devil_pipe.store.errors import InputError

from .run_fixture import build, failure
from .test_report import page

STYLE = resources.files("devil_pipe.pipeline.report") / "templates/style.css.j2"


def test_an_address_is_its_row_s_own_whatever_stands_around_it(tmp_path: Path) -> None:
    keys = ["000000001", "a b", "a/b", "ä"]

    def addresses(name: str, *wanted: str) -> dict[str, str]:
        def edit(files: dict[str, Any]) -> None:
            (only,) = files["saliency/gallery.json"]["pictures"]
            files["saliency/gallery.json"]["pictures"] = [only | {"key": key} for key in wanted]

        articles = [attrs["id"] for attrs in page(build(tmp_path / name, edit)).all("article")]
        return dict(zip(wanted, articles, strict=True))

    every = addresses("every", *keys)
    assert len(set(every.values())) == len(keys)
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]+", address) for address in every.values())
    fewer = addresses("fewer", "ä", "a/b")
    assert fewer == {key: every[key] for key in fewer}


def test_a_picture_may_fail_and_stand_in_the_gallery_but_not_twice_in_either(tmp_path: Path) -> None:
    def both(files: dict[str, Any]) -> None:
        shown = files["saliency/gallery.json"]
        shown["failures"]["pictures"] = [failure("000000001", tmp_path / "saliency")]

    assert {"picture-000000001", "failure-000000001"} <= set(page(build(tmp_path, both)).ids)

    def twice(files: dict[str, Any]) -> None:
        files["saliency/gallery.json"]["pictures"] *= 2

    with pytest.raises(InputError, match=r"gallery\.json, key '000000001'.* twice"):
        run(build(tmp_path, twice))


def test_layers_and_units_have_addresses_of_their_own() -> None:
    assert anchor("layer", "stride8") == "layer-stride8"
    names = ["layer 1", "layer/1", "layer-1", "", "-"]
    assert len({anchor("layer", name) for name in names}) == len(names)


def test_csv_and_json_hold_the_same_lines_and_the_run_s_numbers(tmp_path: Path) -> None:
    shown = page(build(tmp_path))
    tables = tmp_path / "report" / "tables"
    names = {path.stem for path in tables.iterdir()}
    assert names == {"scores", "novel", "saliency", "training", "gallery", "maps", "failures", "descriptions"}
    links = {attrs["href"] for attrs in shown.all("a")}
    for name in names:
        assert {f"tables/{name}.csv", f"tables/{name}.json"} <= links
        found = json.loads((tables / f"{name}.json").read_text(encoding="utf-8"))
        assert {"run", "data", "seed", "command"} <= set(found["about"])
        with (tables / f"{name}.csv").open(encoding="utf-8", newline="") as file:
            lines = list(csv.DictReader(file))
        assert len(lines) == len(found["rows"])
        for line, row in zip(lines, found["rows"], strict=True):
            flat = {key: " | ".join(value) if isinstance(value, list) else value for key, value in row.items()}
            assert {key: value for key, value in line.items() if value} == {
                key: str(value) for key, value in flat.items() if value not in (None, "")
            }
    merged = json.loads((tmp_path / "metrics.json").read_text())
    scores = json.loads((tables / "scores.json").read_text())["rows"]
    for row in scores:
        if row["metric"] != "distinct":
            part = merged["controls" if row["control"] else "scores"]
            expected = part[row["condition"]][row["metric"]]
            assert {key: row[key] for key in expected} == expected
    assert len(scores) == sum(len(item) for part in ("scores", "controls") for item in merged[part].values()) + 2


def test_failures_are_told_with_their_rule_and_their_number(tmp_path: Path) -> None:
    shown = page(build(tmp_path / "known"))
    assert "40 random pictures were described from all layers. 9 of these descriptions do not name" in shown.text
    assert "shown are the 1 of them with the lowest margins" in shown.text
    assert "a crane in front of a chalkboard reference: a crowned crane in front of a kitchen" in shown.text
    assert -0.375 in shown.numbers

    def unknown(files: dict[str, Any]) -> None:
        files["saliency/gallery.json"]["failures"]["failed"] = None

    assert "Shown are the 1 with the lowest margins" in page(build(tmp_path / "unknown", unknown)).text

    def older(files: dict[str, Any]) -> None:
        del files["saliency/gallery.json"]["failures"]

    assert "failures" not in page(build(tmp_path / "older", older)).ids


def test_a_run_of_units_speaks_of_units(tmp_path: Path) -> None:
    def edit(files: dict[str, Any]) -> None:
        files["checkpoint/config.yaml"] = "store: {encoding: units+zstd}\n"
        files["evaluate/metrics.json"] |= {"data_note": "", "data": "milan", "n_scored": 299}
        files["saliency/metrics.json"] = {"saliency": {}, "not_run": "no locations"}
        files["saliency/gallery.json"] |= {"pictures": [], "failures": {"looked": 0, "failed": None, "pictures": []}}
        for row in files["predictions.parquet"]:  # no objects are known, and each unit has three references
            row |= {"object": "", "named": None, "references": ["dogs", "the sky", "grass"]}

    shown = page(build(tmp_path, edit))
    assert "On 299 units of “milan”" in shown.text
    assert "Only 299 of 300 units were scored" in shown.text
    assert "unit-000000002" in shown.ids
    assert "dogs · the sky · grass" in shown.text
    words = re.sub(r".*</script>", "", (tmp_path / "report/index.html").read_text(), flags=re.DOTALL)
    assert "picture" not in re.sub(r"<[^>]*>", " ", words)


def test_small_pictures_keep_their_proportions_and_stay_within_their_bounds(tmp_path: Path) -> None:
    config = build(tmp_path)
    wide = tmp_path / "saliency/gallery/000000001.png"
    Image.new("RGB", (1600, 400)).save(wide)
    overlay = tmp_path / "saliency/overlays/000000001-lake-stride8.png"
    Image.new("RGB", (400, 1000)).save(overlay)
    sizes = {(image["width"], image["height"]) for image in page(config).all("img")}
    assert {(str(PICTURE), str(PICTURE // 4)), (str(OVERLAY * 2 // 5), str(OVERLAY))} <= sizes
    with Image.open(tmp_path / "report/tiny/gallery/000000001.png.webp") as small:
        assert small.size == (TINY, TINY // 4)
    with Image.open(tmp_path / "report/gallery/000000001.png") as full:
        assert full.size == (1600, 400)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("saliency/gallery/000000001.png", b"no picture", "expected a picture"),
        ("predictions.parquet", b"no table", "expected predictions"),
        ("checkpoint/config.yaml", b"store: [", "expected YAML"),
    ],
)
def test_a_damaged_file_is_named_and_an_older_report_stays(
    tmp_path: Path, name: str, content: bytes, said: str
) -> None:
    config = build(tmp_path)
    run(config)
    before = (tmp_path / "report/index.html").read_bytes()
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=rf"{Path(name).name}.*{said}"):
        run(config)
    assert (tmp_path / "report/index.html").read_bytes() == before


def test_a_draw_is_of_different_rows_in_their_order_and_changes_with_the_seed() -> None:
    rows = [Described(f"{row:04d}", "test", "", [], "", None, 0.0, None) for row in range(1000)]
    first = draw(rows, 50, 1)
    assert len(first) == 50
    assert [row.key for row in first] == sorted({row.key for row in first})
    assert draw(rows, 50, 1) == first != draw(rows, 50, 2)
    assert draw(rows[:3], 50, 1) == rows[:3]


def colours(theme: str) -> dict[str, str]:
    block = re.search(rf"set {theme} %}}(.*?){{% endset", STYLE.read_text(encoding="utf-8"), re.DOTALL)
    assert block is not None
    return dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", block[1]))


def luminance(colour: str) -> float:
    """Relative luminance as WCAG 2 defines it."""
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_text_stands_out_from_its_ground(theme: str) -> None:
    named = colours(theme)
    pairs = [*product(["ink", "ink-2", "own", "blind", "wrong"], ["paper", "sheet", "tint"])]
    pairs += [("bad", "bad-tint"), ("warn", "warn-tint"), ("ink", "own-tint"), ("own", "own-tint")]
    for text, ground in pairs:
        darker, lighter = sorted([luminance(named[text]), luminance(named[ground])])
        assert (lighter + 0.05) / (darker + 0.05) >= 4.5, (text, ground)
