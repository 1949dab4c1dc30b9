"""Likelihood maps against the plain way, one location and one query after the other, for several language models."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from devil_pipe.stages.common.assets import cache_dir
from devil_pipe.stages.evaluate.language import Tagger, load_tagger
from devil_pipe.stages.saliency.likelihood import Likelihoods, averaged, kernel, on_finest, smoothed
from devil_pipe.stages.saliency.overlays import Scale, overlay
from devil_pipe.stages.saliency.words import main_words
from devil_pipe.stages.train.config import TranslatorConfig
from devil_pipe.stages.train.language_model import LanguageModel
from devil_pipe.stages.train.translator import build
from devil_pipe.store.errors import UsageError
from devil_pipe.store.schema import LayerSpec

from . import language_models
from .language_models import FAMILIES

LAYERS = (
    LayerSpec(name="fine", channels=6, height=6, width=4),
    LayerSpec(name="middle", channels=8, height=3, width=3),
    LayerSpec(name="coarse", channels=10, height=2, width=2),
)
QUERIES = ["a sea lion", "a", "a dog in front of a wall", "a dog", "lions in a field"]
PARTS = 3


def engine(folder: Path, family: str, repeats: int = 1, batch_size: int = 64) -> Likelihoods:
    """With a random translator; `family` is saved in `folder` if it is not there."""
    if not (folder / family).exists():
        language_models.save(folder / family, FAMILIES[family])
    model = LanguageModel(str(folder / family), device=torch.device("cpu"), dtype=torch.float32, repeats=repeats)
    torch.manual_seed(0)
    config = TranslatorConfig(layers=1, width=16, heads=2, feedforward=32, queries=PARTS)
    return Likelihoods(build(config, LAYERS, model.width).eval(), LAYERS, model, batch_size)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("language-models")


@pytest.fixture(scope="module")
def maps() -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(1)
    return {spec.name: torch.randn(spec.height, spec.width, spec.channels, generator=random) for spec in LAYERS}


def after(likelihoods: Likelihoods, before: Tensor, text: str) -> float:
    """A text's log-likelihood after some embeddings, by one whole forward of the model as transformers has it."""
    model = likelihoods.language_model
    ids = model.tokenizer(text, add_special_tokens=False)["input_ids"]
    given = torch.cat([before, model.embedding(torch.tensor(ids))])
    with torch.no_grad():
        logs = model.model(inputs_embeds=given[None]).logits[0].double().log_softmax(dim=-1)
    return float(sum(logs[len(before) - 1 + place, token] for place, token in enumerate(ids)))


def plain_way(likelihoods: Likelihoods, features: dict[str, Tensor], query: str) -> np.ndarray:
    """`features` of the layers that are looked at, on one grid; the others are masked out, whatever they hold."""
    model = likelihoods.language_model
    bos = model.embedding(torch.tensor([model.bos]))
    keep = torch.tensor([[spec.name in features for spec in LAYERS]])
    found = np.empty(next(iter(features.values())).shape[:2])
    for row, column in np.ndindex(found.shape):
        vectors = [
            features[spec.name][row, column][None] if spec.name in features else torch.full((1, spec.channels), 7.0)
            for spec in LAYERS
        ]
        with torch.no_grad():
            prefix = likelihoods.translator(vectors, keep)[0]
        before = torch.cat([bos, prefix] * model.repeats + ([bos] if model.repeats > 1 else []))
        found[row, column] = after(likelihoods, before, query)
    return found


@pytest.mark.parametrize(
    ("family", "repeats", "batch_size", "rows"),
    [("gpt2", 1, 64, 1), ("llama", 2, 5, 10), ("opt", 2, 24, 128), ("gemma2", 1, 1, 2), ("mamba", 1, 7, 14)],
)
def test_a_map_is_the_plain_way(
    folder: Path,
    maps: dict[str, Tensor],
    family: str,
    repeats: int,
    batch_size: int,
    rows: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whatever the batch: queries that share beginnings, of one token and of many, together, by two, one by one."""
    monkeypatch.setattr("devil_pipe.stages.train.language_model.ROWS", rows)
    likelihoods = engine(folder, family, repeats, batch_size)
    for layer in ("fine", "coarse"):
        expected = [plain_way(likelihoods, {layer: maps[layer]}, query) for query in QUERIES]
        found = likelihoods.scores(layer, maps, QUERIES, plain=True)
        assert found.dtype == torch.float32
        assert np.abs(found.numpy() - np.stack(expected)).max() < 1e-4
        assert np.ptp(expected[0]) > 0.01  # it does depend on the location


def test_zero_is_the_language_model_alone(folder: Path, maps: dict[str, Tensor]) -> None:
    likelihoods = engine(folder, "llama", 2)
    model = likelihoods.language_model
    prior = np.array([after(likelihoods, model.embedding(torch.tensor([model.bos])), query) for query in QUERIES])
    assert likelihoods.prior(QUERIES).numpy() == pytest.approx(prior, abs=1e-4)
    plain = likelihoods.scores("coarse", maps, QUERIES, plain=True).numpy()
    assert likelihoods.scores("coarse", maps, QUERIES).numpy() == pytest.approx(plain - prior[:, None, None], abs=1e-4)
    lengths = np.array([len(model.tokenizer(query)["input_ids"]) for query in QUERIES])
    mean = likelihoods.scores("coarse", maps, QUERIES, per_token=True).numpy()
    assert mean == pytest.approx((plain - prior[:, None, None]) / lengths[:, None, None], abs=1e-4)
    assert len(set(lengths)) > 2


def test_the_whole_model_sees_each_layer_on_the_finest_grid(folder: Path, maps: dict[str, Tensor]) -> None:
    """Bilinear with values at the middle of their locations, channel by channel, as Pillow has it."""
    likelihoods = engine(folder, "gpt2")
    on_grid = {
        name: torch.from_numpy(
            np.stack([enlarged(item[:, :, channel].numpy(), 6, 4) for channel in range(item.shape[2])], axis=-1)
        )
        for name, item in maps.items()
    }
    expected = plain_way(likelihoods, on_grid, QUERIES[0])
    found = likelihoods.scores(None, maps, QUERIES[:1], plain=True)[0].numpy()
    assert found.shape == (6, 4)
    assert np.abs(found - expected).max() < 1e-4
    assert torch.equal(on_finest(list(maps.values()))[0], maps["fine"])


def enlarged(values: np.ndarray, rows: int, columns: int) -> np.ndarray:
    return np.asarray(Image.fromarray(values).resize((columns, rows), Image.Resampling.BILINEAR))


def test_a_grid_averages_before_the_model_is_asked(folder: Path, maps: dict[str, Tensor]) -> None:
    likelihoods = engine(folder, "gpt2")
    blocks = maps["fine"].reshape(2, 3, 2, 2, -1).mean(dim=(1, 3))
    expected = plain_way(likelihoods, {"fine": blocks}, QUERIES[0])
    found = likelihoods.scores("fine", maps, QUERIES[:1], plain=True, grid=2)[0].numpy()
    assert found == pytest.approx(expected, abs=1e-4)
    assert averaged(maps["coarse"], 2) is maps["coarse"]


def test_nothing_is_read_or_scored_twice(folder: Path, maps: dict[str, Tensor]) -> None:
    """Places read: each location's context once and each new beginning once; logits: where a token is scored."""
    likelihoods = engine(folder, "gpt2", batch_size=5)
    model = likelihoods.language_model
    likelihoods.prior(QUERIES)
    read, scored = [0], [0]
    hooks = [
        model.model.transformer.register_forward_pre_hook(
            lambda _m, _a, given: read.__setitem__(0, read[0] + given["inputs_embeds"][..., 0].numel()),
            with_kwargs=True,
        ),
        model.model.get_output_embeddings().register_forward_hook(
            lambda _m, given, _o: scored.__setitem__(0, scored[0] + given[0][..., 0].numel())
        ),
    ]
    likelihoods.scores("fine", maps, QUERIES)
    for hook in hooks:
        hook.remove()
    ids = [tuple(model.tokenizer(query)["input_ids"]) for query in QUERIES]
    ends = {text[:-1] for text in ids if len(text) > 1}
    beginnings = {end for end in ends if not any(other[: len(end)] == end for other in ends - {end})}
    assert len(beginnings) < len(ends)  # "a dog" has nothing of its own to read
    behind, locations = sum(len(item) for item in beginnings), LAYERS[0].locations
    assert scored[0] == locations * (1 + behind)
    # Several beginnings are read together, padded to the longest.
    assert (
        locations * (1 + PARTS + behind) <= read[0] <= locations * (1 + PARTS + len(beginnings) * max(map(len, ends)))
    )


def test_the_prior_is_computed_once_for_each_query(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    likelihoods = engine(folder, "gpt2")
    asked: list[int] = []
    real = likelihoods.language_model.query_scores

    def counting(prefix: Tensor | None, texts: Any) -> Tensor:
        asked.append(len(texts))
        return real(prefix, texts)

    monkeypatch.setattr(likelihoods.language_model, "query_scores", counting)
    first = likelihoods.prior(QUERIES[:2])
    assert torch.equal(likelihoods.prior([QUERIES[1], QUERIES[2], QUERIES[1]])[[0, 2]], first[[1, 1]])
    likelihoods.prior(QUERIES[:3])
    assert asked == [2, 1]


@pytest.mark.parametrize("queries", [[""], ["a dog", "  "]])
def test_a_query_without_words_is_refused(folder: Path, maps: dict[str, Tensor], queries: list[str]) -> None:
    with pytest.raises(UsageError, match="query: expected a word or more"):
        engine(folder, "gpt2").scores("coarse", maps, queries)


def test_the_pool_is_the_papers_by_layer_and_never_wider_than_a_quarter() -> None:
    resnet = [
        LayerSpec(name=f"L{place}", channels=1, height=side, width=side)
        for place, side in ((21, 28), (39, 14), (49, 7))
    ]
    assert [kernel("auto", spec.name, resnet) for spec in resnet] == [7, 3, 1]
    assert [kernel("auto", spec.name, resnet, grid=14) for spec in resnet] == [3, 3, 1]
    assert kernel("auto", None, resnet) == 1
    vit = [LayerSpec(name=f"block{place}", channels=1, height=7, width=7) for place in (3, 6, 9, 12)]
    assert {kernel("auto", spec.name, vit) for spec in vit} == {1}
    assert [kernel(side, "L21", resnet) for side in (0, 1, 5)] == [0, 1, 5]
    for wrong in (2, -1):
        with pytest.raises(UsageError, match="odd number"):
            kernel(wrong, "L21", resnet)


@pytest.mark.parametrize("side", [3, 5])
def test_smoothing_is_a_mean_over_the_neighbours_there_are(side: int) -> None:
    scores = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(0))
    expected = np.empty(scores.shape)
    for query, row, column in np.ndindex(expected.shape):
        reach = side // 2
        part = scores[query, max(0, row - reach) : row + reach + 1, max(0, column - reach) : column + reach + 1]
        expected[query, row, column] = float(part.double().mean())
    assert smoothed(scores, side).numpy() == pytest.approx(expected, abs=1e-6)
    assert torch.equal(smoothed(scores, 0), scores)


def test_a_colour_means_the_same_in_every_map() -> None:
    """A pixel's colour depends on its value and the scale, not on what else is in the map."""
    picture, scale = Image.new("RGB", (4, 4), (128, 128, 128)), Scale(20.0)
    quiet, loud = np.full((4, 4), 2.0), np.full((4, 4), 2.0)
    loud[0, 0] = 500.0
    assert np.array_equal(
        np.asarray(overlay(quiet, picture, scale))[2:, 2:], np.asarray(overlay(loud, picture, scale))[2:, 2:]
    )
    red, _, blue = np.asarray(overlay(np.full((1, 1), 10.0), picture, scale), dtype=int)[0, 0]
    assert red > blue + 30
    red, _, blue = np.asarray(overlay(np.full((1, 1), -10.0), picture, scale), dtype=int)[0, 0]
    assert blue > red + 30
    nothing = np.asarray(overlay(np.zeros((1, 1)), picture, scale), dtype=int)[0, 0]
    assert np.ptp(nothing) <= 2
    assert (Scale(20.0).low, Scale(20.0).high) == (-20.0, 20.0)
    assert (Scale(20.0, plain=True).low, Scale(20.0, plain=True).high) == (-20.0, 0.0)


class _Tagged:
    """A pipeline that knows the tags of one sentence."""

    def __init__(self, words: str, tags: str) -> None:
        self.words, self.tags = words.split(), tags.split()

    def pipe(self, texts: Iterable[str], **_options: object) -> Iterable[Any]:
        from spacy.lang.en import English
        from spacy.tokens import Doc

        vocab = English().vocab
        return [Doc(vocab, words=self.words, pos=self.tags) for _ in texts]


@pytest.mark.parametrize(
    ("text", "tags", "expected"),
    [
        ("a sea lion on the lake", "DET NOUN NOUN ADP DET NOUN", ["a sea lion", "the lake"]),
        ("A small red bicycle is old .", "DET ADJ ADJ NOUN AUX ADJ PUNCT", ["a small red bicycle"]),
        ("dogs and two cats and dogs", "NOUN CCONJ NUM NOUN CCONJ NOUN", ["dogs", "two cats"]),
        ("a dog a cat", "DET NOUN DET NOUN", ["a dog", "a cat"]),
        ("a ball in front of a park", "DET NOUN ADP NOUN ADP DET NOUN", ["a ball", "a park"]),
        ("running very fast", "VERB ADV ADV", []),
        ("the red", "DET ADJ", []),
    ],
)
def test_main_words_are_nouns_as_they_stand(text: str, tags: str, expected: list[str]) -> None:
    assert main_words(text, Tagger(_Tagged(text, tags), "a sentence")) == expected


@pytest.mark.assets
def test_main_words_of_a_real_sentence() -> None:
    if not (cache_dir() / "en-core-web-sm-3.8.0").is_dir():
        pytest.skip("the asset en-core-web-sm is not there")
    assert main_words("a black dog in front of a wall with two windows", load_tagger()) == [
        "a black dog", "a wall", "two windows",
    ]  # fmt: skip
