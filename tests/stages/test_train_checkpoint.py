"""Checkpoints and training states: what is written comes back, and what is damaged or foreign is named."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from devil_pipe.stages.train.checkpoint import (
    Card,
    Progress,
    load,
    read_progress,
    restore_progress,
    save,
    save_progress,
)
from devil_pipe.stages.train.config import (
    ClipCapConfig,
    ClipCapMlpConfig,
    ClipCapTransformerConfig,
    PhaseConfig,
    TranslatorConfig,
)
from devil_pipe.stages.train.loop import make_optimizer
from devil_pipe.stages.train.translator import ClipCap, Devil, Translator, build
from devil_pipe.store.errors import InputError
from devil_pipe.store.schema import Identity, LayerSpec

from .. import tiny

SIZE = TranslatorConfig(layers=1, width=8, heads=2, feedforward=12, queries=3)
STORE = Identity(backbone="tiny", weights="random:0", layers=tiny.LAYERS, transform={"size": 32}, index="abc", rows=4)
CARD = Card(
    translator=SIZE,
    prefix_norm=1.75,
    prefix_repeats=2,
    language_model="a model: with, signs #",
    store=STORE,
    warmup="alignment",
    seed=3,
    data_note="Möwen – only",
)
KEEP = torch.ones(2, 2, dtype=torch.bool)


def translator(seed: int = 0) -> Translator:
    torch.manual_seed(seed)
    return build(SIZE, tiny.LAYERS, 6, CARD.prefix_norm)


def features(seed: int = 0) -> list[torch.Tensor]:
    source = torch.Generator().manual_seed(seed)
    return [torch.randn(2, layer.channels, generator=source) for layer in tiny.LAYERS]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save(tmp_path / "checkpoint", translator(), CARD)
    return tmp_path / "checkpoint"


def test_a_checkpoint_comes_back(folder: Path) -> None:
    found, card = load(folder, STORE)
    assert card == CARD
    assert not found.training
    assert not any(value.requires_grad for value in found.parameters())
    assert all(torch.equal(value, translator().state_dict()[name]) for name, value in found.state_dict().items())
    assert torch.allclose(found(features(), KEEP), translator()(features(), KEEP), atol=1e-5)


def test_a_checkpoint_is_plain_yaml_and_tensors(folder: Path) -> None:
    assert {path.name for path in folder.iterdir()} == {"config.yaml", "translator.safetensors"}
    plain = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    assert plain["store"]["layers"][0] == {"name": "fine", "channels": 12, "height": 4, "width": 4}
    assert plain["data_note"] == "Möwen – only"
    assert set(load_file(folder / "translator.safetensors")) == set(translator().state_dict())


def test_a_card_from_before_there_were_kinds_is_devils(folder: Path) -> None:
    path = folder / "config.yaml"
    plain = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert plain["translator"].pop("kind") == "devil"
    path.write_text(yaml.safe_dump(plain, sort_keys=False, allow_unicode=True), encoding="utf-8")
    found, card = load(folder, STORE)
    assert isinstance(found, Devil)
    assert card == CARD


EMBEDDING = LayerSpec(name="embedding", channels=5, height=1, width=1)
CLIPCAPS = [ClipCapMlpConfig(queries=3), ClipCapTransformerConfig(layers=2, heads=2, clip_length=4, queries=3)]


@pytest.mark.parametrize("size", CLIPCAPS, ids=lambda size: size.kind)
def test_a_clipcap_checkpoint_says_its_kind_and_comes_back(tmp_path: Path, size: ClipCapConfig) -> None:
    torch.manual_seed(0)
    made = build(size, [EMBEDDING], 6, 1.75)
    save(tmp_path, made, replace(CARD, translator=size, store=STORE.model_copy(update={"layers": (EMBEDDING,)})))
    assert yaml.safe_load((tmp_path / "config.yaml").read_text(encoding="utf-8"))["translator"]["kind"] == size.kind
    found, card = load(tmp_path)
    assert isinstance(found, ClipCap)
    assert card.translator == size
    vectors, keep = [torch.randn(2, 5)], torch.ones(2, 1, dtype=torch.bool)
    assert torch.allclose(found(vectors, keep), made.eval()(vectors, keep), atol=1e-6)


@pytest.mark.parametrize("kind", ["clipcap-mlp", "clipcap-transformer"])
def test_another_kinds_weights_are_named(folder: Path, kind: str) -> None:
    """DeViL's weights under a card that says ClipCap, on the store of several layers or on one of an embedding."""
    for layers in (STORE.layers, (EMBEDDING,)):
        save(folder, translator(), replace(CARD, store=STORE.model_copy(update={"layers": layers})))
        plain = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
        plain["translator"] = {"kind": kind}
        (folder / "config.yaml").write_text(yaml.safe_dump(plain), encoding="utf-8")
        with pytest.raises(InputError, match=r"translator\.safetensors: expected the weights that .*config\.yaml"):
            load(folder)


def test_an_unknown_kind_is_named(folder: Path) -> None:
    text = (folder / "config.yaml").read_text(encoding="utf-8").replace("kind: devil", "kind: lens")
    (folder / "config.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=r"config\.yaml: .*kind: expected devil, clipcap-.*got 'lens'"):
        load(folder)


def test_equal_weights_are_equal_bytes(folder: Path, tmp_path: Path) -> None:
    save(tmp_path / "again", translator(), CARD)
    for name in ("config.yaml", "translator.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()


@pytest.mark.parametrize("name", ["config.yaml", "translator.safetensors"])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(InputError, match=name):
        load(folder)


def test_a_missing_checkpoint_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"checkpoint/config\.yaml: expected a trained.*run `devil-pipe train` first"):
        load(tmp_path / "checkpoint")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "- a\n- b\n",
        "translator: [",
        "\xff\xfe",
        "!!python/object/apply:os.getcwd []",
        "translator: {layers: 1}\n",
        "translator: {layers: -1}\nstore: {}\n",
    ],
)
def test_a_damaged_card_is_named(folder: Path, text: str) -> None:
    (folder / "config.yaml").write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match=r"config\.yaml: expected a translator's card"):
        load(folder)


@pytest.mark.parametrize("change", [{"surprise": 1}, {"seed": None, "warmup": None}])
def test_a_card_with_an_unknown_or_missing_key_is_named(folder: Path, change: dict[str, int | None]) -> None:
    plain = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8")) | change
    kept = {key: value for key, value in plain.items() if value is not None}
    (folder / "config.yaml").write_text(yaml.safe_dump(kept), encoding="utf-8")
    with pytest.raises(InputError, match=r"config\.yaml.*(surprise|warmup)"):
        load(folder)


@pytest.mark.parametrize("damage", ["cut", "garbage", "empty", "renamed", "shape", "extra"])
def test_damaged_weights_are_named(folder: Path, damage: str) -> None:
    path = folder / "translator.safetensors"
    tensors = load_file(path)
    content = path.read_bytes()
    if damage == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "garbage":
        path.write_bytes(b"\x80\x04not a safetensors file at all")
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "renamed":
        save_file({f"module.{name}": value for name, value in tensors.items()}, path)
    elif damage == "shape":
        save_file(tensors | {"queries": torch.zeros(4, 8)}, path)
    else:
        save_file(tensors | {"more": torch.zeros(1)}, path)
    with pytest.raises(
        InputError, match=r"translator\.safetensors: expected the weights that .*config\.yaml describes"
    ):
        load(folder)


def test_a_checkpoint_of_another_store_names_both_sides(folder: Path) -> None:
    other = STORE.model_copy(update={"backbone": "clip_rn50", "rows": 9})
    with pytest.raises(InputError, match="trained on another store") as caught:
        load(folder, other)
    assert "backbone: 'tiny' against 'clip_rn50'" in str(caught.value)
    assert "rows: 4 against 9" in str(caught.value)
    assert "weights" not in str(caught.value)


def steps(model: Translator, optimizer: torch.optim.Optimizer, seeds: range) -> None:
    for seed in seeds:
        model(features(seed), KEEP).pow(2)[..., 0].sum().backward()
        optimizer.step()
        optimizer.zero_grad()


def test_a_restored_state_goes_on_as_if_it_had_never_stopped(tmp_path: Path) -> None:
    phase = PhaseConfig(steps=9, lr=1e-2, weight_decay=0.1)
    whole, stopped, resumed = translator(), translator(), translator(seed=5)
    steps(whole, make_optimizer(whole, phase), range(8))
    optimizer = make_optimizer(stopped, phase)
    steps(stopped, optimizer, range(5))
    at = Progress("language", 5, 12.5, "digest")
    save_progress(tmp_path / "state.safetensors", stopped, optimizer, at)
    assert read_progress(tmp_path / "state.safetensors") == at
    again = make_optimizer(resumed, phase)
    restore_progress(tmp_path / "state.safetensors", resumed, again)
    steps(resumed, again, range(5, 8))
    expected = whole.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in resumed.state_dict().items())
    assert not all(torch.equal(value, expected[name]) for name, value in stopped.state_dict().items())


def test_no_state_is_none(tmp_path: Path) -> None:
    assert read_progress(tmp_path / "state.safetensors") is None


@pytest.mark.parametrize("content", [b"", b"garbage", None])
def test_a_damaged_state_says_that_it_can_be_removed(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "state.safetensors"
    if content is None:
        save_file({"a": torch.zeros(1)}, path)  # safetensors, but of something else
    else:
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"state\.safetensors: expected a training state; remove it to start again"):
        read_progress(path)


def test_a_stop_while_writing_leaves_the_old_checkpoint(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (folder / "translator.safetensors").read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(OSError, match="No space"):
            save(folder, translator(seed=1), replace(CARD, seed=4))
    assert (folder / "translator.safetensors").read_bytes() == before
    assert {path.name for path in folder.iterdir()} == {"config.yaml", "translator.safetensors"}
