"""Settings of speed: half precision, pieces, compilation. What is learned is the same, as precisely as is asked for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState

from devil_pipe.pipeline.config import Run
from devil_pipe.stages.train.config import PhaseConfig, TrainConfig, WarmupConfig
from devil_pipe.stages.train.run import run as train

from .test_train_run import lines, moved, stopped_and_resumed, weights


@pytest.fixture(autouse=True)
def _afterwards() -> Iterator[None]:
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def faster(config: TrainConfig, **speed: Any) -> TrainConfig:
    AcceleratorState._reset_state(reset_partial_state=True)  # Accelerate has one precision for a process
    return config.model_copy(update={"runtime": config.runtime.model_copy(update=speed)})


def losses(config: TrainConfig) -> list[float]:
    return [line["loss"] for line in lines(config.out) if "loss" in line]


@pytest.fixture
def plain(run: Run, tmp_path: Path) -> TrainConfig:
    config = moved(run.train, tmp_path / "plain")
    train(config)
    return config


def test_losses_in_bfloat16_are_those_of_float32_rounded(run: Run, tmp_path: Path) -> None:
    """Eight bits of mantissa, at a learning rate that does not multiply the error."""
    slow = {"phase": PhaseConfig(steps=6, batch_size=8, lr=1e-5, warmup_steps=0), "warmup": WarmupConfig()}
    found = {}
    for precision in ("float32", "bfloat16"):
        config = moved(run.train, tmp_path / precision).model_copy(update=slow)
        config = faster(config, precision=precision)
        train(config)
        found[precision] = losses(config)
    assert found["bfloat16"] == pytest.approx(found["float32"], rel=2**-5)
    assert found["bfloat16"] != found["float32"]


def test_a_stopped_run_in_bfloat16_goes_on_to_the_same_weights(run: Run, tmp_path: Path) -> None:
    whole, stopped = (faster(moved(run.train, tmp_path / name), precision="bfloat16") for name in ("whole", "stopped"))
    train(whole)
    stopped_and_resumed(stopped, 8)
    assert weights(stopped.out) == weights(whole.out)


def test_pieces_change_no_loss_and_no_digest(run: Run, tmp_path: Path, plain: TrainConfig) -> None:
    """A run that was begun whole goes on in pieces."""
    config = faster(moved(run.train, tmp_path / "pieces"), accumulate=3)
    train(config)
    assert losses(config) == pytest.approx(losses(plain), abs=1e-4)
    before = weights(config.out)
    train(faster(config, accumulate=1))
    assert weights(config.out) == before, "it was finished"


def test_the_compiled_translator_is_the_same(
    run: Run, tmp_path: Path, plain: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Traced as ever, and run as traced: generating C++ takes a minute."""
    real, compiled = torch.compile, []

    def traced(module: torch.nn.Module, **options: Any) -> Any:
        compiled.append(module)
        return real(module, **options, backend="eager")

    monkeypatch.setattr(torch, "compile", traced)
    config = faster(moved(run.train, tmp_path / "compiled"), compile=True)
    train(config)
    assert len(compiled) == 1
    assert losses(config) == pytest.approx(losses(plain), abs=1e-4)


def test_what_cannot_be_compiled_is_trained_without(
    run: Run, tmp_path: Path, plain: TrainConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Compilation is lazy: it fails at the first call."""

    def failing(module: torch.nn.Module, **_: Any) -> Any:
        def call(*_: Any) -> None:
            raise RuntimeError("no C++ compiler found\nmore lines")

        return call

    monkeypatch.setattr(torch, "compile", failing)
    config = faster(moved(run.train, tmp_path / "not"), compile=True)
    train(config)
    said = capsys.readouterr().err
    assert (
        "runtime.train.compile: the translator cannot be compiled here (no C++ compiler found); training goes" in said
    )
    assert weights(config.out) == weights(plain.out)
