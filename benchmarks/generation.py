"""Greedy descriptions of a batch of prefixes beside one prefix at a time and beside transformers' own generate.

The language model is the demo's, SmolLM2-135M in float32. The prefixes spell captions and are read twice, as after the
alignment warm-up, so that the texts are sentences that end at different places. Needs `devil-pipe assets smollm2-135m`.
"""

from __future__ import annotations

import os
import statistics

import torch
from _measure import interleaved, report

from devil_pipe.stages.common.memory import keep_freed_memory
from devil_pipe.stages.train.language_model import LanguageModel

PREFIXES = int(os.environ.get("PREFIXES", "32"))
ROUNDS = int(os.environ.get("ROUNDS", "3"))
QUERIES, TOKENS = 10, 20
THINGS = (
    "a cow",
    "two sea lions",
    "an old red bicycle",
    "a rooster",
    "a cup of black coffee",
    "a dog",
    "a green snake",
)
PLACES = ("on a lake", "in front of a brick wall", "in a kitchen", "under a tree in the park", "at night")
MODEL = "smollm2-135m"


def captions() -> list[str]:
    return [f"{THINGS[row % len(THINGS)]} {PLACES[row % len(PLACES)]}" for row in range(PREFIXES)]


def spelled(model: LanguageModel) -> torch.Tensor:
    """Prefix tokens that are the embeddings of a caption's first tokens, filled with EOS."""
    ids = [row[:QUERIES] for row in model.encode(captions())]
    filled = torch.tensor([row + [model.eos] * (QUERIES - len(row)) for row in ids])
    with torch.no_grad():
        return model.embedding(filled)


def main() -> None:
    keep_freed_memory()  # as evaluation does
    model = LanguageModel(MODEL, device=torch.device("cpu"), dtype=torch.float32, repeats=2)
    prefix = spelled(model)

    written: dict[str, list[str]] = {}

    def together() -> None:
        written["together"] = model.write(prefix, TOKENS)

    def alone() -> None:
        written["alone"] = [text for row in prefix.split(1) for text in model.write(row, TOKENS)]

    def generate() -> None:
        """transformers' own, on the whole batch: rows that have ended stay in it."""
        before = model.context(prefix, len(prefix))
        with torch.inference_mode():
            ids = model.model.generate(
                inputs_embeds=before,
                attention_mask=torch.ones(before.shape[:2], dtype=torch.long),
                max_new_tokens=TOKENS,
                do_sample=False,
                eos_token_id=model.eos,
                pad_token_id=model.pad,
            )
        written["generate"] = [model.decode(row) for row in ids.tolist()]

    seconds = interleaved(
        {"one at a time": alone, "batch, finished rows leave": together, "batch, transformers' generate": generate},
        ROUNDS,
    )
    texts = written["together"]
    assert texts == written["alone"] == written["generate"], "identical texts"
    lengths = [len(row) for row in model.encode(texts)]
    report(
        "generation",
        seconds,
        "one at a time",
        sum(lengths),
        "tokens",
        ratio_of_medians=round(
            statistics.median(seconds["one at a time"]) / statistics.median(seconds["batch, finished rows leave"]), 3
        ),
        identical_texts=True,
        language_model=f"{MODEL}, float32",
        prefixes=PREFIXES,
        context_tokens=int(model.context(prefix[:1], 1).shape[1]),
        max_new_tokens=TOKENS,
        tokens_of_a_text={"min": min(lengths), "median": statistics.median(lengths), "max": max(lengths)},
        different_texts=len(set(texts)),
        data="prefixes that spell captions made of two lists of words",
    )


if __name__ == "__main__":
    main()
