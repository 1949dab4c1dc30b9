"""Does a description name the object that is there? Only where the index knows the objects."""

from __future__ import annotations

import re
from collections.abc import Iterable

_ARTICLE = re.compile(r"^(a|an|the) ")


def bare(name: str) -> str:
    """An object's name without its article, in lower case."""
    return _ARTICLE.sub("", name.lower().strip())


class Namer:
    """Finds which objects of a vocabulary a description names, as whole words, the longest name at each place.

    So "a sea lion" names the sea lion and not the lion.
    """

    def __init__(self, names: Iterable[str]) -> None:
        """`names` are all the objects of the index, with or without article."""
        ordered = sorted({bare(name) for name in names if name}, key=lambda name: (-len(name), name))
        either = "|".join(re.escape(name) for name in ordered)
        # Not \b, which fails beside a sign, as in "C++".
        self._pattern = re.compile(rf"(?<!\w)({either})(?!\w)") if ordered else None

    def named(self, description: str) -> list[str]:
        """The names found, in their order."""
        return [] if self._pattern is None else self._pattern.findall(description.lower())

    def right(self, description: str, name: str) -> bool:
        """Whether the description names this object, whatever else it names (a scene may hold a name too)."""
        return bare(name) in self.named(description)
