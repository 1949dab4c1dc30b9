"""The language of descriptions: shares of adjectives and verbs, and how many different words (Table 4 of the paper).

The paper does not say which tagger it used, nor what it counted as a word. Here: spaCy's small English pipeline with
its tokenizer; a word is a token that is neither punctuation, nor a sign, nor space; adjectives and verbs are the
universal tags ADJ and VERB, auxiliaries ("is" in "is running") not among them; words differ by their lower-cased form.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jaxtyping import Float, Int

from devil_pipe.stages.common.assets import asset
from devil_pipe.stages.common.files import sha256_file, write_json
from devil_pipe.stages.evaluate.bootstrap import Interval, bootstrap_statistic
from devil_pipe.stages.evaluate.conditions import ALL
from devil_pipe.store.errors import InputError

TAGGER = "en-core-web-sm"
REFERENCES = "references"
"""The condition under which the pictures' own captions are counted."""

_NO_WORDS = {"PUNCT", "SYM", "SPACE"}
_UNUSED = ("parser", "ner", "senter", "lemmatizer")  # the asset leaves them out


@dataclass(frozen=True)
class Tagger:
    """A loaded pipeline that gives each word's tag."""

    pipeline: Any
    label: str
    """Model and version of library: figures of different taggers are not comparable."""

    def words(self, texts: Sequence[str]) -> list[list[tuple[str, str]]]:
        """For each text its words, lower-cased, each with its universal part-of-speech tag."""
        kinds = list(dict.fromkeys(texts))  # many a null control says one thing of every picture
        found = self.pipeline.pipe(kinds, batch_size=256)
        tagged = {
            text: [(token.lower_, token.pos_) for token in tokens if token.pos_ not in _NO_WORDS]
            for text, tokens in zip(kinds, found, strict=True)
        }
        return [tagged[text] for text in texts]


def load_tagger() -> Tagger:
    """spaCy's pipeline from the asset cache.

    Raises:
        InputError: the asset was not fetched; says how.
    """
    folder = asset(TAGGER)
    import spacy  # late: it takes seconds

    pipeline = spacy.load(folder, exclude=list(_UNUSED))
    meta = pipeline.meta
    return Tagger(pipeline, f"{meta['lang']}_{meta['name']} {meta['version']}, spaCy {spacy.__version__}")


def statistics(texts: Sequence[Sequence[str]], tagger: Tagger, *, seed: int, resamples: int = 1000) -> dict[str, Any]:
    """Shares of adjectives and verbs among all words, with 95 % intervals over pictures, and the different words.

    Args:
        texts: of each picture its sentences, one description or several references.
        tagger: of `load_tagger`.
        seed: of the bootstrap.
        resamples: of the bootstrap.

    Returns:
        `adjectives` and `verbs` (shares in [0, 1]; `value`, `low`, `high`), `different_words` (`value` alone: a
        resampled corpus has fewer different words, so a bootstrap says nothing of it), `words` and `pictures` (counts).
        Without a single word the shares are `not_run`.
    """
    flat = tagger.words([text for sentences in texts for text in sentences])
    bounds = np.cumsum([0, *(len(sentences) for sentences in texts)])
    rows = [[pair for words in flat[start:end] for pair in words] for start, end in pairwise(bounds)]
    counts = np.array([[len(row), *(sum(tag == kind for _, tag in row) for kind in ("ADJ", "VERB"))] for row in rows])
    found: dict[str, Any] = {
        "different_words": {"value": len({word for row in rows for word, _ in row})},
        "words": int(counts[:, 0].sum()),
        "pictures": len(rows),
    }
    for column, name in ((1, "adjectives"), (2, "verbs")):
        if not found["words"]:
            found[name] = {"not_run": "no description holds a word"}
            continue
        found[name] = _share(counts[:, column], counts[:, 0], seed, resamples).as_json()
    return found


def of_run(run_dir: Path, split: str, *, seed: int, resamples: int = 1000) -> dict[str, Any]:
    """The statistics of each condition of a run's predictions, kept in `language/statistics.json` until they change.

    Returns:
        `tagger`, `predictions` (SHA-256 of the file), `split`, `seed`, `resamples`, and `conditions`: condition →
        `statistics`; under `references` those of the pictures' own captions.

    Raises:
        InputError: no predictions, none of the split, or no tagger.
    """
    path = run_dir / "predictions.parquet"
    if not path.is_file():
        raise InputError(f"{path}: expected this file, found nothing: run `devil-pipe evaluate {run_dir.name}` first")
    kept = run_dir / "language" / "statistics.json"
    head = {"predictions": sha256_file(path), "split": split, "seed": seed, "resamples": resamples}
    if kept.is_file():
        with suppress(ValueError, AttributeError):  # what cannot be read is counted anew
            found: dict[str, Any] = json.loads(kept.read_text(encoding="utf-8"))
            if {key: found.get(key) for key in head} == head:
                return found
    tagger = load_tagger()
    table = pq.read_table(path, columns=["split", "condition", "description", "references"])
    table = table.filter(pc.equal(table["split"], split))
    if not table.num_rows:
        raise InputError(f"{path}: expected descriptions of the split {split!r}, got none")
    texts: dict[str, list[list[str]]] = {}
    for row in table.to_pylist():
        texts.setdefault(row["condition"], []).append([row["description"]])
        if row["condition"] == ALL:
            texts.setdefault(REFERENCES, []).append(list(row["references"]))
    conditions = {name: statistics(item, tagger, seed=seed, resamples=resamples) for name, item in texts.items()}
    found = {**head, "tagger": tagger.label, "conditions": conditions}
    write_json(kept, found)
    return found


def _share(part: Int[np.ndarray, " n"], whole: Int[np.ndarray, " n"], seed: int, resamples: int) -> Interval:
    """Sum over sum of the drawn pictures; a draw without a word counts as 0."""

    def ratio(drawn: Int[np.ndarray, "draws n"]) -> Float[np.ndarray, " draws"]:
        words = whole[drawn].sum(axis=1)
        return np.asarray(part[drawn].sum(axis=1) / np.maximum(words, 1))

    return bootstrap_statistic(ratio, len(whole), seed=seed, resamples=resamples)
