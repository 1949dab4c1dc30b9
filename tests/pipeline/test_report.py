"""The report: the merged numbers, what stands on the page, and what a reader must be warned of."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from devil_pipe.pipeline.report.config import ReportConfig
from devil_pipe.pipeline.report.figures import training_curve
from devil_pipe.pipeline.report.gallery import mentions
from devil_pipe.pipeline.report.metrics import metric_kind, ordered_layers
from devil_pipe.pipeline.report.run import run
from devil_pipe.pipeline.report.tables import number
from devil_pipe.store.errors import InputError

from .run_fixture import RUN, build, put

VOID = {"meta", "img", "br", "link", "hr", "input", "source"}


class Page(HTMLParser):
    """Reads a page strictly: every element closed in order, ids once, and what is linked and shown."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.ids: list[str] = []
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.numbers: list[float] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = {name: value or "" for name, value in attrs}
        assert len(named) == len(attrs)
        self.tags.append((tag, named))
        if "id" in named:
            self.ids.append(named["id"])
        if tag == "data":
            self.numbers.append(float(named["value"]))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).replace("\u202f", " ").split())

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attrs for name, attrs in self.tags if name == tag]


def page(config: ReportConfig) -> Page:
    run(config)
    return Page((config.run_dir / "report" / "index.html").read_text(encoding="utf-8"))


def test_the_stages_parts_become_one_file_with_the_documented_keys(tmp_path: Path) -> None:
    config = build(tmp_path)
    run(config)
    merged = json.loads((tmp_path / "metrics.json").read_text())
    required = {"run", "data", "seed", "n_index", "n_scored", "scores", "controls", "distinct", "saliency", "seconds"}
    assert required <= set(merged)
    assert merged["seconds"] == {"train": 512.25, "saliency": 31.5}
    assert merged["weights"] == "efficientnet-lite0 (ImageNet)"
    assert merged["warmup"] == "alignment"
    assert merged["scores"]["all"]["cider"]["value"] == 2.914
    assert merged["scores"]["all"]["spice"] == {"not_run": "needs the Stanford CoreNLP 3.6.0 jars"}
    documented = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")
    assert [key for key in merged if f"`{key}`" not in documented] == []


def test_every_score_stands_on_the_page_as_it_stands_in_the_file(tmp_path: Path) -> None:
    shown = page(build(tmp_path))
    merged = json.loads((tmp_path / "metrics.json").read_text())
    groups = [merged["scores"], merged["controls"], merged["novel_objects"]["scores"], merged["saliency"]]
    values = [
        score["value"]
        for group in groups
        for condition in group.values()
        for score in condition.values()
        if "value" in score
    ]
    assert len(values) > 70
    assert set(values) <= set(shown.numbers)
    assert "81.3 % [77.0, 85.7]" in shown.text
    assert "CIDEr 2.91 [2.73, 3.10] against at most 0.30" in shown.text
    assert "2.10 nats a token less than with shuffled features" in shown.text
    assert "not run: needs the Stanford CoreNLP 3.6.0 jars" in shown.text


def test_the_page_is_well_formed_and_self_contained(tmp_path: Path) -> None:
    shown = page(build(tmp_path))
    text = (tmp_path / "report" / "index.html").read_text(encoding="utf-8")
    assert "http://" not in text
    assert "https://" not in text
    (policy,) = [
        attrs["content"] for attrs in shown.all("meta") if attrs.get("http-equiv") == "Content-Security-Policy"
    ]
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy
    assert len(shown.ids) == len(set(shown.ids))
    targets = [attrs["href"] for _, attrs in shown.tags if "href" in attrs]
    assert {target[1:] for target in targets if target.startswith("#")} <= set(shown.ids)
    files = [target for target in targets if not target.startswith("#")] + [i["src"] for i in shown.all("img")]
    assert [name for name in files if not (tmp_path / "report" / name).is_file()] == []
    assert all(image["alt"] and image["loading"] == "lazy" for image in shown.all("img"))
    assert all(int(image["width"]) > 0 and int(image["height"]) > 0 for image in shown.all("img"))
    levels = [int(tag[1]) for tag, _ in shown.tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert all("scope" in header for header in shown.all("th"))
    sections = {"scores", "gallery", "saliency", "training", "novel", "ran", "failures", "descriptions"}
    assert sections <= set(shown.ids)
    assert {"picture-000000001", "failure-000000007", "layer-stride8", "described-000000002"} <= set(shown.ids)


def test_a_zero_has_no_minus() -> None:
    assert number(-0.0004, metric_kind("cider")) == "0.00"
    assert number(-0.25, metric_kind("cider"), signed=True) == "−0.25"
    assert number(0.8133, metric_kind("object_accuracy")) == "81.3"


def test_markers_lie_at_their_fractions_and_the_absent_word_is_named(tmp_path: Path) -> None:
    shown = page(build(tmp_path))
    places = [attrs["style"] for attrs in shown.all("span") if attrs.get("class", "").startswith("marker")]
    assert [style[: style.index(";--c")] for style in places] == ["left:40.0%;top:55.0%", "left:85.0%;top:10.0%"]
    assert "“violin” absent" in shown.text
    assert "“zebra” absent" not in shown.text


def test_captions_cannot_put_markup_on_the_page(tmp_path: Path) -> None:
    attack = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>"

    def edit(files: dict[str, Any]) -> None:
        picture = files["saliency/gallery.json"]["pictures"][0]
        picture |= {"object": attack, "scene": attack, "reference": attack, "key": attack, "split": attack}
        picture["descriptions"]["all"] = attack
        picture["descriptions"]["stride8"] = {"whole": attack, "A": attack, "B": attack}
        picture["queries"][0]["text"] = attack
        failed = files["saliency/gallery.json"]["failures"]["pictures"][0]
        failed |= {"object": attack, "reference": attack, "key": attack, "description": attack}
        files["predictions.parquet"][0] |= {"key": attack, "description": attack, "references": [attack]}
        files["evaluate/metrics.json"] |= {"data_note": attack, "data": attack, "bertscore_settings": attack}
        files["checkpoint/config.yaml"] = attack

    shown = page(build(tmp_path, edit))
    assert shown.all("script") == [{}]
    assert not any("onerror" in attrs for _, attrs in shown.tags)
    assert shown.text.count("<script>alert(1)</script>") > 12


@pytest.mark.parametrize(
    ("file", "change", "sentence"),
    [
        ("train/summary.json", {"weights": "random"}, "weights: random"),
        ("evaluate/metrics.json", {"distinct": {"all": {"value": 0.099}}}, "only 9.9 % of the descriptions differ"),
        ("evaluate/metrics.json", {"n_scored": 299}, "Only 299 of 300 pictures were scored"),
    ],
)
def test_what_makes_the_numbers_worthless_is_said_first(
    tmp_path: Path, file: str, change: dict[str, Any], sentence: str
) -> None:
    calm = page(build(tmp_path / "calm"))
    assert [attrs for attrs in calm.all("p") if attrs.get("role") == "alert"] == []
    shown = page(build(tmp_path / "loud", lambda files: files[file].update(change)))
    assert len([attrs for attrs in shown.all("p") if attrs.get("role") == "alert"]) == 1
    assert sentence in shown.text
    assert shown.text.index(sentence) < shown.text.index("Configuration and hashes")


@pytest.mark.parametrize(("shuffled", "warned"), [(2.153, True), (2.155, False), (1.9, True)])
def test_a_small_loss_gap_is_warned_of(tmp_path: Path, shuffled: float, warned: bool) -> None:
    def edit(files: dict[str, Any]) -> None:
        files["evaluate/metrics.json"]["controls"]["shuffled"]["loss"]["value"] = shuffled

    assert ("higher: the descriptions hardly depend on the picture" in page(build(tmp_path, edit)).text) is warned


def test_the_same_run_gives_the_same_bytes_and_no_file_of_an_older_report_stays(tmp_path: Path) -> None:
    def written(config: ReportConfig) -> dict[str, bytes]:
        run(config)
        report = config.run_dir / "report"
        return {str(file.relative_to(report)): file.read_bytes() for file in report.rglob("*") if file.is_file()}

    first = written(build(tmp_path / "one"))
    assert written(build(tmp_path / "two")) == first
    put(tmp_path / "one" / "report" / "gallery" / "old.png", "")
    assert written(ReportConfig(run=RUN, run_dir=tmp_path / "one")) == first


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("evaluate/metrics.json", "devil-pipe evaluate demo"),
        ("saliency/metrics.json", "devil-pipe saliency demo"),
        ("saliency/gallery.json", "devil-pipe saliency demo"),
        ("saliency/gallery/000000001.png", "devil-pipe saliency demo"),
        ("train/summary.json", "devil-pipe train demo"),
        ("train/log.jsonl", "devil-pipe train demo"),
        ("checkpoint/config.yaml", "devil-pipe train demo"),
        ("predictions.parquet", "devil-pipe evaluate demo"),
        ("saliency/failures/000000007.png", "devil-pipe saliency demo"),
    ],
)
def test_a_missing_file_is_named_with_the_command_that_makes_it(tmp_path: Path, name: str, command: str) -> None:
    config = build(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(InputError) as caught:
        run(config)
    assert name in str(caught.value)
    assert command in str(caught.value)
    assert not (tmp_path / "report").exists()
    assert not (tmp_path / "metrics.json").exists()


@pytest.mark.parametrize(
    ("file", "change", "named"),
    [
        ("evaluate/metrics.json", {"run": "other"}, "run: expected 'demo'"),
        ("evaluate/metrics.json", {"weights": "random"}, "weights: expected"),
        ("evaluate/metrics.json", {"scores": {}}, "scores"),
        ("evaluate/metrics.json", {"scores": {"all": {"cider": {"low": 1.0}}}}, "scores.all.cider"),
        ("saliency/metrics.json", {"saliency": {"stride8": {"iou": {}}}}, "saliency.stride8.iou"),
        ("saliency/gallery.json", {"scale": {"low": 0.0, "high": 1.0}}, "scale.low"),
        ("train/summary.json", {"seconds": "long"}, "seconds"),
    ],
)
def test_a_wrong_key_is_named(tmp_path: Path, file: str, change: dict[str, Any], named: str) -> None:
    config = build(tmp_path, lambda files: files[file].update(change))
    with pytest.raises(InputError) as caught:
        run(config)
    assert named in str(caught.value)
    assert ".json" in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        {"picture": "../../checkpoint/config.png"},
        {"markers": [{"id": "A", "x": 0.1, "y": 0.1, "colour": "red;x:url(y)", "where": "object"}]},
        {"markers": [{"id": "A", "x": 1.1, "y": 0.1, "colour": "#000000", "where": "object"}]},
    ],
)
def test_the_gallery_cannot_reach_outside_its_folder_or_into_the_style(tmp_path: Path, change: dict[str, Any]) -> None:
    config = build(tmp_path, lambda files: files["saliency/gallery.json"]["pictures"][0].update(change))
    with pytest.raises(InputError, match=r"gallery\.json"):
        run(config)


@pytest.mark.parametrize(
    ("description", "name", "expected"),
    [
        ("a zebra in front of a lake", "a zebra", True),
        ("A Zebra.", "zebra", True),
        ("a zebrafish", "a zebra", False),
        ("a polar bear on ice", "a polar bear", True),
        ("a bear near the polar circle", "a polar bear", False),
        ("a zebra", "", False),
    ],
)
def test_only_the_objects_whole_name_counts(description: str, name: str, expected: bool) -> None:
    assert mentions(description, name) is expected


def test_layers_are_ordered_by_number_or_as_the_run_says() -> None:
    assert ordered_layers(["block12", "block3", "block9"], None) == ["block3", "block9", "block12"]
    assert ordered_layers(["head", "body", "extra"], ["body", "head"]) == ["body", "head", "extra"]


def test_a_run_without_warm_up_or_novel_objects_says_so(tmp_path: Path) -> None:
    def edit(files: dict[str, Any]) -> None:
        del files["evaluate/metrics.json"]["novel_objects"]
        lines = files["train/log.jsonl"].splitlines()
        files["train/log.jsonl"] = "\n".join(line for line in lines if "alignment" not in line)

    shown = page(build(tmp_path, edit))
    assert "holds no pictures of novel objects" in shown.text
    assert "Alignment warm-up" not in shown.text
    assert training_curve([], "empty") is None


def test_the_configuration_takes_no_unknown_key(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="extra"):
        ReportConfig.model_validate({"run": RUN, "run_dir": tmp_path, "theme": "blue"})
