"""Real training on the tiny store: it learns from the features, touches nothing else, and goes on where it stopped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from safetensors.torch import load_file

from devil_pipe.pipeline.config import Run
from devil_pipe.stages.prepare.index import read_index
from devil_pipe.stages.train import loop
from devil_pipe.stages.train.alignment import Alignment
from devil_pipe.stages.train.checkpoint import load
from devil_pipe.stages.train.config import PhaseConfig, TrainConfig, WarmupConfig
from devil_pipe.stages.train.language_model import LanguageModel
from devil_pipe.stages.train.run import run as train
from devil_pipe.store.errors import InputError
from devil_pipe.store.reader import FeatureStore

from .. import tiny

Pairs = dict[str, tuple[torch.Tensor, torch.Tensor]]


def lines(out: Path) -> list[dict[str, Any]]:
    return tiny.losses(out / "train" / "log.jsonl")


def weights(out: Path) -> bytes:
    return (out / "checkpoint" / "translator.safetensors").read_bytes()


def test_the_loss_falls_in_both_phases(trained: Path) -> None:
    for phase, factor, steps in (("alignment", 0.3, 60), ("language", 0.7, 40)):
        losses = [line["loss"] for line in lines(trained) if line["phase"] == phase and "loss" in line]
        assert len(losses) == steps
        assert sum(losses[-5:]) < factor * sum(losses[:5])


def test_the_features_are_what_helps(trained: Path) -> None:
    """The loss lies below that of another picture's features."""
    gaps = [line["val_loss_shuffled"] - line["val_loss"] for line in lines(trained) if "val_loss" in line]
    assert len(gaps) == 2
    assert min(gaps) > 0
    assert gaps[-1] > 0.1


def test_the_language_model_is_unchanged_bit_for_bit(untouched: Pairs) -> None:
    assert untouched
    assert all(torch.equal(before, after) for before, after in untouched.values())


def test_steps_are_logged_once_with_the_schedules_rate(trained: Path, run: Run) -> None:
    for phase, config in (("alignment", run.train.warmup.phase), ("language", run.train.phase)):
        found = [line for line in lines(trained) if line["phase"] == phase and "lr" in line]
        assert [line["step"] for line in found] == list(range(1, config.steps + 1))
        assert [line["lr"] for line in found] == [loop.learning_rate(config, step) for step in range(config.steps)]
        validated = [line["step"] for line in lines(trained) if line["phase"] == phase and "lr" not in line]
        assert validated == list(range(20, config.steps + 1, 20))


def test_the_summary_counts_what_was_saved(trained: Path, run: Run) -> None:
    summary = json.loads((trained / "train" / "summary.json").read_text())
    saved = load_file(trained / "checkpoint" / "translator.safetensors")
    assert summary["trainable_parameters"] == sum(value.numel() for value in saved.values())
    assert summary["captions"] == {"train": 48, "val": 8}
    assert summary["steps"] == {"alignment": 60, "language": 40}
    assert summary["warmup"] == "alignment"
    assert summary["weights"] == "random:0"


def moved(config: TrainConfig, out: Path, **change: Any) -> TrainConfig:
    short = {"steps": 6, "batch_size": 8, "lr": 1e-2, "warmup_steps": 2}
    values = config.model_dump() | {"out": out, "phase": short, "validate_every": 4} | change
    values["warmup"] = values["warmup"] | {"phase": short}
    return TrainConfig.model_validate(values)


class StoppedError(RuntimeError):
    """Stands for a kill right after a state was saved."""


def stop_after(monkeypatch: pytest.MonkeyPatch, saves: int) -> None:
    real, count = loop.save_progress, iter(range(1, 1000))

    def saving(*given: Any) -> None:
        real(*given)
        if next(count) == saves:
            raise StoppedError

    monkeypatch.setattr(loop, "save_progress", saving)


def stopped_and_resumed(config: TrainConfig, saves: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, saves)
        with pytest.raises(StoppedError):
            train(config)
    assert not (config.out / "checkpoint").exists()
    train(config)


@pytest.mark.parametrize("saves", [1, 5, 6, 7, 11])
def test_a_stopped_run_goes_on_to_the_same_weights_and_losses(run: Run, tmp_path: Path, saves: int) -> None:
    """Six steps of each phase: in the first, at its end, at the start of the second."""
    whole, stopped = (moved(run.train, tmp_path / name) for name in ("whole", "stopped"))
    train(whole)
    stopped_and_resumed(stopped, saves)
    assert weights(stopped.out) == weights(whole.out)
    assert lines(stopped.out) == lines(whole.out)


def test_a_stopped_run_with_the_language_models_dropout_on(run: Run, project: Path, tmp_path: Path) -> None:
    model = tiny.language_model(tmp_path / "lm", "gpt2")
    change = {"language_model": str(model), "language_model_dropout": True}
    whole, stopped = (moved(run.train, tmp_path / name, **change) for name in ("whole", "stopped"))
    train(whole)
    stopped_and_resumed(stopped, 8)
    assert weights(stopped.out) == weights(whole.out)
    assert lines(stopped.out) == lines(whole.out)
    assert validation_loss(whole) == pytest.approx(lines(whole.out)[-1]["val_loss"], abs=1e-4)


def validation_loss(config: TrainConfig) -> float:
    """Computed anew from the checkpoint: no dropout of any kind, a caption at a time."""
    translator, card = load(config.out / "checkpoint")
    model = LanguageModel(
        card.language_model, device=torch.device("cpu"), dtype=torch.float32, repeats=card.prefix_repeats
    )
    store, index = FeatureStore(config.store), read_index(config.data_dir / "index.parquet").to_pylist()
    keep = torch.ones(1, len(store.layers), dtype=torch.bool)
    nats, tokens = 0.0, 0
    for row, entry in enumerate(index):
        if entry["split"] == "val":
            maps = [store[layer.name].stored([row]).values[0].astype("float32") for layer in store.layers]
            prefix = translator([torch.from_numpy(item.mean(axis=0))[None] for item in maps], keep)
            summed, count = model.token_losses(prefix, model.encode(entry["captions"]))
            nats, tokens = nats + float(summed), tokens + int(count)
    return nats / tokens


def test_the_last_validation_is_that_of_the_checkpoint(run: Run, trained: Path) -> None:
    assert validation_loss(run.train) == pytest.approx(lines(trained)[-1]["val_loss"], abs=1e-4)


@pytest.mark.parametrize("saves", [None, 2, 5])
def test_the_best_step_on_val_is_taken_whether_or_not_the_run_was_stopped(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, saves: int | None
) -> None:
    """Losses are made to fall and rise again: the weights are those of a run that ended at the best step."""
    phase = {"steps": 6, "batch_size": 8, "lr": 1e-2, "warmup_steps": 0, "min_lr": 1e-2}
    change: dict[str, Any] = {"warmup": {"kind": "none"}, "validate_every": 1, "take": "best"}

    def told_losses(self: loop.Loop, name: str) -> dict[str, float]:
        step = int(json.loads((self.parts.config.out / "train" / "log.jsonl").read_text().splitlines()[-1])["step"])
        return {"val_loss": [3.0, 2.0, 1.0, 1.5, 1.2, 4.0][step - 1], "val_loss_shuffled": 9.0}

    monkeypatch.setattr(loop.Loop, "_validate", told_losses)
    values = run.train.model_dump() | {"phase": phase} | change
    best = TrainConfig.model_validate(values | {"out": tmp_path / "best"})
    if saves is None:
        train(best)
    else:
        stopped_and_resumed(best, saves)
    short = values | {"out": tmp_path / "short", "take": "last", "phase": phase | {"steps": 3}}
    train(TrainConfig.model_validate(short))
    assert weights(tmp_path / "best") == weights(tmp_path / "short")
    summary = json.loads((tmp_path / "best" / "train" / "summary.json").read_text())
    assert (summary["taken"], summary["taken_step"]) == ("best", 3)
    assert json.loads((tmp_path / "short" / "train" / "summary.json").read_text())["taken_step"] == 3


def test_token_accuracy_counts_the_tokens_that_were_not_read() -> None:
    """Codes 1, 2, 3 and the end (0); the captions are (1, 2, 3) and (2, 3); read are (1, 2), cut short, and nothing."""
    config = WarmupConfig(kind="alignment", phase=PhaseConfig(steps=1))
    made = Alignment(config, torch.eye(4), [(1, 2, 3)], eos=0, queries=3)
    prefixes = torch.eye(4)[torch.tensor([[1, 2, 0], [0, 2, 3]])]
    found = loop._alignment_scores(made, prefixes, [(1, 2, 3), (2, 3)])
    assert found["val_token_accuracy"] == pytest.approx(2 / 5)
    assert found["val_caption_accuracy"] == 0
    nothing = loop._alignment_scores(made, torch.eye(4)[torch.zeros(2, 3, dtype=torch.long)], [(1, 2, 3), (2, 3)])
    assert nothing["val_token_accuracy"] == 0


def test_a_finished_run_is_not_trained_again(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = moved(run.train, tmp_path / "run")
    train(config)
    before = weights(config.out), lines(config.out)
    monkeypatch.setattr(loop.Loop, "_step", lambda *_: pytest.fail("a step was taken"))
    train(config)
    assert (weights(config.out), lines(config.out)) == before


def test_a_stopped_run_on_a_far_store_is_one_in_windows_on_a_near_one(run: Run, tmp_path: Path) -> None:
    """The same files where every read is a round trip; `auto` then takes the windows that `near` was told to take."""
    far = f"memory://{tmp_path.name}"
    memory = fsspec.filesystem("memory")
    memory.put(str(run.train.store), far, recursive=True)
    near = moved(run.train, tmp_path / "near", order="windows", window_shards=2)
    train(near)
    stopped = moved(run.train, tmp_path / "far", store=far, window_shards=2)
    stopped_and_resumed(stopped, 8)
    memory.rm(far, recursive=True)
    assert weights(stopped.out) == weights(near.out)
    assert lines(stopped.out) == lines(near.out)
    other = moved(run.train, tmp_path / "other")
    train(other)
    assert weights(other.out) != weights(near.out), "another order is another run"


def test_the_permutation_of_a_near_store_is_one_run_whoever_asked_for_it(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(moved(run.train, tmp_path / "run"))
    monkeypatch.setattr(loop.Loop, "_step", lambda *_: pytest.fail("a step was taken"))
    train(moved(run.train, tmp_path / "run", order="permutation", window_shards=3))


@pytest.mark.parametrize(
    "change", [{"seed": 2}, {"dropout": {"spatial": 0.3}}, {"translator": {"layers": 1, "width": 8, "heads": 2}}]
)
def test_the_state_of_another_configuration_starts_again(run: Run, tmp_path: Path, change: dict[str, Any]) -> None:
    """Also where the state's tensors would not fit."""
    train(moved(run.train, tmp_path / "run"))
    train(moved(run.train, tmp_path / "run", **change))
    train(moved(run.train, tmp_path / "fresh", **change))
    assert weights(tmp_path / "run") == weights(tmp_path / "fresh")
    assert lines(tmp_path / "run") == lines(tmp_path / "fresh")


def test_how_often_it_saves_and_logs_changes_no_weight(run: Run, tmp_path: Path) -> None:
    speed = {"save_every_seconds": 1000, "log_every": 5, "device": "cpu", "precision": "float32"}
    for name, change in (("often", {}), ("seldom", {"runtime": speed})):
        train(moved(run.train, tmp_path / name, **change))
    assert weights(tmp_path / "often") == weights(tmp_path / "seldom")


def test_without_warm_up_prefix_tokens_keep_their_length(run: Run, tmp_path: Path) -> None:
    values = run.train.model_dump() | {"out": tmp_path, "warmup": {"kind": "none"}}
    train(
        TrainConfig.model_validate(values | {"phase": {"steps": 30, "batch_size": 16, "lr": 1e-2, "warmup_steps": 4}})
    )
    card = (tmp_path / "checkpoint" / "config.yaml").read_text()
    assert "prefix_norm: null" in card
    assert {line["phase"] for line in lines(tmp_path)} == {"language"}
    losses = [line["loss"] for line in lines(tmp_path) if "loss" in line]
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])


def test_index_and_store_must_belong_together(run: Run, tmp_path: Path) -> None:
    rows = tiny.pictures(tmp_path / "data")
    tiny.store(tmp_path / "store", rows[:-2], "another index")
    config = run.train.model_copy(update={"store": str(tmp_path / "store"), "out": tmp_path / "out"})
    told = rf"index.parquet: expected the index that .* \({len(rows) - 2} rows, .*, got another \({len(rows)} rows\)"
    with pytest.raises(InputError, match=told):
        train(config)


def test_a_language_model_that_cannot_be_had_is_one_line(run: Run, tmp_path: Path) -> None:
    config = run.train.model_copy(update={"language_model": str(tmp_path), "out": tmp_path / "out"})
    with pytest.raises(InputError, match="expected one of opt-125m, gpt2") as caught:
        train(config)
    assert len(str(caught.value).splitlines()) == 1
