"""A tiny project: language models of a few thousand numbers, pictures of coloured squares, a store that knows them.

Features are random vectors, one for each object and scene, laid where the object and the scene are: they are
informative, so what learns from them can be seen to learn, in seconds.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image

from devil_pipe.stages.prepare.index import Row, index_digest, to_table, write_index
from devil_pipe.store.schema import Identity, LayerSpec
from devil_pipe.store.writer import StoreWriter

OBJECTS = ("a dog", "a cow", "a lion", "a sea lion")
NOVEL = ("a pig",)
SCENES = ("a lake", "a wall", "a field")
LAYERS = (
    LayerSpec(name="fine", channels=12, height=4, width=4),
    LayerSpec(name="coarse", channels=16, height=2, width=2),
)
SPLITS = {"train": 48, "val": 8, "test": 10, "test_novel": 3}
BROKEN = "the picture is cut short"
FRAME = 32
KINDS = ("llama", "gpt2", "opt")
NAME = "tiny"


def caption(thing: str, scene: str) -> str:
    """What stands in the index of a picture of `thing` before `scene`."""
    return f"{thing} in front of {scene}"


CAPTIONS = [caption(thing, scene) for thing in (*OBJECTS, *NOVEL) for scene in SCENES]


@dataclass(frozen=True)
class Special:
    """A language model's special tokens; GPT2 has one for all, OPT begins with its end."""

    bos: str
    eos: str
    pad: str | None


SPECIAL = {
    "llama": Special("<s>", "</s>", "<pad>"),
    "gpt2": Special("<|endoftext|>", "<|endoftext|>", None),
    "opt": Special("</s>", "</s>", "<pad>"),
}


def language_model(
    folder: Path, kind: str = "llama", hidden: int = 16, texts: Sequence[str] = CAPTIONS, *, taught: bool = False
) -> Path:
    """Save a language model of one of `KINDS`, two layers deep, with a byte-level BPE tokenizer for `texts`.

    Its weights are random, or `taught` the texts.
    """
    import transformers

    tokenizer = _tokenizer(SPECIAL[kind], texts)
    tokenizer.save_pretrained(folder)
    common = {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    deep = {"num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 128, "hidden_size": hidden}
    if kind == "llama":
        more = {"intermediate_size": 2 * hidden, "tie_word_embeddings": True, "initializer_range": 0.3}
        config = transformers.LlamaConfig(**common, **deep, **more)
    elif kind == "gpt2":
        sizes = {"n_embd": hidden, "n_layer": 2, "n_head": 2, "n_positions": 128}
        config = transformers.GPT2Config(**common, **sizes, initializer_range=0.3)
    else:
        more = {"ffn_dim": 2 * hidden, "word_embed_proj_dim": hidden, "init_std": 0.3}
        config = transformers.OPTConfig(**common, **deep, **more)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(config)
        if taught:
            _teach(model, tokenizer, texts)
    transformers.utils.logging.disable_progress_bar()
    model.save_pretrained(folder)
    return folder


def _teach(model: Any, tokenizer: Any, texts: Sequence[str], steps: int = 150) -> None:
    """Let it learn the texts, once and twice in a row, so that what stands before decides what comes."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    ids = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    for step in range(steps):
        rows = [[tokenizer.bos_token_id, *row] * (1 + step % 2) + [tokenizer.eos_token_id] for row in ids]
        longest = max(map(len, rows))
        fed = torch.tensor([row + [tokenizer.eos_token_id] * (longest - len(row)) for row in rows])
        wanted = torch.tensor([row + [-100] * (longest - len(row)) for row in rows])
        model(input_ids=fed, labels=wanted).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()


def _tokenizer(special: Special, texts: Sequence[str]) -> Any:
    import transformers
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    names = list(dict.fromkeys(filter(None, (special.bos, special.pad, special.eos))))
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=names,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=special.bos, eos_token=special.eos, pad_token=special.pad
    )


def project(root: Path, runs: dict[str, dict[str, Any]] | None = None) -> Path:
    """A project in which only `train` and what follows is left to do: configs, index, pictures, store, language model.

    The last test picture is broken and has no features.
    """
    rows = pictures(root / "data" / NAME)
    table = to_table(rows)
    write_index(table, root / "data" / NAME / "index.parquet")
    store(root / "stores" / NAME, rows, index_digest(table))
    language_model(root / "lm", taught=True)
    files = {
        "pipeline": {"data": [NAME], "stores": {NAME: {"data": NAME}}, "runs": {NAME: {"store": NAME}}},
        f"data/{NAME}": {"source": "webdataset", "webdataset": {"shards": f"data/{NAME}/shards"}},
        f"stores/{NAME}": {"data": NAME, "backbone": "effnet_lite0", "weights": "random"},
        **{f"runs/{name}": values for name, values in (runs or {NAME: run_values(root)}).items()},
    }
    for name, values in files.items():
        path = root / "configs" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
    return root


def run_values(root: Path, **train: Any) -> dict[str, Any]:
    """What configs/runs/tiny.yaml holds; `train` replaces keys of that section."""
    phase = {"batch_size": 16, "lr": 1e-2, "min_lr": 1e-3, "warmup_steps": 4, "weight_decay": 1e-6, "clip_norm": 1.0}
    section = {
        "language_model": str(root / "lm"),
        "prefix_repeats": 2,
        "translator": {"layers": 1, "width": 16, "heads": 2, "feedforward": 32, "queries": 3},
        "dropout": {"spatial": 0.2, "layer": 0.2},
        "warmup": {"kind": "alignment", "pull": 1.0, "keep": 0.5, "phase": {"steps": 60, **phase}},
        "phase": {"steps": 40, **phase},
        "validate_every": 20,
        "validation_rows": 8,
    }
    return {
        "store": NAME,
        "seed": 1,
        "train": {**section, **train},
        "evaluate": {
            "max_new_tokens": 6,
            "resamples": 20,
            "bertscore": {"model": str(root / "no-such-model"), "num_layers": 1},
        },
        "saliency": {"pictures": 4, "gallery": 2, "max_new_tokens": 4, "resamples": 20},
        "runtime": {
            "train": {"device": "cpu", "precision": "float32", "save_every_seconds": 0, "log_every": 1},
            "evaluate": {"device": "cpu", "precision": "float32", "batch_size": 4},
            "saliency": {"device": "cpu", "precision": "float32", "batch_size": 5},
        },
    }


@dataclass(frozen=True)
class _Composite:
    thing: str
    scene: str
    box: tuple[int, int]


def composite(split: str, number: int) -> _Composite:
    """Which object stands where before which scene; boxes are quarters of the frame."""
    things = NOVEL if split == "test_novel" else OBJECTS
    return _Composite(things[number % len(things)], SCENES[number // 4 % 3], (number // 2 % 2, number % 2))


def pictures(folder: Path) -> list[Row]:
    """Write one tar shard of composites and their masks; their rows, the last of the split test broken."""
    shard = folder / "shards" / "00000.tar"
    shard.parent.mkdir(parents=True, exist_ok=True)
    plan = [(split, number) for split, count in SPLITS.items() for number in range(count)]
    with tarfile.open(shard, "w") as tar:
        for split, number in plan:
            for ending, content in _files(composite(split, number)).items():
                member = tarfile.TarInfo(f"{split}{number:03d}.{ending}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    with tarfile.open(shard) as tar:
        places = {member.name: (member.offset_data, member.size) for member in tar.getmembers()}
    return [_row(split, number, places) for split, number in plan]


def _row(split: str, number: int, places: dict[str, tuple[int, int]]) -> Row:
    key = f"{split}{number:03d}"
    made = composite(split, number)
    (offset, size), (mask_offset, mask_size) = places[f"{key}.png"], places[f"{key}.mask.png"]
    row = Row(
        key=key,
        shard="shards/00000.tar",
        offset=offset,
        size=size,
        captions=(caption(made.thing, made.scene),),
        split=split,
        width=FRAME,
        height=FRAME,
        object=made.thing,
        scene=made.scene,
        mask_offset=mask_offset,
        mask_size=mask_size,
    )
    return row.broken(BROKEN) if (split, number) == ("test", SPLITS["test"] - 1) else row


def _files(made: _Composite) -> dict[str, bytes]:
    shades = [*SCENES, *OBJECTS, *NOVEL]
    pixels = np.full((FRAME, FRAME, 3), 30 * shades.index(made.scene), dtype=np.uint8)
    mask = _mask(made, FRAME, FRAME)
    pixels[mask] = [30 * shades.index(made.thing), 200, 90]
    return {
        "png": _png(pixels),
        "mask.png": _png(np.uint8(255 * mask)),
        "txt": caption(made.thing, made.scene).encode(),
    }


def _mask(made: _Composite, height: int, width: int) -> np.ndarray:
    mask = np.zeros((height, width), dtype=bool)
    down, right = made.box
    mask[down * height // 2 : (down + 1) * height // 2, right * width // 2 : (right + 1) * width // 2] = True
    return mask


def _png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def store(root: Path, rows: Sequence[Row], index: str, seed: int = 0, shard_rows: int = 16) -> Identity:
    """Write a finished store: object and scene vectors where they are, plus noise. `seed` also names the weights."""
    random = np.random.default_rng(seed)
    identity = Identity(
        backbone="tiny",
        weights=f"random:{seed}",
        layers=LAYERS,
        transform={"image_size": FRAME},
        index=index,
        rows=len(rows),
    )
    names = (*OBJECTS, *NOVEL, *SCENES)
    codes = {layer.name: {name: random.normal(size=layer.channels) for name in names} for layer in LAYERS}
    plan = [composite(split, number) for split, count in SPLITS.items() for number in range(count)]
    writer = StoreWriter(root, identity, shard_rows)
    for shard, span in enumerate(writer.ranges):
        maps = {}
        for layer in LAYERS:
            values = random.normal(scale=0.3, size=(len(span), layer.locations, layer.channels))
            for place, row in enumerate(span):
                there = _mask(plan[row], layer.height, layer.width).ravel()
                values[place, there] += codes[layer.name][plan[row].thing]
                values[place, ~there] += codes[layer.name][plan[row].scene]
            maps[layer.name] = values.astype(np.float16)
        writer.write_shard(shard, maps, {row: rows[row].reason for row in span if rows[row].reason})
    writer.finalise()
    return identity


def losses(log: Path) -> list[dict[str, Any]]:
    """A training log without its times."""
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]
