"""Reading a far store a window of shards at a time: each file in one request, while the last window is in use."""

# ruff: noqa: D102 (what each method of a place does is said once, in `Place`)

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from devil_pipe.store.place import Place, Span
from devil_pipe.store.reader import FeatureStore


class Window(NamedTuple):
    """Rows that are used together, and a name that no other window has."""

    key: Hashable
    rows: Sequence[int]


@dataclass
class _Held:
    """Bytes in memory: whole files, and single spans of files that were dropped."""

    files: dict[str, np.ndarray] = field(default_factory=dict)
    spans: dict[Span, np.ndarray] = field(default_factory=dict)

    def find(self, span: Span) -> np.ndarray | None:
        whole = self.files.get(span.name)
        return self.spans.get(span) if whole is None else whole[span.start : span.stop]


class BufferedPlace(Place):
    """A place that answers from memory what is held there, and asks the place behind it for the rest."""

    def __init__(self, behind: Place) -> None:
        self.behind = behind
        self.held = _Held()
        self.marked: list[Span] = []

    def __reduce__(self) -> tuple[Any, ...]:
        return BufferedPlace, (self.behind,)

    def show(self, name: str = "") -> str:
        return self.behind.show(name)

    def read(self, names: Sequence[str]) -> list[bytes]:
        return self.behind.read(names)

    def sizes(self, names: Sequence[str]) -> list[int | None]:
        return self.behind.sizes(names)

    def commit(self, name: str, content: bytes | bytearray) -> None:
        self.behind.commit(name, content)

    def remove(self, name: str) -> None:
        self.behind.remove(name)

    def names(self, folder: str) -> list[str]:
        return self.behind.names(folder)

    def spans(self, wanted: Sequence[Span]) -> list[np.ndarray]:
        held = self.held  # another thread may put the next window in its place
        found = {span: part for span in wanted if (part := held.find(span)) is not None}
        missing = [span for span in dict.fromkeys(wanted) if span not in found]
        if missing:
            found |= zip(missing, self.behind.spans(missing), strict=True)
        return [found[span] for span in wanted]

    def prefetch(self, wanted: Iterable[Span]) -> None:
        self.marked += wanted


class WindowReader:
    """Holds the shards of one window of a store in memory and fetches those of the next one.

    From then on the store given answers from memory where it can. At most two windows are held, the one in use and the
    next: 2 × shards a window × bytes of a shard of all layers, and the few rows that a window takes over from the last.
    """

    def __init__(self, store: FeatureStore) -> None:
        self.store = store
        behind = store.place.behind if isinstance(store.place, BufferedPlace) else store.place
        self.place = store.place = BufferedPlace(behind)
        self.current: Hashable = None
        self._ahead = ThreadPoolExecutor(1)
        self._coming: tuple[Hashable, Future[_Held]] | None = None

    def enter(self, window: Window, following: Window | None) -> None:
        """Make a window's rows readable from memory, and begin to fetch the one that follows, if any.

        Raises:
            FileNotFoundError, InputError: the place does not give a file.
        """
        if self._coming is not None and self._coming[0] == window.key:
            held = self._coming[1].result()
        else:
            held = self._ahead.submit(self._fetch, window.rows, self.place.held).result()
        self.place.held, self.current, self._coming = held, window.key, None
        if following is not None:
            self._coming = following.key, self._ahead.submit(self._fetch, following.rows, held)

    def close(self) -> None:
        """Let go of all that is held, after what is being read has come."""
        self._ahead.shutdown(cancel_futures=True)
        self.place.held, self.current, self._coming = _Held(), None, None

    def _fetch(self, rows: Sequence[int], before: _Held) -> _Held:
        """The files of the rows' shards; of rows whose shard is held already, their own bytes alone are copied."""
        held = _Held()
        wanted: list[Span] = []
        over: list[int] = []
        shards = {int(row) // self.store.manifest.shard_rows for row in rows}
        known = {shard for shard in shards if all(name in before.files for name, _ in self._files(shard))}
        for shard in sorted(shards - known):
            wanted += [Span(name, 0, size) for name, size in self._files(shard)]
        over = [int(row) for row in rows if int(row) // self.store.manifest.shard_rows in known]
        held.files = dict(zip((span.name for span in wanted), self.place.behind.spans(wanted), strict=True))
        for layer in self.store.layers:
            self.store[layer.name].prefetch(over)
        for span in self.place.marked:
            held.spans[span] = before.files[span.name][span.start : span.stop].copy()
        self.place.marked = []
        return held

    def _files(self, shard: int) -> list[tuple[str, int]]:
        """Name and size of each file of a shard."""
        record = self.store.manifest.shards[shard]
        return [(self.store.file(array, record), file.size) for array, file in record.files.items()]
