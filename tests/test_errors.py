"""Everyday mistakes at the command line: one plain line that names the thing, the right exit code, no traceback."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from devil_pipe.pipeline.cli import app
from devil_pipe.stages.common.progress import Mode, speak
from devil_pipe.stages.prepare.index import index_digest, read_index, to_table, write_index
from devil_pipe.stages.train.checkpoint import Card, save
from devil_pipe.stages.train.config import TranslatorConfig
from devil_pipe.stages.train.translator import build as build_translator
from devil_pipe.store.reader import FeatureStore

from . import tiny
from .pipeline.run_fixture import build

SHIPPED = Path(__file__).resolve().parents[1] / "configs"
USAGE, FAILURE = 2, 1


def put(name: str, text: str = "") -> None:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def put_config(name: str, values: object) -> None:
    put(f"configs/{name}.yaml", yaml.safe_dump(values))


def pictures() -> None:
    """Two pictures, prepared as `mine`, and a store of theirs to be made."""
    rows = tiny.pictures(Path("data/mine"))
    write_index(to_table(rows), Path("data/mine/index.parquet"))
    put_config("stores/mine", {"data": "mine", "backbone": "effnet_lite0", "weights": "random", "image_size": 32})


def store(seed: int = 0) -> None:
    """A finished store `tiny` and a run `tiny` on it that was not trained yet."""
    rows = tiny.pictures(Path("data/tiny"))
    write_index(to_table(rows), Path("data/tiny/index.parquet"))
    shutil.rmtree("stores/tiny", ignore_errors=True)
    tiny.store(Path("stores/tiny"), rows, index_digest(read_index(Path("data/tiny/index.parquet"))), seed)
    put_config("stores/tiny", {"data": "tiny", "backbone": "effnet_lite0", "weights": "random"})
    put_config("runs/tiny", tiny.run_values(Path()))


def trained() -> None:
    """The run `tiny` with a checkpoint on its store."""
    store()
    config = TranslatorConfig(layers=1, width=16, heads=2, feedforward=32, queries=3)
    identity = FeatureStore(Path("stores/tiny")).identity
    card = Card(config, None, 1, "lm", identity, "none", 0)
    save(Path("runs/tiny/checkpoint"), build_translator(config, identity.layers, 16), card)


def finished_without(part: str) -> Callable[[], None]:
    """The files of a finished run `demo`, less one part."""

    def arrange() -> None:
        build(Path("runs/demo"))
        gone = Path("runs/demo") / part
        shutil.rmtree(gone) if gone.is_dir() else gone.unlink()

    return arrange


def lost_weights() -> None:
    trained()
    Path("runs/tiny/checkpoint/translator.safetensors").unlink()


def other_store() -> None:
    trained()
    store(seed=1)


def lost_shard() -> None:
    store()
    next(Path("stores/tiny").rglob("c.0.0.0")).unlink()


def lost_index() -> None:
    store()
    Path("data/tiny/index.parquet").unlink()


def unlabelled() -> None:
    pictures()
    shutil.copytree("data/mine", "plain/inner")
    for number in range(2):
        put(f"plain/{number}.png")


def other_pictures() -> None:
    store()
    write_index(to_table(tiny.pictures(Path("data/tiny"))[:-1]), Path("data/tiny/index.parquet"))


def file_for(folder: str) -> Callable[[], None]:
    """A file where a folder is expected, after what the command needs is there."""

    def arrange() -> None:
        pictures()
        build(Path("runs/demo"))
        shutil.rmtree(folder, ignore_errors=True)
        put(folder, "a file")

    return arrange


@dataclass(frozen=True)
class Case:
    words: str
    code: int
    says: tuple[str, ...]
    given: Callable[[], None] | None = None


CASES = {
    "unknown command": Case("explode", USAGE, ("No such command 'explode'",)),
    "unknown option": Case("train --epochs 3", USAGE, ("No such option", "--epochs")),
    "batch of nothing": Case("extract --batch-size 0", USAGE, ("--batch-size",)),
    "unknown run": Case("train nope", USAGE, ("configs/runs/nope.yaml: no such file", "demo")),
    "unknown run to report": Case("report nope", USAGE, ("configs/runs/nope.yaml: no such file", "demo")),
    "unknown store": Case("extract nope", USAGE, ("configs/stores/nope.yaml: no such file", "demo-effnet_lite0")),
    "unknown data": Case("prepare nope", USAGE, ("configs/data/nope.yaml: no such file", "cc3m, coco-karpathy, demo")),
    "run by its path": Case("train configs/runs/demo.yaml", USAGE, ("expected the name of a file in configs/runs/",)),
    "no configs": Case("train", USAGE, ("configs/pipeline.yaml: no such file",), lambda: shutil.rmtree("configs")),
    "unknown asset": Case("assets nope", FAILURE, ("expected an asset among", "stamps", "'nope'")),
    "both sources": Case("prepare x --folder a --shards b", USAGE, ("--folder or --shards, got both",)),
    "folder and links": Case("prepare x --folder a --tsv b", USAGE, ("--folder or --tsv, got both",)),
    "validation links alone": Case("prepare x --tsv-val b", USAGE, ("--tsv-val belongs to --tsv",)),
    "links without a name": Case("prepare --tsv a.tsv", USAGE, ("devil-pipe prepare NAME --tsv FILE",)),
    "links missing": Case("prepare x --tsv a.tsv", FAILURE, ("img2dataset.tsv: expected a TSV file", "a.tsv")),
    "links missing for the shipped file": Case("prepare cc3m --tsv a.tsv", FAILURE, ("img2dataset.tsv", "a.tsv")),
    "links for another source": Case(
        "prepare demo --tsv a.tsv", USAGE, ("configs/data/demo.yaml: --tsv needs source: img2dataset, got demo",)
    ),
    "links for other shards": Case(
        "prepare cc3m --tsv a.tsv --shards b", USAGE, ("cc3m.yaml: shards: data/cc3m/shards, but --shards is b",)
    ),
    "a broken line of links": Case(
        "prepare x --tsv a.tsv", FAILURE, ("a.tsv, line 1: expected caption TAB link",), lambda: put("a.tsv", "a dog")
    ),
    "captions of no COCO": Case(
        "prepare x --coco-annotations a.json", USAGE, ("--coco-annotations belongs to --coco-images",)
    ),
    "COCO without captions": Case("prepare x --coco-images .", USAGE, ("--coco-annotations, --karpathy or both",)),
    "COCO's file missing": Case(
        "prepare x --coco-images . --karpathy k.json", FAILURE, ("coco.karpathy: expected a JSON file at k.json",)
    ),
    "COCO's file is none": Case(
        "prepare x --coco-images . --coco-annotations a.json",
        FAILURE,
        ("a.json: expected a key 'images', got captions",),
        lambda: put("a.json", '{"captions": []}'),
    ),
    "captions of nothing": Case("prepare x --captions c.csv", USAGE, ("--captions belongs to --folder",)),
    "folder without a name": Case("prepare --folder a", USAGE, ("devil-pipe prepare NAME --folder DIR",)),
    "folder missing": Case("prepare x --folder nope", FAILURE, ("folder.pictures", "nope")),
    "folder empty": Case("prepare x --folder .", FAILURE, ("expected pictures in .",)),
    "folder without captions": Case("prepare x --folder plain", FAILURE, ("expected a picture", "no .txt"), unlabelled),
    "captions missing": Case(
        "prepare x --folder . --captions c.csv", FAILURE, ("folder.captions: expected a CSV or JSONL file at c.csv",)
    ),
    "captions of another kind": Case(
        "prepare x --folder . --captions c.xlsx", FAILURE, (".csv or .jsonl", "c.xlsx"), lambda: put("c.xlsx")
    ),
    "captions without a column": Case(
        "prepare x --folder . --captions c.csv",
        FAILURE,
        ("c.csv, line 1: expected a column 'caption', got file, text",),
        lambda: put("c.csv", "file,text\na.jpg,a dog\n"),
    ),
    "shards missing": Case("prepare x --shards nope", FAILURE, ("img2dataset.shards", "nope")),
    "unknown backbone": Case(
        "extract --backbone resnet", USAGE, ("backbone: expected one of effnet_lite0, in_rn50", "'resnet'")
    ),
    "unknown backbone in a file": Case(
        "extract s",
        USAGE,
        ("configs/stores/s.yaml: backbone: expected one of", "'resnet'"),
        lambda: put_config("stores/s", {"data": "demo", "backbone": "resnet"}),
    ),
    "unknown layer": Case(
        "extract --backbone clip_rn50 --layers L21,L22",
        USAGE,
        ("layers: clip_rn50 has L11, L21, L39, L49, embedding, got 'L22'",),
    ),
    "unknown layer in a file": Case(
        "extract s",
        USAGE,
        ("configs/stores/s.yaml: layers: in_rn50 has", "'-1'"),
        lambda: put_config("stores/s", {"data": "demo", "backbone": "in_rn50", "layers": ["-1"]}),
    ),
    "layer twice": Case("extract --backbone in_rn50 --layers L21,L21", USAGE, ("'L21' is named twice",)),
    "store and backbone": Case("extract demo-effnet_lite0 --backbone in_rn50", USAGE, ("a named store is made as",)),
    "weights of nothing": Case("extract --weights random", USAGE, ("belong to --backbone",)),
    "extract before prepare": Case("extract", FAILURE, ("data/demo/index.parquet", "run `devil-pipe prepare`")),
    "weights missing": Case(
        "extract --backbone in_rn50 --data mine --weights w.pth",
        FAILURE,
        ("w.pth: expected a file of", "auto"),
        pictures,
    ),
    "unknown device": Case("extract mine --device gpu", FAILURE, ("device 'gpu': cannot be used here",), pictures),
    "train before extract": Case(
        "train demo", FAILURE, ("stores/demo-effnet_lite0/manifest.json", "run `devil-pipe extract demo-effnet_lite0`")
    ),
    "evaluate before extract": Case("evaluate demo", FAILURE, ("run `devil-pipe extract demo-effnet_lite0`",)),
    "train without pictures": Case(
        "train tiny", FAILURE, ("data/tiny/index.parquet", "devil-pipe prepare"), lost_index
    ),
    "train on other pictures": Case(
        "train tiny", FAILURE, ("data/tiny/index.parquet: expected", "69 rows", "another (68 rows)"), other_pictures
    ),
    "shard missing": Case("train tiny", FAILURE, ("c.0.0.0", "no such file", "devil-pipe extract"), lost_shard),
    "evaluate before train": Case(
        "evaluate tiny", FAILURE, ("runs/tiny/checkpoint/config.yaml", "run `devil-pipe train`"), store
    ),
    "saliency before train": Case(
        "saliency tiny", FAILURE, ("checkpoint/config.yaml", "run `devil-pipe train`"), store
    ),
    "weights of the run missing": Case("evaluate tiny", FAILURE, ("translator.safetensors: expected",), lost_weights),
    "checkpoint of another store": Case(
        "evaluate tiny",
        FAILURE,
        ("runs/tiny/checkpoint", "another store", "weights: 'random:0' against 'random:1'"),
        other_store,
    ),
    "report before train": Case("report demo", FAILURE, ("runs/demo/train/summary.json", "`devil-pipe train demo`")),
    "report before evaluate": Case(
        "report demo", FAILURE, ("runs/demo/evaluate/", "`devil-pipe evaluate demo`"), finished_without("evaluate")
    ),
    "report before saliency": Case(
        "report demo", FAILURE, ("runs/demo/saliency/", "`devil-pipe saliency demo`"), finished_without("saliency")
    ),
    "report without a log": Case(
        "report demo", FAILURE, ("train/log.jsonl", "`devil-pipe train demo`"), finished_without("train/log.jsonl")
    ),
    "a file for data": Case("prepare x --folder .", FAILURE, ("data/x: Not a directory",), lambda: put("data")),
    "a file for the data set": Case("prepare x --folder .", FAILURE, ("data/x: File exists",), lambda: put("data/x")),
    "a file for stores": Case("extract mine", FAILURE, ("stores/mine",), file_for("stores")),
    "a file for the store": Case("extract mine", FAILURE, ("stores/mine",), file_for("stores/mine")),
    "a file for configs/data": Case(
        "prepare x --folder .", FAILURE, ("configs/data", "File exists"), file_for("configs/data")
    ),
}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The shipped configurations in an otherwise empty project, which is the current folder."""
    shutil.copytree(SHIPPED, tmp_path / "configs")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("NO_COLOR", "1")
    yield tmp_path
    speak(Mode.HUMAN)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_mistake_is_one_plain_line(project: Path, case: Case) -> None:
    if case.given is not None:
        case.given()
    result = CliRunner().invoke(app, case.words.split())
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == case.code, result.output
    assert result.stdout == ""
    assert all(fragment in result.stderr for fragment in case.says), result.stderr
    assert "Traceback" not in result.stderr
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 or "─ Error ─" in result.stderr, result.stderr
    assert str(project) not in result.stderr, "paths as they were given"
