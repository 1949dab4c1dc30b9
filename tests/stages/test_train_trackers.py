"""Curves: what TensorBoard's own reader finds is what the journal says, also after a stop."""

from __future__ import annotations

import json
import sys
import threading
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from accelerate.tracking import LoggerType
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from devil_pipe.pipeline.config import Run
from devil_pipe.stages.train import loop, trackers
from devil_pipe.stages.train.config import TrainConfig
from devil_pipe.stages.train.run import run as train
from devil_pipe.store.errors import InputError, UsageError

from .test_train_run import StoppedError, lines, moved, stopped_and_resumed


def tracked(config: TrainConfig, tracker: str) -> TrainConfig:
    return config.model_copy(update={"runtime": config.runtime.model_copy(update={"tracker": tracker})})


def curves(out: Path) -> dict[str, dict[int, float]]:
    """As TensorBoard shows them: by name, by step."""
    reader = EventAccumulator(str(out / "train" / "tensorboard")).Reload()
    return {name: {event.step: event.value for event in reader.Scalars(name)} for name in reader.Tags()["scalars"]}


def expected(config: TrainConfig) -> dict[str, dict[int, float]]:
    """The journal's lines, the language phase's steps counted on from those of the alignment phase."""
    found: dict[str, dict[int, float]] = {}
    for line in lines(config.out):
        count = line.pop("step") + (config.warmup.phase.steps if line["phase"] == "language" else 0)
        phase = line.pop("phase")
        for name, value in line.items():
            found.setdefault(f"{phase}/{name}", {})[count] = pytest.approx(value, rel=1e-6)
    return found


def test_tensorboard_shows_the_journal(run: Run, tmp_path: Path) -> None:
    config = moved(run.train, tmp_path)
    assert config.runtime.tracker == "tensorboard", "by default"
    train(config)
    assert curves(config.out) == expected(config)
    assert {"alignment/loss", "language/val_loss_shuffled", "language/lr"} <= curves(config.out).keys()


def test_a_resumed_run_goes_on_in_the_same_curves(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps that were shown, but not saved, are shown once: here two of the language phase."""
    config = moved(run.train, tmp_path)
    real, count = loop.save_progress, iter(range(1, 100))

    def saving(*given: Any) -> None:
        if (number := next(count)) < 9:
            real(*given)
        if number == 10:
            raise StoppedError

    with monkeypatch.context() as patch:
        patch.setattr(loop, "save_progress", saving)
        with pytest.raises(StoppedError):
            train(config)
    assert max(line["step"] for line in lines(config.out) if line["phase"] == "language") == 4
    train(config)
    assert curves(config.out) == expected(config)
    reader = EventAccumulator(str(config.out / "train" / "tensorboard")).Reload()
    assert [event.step for event in reader.Scalars("language/loss")] == list(range(7, 13))
    assert len(list((config.out / "train" / "tensorboard").iterdir())) == 2, "appended, not written anew"


def test_another_configuration_begins_new_curves(run: Run, tmp_path: Path) -> None:
    train(moved(run.train, tmp_path))
    config = moved(run.train, tmp_path, seed=5)
    train(config)
    assert curves(config.out) == expected(config)
    assert len(list((config.out / "train" / "tensorboard").iterdir())) == 1, "the other's are gone, as its journal is"


def test_none_writes_the_journal_alone(run: Run, tmp_path: Path) -> None:
    config = tracked(moved(run.train, tmp_path), "none")
    train(config)
    assert lines(config.out)
    assert not (config.out / "train" / "tensorboard").exists()


def test_a_missing_package_is_named_before_anything_is_done(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trackers, "find_spec", lambda _: None)
    for name, package in (("wandb", r"devil-pipe\[wandb\]"), ("tensorboard", "tensorboard")):
        with pytest.raises(UsageError, match=f"tracker: {name}: expected the package {name}.*pip install {package}"):
            train(tracked(moved(run.train, tmp_path / name), name))
        assert not (tmp_path / name).exists()


class Wandb(ModuleType):
    """Stands for the client of a service that cannot be reached from tests."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.__spec__ = ModuleSpec("wandb", None)
        self.begun: list[dict[str, Any]] = []
        self.logged: list[tuple[int, dict[str, float]]] = []
        self.fails = False

    def init(self, **given: Any) -> Any:
        if self.fails:
            raise ValueError("no API key\nmore lines")
        self.begun.append(given)
        return SimpleNamespace(log=lambda values, step: self.logged.append((step, values)), finish=lambda: None)


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> Wandb:
    made = Wandb()
    monkeypatch.setitem(sys.modules, "wandb", made)
    monkeypatch.setattr("accelerate.tracking._available_trackers", [LoggerType.WANDB])
    return made


def test_a_resumed_run_is_one_run_on_wandb(run: Run, tmp_path: Path, wandb: Wandb) -> None:
    config = tracked(moved(run.train, tmp_path), "wandb")
    stopped_and_resumed(config, 8)
    first, second = wandb.begun
    assert first["id"] == second["id"]
    assert (first["project"], first["name"], first["resume"]) == ("devil-pipe", "tiny", "allow")
    told = json.dumps(first["config"])
    assert str(tmp_path) not in told, "no paths leave the machine"
    last: dict[str, dict[int, float]] = {}
    for step, values in wandb.logged:
        for name, value in values.items():
            last.setdefault(name, {})[step] = value
    assert last == expected(config)
    assert not (config.out / "train" / "tensorboard").exists()


def test_a_service_that_refuses_is_a_line(
    run: Run, tmp_path: Path, wandb: Wandb, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb.fails = True
    monkeypatch.setattr(loop.Loop, "_step", lambda *_: pytest.fail("a step was taken"))
    with pytest.raises(
        InputError, match=r"wandb: cannot be started \(no API key\); .*wandb login.*WANDB_MODE"
    ) as caught:
        train(tracked(moved(run.train, tmp_path), "wandb"))
    assert len(str(caught.value).splitlines()) == 1


def test_a_disk_that_is_full_for_the_curves_is_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """They are written by a thread of TensorBoard's own, whose traceback would hide what the training says."""
    from tensorboard.summary.writer.event_file_writer import _AsyncWriterThread

    usual: list[object] = []
    monkeypatch.setattr(threading, "excepthook", trackers._told(usual.append))

    def ended(error: Exception, kind: type[threading.Thread]) -> None:
        thread = threading.Thread.__new__(kind)
        threading.excepthook(threading.ExceptHookArgs((type(error), error, None, thread)))

    ended(OSError(28, "No space left on device"), _AsyncWriterThread)
    assert not usual
    assert "warning: TensorBoard's curves are not written any more: [Errno 28] No space" in capsys.readouterr().err
    ended(OSError(28, "No space left on device"), threading.Thread)
    ended(ValueError("x"), _AsyncWriterThread)
    assert len(usual) == 2
