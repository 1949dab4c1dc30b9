"""`devil-pipe layers`, and stores of any backbone from the command line: names, dry runs, and what is then read."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from typer.testing import CliRunner, Result

from devil_pipe.pipeline.cli import app
from devil_pipe.stages.common.decoding import open_picture
from devil_pipe.stages.common.progress import Mode, speak
from devil_pipe.stages.extract import probe
from devil_pipe.stages.extract.backbones import load
from devil_pipe.store.reader import FeatureStore

from ..stages import own_backbones

OWN = "backbones_of_hers"
# Channels and grid of what is explained by default, as the architectures' papers give them.
USUAL = {
    "in_rn50": {"L21": (512, 28, 28), "L39": (1024, 14, 14), "L49": (2048, 7, 7)},
    "in_rn101": {f"layer{n}": (128 * 2**n, 112 // 2**n, 112 // 2**n) for n in (1, 2, 3, 4)},
    "clip_rn50": {"L21": (512, 28, 28), "L39": (1024, 14, 14), "L49": (2048, 7, 7)},
    "clip_vit_b32": {f"block{n}": (768, 7, 7) for n in (3, 6, 9, 12)},
    "dinov2_s14_saliency": {f"block{n}": (384, 16, 16) for n in (3, 6, 9, 12)},
    "effnet_lite0": {"s8": (40, 28, 28), "s16": (112, 14, 14), "s32": (320, 7, 7)},
    "timm/swin_tiny_patch4_window7_224": {
        f"layers.{n}.blocks.{last}": (96 * 2**n, 56 // 2**n, 56 // 2**n) for n, last in enumerate((1, 1, 5, 1))
    },
    "timm/convnext_atto": {
        f"stages.{n}.blocks.{last}": (40 * 2**n, 56 // 2**n, 56 // 2**n) for n, last in enumerate((1, 1, 5, 1))
    },
    "timm/vit_small_patch14_reg4_dinov2": {f"blocks.{n}": (384, 37, 37) for n in (2, 5, 8, 11)},
    "open_clip/ViT-B-32:openai": {f"transformer.resblocks.{n}": (768, 7, 7) for n in (2, 5, 8, 11)},
}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_data: Callable[..., Path]) -> Iterator[Path]:
    """Six prepared pictures as `tiny`, and a person's own backbones, in the current folder; no network, no cache."""
    tiny_data(count=6)
    for folder in ("data", "stores"):
        (tmp_path / "configs" / folder).mkdir(parents=True)
    pictures = {"source": "folder", "folder": {"pictures": "pictures", "captions": "captions.jsonl"}}
    (tmp_path / "configs/data/tiny.yaml").write_text(yaml.safe_dump(pictures))
    listing = {"data": ["tiny"], "stores": {}, "runs": {}}
    (tmp_path / "configs/pipeline.yaml").write_text(yaml.safe_dump(listing))
    shutil.copyfile(own_backbones.__file__, tmp_path / f"{OWN}.py")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, OWN, raising=False)
    monkeypatch.setenv("DEVIL_PIPE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(probe, "SECONDS", {"decode": 0.05, "forward": 0.05, "whole": 0.3})
    yield tmp_path
    speak(Mode.HUMAN)


def call(*words: str) -> Result:
    return CliRunner().invoke(app, words)


def listed(*words: str) -> dict[str, Any]:
    done = call("layers", *words, "--json")
    assert done.exit_code == 0, done.output
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("name", USUAL)
def test_the_usual_layers_are_those_of_the_papers(name: str, project: Path) -> None:
    found = listed(name)
    shapes = {row["name"]: (row["channels"], *row["grid"]) for row in found["layers"] if row["default"]}
    assert shapes == USUAL[name]
    high, wide = found["image_size"]
    for row in found["layers"]:
        assert [side * stride for side, stride in zip(row["grid"], row["stride"], strict=True)] == [high, wide]
    assert not (project / "cache").exists()


def test_the_table_says_what_is_taken_off_and_before_which_norm() -> None:
    done = call("layers", "timm/vit_small_patch14_reg4_dinov2", "--image-size", "98x126")
    assert done.exit_code == 0, done.output
    lines = {line.split()[0]: line.split() for line in done.stdout.splitlines()[2:-2]}
    expected = [
        "blocks.2",
        "block3",
        "blocks.2",
        "pre-norm",
        "1",
        "class",
        "+",
        "4",
        "registers",
        "yes",
        "7×9",
        "384",
        "14",
    ]
    assert lines["blocks.2"] == expected
    assert lines["norm"][2:3] == ["post-norm"]
    assert "no known answer" in done.stdout.splitlines()[-2]


def test_ones_own_module_with_odd_strides_is_listed_with_its_real_strides(project: Path) -> None:
    found = listed(f"{OWN}:odd")
    rows = {row["name"]: (row["channels"], row["grid"], row["stride"], row["default"]) for row in found["layers"]}
    assert rows == {
        "stem.2": (12, [74, 110], [3, 2], False),  # (224 - 5) // 3 + 1 and (224 - 5) // 2 + 1
        "stage1.0": (12, [74, 110], [3, 2], False),
        "stage1.1": (12, [74, 110], [3, 2], True),
        "stage2.0": (20, [36, 36], [6, 6], False),
        "stage2.1": (20, [36, 36], [6, 6], True),
    }
    assert listed(f"{OWN}:odd", "--weights", "random")["weights"] == "random:0"


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["vgg"], 2, "error: backbone: expected one of"),
        (
            ["in_rn50", "--image-size", "big"],
            2,
            "--image-size: expected pixels, 32 at least, such as 224 or 160x288, got",
        ),
        (["in_rn50", "--image-size", "16"], 2, "32 at least"),
        (["clip_rn50", "--image-size", "160"], 1, "image_size: the backbone takes no pictures of 160 pixels"),
        (["in_rn50", "--weights", "none.pth"], 1, "none.pth: expected a file of weights, found none"),
        (["dinov2_s14_saliency", "--weights", "auto"], 1, "run `devil-pipe assets dinov2_s14_saliency` to fetch it"),
        ([f"{OWN}:nothing"], 2, "has no function 'nothing'"),
        ([f"{OWN}:raising"], 1, "the function raised KeyError: 'no such checkpoint'"),
    ],
)
def test_mistakes_are_one_line(project: Path, words: list[str], code: int, said: str) -> None:
    done = call("layers", *words)
    assert done.exit_code == code, done.output
    assert said in " ".join(done.output.split())
    assert "Traceback" not in done.output


@pytest.mark.parametrize(
    ("backbone", "layers", "store", "stored"),
    [
        ("timm/test_vit", "last:2", "tiny-timm-test_vit-random-last2", ["blocks.4", "blocks.5"]),
        ("open_clip/RN50:openai", "stage4", "tiny-open_clip-RN50-openai-random-stage4", ["layer4.2"]),
        (f"{OWN}:wide", "stage1,stage2.0", f"tiny-{OWN}-wide-random-stage1-stage2.0", ["stage1.1", "stage2.0"]),
    ],
)
def test_a_store_of_any_backbone_is_foreseen_made_and_read(
    project: Path, backbone: str, layers: str, store: str, stored: list[str]
) -> None:
    words = ["extract", "--backbone", backbone, "--data", "tiny", "--weights", "random", "--layers", layers]
    foreseen = call(*words, "--dry-run", "--json", "--device", "cpu")
    assert foreseen.exit_code == 0, foreseen.output
    told = json.loads(foreseen.stdout)
    assert not (project / "stores").exists()
    done = call(*words, "--device", "cpu")
    assert done.exit_code == 0, done.output
    again = call("extract", store, "--device", "cpu")
    assert again.exit_code == 0, again.output
    reader = FeatureStore(project / "stores" / store)
    assert [layer.name for layer in reader.layers] == list(told["layers"]) == stored
    assert {layer.name: [layer.height, layer.width] for layer in reader.layers} == {
        name: layer["grid"] for name, layer in told["layers"].items()
    }
    # The first picture's maps, read out by a hook of the test's own.
    loaded = load(backbone, "random")
    transform = loaded.spec.transform()
    assert reader.identity.transform == transform.describe()
    pixels = transform(open_picture((project / "pictures/000.png").read_bytes()))[None]
    paths = {tap.name: tap.module for tap in loaded.spec.taps}
    seen: dict[str, torch.Tensor] = {}
    for name in stored:
        keep = lambda _module, _inputs, output, name=name: seen.__setitem__(name, output)  # noqa: E731
        loaded.module.get_submodule(paths[name]).register_forward_hook(keep)
    with torch.inference_mode():
        getattr(loaded.module, "visual", loaded.module)(pixels)
    for layer in reader.layers:
        output = seen[layer.name][0]
        expected = output[-layer.locations :] if output.ndim == 2 else output.flatten(1).T
        found = reader[layer.name][0].astype(np.float32)
        np.testing.assert_allclose(found, expected.numpy(), rtol=2e-3, atol=2e-3 * float(expected.abs().max()))


def test_the_size_of_a_new_store_is_written_down(project: Path) -> None:
    for backbone, size in ((f"{OWN}:wide", [96, 160]), (f"{OWN}:odd", 224)):
        done = call("extract", "--backbone", backbone, "--data", "tiny", "--device", "cpu")
        assert done.exit_code == 0, done.output
        assert "no known answer" in done.output
        name = f"tiny-{backbone.replace(':', '-')}"
        written = yaml.safe_load((project / f"configs/stores/{name}.yaml").read_text())
        assert (written["image_size"], written["weights"]) == (size, "auto")
