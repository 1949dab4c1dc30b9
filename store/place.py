"""Where a store's files lie: a local folder, or anything that fsspec reaches (S3 and its kin).

Names are relative and use slashes. A file is committed whole or not at all; ranges of many files are read at once.
"""

# ruff: noqa: D102 (what each method of a place does is said once, in `Place`)
from __future__ import annotations

import mmap
import os
import threading
import uuid
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
from pydantic import BeforeValidator

from devil_pipe.store.errors import InputError

Root = str | os.PathLike[str]
StoreRoot = Annotated[str, BeforeValidator(os.fspath)]
"""A root in a configuration: a folder or a URL, as text (a path would lose one of a URL's slashes)."""

_PAGE = mmap.ALLOCATIONGRANULARITY


class Span(NamedTuple):
    """The bytes [start, stop) of a file."""

    name: str
    start: int
    stop: int


def plain_file(path: Path) -> Path:
    """The path, unless it is a pipe, a socket or a device, which may be read without end. Raises InputError."""
    if path.is_fifo() or path.is_socket() or path.is_char_device() or path.is_block_device():
        raise InputError(f"{path}: expected a file, got a pipe, socket or device; save what it gives as a file first")
    return path


class Place(ABC):
    """A root that holds files by name."""

    @abstractmethod
    def show(self, name: str = "") -> str:
        """The name as a person can find it."""

    @abstractmethod
    def read(self, names: Sequence[str]) -> list[bytes]:
        """Whole files. Raises FileNotFoundError."""

    @abstractmethod
    def sizes(self, names: Sequence[str]) -> list[int | None]:
        """Bytes of each file; None: not there."""

    @abstractmethod
    def commit(self, name: str, content: bytes | bytearray) -> None:
        """Put a file in place, whole or not at all. Raises OSError."""

    @abstractmethod
    def remove(self, name: str) -> None:
        """Take a file away, if it is there."""

    @abstractmethod
    def names(self, folder: str) -> list[str]:
        """Every file below a folder, sorted; none where there is no such folder."""

    @abstractmethod
    def spans(self, wanted: Sequence[Span]) -> list[np.ndarray]:
        """uint8 views or copies of the bytes asked for. Raises FileNotFoundError; short where a file ends early."""

    def prefetch(self, wanted: Iterable[Span]) -> None:  # noqa: B027 (a hint that a place may ignore)
        """Say what will be read next."""

    def tidy(self, folders: Iterable[str]) -> None:  # noqa: B027 (only a place with temporary files has any to take away)
        """Take away what killed writers left half written in these folders; nobody may be writing there."""

    @property
    def local(self) -> bool:
        """Whether random reads cost no round trip."""
        return False


def place(root: Root) -> Place:
    """The place of a path or URL. Raises InputError where the URL's protocol is not known here."""
    if "://" in (text := os.fspath(root)):
        return RemotePlace(text)
    return LocalPlace(Path(text))


class LocalPlace(Place):
    """A folder. Files are read through memory maps, of which as many stay open as the system allows."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._maps: OrderedDict[str, tuple[mmap.mmap | None, np.ndarray]] = OrderedDict()
        self._lock = threading.Lock()
        self._most = _most_open_files()

    def __reduce__(self) -> tuple[Any, ...]:
        return LocalPlace, (self.root,)

    @property
    def local(self) -> bool:
        return True

    def show(self, name: str = "") -> str:
        return str(self.root / name)

    def read(self, names: Sequence[str]) -> list[bytes]:
        return [plain_file(self.root / name).read_bytes() for name in names]

    def sizes(self, names: Sequence[str]) -> list[int | None]:
        return [self._size(name) for name in names]

    def _size(self, name: str) -> int | None:
        try:
            return (self.root / name).stat().st_size
        except (FileNotFoundError, NotADirectoryError):
            return None

    def commit(self, name: str, content: bytes | bytearray) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
        try:
            with partial.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        except OSError as error:
            raise OSError(error.errno, f"{os.strerror(error.errno or 0)} while writing", str(path)) from error
        finally:
            partial.unlink(missing_ok=True)
        _flush_folder(path.parent)

    def remove(self, name: str) -> None:
        (self.root / name).unlink(missing_ok=True)

    def tidy(self, folders: Iterable[str]) -> None:
        for folder in folders:
            for stale in (self.root / folder).rglob(".*.partial"):
                stale.unlink(missing_ok=True)

    def names(self, folder: str) -> list[str]:
        found = (self.root / folder).rglob("*")
        return sorted(path.relative_to(self.root).as_posix() for path in found if path.is_file())

    def spans(self, wanted: Sequence[Span]) -> list[np.ndarray]:
        return [self._content(span.name)[1][span.start : span.stop] for span in wanted]

    def prefetch(self, wanted: Iterable[Span]) -> None:
        for span in wanted:
            mapped, _ = self._content(span.name)
            start = span.start // _PAGE * _PAGE
            if mapped is not None and hasattr(mmap, "MADV_WILLNEED") and start < len(mapped):
                mapped.madvise(mmap.MADV_WILLNEED, start, min(span.stop, len(mapped)) - start)

    def _content(self, name: str) -> tuple[mmap.mmap | None, np.ndarray]:
        with self._lock:
            if (found := self._maps.get(name)) is not None:
                self._maps.move_to_end(name)
                return found
        with plain_file(self.root / name).open("rb") as file:
            if os.fstat(file.fileno()).st_size:
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
                found = mapped, np.frombuffer(mapped, dtype=np.uint8)
            else:  # nothing cannot be mapped
                found = None, np.empty(0, dtype=np.uint8)
        with self._lock:
            self._maps[name] = found
            while len(self._maps) > self._most:
                self._maps.popitem(last=False)  # unmapped once the last view of it is gone
        return found


class RemotePlace(Place):
    """Anything that fsspec reaches. One object is put in one request, so it is there whole or not at all."""

    def __init__(self, url: str) -> None:
        import fsspec

        self.url = url if url.endswith("://") else url.rstrip("/")
        try:
            self.files, self.root = fsspec.url_to_fs(self.url)
        except (ValueError, ImportError) as error:
            raise InputError(f"{url}: expected a protocol that fsspec can open here: {error}") from error

    def __reduce__(self) -> tuple[Any, ...]:
        return RemotePlace, (self.url,)

    def show(self, name: str = "") -> str:
        return f"{self.url}/{name}" if name else self.url

    def _path(self, name: str) -> str:
        return f"{self.root.rstrip('/')}/{name}"

    def read(self, names: Sequence[str]) -> list[bytes]:
        # Ranges without ends, since `cat` would take a name with a bracket in it for a pattern.
        return self._fetch(names, [None] * len(names), [None] * len(names))

    def sizes(self, names: Sequence[str]) -> list[int | None]:
        found: dict[str, int] = {}
        with self._named():
            self.files.invalidate_cache()  # another writer may have been here
            for folder in {name.rpartition("/")[0] for name in names}:
                with suppress(FileNotFoundError):
                    listed = self.files.find(self._path(folder), maxdepth=1, detail=True)
                    found |= {path: int(entry["size"]) for path, entry in listed.items()}
        return [found.get(self._path(name)) for name in names]

    def commit(self, name: str, content: bytes | bytearray) -> None:
        path, content = self._path(name), bytes(content)
        with self._named(name, may_lack=False):
            try:
                self.files.pipe_file(path, content)
            except FileNotFoundError:  # a protocol with folders; object stores have none, and are spared the question
                self._make_folders(path.rpartition("/")[0])
                self.files.pipe_file(path, content)

    def _make_folders(self, folder: str) -> None:
        """Each folder that is not there. Never the first part: a bucket's name with a slip would become a bucket."""
        parts = folder.split("/")
        for depth in range(2, len(parts) + 1):
            if not self.files.exists(part := "/".join(parts[:depth])):
                self.files.mkdir(part, create_parents=False)

    def remove(self, name: str) -> None:
        with self._named(name), suppress(FileNotFoundError):
            self.files.rm_file(self._path(name))

    def names(self, folder: str) -> list[str]:
        with self._named():
            self.files.invalidate_cache()
            try:
                found = self.files.find(self._path(folder))
            except FileNotFoundError:
                return []
        return sorted(path[len(self.root.rstrip("/")) + 1 :] for path in found)

    def spans(self, wanted: Sequence[Span]) -> list[np.ndarray]:
        names, starts, stops = (
            [span.name for span in wanted],
            [span.start for span in wanted],
            [span.stop for span in wanted],
        )
        return [np.frombuffer(part, dtype=np.uint8) for part in self._fetch(names, starts, stops)]

    def _fetch(self, names: Sequence[str], starts: Sequence[int | None], stops: Sequence[int | None]) -> list[bytes]:
        """Ranges of many files in one call, within which they are fetched side by side."""
        if not names:
            return []
        paths = [self._path(name) for name in names]
        with self._named():
            parts = self.files.cat_ranges(paths, list(starts), list(stops), on_error="return")
        for name, part in zip(names, parts, strict=True):
            if isinstance(part, Exception):  # older releases of fsspec return errors even where told to raise them
                with self._named(name):
                    raise part
        return list(parts)

    @contextmanager
    def _named(self, name: str = "", *, may_lack: bool = True) -> Iterator[None]:
        """Give an error of a client library, which may be anything, the file's name; that it is missing may be none."""
        try:
            yield
        except FileNotFoundError as error:
            if may_lack:
                raise
            raise InputError(f"{self.show(name)}: cannot be written: no such bucket or folder ({error})") from error
        except Exception as error:
            # Each protocol's client has errors of its own; what a person needs is where, and what it said.
            raise InputError(f"{self.show(name)}: {type(error).__name__}: {error}") from error


def _flush_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _most_open_files() -> int:
    """How many memory maps may stay open: each holds a file descriptor (Python keeps one), and others need some too.

    The soft limit, often 1,024, is raised to the hard one: a large store has tens of thousands of shards.
    """
    try:
        import resource
    except ImportError:  # Windows
        return 256
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
    most = soft if soft != resource.RLIM_INFINITY else 1 << 16
    return max(64, min(most // 2, 1 << 15))
