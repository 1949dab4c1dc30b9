"""Downloads by real npm from a registry of one package on this machine."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import shutil
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from devil_pipe.stages.common import assets
from devil_pipe.stages.common.assets import Asset, asset, fetch
from devil_pipe.store.errors import InputError

NAME, TARBALL = "@tiny/pictures", "/tiny/pictures-1.0.0.tgz"
npm = pytest.mark.skipif(shutil.which("npm") is None, reason="this machine has no npm")


def packed(trace: Path) -> bytes:
    """A package whose scripts would leave a trace if one ever ran."""
    told = {"name": NAME, "version": "1.0.0", "scripts": {"prepack": f"touch {trace}", "install": f"touch {trace}"}}
    files = {"package.json": json.dumps(told).encode(), "assets/1f431.webp": b"picture", "index.js": b"code"}
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for path, data in files.items():
            member = tarfile.TarInfo(f"package/{path}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Asset]:
    data = packed(tmp_path / "executed")
    integrity = "sha512-" + base64.b64encode(hashlib.sha512(data).digest()).decode()

    class Registry(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            dist = {"tarball": f"http://{self.headers['Host']}{TARBALL}", "integrity": integrity}
            version = {"name": NAME, "version": "1.0.0", "dist": dist}
            told = {"name": NAME, "dist-tags": {"latest": "1.0.0"}, "versions": {"1.0.0": version}}
            answer = data if self.path == TARBALL else json.dumps(told).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Registry)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setenv("npm_config_registry", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("npm_config_cache", str(tmp_path / "npm"))
    monkeypatch.setenv("npm_config_fetch_retries", "0")
    for name in (
        "http_proxy",
        "https_proxy",
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "npm_config_proxy",
        "npm_config_https_proxy",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DEVIL_PIPE_CACHE", str(tmp_path / "cache"))
    one = Asset(
        kind="npm",
        package=NAME,
        version="1.0.0",
        sha256=hashlib.sha256(data).hexdigest(),
        megabytes=1,
        licence="none",
        about="a test",
        root="package/assets",
        keep=("package/assets/*.webp",),
    )
    know(monkeypatch, one)
    yield one
    server.shutdown()
    thread.join()
    server.server_close()


def know(monkeypatch: pytest.MonkeyPatch, one: Asset) -> None:
    monkeypatch.setattr(assets, "table", lambda: {"tiny": one})


@npm
def test_a_tarball_is_unpacked_and_nothing_of_it_runs(tiny: Asset, tmp_path: Path) -> None:
    fetch(["tiny"])
    assert [path.name for path in asset("tiny").iterdir()] == ["1f431.webp"]
    assert (asset("tiny") / "1f431.webp").read_bytes() == b"picture"
    assert not (tmp_path / "executed").exists()


@npm
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"sha256": "0" * 64}, "SHA-256 0000.*: not used"),
        ({"version": "2.0.0"}, "npm did not pack @tiny/pictures@2.0.0"),
        ({"keep": ("package/*.png",)}, r"expected package/\*\.png"),
    ],
)
def test_what_is_not_as_pinned_is_not_used(
    change: dict[str, object], said: str, tiny: Asset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    know(monkeypatch, tiny.model_copy(update=change))
    with pytest.raises(InputError, match=said):
        fetch()
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [".lock"]


def test_without_npm_it_is_said(tiny: Asset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match="expected npm on this machine"):
        fetch()
