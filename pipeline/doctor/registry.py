"""All checks by group, and running them: none can stop another."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from devil_pipe.pipeline.doctor import (
    cached,
    configured,
    disk,
    explorer,
    gpu,
    java,
    machine,
    network,
    python,
    runs,
    stores,
    tools,
)
from devil_pipe.pipeline.doctor.finding import Finding, Wish, problem
from devil_pipe.store.errors import InputError, UsageError
from devil_pipe.store.survey import one_line


@dataclass(frozen=True)
class Check:
    """One thing to look at."""

    group: str
    name: str
    look: Callable[[Wish], Iterable[Finding]]


CHECKS = (
    Check("java", "java.start", java.start),  # first: METEOR's start takes longest, and goes on beside the rest
    Check("gpu", "gpu.torch", gpu.look),
    Check("gpu", "gpu.torchvision", gpu.torchvision),
    Check("python", "python.version", python.version),
    Check("python", "python.packages", python.packages),
    Check("python", "python.clone", python.clone),
    Check("python", "python.lock", python.lock),
    Check("python", "python.environment", python.environment),
    Check("machine", "machine.processors", machine.processors),
    Check("machine", "machine.memory", machine.memory),
    Check("machine", "machine.files", machine.files),
    Check("disk", "disk.space", disk.space),
    Check("disk", "disk.folders", disk.folders),
    Check("assets", "assets.cache", cached.cache),
    Check("assets", "assets.files", cached.files),
    Check("project", "project.git", tools.git),
    Check("project", "project.dvc", tools.dvc),
    Check("project", "project.configuration", configured.look),
    Check("stores", "stores", stores.look),
    Check("runs", "runs", runs.look),
    Check("explorer", "explorer", explorer.look),
    Check("network", "network.hub", network.hub),
)
GROUPS = ("python", "machine", "gpu", "disk", "java", "assets", "project", "stores", "runs", "explorer", "network")
"""In the order in which they are shown."""

_AT_ONCE = 4


def examine(wish: Wish, groups: Sequence[str] = ()) -> dict[str, list[Finding]]:
    """Look at everything, or at some groups; the findings of each group, in the order of `GROUPS`.

    Raises:
        UsageError: no such group.
    """
    if unknown := [name for name in groups if name not in GROUPS]:
        raise UsageError(f"--only: expected groups among {', '.join(GROUPS)}, got {', '.join(unknown)}")
    chosen = [check for check in CHECKS if not groups or check.group in groups]
    found: dict[str, list[Finding]] = {name: [] for name in GROUPS}
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        try:
            for check, findings in zip(chosen, pool.map(lambda check: look(check, wish), chosen), strict=True):
                found[check.group] += findings
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return {name: findings for name, findings in found.items() if findings}


def look(check: Check, wish: Wish) -> list[Finding]:
    """What one check finds; that it failed itself is a finding too."""
    try:
        return list(check.look(wish))
    except Exception as error:
        # Whatever a check stumbles over is a sign of something, and no reason to keep the others' findings back.
        said = one_line(error)
        kind = "" if said and isinstance(error, InputError) else f"{type(error).__name__}: "
        advice = f"mend what else was found first; `devil-pipe doctor --only {check.group}` repeats this alone"
        return [problem(check.name, f"could not be checked: {kind}{said}", advice=advice)]
