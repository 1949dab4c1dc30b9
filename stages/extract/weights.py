"""Weights of a backbone: read from a file without running any of it, drawn at random, named by their digest."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from torch import nn

from devil_pipe.store.errors import InputError


def load_file(module: nn.Module, path: Path, *, by_order: bool) -> None:
    """Load a state dict, by name; where a published file names the same tensors otherwise, by order and shape.

    Raises:
        InputError: a file that cannot be read, or whose tensors are not the module's.
    """
    put(module, read_state(path), path, by_order=by_order)


def put(module: nn.Module, state: dict[str, torch.Tensor], path: Path, *, by_order: bool = False) -> None:
    """Give a module the tensors that were read from `path`. Raises InputError where they are not its own."""
    own = module.state_dict()
    state = _without_wrapper(state, own)
    if set(state) != set(own) and by_order:
        shapes = [tuple(value.shape) for value in state.values()]
        if shapes == [tuple(value.shape) for value in own.values()]:
            state = dict(zip(own, state.values(), strict=True))
    missing, extra = sorted(set(own) - set(state)), sorted(set(state) - set(own))
    if missing or extra:
        raise InputError(
            f"{path}: expected the {len(own)} tensors of this backbone; "
            f"missing {len(missing)} (such as {missing[:2]}), unknown {len(extra)} (such as {extra[:2]})"
        )
    wrong = [name for name in own if state[name].shape != own[name].shape]
    if wrong:
        name = wrong[0]
        raise InputError(
            f"{path}: tensor {name}: expected shape {tuple(own[name].shape)}, got {tuple(state[name].shape)}"
        )
    module.load_state_dict(state, strict=True)


def _without_wrapper(state: dict[str, torch.Tensor], own: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Training on several GPUs writes `module.` before every name."""
    plain = {name.removeprefix("module."): value for name, value in state.items()}
    return plain if set(plain) == set(own) else state


def read_state(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file or a weights-only checkpoint, by name. Raises InputError for anything else."""
    if not path.is_file():
        raise InputError(f"{path}: expected a file of weights, found none; `auto` and `random` are also possible")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file as load_safetensors

            state = load_safetensors(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # A damaged or foreign file fails anywhere in the parser; the user needs the file's name and what would do.
        raise InputError(f"{path}: expected safetensors or a weights-only checkpoint: {error}") from error
    for key in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise InputError(f"{path}: expected a mapping from names to tensors, got {type(state).__name__}")
    return state


def randomise(module: nn.Module, seed: int) -> None:
    """Draw all parameters anew, so that nothing learned is left; modules draw their own where they know how."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        drawn: set[int] = set()
        for part in module.modules():
            if callable(reset := getattr(part, "reset_parameters", None)):
                reset()
                drawn |= {id(tensor) for tensor in part.parameters(recurse=False)}
        for parameter in module.parameters():
            if id(parameter) not in drawn and parameter.is_floating_point():
                parameter.normal_(std=0.02)


def state_digest(module: nn.Module) -> str:
    """SHA-256 over names, types, shapes and bytes of a module's tensors; the container they came in does not matter."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        array = value.detach().cpu().contiguous()
        digest.update(f"{name}|{array.dtype}|{tuple(array.shape)}|".encode())
        digest.update(array.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
