"""Loss and greedy texts of many families against transformers' own forward and generate, one row at a time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import GenerationConfig

from devil_pipe.stages.train.generation import greedy
from devil_pipe.stages.train.language_model import LanguageModel, embedding_width
from devil_pipe.store.errors import InputError

from . import language_models
from .language_models import FAMILIES

CPU = torch.device("cpu")
TEXTS = ["a dog in front of a lake", "a sea lion", "a", "a pig in front of a field near a wall and a lake"]
QUERIES, ROWS, TOKENS = 5, 24, 12


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("families")
    return {name: language_models.save(root / name, family) for name, family in FAMILIES.items()}


def load(folder: Path, repeats: int = 1) -> LanguageModel:
    return LanguageModel(str(folder), device=CPU, dtype=torch.float32, repeats=repeats)


@pytest.fixture(params=list(FAMILIES))
def model(request: pytest.FixtureRequest, folders: dict[str, Path]) -> LanguageModel:
    return load(folders[request.param])


def prefixes(model: LanguageModel, count: int = ROWS, seed: int = 0) -> Tensor:
    return model.mean_norm() * torch.nn.functional.normalize(
        torch.randn(count, QUERIES, model.width, generator=torch.Generator().manual_seed(seed)), dim=-1
    )


def embed(model: LanguageModel, ids: list[int]) -> Tensor:
    with torch.no_grad():
        return model.model.get_input_embeddings()(torch.tensor(ids, dtype=torch.long))


def own_loss(model: LanguageModel, before: Tensor, ids: list[int]) -> float:
    """transformers' loss of one text, in nats."""
    labels = torch.tensor([[-100] * len(before) + ids])
    with torch.no_grad():
        found = model.model(inputs_embeds=torch.cat([before, embed(model, ids)])[None], labels=labels)
    return float(found.loss) * len(ids)


def own_text(model: LanguageModel, before: Tensor, tokens: int) -> str:
    """transformers' greedy text after one context."""
    settings = GenerationConfig(
        max_new_tokens=tokens, do_sample=False, bos_token_id=model.bos, eos_token_id=model.eos, pad_token_id=model.pad
    )
    mask = torch.ones(1, len(before), dtype=torch.long)
    ids = model.model.generate(inputs_embeds=before[None], attention_mask=mask, generation_config=settings)[0].tolist()
    kept = ids[: ids.index(model.eos)] if model.eos in ids else ids
    return " ".join(model.tokenizer.decode(kept, skip_special_tokens=True).split())


def end_at_different_places(model: LanguageModel, prefix: Tensor) -> None:
    """Take as EOS the token that stands first at the most different places of the rows' endless texts."""
    fed = model.context(prefix, len(prefix))
    rows = []
    with torch.no_grad():
        for _ in range(TOKENS):
            rows.append(model.model(inputs_embeds=fed).logits[:, -1].argmax(dim=-1))
            fed = torch.cat([fed, model.embedding(rows[-1][:, None])], dim=1)
    texts = torch.stack(rows, dim=1).tolist()

    def places(token: int) -> int:
        return len({text.index(token) if token in text else TOKENS for text in texts})

    model.eos = max({token for text in texts for token in text}, key=places)
    assert places(model.eos) > 2, "rows end at different steps"


def test_a_text_begins_with_the_familys_token(folders: dict[str, Path]) -> None:
    for name, family in FAMILIES.items():
        model = load(folders[name])
        assert model.tokenizer.convert_ids_to_tokens([model.bos, model.eos]) == [family.begins, family.eos], name
        assert model.pad == (model.tokenizer.convert_tokens_to_ids(family.pad) if family.pad else model.eos), name
        assert torch.equal(model.context(None, 1)[0], embed(model, [model.bos])), name
        assert model.width == embedding_width(str(folders[name])), name
    assert load(folders["opt"]).width == 8


def test_loss_is_transformers_own(model: LanguageModel) -> None:
    captions = model.encode(TEXTS)
    prefix = prefixes(model, len(captions))
    summed, counts = model.token_losses(prefix, captions)
    assert counts.tolist() == [len(caption) + 1 for caption in captions]
    own = [
        own_loss(model, torch.cat([embed(model, [model.bos]), prefix[row]]), [*caption, model.eos])
        for row, caption in enumerate(captions)
    ]
    assert summed.tolist() == pytest.approx(own, rel=1e-4)


def test_query_scores_are_transformers_own_losses(model: LanguageModel) -> None:
    texts = model.encode([*TEXTS, TEXTS[1]])
    prefix = prefixes(model, 3)
    found = model.query_scores(prefix, texts)
    own = [[-own_loss(model, torch.cat([embed(model, [model.bos]), row]), text) for text in texts] for row in prefix]
    assert torch.allclose(found, torch.tensor(own), rtol=1e-4)


@pytest.mark.parametrize("repeats", [1, 2])
def test_texts_are_transformers_own_one_row_at_a_time(folders: dict[str, Path], repeats: int) -> None:
    for name in set(FAMILIES) - {"mamba"}:  # whose generate does not take embeddings and go on from them
        model = load(folders[name], repeats)
        prefix = prefixes(model)
        end_at_different_places(model, prefix)
        own = [own_text(model, row, TOKENS) for row in model.context(prefix, ROWS)]
        assert model.write(prefix, TOKENS) == own, name
        assert len(set(own)) > 3, name


def test_texts_of_a_batch_are_those_of_rows_alone(model: LanguageModel) -> None:
    prefix = prefixes(model)
    end_at_different_places(model, prefix)
    alone = [model.write(prefix[row : row + 1], TOKENS)[0] for row in range(ROWS)]
    assert model.write(prefix, TOKENS) == alone
    order = torch.randperm(ROWS, generator=torch.Generator().manual_seed(1))
    assert model.write(prefix[order], TOKENS) == [alone[row] for row in order.tolist()]


def test_rows_that_have_ended_are_not_computed_any_more(model: LanguageModel) -> None:
    """A row takes part in as many steps as it has tokens, its EOS among them."""
    prefix = prefixes(model)
    end_at_different_places(model, prefix)
    sizes: list[int] = []
    hook = model.model.get_output_embeddings().register_forward_hook(
        lambda _module, given, _out: sizes.append(len(given[0]))
    )
    lengths = []
    for row in range(ROWS):
        sizes.clear()
        model.write(prefix[row : row + 1], TOKENS)
        lengths.append(len(sizes))
    sizes.clear()
    model.write(prefix, TOKENS)
    hook.remove()
    assert sizes == [sum(length > step for length in lengths) for step in range(max(lengths))]


def test_a_cache_is_fed_one_token_at_a_time(folders: dict[str, Path]) -> None:
    for name in set(FAMILIES) - {"mamba"}:
        model = load(folders[name])
        lengths: list[int] = []
        hook = model._base().register_forward_pre_hook(
            lambda _module, _args, given, seen=lengths: seen.append(given["inputs_embeds"].shape[1]), with_kwargs=True
        )
        model.write(prefixes(model, 2), 4)
        hook.remove()
        assert lengths[0] == 1 + QUERIES, name
        assert set(lengths[1:]) <= {1}, name


class Scripted:
    """A language model that says what stands in a table, and whose cache is the rows that it was asked about."""

    def __init__(self, table: list[list[int]], *, has_cache: bool) -> None:
        self.table, self.has_cache = torch.tensor(table), has_cache
        self.asked: list[list[int]] = []

    def step(self, fed: Tensor, cache: Any) -> tuple[Tensor, Any]:
        rows, place = fed[:, 0, 0].long(), fed.shape[1] - 1
        if self.has_cache:
            assert cache is None or fed.shape[1] == 1
            cache = cache or Rows(rows, 0)
            rows, place = cache.rows, cache.place
            cache.place += 1
        self.asked.append(rows.tolist())
        return torch.nn.functional.one_hot(self.table[rows, place], 10).float(), cache


class Rows:
    def __init__(self, rows: Tensor, place: int) -> None:
        self.rows, self.place = rows, place

    def reorder_cache(self, kept: Tensor) -> None:
        self.rows = self.rows[kept]


@pytest.mark.parametrize("has_cache", [True, False])
def test_greedy_reads_a_table(has_cache: bool) -> None:
    """EOS is 9: the first row ends at once, the second in the middle, the third at the limit, the fourth never."""
    table = [[9, 1, 1, 1], [2, 3, 9, 1], [4, 5, 6, 9], [7, 8, 7, 8]]
    scripted = Scripted(table, has_cache=has_cache)
    before = torch.arange(4.0)[:, None, None]

    def embed(tokens: Tensor) -> Tensor:
        return tokens[..., None].float()

    found = greedy(scripted.step, embed, before, 4, 9)
    assert found.tolist() == [[9, 9, 9, 9], [2, 3, 9, 9], [4, 5, 6, 9], [7, 8, 7, 8]]
    assert scripted.asked == [[0, 1, 2, 3], [1, 2, 3], [1, 2, 3], [2, 3]]


def test_more_places_than_the_model_has_are_refused_in_words(folders: dict[str, Path]) -> None:
    for name in ("gpt2", "opt", "llama"):
        model = load(folders[name])
        (caption,) = model.encode(["a dog in front of a lake"])
        with pytest.raises(InputError, match=r"at most 64 places for prefix and text, got 70.*prefix_repeats"):
            model.token_losses(torch.zeros(1, 62, model.width), [caption])
        with pytest.raises(InputError, match="at most 64 places"):
            model.write(torch.zeros(1, 60, model.width), 50)


def test_the_real_smollm2_writes_what_transformers_does(asset_or_skip: Callable[[str], Path]) -> None:
    """Prefixes that spell captions, read twice, so that texts are sensible and end at different places."""
    asset_or_skip("smollm2-135m")
    model = LanguageModel("smollm2-135m", device=CPU, dtype=torch.float32, repeats=2)
    captions = model.encode(TEXTS)
    longest = max(map(len, captions))
    prefix = torch.stack([embed(model, [*ids, *[model.eos] * (longest - len(ids))]) for ids in captions])
    context = model.context(prefix, len(captions))
    assert model.write(prefix, 14) == [own_text(model, row, 14) for row in context]
    summed, _ = model.token_losses(prefix, captions)
    own = [own_loss(model, row, [*ids, model.eos]) for row, ids in zip(context, captions, strict=True)]
    assert summed.tolist() == pytest.approx(own, rel=1e-4)
