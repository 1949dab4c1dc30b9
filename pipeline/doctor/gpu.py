"""PyTorch, and whether it can use the graphics processor that is there."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.filesize import decimal

from devil_pipe.pipeline.doctor.finding import Finding, Wish, install, note, ok, problem

_DRIVER = Path("/proc/driver/nvidia/version")
_SIDE = 64
_AGAIN = ("--force-reinstall", "torch", "torchvision")
_PATIENCE = 300.0  # seconds; a busy machine takes long over PyTorch
_HIDING = "CUDA_VISIBLE_DEVICES"


def look(wish: Wish) -> Iterator[Finding]:
    """Import PyTorch, and let each GPU compute something."""
    cards, trouble = _cards()
    seen = "; ".join(cards) or ("an NVIDIA GPU" if _DRIVER.exists() else "")
    if trouble:
        advice = "install a driver for this kernel, or restart after an update of it; nvidia-smi has to work first"
        yield problem("gpu.driver", trouble, advice=advice)
    if wish.quick:
        yield ok("gpu.torch", f"PyTorch {_build('torch') or 'is not installed'}{f', GPU: {seen}' if seen else ''}")
        return
    try:
        import torch
    except (ImportError, OSError, RuntimeError) as error:
        yield problem("gpu.torch", f"PyTorch cannot be imported: {_short(error)}", install(*_AGAIN))
        return
    yield from devices(torch, seen, install(*_AGAIN))


def torchvision(wish: Wish) -> Iterator[Finding]:
    """Whether torch and torchvision are builds for each other; where their tags differ, by importing them.

    In a process of their own: builds that do not fit may also end the process that imports them.
    """
    builds = {name: _build(name) for name in ("torch", "torchvision")}
    tags = {build.partition("+")[2] for build in builds.values()}
    told = ", ".join(f"{name} {build or 'of an unknown build'}" for name, build in builds.items())
    if len(tags) == 1 and all(builds.values()) and not wish.deep:
        yield ok("gpu.torchvision", f"{told}: builds of one kind")
        return
    if wish.quick:
        advice = "`devil-pipe doctor --only gpu` imports both and says whether they get on"
        yield note("gpu.torchvision", f"{told}: builds of different kinds", advice=advice)
        return
    command = [sys.executable, "-P", "-c", "import torchvision"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE, check=False)
    if not done.returncode:
        yield ok("gpu.torchvision", f"{told}: can be imported")
        return
    said = (done.stderr.strip().splitlines() or ["nothing was said"])[-1]
    why = f"the process is ended by signal {-done.returncode}" if done.returncode < 0 else _short(said)
    advice = "torch and torchvision have to be builds for each other: both for CUDA, or both without"
    yield problem("gpu.torchvision", f"{told}: cannot be imported: {why}", install(*_AGAIN), advice)


def _build(name: str) -> str:
    """The version that a package of PyTorch's says of itself, with the tag of its build; empty where it says none."""
    found = find_spec(name)
    if found is None or found.origin is None:
        return ""
    file = Path(found.origin).parent / "version.py"
    text = file.read_text(encoding="utf-8") if file.is_file() else ""
    return match[1] if (match := re.search(r"^__version__ = ['\"]([^'\"]+)", text, re.MULTILINE)) else ""


def devices(torch: Any, seen: str, again: str) -> Iterator[Finding]:
    """What a PyTorch can compute on.

    Args:
        torch: the module.
        seen: the GPUs that the system knows of, in words; empty for none.
        again: the command that installs PyTorch anew.
    """
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        usable = torch.cuda.is_available()
    build = f"PyTorch {torch.__version__}"
    if usable:
        for number in range(torch.cuda.device_count()):
            yield _device(torch, number, f"{build} (CUDA {torch.version.cuda})" if torch.version.cuda else build)
    elif seen and os.environ.get(_HIDING) in ("", "-1"):
        yield note("gpu.device", f"{seen} is here, and {_HIDING} hides it", f"unset {_HIDING}")
    elif seen and not (torch.version.cuda or torch.version.hip):
        advice = "PyPI has builds for CUDA on Linux; an index of CPU builds in pip's settings would give the same one"
        yield problem("gpu.device", f"{seen} is here, but {build} is a build for processors alone", again, advice)
    elif seen:
        why = "; ".join(_short(one.message) for one in said) or "it does not say why"
        advice = f"install a driver for CUDA {torch.version.cuda} or later, or a PyTorch for an earlier CUDA"
        yield problem("gpu.device", f"{seen} is here, but {build} cannot use it: {why}", advice=advice)
    elif torch.backends.mps.is_available():
        yield ok("gpu.device", f"{build}, Apple's GPU: `extract` takes it, `train` where runtime.train.device: mps")
    else:
        yield ok("gpu.device", f"{build} on the processor; no GPU was found")


def _device(torch: Any, number: int, build: str) -> Finding:
    """One GPU: what it is, and that it computes."""
    about = torch.cuda.get_device_properties(number)
    try:
        free, total = torch.cuda.mem_get_info(number)
        one = torch.ones(_SIDE, _SIDE, device=f"cuda:{number}")
        found = float((one @ one).sum())
    except RuntimeError as error:
        known = ", ".join(torch.cuda.get_arch_list())
        advice = f"it is sm_{about.major}{about.minor}, this PyTorch has {known}; or other processes fill its memory"
        return problem("gpu.device", f"cuda:{number} ({about.name}) does not compute: {_short(error)}", advice=advice)
    if found != _SIDE**3:
        advice = "do not use this card: its memory or its arithmetic is damaged"
        return problem("gpu.device", f"cuda:{number} ({about.name}): expected {_SIDE**3}, got {found}", advice=advice)
    bfloat16 = "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no bfloat16"
    what = f"cuda:{number} {about.name}, {decimal(free)} of {decimal(total)} free, {bfloat16}, {build}"
    if free < total // 4:
        return note("gpu.device", what, "nvidia-smi", "other processes hold most of it; that command names them")
    return ok("gpu.device", what)


def _cards() -> tuple[list[str], str]:
    """Name and driver of each card as NVIDIA's own tool gives them, and why it gives none where it fails."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return [], ""
    asked = [tool, "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(asked, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return [], f"nvidia-smi: {_short(error)}"
    if done.returncode:
        return [], f"nvidia-smi: {' '.join((done.stdout + done.stderr).split())[:200]}"
    return [f"{line.strip().replace(', ', ' (driver ')})" for line in done.stdout.splitlines() if line.strip()], ""


def _short(error: object) -> str:
    return " ".join(str(error).split())[:200]
