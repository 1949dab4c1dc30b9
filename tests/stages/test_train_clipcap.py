"""ClipCap's mappers against arithmetic by hand and the published counts, and the same harness trained with them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor
from typer.testing import CliRunner

from devil_pipe.pipeline.cli import app
from devil_pipe.pipeline.config import Run
from devil_pipe.stages.evaluate.conditions import Conditions
from devil_pipe.stages.evaluate.run import open_run
from devil_pipe.stages.prepare.index import index_digest, read_index
from devil_pipe.stages.train.batches import whole_features
from devil_pipe.stages.train.checkpoint import load
from devil_pipe.stages.train.config import ClipCapConfig, ClipCapMlpConfig, ClipCapTransformerConfig
from devil_pipe.stages.train.run import run as train
from devil_pipe.stages.train.translator import ClipCap, build, planned_parameters, trainable_parameters
from devil_pipe.store.errors import UsageError
from devil_pipe.store.schema import Identity, LayerSpec
from devil_pipe.store.writer import StoreWriter

from .. import tiny
from .conftest import open_project

SOURCE = Path(__file__).resolve().parents[2]
MLP = ClipCapMlpConfig(queries=3)
TRANSFORMER = ClipCapTransformerConfig(layers=2, heads=2, mlp_ratio=1.5, clip_length=2, queries=3)
BOTH = pytest.mark.parametrize("size", [MLP, TRANSFORMER], ids=lambda size: size.kind)


def embedding(channels: int) -> LayerSpec:
    return LayerSpec(name="embedding", channels=channels, height=1, width=1)


def small(size: ClipCapConfig, prefix_norm: float | None = None) -> ClipCap:
    """From 5 channels to a language model of width 8, all weights far from 0."""
    torch.manual_seed(0)
    made = build(size, [embedding(5)], 8, prefix_norm)
    assert isinstance(made, ClipCap)
    with torch.no_grad():
        for value in made.parameters():
            value.normal_(std=0.5)
    return made


def vectors(batch: int = 4) -> Tensor:
    return torch.randn(batch, 5, generator=torch.Generator().manual_seed(1))


def seen(batch: int = 4) -> Tensor:
    return torch.ones(batch, 1, dtype=torch.bool)


def by_formula(size: ClipCapConfig, channels: int, width: int) -> int:
    """Weights and biases of every matrix, as the paper describes the mappers."""
    flat = size.queries * width
    if isinstance(size, ClipCapMlpConfig):
        return channels * (flat // 2) + flat // 2 + (flat // 2) * flat + flat
    inner = int(size.mlp_ratio * width)
    attention = 4 * width * width + width  # queries, keys and values have no biases, what follows them has
    feedforward = (width * inner + inner) + (inner * width + width)
    spread = channels * size.clip_length * width + size.clip_length * width
    return spread + flat + size.layers * (attention + feedforward + 2 * 2 * width)


@pytest.mark.parametrize(
    ("size", "channels", "exact", "published"),
    [
        (ClipCapTransformerConfig(), 512, 41_745_408, 42),
        (ClipCapTransformerConfig(), 640, 42_728_448, 43),
        (ClipCapMlpConfig(), 512, 31_468_800, 31),
        (ClipCapMlpConfig(), 640, 31_960_320, 32),
    ],
)
def test_the_published_sizes_with_gpt2(size: ClipCapConfig, channels: int, exact: int, published: int) -> None:
    """In millions. Of the MLP the paper gives the sum with GPT2, which it trains: 156 million."""
    assert planned_parameters(size, [embedding(channels)], 768) == by_formula(size, channels, 768) == exact
    assert round(exact / 1e6) == published


@pytest.mark.parametrize("channels", [512, 640])
def test_the_mlp_mapper_and_gpt2_are_the_published_156_million(channels: int) -> None:
    from transformers import AutoModelForCausalLM, GPT2Config

    with torch.device("meta"):
        gpt2 = trainable_parameters(AutoModelForCausalLM.from_config(GPT2Config()))
    assert round((planned_parameters(ClipCapMlpConfig(), [embedding(channels)], 768) + gpt2) / 1e6) == 156


@pytest.mark.parametrize(
    ("run", "kind", "parameters"),
    [
        ("cc3m-clip_vit_b32-clipcap-gpt2", "clipcap-transformer", 41_745_408),
        ("cc3m-clip_vit_b32-clipcap_mlp-gpt2", "clipcap-mlp", 31_468_800),
        ("cc3m-clip_rn50-opt", "devil", 88_411_392),
        ("cc3m-clip_vit_b32-opt", "devil", 88_019_712),
        ("cc3m-clip_vit_b32-gpt2", "devil", 40_141_024),
    ],
)
def test_a_dry_run_prints_the_parameters(run: str, kind: str, parameters: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the whole chain of configurations: the backbone's layers, the language model's width, the translator."""
    monkeypatch.chdir(SOURCE)
    told = CliRunner().invoke(app, ["train", run, "--dry-run", "--json"])
    values = json.loads(told.stdout)
    assert (values["translator"], values["trainable_parameters"]) == (kind, parameters)
    plain = CliRunner().invoke(app, ["train", run, "--dry-run"]).stdout
    assert f"trainable_parameters: {parameters}\n" in plain


@BOTH
def test_a_built_mapper_has_the_planned_parameters(size: ClipCapConfig) -> None:
    found = trainable_parameters(small(size))
    assert found == planned_parameters(size, [embedding(5)], 8) == by_formula(size, 5, 8)


def test_the_mlp_is_tanh_between_two_matrices() -> None:
    made = small(MLP)
    at = {name: value.double().numpy() for name, value in made.state_dict().items()}
    found = made([vectors()], seen()).detach().numpy()
    for row, vector in enumerate(vectors().double().numpy()):
        hidden = np.tanh(at["mapper.hidden.weight"] @ vector + at["mapper.hidden.bias"])
        flat = at["mapper.out.weight"] @ hidden + at["mapper.out.bias"]
        assert hidden.shape == (MLP.queries * 8 // 2,)
        for query in range(MLP.queries):
            np.testing.assert_allclose(found[row, query], flat[8 * query : 8 * query + 8], atol=1e-5)


def norm(values: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    centred = values - values.mean(dim=-1, keepdim=True)
    return centred / (centred.pow(2).mean(dim=-1, keepdim=True) + 1e-5).sqrt() * weight + bias


def transformer_by_hand(made: ClipCap, vector: Tensor) -> Tensor:
    """Of one picture, a token and a head at a time in float64."""
    at = {name.removeprefix("mapper."): value.double() for name, value in made.state_dict().items()}
    flat = at["project.weight"] @ vector.double() + at["project.bias"]
    tokens = [flat[8 * place : 8 * place + 8] for place in range(TRANSFORMER.clip_length)] + list(at["constants"])
    for layer in range(TRANSFORMER.layers):
        own = {name: at[f"encoder.layers.{layer}.{name}"] for name in LAYER}
        normed = [norm(token, own["norm1.weight"], own["norm1.bias"]) for token in tokens]
        asked, keys, values = own["self_attn.in_proj_weight"].chunk(3)
        mixed = []
        for token in normed:
            heads = []
            for head in range(TRANSFORMER.heads):
                part = slice(4 * head, 4 * head + 4)
                scores = [float((asked[part] @ token) @ (keys[part] @ other)) / math.sqrt(4) for other in normed]
                weights = [math.exp(score) / sum(map(math.exp, scores)) for score in scores]
                heads.append(
                    sum(weight * (values[part] @ other) for weight, other in zip(weights, normed, strict=True))
                )
            mixed.append(own["self_attn.out_proj.weight"] @ torch.cat(heads) + own["self_attn.out_proj.bias"])
        tokens = [token + more for token, more in zip(tokens, mixed, strict=True)]
        for place, token in enumerate(tokens):
            inner = own["linear1.weight"] @ norm(token, own["norm2.weight"], own["norm2.bias"]) + own["linear1.bias"]
            tokens[place] = token + own["linear2.weight"] @ inner.clamp(min=0) + own["linear2.bias"]
    return torch.stack(tokens[-TRANSFORMER.queries :])


LAYER = [f"{part}.{kind}" for part in ("norm1", "norm2", "linear1", "linear2") for kind in ("weight", "bias")]
LAYER += ["self_attn.in_proj_weight", "self_attn.out_proj.weight", "self_attn.out_proj.bias"]


@pytest.mark.parametrize("training", [True, False])
def test_the_transformer_is_worked_out_by_hand(training: bool) -> None:
    """In eval mode PyTorch may take another way through the encoder (its fast path)."""
    made = small(TRANSFORMER).train(training)
    with torch.set_grad_enabled(training):
        found = made([vectors()], seen())
    expected = torch.stack([transformer_by_hand(made, vector) for vector in vectors()])
    assert found.shape == (4, TRANSFORMER.queries, 8)
    assert torch.allclose(found.double(), expected, atol=1e-4)


@BOTH
def test_the_gradient_reaches_every_part(size: ClipCapConfig) -> None:
    made = small(size)
    made([vectors()], seen()).pow(2).sum().backward()
    assert all(value.grad is not None and bool(value.grad.any()) for value in made.parameters())


@BOTH
def test_prefix_norm_is_every_prefix_tokens_length(size: ClipCapConfig) -> None:
    bare, scaled = (small(size, norm)([vectors()], seen()) for norm in (None, 2.5))
    assert torch.allclose(scaled, bare * 2.5 / bare.norm(dim=-1, keepdim=True), atol=1e-5)


@BOTH
@pytest.mark.parametrize(
    ("layers", "found"),
    [
        ([embedding(5), embedding(7)], r"embedding \(1×1\), embedding \(1×1\)"),
        ([LayerSpec(name="L49", channels=5, height=7, width=7)], r"L49 \(7×7\)"),
    ],
)
def test_more_than_one_vector_is_refused(size: ClipCapConfig, layers: list[LayerSpec], found: str) -> None:
    with pytest.raises(
        UsageError, match=f"{size.kind} takes one layer of one location.*got {found}; store one: `devil"
    ):
        build(size, layers, 8)


def test_heads_that_do_not_divide_the_language_model_are_named() -> None:
    with pytest.raises(UsageError, match=r"translator\.heads: expected a divisor of .* width, 8, got 3"):
        build(ClipCapTransformerConfig(heads=3), [embedding(5)], 8)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose store `vector` holds one vector a picture: what stands on it, and before what."""
    folder = tiny.project(tmp_path_factory.mktemp("clipcap"))
    index = read_index(folder / "data" / tiny.NAME / "index.parquet")
    layer = embedding(24)
    random = np.random.default_rng(0)
    codes = {name: random.normal(size=24) for name in (*tiny.OBJECTS, *tiny.NOVEL, *tiny.SCENES)}
    identity = Identity(
        backbone="tiny",
        weights="random:0",
        layers=(layer,),
        transform={"image_size": tiny.FRAME},
        index=index_digest(index),
        rows=len(index),
    )
    rows = index.to_pylist()
    writer = StoreWriter(folder / "stores" / "vector", identity, 16)
    for shard, span in enumerate(writer.ranges):
        values = np.stack([codes[rows[row]["object"]] + codes[rows[row]["scene"]] for row in span])[:, None]
        broken = {row: rows[row]["reason"] for row in span if rows[row]["reason"]}
        writer.write_shard(shard, {layer.name: values.astype(np.float16)}, broken)
    writer.finalise()
    store = {"data": tiny.NAME, "backbone": "clip_vit_b32", "weights": "random", "layers": ["embedding"]}
    (folder / "configs/stores/vector.yaml").write_text(yaml.safe_dump(store))
    return folder


def a_run(root: Path, name: str, translator: dict[str, Any], **change: Any) -> Run:
    values = tiny.run_values(root, translator=translator, **change) | {"store": "vector"}
    (root / f"configs/runs/{name}.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    return open_project(root, name)


SIZES = {
    "clipcap-mlp": {"kind": "clipcap-mlp", "queries": 3},
    "clipcap-transformer": {"kind": "clipcap-transformer", "layers": 1, "heads": 2, "clip_length": 2, "queries": 3},
}
PHASE = {"steps": 40, "batch_size": 16, "lr": 1e-2, "min_lr": 1e-3, "warmup_steps": 4, "clip_norm": 1.0}


@pytest.fixture(scope="module", params=SIZES)
def trained(request: pytest.FixtureRequest, root: Path) -> Run:
    """A run with the alignment warm-up and the ordinary loss, as the tiny run of DeViL's translator."""
    run = a_run(root, request.param, SIZES[request.param])
    train(run.train)
    return run


def test_it_learns_from_its_embedding_in_both_phases(trained: Run) -> None:
    log = tiny.losses(trained.train.out / "train" / "log.jsonl")
    for phase in ("alignment", "language"):
        losses = [line["loss"] for line in log if line["phase"] == phase and "loss" in line]
        assert sum(losses[-5:]) < 0.7 * sum(losses[:5]), phase
    gaps = [line["val_loss_shuffled"] - line["val_loss"] for line in log if "val_loss" in line]
    assert gaps[-1] > 0.1


def test_the_checkpoint_and_the_summary_say_the_kind_and_the_count(trained: Run) -> None:
    found, card = load(trained.train.out / "checkpoint")
    saved = load_file(trained.train.out / "checkpoint" / "translator.safetensors")
    summary = json.loads((trained.train.out / "train" / "summary.json").read_text())
    assert card.translator.kind == trained.train.run == summary["config"]["translator"]["kind"]
    assert summary["trainable_parameters"] == sum(value.numel() for value in saved.values())
    assert found.prefix_norm is not None


def test_it_is_described_beside_the_same_controls(trained: Run) -> None:
    config = trained.evaluate
    opened = open_run(config.out, config.store, config.data_dir, "cpu", "float32")
    rows = opened.rows("test")
    made = Conditions(
        opened.store,
        opened.translator,
        opened.language_model,
        training_rows=range(16),
        seed=0,
        max_new_tokens=4,
        batch_size=4,
    )
    assert made.names == ("all", "embedding", "shuffled", "mean", "zero", "lm_alone")
    captions = [opened.language_model.encode([opened.index[row]["captions"][0]])[0] for row in rows]
    found = made.outcomes(made.names, whole_features(opened.store, rows), captions)
    assert all(len(outcome.descriptions) == len(rows) for outcome in found.values())
    assert torch.equal(found["all"].nats, found["embedding"].nats), "there is one layer"
    own, others = found["all"].nats.sum(), [found[name].nats.sum() for name in made.names[2:]]
    assert own < min(others)


@pytest.mark.parametrize("kind", SIZES)
def test_no_dropout_has_an_effect_on_one_location(root: Path, kind: str) -> None:
    none: dict[str, Any] = {"warmup": {"kind": "none"}, "phase": {**PHASE, "steps": 3}, "validate_every": 3}
    weights = []
    for number, rate in enumerate((0.0, 0.9)):
        run = a_run(root, f"{kind}-{number}", SIZES[kind], dropout={"spatial": rate, "layer": rate}, **none)
        train(run.train)
        weights.append((run.train.out / "checkpoint" / "translator.safetensors").read_bytes())
        assert load(run.train.out / "checkpoint")[0].prefix_norm is None
    assert weights[0] == weights[1]


def test_training_on_maps_is_refused_in_words(root: Path) -> None:
    run = a_run(root, "maps", SIZES["clipcap-mlp"])
    values = run.train.model_copy(update={"store": str(root / "stores" / tiny.NAME)})
    with pytest.raises(UsageError, match=r"clipcap-mlp takes one layer .* got fine \(4×4\), coarse \(2×2\)"):
        train(values)
