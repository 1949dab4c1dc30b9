"""Training in two processes on the loopback address: the losses of one process, and words when one of them is lost.

Dropout is on: every process draws the masks of the whole batch, so two drop what one drops.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import yaml
from accelerate import Accelerator

from devil_pipe.stages.train import processes
from devil_pipe.stages.train.alignment import Alignment
from devil_pipe.stages.train.batches import Batch
from devil_pipe.stages.train.config import PhaseConfig, TranslatorConfig, WarmupConfig
from devil_pipe.stages.train.language_model import LanguageModel
from devil_pipe.stages.train.run import run as train
from devil_pipe.stages.train.step import Step, Totals, split
from devil_pipe.stages.train.translator import Devil
from devil_pipe.store.errors import InputError, UsageError

from .. import tiny
from .conftest import open_project

STEPS = {"alignment": 5, "language": 60}
# Of 48 captions: the alignment phase's second batch holds one, so one of two processes has none of it; the shares of 7
# are 4 and 3 captions of unlike length.
SIZES = {"alignment": 47, "language": 7}
NAMES = ("one", "launched", "lost")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tiny.project(tmp_path_factory.mktemp("processes"))
    phases = {
        name: {
            "lr": 2e-3,
            "min_lr": 1e-3,
            "warmup_steps": 2,
            "clip_norm": 1.0,
            "steps": steps,
            "batch_size": SIZES[name],
        }
        for name, steps in STEPS.items()
    }
    warmup = {"kind": "alignment", "pull": 1.0, "keep": 0.5, "phase": phases["alignment"]}
    values = tiny.run_values(made, warmup=warmup, phase=phases["language"])
    for name in NAMES:
        (made / "configs" / "runs" / f"{name}.yaml").write_text(yaml.safe_dump(values))
    return made


@pytest.fixture(scope="module")
def alone(root: Path) -> list[dict[str, Any]]:
    """What one process logs."""
    train(open_project(root, "one").train)
    return tiny.losses(root / "runs" / "one" / "train" / "log.jsonl")


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "GLOO_SOCKET_IFNAME": "lo"}


def same(log: Path, alone: list[dict[str, Any]]) -> None:
    """The same lines; losses to what rounding makes of 65 steps. They are logged with five places."""
    found = tiny.losses(log)
    assert [(line["phase"], line["step"], sorted(line)) for line in found] == [
        (line["phase"], line["step"], sorted(line)) for line in alone
    ]
    for mine, theirs in zip(found, alone, strict=True):
        assert mine == pytest.approx(theirs, abs=2e-3 if "val_token_accuracy" in mine else 1e-4)


@pytest.mark.slow
def test_two_processes_have_the_losses_of_one(root: Path, alone: list[dict[str, Any]]) -> None:
    """Started as on any cluster, by torchrun; loss for loss in both phases."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "devil_pipe.pipeline.cli", "--quiet", "train", "launched"]
    done = subprocess.run(command, cwd=root, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    same(root / "runs" / "launched" / "train" / "log.jsonl", alone)
    summary = json.loads((root / "runs" / "launched" / "train" / "summary.json").read_text())
    assert summary["processes"] == 2
    events = list((root / "runs" / "launched" / "train" / "tensorboard").iterdir())
    assert len(events) == 1, "the main process alone writes curves"


@pytest.mark.slow
def test_a_lost_process_ends_the_run_in_words_and_another_number_goes_on(
    root: Path, alone: list[dict[str, Any]]
) -> None:
    """The second of two is killed in the language phase; one process takes the run to its end, with the same losses."""
    log = root / "runs" / "lost" / "train" / "log.jsonl"
    command = [sys.executable, "-m", "devil_pipe.pipeline.cli", "--quiet", "train", "lost", "--processes", "2"]
    with subprocess.Popen(command, cwd=root, env=environment(), stderr=subprocess.PIPE, text=True) as parent:
        wait_for(lambda: log.exists() and log.read_text().count("language") > 3)
        second = next(child for child in psutil.Process(parent.pid).children() if child.environ().get("RANK") == "1")
        second.kill()
        said = parent.communicate(timeout=60)[1]
    assert parent.returncode == 1
    assert "error: process 2 of 2 was ended by SIGKILL: too little memory, most likely" in said
    assert processes.GOES_ON in said
    assert "Traceback" not in said
    before = len(tiny.losses(log))
    assert before < len(alone), "it was killed before the end"
    train(open_project(root, "lost").train)
    same(log, alone)


def wait_for(condition: Callable[[], bool], seconds: float = 120) -> None:
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.002)


def script(text: str) -> list[str]:
    return [sys.executable, "-c", f"import os, sys, time\nrank = int(os.environ['RANK'])\n{text}"]


def test_processes_that_end_well_are_no_news(tmp_path: Path) -> None:
    told = f"open(rf'{tmp_path}/' + str(rank), 'w').write(os.environ['WORLD_SIZE'] + os.environ['LOCAL_RANK'])"
    assert processes.start(script(told), 3) == 0
    assert [(tmp_path / str(rank)).read_text() for rank in range(3)] == ["30", "31", "32"]


def test_what_the_first_process_said_is_not_said_again(capfd: pytest.CaptureFixture[str]) -> None:
    """A user's mistake, made by all: one line, and its exit code."""
    assert processes.start(script("print('error: no such store', file=sys.stderr); sys.exit(2)"), 2) == 2
    assert capfd.readouterr().err == "error: no such store\n"


def test_another_process_is_quoted(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The first one waits for it, for ever, and is ended."""
    monkeypatch.setattr(processes, "GRACE", 0.3)
    failing = "time.sleep(600 * (rank != 1)); sys.exit('error: a picture too many')"
    with pytest.raises(InputError, match=r"process 2 of 3 ended with exit code 1 \(a picture too many\); what was sav"):
        processes.start(script(failing), 3)
    assert capfd.readouterr().err == ""


def test_what_was_no_plain_word_is_shown_whole(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "GRACE", 0.3)
    failing = "time.sleep(600 * (rank != 1))\nprint('Traceback of it', file=sys.stderr)\nos._exit(70)"
    with pytest.raises(InputError, match="process 2 of 2 ended with exit code 70"):
        processes.start(script(failing), 2)
    assert "Traceback of it" in capfd.readouterr().err


SILENT = """
import signal, datetime, torch
from devil_pipe.stages.train.processes import together
with together(2):
    torch.distributed.init_process_group("gloo", timeout=datetime.timedelta(seconds=3))
    torch.distributed.barrier()
    if rank == 1:
        os.kill(os.getpid(), signal.SIGSTOP)
    torch.distributed.all_reduce(torch.ones(1))
"""


def test_a_silent_process_is_waited_for_only_so_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped, not dead: no connection breaks, so the timeout of the first process ends it."""
    monkeypatch.setattr(processes, "GRACE", 0.3)
    begun = time.monotonic()
    with pytest.raises(InputError, match="the processes lost each other: one of them was silent"):
        processes.start(script(SILENT), 2)
    assert time.monotonic() - begun < 120, "it waited"


def test_processes_do_not_outlive_their_parent(tmp_path: Path) -> None:
    """However it ends: here by SIGKILL."""
    waiting = (
        f"from devil_pipe.stages.train.processes import together\nwith together(1):\n"
        f"    open(rf'{tmp_path}/' + str(rank), 'w').write(str(os.getpid()))\n    time.sleep(600)"
    )
    text = f"from devil_pipe.stages.train.processes import start\nstart({script(waiting)!r}, 2)"
    with subprocess.Popen([sys.executable, "-c", text]) as parent:
        wait_for(lambda: all((tmp_path / name).exists() and (tmp_path / name).read_text() for name in "01"))
        children = [psutil.Process(int((tmp_path / name).read_text())) for name in "01"]
        parent.send_signal(signal.SIGKILL)
    assert psutil.wait_procs(children, timeout=60)[1] == []


def tiny_step(root: Path, accumulate: int, keep: float = 0.5) -> tuple[Step, Devil]:
    model = LanguageModel(str(root / "lm"), device=torch.device("cpu"), dtype=torch.float32)
    torch.manual_seed(0)
    size = TranslatorConfig(layers=1, width=16, heads=2, feedforward=32, queries=3)
    translator = Devil(size, [12, 16], model.width, model.mean_norm())
    captions = model.encode(tiny.CAPTIONS)
    warmup = WarmupConfig(kind="alignment", pull=1.0, phase=PhaseConfig(steps=1))
    embeddings = model.embedding.weight
    alignment = Alignment(warmup, embeddings, captions, model.eos, 3)
    return Step(Accelerator(cpu=True), translator, model, alignment, keep, accumulate), translator


def tiny_batch(root: Path, counts: bool = True) -> Batch:
    random = torch.Generator().manual_seed(3)
    captions = [tuple(range(5, 5 + length)) for length in (1, 2, 2, 7, 9, 11, 12)]
    features = [torch.randn(len(captions), channels, generator=random) for channels in (12, 16)]
    return Batch(features, torch.ones(len(captions), 2, dtype=torch.bool), captions, counts)


@pytest.mark.parametrize("phase", ["alignment", "language"])
@pytest.mark.parametrize("accumulate", [2, 3, 7, 50])
def test_pieces_of_a_batch_add_up_to_it(root: Path, phase: str, accumulate: int) -> None:
    """Captions of unlike length: a mean of the pieces' means would be another loss."""
    whole, pieces = tiny_step(root, 1), tiny_step(root, accumulate)
    losses = [step.gradient(phase, tiny_batch(root), done=1.0) for step, _ in (whole, pieces)]
    assert float(losses[0]) == pytest.approx(float(losses[1]), rel=1e-5)
    for one, other in zip(whole[1].parameters(), pieces[1].parameters(), strict=True):
        assert torch.allclose(one.grad, other.grad, rtol=1e-4, atol=1e-4)  # type: ignore[arg-type]


def test_the_loss_is_a_mean_over_tokens(root: Path) -> None:
    """Beside the language model's own sum, a caption at a time."""
    step, translator = tiny_step(root, 3)
    batch = tiny_batch(root)
    summed, tokens = 0.0, 0
    with torch.no_grad():
        prefix = translator(batch.features, batch.keep)
        for row, caption in enumerate(batch.captions):
            nats, count = step.language_model.token_losses(prefix[row : row + 1], [caption])
            summed, tokens = summed + float(nats), tokens + int(count)
    assert float(step.gradient("language", batch, 0.0)) == pytest.approx(summed / tokens, rel=1e-5)


def test_a_batch_falls_into_neighbours(root: Path) -> None:
    batch = tiny_batch(root)
    for count in (1, 2, 3, 7, 50):
        pieces = list(split(batch, count))
        assert len(pieces) <= min(count, 7)
        assert [caption for piece in pieces for caption in piece.captions] == batch.captions
        assert torch.equal(torch.cat([piece.features[1] for piece in pieces]), batch.features[1])


@pytest.mark.parametrize("phase", ["alignment", "language"])
def test_an_example_seen_again_weighs_nothing(root: Path, phase: str) -> None:
    """Its process has nothing of the step, and must take part in it all the same."""
    step, translator = tiny_step(root, 2)
    step._totals = lambda batch: Totals(torch.tensor(40.0), torch.tensor(6.0))  # type: ignore[method-assign]
    assert float(step.gradient(phase, tiny_batch(root, counts=False), 1.0)) == 0
    assert all(value.grad is not None and not value.grad.any() for value in translator.parameters())


def test_float16_without_a_gpu_is_refused(root: Path, tmp_path: Path) -> None:
    config = open_project(root, "one").train
    speed = config.runtime.model_copy(update={"precision": "float16"})
    with pytest.raises(UsageError, match="float16 needs a GPU"):
        train(config.model_copy(update={"runtime": speed, "out": tmp_path}))
