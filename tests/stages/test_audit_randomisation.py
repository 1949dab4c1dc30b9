"""The backbone of colours, trained and destroyed: what depends on it dies, what never looked survives and fails."""

from __future__ import annotations

import copy
import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from devil_pipe.stages.audit import deletion, randomisation
from devil_pipe.stages.audit.backbone import Explained
from devil_pipe.stages.audit.config import AuditConfig
from devil_pipe.stages.audit.findings import Measured, Needs, Verdict
from devil_pipe.stages.audit.opened import Audited
from devil_pipe.stages.evaluate.bootstrap import Interval
from devil_pipe.stages.evaluate.run import Trained
from devil_pipe.stages.prepare.config import FolderConfig, PrepareConfig
from devil_pipe.stages.prepare.index import index_digest, read_index
from devil_pipe.stages.prepare.run import run as prepare
from devil_pipe.store.reader import FeatureStore
from devil_pipe.store.writer import StoreWriter

from . import colours_fixture as colours

COUNT = 9


class Classifying(colours.Colours):
    """Three classes, by what the coarse layer holds."""

    num_classes = 3

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(5, 3)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.head(super().forward(pixels).mean(dim=(2, 3)))  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Own(Explained):
    """A module that is at hand, and a twin to which every colour is its opposite."""

    def untrained(self, seed: int) -> nn.Module:
        twin = copy.deepcopy(self.module)
        with torch.no_grad():
            twin.get_submodule("fine.0").weight.neg_()
        return twin


def draw(folder: Path) -> Path:
    """Pictures of which three quarters have the colour of the thing that their caption names; an index of them."""
    (folder / "pictures").mkdir(parents=True)
    names = list(colours.NAMES)
    lines = []
    for number in range(COUNT):
        name, other = names[number % 3], names[(number + 1 + number // 3 % 2) % 3]
        picture = colours.halves(name, name)
        corner = (150, 0) if number % 2 else (0, 0)
        picture.paste(Image.new("RGB", (50, 100), colours.NAMES[other]), corner)
        picture.putpixel((100, 50), (number, 0, 0))
        picture.save(folder / f"pictures/{number}.png")
        lines.append(json.dumps({"file": f"{number}.png", "caption": name, "split": "test", "object": name}) + "\n")
    (folder / "captions.jsonl").write_text("".join(lines))
    section = FolderConfig(pictures=folder / "pictures", captions=folder / "captions.jsonl")
    prepare(PrepareConfig(name="colours", out=folder / "data", source="folder", folder=section, workers=1))
    return folder / "data"


@pytest.fixture(scope="module")
def seeing(tmp_path_factory: pytest.TempPathFactory) -> Audited:
    """A translator that was taught the names of three colours, and a store of pictures that have them."""
    folder = tmp_path_factory.mktemp("colours")
    data, own = draw(folder), colours.own(folder / "lm", steps=120)
    torch.manual_seed(0)
    module = Classifying().eval().requires_grad_(False)
    module.load_state_dict(own.module.state_dict(), strict=False)
    table = read_index(data / "index.parquet")
    identity = own.card.store.model_copy(update={"index": index_digest(table), "rows": COUNT})
    backbone = Own(module, colours.TAPS, identity.layers, colours.TRANSFORM, identity, imagenet=False)
    pixels = backbone.pixels([(folder / f"pictures/{number}.png").read_bytes() for number in range(COUNT)])
    writer = StoreWriter(folder / "store", identity, COUNT)
    maps = {name: value.flatten(1, 2).numpy().astype(np.float16) for name, value in backbone.maps(pixels).items()}
    writer.write_shard(0, maps, {})
    writer.finalise()
    card = dataclasses.replace(own.card, store=identity)
    trained = Trained(FeatureStore(folder / "store"), own.translator, card, own.language_model, table.to_pylist())
    config = AuditConfig(
        run="colours",
        pictures=3 * COUNT,
        grid=8,
        resamples=200,
        steps=4,
        max_new_tokens=6,
        store=str(folder / "store"),
        data_dir=data,
        run_dir=folder,
        out=folder / "audit",
    )
    return with_backbone(Audited(config, trained), backbone)


def with_backbone(audited: Audited, backbone: Explained) -> Audited:
    audited.__dict__["backbone"] = backbone
    return audited


def demands(measured: Measured) -> dict[str, bool]:
    return {demand.text: demand.met for demand in measured.demands}


def test_an_explanation_that_looks_dies_with_the_weights(seeing: Audited) -> None:
    measured = randomisation.measure(seeing)
    assert measured.verdict is Verdict.PASS, measured.demands
    table = measured.tables[0]
    assert [row.label for row in table.rows] == [
        "as trained",
        "random from coarse up",
        "all random",
        "all random, rescaled",
    ]
    columns = list(zip(*(row.cells for row in table.rows), strict=True))
    fine, coarse, same = columns[0], columns[1], columns[2]
    assert [cell.value for cell in (fine[0], coarse[0], same[0])] == [1, 1, 1], "the same as itself"
    assert fine[1].value == 1, "what lies below the random part is as it was"
    assert coarse[1].value == 1, "the twin's upper part is the same"
    assert coarse[2].value < 0, "what was likely here is likely there"


def test_an_explanation_that_never_looked_survives_and_fails(seeing: Audited) -> None:
    with torch.no_grad():
        blind = colours.own(seeing.config.run_dir / "lm").translator  # same shapes; nothing of it sees from here on
        for name, value in blind.named_parameters():
            if name.startswith("project"):
                value.zero_()
    audited = Audited(seeing.config, dataclasses.replace(seeing.trained, translator=blind))
    measured = randomisation.measure(with_backbone(audited, seeing.backbone))
    assert measured.verdict is Verdict.FAIL
    assert set(demands(measured).values()) == {False}
    survived = [demand.figure for demand in measured.demands if demand.side == "below"]
    assert survived == [Interval(1, 1, 1)] * 4


def test_another_backbone_than_the_stores_is_not_audited(seeing: Audited) -> None:
    torch.manual_seed(5)
    other = dataclasses.replace(seeing.backbone, module=Classifying().eval())
    audited = with_backbone(Audited(seeing.config, seeing.trained), other)
    with pytest.raises(Needs, match=r"the backbone whose features are stored; here layer fine of .* cosine"):
        randomisation.measure(audited)


def test_deletion_has_table_fives_layout_and_no_verdict(seeing: Audited) -> None:
    measured = deletion.measure(seeing)
    assert measured.verdict is Verdict.SHOWN
    rows = {row.label: row.cells for row in measured.tables[0].rows}
    each = [f"{layer}: {what}" for layer in ("coarse", "fine") for what in ("Grad-CAM", "ours")]
    assert [label for label in rows if "less" not in label] == [*each, "centre prior", "random map"]
    assert all(0 <= cell.value <= 1 for label in each for cell in rows[label])
    for layer in ("coarse", "fine"):
        for place in range(2):
            ours, theirs = rows[f"{layer}: ours"][place], rows[f"{layer}: Grad-CAM"][place]
            apart = rows[f"{layer}: ours less Grad-CAM"][place]
            assert apart.value == pytest.approx(ours.value - theirs.value)


def test_without_classes_nothing_can_be_deleted(seeing: Audited) -> None:
    plain = dataclasses.replace(seeing.backbone, module=colours.Colours().eval())
    with pytest.raises(Needs, match="a classifier"):
        deletion.measure(with_backbone(Audited(seeing.config, seeing.trained), plain))
