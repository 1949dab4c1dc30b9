"""A finished tiny project, ways to spoil any of its files, and what a row of the table is: command, mistake, message.

Many are made of two lists: the files that a command reads, and what may be wrong with a file (`KINDS`).
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import resource
import shlex
import shutil
import signal
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType

import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from typer.testing import CliRunner, Result

from devil_pipe.pipeline.cli import app
from devil_pipe.stages.common.progress import Mode, speak

from ..conftest import draw_pictures
from ..stages.milan_fixture import members, write_zip
from ..tiny import language_model
from .run_fixture import build as finished_run

SIDE = 64
LONGEST = 300.0  # seconds after which a command counts as hanging; a busy machine is slow, and a pipe is for ever

CONFIGS = {
    "pipeline": {"data": ["drawn"], "stores": {"drawn": {"data": "drawn"}}, "runs": {"tiny": {"store": "drawn"}}},
    "data/drawn": {"source": "folder", "folder": {"pictures": "pictures", "captions": "captions.jsonl"}, "workers": 1},
    "data/units": {"source": "milan", "milan": {"experiment": "within-alexnet-places365", "zips": "zips"}},
    "stores/drawn": {
        "data": "drawn",
        "backbone": "effnet_lite0",
        "weights": "random",
        "layers": ["s16", "s32"],
        "image_size": SIDE,
        "shard_rows": 8,
        "runtime": {"batch_size": 8, "device": "cpu"},
    },
    "runs/tiny": {
        "store": "drawn",
        "train": {
            "language_model": "lm",
            "translator": {"layers": 1, "width": 16, "heads": 2, "feedforward": 32, "queries": 3},
            "phase": {"steps": 2, "batch_size": 4, "lr": 0.001, "min_lr": 0.0001, "warmup_steps": 1},
            "validate_every": 2,
        },
        "evaluate": {"max_new_tokens": 3, "resamples": 10, "bertscore": {"model": "no-such-model", "num_layers": 1}},
        "saliency": {"pictures": 2, "gallery": 1, "max_new_tokens": 3, "resamples": 10},
        "runtime": {
            "train": {"device": "cpu", "precision": "float32", "tracker": "none"},
            "evaluate": {"device": "cpu", "precision": "float32"},
            "saliency": {"device": "cpu", "precision": "float32"},
        },
    },
    "runs/demo": {"store": "drawn", "train": {"language_model": "lm", "phase": {"steps": 2}}},
    "experiments/small": {
        "table": "small",
        "title": "Small",
        "base": "tiny",
        "columns": ["C", "params"],
        "rows": {"both": {"label": ["both"]}},
    },
}


def world(root: Path) -> Path:
    """A project in which data, store and run `tiny` are made by the commands themselves, and `demo` is finished."""
    draw_pictures(root / "pictures", 10)
    language_model(root / "lm", "gpt2")
    _sources(root)
    finished_run(root / "runs" / "demo")
    shutil.copyfile(root / "pictures/000.png", root / "picture.png")
    for name, values in CONFIGS.items():
        path = root / "configs" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump(values, sort_keys=False))
    with inside(root):
        for words in ("prepare", "extract", "train", "export tiny shared --licence mit", "store export drawn drawn.h5"):
            done = call(words)
            assert done.exit_code == 0, (words, done.output, done.exception)
    return root


def _sources(root: Path) -> None:
    """What `prepare` reads: captions, links, COCO's files, a tar and a Parquet shard, a set of MILANNOTATIONS."""
    (root / "captions.csv").write_text("file,caption\n000.png,a red circle\n001.png,a green circle\n")
    (root / "links.tsv").write_text("a red circle\thttp://localhost/1.png\n")
    image = {"file_name": "000.png", "id": 1}
    annotations = [{"image_id": 1, "caption": "a red circle"}]
    (root / "captions_val2014.json").write_text(json.dumps({"images": [image], "annotations": annotations}))
    listed = {"cocoid": 1, "filename": "000.png", "split": "test", "sentences": [{"raw": "a red circle"}]}
    (root / "dataset_coco.json").write_text(json.dumps({"images": [listed]}))
    (root / "shards").mkdir()
    with tarfile.open(root / "shards/00000.tar", "w") as tar:
        tar.add(root / "pictures/000.png", "000000.png")
        tar.add(root / "captions.csv", "000000.txt")
    (root / "parquet").mkdir()
    column = [(root / "pictures/000.png").read_bytes()]
    pq.write_table(pa.table({"key": ["0"], "caption": ["a circle"], "png": column}), root / "parquet/00000.parquet")
    write_zip(root / "zips/alexnet-places365.zip", members("alexnet/places365"))


@contextmanager
def inside(folder: Path) -> Iterator[None]:
    """With `folder` as the current one."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


class HungError(Exception):
    """A command did not end by itself."""


def call(words: str, **environment: str) -> Result:
    """A command in this process, which must end by itself. Raises HungError."""

    def late(_number: int, _frame: FrameType | None) -> None:
        raise HungError(words)

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, LONGEST)
    try:
        return CliRunner().invoke(app, shlex.split(words), env={"COLUMNS": "250", "NO_COLOR": "1", **environment})
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        speak(Mode.HUMAN)
        # pyarrow and others may have changed it
        signal.signal(signal.SIGINT, signal.default_int_handler)


@dataclass(frozen=True)
class Row:
    """A command, what was done to the project before it, and what it must answer."""

    words: str
    code: int
    says: str
    """A regular expression that its message must hold."""

    spoil: Callable[[], object] = lambda: None
    may_change: tuple[str, ...] = ()
    """Paths, with all that is inside, that the command may have written to before it could know."""

    powerless: bool = False
    """Root may read and write everything; here it may not."""

    full_at: int | None = None
    """Bytes at which a file cannot grow, as on a full disk."""

    environment: tuple[tuple[str, str], ...] = ()
    errors: int = 1
    """Lines of errors at most: what is found may be said before what follows from it."""


def check(row: Row) -> None:
    """Run a row in the current folder: its code, its message, no traceback, and the folder as it was."""
    row.spoil()
    before = tree(Path())
    with without_roots_rights() if row.powerless else nullcontext(), largest(row.full_at):
        result = call(row.words, **dict(row.environment))
    assert result.exception is None or isinstance(result.exception, SystemExit), repr(result.exception)
    assert result.exit_code == row.code, result.output
    said = " ".join(result.stderr.replace("│", " ").split())
    assert re.search(row.says, said), said
    assert "Traceback" not in result.output
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert 0 < len(lines) <= row.errors or "─ Error ─" in result.stderr, result.stderr
    assert all(len(line) < 2000 for line in lines), "a line that nobody reads"
    after = tree(Path())
    changed = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    strange = {name for name in changed if not any(f"{name}/".startswith(f"{one}/") for one in row.may_change)}
    assert not strange, f"half written: {sorted(strange)}"


def tree(folder: Path) -> dict[str, tuple[int, str | bytes]]:
    """Every path below a folder with its mode and its content; the content of a folder or pipe is nothing."""
    found: dict[str, tuple[int, str | bytes]] = {}
    for top, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(top) / name
            mode = path.lstat().st_mode
            content: str | bytes = b""
            if path.is_symlink():
                content = str(path.readlink())
            elif path.is_file():
                content = path.read_bytes()
            found[str(path.relative_to(folder))] = (mode, content)
    return found


# What may be wrong with a file, whatever it is.


def missing(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def empty(path: Path) -> None:
    path.write_bytes(b"")


def cut(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def noise(path: Path) -> None:
    path.write_bytes(bytes([0xFF, 0xFE, 0x00, 0xE9]) * 64 + b"\n")


def folder(path: Path) -> None:
    missing(path)
    path.mkdir()


def dangling(path: Path) -> None:
    missing(path)
    path.symlink_to("nowhere")


def loop(path: Path) -> None:
    missing(path)
    path.symlink_to(path.name)


def pipe(path: Path) -> None:
    missing(path)
    os.mkfifo(path)


def unreadable(path: Path) -> None:
    path.chmod(0)


KINDS: dict[str, Callable[[Path], None]] = {
    kind.__name__: kind for kind in (missing, empty, cut, noise, folder, dangling, loop, pipe, unreadable)
}


@dataclass(frozen=True)
class Reads:
    """A command and a file that it reads."""

    words: str
    path: str
    """A pattern; its first match is spoiled."""

    code: int = 1
    says: str = ""
    """What stands in the message whatever is wrong; by default the file's name."""

    but: tuple[str, ...] = ()
    """Kinds that are no mistake here, or that rows of their own are about."""

    kinds: tuple[str, ...] = tuple(KINDS)

    may_change: tuple[str, ...] = ()
    errors: int = 1

    def rows(self) -> Iterator[tuple[str, Row]]:
        """A row for each thing that may be wrong with the file."""
        told = self.says or re.escape(Path(self.path).name).replace(r"\*", ".*")
        for kind in self.kinds:
            if kind not in self.but:
                spoil = KINDS[kind]
                row = Row(
                    self.words,
                    self.code,
                    told,
                    lambda spoil=spoil: spoil(self.first()),
                    self.may_change,
                    errors=self.errors,
                )
                yield f"{self.words}: {self.path} {kind}", replace(row, powerless=kind == "unreadable")

    def first(self) -> Path:
        """The file itself."""
        return min(Path().glob(self.path))


@contextmanager
def largest(size: int | None) -> Iterator[None]:
    """With files that cannot grow beyond a size: a write fails as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        if size is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


_CAPABILITIES = 1 << 1 | 1 << 2  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
_CAPABILITY_VERSION = 0x20080522


@contextmanager
def without_roots_rights() -> Iterator[None]:
    """Root reads and writes whatever it likes; inside, the modes of files hold for it too (Linux: capset)."""
    if os.geteuid() != 0:
        yield
        return
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION, 0)
    sets = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable of the first 32, then of the others
    assert libc.capget(header, sets) == 0, os.strerror(ctypes.get_errno())
    full = sets[0]
    try:
        sets[0] = full & ~_CAPABILITIES
        assert libc.capset(header, sets) == 0, os.strerror(ctypes.get_errno())
        yield
    finally:
        sets[0] = full
        assert libc.capset(header, sets) == 0, os.strerror(ctypes.get_errno())
