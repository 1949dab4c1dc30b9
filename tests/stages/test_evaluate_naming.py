"""Which objects a description names, by hand and against a walk through its words."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from devil_pipe.stages.evaluate.naming import Namer, bare

NAMES = ["a lion", "a sea lion", "an ant", "the Eiffel tower", "a jack-o'-lantern", "C++"]


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("a sea lion on a beach", ["sea lion"]),
        ("a lion on a beach", ["lion"]),
        ("a lion and a sea lion", ["lion", "sea lion"]),
        ("A Sea Lion.", ["sea lion"]),
        ("the Eiffel Tower at night", ["eiffel tower"]),
        ("an elephant in a pantry", []),  # holds "ant", but not as a word
        ("two lions", []),
        ("a sealion", []),
        ("lion", ["lion"]),
        ("", []),
        ("a jack-o'-lantern in front of a wall", ["jack-o'-lantern"]),
        ("a book on c++, a lion", ["c++", "lion"]),
    ],
)
def test_names_are_whole_words_and_the_longest_at_each_place(text: str, named: list[str]) -> None:
    namer = Namer(NAMES)
    assert namer.named(text) == named
    for name in NAMES:
        assert namer.right(text, name) == (bare(name) in named)


@pytest.mark.parametrize(
    ("name", "without"),
    [("a dog", "dog"), ("An Ant", "ant"), ("the sun", "sun"), ("antelope", "antelope"), ("theatre", "theatre")],
)
def test_articles_go_and_words_that_begin_like_them_stay(name: str, without: str) -> None:
    assert bare(name) == without


def test_without_names_nothing_is_named() -> None:
    assert Namer([]).named("a dog") == Namer(["", ""]).named("a dog") == []
    assert not Namer([]).right("a dog", "a dog")


WORDS = st.sampled_from(["sea", "lion", "red", "fox", "pig", "pen", "lions"])
TEXTS = st.lists(WORDS, min_size=1, max_size=7).map(" ".join)


@settings(deadline=None)  # cores may be busy
@given(names=st.lists(TEXTS, min_size=1, max_size=6), text=TEXTS)
def test_naming_is_a_walk_through_the_words(names: list[str], text: str) -> None:
    words, found = text.split(), []
    while words:
        starts = [name for name in names if words[: len(name.split())] == name.split()]
        longest = max(starts, key=len, default="")
        found += [longest] if longest else []
        words = words[max(len(longest.split()), 1) :]
    assert Namer(names).named(text) == found
