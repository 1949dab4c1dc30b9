"""Do two words for one thing light up the same places?"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from devil_pipe.stages.audit.findings import Case, Check, Demand, Measured, Needs, Row, Table
from devil_pipe.stages.audit.statistics import agreement
from devil_pipe.stages.common.progress import track
from devil_pipe.stages.evaluate.naming import bare

if TYPE_CHECKING:
    from devil_pipe.stages.audit.opened import Audited

PAIRS = (
    ("airplane", "aircraft"),
    ("bicycle", "bike"),
    ("bull", "ox"),
    ("bunny", "rabbit"),
    ("car", "automobile"),
    ("cat", "feline"),
    ("cello", "violoncello"),
    ("chicken", "hen"),
    ("couch", "sofa"),
    ("cow", "heifer"),
    ("cup", "mug"),
    ("dog", "hound"),
    ("donkey", "ass"),
    ("dromedary", "camel"),
    ("duck", "drake"),
    ("fireman", "firefighter"),
    ("garbage truck", "dustcart"),
    ("gnu", "wildebeest"),
    ("hippopotamus", "hippo"),
    ("horse", "steed"),
    ("mailbox", "letter box"),
    ("motorcycle", "motorbike"),
    ("orca", "killer whale"),
    ("paratrooper", "parachutist"),
    ("person", "human"),
    ("pig", "hog"),
    ("race car", "racer"),
    ("reindeer", "caribou"),
    ("rooster", "cock"),
    ("seagull", "gull"),
    ("ship", "vessel"),
    ("soccer ball", "football"),
    ("sports car", "roadster"),
    ("television", "tv set"),
    ("trumpet", "bugle"),
    ("turkey", "gobbler"),
    ("violin", "fiddle"),
    ("wapiti", "elk"),
    ("wheelie bin", "dustbin"),
    ("wrench", "spanner"),
)
"""Words for the same thing, or so near that a map should hardly tell them apart; none shares a word with its other."""


def alike(one: str, other: str) -> bool:
    """Whether two names end in the words of a pair: "a brown hen" and "a chicken"."""
    return any(
        (_ends(one, first) and _ends(other, second)) or (_ends(one, second) and _ends(other, first))
        for first, second in PAIRS
    )


def _ends(name: str, word: str) -> bool:
    return name == word or name.endswith(f" {word}")


def measure(audited: Audited) -> Measured:
    """Rank correlation of the maps of two synonyms, beside that of the word and another object's."""
    audited.needs_locations()
    asked = _asked(audited)
    layer, ours, others, found = audited.deepest, [], [], []
    for row, word, synonym, unrelated in track(asked, "synonyms", unit="pictures"):
        maps = audited.scores(layer, audited.locations(row), [word, synonym, unrelated])
        ours.append(agreement(maps[0], maps[1]))
        others.append(agreement(maps[0], maps[2]))
        found.append((ours[-1] - others[-1], row, (word, synonym, unrelated), maps))
    apart = audited.mean([found_one[0] for found_one in found])
    rows = (
        Row("a synonym", (audited.mean(ours),)),
        Row("another object’s word", (audited.mean(others),), control=True),
        Row("difference", (apart,)),
    )
    pairs = sorted({f"{bare(word)} / {bare(synonym)}" for _, word, synonym, _ in asked})
    return Measured(
        n=f"{len(asked)} pictures, {len(pairs)} pairs: {', '.join(pairs)}",
        demands=(Demand(f"{layer}: agreement with the synonym’s map, less that with the other word’s", apart),),
        tables=(
            Table(f"Rank correlation of the word’s map at {layer} with that of", "word", ("rank correlation",), rows),
        ),
        cases=tuple(_case(audited, *item) for item in sorted(found, key=lambda item: item[:2])[:3]),
    )


def _asked(audited: Audited) -> list[tuple[int, str, str, str]]:
    """For each picture whose object has a synonym: the row, both words, and a word for something else."""
    found = []
    for row in audited.shuffled:
        name = bare(audited.entry(row)["object"])
        synonym = next((other for pair in PAIRS for word, other in (pair, pair[::-1]) if word == name), None)
        unrelated = audited.absent(row)
        if synonym and unrelated:
            found.append((row, _with_article(name), _with_article(synonym), unrelated[0]))
    found = found[: audited.config.pictures]
    if len({name for _, name, _, _ in found}) < 3:
        raise Needs("pictures of three objects that the list of synonyms in stages/audit/synonyms.py knows")
    return found


def _with_article(name: str) -> str:
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def _case(audited: Audited, apart: float, row: int, words: tuple[str, str, str], maps: np.ndarray) -> Case:
    pictures = audited.album.picture(row, "the picture")
    for word, values in zip(words, maps, strict=True):
        pictures += audited.album.overlay(row, values, f"synonym-{word}", word)
    return Case(audited.entry(row)["key"], f"{words[0]} / {words[1]}: {apart:+.2f}", (), pictures)


CHECK = Check(
    name="synonyms",
    title="Synonyms",
    tested="The map of an object’s name, and that of another word for the same thing, on pictures of that object.",
    catches="Maps that follow the spelling, or how common a word is, differ as much between synonyms as between any "
    "two words.",
    rule="At the deepest layer: the mean rank correlation of a word’s map with its synonym’s, less that with a word "
    "for something else, has an interval above 0.",
    worst="the smallest differences",
    measure=measure,
)
