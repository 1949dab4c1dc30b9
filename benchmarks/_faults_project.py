"""A tiny project to be disturbed: pictures, a random backbone, a random language model, and what it holds undisturbed.

Everything is made by the product's own commands. An older index of the same pictures is prepared, extracted and trained
on first, so that there are old versions of every file to put back.
"""

from __future__ import annotations

import io
import shutil
import signal
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
import zarr
from _faults_process import CHANGES, SIGNAL, Arm, Commands, operations
from PIL import Image

NAME = "faults"
TARS, PICTURES, SHARD_ROWS = 4, 60, 8
BROKEN = 21  # a picture that was cut short before it was indexed
WORDS = ("red", "green", "blue", "grey", "small", "large")
ENCODINGS = ("float16", "uint8+zstd")
BASES = ("nothing", "half", "finished")
STORE = {
    "data": NAME,
    "backbone": "timm/test_resnet",
    "weights": "random",
    "layers": ["layer2.0", "layer4.0"],
    "image_size": 64,
    "shard_rows": SHARD_ROWS,
    "runtime": {"batch_size": 4, "decoders": 1, "device": "cpu"},
}
PHASE = {"batch_size": 8, "lr": 1e-2, "min_lr": 1e-3, "warmup_steps": 2, "clip_norm": 1.0}
RUN: dict[str, Any] = {
    "store": NAME,
    "seed": 1,
    "train": {
        "language_model": "lm",
        "translator": {"layers": 1, "width": 16, "heads": 2, "feedforward": 32, "queries": 3},
        "warmup": {"kind": "alignment", "phase": {"steps": 8, **PHASE}},
        "phase": {"steps": 12, **PHASE},
        "validate_every": 4,
        "take": "best",
    },
    "runtime": {"train": {"device": "cpu", "precision": "float32", "save_every_seconds": 0, "log_every": 1}},
}


@dataclass
class World:
    """One encoding's project at every point from which a trial may begin, and what it ends in."""

    encoding: str
    folder: Path
    rows: dict[str, np.ndarray]
    """Array → all its rows, as zarr-python reads the undisturbed store."""

    valid: np.ndarray
    keys: list[str]
    operations: dict[str, int]
    """`stage base kinds` → file operations of an undisturbed command."""

    def base(self, stage: str, base: str) -> Path:
        """The project as a command of the stage finds it: nothing done, half of it, or everything."""
        return self.folder / ("whole" if (stage, base) == ("train", "nothing") else f"{stage}-{base}")

    @property
    def older(self) -> Path:
        """The same project when its pictures had other captions."""
        return self.folder / "older"


def make(folder: Path, encoding: str, commands: Commands) -> World:
    """Make a world, or take the one that lies in the folder."""
    world = World(encoding, folder, {}, np.empty(0), [], {})
    if not (folder / "done").exists():
        shutil.rmtree(folder, ignore_errors=True)
        _build(world, commands)
        (folder / "done").write_text(yaml.safe_dump(world.operations))
    world.operations = yaml.safe_load((folder / "done").read_text())
    (group,) = [
        path
        for path in (world.folder / "whole" / "stores" / NAME).glob("*/zarr.json")
        if (path.parent / "valid").exists() and not (world.older / "stores" / NAME / path.parent.name).exists()
    ]
    opened = zarr.open_group(group.parent, mode="r")
    world.rows = {name: array[:] for name, array in opened.arrays() if name not in ("valid", "key")}
    world.valid, world.keys = np.asarray(opened["valid"][:]), [str(key) for key in opened["key"][:]]
    return world


def _build(world: World, commands: Commands) -> None:
    here = world.folder / "work"
    _pictures(here / "tars", shift=1)
    _configurations(here, world.encoding)
    _language_model(here / "lm")
    for command in ("prepare", "extract", "train"):
        _well(commands, here, command)
    shutil.copytree(here, world.older)
    shutil.rmtree(here / "runs")
    _pictures(here / "tars", shift=0)
    _well(commands, here, "prepare")
    _snapshot(world, here, "extract-nothing")
    _half(world, commands, here, "extract")
    _well(commands, here, "extract")
    _snapshot(world, here, "extract-finished")
    _snapshot(world, here, "whole")
    _half(world, commands, here, "train")
    _well(commands, here, "train")
    _snapshot(world, here, "train-finished")
    shutil.rmtree(here)
    for stage in ("extract", "train"):
        for base in BASES:
            shutil.copytree(world.base(stage, base), here)
            done = commands.run(here, "--quiet", stage, NAME, arm=Arm(-1, 0))
            assert done.code == 0, done.said
            world.operations |= {f"{stage} {base} {kind}": count for kind, count in operations(done.said).items()}
            shutil.rmtree(here)


def _well(commands: Commands, folder: Path, command: str) -> None:
    done = commands.run(folder, "--quiet", command, NAME)
    assert done.code == 0, done.said


def _snapshot(world: World, here: Path, name: str) -> None:
    shutil.copytree(here, world.folder / name)


def _half(world: World, commands: Commands, here: Path, stage: str) -> None:
    """What a command leaves that is killed after half of its work."""
    trial = world.folder / "trial"
    shutil.copytree(here, trial)
    whole = operations(commands.run(trial, "--quiet", stage, NAME, arm=Arm(-1, 0)).said)[CHANGES]
    shutil.rmtree(trial)
    shutil.copytree(here, trial)
    done = commands.run(trial, "--quiet", stage, NAME, arm=Arm(whole * 3 // 5, SIGNAL, value=signal.SIGKILL))
    assert done.code == -signal.SIGKILL, done.said
    trial.rename(world.folder / f"{stage}-half")


def _pictures(folder: Path, shift: int) -> None:
    """Tar shards of PNG pictures with captions; `shift` moves the captions on by some pictures."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for tar in range(TARS):
        with tarfile.open(folder / f"{tar:05d}.tar", "w") as file:
            for number in range(tar * PICTURES // TARS, (tar + 1) * PICTURES // TARS):
                pixels = (
                    np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8).repeat(4, 0).repeat(4, 1)
                )
                content = io.BytesIO()
                Image.fromarray(pixels).save(content, "PNG")
                data = content.getvalue()[:-60] if number == BROKEN else content.getvalue()
                _member(file, f"{number:05d}.png", data)
                _member(file, f"{number:05d}.txt", _caption((number + shift) % PICTURES).encode())


def _member(file: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    file.addfile(member, io.BytesIO(content))


def _caption(number: int) -> str:
    return f"a {WORDS[4 + number % 2]} {WORDS[number % 4]} square"


def _configurations(folder: Path, encoding: str) -> None:
    files: dict[str, dict[str, Any]] = {
        "pipeline": {"data": [NAME], "stores": {NAME: {"data": NAME}}, "runs": {NAME: {"store": NAME}}},
        f"data/{NAME}": {
            "source": "webdataset",
            "webdataset": {"shards": "tars", "shares": {"train": 0.7, "val": 0.2, "test": 0.1}},
        },
        f"stores/{NAME}": {**STORE, "encoding": encoding},
        f"runs/{NAME}": RUN,
    }
    for name, values in files.items():
        path = folder / f"configs/{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump(values, sort_keys=False))


def _language_model(folder: Path) -> None:
    """A Llama of some thousand random numbers, and a tokenizer of whole words."""
    import torch
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    special = ["<s>", "</s>", "<pad>", "<unk>"]
    known = {word: number for number, word in enumerate([*special, "a", "square", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(known, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    given = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **given).save_pretrained(folder)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    ids = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2, "max_position_embeddings": 64}
    torch.manual_seed(0)
    config = transformers.LlamaConfig(vocab_size=len(known), initializer_range=0.3, **sizes, **ids)
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
