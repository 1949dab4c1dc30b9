"""The command: its help, its version, its exit codes, and what it says and keeps silent."""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner, Result

from devil_pipe.pipeline.cli import app
from devil_pipe.stages.common.progress import Mode, log, speak

from ..stages.webdataset_fixture import jpeg

COMMANDS = ("new", "assets", "prepare", "layers", "extract", "train", "evaluate", "saliency", "report")
COMMANDS += ("export", "explain", "explore", "plan", "experiment", "tables", "units", "audit", "doctor")
HEAVY = {"torch", "torchvision", "transformers", "zarr", "timm", "open_clip", "numpy", "pyarrow", "matplotlib", "PIL"}


def process(*words: str, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own."""
    return subprocess.run(
        [sys.executable, *words],
        cwd=cwd,
        env={**os.environ, "COLUMNS": "120", "NO_COLOR": "1", **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty project as the current folder, with three pictures and their captions in pictures/."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    for number in range(3):
        put(f"pictures/{number}.jpg", jpeg(number))
        put(f"pictures/{number}.txt", f"picture {number}".encode())
    put("captions.csv", "".join(["file,caption,split\n", *(f"{n}.jpg,noise,{s}\n" for n, s in SPLITS)]).encode())
    yield tmp_path
    speak(Mode.HUMAN)


SPLITS = list(enumerate(("train", "val", "test")))


def put(name: str, content: bytes) -> None:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def call(*words: str) -> Result:
    return CliRunner().invoke(app, words)


def words_of(text: str) -> str:
    """A help text on one line, without its frame."""
    return " ".join(re.sub("[│╭╮╰╯─]", " ", text).split())


def test_help_imports_nothing_heavy() -> None:
    asked = [[], ["--help"], *([command, "--help"] for command in COMMANDS)]
    script = """if True:
        import json, sys
        from typer.testing import CliRunner
        from devil_pipe.pipeline.cli import app
        codes = [CliRunner().invoke(app, words).exit_code for words in json.loads(sys.argv[1])]
        print(json.dumps([codes, sorted({name.split(".")[0] for name in sys.modules})]))
    """
    done = process("-c", script, json.dumps(asked))
    codes, modules = json.loads(done.stdout)
    assert codes == [2] + [0] * (len(asked) - 1)  # no command: the help, and the shell's code for a wrong usage
    assert not HEAVY & set(modules)


def test_help_answers_within_a_second() -> None:
    spent = []
    for _ in range(3):  # the least of three, in seconds of computing: another process may hold the machine
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert process("-m", "devil_pipe.pipeline.cli", "--help").returncode == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        spent.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(spent) < 1


def test_help_lists_every_command_with_a_line(project: Path) -> None:
    text = words_of(call("--help").output)
    found = [re.search(rf"\b{command} ([A-Z][^.]+)", text) for command in COMMANDS]
    assert all(found), text
    assert {command.name for command in app.registered_commands} <= {None, *COMMANDS}
    assert len(app.registered_commands) == len(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_an_example_of_itself(project: Path, command: str) -> None:
    result = call(command, "--help")
    assert result.exit_code == 0
    _, _, example = words_of(result.output).partition("Example: ")
    assert example.startswith(f"devil-pipe {command}")


@pytest.mark.parametrize("command", COMMANDS)
def test_the_example_is_a_command_that_exists(project: Path, command: str) -> None:
    """Each option of the example is one of the command's."""
    text = words_of(call(command, "--help").output)
    options, _, examples = text.partition("Example: ")
    for example in examples.split(";"):
        for word in example.split()[2:]:
            assert not word.startswith("--") or word in options, f"{word} of {example!r}"


def test_version(project: Path) -> None:
    result = call("--version")
    assert (result.exit_code, result.output.strip()) == (0, version("devil-pipe"))


@pytest.mark.parametrize(
    ("words", "code", "fragment"),
    [
        (["--version"], 0, ""),
        (["train", "nope"], 2, "error: configs/runs/nope.yaml: no such file"),
        (["train", "--lr", "1"], 2, "No such option"),
        (["prepare", "mine", "--folder", "missing"], 1, "error: folder.pictures: expected a folder at missing"),
    ],
)
def test_exit_codes_of_the_real_process(project: Path, words: list[str], code: int, fragment: str) -> None:
    done = process("-m", "devil_pipe.pipeline.cli", *words, cwd=project)
    assert done.returncode == code
    assert fragment in done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    assert code == 0 or done.stdout == "", "errors go to standard error"


def test_the_installed_command_is_this_one() -> None:
    done = subprocess.run(
        [Path(sys.executable).parent / "devil-pipe", "--version"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout.strip()) == (0, version("devil-pipe"))


def test_prepare_keeps_the_configuration_it_was_given(project: Path) -> None:
    words = ["prepare", "mine", "--folder", "pictures", "--captions", "captions.csv"]
    result = call(*words)
    assert result.exit_code == 0, result.output
    kept = project / "configs/data/mine.yaml"
    assert yaml.safe_load(kept.read_text()) == {
        "source": "folder",
        "folder": {"pictures": "pictures", "captions": "captions.csv"},
    }
    index = (project / "data/mine/index.parquet").read_bytes()
    for again in (words, ["prepare", "mine"]):
        assert call(*again).exit_code == 0
        assert (project / "data/mine/index.parquet").read_bytes() == index
    other = call("prepare", "mine", "--folder", "pictures")
    assert other.exit_code == 2
    assert "configs/data/mine.yaml: lies there with other values" in other.output
    assert kept.exists()


@pytest.mark.parametrize(
    "words",
    [
        ["prepare", "mine", "--folder", "pictuers"],
        ["prepare", "mine", "--folder", "pictures", "--captions", "missing.csv"],
        ["extract", "--backbone", "effnet_lite0", "--data", "mine", "--layers", "s9"],
        ["extract", "--backbone", "effnet_lite0", "--data", "mine", "--weights", "random"],
    ],
    ids=["folder", "captions", "layer", "not prepared"],
)
def test_a_mistyped_word_leaves_no_configuration(project: Path, words: list[str]) -> None:
    put("configs/pipeline.yaml", b"data: []\nstores: {}\nruns: {}\n")
    assert call(*words).exit_code in (1, 2)
    assert [path.name for path in (project / "configs").rglob("*.yaml")] == ["pipeline.yaml"]


def test_extract_by_backbone_makes_a_store_and_keeps_its_configuration(project: Path) -> None:
    put("configs/pipeline.yaml", b"data: []\nstores: {}\nruns: {}\n")
    assert call("prepare", "mine", "--folder", "pictures").exit_code == 0
    words = ["extract", "--backbone", "effnet_lite0", "--data", "mine", "--weights", "random", "--layers", "s32"]
    result = call(*words, "--device", "cpu")
    assert result.exit_code == 0, result.output
    assert "random weights" in result.output
    name = "mine-effnet_lite0-random-s32"
    kept = yaml.safe_load((project / f"configs/stores/{name}.yaml").read_text())
    assert (kept["data"], kept["backbone"], kept["weights"], kept["layers"]) == (
        "mine",
        "effnet_lite0",
        "random",
        ["s32"],
    )
    manifest = (project / f"stores/{name}/manifest.json").read_bytes()
    assert call("extract", name, "--batch-size", "1").exit_code == 0
    assert (project / f"stores/{name}/manifest.json").read_bytes() == manifest


def test_quiet_says_nothing(project: Path) -> None:
    result = call("--quiet", "prepare", "mine", "--folder", "pictures", "--captions", "captions.csv")
    assert (result.exit_code, result.output) == (0, "")


def test_quiet_still_says_warnings_and_errors(project: Path) -> None:
    put("pictures/0.jpg", b"a text that is called .jpg")
    result = call("--quiet", "prepare", "mine", "--folder", "pictures", "--captions", "captions.csv")
    assert result.exit_code == 0
    lines = result.stderr.splitlines()
    assert lines
    assert all(line.startswith("warning: ") for line in lines)
    assert "1 of 3 rows" in lines[0]
    assert call("--quiet", "prepare", "nope").stderr.startswith("error: configs/data/nope.yaml")


def test_log_json_is_json_lines_alone(project: Path) -> None:
    put("pictures/0.jpg", b"a text that is called .jpg")
    result = call("--log-json", "prepare", "mine", "--folder", "pictures", "--captions", "captions.csv")
    assert (result.exit_code, result.stdout) == (0, "")
    lines = [json.loads(line) for line in result.stderr.splitlines()]
    assert {"time", "message"} <= set.intersection(*(set(line) for line in lines))
    assert any(line.get("level") == "warning" and "not a picture" in line["message"] for line in lines)
    assert any(line.get("test") == 1 for line in lines), "fields are values, not text"
    failed = call("--log-json", "prepare", "nope")
    (line,) = [json.loads(line) for line in failed.stderr.splitlines()]
    assert (failed.exit_code, line["level"]) == (2, "error")


def test_a_json_line_stays_one_line(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    speak(Mode.JSON_LINES)
    log("two\nlines", path=Path("a b"), text="ä\n")
    (line,) = capsys.readouterr().err.splitlines()
    assert json.loads(line)["message"] == "two\nlines"
    assert (json.loads(line)["path"], json.loads(line)["text"]) == ("a b", "ä\n")


def test_a_mistake_of_ours_keeps_its_traceback(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fault(name: str) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("devil_pipe.pipeline.config.load_data", fault)
    assert isinstance(call("prepare", "mine").exception, ZeroDivisionError)


def test_a_stop_by_hand_says_how_to_go_on(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(name: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("devil_pipe.pipeline.config.load_data", stop)
    result = call("prepare", "mine")
    assert result.exit_code == 130
    assert "the same command goes on" in result.stderr


SOURCE = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_presets_have_the_papers_sizes_without_weights_or_network(project: Path) -> None:
    """88 M with OPT and 40 M with GPT2 (supplementary, appendix A); any connection would be an error."""
    script = """if True:
        import json, socket, sys
        def refuse(*_): raise OSError("no network here")
        socket.socket.connect = socket.getaddrinfo = refuse
        from typer.testing import CliRunner
        from devil_pipe.pipeline.cli import app
        print(json.dumps([CliRunner().invoke(app, ["train", n, "--dry-run", "--json"]).stdout for n in sys.argv[1:]]))
    """
    names = ["cc3m-clip_rn50-opt", "cc3m-clip_vit_b32-opt", "cc3m-clip_vit_b32-gpt2"]
    home = project / "empty"
    done = process("-c", script, *names, cwd=SOURCE, HF_HUB_OFFLINE="1", HF_HOME=str(home))
    plans = [json.loads(text) for text in json.loads(done.stdout)]
    assert [plan["trainable_parameters"] for plan in plans] == [88_411_392, 88_019_712, 40_141_024]
    assert [plan["warmup"] for plan in plans] == ["none"] * 3
    assert plans[0]["layers"] == {"L21": "512×28×28", "L39": "1024×14×14", "L49": "2048×7×7"}
    assert not home.exists()
