"""Asking a module of one's own, without any store: what is where, in every form of a picture; margins by slow loops."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from devil_pipe.stages.explain import opening
from devil_pipe.stages.explain.explainer import Asked, Description, Explainer, Looked
from devil_pipe.stages.explain.margin import means, read, resampled
from devil_pipe.stages.extract.taps import Tap
from devil_pipe.stages.extract.weights import state_digest
from devil_pipe.stages.train.language_model import LanguageModel
from devil_pipe.store.errors import InputError, UsageError
from devil_pipe.store.schema import LayerSpec

from .. import tiny
from .colours_fixture import CPU, TAPS, Colours, Own, halves, own

LEFT, RIGHT = (50, 50), (150, 50)
GREY = Image.new("RGB", (90, 70), (128, 128, 128))
ASKED = [Asked(None), Asked("fine"), Asked("coarse", LEFT), Asked("fine", RIGHT), Asked("fine", box=(5, 5, 90, 60))]
ASKED += [Asked(None, at=RIGHT), Asked("coarse", box=(120, 0, 200, 100))]


def explain(parts: Own) -> Explainer:
    return Explainer.from_module(parts.translator, parts.card, parts.module, TAPS, language_model=parts.language_model)


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Own:
    """A translator that knows three colours."""
    return own(tmp_path_factory.mktemp("lm"), steps=60)


@pytest.fixture(scope="module")
def explainer(parts: Own) -> Explainer:
    return explain(parts)


@pytest.fixture(scope="module", params=tiny.KINDS)
def untaught(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Explainer:
    """Random weights throughout, so that no two texts are alike by training."""
    return explain(own(tmp_path_factory.mktemp(request.param), request.param))


def test_a_location_says_what_is_there(explainer: Explainer) -> None:
    picture = halves("a dog", "a lion")
    for layer, place in {"fine": (2, 2), "coarse": (1, 0)}.items():
        left = explainer.describe(picture, layer=layer, at=LEFT)
        assert (left.text, left.row, left.column, left.weak) == ("a dog", *place, False)
        assert explainer.describe(picture, layer=layer, at=RIGHT).text == "a lion"
        assert explainer.describe(picture, layer=layer, box=(140, 10, 200, 90)).text == "a lion"
    one = explainer.describe(halves("a cow", "a cow"), layer="fine")
    assert (one.text, one.agreement, one.row, one.box) == ("a cow", 1.0, None, None)
    assert one.margin is not None
    assert one.margin.low == pytest.approx(one.margin.nats, abs=1e-4)  # every half of one colour is that colour
    assert one.margin.high == pytest.approx(one.margin.nats, abs=1e-4)


def test_words_are_likely_where_they_are(explainer: Explainer) -> None:
    picture = halves("a dog", "a lion")
    dog, lion = explainer.saliency(picture, ["a dog", "a lion"], layer="fine")
    assert lion.values.shape == (4, 8)
    assert lion.values.dtype == np.float32
    assert lion.values[:, 4:].min() > 0 > lion.values[:, :4].max()
    assert dog.values[:, :4].min() > 0 > dog.values[:, 4:].max()
    plain = explainer.saliency(picture, "a lion", layer="fine", plain=True)
    np.testing.assert_allclose(plain.values - plain.prior, lion.values, atol=1e-4)
    each = explainer.saliency(picture, "a lion", layer="fine", per_token=True)
    np.testing.assert_allclose(each.values * each.tokens, lion.values, atol=1e-4)
    assert each.prior * each.tokens == pytest.approx(lion.prior)
    large = explainer.saliency(picture, "a lion", layer="fine", upsample=True)
    assert large.values.shape == (100, 200)
    assert large.values[:, 160:].min() > 0 > large.values[:, :40].max()
    assert explainer.saliency(picture, "a lion").values.shape == (4, 8)  # all layers: the finest one's grid
    assert explainer.saliency(picture, []) == []
    with pytest.raises(UsageError, match="expected a word"):
        explainer.saliency(picture, ["a lion", " "])
    with pytest.raises(UsageError, match=r"expected one of fine, coarse; did you mean 'coarse'\?"):
        explainer.saliency(picture, "a lion", layer="coars")


def test_every_form_of_a_picture_gets_one_answer(explainer: Explainer, tmp_path: Path) -> None:
    picture = halves("a cow", "a lion")
    picture.save(tmp_path / "a.png")
    pixels = np.asarray(picture)
    tensor = torch.from_numpy(pixels.copy()).permute(2, 0, 1)
    forms = [tmp_path / "a.png", pixels, tensor, tensor.float() / 255, explainer.look(picture)]
    expected = explainer.describe(picture, layer="fine", at=RIGHT)
    assert [explainer.describe(form, layer="fine", at=RIGHT) for form in forms] == [expected] * len(forms)


def test_many_are_described_as_each_alone(untaught: Explainer) -> None:
    picture = halves("a cow", "a lion")
    alone = [untaught.describe(picture, layer=item.layer, at=item.at, box=item.box) for item in ASKED]
    together = untaught.describe_many(picture, ASKED)
    for one, other in zip(alone, together, strict=True):
        assert (one.text, one.row, one.column, one.box) == (other.text, other.row, other.column, other.box)
        assert one.margin is not None
        assert other.margin is not None
        assert one.margin.nats == pytest.approx(other.margin.nats, abs=1e-3)
        assert one.margin.low == pytest.approx(other.margin.low, abs=1e-3)
    plain = untaught.describe_many(picture, ASKED, margin=False)
    assert [item.text for item in plain] == [item.text for item in together]
    assert {(item.margin, item.agreement, item.weak) for item in plain} == {(None, None, None)}
    assert untaught.describe_many(picture, []) == []


def nats_of(model: LanguageModel, prefix: Tensor | None, text: list[int]) -> float:
    """A text's log-likelihood, token by token, each with a full forward pass of its own."""
    total = 0.0
    table = model.model.get_input_embeddings().weight
    bos = table[[model.bos]]
    before = bos if prefix is None else torch.cat([bos, prefix, bos, prefix, bos])
    for place, token in enumerate(text):
        fed = torch.cat([before, table[text[:place]]])[None]
        with torch.no_grad():
            total += float(model.model(inputs_embeds=fed).logits[0, -1].log_softmax(dim=-1)[token])
    return total


def test_margins_and_agreement_by_a_slow_loop(untaught: Explainer) -> None:
    """The description after its own prefix, after a grey picture's, after none; and after each resampled one."""
    model, layer = untaught.language_model, untaught.layers[0]
    blocks = np.random.default_rng(0).integers(0, 256, (4, 8, 3), dtype=np.uint8)  # no location is like its neighbours
    picture = Image.fromarray(blocks).resize((200, 100), Image.Resampling.NEAREST)
    found = untaught.describe(picture, layer="fine", at=RIGHT, max_new_tokens=5, resamples=6)
    row, column = 2, 6
    assert (found.row, found.column) == (row, column)

    def prefix(vector: Tensor) -> Tensor:
        features = [vector[None], torch.zeros(1, untaught.layers[1].channels)]
        with torch.no_grad():
            return untaught.translator(features, torch.tensor([[True, False]]))[0]

    maps, blank = untaught.look(picture).maps["fine"], untaught.look(GREY).maps["fine"]
    (tokens,) = model.write_tokens(prefix(maps[row, column])[None], 5)
    assert model.decode(tokens) == found.text
    text = tokens[:-1] if tokens[-1] == model.eos else tokens
    null = max(nats_of(model, None, text), nats_of(model, prefix(blank[row, column]), text))
    there = torch.zeros(layer.locations, dtype=torch.bool)
    there[row * layer.width + column] = True
    again, same = [], []
    for mask in resampled(there, layer, 6, torch.Generator().manual_seed(0)):
        kept = [maps[divmod(int(place), layer.width)] for place in mask.nonzero().flatten()]
        other = prefix(torch.stack(kept).mean(dim=0))
        again.append(nats_of(model, other, text) - null)
        same.append(model.write_tokens(other[None], 5) == [tokens])
    assert found.margin is not None
    assert found.margin.nats == pytest.approx(nats_of(model, prefix(maps[row, column]), text) - null, abs=1e-3)
    assert found.margin.low == pytest.approx(np.percentile(again, 2.5), abs=1e-3)
    assert found.margin.high == pytest.approx(np.percentile(again, 97.5), abs=1e-3)
    assert found.margin.resamples == 6
    assert found.agreement == pytest.approx(np.mean(same))
    assert np.mean(same) < 1, "the test would not notice an agreement that is not looked at"
    assert found.margin.high - found.margin.low > 0.1


def test_nothing_in_a_blank_picture_is_more_than_weak(explainer: Explainer, untaught: Explainer) -> None:
    """Its own reading is the blind one."""
    for one in (explainer, untaught):
        for found in one.describe_many(GREY, [Asked(None), Asked("fine"), Asked("coarse", (3, 3))]):
            assert found.margin is not None
            assert found.margin.nats <= 1e-4
            assert found.weak


def test_weak_is_an_interval_that_reaches_zero(explainer: Explainer) -> None:
    found = explainer.describe(halves("a dog", "a cow"), layer="fine", at=LEFT)
    assert found.margin is not None
    for low, high, weak in ((0.2, 2.0, False), (0.0, 2.0, True), (-1.0, 2.0, True), (-2.0, -1.0, True)):
        assert replace(found, margin=replace(found.margin, low=low, high=high)).weak is weak
    assert found.as_dict()["weak"] is False


def test_a_text_of_no_words_gains_nothing(explainer: Explainer) -> None:
    model = explainer.language_model
    found = read(model, torch.randn(2, 3, model.width), [[model.eos], [5, model.eos]])
    assert found.nats[0] == 0
    assert found.nats[1] < 0


@pytest.mark.parametrize("place", [0, 4, 18, 31])
def test_a_single_location_is_kept_among_its_neighbours(place: int) -> None:
    layer = LayerSpec(name="l", channels=1, height=4, width=8)
    there = torch.zeros(32, dtype=torch.bool)
    there[place] = True
    keep = resampled(there, layer, 400, torch.Generator().manual_seed(1)).reshape(400, 4, 8)
    rows, columns = keep.any(dim=0).nonzero().unbind(dim=1)
    row, column = divmod(place, 8)
    assert keep[:, row, column].all()
    assert int((rows - row).abs().max()) == int((columns - column).abs().max()) == 1
    others = keep.float().mean(dim=0)[rows, columns]
    assert ((others - 0.5).abs() < 0.1).sum() == len(others) - 1


def test_of_several_locations_half_are_kept_and_of_one_on_its_own_all() -> None:
    layer = LayerSpec(name="l", channels=2, height=4, width=8)
    there = torch.arange(32) % 3 == 0
    keep = resampled(there, layer, 400, torch.Generator().manual_seed(1))
    assert not (keep & ~there).any()
    assert keep.any(dim=1).all()
    assert (keep.float().mean(dim=0)[there] - 0.5).abs().max() < 0.1
    one = LayerSpec(name="l", channels=2, height=1, width=1)
    assert resampled(torch.tensor([True]), one, 5, torch.Generator()).all()
    features = torch.randn(4, 8, 2)
    slow = [features.reshape(32, 2)[mask].mean(dim=0) for mask in keep[:5]]
    torch.testing.assert_close(means(features, keep[:5]), torch.stack(slow))


def test_a_live_module_is_left_as_it_was(parts: Own) -> None:
    """In training or not, part by part; no hooks, no gradients switched off."""
    module = Colours()
    module.load_state_dict(parts.module.state_dict())
    module.train()
    module.coarse.eval()
    before = {name: part.training for name, part in module.named_modules()}
    explainer = explain(replace(parts, module=module))
    found = explainer.describe(halves("a dog", "a lion"), layer="fine", at=LEFT)
    assert found.text == "a dog"
    assert {name: part.training for name, part in module.named_modules()} == before
    assert all(parameter.requires_grad for parameter in module.parameters())
    assert not any(part._forward_hooks for part in module.modules())


def test_layers_of_a_module_are_found_as_the_layers_command_finds_them(parts: Own) -> None:
    """Without taps by their names; a card whose layers are called otherwise says which there are."""
    found = opening.taps_of(parts.module, rename(parts, {"fine": "fine.0", "coarse": "coarse.1"}).card.store)
    assert [tap.module for tap in found] == ["fine.0", "coarse.1"]
    with pytest.raises(InputError, match=r"found none called 'coars'; it has fine, coarse; .*taps="):
        explain(rename(parts, {"coarse": "coars"}))


def rename(parts: Own, names: dict[str, str]) -> Own:
    layers = [layer.model_copy(update={"name": names.get(layer.name, layer.name)}) for layer in parts.card.store.layers]
    store = parts.card.store.model_copy(update={"layers": tuple(layers)})
    return replace(parts, card=replace(parts.card, store=store))


def test_a_module_with_other_weights_or_shapes_is_refused(parts: Own) -> None:
    other = Colours()
    with pytest.raises(InputError) as raised:
        explain(replace(parts, module=other))
    assert state_digest(other) in str(raised.value)
    assert parts.card.store.weights in str(raised.value)
    taps = (Tap("fine", "coarse"), Tap("coarse", "fine"))
    with pytest.raises(InputError, match=r"fine of 6 × 4 × 8, got 5 × 2 × 3"):
        Explainer.from_module(parts.translator, parts.card, parts.module, taps, language_model=parts.language_model)


def test_random_weights_are_taken_as_they_are_and_said_so(parts: Own, capsys: pytest.CaptureFixture[str]) -> None:
    card = replace(parts.card, store=parts.card.store.model_copy(update={"weights": "random:3"}))
    explain(replace(parts, card=card))
    assert "no digest is kept" in " ".join(capsys.readouterr().err.split())


def test_another_language_model_is_refused(parts: Own, tmp_path: Path) -> None:
    wide = LanguageModel(str(tiny.language_model(tmp_path, hidden=32)), device=CPU, dtype=torch.float32, repeats=2)
    with pytest.raises(InputError, match="16 wide, got one of width 32"):
        explain(replace(parts, language_model=wide))
    once = LanguageModel(parts.card.language_model, device=CPU, dtype=torch.float32)
    with pytest.raises(InputError, match="reads the prefix 2 times"):
        explain(replace(parts, language_model=once))


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (
            lambda one: one.describe(GREY, layer="fin"),
            r"layer 'fin': expected one of fine, coarse; did you mean 'fine'",
        ),
        (lambda one: one.describe(GREY, layer="x9"), r"expected one of fine, coarse$"),
        (lambda one: one.describe(GREY, at=(90, 3)), r"picture of 90 × 70 pixels, x from 0 to 89"),
        (lambda one: one.describe(GREY, layer="fine", box=(5, 5, 5, 9)), "which is empty"),
        (lambda one: one.describe(GREY, max_new_tokens=0), "at least one new token"),
        (lambda one: one.describe(GREY, resamples=0), "at least one new token and one resample"),
    ],
)
def test_wrong_questions_are_answered_in_words(
    explainer: Explainer, ask: Callable[[Explainer], Description], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        ask(explainer)


def test_what_another_explainer_looked_at_is_refused(explainer: Explainer) -> None:
    other = Looked((4, 4), {"fine": torch.zeros(4, 8, 7), "coarse": torch.zeros(2, 3, 5)})
    with pytest.raises(InputError, match="of another; look again"):
        explainer.describe(other)


def test_without_a_name_the_packages_own_translator_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "DEMO", tmp_path / "demo")
    with pytest.raises(InputError, match=r"did not come with this installation .*--translator .*--run"):
        Explainer.from_pretrained()
    with pytest.raises(InputError, match="expected a trained translator, found none; run `devil-pipe train`"):
        Explainer.from_run(tmp_path)
