"""What depends on what in one forward pass: the tensors that everything flows through.

A residual block's inside can be gone round by its shortcut, its output cannot. So a tensor that no path from the
picture to the end goes round is the whole of what the backbone knows at that depth, and where a module puts it out,
that is a layer. This holds for any architecture, whatever its modules are called.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from devil_pipe.stages.extract.taps import first_tensor


@dataclass
class Call:
    """One call of a module in the forward pass."""

    path: str
    module: nn.Module
    shape: tuple[int, ...]
    """Of its output; of the first where it puts out several tensors."""

    step: int
    """Which computation made the output."""

    content: int
    """Which computation made its numbers: an earlier one where they were only put in another order since."""

    overwritten: bool = False
    """A later computation changes the output in place, so a reader would find something else."""


@dataclass(frozen=True)
class Trace:
    """A forward pass: its calls in the order of their ends, and the computations that all else flows through."""

    calls: tuple[Call, ...] = ()
    through: frozenset[int] = frozenset()
    joined: tuple[tuple[int, ...], ...] = ()
    """What was joined by `torch.cat`, in order: the lengths of the pieces."""


@dataclass
class _Steps:
    """Every computation that depends on the picture, numbered in order."""

    sources: list[set[int]] = field(default_factory=list)
    content: list[int] = field(default_factory=list)
    overwritten: set[int] = field(default_factory=set)
    joined: list[tuple[int, ...]] = field(default_factory=list)

    def add(self, sources: set[int], content: int | None = None) -> int:
        number = len(self.sources)
        self.sources.append(sources)
        self.content.append(number if content is None else self.content[content])
        return number

    def through(self, last: int) -> frozenset[int]:
        """The computations that lie on every path from the picture to the last one."""
        needed, queue, latest = {last}, [last], {last: last}
        while queue:
            step = queue.pop()
            for source in self.sources[step]:
                latest[source] = max(latest.get(source, 0), step)
                if source not in needed:
                    needed.add(source)
                    queue.append(source)
        found, reach = set(), 0
        for step in sorted(needed):
            if reach <= step:  # what was computed before is used here for the last time
                found.add(step)
            reach = max(reach, latest[step])
        return frozenset(found)


class _Flow(TorchDispatchMode):  # type: ignore[no-untyped-call] # torch leaves it untyped
    """Sees every computation below autograd, so also those of a module that works under `no_grad`."""

    def __init__(self, steps: _Steps) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.steps = steps
        self.made = WeakTensorKeyDictionary()
        self.changed: dict[int, int] = {}  # storage → the last computation that changed it in place

    def step_of(self, tensor: Tensor) -> int | None:
        """Which computation a tensor is from; None where the picture has no part in it."""
        found = self.made.get(tensor)  # type: ignore[no-untyped-call]
        return None if found is None else max(int(found), self.changed.get(_storage(tensor), -1))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = [item for item in tree_leaves((args, kwargs)) if isinstance(item, Tensor)]
        steps = {id(item): step for item in given if (step := self.step_of(item)) is not None}
        result = func(*args, **(kwargs or {}))
        made = [item for item in tree_leaves(result) if isinstance(item, Tensor)]
        if steps or any(id(item) in map(id, given) for item in made):
            if func is torch.ops.aten.cat.default:
                axis = args[1] if len(args) > 1 else 0
                self.steps.joined.append(tuple(item.shape[axis] for item in args[0]))
            self._record(given, made, steps, copied=func is torch.ops.aten.clone.default)
        return result

    def _record(self, given: list[Tensor], made: list[Tensor], steps: dict[int, int], *, copied: bool) -> None:
        known = {id(item) for item in given}
        memory = {_storage(item): steps[id(item)] for item in given if id(item) in steps}
        for item in made:
            moved = steps.get(id(given[0])) if copied else memory.get(_storage(item))
            step = self.steps.add(set(steps.values()), None if id(item) in known else moved)
            if id(item) in known:  # changed in place, and with it all that shares its memory
                self.changed[_storage(item)] = step
                if id(item) in steps:
                    self.steps.overwritten.add(steps[id(item)])
            self.made[item] = step


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


@contextmanager
def _noting(module: nn.Module, flow: _Flow, calls: list[Call]) -> Iterator[None]:
    def hook(path: str, part: nn.Module) -> Any:
        def leave(_module: nn.Module, _inputs: Any, output: Any) -> None:
            tensor = first_tensor(output)
            step = None if tensor is None else flow.step_of(tensor)
            if tensor is not None and step is not None:
                calls.append(Call(path, part, tuple(tensor.shape), step, flow.steps.content[step]))

        return part.register_forward_hook(leave)

    handles = [hook(path, part) for path, part in module.named_modules()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def trace(module: nn.Module, pixels: Float[Tensor, "batch 3 height width"]) -> Trace:
    """Run the module once, on the meta device or in earnest. Whatever the module raises is passed on."""
    steps = _Steps()
    flow, calls = _Flow(steps), list[Call]()
    with torch.no_grad(), _noting(module, flow, calls), flow:
        flow.made[pixels] = steps.add(set())
        output = module(pixels)
        ends = [flow.step_of(item) for item in tree_leaves(output) if isinstance(item, Tensor)]
    known = [end for end in ends if end is not None]
    if not known:
        return Trace()
    for call in calls:
        call.overwritten = call.step in steps.overwritten
    return Trace(tuple(calls), steps.through(max(known)), tuple(steps.joined))
