"""What the site shows beyond docs/*.md: the notebooks as pages, and the repository's files that pages link to.

The Markdown is written for a code host, where a list or a table may stand right under a paragraph, and a link may leave
docs/. Both are made right here, so that one text serves both.
"""

from __future__ import annotations

import base64
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path

import nbformat
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

REPOSITORY = Path(__file__).resolve().parents[1]
OUTSIDE = "repository/"
"""Where files from outside docs/ lie on the site."""
_LINK = re.compile(r"\]\((?![a-z]+:|#)(?P<path>[^)\s#]+)(?P<rest>#[^)\s]*)?\)")
_PICTURES = {"image/png": "png", "image/jpeg": "jpg", "image/svg+xml": "svg"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add a page for each notebook, and each file outside docs/ that a page links to, also from there."""
    for file in [file for file in files if file.src_uri.endswith(".ipynb")]:
        text, pictures = notebook(Path(str(file.abs_src_path)))
        stem = file.src_uri.removesuffix(".ipynb")
        files.append(File.generated(config, f"{stem}.md", content=text))
        for name, content in pictures.items():
            files.append(File.generated(config, f"{posixpath.dirname(stem)}/{name}", content=content))
    waiting = [file for file in files if file.src_uri.endswith(".md")]
    while waiting:
        page = waiting.pop()
        for path in linked(page.content_string, page.src_uri):
            if _on_site(path) not in files.src_uris and (REPOSITORY / path).is_file():
                file = File.generated(config, _on_site(path), abs_src_path=str(REPOSITORY / path))
                files.append(file)
                waiting += [file] if path.endswith(".md") else []
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:  # noqa: ARG001
    """Links as the site has them, and Markdown as Python-Markdown reads it."""
    here = page.file.src_uri

    def moved(match: re.Match[str]) -> str:
        target = _on_site(_resolved(match["path"], here))
        if target.endswith(".ipynb") and not here.startswith("notebooks/"):  # there it is offered as a file
            target = target.removesuffix(".ipynb") + ".md"
        return f"]({posixpath.relpath(target, posixpath.dirname(here) or '.')}{match['rest'] or ''})"

    return "\n".join(_parted(_LINK.sub(moved, markdown).splitlines()))


def linked(markdown: str, src_uri: str) -> Iterator[str]:
    """The files that a page links to, as paths from the repository's root."""
    for match in _LINK.finditer(markdown):
        yield _resolved(match["path"], src_uri)


def notebook(path: Path) -> tuple[str, dict[str, bytes]]:
    """A notebook as Markdown, with the pictures among its outputs by file name."""
    pictures: dict[str, bytes] = {}
    parts: list[str] = []
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "markdown":
            parts.append(cell.source)
        elif cell.cell_type == "code":
            parts.append(_fenced("ipython3", cell.source))
            parts += [_output(output, path.stem, pictures) for output in cell.outputs]
    head, *others = parts
    offer = f"*This page is a notebook, kept with what it printed: [{path.name}]({path.name}).*"
    title, _, below = head.partition("\n")
    return "\n\n".join([title, offer, below.strip(), *others]), pictures


def _output(output: nbformat.NotebookNode, stem: str, pictures: dict[str, bytes]) -> str:
    data = output.get("data", {})
    for kind, suffix in _PICTURES.items():
        if kind in data:
            content = data[kind].encode() if suffix == "svg" else base64.b64decode(data[kind])
            pictures[name := f"{stem}-{len(pictures) + 1}.{suffix}"] = content
            return f"![What the cell above drew]({name})"
    return _fenced("{ .text .output }", output.get("text", "") or data.get("text/plain", ""))


def _fenced(kind: str, text: str) -> str:
    fence = "`" * max(3, *(len(run) + 1 for run in re.findall("`+", text)), 0)
    return f"{fence}{kind}\n{text.rstrip()}\n{fence}"


def _resolved(path: str, src_uri: str) -> str:
    """A link's target from the repository's root, written on the page `src_uri`."""
    home = src_uri.removeprefix(OUTSIDE) if src_uri.startswith(OUTSIDE) else f"docs/{src_uri}"
    return posixpath.normpath(posixpath.join(posixpath.dirname(home), path))


def _on_site(path: str) -> str:
    return path.removeprefix("docs/") if path.startswith("docs/") else OUTSIDE + path


def _parted(lines: list[str]) -> Iterator[str]:
    """Lines with an empty one before a list or table under a paragraph, and table cells' pipes in code unescaped."""
    fence, before = "", ""
    for line in lines:
        mark = re.match(r"\s*(`{3,}|~{3,})", line)
        if mark and not fence:
            fence = mark[1]
        elif mark and line.strip().startswith(fence):
            fence = ""
        elif not fence:
            begins = [kind for kind in (r"\|", r"[-*] ", r"\d+\. ") if re.match(kind, line)]
            if begins and before.strip() and not re.match(rf"{begins[0]}|#|  ", before):
                yield ""
            if line.startswith("|"):  # in code, Python-Markdown takes the backslash of \| as it stands
                line = re.sub(r"`[^`]*`", lambda code: code[0].replace(r"\|", "|"), line)  # noqa: PLW2901
        yield line
        before = line
