"""Which size of crop a description fits best: crops around the middle, and a scorer that can be fooled by neither."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from devil_pipe.pipeline.config import Run
from devil_pipe.stages.common.assets import asset
from devil_pipe.stages.evaluate.run import Trained, open_run
from devil_pipe.stages.extract.backbones import load
from devil_pipe.stages.saliency import crops
from devil_pipe.stages.saliency.config import CropsConfig
from devil_pipe.stages.saliency.likelihood import LikelihoodMaps
from devil_pipe.store.errors import InputError

CPU = torch.device("cpu")


def test_crops_lie_around_the_middle_of_the_square_picture() -> None:
    """Rings of one colour each: the smallest crop holds the innermost alone."""
    pixels = np.zeros((224, 224, 3), np.uint8)
    for number, size in reversed(list(enumerate(crops.SIZES, 1))):
        at = (224 - size) // 2
        pixels[at : at + size, at : at + size] = 50 * number
    found = crops.centre_crops(Image.fromarray(pixels))
    assert [item.size for item in found] == [(size, size) for size in (32, 64, 128, 224)]
    assert [sorted({int(value) for value in np.unique(np.asarray(item))}) for item in found] == [
        [50],
        [50, 100],
        [50, 100, 150],
        [50, 100, 150, 200],
    ]


def test_a_picture_of_other_proportions_is_squared_first() -> None:
    assert crops.centre_crops(Image.new("L", (448, 100), 9))[-1].size == (224, 224)


class Longest:
    """Likes the crop whose place is the text's length: 0 for the smallest."""

    name = "by length"

    def __call__(self, pictures: list[Image.Image], texts: list[str]) -> torch.Tensor:
        return torch.tensor([[-abs(len(text) - place) for text in texts] for place in range(len(pictures))]).float()


@pytest.fixture
def opened(run: Run, trained: Path) -> Trained:
    return open_run(trained, run.evaluate.store, run.evaluate.data_dir, "cpu", "float32")


def test_shares_count_the_best_crop_of_each_text(run: Run, opened: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crops, "_scorer", lambda *_: Longest())
    texts = {4: ("", "ab"), 6: ("a", "abc"), 7: ("a", "abc")}

    def said(_config: object, _trained: object, _maps: object, row: int) -> dict[str, str]:
        return {"fine": texts[row][0], crops.WHOLE: texts[row][1]}

    monkeypatch.setattr(crops, "_texts", said)
    found = crops.best_sizes(run.saliency, opened, LikelihoodMaps(opened, 0, 8), [4, 6, 7])
    assert (found["n"], found["scorer"], found["sizes"]) == (3, "by length", [32, 64, 128, 224])
    assert found["share"]["fine"] == {"32": 0.3333, "64": 0.6667, "128": 0.0, "224": 0.0}
    assert found["share"]["all"] == {"32": 0.0, "64": 0.0, "128": 0.3333, "224": 0.6667}
    assert found["mean_size"]["all"] == pytest.approx((128 + 2 * 224) / 3, abs=0.1)
    assert found["share"]["shuffled"] == found["share"]["all"], "each other picture's text once, in any order"


def test_every_layer_and_the_reference_are_asked(run: Run, opened: Trained) -> None:
    (row, *_) = opened.rows("test")
    found = crops._texts(run.saliency, opened, LikelihoodMaps(opened, 0, 8), row)
    assert set(found) == {"fine", "coarse", crops.WHOLE, crops.REFERENCE}
    assert found[crops.REFERENCE] == opened.index[row]["captions"][0]


def test_without_a_classifier_of_imagenet_the_reason_is_said() -> None:
    backbone = load("clip_rn50", "random")
    with pytest.raises(InputError, match=r"clip_rn50: is no classifier of ImageNet's classes; take .*scorer: clip"):
        crops.ClassScorer(backbone, CPU)


def test_the_real_scorer_knows_a_cup_from_a_cat() -> None:
    try:
        asset("minilm-l6")
        backbone = load("effnet_lite0")
    except InputError as error:
        pytest.skip(str(error))
    import skimage.data

    pictures = [Image.fromarray(getattr(skimage.data, name)()) for name in ("coffee", "chelsea")]
    found = crops.ClassScorer(backbone, CPU)(pictures, ["a cup of coffee on a table", "a cat looking at you"])
    assert found.argmax(dim=0).tolist() == [0, 1]
    assert found.argmax(dim=1).tolist() == [0, 1]


def test_clip_s_scorer_is_the_cosine_of_its_embeddings() -> None:
    """Random weights; against the module called by hand."""
    import open_clip

    backbone = load("clip_rn50", "random")
    pictures = [Image.effect_noise((50, 50), 80).convert("RGB") for _ in range(2)]
    found = crops.ClipScorer(backbone, CPU)(pictures, ["a dog", "a red wall", "text"])
    with torch.inference_mode():
        pixels = torch.stack([backbone.spec.transform()(picture) for picture in pictures])
        images = backbone.module.encode_image(pixels)  # type: ignore[operator]
        words = backbone.module.encode_text(open_clip.tokenize(["a dog", "a red wall", "text"]))  # type: ignore[operator]
    expected = torch.nn.functional.cosine_similarity(images[:, None], words[None], dim=2)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_settings_are_checked() -> None:
    with pytest.raises(ValueError, match="scorer"):
        CropsConfig(scorer="bleu")  # type: ignore[arg-type]
