"""Curves for the eye, in TensorBoard or Weights & Biases. What figures are read from is the journal, log.jsonl."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from devil_pipe.stages.common.files import write_text_atomic
from devil_pipe.stages.common.progress import warn
from devil_pipe.stages.train.config import TrainConfig
from devil_pipe.stages.train.journal import PHASES
from devil_pipe.store.errors import InputError, UsageError

PROJECT = "devil-pipe"  # on Weights & Biases
_EXTRA = {"tensorboard": "tensorboard", "wandb": "devil-pipe[wandb]"}


def available(name: str) -> None:
    """Raise UsageError if the tracker's package is not installed."""
    if name != "none" and find_spec(name) is None:
        raise UsageError(
            f"runtime.train.tracker: {name}: expected the package {name}, which is not installed; "
            f"`pip install {_EXTRA[name]}`, or choose another tracker (tensorboard, wandb, none)"
        )


class Tracker:
    """Shows what the journal says, with one count of steps over both phases. For the main process alone."""

    def __init__(self, accelerator: Accelerator, config: TrainConfig, phase: str | None, step: int = 0) -> None:
        """Begin anew, or go on after `step` of `phase`; what was shown of later steps is taken back, or shown again.

        Raises:
            InputError: the tracker cannot be started.
        """
        self.accelerator, self.name = accelerator, config.runtime.tracker
        self._before = dict(zip(PHASES, (0, config.warmup.phase.steps), strict=True))
        folder = config.out / "train"
        if self.name == "none":
            return
        if phase is None:
            for old in (folder / "tensorboard").glob("events.out.tfevents.*"):
                old.unlink()
        options: dict[str, Any] = {}
        if self.name == "tensorboard":
            threading.excepthook = _told(threading.excepthook)
            options["purge_step"] = 0 if phase is None else self._count(phase, step) + 1
        else:
            options |= {"name": config.run, "id": _identity(folder, phase is None), "resume": "allow"}
            told = config.model_dump(mode="json", exclude={"store", "data_dir", "out"})
            options |= {"dir": str(folder), "config": told}
        try:
            project = "tensorboard" if self.name == "tensorboard" else PROJECT
            accelerator.init_trackers(project, init_kwargs={self.name: options})
        except Exception as error:
            # Clients of such services fail in many ways; the remedies are the same.
            reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
            remedy = ", sign in (`wandb login`), set WANDB_MODE=offline" if self.name == "wandb" else ""
            raise InputError(
                f"runtime.train.tracker: {self.name}: cannot be started ({reason}); mend that{remedy}, or choose `none`"
            ) from error

    def show(self, phase: str, step: int, **values: float) -> None:
        """Show values of a step, under the phase's name."""
        self.accelerator.log({f"{phase}/{key}": value for key, value in values.items()}, step=self._count(phase, step))

    def _count(self, phase: str, step: int) -> int:
        return self._before[phase] + step


def _told(usual: Callable[[threading.ExceptHookArgs], object]) -> Callable[[threading.ExceptHookArgs], object]:
    """Say in one line what TensorBoard's own thread cannot write, in place of a traceback."""

    def tell(of: threading.ExceptHookArgs) -> None:
        if isinstance(of.exc_value, OSError) and of.thread is not None and "tensorboard" in type(of.thread).__module__:
            warn(f"TensorBoard's curves are not written any more: {of.exc_value}")
        else:
            usual(of)

    return tell


def _identity(folder: Path, anew: bool) -> str:
    """The run's identity on Weights & Biases, kept beside its journal so that a resumed run goes on there."""
    path = folder / "wandb.txt"
    if anew or not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_text_atomic(path, uuid.uuid4().hex + "\n")
    return path.read_text(encoding="utf-8").strip()
