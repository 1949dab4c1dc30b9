"""The doctor on the machine: packages, lock, limits, disks, GPU. What can be broken for real is broken."""

from __future__ import annotations

import importlib.util
import os
import shutil
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from devil_pipe.pipeline.doctor import disk, gpu, machine
from devil_pipe.pipeline.doctor.finding import Wish

from ..small_disk import small_disk
from .doctor_fixture import alone, asked, findings, troubles


@pytest.fixture(autouse=True)
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("DEVIL_PIPE_CACHE", str(tmp_path / "cache"))
    return folder


def installed(folder: Path, name: str, number: str, *more: str) -> None:
    """What an installed package's metadata say."""
    info = folder / f"{name.replace('-', '_')}-{number}.dist-info"
    info.mkdir(parents=True)
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {number}", *more]
    (info / "METADATA").write_text("\n".join(lines) + "\n")


def test_a_package_that_is_too_old_or_missing_is_named_with_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = tmp_path / "site"
    installed(
        site,
        "devil-pipe",
        "9.9",
        "Requires-Python: >=3.11",
        "Requires-Dist: old-one>=2.1",
        "Requires-Dist: no-such-package-here>=1; python_version >= '3'",
        "Requires-Dist: not-asked-for>=1; extra == 'dev'",
        "Requires-Dist: good",
    )
    installed(site, "old-one", "2.0.9")
    installed(site, "good", "1", "Requires-Dist: old-one<2", "Requires-Dist: Good")
    monkeypatch.syspath_prepend(site)
    found = [item for item in asked("python") if item["check"] == "python.packages"]
    states = {item["what"]: (item["state"], item["mend"]) for item in found}
    assert set(states) == {
        "old-one 2.0.9, devil-pipe needs old-one>=2.1",
        "no-such-package-here is missing, devil-pipe needs no-such-package-here>=1",
        "old-one 2.0.9, good needs old-one<2",
    }
    state, mend = states["old-one 2.0.9, devil-pipe needs old-one>=2.1"]
    assert state == "problem"
    assert mend.endswith("'old-one>=2.1'")
    assert states["old-one 2.0.9, good needs old-one<2"][0] == "note", "only the packages in between say so"


def test_a_python_outside_the_bounds_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed(tmp_path / "site", "devil-pipe", "9.9", "Requires-Python: >=4")
    monkeypatch.syspath_prepend(tmp_path / "site")
    (wrong,) = [item for item in asked("python") if item["check"] == "python.version"]
    assert wrong["state"] == "problem"
    assert "expected >=4" in wrong["what"]


def test_the_lock_is_compared_and_differences_are_a_note(empty: Path) -> None:
    good = f"numpy=={version('numpy')} \\\n    --hash=sha256:00\n    # via devil-pipe\n"
    other = "not-for-here==1 ; sys_platform == 'win32' \\\n    --hash=sha256:00\n"
    (empty / "requirements.lock").write_text(f"# made by hand\n{good}{other}")
    assert [item["what"] for item in asked("python") if item["check"] == "python.lock"] == [
        "1 packages are those of requirements.lock"
    ]
    (empty / "requirements.lock").write_text(f"{good}rich==0.0.1\nno-such-package-here==1\n")
    (differs,) = [item for item in asked("python") if item["check"] == "python.lock"]
    assert differs["state"] == "note"
    assert "2 of 3 packages" in differs["what"]
    assert f"rich {version('rich')} (==0.0.1), no-such-package-here is missing (==1)" in differs["what"]
    assert differs["mend"].endswith("-r requirements.lock")


def test_a_clone_whose_needs_were_changed_since_it_was_installed(
    empty: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(tmp_path / "site", "devil-pipe", "9.9", "Requires-Dist: rich >=1", "Requires-Dist: x; extra == 'dev'")
    monkeypatch.syspath_prepend(tmp_path / "site")
    project = empty / "pyproject.toml"
    project.write_text('[project]\nname = "another"\ndependencies = ["rich>=2"]\n')
    assert not [item for item in asked("python") if item["check"] == "python.clone"]
    project.write_text('[project]\nname = "devil-pipe"\ndependencies = ["rich>=1"]\n')
    assert not [item for item in asked("python") if item["check"] == "python.clone"]
    project.write_text('[project]\nname = "devil-pipe"\ndependencies = ["rich>=2"]\n')
    (told,) = [item for item in asked("python") if item["check"] == "python.clone"]
    assert (told["state"], "rich>=2" in told["what"]) == ("note", True)
    assert told["mend"].endswith("--no-deps --editable .")


@pytest.mark.parametrize(("limit", "state"), [(100, "problem"), (512, "note"), (1024, "ok")])
def test_a_low_limit_of_open_files_is_said(empty: Path, limit: int, state: str) -> None:
    if os.sysconf("SC_OPEN_MAX") < 1024:
        pytest.skip("this process itself may not open that many files")
    before = f"import resource; resource.setrlimit(resource.RLIMIT_NOFILE, ({limit}, {limit}))"
    done = alone("doctor", "--quick", "--only", "machine", "--json", before=before)
    (files,) = [item for item in findings(done.stdout, done.returncode) if item["check"] == "machine.files"]
    assert files["state"] == state
    assert f"{limit:,} open files at most" in files["what"]
    assert ("nofile" in files["advice"]) == (state != "ok")


def test_a_container_s_memory_counts_where_it_is_less(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "memory.max").write_text("1500000000\n")
    monkeypatch.setattr(machine, "_CGROUP", tmp_path)
    (found,) = machine.memory(Wish())
    assert found.what.startswith("1.5 GB of memory (this container's limit; the machine has ")
    assert found.state == "note"
    (tmp_path / "memory.max").write_text("max\n")
    assert "limit" not in next(iter(machine.memory(Wish()))).what


def test_threads_beyond_the_cores_are_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dask.system.cpu_count", lambda: 1)
    monkeypatch.setattr("torch.get_num_threads", lambda: 8)
    (found,) = machine.processors(Wish())
    assert (found.state, found.mend) == ("note", "export OMP_NUM_THREADS=1")


def test_a_folder_that_is_another_s_is_a_problem_and_its_mend_mends_it(empty: Path) -> None:
    if os.geteuid():
        pytest.skip("becoming another user needs root")
    if shut := [folder for folder in Path(disk.__file__).resolve().parents if not folder.stat().st_mode & 0o001]:
        pytest.skip(f"another user may not enter {shut[0]}, where the package lies")
    (empty / "configs").mkdir()
    for name in ("data", "stores", "runs"):
        (empty / name).mkdir()
        os.chown(empty / name, 65534, 65534)
    for folder in (empty, *empty.parents):
        if not folder.stat().st_mode & 0o005:
            folder.chmod(folder.stat().st_mode | 0o005)
    os.chown(empty / "stores", 0, 0)
    # Packages are imported by root: another user may not be able to read this environment.
    before = (
        "import os, typer.testing, devil_pipe.pipeline.doctor.registry, devil_pipe.pipeline.doctor.showing\n"
        "os.setgid(65534); os.setuid(65534)"
    )
    words = ("doctor", "--quick", "--only", "disk", "--json")
    done = alone(*words, before=before, cwd=empty)
    (wrong,) = troubles(findings(done.stdout, done.returncode))
    assert wrong["what"] == "stores: a file there cannot be written: Permission denied"
    assert wrong["mend"] == "sudo chown -R 65534 stores"
    os.chown(empty / "stores", 65534, -1)
    again = alone(*words, before=before, cwd=empty)
    assert (again.returncode, troubles(findings(again.stdout, again.returncode))) == (0, [])
    assert not list((empty / "stores").iterdir())


def test_a_small_disk_is_a_problem(empty: Path) -> None:
    (empty / "configs").mkdir()
    with small_disk(empty / "stores", 64) as _:
        found = asked("disk", "--quick")
        (wrong,) = troubles(found)
        assert (wrong["check"], wrong["state"]) == ("disk.space", "problem")
        assert "65.5 kB free for stores" in wrong["what"].replace("of 65.5 kB ", "")
        (empty / "stores/full").write_bytes(bytes(64 * 1024))
        written = [item for item in asked("disk", "--quick") if item["check"] == "disk.folders"]
        assert [item["what"] for item in troubles(written)] == [
            "stores: a file there cannot be written: No space left on device"
        ]
        assert [path.name for path in (empty / "stores").iterdir()] == ["full"]


def test_a_disk_without_renames_is_told_and_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, target: Path) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(Path, "replace", refuse)
    trouble = disk.trial(tmp_path)
    assert trouble is not None
    assert trouble.what == f"{tmp_path}: a file there cannot be renamed over another: Operation not supported"
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".devil")]
    assert "local disk" in disk._mend(tmp_path, trouble.number)[1]


# No GPU can be had here, and none be broken: these modules say what PyTorch says on other machines.


def pytorch(usable: bool, cuda: str | None, mps: bool = False, **more: Any) -> SimpleNamespace:
    def available() -> bool:
        if not usable and cuda:
            import warnings

            warnings.warn("the driver is too old (found version 11040)", UserWarning, stacklevel=2)
        return usable

    return SimpleNamespace(
        __version__="2.9.0",
        version=SimpleNamespace(cuda=cuda, hip=None),
        cuda=SimpleNamespace(is_available=available, device_count=lambda: 1, **more),
        backends=SimpleNamespace(mps=SimpleNamespace(is_available=lambda: mps)),
    )


@pytest.mark.parametrize(
    ("torch", "seen", "state", "says", "mend"),
    [
        (pytorch(False, None), "", "ok", "no GPU was found", ""),
        (pytorch(False, None, mps=True), "", "ok", "Apple's GPU", ""),
        (pytorch(False, None), "H100", "problem", "H100 is here, but PyTorch 2.9.0 is a build for processors", "pip x"),
        (pytorch(False, "13.0"), "H100", "problem", "cannot use it: the driver is too old (found version 11040)", ""),
    ],
)
def test_a_gpu_that_pytorch_does_not_use(torch: Any, seen: str, state: str, says: str, mend: str) -> None:
    (found,) = gpu.devices(torch, seen, "pip x")
    assert (found.state, found.mend) == (state, mend)
    assert says in found.what


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("raise RuntimeError('operator torchvision::nms does not exist')", "operator torchvision::nms does not exist"),
        ("import os; os.abort()", "the process is ended by signal 6"),
    ],
)
def test_a_torchvision_of_another_build_is_tried_and_does_not_end_the_doctor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str, says: str
) -> None:
    (well,) = gpu.torchvision(Wish())
    assert well.state == "ok"
    package = tmp_path / "site" / "torchvision"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(f"{fault}\n")
    (package / "version.py").write_text("__version__ = '0.99.0+other'\n")
    monkeypatch.setenv("PYTHONPATH", str(package.parent))
    monkeypatch.setattr(gpu, "find_spec", lambda name: importlib.util.find_spec(name) if name == "torch" else spec)
    spec = importlib.util.spec_from_file_location("torchvision", package / "__init__.py")
    (quick,) = gpu.torchvision(Wish(quick=True))
    assert (quick.state, "torchvision 0.99.0+other: builds of different kinds" in quick.what) == ("note", True)
    (wrong,) = gpu.torchvision(Wish())
    assert wrong.state == "problem"
    assert says in wrong.what
    assert wrong.mend.endswith("--force-reinstall torch torchvision")


def test_a_hidden_gpu_is_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    (found,) = gpu.devices(pytorch(False, "13.0"), "H100", "pip x")
    assert (found.state, found.mend) == ("note", "unset CUDA_VISIBLE_DEVICES")


def test_a_card_that_pytorch_has_no_code_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def ones(*_: object, device: str) -> None:
        raise RuntimeError("CUDA error: no kernel image is available for execution on the device\nmore")

    about = SimpleNamespace(name="Old", major=3, minor=5)
    torch = pytorch(
        True,
        "13.0",
        get_device_properties=lambda _: about,
        mem_get_info=lambda _: (1, 2),
        get_arch_list=lambda: ["sm_80"],
    )
    torch.ones = ones
    (found,) = gpu.devices(torch, "Old", "pip x")
    assert found.state == "problem"
    assert "cuda:0 (Old) does not compute: CUDA error: no kernel image" in found.what
    assert "sm_35, this PyTorch has sm_80" in found.advice


def test_the_driver_s_own_tool_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "bin" / "nvidia-smi"
    tool.parent.mkdir()
    monkeypatch.setenv("PATH", f"{tool.parent}{os.pathsep}{os.environ['PATH']}")
    tool.write_text("#!/bin/sh\necho 'NVIDIA H100 80GB, 580.1'\n")
    tool.chmod(0o755)
    (found,) = gpu.look(Wish(quick=True))
    assert (found.state, "GPU: NVIDIA H100 80GB (driver 580.1)" in found.what) == ("ok", True)
    tool.write_text("#!/bin/sh\necho 'cannot communicate with the driver'\nexit 9\n")
    wrong, _ = gpu.look(Wish(quick=True))
    assert (wrong.state, wrong.what) == ("problem", "nvidia-smi: cannot communicate with the driver")
    assert shutil.which("nvidia-smi") == str(tool)
