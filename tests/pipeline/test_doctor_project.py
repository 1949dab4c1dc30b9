"""The doctor on a project: git and DVC, configurations, and the assets that they ask for."""

from __future__ import annotations

import fcntl
import json
import os
import shlex
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from devil_pipe.pipeline.doctor import disk, explorer
from devil_pipe.pipeline.doctor.finding import Wish
from devil_pipe.stages.common import assets
from devil_pipe.stages.common.assets import Asset

from ..stages.test_assets import WEIGHTS, build_wheel, sha256
from .doctor_fixture import Found, alone, asked, call, findings, troubles

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
PIPELINE = "data: []\nstores: {}\nruns: {}\n"


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project in which nothing is listed: a git repository, DVC's folder, dvc.yaml and configs/."""
    folder = tmp_path / "here"
    monkeypatch.setenv("DEVIL_PIPE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    monkeypatch.setenv("PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    put(folder / "configs/pipeline.yaml", PIPELINE)
    put(folder / "dvc.yaml", "stages: {}\n")
    put(folder / ".dvc/config", "")
    subprocess.run(["git", "init", "--quiet", str(folder)], check=True)
    monkeypatch.chdir(folder)
    return folder


def put(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def of(check: str, found: Found) -> Found:
    return [item for item in found if item["check"] == check]


def shell(command: str) -> None:
    subprocess.run(["bash", "-c", command], check=True, capture_output=True)


def test_a_whole_project_is_well(project: Path) -> None:
    assert not troubles(asked("project,stores,runs"))


def test_a_folder_without_git_is_a_problem_and_the_command_mends_it(project: Path) -> None:
    shell("rm -rf .git")
    (wrong,) = troubles(asked("project"))
    assert (wrong["check"], wrong["state"], wrong["mend"]) == ("project.git", "problem", "git init")
    shell(wrong["mend"])
    assert not troubles(asked("project"))


def test_a_project_that_does_without_git_says_so(project: Path) -> None:
    shell("rm -rf .git")
    put(project / ".dvc/config", "[core]\n    no_scm = true\n")
    (told,) = troubles(asked("project"))
    assert (told["check"], told["state"]) == ("project.git", "note")


def test_another_user_s_repository_is_named_with_git_s_own_way_out(project: Path) -> None:
    if os.geteuid():
        pytest.skip("giving files away needs root")
    shell("chown -R 65534 .")
    home = {"HOME": str(project), "SUDO_UID": ""}
    done = alone("doctor", "--only", "project", "--json", cwd=project, environment=home)
    (wrong,) = troubles(findings(done.stdout, done.returncode))
    assert (wrong["check"], wrong["state"]) == ("project.git", "problem")
    subprocess.run(["bash", "-c", wrong["mend"]], check=True, env={**os.environ, **home})
    done = alone("doctor", "--only", "project", "--json", cwd=project, environment=home)
    assert not troubles(findings(done.stdout, done.returncode))


@pytest.mark.slow
@pytest.mark.parametrize("git", [True, False])
def test_a_folder_that_is_no_dvc_project_is_mended_by_the_command(project: Path, git: bool) -> None:
    shell("rm -rf .dvc" + ("" if git else " .git"))
    (wrong,) = of("project.dvc", troubles(asked("project")))
    assert wrong["mend"] == ("dvc init" if git else "dvc init --no-scm")
    shell(wrong["mend"])
    assert not of("project.dvc", troubles(asked("project")))


def test_dvc_yaml_that_is_gone_or_no_yaml(project: Path) -> None:
    put(project / "dvc.yaml", "stages: [\n")
    (wrong,) = troubles(asked("project"))
    assert wrong["what"].startswith("dvc.yaml: expected YAML")
    (project / "dvc.yaml").unlink()
    (wrong,) = troubles(asked("project"))
    assert "dvc.yaml: no such file" in wrong["what"]


def test_a_command_that_a_shell_does_not_find_is_a_problem(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    (wrong,) = of("project.command", asked("project"))
    assert wrong["state"] == "problem"
    found = subprocess.run(
        ["bash", "-c", f"{wrong['mend']}; command -v devil-pipe"], capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == str(Path(sys.executable).parent / "devil-pipe")


def test_locks_of_dvc(project: Path) -> None:
    paths = project / ".dvc/tmp/rwlock"
    put(paths, "")
    (wrong,) = troubles(asked("project"))
    assert (wrong["check"], wrong["state"], wrong["mend"]) == ("project.lock", "problem", "rm .dvc/tmp/rwlock")
    shell(wrong["mend"])
    assert not troubles(asked("project"))
    gone = subprocess.Popen(["true"])
    gone.wait()
    put(paths, json.dumps({"write": {"x": {"pid": gone.pid, "cmd": "dvc repro"}}, "read": {}}))
    (told,) = troubles(asked("project"))
    assert (told["state"], "was killed" in told["what"]) == ("note", True)
    with subprocess.Popen(["sleep", "100"]) as other:
        put(paths, json.dumps({"write": {}, "read": {"x": [{"pid": other.pid, "cmd": "dvc repro"}]}}))
        (wrong,) = troubles(asked("project"))
        other.kill()
    if Path("/proc/self/cmdline").exists():
        assert (wrong["state"], wrong["mend"]) == ("problem", "rm .dvc/tmp/rwlock")


def test_a_dvc_at_work_is_a_note(project: Path) -> None:
    put(project / ".dvc/tmp/lock", " 12345\n")
    assert not troubles(asked("project"))
    with (project / ".dvc/tmp/lock").open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        (told,) = troubles(asked("project"))
    assert (told["state"], told["mend"]) == ("note", "ps -p 12345")


def test_every_configuration_that_does_not_parse_is_named_once(project: Path) -> None:
    put(project / "configs/data/twice.yaml", "source: folder\nsource: folder\n")
    put(project / "configs/stores/slip.yaml", "data: twice\nbackbone: effnet_lite0\nbatchsize: 3\n")
    put(project / "configs/runs/alone.yaml", "store: nowhere\n")
    put(project / "configs/experiments/odd.yaml", "table: [\n")
    put(project / "configs/pipeline.yaml", "data: [twice]\nstores: {}\nruns: {}\n")
    found = of("project.configuration", asked("project"))
    assert all(item["state"] == "problem" for item in found)
    texts = sorted(item["what"].split(":")[0] for item in found)
    assert texts == [f"configs/{name}.yaml" for name in ("data/twice", "experiments/odd", "runs/alone", "stores/slip")]
    assert any("batchsize: unknown key" in item["what"] for item in found)


@pytest.mark.tree
def test_the_configurations_that_are_shipped_are_well(project: Path) -> None:
    shell(f"cp -r {shlex.quote(str(CONFIGS))}/. configs/")
    (told,) = of("project.configuration", asked("project"))
    count = sum(1 for kind in ("data", "stores", "runs", "experiments") for _ in (CONFIGS / kind).glob("*.yaml"))
    assert (told["state"], told["what"]) == ("ok", f"configs/: {count} files read")


# Assets


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Asset:
    """The one asset that is known: a wheel that uv finds on this machine alone."""
    path = build_wheel(tmp_path / "wheels")
    links = {"UV_NO_INDEX": "1", "UV_FIND_LINKS": str(path.parent), "UV_NO_CONFIG": "1"}
    for name, value in {**links, "UV_CACHE_DIR": str(tmp_path / "uv")}.items():
        monkeypatch.setenv(name, value)
    one = Asset(
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
    monkeypatch.setattr(assets, "table", lambda: {"tiny": one})
    return one


def test_assets_that_are_missing_cut_short_or_changed_are_mended_by_the_command(project: Path, wheel: Asset) -> None:
    (told,) = of("assets.files", asked("assets"))
    assert (told["state"], told["mend"]) == ("note", "devil-pipe assets tiny"), "nothing here needs it"
    file = assets.cache_dir() / "tiny-1.0/tiny_model/model.bin"
    damages = {"truncate": (WEIGHTS[:-1], []), "flip": (b"W" + WEIGHTS[1:], ["--deep"])}
    for content, words in (None, []), *damages.values():
        if content is not None:
            file.write_bytes(content)
            (wrong,) = troubles(asked("assets", *words))
            assert (wrong["state"], "model.bin" in wrong["what"]) == ("problem", True)
            assert wrong["mend"] == told["mend"]
        assert call(*shlex.split(told["mend"])[1:]).exit_code == 0
        assert not troubles(asked("assets", "--deep"))


def test_an_asset_that_the_pipeline_asks_for_is_a_problem_until_it_is_there(project: Path, wheel: Asset) -> None:
    put(project / "configs/data/shown.yaml", "source: demo\n")
    put(project / "configs/pipeline.yaml", "data: [shown]\nstores: {}\nruns: {}\n")
    (wrong,) = of("assets.files", asked("assets"))
    assert (wrong["state"], "configs/pipeline.yaml" in wrong["what"]) == ("problem", True)


# What is still to be extracted, the explorer, the hub


@pytest.mark.slow
def test_room_for_what_is_to_be_extracted(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """100 pictures × 16 × 16 × 40 float16 values of s8 at 128 pixels, and their checksums, need 2 MB and a little."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    text = "data: drawn\nbackbone: effnet_lite0\nweights: random\nlayers: [s8]\nimage_size: 128\n"
    put(project / "configs/stores/big.yaml", text)
    put(project / "configs/pipeline.yaml", "data: []\nstores: {big: {data: drawn}}\nruns: {}\n")
    assert "still to be" not in "".join(item["what"] for item in asked("disk"))
    (project / "data/drawn").mkdir(parents=True)
    pq.write_table(pa.table({"key": [str(row) for row in range(100)]}), project / "data/drawn/index.parquet")
    (space,) = [item for item in asked("disk") if "still to be extracted: big, 2." in item["what"]]
    assert space["state"] == "ok"
    need = disk._needs()
    (place, size) = dict(need)["big"]
    assert place == Path("stores/big")
    assert 100 * 16 * 16 * 40 * 2 < size < 1.01 * 100 * 16 * 16 * 40 * 2
    monkeypatch.setattr(disk, "_needs", lambda: iter([("big", (place, 10**18))]))
    (wrong,) = [item for item in asked("disk") if item["state"] == "problem"]
    assert wrong["mend"] == "devil-pipe extract big --dry-run"


def test_the_explorer_s_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not troubles(asked("explorer"))
    old = tmp_path / "site/starlette-0.1.dist-info"
    put(old / "METADATA", "Metadata-Version: 2.1\nName: starlette\nVersion: 0.1\n")
    monkeypatch.syspath_prepend(tmp_path / "site")
    (told, *_) = explorer.look(Wish())
    assert told.state == "note"
    assert shlex.split(told.mend)[-1].startswith("starlette>=")


class _Hub(BaseHTTPRequestHandler):
    def do_HEAD(self) -> None:
        self.send_response(404)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None: ...


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HTTPServer]:
    from huggingface_hub import constants

    with HTTPServer(("127.0.0.1", 0), _Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("no_proxy", "*")
        yield server
        server.shutdown()


def test_the_hub_is_asked_on_demand_alone(hub: HTTPServer) -> None:
    assert asked("network") == []
    (well,) = asked("network", "--network")
    assert (well["state"], "answers" in well["what"]) == ("ok", True)
    hub.shutdown()
    hub.server_close()
    (told,) = asked("network", "--network")
    assert (told["state"], "does not answer" in told["what"]) == ("note", True)
