"""Does a description name the object that is there? Only where the index knows the objects."""

from __future__ import annotations

import re
from collections.abc import Iterable

_ARTICLE = re.compile(r"^(a|an|the) ")


def bare(name: str) -> str:
    """An object's name without its article, in lower case."""
    return _ARTICLE.sub("", name.lower().strip())


class Namer:
    """Finds which object of a vocabulary a description names: the longest name that stands in it as words.

    So "a sea lion" names the sea lion and not the lion.
    """

    def __init__(self, names: Iterable[str]) -> None:
        """`names` are all the objects of the index, with or without article."""
        ordered = sorted({bare(name) for name in names if name}, key=lambda name: (-len(name), name))
        self._pattern = re.compile(r"\b(" + "|".join(re.escape(name) for name in ordered) + r")\b") if ordered else None

    def named(self, description: str) -> str:
        """The name found, or ""; of several the longest, then the first."""
        if self._pattern is None:
            return ""
        found = self._pattern.findall(description.lower())
        return max(found, key=len, default="")

    def right(self, description: str, name: str) -> bool:
        """Whether the description names this object."""
        return self.named(description) == bare(name)
