"""Where a backbone's weights come from, and that wrong ones are refused with the file's name and a way on."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from devil_pipe.stages.extract.backbones import Backbone, load, state_digest
from devil_pipe.store.errors import InputError

NAME = "effnet_lite0"
State = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def other() -> Backbone:
    return load(NAME, "random", seed=3)


@pytest.fixture
def state(other: Backbone) -> State:
    return {name: value.clone() for name, value in other.module.state_dict().items()}


def same(module: torch.nn.Module, state: State) -> bool:
    own = module.state_dict()
    return list(own) == list(state) and all(torch.equal(own[name], state[name]) for name in own)


def test_random_weights_follow_their_seed_and_say_so(state: State) -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    again = load(NAME, "random", seed=3)
    assert torch.equal(torch.rand(3), expected), "the caller's random numbers go on undisturbed"
    assert again.weights == "random:3"
    assert same(again.module, state)
    assert not same(load(NAME, "random", seed=4).module, state)


def test_a_backbone_is_frozen_and_evaluates(other: Backbone) -> None:
    assert not any(parameter.requires_grad for parameter in other.module.parameters())
    assert not any(module.training for module in other.module.modules())


def test_the_container_does_not_matter(tmp_path: Path, state: State) -> None:
    files = [tmp_path / name for name in ("a.safetensors", "a.pth", "nested.pt", "model.pth")]
    save_file(state, files[0])
    torch.save(state, files[1])
    torch.save({"epoch": 3, "state_dict": state}, files[2])
    torch.save({"model": state}, files[3])
    loaded = [load(NAME, str(file)) for file in files]
    assert all(same(backbone.module, state) for backbone in loaded)
    assert len({backbone.weights for backbone in loaded}) == 1
    assert len(loaded[0].weights) == 64


def test_a_published_file_with_other_names_is_fitted_in_order(tmp_path: Path, state: State) -> None:
    renamed = {f"_theirs.{place}": value for place, value in enumerate(state.values())}
    torch.save(renamed, tmp_path / "renamed.pth")
    assert same(load(NAME, str(tmp_path / "renamed.pth")).module, state)
    swapped = list(renamed.items())
    swapped[0], swapped[-1] = swapped[-1], swapped[0]
    torch.save(dict(swapped), tmp_path / "swapped.pth")
    with pytest.raises(InputError, match=r"swapped\.pth: expected the \d+ tensors.*missing"):
        load(NAME, str(tmp_path / "swapped.pth"))


def test_the_digest_sees_every_number_name_and_type(other: Backbone, state: State) -> None:
    class Holder(torch.nn.Module):
        def __init__(self, values: State) -> None:
            super().__init__()
            for name, value in values.items():
                self.register_buffer(name.replace(".", "_"), value)

    few = dict(list(state.items())[:3])
    first, *rest = few
    bumped = few[first].clone()
    bumped.view(-1)[0] = torch.nextafter(bumped.view(-1)[0], torch.tensor(9.0))
    variants: list[State] = [
        few,
        {**few, first: bumped},
        {**few, first: few[first].view(torch.int32)},
        {**few, first: few[first].reshape(-1)},
        {"renamed": few[first], **{name: few[name] for name in rest}},
    ]
    assert len({state_digest(Holder(variant)) for variant in variants}) == len(variants)
    backwards = dict(reversed(few.items()))
    assert state_digest(Holder(backwards)) == state_digest(Holder(few))


def test_missing_unknown_and_misshapen_tensors_are_named(tmp_path: Path, state: State) -> None:
    file = tmp_path / "weights.safetensors"
    first, second = sorted(state)[:2]
    lacking = {name: value for name, value in state.items() if name not in (first, second)}
    save_file(lacking, file)
    with pytest.raises(InputError, match=rf"weights\.safetensors: .*missing 2 \(such as \['{first}', '{second}'\]\)"):
        load(NAME, str(file))
    save_file({**state, "head.extra": torch.zeros(2)}, file)
    with pytest.raises(InputError, match=r"missing 0 .*unknown 1 \(such as \['head\.extra'\]\)"):
        load(NAME, str(file))
    shape = tuple(state["classifier.weight"].shape)
    save_file({**state, "classifier.weight": torch.zeros(10, 1280)}, file)
    with pytest.raises(InputError) as caught:
        load(NAME, str(file))
    assert f"tensor classifier.weight: expected shape {shape}, got (10, 1280)" in str(caught.value)


def test_files_that_are_no_weights(tmp_path: Path, state: State) -> None:
    with pytest.raises(InputError, match=r"none\.pth: expected a file of weights, found none"):
        load(NAME, str(tmp_path / "none.pth"))
    with pytest.raises(InputError, match="expected a file of weights, found none"):
        load(NAME, str(tmp_path))
    torch.save(state, tmp_path / "whole.pth")
    whole = (tmp_path / "whole.pth").read_bytes()
    contents = {
        "text.pth": b"not weights",
        "text.safetensors": b"not weights",
        "empty.pth": b"",
        "cut.pth": whole[:-999],
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=rf"{name}: expected safetensors or a weights-only checkpoint"):
            load(NAME, str(tmp_path / name))
    for values in ({"a": 1}, [torch.zeros(1)], torch.zeros(1)):
        torch.save(values, tmp_path / "other.pth")
        with pytest.raises(InputError, match=r"other\.pth: expected a mapping from names to tensors, got"):
            load(NAME, str(tmp_path / "other.pth"))


class Trap:
    """Unpickling this runs code: it makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("protocol", ["torch", "pickle"])
def test_code_in_a_pickle_is_not_run(tmp_path: Path, state: State, protocol: str) -> None:
    file, sprung = tmp_path / "trap.pth", tmp_path / "sprung"
    holding = {**state, "classifier.bias": Trap(sprung)}
    if protocol == "torch":
        torch.save(holding, file)
    else:
        file.write_bytes(pickle.dumps(holding))
    with pytest.raises(InputError, match=r"trap\.pth: expected safetensors or a weights-only checkpoint"):
        load(NAME, str(file))
    assert not sprung.exists()
    pickle.loads(pickle.dumps(Trap(sprung)))  # noqa: S301 - the trap does spring where it is let
    assert sprung.exists()


def test_assets_that_were_not_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEVIL_PIPE_CACHE", str(tmp_path))
    with pytest.raises(InputError, match=r"efficientnet-lite0.*run `devil-pipe assets`"):
        load(NAME, "auto")
