"""The main words of a description, to be asked for as queries (Figures 1 and 4 of the paper)."""

from __future__ import annotations

from devil_pipe.stages.evaluate.language import Tagger

NOUNS = {"NOUN", "PROPN"}
BEFORE = {"DET", "ADJ", "NUM", *NOUNS}
"""What may stand between a noun's article and the noun."""


def main_words(text: str, tagger: Tagger) -> list[str]:
    """Each noun of a text, once, with the article and adjectives that stand right before it: "a sea lion", "the lake".

    No word is the noun of a preposition such as "in front of".

    The paper queries the bare words. Right after a prefix, though, a language model that was trained on captions
    expects an article; on the demo's test pictures maps of "a cow" point better than those of "cow" (docs/saliency.md).

    Args:
        text: a description.
        tagger: of `load_tagger`; it has to be right about which words are nouns.
    """
    (words,) = tagger.words([text])
    words = [word for place, word in enumerate(words) if not _in_a_preposition(words, place)]
    found: list[str] = []
    phrase: list[tuple[str, str]] = []
    for word in [*words, ("", "")]:
        begins = word[1] in ("DET", "NUM") or (word[1] == "ADJ" and bool(phrase) and phrase[-1][1] in NOUNS)
        if begins or word[1] not in BEFORE:
            if phrase and phrase[-1][1] in NOUNS:
                found.append(" ".join(item for item, _ in phrase))
            phrase = []
        if word[1] in BEFORE:
            phrase.append(word)
    return list(dict.fromkeys(found))


def _in_a_preposition(words: list[tuple[str, str]], place: int) -> bool:
    """Whether a bare noun stands between a preposition and "of"."""
    around = [words[other] if 0 <= other < len(words) else ("", "") for other in (place - 1, place, place + 1)]
    return around[0][1] == "ADP" and around[1][1] in NOUNS and around[2][0] == "of"
