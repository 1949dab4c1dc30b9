"""torch.compile where it is asked for, and how it is done without where it fails."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from devil_pipe.stages.common.progress import log, warn


def compiled(module: nn.Module, trial: Callable[[Any], object], name: str) -> Any:
    """The module compiled for any batch size and length, or itself, with a warning, if that fails in a trial.

    Compilation is lazy, and fails, for want of a C++ compiler for one, at the first call alone: so `trial` makes it.

    Args:
        module: that is called; its weights stay where they are.
        trial: calls what it is given as training will, backward pass included.
        name: of the module, in the warning.
    """
    log(f"compiling the {name}: this may take minutes")
    try:
        made = torch.compile(module, dynamic=True)
        trial(made)
    except Exception as error:
        # Compilers fail in many ways, and none is a reason not to train.
        lines = [line for line in str(error).splitlines() if line.strip()]
        reason = lines[0][:200] if lines else type(error).__name__
        warn(f"runtime.train.compile: the {name} cannot be compiled here ({reason}); training goes on without")
        torch.compiler.reset()
        return module
    return made
