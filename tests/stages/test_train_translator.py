"""The translator against arithmetic by hand: its size, its forward pass, and what a dropped layer may change."""

import math

import pytest
import torch
from torch import Tensor

from devil_pipe.stages.train.batches import Features
from devil_pipe.stages.train.config import PhaseConfig, TranslatorConfig
from devil_pipe.stages.train.loop import make_optimizer, translate
from devil_pipe.stages.train.translator import Devil, build, planned_parameters, trainable_parameters
from devil_pipe.store.schema import LayerSpec

SMALL = TranslatorConfig(layers=2, width=12, heads=3, feedforward=20, queries=4)
CHANNELS = (5, 7, 7)


def layers(channels: tuple[int, ...]) -> list[LayerSpec]:
    return [LayerSpec(name=f"l{place}", channels=count, height=2, width=2) for place, count in enumerate(channels)]


def small(prefix_norm: float | None = None) -> Devil:
    torch.manual_seed(0)
    made = build(SMALL, layers(CHANNELS), 9, prefix_norm)
    assert isinstance(made, Devil)
    with torch.no_grad():
        for value in made.parameters():
            value.normal_(std=0.5)
    return made


def features(batch: int = 3, seed: int = 1) -> list[Tensor]:
    source = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, count, generator=source) for count in CHANNELS]


def keeping(*layers: int, batch: int = 3) -> Tensor:
    keep = torch.zeros(batch, len(CHANNELS), dtype=torch.bool)
    keep[:, list(layers)] = True
    return keep


def by_formula(config: TranslatorConfig, channels: tuple[int, ...], out: int) -> int:
    width, inner = config.width, config.feedforward
    projections = sum(width * count + width for count in channels)
    embeddings = (len(channels) + config.queries) * width
    attention = 4 * (width * width + width)
    feedforward = (width * inner + inner) + (inner * width + width)
    norms = 2 * 2 * width
    return projections + embeddings + config.layers * (attention + feedforward + norms) + 2 * width + out * width + out


OPT = TranslatorConfig()
GPT2 = TranslatorConfig(layers=8, width=768, heads=8, feedforward=1532, queries=10)


@pytest.mark.parametrize(
    ("config", "channels", "out", "published", "exact"),
    [
        (OPT, (512, 1024, 2048), 768, 88e6, 88_411_392),
        (OPT, (768, 768, 768, 768), 768, 88e6, 88_019_712),
        (GPT2, (768, 768, 768), 768, 40e6, 40_141_024),
    ],
)
def test_the_papers_sizes(
    config: TranslatorConfig, channels: tuple[int, ...], out: int, published: float, exact: int
) -> None:
    assert planned_parameters(config, layers(channels), out) == by_formula(config, channels, out) == exact
    assert exact == pytest.approx(published, rel=0.01)


def test_parameters_of_a_built_translator_are_the_planned_ones() -> None:
    assert (
        trainable_parameters(small())
        == planned_parameters(SMALL, layers(CHANNELS), 9)
        == by_formula(SMALL, CHANNELS, 9)
    )


def norm(values: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    centred = values - values.mean(dim=-1, keepdim=True)
    return centred / (centred.pow(2).mean(dim=-1, keepdim=True) + 1e-5).sqrt() * weight + bias


def by_hand(made: Devil, values: list[Tensor], keep: Tensor) -> Tensor:
    """A pre-norm Transformer in float64, a picture and a head at a time; dropped layers are not there at all."""
    at = {name: value.double() for name, value in made.state_dict().items()}
    rows = []
    for row in range(len(keep)):
        tokens = [
            values[place][row].double() @ at[f"project.{place}.weight"].T
            + at[f"project.{place}.bias"]
            + at["layer_embedding"][place]
            for place in range(len(values))
            if keep[row, place]
        ]
        hidden = torch.stack([*tokens, *at["queries"]])
        for number in range(SMALL.layers):
            here = {
                name.removeprefix(f"encoder.layers.{number}."): value
                for name, value in at.items()
                if name.startswith(f"encoder.layers.{number}.")
            }
            seen = norm(hidden, here["norm1.weight"], here["norm1.bias"])
            mixed = (seen @ here["self_attn.in_proj_weight"].T + here["self_attn.in_proj_bias"]).chunk(3, dim=-1)
            heads = []
            for query, key, value in zip(*(item.chunk(SMALL.heads, dim=-1) for item in mixed), strict=True):
                heads.append((query @ key.T / math.sqrt(query.shape[-1])).softmax(dim=-1) @ value)
            out = torch.cat(heads, dim=-1) @ here["self_attn.out_proj.weight"].T + here["self_attn.out_proj.bias"]
            hidden = hidden + out
            seen = norm(hidden, here["norm2.weight"], here["norm2.bias"])
            inner = seen @ here["linear1.weight"].T + here["linear1.bias"]
            inner = inner * 0.5 * (1 + torch.erf(inner / math.sqrt(2)))
            hidden = hidden + inner @ here["linear2.weight"].T + here["linear2.bias"]
        last = norm(hidden[-SMALL.queries :], at["norm.weight"], at["norm.bias"])
        rows.append(last @ at["out.weight"].T + at["out.bias"])
    return torch.stack(rows)


@pytest.mark.parametrize("training", [True, False])
def test_forward_is_the_transformer_worked_out_by_hand(training: bool) -> None:
    """In eval mode PyTorch takes another way through the encoder (its fast path)."""
    made = small().train(training)
    keep = torch.tensor([[True, True, True], [False, True, False], [True, False, True]])
    with torch.set_grad_enabled(training):
        found = made(features(), keep)
    assert found.shape == (3, SMALL.queries, 9)
    assert torch.allclose(found.double(), by_hand(made, features(), keep), atol=1e-4)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("value", [1.0, 65_504.0, -65_504.0])
def test_a_dropped_layers_values_change_nothing(training: bool, value: float) -> None:
    made = small().train(training)
    other = features()
    other[1] = torch.full_like(other[1], value)
    with torch.set_grad_enabled(training):
        one, two = made(features(), keeping(0, 2)), made(other, keeping(0, 2))
        assert bool(one.isfinite().all())
        assert torch.equal(one, two)
        assert not torch.allclose(made(features(), keeping(0, 1)), made(other, keeping(0, 1)), atol=1e-3)


def test_dropping_a_layer_is_not_setting_it_to_zero() -> None:
    zeroed = features()
    zeroed[1] = torch.zeros_like(zeroed[1])
    assert not torch.allclose(small()(features(), keeping(0, 2)), small()(zeroed, keeping(0, 1, 2)), atol=1e-3)


def test_layers_are_told_apart_and_queries_too() -> None:
    """Two layers of one width swapped, and a layer's vector given as another layer's, read differently."""
    made = small()
    own = features()
    whole = made(own, keeping(0, 1, 2))
    assert not torch.allclose(whole, made([own[0], own[2], own[1]], keeping(0, 1, 2)), atol=1e-3)
    with torch.no_grad():  # with equal projections the layer embeddings alone tell them apart
        made.project[2].load_state_dict(made.project[1].state_dict())
    same = [own[0], own[1], own[1]]
    assert not torch.allclose(made(same, keeping(1)), made(same, keeping(2)), atol=1e-3)
    assert all(not torch.allclose(whole[:, 0], whole[:, number], atol=1e-3) for number in range(1, SMALL.queries))


def test_a_picture_does_not_see_its_batch() -> None:
    made, own = small().eval(), features()
    whole = translate(made, known(own), device=torch.device("cpu"))
    alone = torch.cat(
        [translate(made, known([item[row : row + 1] for item in own]), device=torch.device("cpu")) for row in range(3)]
    )
    parts = translate(made, known(own), device=torch.device("cpu"), size=2)
    assert torch.allclose(whole, alone, atol=1e-5)
    assert torch.allclose(whole, parts, atol=1e-5)


def known(layers: list[torch.Tensor]) -> Features:
    return Features(layers, torch.ones(len(layers[0]), len(layers), dtype=torch.bool))


def test_translate_looks_at_the_layers_it_is_told_to() -> None:
    made = small().eval()
    found = translate(made, known(features()), [1], device=torch.device("cpu"))
    assert torch.allclose(found.double(), by_hand(made, features(), keeping(1)), atol=1e-4)


def test_translate_looks_at_no_layer_that_knows_nothing_of_a_row() -> None:
    """Whatever stands in its place: each row reads as with the others alone."""
    made, own = small().eval(), features()
    there = torch.tensor([[True, True, True], [False, True, True], [True, False, False]])
    spoilt = [layer.masked_fill(~there[:, place, None], 1e4) for place, layer in enumerate(own)]
    found = translate(made, Features(spoilt, there), device=torch.device("cpu"))
    expected = torch.cat([made([item[row : row + 1] for item in own], there[row : row + 1]) for row in range(3)])
    assert torch.allclose(found, expected, atol=1e-5)
    assert not torch.allclose(found[1:], translate(made, known(own), device=torch.device("cpu"))[1:], atol=1e-3)


def test_the_gradient_reaches_every_part_but_a_dropped_layers() -> None:
    made = small()
    made(features(), keeping(0, 2)).pow(2).sum().backward()
    silent = {name for name, value in made.named_parameters() if value.grad is None or not value.grad.any()}
    assert silent == {"project.1.weight", "project.1.bias"}
    assert made.layer_embedding.grad is not None
    assert made.layer_embedding.grad.abs().sum(dim=1).bool().tolist() == [True, False, True]


def test_prefix_norm_is_every_prefix_tokens_length() -> None:
    bare, scaled = small()(features(), keeping(0, 1, 2)), small(2.5)(features(), keeping(0, 1, 2))
    assert torch.allclose(scaled.norm(dim=-1), torch.tensor(2.5), atol=1e-5)
    assert torch.allclose(bare * 2.5 / bare.norm(dim=-1, keepdim=True), scaled, atol=1e-5)


def test_weight_decay_spares_what_has_no_two_sides() -> None:
    made = small()
    groups = make_optimizer(made, PhaseConfig(steps=1, weight_decay=0.25)).param_groups
    decay = {id(value): group["weight_decay"] for group in groups for value in group["params"]}
    assert sum(len(group["params"]) for group in groups) == len(decay) == len(list(made.parameters()))
    spared = {name for name, value in made.named_parameters() if decay[id(value)] == 0}
    kinds = ("bias", "norm.weight", "norm1.weight", "norm2.weight", "layer_embedding", "queries")
    assert spared == {name for name, _ in made.named_parameters() if name.endswith(kinds)}
    assert {decay[id(value)] for name, value in made.named_parameters() if name not in spared} == {0.25}
