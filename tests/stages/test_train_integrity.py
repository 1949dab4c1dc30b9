"""What training keeps and reads is what was written: nothing is learned from damage, another shard or index."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from devil_pipe.pipeline.config import Run
from devil_pipe.stages.prepare.index import read_index, write_index
from devil_pipe.stages.train.checkpoint import (
    Best,
    Card,
    Progress,
    load,
    read_best,
    read_progress,
    restore_best,
    restore_progress,
    save,
    save_best,
    save_progress,
)
from devil_pipe.stages.train.config import PhaseConfig, TrainConfig, TranslatorConfig
from devil_pipe.stages.train.journal import Journal
from devil_pipe.stages.train.loop import make_optimizer
from devil_pipe.stages.train.run import run as train
from devil_pipe.stages.train.translator import Translator, build
from devil_pipe.store.errors import InputError
from devil_pipe.store.schema import Identity
from devil_pipe.store.verify import verify

from .. import tiny

SIZE = TranslatorConfig(layers=1, width=8, heads=2, feedforward=12, queries=3)
STORE = Identity(backbone="tiny", weights="random:0", layers=tiny.LAYERS, transform={}, index="abc", rows=4)
CARD = Card(SIZE, 1.75, 2, "a model", STORE, "none", 3)
PHASE = PhaseConfig(steps=9, lr=1e-2)
FLIPS = 150


def translator(seed: int = 0) -> Translator:
    torch.manual_seed(seed)
    return build(SIZE, tiny.LAYERS, 6, CARD.prefix_norm)


def write_state(folder: Path) -> Path:
    model = translator()
    optimizer = make_optimizer(model, PHASE)
    keep = torch.ones(2, 2, dtype=torch.bool)
    model([torch.ones(2, layer.channels) for layer in tiny.LAYERS], keep).sum().backward()
    optimizer.step()
    save_progress(folder / "state.safetensors", model, optimizer, Progress("language", 5, 1.5, "d", "0a"))
    return folder / "state.safetensors"


def write_best(folder: Path) -> Path:
    save_best(folder / "best.safetensors", translator(), Best(5, 1.5, "d"))
    return folder / "best.safetensors"


def write_checkpoint(folder: Path) -> Path:
    save(folder, translator(), CARD)
    return folder / "translator.safetensors"


def state_of(path: Path) -> Any:
    model = translator(1)
    optimizer = make_optimizer(model, PHASE)
    found = read_progress(path)
    restore_progress(path, model, optimizer)
    return found, *tensors(model.state_dict()), *tensors(load_file(path))


def best_of(path: Path) -> Any:
    model = translator(1)
    found = read_best(path)
    restore_best(path, model)
    return found, *tensors(model.state_dict())


def checkpoint_of(path: Path) -> Any:
    model, card = load(path.parent)
    return card, *tensors(model.state_dict())


def tensors(found: dict[str, torch.Tensor]) -> list[tuple[str, bytes]]:
    return [(name, value.contiguous().numpy().tobytes()) for name, value in sorted(found.items())]


KINDS = [(write_state, state_of), (write_best, best_of), (write_checkpoint, checkpoint_of)]


@pytest.mark.parametrize(("write", "read"), KINDS, ids=["state", "best", "checkpoint"])
def test_a_flipped_bit_anywhere_is_refused_or_changes_nothing(
    tmp_path: Path, write: Callable[[Path], Path], read: Callable[[Path], Any]
) -> None:
    path = write(tmp_path)
    good, content, chance = read(path), path.read_bytes(), random.Random(0)
    refused = 0
    for _ in range(FLIPS):
        place = chance.randrange(len(content))
        path.write_bytes(content[:place] + bytes([content[place] ^ 1 << chance.randrange(8)]) + content[place + 1 :])
        try:
            assert read(path) == good
        except InputError:
            refused += 1
    assert refused > FLIPS * 0.9


@pytest.mark.parametrize("write", [write_state, write_best, write_checkpoint])
def test_the_same_content_is_the_same_bytes(tmp_path: Path, write: Callable[[Path], Path]) -> None:
    """One key of metadata: the order of several would be left to chance."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    first, second = (write(tmp_path / name) for name in "ab")
    assert first.read_bytes() == second.read_bytes()
    with safe_open(first, framework="pt") as file:
        assert len(file.metadata()) == 1


def test_files_from_before_there_were_checksums_are_read(tmp_path: Path) -> None:
    state, weights = write_state(tmp_path), write_checkpoint(tmp_path)
    save_file(load_file(weights), weights)
    said = json.dumps({"phase": "language", "step": 5, "seconds": 1.5, "digest": "d"})
    save_file(load_file(state), state, metadata={"progress": said})
    assert load(tmp_path)[1] == CARD
    assert state_of(state)[0] == Progress("language", 5, 1.5, "d")


@pytest.mark.parametrize(("key", "value"), [("prefix_norm", 1.5), ("seed", 4)])
def test_weights_under_another_card_are_refused(tmp_path: Path, key: str, value: float) -> None:
    write_checkpoint(tmp_path)
    path = tmp_path / "config.yaml"
    plain = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump(plain | {key: value}))
    with pytest.raises(InputError, match="saved with another card; `devil-pipe train` writes both again"):
        load(tmp_path)


def test_a_language_model_may_move(tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    path = tmp_path / "config.yaml"
    plain = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump(plain | {"language_model": "elsewhere/lm", "data_note": "moved"}))
    assert load(tmp_path)[1].language_model == "elsewhere/lm"


def test_a_log_that_is_not_what_was_written_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "log.jsonl"
    journal = Journal(path)
    for step in range(1, 5):
        journal.add(phase="alignment", step=step, loss=step / 2)
    checksum = journal.settle()
    journal.add(phase="alignment", step=5, loss=2.5)  # after the state was saved: cut away
    Journal(path, "alignment", 4, checksum)
    assert capsys.readouterr().err == ""
    assert [line["step"] for line in Journal.entries(path)] == [1, 2, 3, 4]
    path.write_text(path.read_text().replace("1.5", "7.5"))
    Journal(path, "alignment", 4, checksum)
    assert "do not trust its curves" in capsys.readouterr().err
    path.write_text("")  # a loss of power before the log was on the disk
    Journal(path, "alignment", 4, checksum)
    assert "do not trust its curves" in capsys.readouterr().err


@pytest.fixture
def config(run: Run, project: Path, tmp_path: Path) -> TrainConfig:
    """A short run on a store and an index of its own, which may be damaged."""
    shutil.copytree(project / "stores" / tiny.NAME, tmp_path / "store")
    shutil.copytree(project / "data" / tiny.NAME, tmp_path / "data")
    phase = {"steps": 2, "batch_size": 48}  # so that the first step sees every row
    values = run.train.model_dump() | {"phase": phase, "warmup": {}, "validate_every": 2}
    places = {"store": str(tmp_path / "store"), "data_dir": tmp_path / "data", "out": tmp_path / "out"}
    return TrainConfig.model_validate(values | places)


def shards(config: TrainConfig, layer: str) -> list[Path]:
    return sorted(Path(config.store).glob(f"*/{layer}/c.*"))


def refused(config: TrainConfig, match: str) -> None:
    with pytest.raises(InputError, match=match):
        train(config)
    assert not (config.out / "checkpoint").exists()
    assert not (config.out / "train" / "state.safetensors").exists()


def test_swapped_shards_are_never_learned_from(config: TrainConfig) -> None:
    """Sizes and the checksums of rows are all right: the files are whole, and in each other's place."""
    first, second = shards(config, "coarse")[:2]
    first.rename(first.with_name("aside"))
    second.rename(first)
    first.with_name("aside").rename(second)
    refused(config, r"holds shard [01] of this array.*`devil-pipe store verify .* --discard`")


def test_a_flipped_bit_is_named_with_its_row_also_where_the_store_is_not_read_first(config: TrainConfig) -> None:
    path = shards(config, "fine")[0]
    content = bytearray(path.read_bytes())
    content[3] ^= 64
    path.write_bytes(content)
    refused(config, r"row 0 is not what was written \(checksum\).*--discard")
    runtime = config.runtime.model_copy(update={"verify_store": False})
    refused(config.model_copy(update={"runtime": runtime}), "row 0 does not match its checksum.*--discard")


def test_an_index_that_the_store_was_not_made_from_is_refused(config: TrainConfig) -> None:
    """As many rows, other captions: without its digest nothing would tell."""
    path = config.data_dir / "index.parquet"
    table = read_index(path)
    captions = table["captions"].to_pylist()
    turned = [captions[-1], *captions[:-1]]
    column = table.schema.get_field_index("captions")
    write_index(table.set_column(column, table.schema.field(column), [turned]), path)
    refused(
        config, "expected the index that .* was extracted with.*`devil-pipe prepare data`.*`devil-pipe extract store`"
    )


def test_several_processes_divide_the_files_among_them(config: TrainConfig) -> None:
    whole = verify(config.store)
    parts = [verify(config.store, share=(rank, 3)) for rank in range(3)]
    assert sum(part.files for part in parts) == whole.files
    assert all(part.whole and part.files for part in parts)
