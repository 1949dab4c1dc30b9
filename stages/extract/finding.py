"""Which layers a backbone has, found by a trial forward: for convolutional networks, transformers and what mixes them.

Of the modules through whose output everything flows (`tracing.py`), blocks are taken whole and what is around them
by its last step before the next weights. Where prefix tokens lie and how the grid is shaped is read off the shapes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import nn

from devil_pipe.stages.extract.taps import Kind, Tap, grid_of, trunk
from devil_pipe.stages.extract.tracing import Call, Trace, trace
from devil_pipe.store.errors import InputError
from devil_pipe.store.schema import BOUNDS, EXEMPLARS

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
_MOST_PREFIX = 32  # tokens before the patches, where the backbone does not say how many
_REORDERED = ("Hiera", "Nest")  # timm: their tokens are in the order of attention windows, not of the picture
_BATCH = 2  # tells the batch's axis from the others


@dataclass(frozen=True)
class _Seen:
    """A call whose output is a map: how it lies in memory, and its shape."""

    call: Call
    tap: Tap
    grid: tuple[int, int]
    channels: int


def find(module: nn.Module, size: tuple[int, int]) -> tuple[Tap, ...]:
    """The layers of a backbone in the order of the forward pass.

    Args:
        module: in eval mode, on any device; the meta device computes nothing and needs no memory.
        size: height and width of the trial picture.

    Raises:
        InputError: no layer with a grid was found. What the module itself raises is passed on.
    """
    part = trunk(module)
    prefix = "" if part is module else "visual."
    if any(type(item).__name__ in _REORDERED for item in part.modules()):
        raise InputError(f"{type(part).__name__}: its tokens do not lie in the order of the picture; it cannot be read")
    device = next((item.device for item in part.parameters()), torch.device("cpu"))
    seen = trace(part, torch.zeros(_BATCH, 3, *size, device=device))
    layers = _grouped(_outermost(_maps(part, seen, size), part, seen))
    found = _named(_without_steps_between(layers), prefix, seen) if layers else ()
    if not found:
        raise InputError(
            f"{type(part).__name__}: found no layer with a grid of locations that all later ones are made from, "
            "among the outputs of its modules"
        )
    return found


def _maps(part: nn.Module, seen: Trace, size: tuple[int, int]) -> list[_Seen]:
    """The calls that all else flows through and that put out a map, in order."""
    last = {call.path: place for place, call in enumerate(seen.calls)}  # a hook keeps the last call of a module
    reader = _Reader(part, seen, size)
    maps = []
    for place, call in enumerate(seen.calls):
        found = reader.look(call)
        if found and last[call.path] == place:
            maps.append(found)
    return maps


class _Reader:
    """Tells how a map lies in an output, from shapes alone, keeping the last grid for tokens that follow it."""

    def __init__(self, part: nn.Module, seen: Trace, size: tuple[int, int]) -> None:
        self.size, self.joined, self.through = size, seen.joined, seen.through
        known = {type(call.module): kind for call in seen.calls if (kind := self._proportions(call.shape))}
        self.kinds: dict[type[nn.Module], Kind] = known  # where a shape tells nothing, others of its class may
        self.grid: tuple[int, int] | None = None
        self.around = (0, 0)
        said = [getattr(item, "num_prefix_tokens", None) for item in part.modules()]
        self.prefix = next((count for count in said if isinstance(count, int)), None)
        registers = [getattr(item, "num_reg_tokens", None) for item in part.modules()]
        self.registers = next((count for count in registers if isinstance(count, int)), 0)

    def look(self, call: Call) -> _Seen | None:
        if call.step not in self.through:
            return None
        if len(call.shape) == 4 and call.shape[0] == _BATCH:
            kind = self._proportions(call.shape) or self.kinds.get(type(call.module), "map")
            grid = call.shape[2:] if kind == "map" else call.shape[1:3]
            channels = call.shape[1 if kind == "map" else 3]
            if grid[0] * grid[1] == 1 or channels < 1 or grid[0] > self.size[0] or grid[1] > self.size[1]:
                return None
            self.grid = (grid[0], grid[1])
            return _Seen(call, Tap("", call.path, kind), self.grid, channels)
        if len(call.shape) == 3 and _BATCH in call.shape[:2]:
            return self._tokens(call)
        return None

    def _proportions(self, shape: tuple[int, ...]) -> Kind | None:
        """Whether channels come first or last, where one reading alone gives the picture's own proportions."""
        if len(shape) != 4:
            return None
        ratio = self.size[0] / self.size[1]
        first, last = (abs(high - wide * ratio) < max(1.0, ratio) for high, wide in (shape[2:], shape[1:3]))
        return None if first == last else "map" if first else "map_last"

    def _tokens(self, call: Call) -> _Seen | None:
        kind: Kind = "tokens" if call.shape[0] == _BATCH else "tokens_first"
        count = call.shape[1 if kind == "tokens" else 0]
        split = self._split(count)
        if split is None:
            return None
        before, grid, after = split
        registers = min(self.registers, max(before - 1, 0))
        stride = (self.size[0] / grid[0], self.size[1] / grid[1])
        tap = Tap("", call.path, kind, before, after, stride=stride, register_tokens=registers)
        return _Seen(call, tap, grid, call.shape[2])

    def _split(self, count: int) -> tuple[int, tuple[int, int], int] | None:
        """Tokens before the patches, the patches' grid, tokens after them."""
        if self.grid is not None:
            patches = self.grid[0] * self.grid[1]
            for pieces in reversed(self.joined):  # what was put together to so many tokens, the patches among them
                if sum(pieces) == count and patches in pieces:
                    place = pieces.index(patches)
                    self.around = (sum(pieces[:place]), sum(pieces[place + 1 :]))
                    break
            extra = count - patches
            if extra == sum(self.around):
                return self.around[0], self.grid, self.around[1]
            if 0 <= extra <= _MOST_PREFIX:
                return extra, self.grid, 0
        ratio = self.size[0] / self.size[1] if self.grid is None else self.grid[0] / self.grid[1]
        for extra in dict.fromkeys((sum(self.around), self.prefix or 0, 0, 1)):
            grid = grid_of(count - extra, ratio)
            coarser = self.grid is None or (grid is not None and grid[0] <= self.grid[0] and grid[1] <= self.grid[1])
            if grid is not None and coarser and grid[0] * grid[1] > 1:
                self.grid = grid
                return extra, grid, 0
        return None


def _outermost(maps: Sequence[_Seen], part: nn.Module, seen: Trace) -> list[_Seen]:
    """Blocks as wholes: no part of a block, no container of blocks, and each tensor once."""
    paths = {one.call.path for one in maps}
    parts = dict(part.named_modules())
    branches = {call.path for call in seen.calls if call.step not in seen.through and not _is_gate(call)}
    residual = {
        type(item)
        for path, item in parts.items()
        if path in paths and not isinstance(item, _CONTAINERS) and _goes_round(path, item, branches)
    }

    def opened(path: str) -> bool:
        item = parts[path]
        if path == "" or isinstance(item, _CONTAINERS):
            return True
        children = {type(child) for child in item.children() if weights(child)}
        return type(item) not in residual and (
            (len(children) == 1 and children <= residual)
            or any(
                isinstance(parts[_above(inner)], _CONTAINERS) and _above(inner) != path and weights(parts[inner]) > 1
                for inner in paths
                if inner.startswith(f"{path}.")
            )
        )

    is_open = {path: opened(path) for path in parts}
    wholes = [one for one in maps if all(is_open[above] for above in _all_above(one.call.path))]
    inside = {one.call.content for one in wholes if not is_open[one.call.path]}
    kept: dict[int, _Seen] = {}
    for one in wholes:
        if not is_open[one.call.path] or one.call.content not in inside:
            kept.setdefault(one.call.step, one)
    return list(kept.values())


def _is_gate(call: Call) -> bool:
    """One number for each channel, as in squeeze-and-excitation: no branch of the map's own."""
    return len(call.shape) < 3 or (len(call.shape) == 4 and call.shape[2:] == (1, 1))


def _goes_round(path: str, item: nn.Module, branches: set[str]) -> bool:
    """Whether a shortcut leads round the first weights of a module, as in every residual block."""
    if weights(item) < 2 or not _children(item):
        return False
    first = next(name for name, child in item.named_children() if weights(child))
    inner = f"{path}.{first}".strip(".")
    child = item.get_submodule(first)
    if isinstance(child, nn.ModuleList | nn.ModuleDict):  # these are never called themselves
        return _goes_round(inner, child, branches)
    return inner in branches


def _children(item: nn.Module) -> bool:
    return any(weights(child) for child in item.children())


def _above(path: str) -> str:
    return path.rpartition(".")[0]


def _all_above(path: str) -> list[str]:
    parts = path.split(".") if path else []
    return [".".join(parts[:length]) for length in range(len(parts))]


def weights(module: nn.Module) -> int:
    """How many matrices or kernels a module holds."""
    return sum(parameter.ndim > 1 for parameter in module.parameters())


def _grouped(seen: Sequence[_Seen]) -> list[_Seen]:
    """A stem's weights and what follows them in the same shape (norm, activation) as one; pools are no layer."""
    kept: list[_Seen] = []
    for one in seen:
        count = weights(one.call.module)
        if not count and not (kept and (kept[-1].grid, kept[-1].channels) == (one.grid, one.channels)):
            continue
        if not count and weights(kept[-1].call.module) < 2:
            kept.pop()
        kept.append(one)
    return [one for one in kept if not one.call.overwritten]


def _blocks(seen: Sequence[_Seen]) -> list[int]:
    """Which layers the rules choose among: those in a row of blocks, else larger modules, else all."""
    for chosen in (
        [place for place, one in enumerate(seen) if weights(one.call.module) > 1 and "." in one.call.path],
        [place for place, one in enumerate(seen) if weights(one.call.module) > 1],
    ):
        if chosen:
            return chosen
    return list(range(len(seen)))


def _without_steps_between(seen: Sequence[_Seen]) -> list[_Seen]:
    """Drop what only leads from one row of blocks to the next."""
    blocks = _blocks(seen)
    return [one for place, one in enumerate(seen) if place in blocks or not blocks[0] < place < blocks[-1]]


def _named(seen: Sequence[_Seen], prefix: str, traced: Trace) -> tuple[Tap, ...]:
    """The taps with their names, aliases and the paths of all modules that put out the same."""
    blocks = _blocks(seen)
    grids = list(dict.fromkeys(seen[place].grid for place in blocks))
    if len(grids) > 1:
        ends = {max(place for place in blocks if seen[place].grid == grid) for grid in grids}
        alias = {place: f"stage{number}" for number, place in enumerate(sorted(ends), 1)}
    else:
        alias = {place: f"block{number}" for number, place in enumerate(blocks, 1)}
    taps = []
    for place, one in enumerate(seen):
        same = tuple(prefix + call.path for call in traced.calls if call.step == one.call.step and call.path)
        path = prefix + one.call.path
        taps.append(
            replace(
                one.tap,
                name=_on_disk(one.call.path),
                module=path.removesuffix("."),
                alias=alias.get(place, ""),
                also=tuple(dict.fromkeys(other for other in same if other != path)),
                norm=_norm(one.call, traced),
                block=place in blocks,
            )
        )
    return tuple(taps)


def _on_disk(path: str) -> str:
    """A module's path as the name of a folder in the store."""
    name = path.replace("/", "-").lstrip("._") or "output"
    return f"{name}_" if name in ("key", "valid") or name.endswith((BOUNDS, EXEMPLARS)) else name


def _norm(call: Call, traced: Trace) -> Literal["", "pre-norm", "post-norm"]:
    """Whether a layer's output comes out of a LayerNorm, or is the stream that a later one norms."""
    norms = {
        path for path, item in _parts(call) if "LayerNorm" in type(item).__name__ or "RMSNorm" in type(item).__name__
    }
    if not norms:
        return ""
    return "post-norm" if any(one.step == call.step and one.path in norms for one in traced.calls) else "pre-norm"


def _parts(call: Call) -> list[tuple[str, nn.Module]]:
    return [(f"{call.path}.{name}".strip("."), item) for name, item in call.module.named_modules()]
