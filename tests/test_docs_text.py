"""What the documentation says: its commands, options, names, imports and results exist."""

from __future__ import annotations

import ast
import importlib
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from devil_pipe.pipeline.cli import app
from devil_pipe.stages.common.assets import table
from devil_pipe.stages.extract.backbones import SPECS

SOURCE = Path(__file__).resolve().parents[1]
PAGES = sorted([*(SOURCE / "docs").rglob("*.md"), SOURCE / "README.md", SOURCE / "CONTRIBUTING.md"])
WrongUsage: type[Exception] = typer.BadParameter.__mro__[1]
"""Of whichever click typer has: a package, or a part of its own."""
COMMANDS = typer.main.get_command(app)
MADE = {
    "data": {"mine", "coco", "coco2014", "looked"},
    "stores": {"mine-effnet_lite0"},
    "runs": {"mine", "demo-random"},
}
"""Names in the pages' examples of what their reader makes, beside those that are shipped."""
pytestmark = pytest.mark.tree  # there is no docs/ beside an installed wheel
ids = [str(path.relative_to(SOURCE)) for path in PAGES]


def blocks(path: Path, *languages: str) -> Iterator[str]:
    """The fenced blocks of a page that are marked with one of the languages."""
    for found in re.finditer(r"^```([\w-]*)\n(.*?)^```", path.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL):
        if found[1] in languages:
            yield found[2]


def typed(path: Path) -> Iterator[list[str]]:
    """The words behind each `devil-pipe` of a page: lines of blocks, indented lines, and code within a sentence."""
    text = path.read_text(encoding="utf-8")
    lines = [line for block in blocks(path, "", "sh", "console") for line in block.replace("\\\n", " ").splitlines()]
    lines += re.findall(r"^ {4}(devil-pipe .*)$", text, re.MULTILINE)
    outside = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    lines += re.findall(r"`(devil-pipe [^`]+)`", outside)
    for line in lines:
        words = shlex.shlex(line, posix=True, punctuation_chars=True)
        words.whitespace_split = True
        part: list[str] = []
        for word in [*words, ";"]:
            if set(word) <= set(";&|<>()"):
                if "devil-pipe" in part:
                    yield part[part.index("devil-pipe") + 1 :]
                part = []
            else:
                part.append(word)


def parsed(words: list[str]) -> tuple[str, dict[str, Any]]:
    """The command and its values, as the command line itself reads them; nothing is run."""
    command: Any = COMMANDS
    name = ""
    while hasattr(command, "commands"):
        flags = {option for parameter in command.params for option in parameter.opts} | {"--help"}
        while words and words[0] in flags:
            words = words[1:]
        if not words:
            return name, {}
        name, words = words[0], words[1:]
        if name not in command.commands:
            raise WrongUsage(f"No such command {name!r}")
        command = command.commands[name]
    return name, command.make_context(name, list(words)).params


def commands(path: Path) -> list[list[str]]:
    """Commands without what stands for more words, and `a|b`, which lists several."""
    found = [[word for word in words if word not in ("…", "...")] for words in typed(path)]
    return [words for words in found if words]


@pytest.mark.parametrize("path", PAGES, ids=ids)
def test_every_command_in_the_text_exists_with_those_options(path: Path) -> None:
    for words in commands(path):
        try:
            parsed(words)
        except typer.Exit:
            pass  # --help, --version
        except WrongUsage as error:
            named_alone = len(words) == 1 or (len(words) == 2 and words[0] == "store")  # within a sentence
            if not named_alone or type(error).__name__ != "MissingParameter":
                pytest.fail(f"devil-pipe {shlex.join(words)}: {error}")


def test_the_test_above_would_see_a_wrong_option(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```\ntrue && devil-pipe train mine --proceses 4  # so\n```\nand `devil-pipe tain mine`\n")
    first, second = commands(page)
    assert first == ["train", "mine", "--proceses", "4"]
    for words in (first, second):
        with pytest.raises(WrongUsage, match=r"No such (option|command)"):
            parsed(words)


def shipped(kind: str) -> set[str]:
    return {path.stem for path in (SOURCE / "configs" / kind).glob("*.yaml")}


@pytest.mark.parametrize("path", PAGES, ids=ids)
def test_configurations_backbones_and_assets_in_the_text_exist(path: Path) -> None:
    experiments = shipped("experiments")
    tables = {name.split("-")[0] for name in experiments} | experiments
    known = {
        "prepare": ("name", shipped("data") | MADE["data"]),
        "extract": ("store", shipped("stores") | MADE["stores"]),
        **dict.fromkeys(
            ("train", "evaluate", "report", "units", "audit", "export"), ("run", shipped("runs") | MADE["runs"])
        ),
        "explain": ("run", shipped("runs") | MADE["runs"]),
        **dict.fromkeys(("plan", "experiment", "tables"), ("name", tables)),
    }
    for words in commands(path):
        try:
            command, values = parsed(words)
        except (WrongUsage, typer.Exit):
            continue  # the test above
        key, names = known.get(command, ("", set()))
        given = [values.get(key)] if key else []
        if command == "assets":
            given, names = list(values["names"] or ()), set(table())
        backbone = values.get("backbone")
        if isinstance(backbone, str) and not set(backbone) & set("/:"):
            given, names = [*given, backbone], names | set(SPECS)
        assert not [name for name in given if name and not str(name).isupper() and name not in names], words
    text = path.read_text(encoding="utf-8")
    for kind, name in re.findall(r"configs/(data|stores|runs|experiments)/([a-z][\w.-]*)\.yaml", text):
        assert name in shipped(kind) | MADE.get(kind, set()), f"configs/{kind}/{name}.yaml"


@pytest.mark.parametrize("path", PAGES, ids=ids)
def test_python_in_the_text_parses_and_imports_what_there_is(path: Path) -> None:
    for block in blocks(path, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("devil_pipe"):
                module = importlib.import_module(str(node.module))
                assert not [name.name for name in node.names if not hasattr(module, name.name)], node.module


def test_messages_that_name_a_page_name_one_that_exists() -> None:
    named = {
        found
        for room in ("pipeline", "stages", "store")
        for path in (SOURCE / room).rglob("*.py")
        for found in re.findall(r"docs/[\w/-]+\.(?:md|ipynb)", path.read_text(encoding="utf-8"))
    }
    assert named
    assert not [name for name in named if not (SOURCE / name).is_file()]


def test_benchmarks_that_pages_cite_have_results() -> None:
    cited = {
        found
        for path in PAGES
        for found in re.findall(r"benchmarks/results/\w+\.json", path.read_text(encoding="utf-8"))
    }
    assert cited
    for name in cited:
        assert json.loads((SOURCE / name).read_text(encoding="utf-8"))["benchmark"] == Path(name).stem


@pytest.mark.parametrize("name", ["controls.md", "reading-a-saliency-map.md"])
def test_the_demo_s_figures_are_those_of_the_readme(name: str) -> None:
    figures = re.findall(r"\d\.\d\d \[\d\.\d\d, \d\.\d\d\]", (SOURCE / "docs" / name).read_text(encoding="utf-8"))
    assert len(figures) > 5
    readme = (SOURCE / "README.md").read_text(encoding="utf-8")
    assert not [figure for figure in figures if figure not in readme]
