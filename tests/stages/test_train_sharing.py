"""A shared translator: the same numbers after a move, a card with figures beside their controls, refusals in words."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
import yaml
from safetensors.torch import load_file

from devil_pipe.stages.train import checkpoint
from devil_pipe.stages.train.config import TranslatorConfig
from devil_pipe.stages.train.model_card import About
from devil_pipe.stages.train.sharing import export, from_pretrained
from devil_pipe.stages.train.translator import Translator, build
from devil_pipe.store.errors import InputError, UsageError
from devil_pipe.store.schema import Identity

from .. import tiny

ABOUT = About("tiny", "pictures", "cc0-1.0", {"objects": "GPL-2", "scenes": "CC-BY-SA-3.0"})
FILES = ["README.md", "config.json", "translator.safetensors"]
WIDTH = 24


def identity(**more: object) -> Identity:
    values = {"backbone": "effnet_lite0", "weights": "f" * 64, "layers": tiny.LAYERS, "transform": {}, "index": "0"}
    return Identity.model_validate({**values, "rows": 69, **more})


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A run as training and evaluation leave it; figures are made up, so that each can be told in the card."""
    config = TranslatorConfig(layers=1, width=16, heads=2, feedforward=32, queries=3)
    torch.manual_seed(0)
    translator = build(config, tiny.LAYERS, WIDTH, 2.5)
    card = checkpoint.Card(
        translator=config,
        prefix_norm=2.5,
        prefix_repeats=2,
        language_model="gpt2",
        store=identity(),
        warmup="alignment",
        seed=7,
        data_note="Composites of squares.",
    )
    folder = tmp_path / "runs" / "tiny"
    checkpoint.save(folder / "checkpoint", translator, card)
    put(folder / "train" / "summary.json", {"captions": {"train": 48, "val": 8}})
    put(folder / "evaluate" / "metrics.json", metrics(card))
    return folder


def put(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def metrics(card: checkpoint.Card) -> dict[str, object]:
    def scores(number: float) -> dict[str, object]:
        cider = {"value": number, "low": number - 0.01, "high": number + 0.01}
        return {"cider": cider, "spice": {"not_run": "needs jars"}}

    names = {"shuffled": 0.31, "mean": 0.32, "zero": 0.33, "lm_alone": 0.34}
    return {
        "run": "tiny",
        "data": "pictures",
        "seed": card.seed,
        "n_scored": 9,
        "n_broken": 1,
        "scores": {"all": scores(0.91), "fine": scores(0.71), "coarse": scores(0.81)},
        "controls": {name: scores(value) for name, value in sorted(names.items())},
        "layers": ["fine", "coarse"],
        "store_identity": card.store.digest,
        "interval": "95 % percentile bootstrap",
        "bertscore_settings": "not run",
    }


def exported(run_dir: Path, target: Path) -> Path:
    export(run_dir, target, ABOUT)
    return target


def prefix(translator: Translator) -> torch.Tensor:
    random = torch.Generator().manual_seed(1)
    features = [torch.randn(5, layer.channels, generator=random) for layer in tiny.LAYERS]
    return translator(features, torch.tensor([[True, True]] * 3 + [[True, False]] * 2))


def test_a_translator_moved_elsewhere_gives_the_same_prefix_tokens(run_dir: Path, tmp_path: Path) -> None:
    expected, card = checkpoint.load(run_dir / "checkpoint")
    folder = exported(run_dir, tmp_path / "out")
    shutil.rmtree(run_dir)
    moved = tmp_path / "far" / "away"
    moved.parent.mkdir()
    folder.rename(moved)
    assert sorted(path.name for path in moved.iterdir()) == FILES
    translator, read = from_pretrained(moved)
    assert read == card
    assert torch.equal(prefix(translator), prefix(expected))
    assert torch.equal(prefix(Translator.from_pretrained(str(moved))), prefix(expected))
    assert not translator.training
    assert not any(value.requires_grad for value in translator.parameters())


def test_the_configuration_says_what_the_translator_reads_and_writes_through(run_dir: Path, tmp_path: Path) -> None:
    config = json.loads((exported(run_dir, tmp_path / "out") / "config.json").read_text())
    card = config["card"]
    assert (card["language_model"], card["prefix_repeats"], card["translator"]["queries"]) == ("gpt2", 2, 3)
    assert (card["store"]["backbone"], card["store"]["weights"]) == ("effnet_lite0", "f" * 64)
    assert [layer["name"] for layer in card["store"]["layers"]] == ["fine", "coarse"]
    assert config["weights"]["size"] == (tmp_path / "out" / "translator.safetensors").stat().st_size


def test_the_card_has_data_scores_controls_and_licence(run_dir: Path, tmp_path: Path) -> None:
    text = (exported(run_dir, tmp_path / "out") / "README.md").read_text()
    _, header, body = text.split("---\n", 2)
    found = yaml.safe_load(header)
    assert (found["license"], found["library_name"]) == ("cc0-1.0", "devil-pipe")
    assert found["base_model"] == ["openai-community/gpt2"]
    for words in ("Composites of squares.", "objects: GPL-2", "n = 9 pictures", "training seed 7", "SPICE was not run"):
        assert words in body
    whole, alone = (line for line in body.splitlines() if line.startswith("| CIDEr"))
    cells = [f"{value:.3f} [{value - 0.01:.3f}, {value + 0.01:.3f}]" for value in (0.91, 0.31, 0.32, 0.33, 0.34)]
    assert whole == f"| CIDEr | {' | '.join(cells)} |"
    assert [cell.split()[0] for cell in alone.split("|")[2:-1]] == ["0.910", "0.710", "0.810"]
    header_line = next(line for line in body.splitlines() if "features of another picture" in line)
    assert [part.strip() for part in header_line.split("|")[2:-1]] == [
        "all layers",
        "features of another picture",
        "the mean feature",
        "zeros",
        "language model alone",
    ]
    weights = load_file(tmp_path / "out" / "translator.safetensors")
    assert f"| trained parameters | {sum(value.numel() for value in weights.values()):,} |" in body


def test_a_card_without_figures_or_licence_says_so(run_dir: Path, tmp_path: Path) -> None:
    (run_dir / "evaluate" / "metrics.json").unlink()
    export(run_dir, tmp_path / "out", About("tiny", "pictures"))
    text = (tmp_path / "out" / "README.md").read_text()
    assert "license: unknown" in text
    assert "chose no licence" in text
    assert "Not evaluated" in text
    assert "CIDEr" not in text


def test_random_weights_are_shouted(run_dir: Path, tmp_path: Path) -> None:
    model, card = checkpoint.load(run_dir / "checkpoint")
    drawn = dataclasses.replace(card, store=card.store.model_copy(update={"weights": "random:3"}))
    checkpoint.save(run_dir / "checkpoint", model, drawn)
    (run_dir / "evaluate" / "metrics.json").unlink()
    assert "weights are random (random:3)" in (exported(run_dir, tmp_path / "out") / "README.md").read_text()


def test_figures_of_another_training_are_refused(run_dir: Path, tmp_path: Path) -> None:
    path = run_dir / "evaluate" / "metrics.json"
    good = json.loads(path.read_text())
    for change, words in (({"seed": 8}, "seed 7.*seed 8"), ({"store_identity": "0" * 64}, "store 000000000000")):
        put(path, {**good, **change})
        with pytest.raises(InputError, match=words):
            exported(run_dir, tmp_path / "out")
    put(path, good)
    newer = path.stat().st_mtime + 5
    os.utime(run_dir / "checkpoint" / "translator.safetensors", (newer, newer))
    with pytest.raises(InputError, match="older than the checkpoint"):
        exported(run_dir, tmp_path / "out")
    put(path, [])
    with pytest.raises(InputError, match=r"metrics\.json: expected what `devil-pipe evaluate` writes"):
        exported(run_dir, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_language_model_in_a_folder_goes_by_its_name(run_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "models" / "lm").mkdir(parents=True)
    path = run_dir / "checkpoint" / "config.yaml"
    path.write_text(path.read_text().replace("language_model: gpt2", f"language_model: {tmp_path}/models/lm"))
    folder = exported(run_dir, tmp_path / "out")
    assert from_pretrained(folder)[1].language_model == "lm"
    assert all(str(tmp_path) not in (folder / name).read_text() for name in FILES[:2])


def test_what_lies_there_is_not_overwritten(run_dir: Path, tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.mkdir()
    exported(run_dir, target)  # an empty folder may be there
    before = {name: (target / name).read_bytes() for name in FILES}
    with pytest.raises(UsageError, match="--force"):
        exported(run_dir, target)
    export(run_dir, target, About("other", "pictures"), force=True)
    assert "# other" in (target / "README.md").read_text()
    assert (target / "translator.safetensors").read_bytes() == before["translator.safetensors"]
    (target / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"there is also notes\.txt"):
        export(run_dir, target, ABOUT, force=True)
    assert (target / "notes.txt").read_text() == "mine"
    with pytest.raises(UsageError, match="got a file"):
        export(run_dir, target / "notes.txt", ABOUT, force=True)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize("there", [False, True])
def test_a_stop_while_writing_leaves_what_was_there(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: bool
) -> None:
    target = tmp_path / "out"
    if there:
        exported(run_dir, target)

    def stop(*_: object) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr("devil_pipe.stages.train.sharing.model_card", stop)
    with pytest.raises(KeyboardInterrupt):
        export(run_dir, target, ABOUT, force=True)
    assert target.exists() == there
    if there:
        from_pretrained(target)
    assert {path.name for path in tmp_path.iterdir()} == {"runs", *(["out"] if there else [])}


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def change(**values: object) -> Callable[[Path], None]:
    def work(path: Path) -> None:
        put(path, {**json.loads(path.read_text()), **values})

    return work


@pytest.mark.parametrize(
    ("name", "damage", "words"),
    [
        ("translator.safetensors", Path.unlink, r"translator\.safetensors: expected the translator's weights, found"),
        ("translator.safetensors", cut, r"got \d+ bytes, SHA-256 .*damaged"),
        ("translator.safetensors", flip, r"damaged"),
        ("config.json", Path.unlink, r"config\.json: expected an exported translator, found none$"),
        ("config.json", cut, r"config\.json: expected JSON"),
        ("config.json", lambda path: path.write_bytes(b"\xff\xfe"), r"config\.json: expected JSON"),
        ("config.json", lambda path: put(path, {"model_type": "gpt2"}), "another kind of model"),
        ("config.json", lambda path: put(path, []), "another kind of model"),
        ("config.json", change(format_version=2), r"format_version 1, got 2 \(written by devil-pipe .*newer"),
        ("config.json", change(weights=None), "changed by hand"),
        ("config.json", change(card={}), r"config\.json: expected a translator's card"),
        ("config.json", change(card=3), r"config\.json: expected a translator's card"),
    ],
)
def test_a_damaged_folder_is_said_in_words(
    run_dir: Path, tmp_path: Path, name: str, damage: Callable[[Path], object], words: str
) -> None:
    folder = exported(run_dir, tmp_path / "out")
    damage(folder / name)
    with pytest.raises(InputError, match=words):
        from_pretrained(folder)


def test_weights_of_another_size_are_said_in_words(run_dir: Path, tmp_path: Path) -> None:
    folder = exported(run_dir, tmp_path / "out")
    config = json.loads((folder / "config.json").read_text())
    config["card"]["translator"]["layers"] = 2
    put(folder / "config.json", config)
    with pytest.raises(InputError, match=r"expected the weights that .*config\.json describes"):
        from_pretrained(folder)


def test_what_is_no_export_is_said_in_words(run_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="a run's checkpoint: `devil-pipe export RUN DIR`"):
        from_pretrained(run_dir / "checkpoint")
    with pytest.raises(InputError, match=r"none: expected the folder of an exported translator, or a name on the hub"):
        from_pretrained(tmp_path / "none")
    with pytest.raises(InputError, match="run `devil-pipe train` first"):
        exported(tmp_path, tmp_path / "out")


def test_a_name_on_the_hub_is_downloaded(run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the hub client's cache, laid out as it does: no network here."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    with pytest.raises(InputError, match=r"nobody/nothing: no such folder, and it cannot be fetched") as caught:
        from_pretrained("nobody/nothing")
    assert len(str(caught.value).splitlines()) == 1
    home = tmp_path / "hub" / "models--somebody--tiny"
    exported(run_dir, home / "snapshots" / ("a" * 40))
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text("a" * 40)
    expected, _ = checkpoint.load(run_dir / "checkpoint")
    assert torch.equal(prefix(Translator.from_pretrained("somebody/tiny")), prefix(expected))
