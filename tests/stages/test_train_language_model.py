"""The frozen language model against transformers' own loss and slow loops, for three architectures."""

from __future__ import annotations

from pathlib import Path

import huggingface_hub
import pytest
import torch
from torch import Tensor

from devil_pipe.stages.train.language_model import LanguageModel, embedding_width
from devil_pipe.store.errors import InputError

from .. import tiny

CPU = torch.device("cpu")
TEXTS = ["a dog in front of a lake", "a sea lion", "a", "a pig in front of a field near a wall and a lake"]
QUERIES = 5


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("language-models")
    return {kind: tiny.language_model(root / kind, kind) for kind in tiny.KINDS}


def load(folder: Path, repeats: int = 1, dropout: bool = False) -> LanguageModel:
    return LanguageModel(str(folder), device=CPU, dtype=torch.float32, repeats=repeats, dropout=dropout)


@pytest.fixture(params=tiny.KINDS)
def model(request: pytest.FixtureRequest, folders: dict[str, Path]) -> LanguageModel:
    return load(folders[request.param])


def prefixes(model: LanguageModel, batch: int, seed: int = 0) -> Tensor:
    return torch.randn(batch, QUERIES, model.width, generator=torch.Generator().manual_seed(seed))


def embed(model: LanguageModel, ids: list[int]) -> Tensor:
    return model.model.get_input_embeddings()(torch.tensor(ids, dtype=torch.long))


def full_logits(model: LanguageModel, embeddings: Tensor) -> Tensor:
    """[length, vocabulary] of one sequence, computed by the whole model."""
    with torch.no_grad():
        return model.model(inputs_embeds=embeddings[None]).logits[0].double()


def log_likelihood(model: LanguageModel, before: Tensor, ids: list[int]) -> float:
    logits = full_logits(model, torch.cat([before, embed(model, ids)]))
    logs = logits.log_softmax(dim=-1)[len(before) - 1 : -1]
    return float(sum(logs[place, token] for place, token in enumerate(ids)))


def test_loss_is_transformers_own(model: LanguageModel) -> None:
    captions = model.encode(TEXTS)
    prefix = prefixes(model, len(captions))
    summed, counts = model.token_losses(prefix, captions)
    assert counts.tolist() == [len(caption) + 1 for caption in captions]
    for row, caption in enumerate(captions):
        before = torch.cat([embed(model, [model.bos]), prefix[row]])
        ids = [*caption, model.eos]
        labels = torch.tensor([[-100] * len(before) + ids])
        own = model.model(inputs_embeds=torch.cat([before, embed(model, ids)])[None], labels=labels).loss
        assert float(summed[row] / counts[row]) == pytest.approx(float(own), rel=1e-4)
        assert float(summed[row]) == pytest.approx(-log_likelihood(model, before, ids), rel=1e-4)


def test_loss_without_a_prefix_is_that_of_the_text_after_bos(model: LanguageModel) -> None:
    (caption,) = model.encode(TEXTS[:1])
    summed, _ = model.token_losses(None, [caption])
    expected = -log_likelihood(model, embed(model, [model.bos]), [*caption, model.eos])
    assert float(summed[0]) == pytest.approx(expected, rel=1e-4)


def test_padding_changes_no_loss(model: LanguageModel) -> None:
    captions = model.encode(TEXTS)
    prefix = prefixes(model, len(captions))
    together, _ = model.token_losses(prefix, captions)
    alone = [model.token_losses(prefix[row : row + 1], [caption])[0] for row, caption in enumerate(captions)]
    assert torch.allclose(together, torch.cat(alone), rtol=1e-4)


def test_logits_are_computed_at_caption_tokens_alone(model: LanguageModel) -> None:
    rows: list[int] = []
    head = model.model.get_output_embeddings()
    hook = head.register_forward_hook(lambda _module, given, _out: rows.append(given[0].numel() // model.width))
    captions = model.encode(TEXTS)
    model.token_losses(prefixes(model, len(captions)), captions)
    hook.remove()
    assert rows == [sum(len(caption) + 1 for caption in captions)]


def test_query_scores_with_a_shared_cache_are_full_forwards(model: LanguageModel) -> None:
    """Queries of one, three and more tokens, one of them twice: none may see another one's keys and values."""
    words = model.encode(TEXTS)
    texts = [words[3], words[2], words[0][:3], words[1], words[3], words[2]]
    assert [len(text) for text in texts[1:3]] == [1, 3]
    prefix = prefixes(model, 4)
    found = model.query_scores(prefix, texts)
    assert found.shape == (4, len(texts))
    for row in range(4):
        before = torch.cat([embed(model, [model.bos]), prefix[row]])
        for place, text in enumerate(texts):
            assert float(found[row, place]) == pytest.approx(log_likelihood(model, before, text), abs=1e-4)


def test_queries_of_one_token_alone_need_no_second_reading(model: LanguageModel) -> None:
    words = model.encode(TEXTS)
    texts = [words[2], words[2]]
    assert len(words[2]) == 1
    prefix = prefixes(model, 2)
    found = model.query_scores(prefix, texts)
    for row in range(2):
        before = torch.cat([embed(model, [model.bos]), prefix[row]])
        assert found[row].tolist() == pytest.approx([log_likelihood(model, before, words[2])] * 2, abs=1e-4)


def test_the_prior_is_the_text_after_bos(model: LanguageModel) -> None:
    texts = model.encode(TEXTS)
    prior = model.query_scores(None, texts)
    expected = [log_likelihood(model, embed(model, [model.bos]), text) for text in texts]
    assert prior.shape == (1, len(texts))
    assert prior[0].tolist() == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("repeats", [1, 2])
def test_writing_is_an_argmax_loop(folders: dict[str, Path], repeats: int) -> None:
    for kind in tiny.KINDS:
        model = load(folders[kind], repeats)
        prefix = prefixes(model, 3)
        expected = []
        for row in range(3):
            once = torch.cat([embed(model, [model.bos]), prefix[row]])
            before = once if repeats == 1 else torch.cat([once, once, embed(model, [model.bos])])
            ids: list[int] = []
            while len(ids) < 7 and model.eos not in ids:
                ids.append(int(full_logits(model, torch.cat([before, embed(model, ids)]))[-1].argmax()))
            kept = [token for token in ids if token != model.eos]
            expected.append(" ".join(model.tokenizer.decode(kept, skip_special_tokens=True).split()))
        assert model.write(prefix, 7) == expected


def test_writing_stops_at_the_end_of_text(folders: dict[str, Path]) -> None:
    """The first row ends at once and leaves, the second never: an output layer that knows two tokens."""
    model = load(folders["opt"])
    letter = model.encode(["a"])[0][0]
    inner = model.model.get_decoder()
    with torch.no_grad():
        model.model.get_output_embeddings().weight = torch.nn.Parameter(torch.zeros(len(model.tokenizer), model.width))
        model.model.get_output_embeddings().weight[model.eos, 0] = 1
        model.model.get_output_embeddings().weight[letter, 0] = -1
    hook = inner.register_forward_hook(_signed)
    assert model.write(prefixes(model, 2), 5) == ["", "aaaaa"]
    hook.remove()


def _signed(_module: object, _given: object, out: object) -> None:
    hidden = out.last_hidden_state  # type: ignore[attr-defined]
    hidden[:, :, 0] = -1
    if len(hidden) == 2:
        hidden[0, :, 0] = 1


def test_without_a_prefix_it_writes_the_same_for_all(model: LanguageModel) -> None:
    assert model.write(None, 4, batch=3) == model.write(None, 4) * 3


def test_two_repeats_are_bos_prefix_bos_prefix_bos(folders: dict[str, Path]) -> None:
    model = load(folders["llama"], repeats=2)
    prefix = prefixes(model, 2)
    found = model.context(prefix, 2)
    bos = embed(model, [model.bos])
    for row in range(2):
        assert torch.equal(found[row], torch.cat([bos, prefix[row], bos, prefix[row], bos]))
    assert torch.equal(model.context(None, 2), bos.expand(2, 1, -1))
    assert torch.equal(load(folders["llama"]).context(prefix, 2)[0], torch.cat([bos, prefix[0]]))


def test_it_is_frozen_and_in_eval_mode_unless_dropout_is_asked_for(folders: dict[str, Path]) -> None:
    captions = [[5, 6, 7], [8, 9]]
    for kind in ("gpt2", "opt"):  # a Llama has no dropout
        for dropout in (False, True):
            model = load(folders[kind], dropout=dropout)
            assert not any(value.requires_grad for value in model.model.parameters())
            assert all(module.training == dropout for module in model.model.modules())
            first, second = (model.token_losses(prefixes(model, 2), captions)[0] for _ in range(2))
            assert torch.equal(first, second) != dropout


def test_the_gradient_reaches_the_prefix_and_nothing_else(model: LanguageModel) -> None:
    prefix = prefixes(model, 2).requires_grad_()
    summed, _ = model.token_losses(prefix, [[5, 6, 7], [8, 9]])
    summed.sum().backward()
    assert prefix.grad is not None
    assert bool((prefix.grad.norm(dim=-1) > 0).all())
    assert all(value.grad is None for value in model.model.parameters())


def test_decoding_cuts_at_the_end_of_text_and_gives_one_line(model: LanguageModel) -> None:
    (ids,) = model.encode(["a dog"])
    (line,) = model.encode(["a  dog\n in front"])
    assert model.decode([*ids, model.eos, *ids]) == "a dog"
    assert model.decode([model.eos, *ids]) == ""
    assert model.decode(line) == "a dog in front"
    assert model.decode(model.encode(["a sea lion"])[0]) == "a sea lion"


def test_mean_norm_is_the_mean_length_of_the_embeddings(model: LanguageModel) -> None:
    rows = model.embedding.weight.double()
    assert model.mean_norm() == pytest.approx(float(torch.stack([row.pow(2).sum().sqrt() for row in rows]).mean()))


def test_width_without_weights(folders: dict[str, Path]) -> None:
    for kind, folder in folders.items():
        assert embedding_width(str(folder)) == load(folder).width == 16, kind
    assert (embedding_width("opt-125m"), embedding_width("gpt2"), embedding_width("smollm2-135m")) == (768, 768, 576)


def test_an_unknown_name_without_a_network_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    for attempt in (load, embedding_width):
        with pytest.raises(InputError, match=r"'nobody/no-such-model': cannot be loaded.*opt-125m, gpt2") as caught:
            attempt("nobody/no-such-model")  # type: ignore[operator]
        assert len(str(caught.value).splitlines()) == 1


def test_a_folder_without_a_model_is_named(tmp_path: Path, folders: dict[str, Path]) -> None:
    with pytest.raises(InputError, match="cannot be loaded from the folder"):
        load(tmp_path)
    for file in folders["llama"].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(InputError, match="cannot be loaded from the folder") as caught:
        load(tmp_path)
    assert len(str(caught.value).splitlines()) == 1


def test_a_tokenizer_without_an_end_of_text_is_refused(tmp_path: Path, folders: dict[str, Path]) -> None:
    for file in folders["llama"].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    settings = tmp_path / "tokenizer_config.json"
    settings.write_text(settings.read_text().replace('"eos_token": "</s>"', '"eos_token": null'))
    with pytest.raises(InputError, match="end-of-text token"):
        load(tmp_path)
