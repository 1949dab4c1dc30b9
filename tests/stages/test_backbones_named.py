"""Backbones by name: what each library says of its pixels, one's own functions, and what is said of names unknown."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from timm.data import create_transform, resolve_data_config
from torchvision import transforms

from devil_pipe.stages.extract.backbones import IMAGENET, OPENAI, load, spec, state_digest
from devil_pipe.stages.extract.layers import choose, planned_layers
from devil_pipe.stages.extract.pictures import Transform
from devil_pipe.store.errors import InputError, UsageError

from . import own_backbones

OWN = Path(own_backbones.__file__)


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a person's own backbones.py, as the current one."""
    shutil.copyfile(OWN, tmp_path / "backbones_of_mine.py")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "backbones_of_mine", raising=False)
    return tmp_path


@pytest.mark.parametrize(
    "name",
    ["resnet50.a1_in1k", "vit_tiny_patch16_224.augreg_in21k", "swin_tiny_patch4_window7_224", "mobilenetv3_small_100"],
)
def test_pixels_are_those_of_timms_own_transform(name: str) -> None:
    """But for the crop, which would leave locations of the picture unexplained."""
    found = spec(f"timm/{name}")
    with torch.device("meta"):
        module = timm.create_model(name)
    assert isinstance(found.size, int)
    theirs = create_transform(**{**resolve_data_config({}, model=module), "crop_pct": 1.0, "crop_mode": "squash"})
    noise = np.random.default_rng(0).integers(0, 256, (90, 130, 3), dtype=np.uint8)
    picture = Image.fromarray(noise).resize((400, 300))
    torch.testing.assert_close(found.transform()(picture), theirs(picture), rtol=0, atol=1e-6)
    assert found.interpolation == theirs.transforms[0].interpolation.value


@pytest.mark.parametrize(
    ("name", "mean", "size"),
    [
        ("ViT-B-32:openai", OPENAI[0], 224),
        ("ViT-B-16-SigLIP-256:webli", (0.5, 0.5, 0.5), 256),
        ("RN50x4:openai", OPENAI[0], 288),
    ],
)
def test_open_clips_pixels_are_those_of_its_tags(name: str, mean: tuple[float, ...], size: int) -> None:
    found = spec(f"open_clip/{name}")
    assert (found.mean, found.size, found.interpolation, found.test) == (mean, size, "bicubic", "clip")


def test_openais_tag_gets_openais_activation() -> None:
    def plain(name: str) -> int:
        module = spec(name).build(False, "meta")
        return sum(isinstance(part, torch.nn.GELU) for part in module.modules())

    assert spec("open_clip/ViT-B-32:openai").quick_gelu
    assert plain("open_clip/ViT-B-32:openai") == 0
    assert not spec("open_clip/ViT-B-32:laion2b_e16").quick_gelu
    assert plain("open_clip/ViT-B-32:laion2b_e16") == 24


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("resnet50", "got 'resnet50'; did you mean timm/resnet50"),
        ("ViT-B-32:openai", "did you mean open_clip/ViT-B-32:openai"),
        ("timm/resnet5O", "timm has no model 'resnet5O'; did you mean .*timm/resnet50"),
        ("timm/resnet50.a9_in1k", "timm's resnet50 has no pretrained tag 'a9_in1k'; it has a1_in1k, "),
        ("open_clip/ViT-B32:openai", "open_clip has no model 'ViT-B32'; did you mean open_clip/ViT-B-32"),
        ("open_clip/ViT-B-32:opanai", "has no pretrained tag 'opanai'; did you mean openai"),
        ("timm/", r"expected one of .*timm/NAME, open_clip/NAME:TAG, package.module:function, got 'timm/'"),
        ("", "got ''"),
    ],
)
def test_unknown_names_say_what_would_do(name: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        spec(name)


def test_weights_that_nobody_published_are_not_waited_for() -> None:
    for name in ("open_clip/ViT-B-32", "timm/test_vit4"):
        with pytest.raises(InputError, match=rf"weights of {name}: none are published .*--weights FILE"):
            load(name)


def test_a_libraries_model_takes_random_weights_and_files(tmp_path: Path) -> None:
    name = "timm/test_resnet"
    random = load(name, "random", seed=1)
    assert random.weights == "random:1"
    state = {key: value.clone() for key, value in random.module.state_dict().items()}
    save_file(state, tmp_path / "weights.safetensors")
    torch.save({"state_dict": {f"module.{key}": value for key, value in state.items()}}, tmp_path / "parallel.pth")
    files = [load(name, str(tmp_path / file)) for file in ("weights.safetensors", "parallel.pth")]
    assert {found.weights for found in files} == {state_digest(random.module)}
    assert files[0].spec.test == "none", "a thousand classes of a person's own may be others than ImageNet's"


def test_transformers_of_timm_take_pictures_of_other_sizes() -> None:
    found = spec("timm/vit_tiny_patch16_224")
    assert [(layer.height, layer.width) for layer in planned_layers(found, ["block12"], (96, 160))] == [(6, 10)]
    with pytest.raises(InputError, match=r"image_size: the backbone takes no pictures of 96 pixels"):
        planned_layers(spec("timm/mixer_s16_224"), (), 96)


def test_ones_own_function_is_imported_from_the_current_folder(own: Path) -> None:
    found = spec("backbones_of_mine:odd")
    assert (found.size, (found.mean, found.std), found.test) == (224, IMAGENET, "none")
    assert [tap.name for tap in choose(found, ())] == ["stage1.1", "stage2.1"]
    first, second = load("backbones_of_mine:odd"), load("backbones_of_mine:odd")
    assert first.weights == second.weights == state_digest(first.module), "its draws follow a seed"
    assert not any(part.training for part in first.module.modules())
    assert load("backbones_of_mine:odd", "random").weights == "random:0"


def test_ones_own_function_may_say_what_its_pictures_are(own: Path) -> None:
    transform = spec("backbones_of_mine:wide").transform()
    assert transform == Transform((96, 160), (0.5,) * 3, (0.25,) * 3, "bilinear")
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 40, 3), dtype=np.uint8))
    resize = transforms.Resize((96, 160), transforms.InterpolationMode.BILINEAR)
    expected = transforms.Compose([resize, transforms.ToTensor(), transforms.Normalize(0.5, 0.25)])(picture)
    torch.testing.assert_close(transform(picture), expected)
    assert transform.describe()["resize"] == [96, 160]
    assert [(layer.height, layer.width) for layer in planned_layers(spec("backbones_of_mine:wide"), ["stage1"])] == [
        ((96 - 5) // 3 + 1, (160 - 5) // 2 + 1)
    ]


def test_random_weights_leave_nothing_of_what_a_function_loaded(own: Path) -> None:
    learned = load("backbones_of_mine:trained")
    assert all(bool((value == 0.125).all()) for value in learned.module.parameters())
    drawn = load("backbones_of_mine:trained", "random", seed=2)
    kernels = [value for value in drawn.module.parameters() if value.ndim > 1]
    assert all(float(value.std()) > 0 for value in kernels)
    assert not any(bool((value == 0.125).any()) for value in kernels)
    again = load("backbones_of_mine:trained", "random", seed=2)
    assert state_digest(again.module) == state_digest(drawn.module)


def test_a_file_takes_the_place_of_a_functions_weights(own: Path) -> None:
    drawn = load("backbones_of_mine:trained", "random", seed=5)
    save_file(drawn.module.state_dict(), own / "mine.safetensors")
    found = load("backbones_of_mine:trained", "mine.safetensors")
    assert found.weights == state_digest(drawn.module)


def test_a_module_that_looks_at_numbers_is_tried_on_the_cpu(own: Path) -> None:
    looking, plain = spec("backbones_of_mine:looking"), spec("backbones_of_mine:odd")
    assert looking.taps == plain.taps
    assert planned_layers(looking, ()) == planned_layers(plain, ())


@pytest.mark.parametrize(
    ("name", "kind", "said"),
    [
        ("no_such_package.backbones:odd", UsageError, "no module 'no_such_package', neither in .* nor installed"),
        ("backbones_of_mine.inner:odd", UsageError, r"no module 'backbones_of_mine\.inner'"),
        (
            "backbones_of_mine:od",
            UsageError,
            "backbones_of_mine has no function 'od'; did you mean backbones_of_mine:odd",
        ),
        ("backbones_of_mine:OWN-1", UsageError, "expected package.module:function, got"),
        ("backbones_of_mine:number", InputError, "expected the function to return a torch.nn.Module.*; got int"),
        (
            "backbones_of_mine:raising",
            InputError,
            r"raised KeyError: 'no such checkpoint' \(backbones_of_mine.py, line",
        ),
        (
            "backbones_of_mine:misset",
            InputError,
            "settings with the keys mean, std, image_size, interpolation: size: Ext",
        ),
        ("backbones_of_mine:unfit", InputError, "a picture of 224 × 224 pixels does not go through it: RuntimeError: "),
        ("backbones_of_mine:two", InputError, "Two: found no layer with a grid of locations"),
        (
            "broken_of_mine:odd",
            InputError,
            r"importing broken_of_mine raised ZeroDivisionError.*\(broken_of_mine.py, line 1",
        ),
        (
            "wanting_of_mine:odd",
            InputError,
            "importing wanting_of_mine raised ModuleNotFoundError: No module named 'nowhere",
        ),
    ],
)
def test_functions_that_do_not_work_are_told_in_words(own: Path, name: str, kind: type[Exception], said: str) -> None:
    (own / "broken_of_mine.py").write_text("1 / 0\n")
    (own / "wanting_of_mine.py").write_text("import nowhere_to_be_found\n")
    with pytest.raises(InputError, match=said) as caught:
        spec(name)
    assert type(caught.value) is kind
