"""A fuzzer's bytes as decisions: which file, which edit, where. The same bytes are always the same decisions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

Item = TypeVar("Item")


class Choices:
    """Decisions read from bytes one after another; once these are used up, every answer is the first one."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def below(self, count: int) -> int:
        """A number from 0 up to, and without, `count`."""
        if count <= 1:
            return 0
        width = ((count - 1).bit_length() + 7) // 8
        return int.from_bytes(self.take(width), "little") % count

    def pick(self, items: Sequence[Item]) -> Item:
        """One of the items."""
        return items[self.below(len(items))]

    def one_in(self, count: int) -> bool:
        """True once in `count` times; never where the bytes are used up."""
        return self.below(count) == count - 1

    def take(self, count: int) -> bytes:
        """The next bytes; fewer where they end."""
        found = self._data[self._at : self._at + count]
        self._at += count
        return found
