"""The alignment warm-up: targets by hand, its loss in closed form, and reading as its inverse."""

import math
from itertools import permutations
from typing import Literal

import pytest
import torch
from torch import Tensor

from devil_pipe.stages.train.alignment import Alignment
from devil_pipe.stages.train.config import PhaseConfig, WarmupConfig

EOS, QUERIES, WIDTH = 9, 4, 12
CAPTIONS = [(3, 5), (5, 5, 7, 1), (1, 3, 7, 5, 3, 1)]
USED = [1, 3, 5, 7, EOS]


def alignment(
    embeddings: Tensor | None = None,
    scale: float = 20.0,
    pull: float = 0.0,
    targets: Literal["position", "bag"] = "position",
) -> Alignment:
    config = WarmupConfig(kind="alignment", phase=PhaseConfig(steps=1), scale=scale, pull=pull, targets=targets)
    rows = torch.eye(WIDTH) * 3 if embeddings is None else embeddings
    return Alignment(config, rows, CAPTIONS, EOS, QUERIES)


def tokens_of(made: Alignment, captions: list[tuple[int, ...]]) -> list[list[int]]:
    return [[USED[place] for place in row] for row in made.targets(captions).tolist()]


def test_captions_are_cut_at_the_queries_or_filled_with_the_end() -> None:
    assert tokens_of(alignment(), CAPTIONS) == [[3, 5, EOS, EOS], [5, 5, 7, 1], [1, 3, 7, 5]]
    assert tokens_of(alignment(), [()]) == [[EOS] * 4]


def test_a_token_that_training_never_saw_counts_as_the_end() -> None:
    assert tokens_of(alignment(), [(3, 8, 5)]) == [[3, EOS, 5, EOS]]


def test_the_code_book_holds_the_training_tokens_alone() -> None:
    assert alignment().tokens.tolist() == USED


def perfect(captions: list[tuple[int, ...]], length: float = 1.0) -> Tensor:
    rows = [[*caption[:QUERIES], *[EOS] * (QUERIES - len(caption))] for caption in captions]
    return torch.eye(WIDTH)[torch.tensor(rows)] * length


@pytest.mark.parametrize("length", [0.1, 1.0, 30.0])
@pytest.mark.parametrize("scale", [1.0, 20.0])
def test_loss_of_perfect_prefixes(scale: float, length: float) -> None:
    """Orthogonal codes: cosine 1 to the right one, 0 to the others; lengths do not matter."""
    expected = math.log(math.exp(scale) + len(USED) - 1) - scale
    for pull in (0.0, 5.0):
        found = alignment(scale=scale, pull=pull).loss(perfect(CAPTIONS, length), CAPTIONS)
        assert float(found) == pytest.approx(expected, abs=1e-6)


def test_loss_of_prefixes_that_know_nothing() -> None:
    """Orthogonal to every code: all equally likely, and 1 − cosine is 1."""
    prefix = torch.eye(WIDTH)[0].expand(len(CAPTIONS), QUERIES, -1)
    assert float(alignment().loss(prefix, CAPTIONS)) == pytest.approx(math.log(len(USED)), abs=1e-6)
    assert float(alignment(pull=2.5).loss(prefix, CAPTIONS)) == pytest.approx(math.log(len(USED)) + 2.5, abs=1e-6)


def test_the_pull_waits_for_its_share_of_the_phase() -> None:
    """Half-right prefixes: the pull adds 2 · (1 − cosine), from 60 % of the phase on."""
    phase = PhaseConfig(steps=1)
    config = WarmupConfig(kind="alignment", phase=phase, pull=2.0, pull_from=0.6)
    made = Alignment(config, torch.eye(WIDTH), CAPTIONS, EOS, QUERIES)
    prefix = perfect(CAPTIONS) + torch.eye(WIDTH)[0]  # cosine 1 / √2 to the right code
    bare = float(alignment().loss(prefix, CAPTIONS))
    assert float(made.loss(prefix, CAPTIONS, 0.59)) == pytest.approx(bare)
    assert float(made.loss(prefix, CAPTIONS, 0.6)) == pytest.approx(bare + 2 * (1 - 0.5**0.5), rel=1e-5)
    assert float(made.loss(prefix, CAPTIONS)) == pytest.approx(bare + 2 * (1 - 0.5**0.5), rel=1e-5)


def test_loss_of_any_prefix_is_a_slow_loop() -> None:
    torch.manual_seed(0)
    rows, prefix = torch.randn(WIDTH, 6), torch.randn(len(CAPTIONS), QUERIES, 6)
    total = 0.0
    for row, caption in enumerate(CAPTIONS):
        for place in range(QUERIES):
            right = caption[place] if place < len(caption) else EOS
            vector = prefix[row, place].double()
            cosine = {
                token: float(vector @ rows[token].double() / vector.norm() / rows[token].double().norm())
                for token in USED
            }
            total += math.log(sum(math.exp(7 * value) for value in cosine.values())) - 7 * cosine[right]
            total += 3 * (1 - cosine[right])
    found = alignment(rows, scale=7, pull=3).loss(prefix, CAPTIONS)
    assert float(found) == pytest.approx(total / len(CAPTIONS) / QUERIES, rel=1e-5)


def test_reading_inverts_spelling() -> None:
    torch.manual_seed(1)
    rows = torch.randn(WIDTH, 32)
    made = alignment(rows)
    spelled = torch.stack(
        [rows[torch.tensor([*caption[:QUERIES], *[EOS] * (QUERIES - len(caption))])] for caption in CAPTIONS]
    )
    assert made.read(spelled * 0.3) == [list(caption[:QUERIES]) for caption in CAPTIONS]


def test_reading_ends_at_the_first_end() -> None:
    assert alignment().read(torch.eye(WIDTH)[torch.tensor([[3, EOS, 5, 1], [EOS, 1, 1, 1]])]) == [[3], []]


def test_a_bag_costs_what_the_cheapest_order_of_the_tokens_costs() -> None:
    """Every order tried, one after the other."""
    torch.manual_seed(2)
    rows, prefix = torch.randn(WIDTH, 6), torch.randn(len(CAPTIONS), QUERIES, 6)
    made = alignment(rows, scale=7, pull=3, targets="bag")
    total = 0.0
    for row, caption in enumerate(CAPTIONS):
        wanted = [*caption[:QUERIES], *[EOS] * (QUERIES - len(caption))]
        cosines = torch.nn.functional.cosine_similarity(prefix[row, :, None], rows[torch.tensor(USED)], dim=-1)
        logs = (7 * cosines).log_softmax(dim=1)
        orders = [[USED.index(token) for token in order] for order in permutations(wanted)]
        best = min(orders, key=lambda order: -sum(float(logs[place, token]) for place, token in enumerate(order)))
        total -= sum(float(logs[place, token]) for place, token in enumerate(best)) / QUERIES
        total += 3 * sum(1 - float(cosines[place, token]) for place, token in enumerate(best)) / QUERIES
    assert float(made.loss(prefix, CAPTIONS)) == pytest.approx(total / len(CAPTIONS), rel=1e-5)


def test_the_order_of_a_bag_costs_nothing() -> None:
    mixed = perfect(CAPTIONS)[:, [2, 0, 3, 1]]
    assert float(alignment(targets="bag").loss(mixed, CAPTIONS)) == pytest.approx(
        float(alignment().loss(perfect(CAPTIONS), CAPTIONS)), abs=1e-6
    )
    assert float(alignment().loss(mixed, CAPTIONS)) > 1


def test_a_bag_is_read_past_its_ends_and_scored_in_any_order() -> None:
    bag, ordered = alignment(targets="bag"), alignment()
    assert bag.read(torch.eye(WIDTH)[torch.tensor([[EOS, 3, EOS, 5]])]) == [[3, 5]]
    assert bag.agreement([5, 3], (3, 5)) == (2, 2)
    assert ordered.agreement([5, 3], (3, 5)) == (0, 2)
    assert bag.agreement([5, 5], (5, 3, 1)) == (1, 3)
    assert ordered.agreement([1, 3], (1, 3, 7, 5, 3, 1)) == (2, 4), "captions are cut at the queries"
