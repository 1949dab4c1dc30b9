"""Which pictures fit a description, and whether a unit is more active on them: rank statistics over rows."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from scipy.stats import rankdata

from devil_pipe.stages.evaluate.language import TAGGER, Tagger, load_tagger
from devil_pipe.stages.evaluate.naming import Namer
from devil_pipe.stages.saliency.words import NOUNS, main_words
from devil_pipe.store.errors import InputError

_WORD = re.compile(r"\w+")


class Nouns:
    """Finds the noun that a description is about."""

    def __init__(self, tagger: Tagger | None, namer: Namer) -> None:
        """Without a tagger the first of the objects that `namer` knows stands for the noun."""
        self.tagger, self.namer = tagger, namer

    @property
    def label(self) -> str:
        """How nouns are found; figures of different ways do not compare."""
        return "the names of the index's objects" if self.tagger is None else self.tagger.label

    def of(self, text: str) -> str:
        """The first noun, with the nouns that stand right before it ("sea lion"); "" where there is none."""
        if self.tagger is None:
            return next(iter(self.namer.named(text)), "")
        phrase = next(iter(main_words(text, self.tagger)), "")
        tags: dict[str, str] = {}
        for word, tag in self.tagger.words([text])[0] if phrase else ():
            tags.setdefault(word, tag)
        words = phrase.split()
        while words and tags[words[0]] not in NOUNS:
            words.pop(0)
        return " ".join(words)


def find_nouns(namer: Namer, objects: bool) -> Nouns | str:
    """How the nouns of descriptions can be found here; a reason where they cannot.

    Args:
        namer: of the index's objects.
        objects: whether it names any.
    """
    try:
        return Nouns(load_tagger(), namer)
    except InputError as error:
        if objects:
            return Nouns(None, namer)
        return f"neither {TAGGER} is there nor does the index name objects ({error})"


def fitting(nouns: Sequence[str], captions: Sequence[Sequence[str]]) -> Bool[np.ndarray, "nouns rows"]:
    """Which rows have a caption with the noun, as whole words; case does not count."""
    texts = [" | ".join(_plain(caption) for caption in row) for row in captions]
    found = np.zeros((len(nouns), len(texts)), dtype=bool)
    for place, noun in enumerate(nouns):
        wanted = _plain(noun)
        found[place] = [wanted in text for text in texts]
    return found


def _plain(text: str) -> str:
    """A text's words, each between two spaces."""
    return f" {' '.join(_WORD.findall(text.lower()))} "


def holding(objects: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> Bool[np.ndarray, "objects rows"]:
    """Which rows show which object, by the index."""
    shown = np.array([row["object"] for row in rows], dtype=object)
    return np.array([shown == name for name in objects], dtype=bool).reshape(len(objects), len(rows))


def ranks(maxima: Float[np.ndarray, "rows units"]) -> Float[np.ndarray, "units rows"]:
    """Each unit's rows by its activation: 1 for the lowest; of equal ones all have their mean rank."""
    found: np.ndarray = rankdata(maxima.astype(np.float32), axis=0).T
    return found


def aucs(
    ranked: Float[np.ndarray, "units rows"], chosen: Bool[np.ndarray, "things rows"]
) -> Float[np.ndarray, "units things"]:
    """How likely a chosen row is above another one (ties count half): 0.5 knows nothing.

    The area under the ROC curve, as Mann and Whitney count it. NaN where a thing has no row, or every one.
    """
    have = chosen.sum(axis=1).astype(np.float64)
    pairs = have * (chosen.shape[1] - have)
    above = ranked @ chosen.T.astype(np.float64) - have * (have + 1) / 2
    return np.where(pairs > 0, above / np.maximum(pairs, 1), np.nan)


def correlations(
    ranked: Float[np.ndarray, "units rows"], chosen: Bool[np.ndarray, "things rows"]
) -> Float[np.ndarray, "units things"]:
    """Spearman's rank correlation of activation and being chosen; 0 for a unit that is the same on every row.

    NaN where a thing has no row, or every one.
    """
    own = ranked - ranked.mean(axis=1, keepdims=True)
    other = chosen - chosen.mean(axis=1, keepdims=True)
    lengths = np.linalg.norm(own, axis=1)[:, None] * np.linalg.norm(other, axis=1)[None]
    found: np.ndarray = np.divide(own @ other.T, lengths, out=np.zeros(lengths.shape), where=lengths > 1e-9)
    found[:, ~other.any(axis=1)] = np.nan
    return found
