"""BERTScore with a model that lies in a folder, the settings it was computed with, and an interval.

Zhang et al. 2020, through the functions of the bert-score package. Scores of different models, layers or
settings cannot be compared, so the settings hash stands wherever a score does.
"""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from devil_pipe.stages.common.files import sha256_file, sha256_json
from devil_pipe.stages.evaluate.bootstrap import Interval, bootstrap_mean
from devil_pipe.store.errors import InputError

# What decides a model's embeddings: its weights, its configuration and its vocabulary.
_PARTS = ("config.json", "tokenizer*", "special_tokens_map.json", "vocab*", "merges.txt", "*.safetensors", "*.bin")
# Tokenizers that name no longest text carry a huge number, on which bert_score's call fails.
_NO_LIMIT = 1_000_000
_LONGEST = 512  # tokens


def bertscore(
    hypotheses: Sequence[str],
    references: Sequence[Sequence[str]],
    *,
    model: Path | str,
    num_layers: int,
    seed: int,
    idf: bool = False,
    rescale_with_baseline: bool = False,
    lower_case: bool = False,
    resamples: int = 1000,
    name: str | None = None,
) -> tuple[Interval, str]:
    """Mean BERTScore F1 of one set of hypotheses, and the settings hash. See `bertscore_conditions`."""
    scores, settings = bertscore_conditions(
        {"all": hypotheses},
        references,
        model=model,
        num_layers=num_layers,
        seed=seed,
        idf=idf,
        rescale_with_baseline=rescale_with_baseline,
        lower_case=lower_case,
        resamples=resamples,
        name=name,
    )
    return scores["all"], settings


def bertscore_conditions(
    conditions: Mapping[str, Sequence[str]],
    references: Sequence[Sequence[str]],
    *,
    model: Path | str,
    num_layers: int,
    seed: int,
    idf: bool = False,
    rescale_with_baseline: bool = False,
    lower_case: bool = False,
    resamples: int = 1000,
    name: str | None = None,
) -> tuple[dict[str, Interval], str]:
    """Mean BERTScore F1 of several sets of hypotheses for the same pictures, and the settings hash.

    The model is loaded once and every different sentence embedded once. The best of a picture's references
    counts. An empty hypothesis scores 0, after rescaling too (bert_score itself would rescale its 0 to a
    number far below). F1 lies in [-1, 1], above 1 by rounding alone; rescaled, 0 is the score of sentences
    paired at random. Inverse document frequencies are those of the references.

    Args:
        conditions: condition → one hypothesis a picture.
        references: the captions of each picture.
        model: a folder in Hugging Face's layout, or a name that transformers resolves.
        num_layers: the layer whose output is compared, counted from 1.
        seed: of the bootstrap.
        idf: weigh tokens by inverse document frequency.
        rescale_with_baseline: rescale by the English baseline that bert_score ships for `name`.
        lower_case: compare the texts in lower case; the settings say so.
        resamples: of the bootstrap.
        name: how the settings hash calls the model (default: the folder's name); for a folder a digest of its
            files follows, so the hash says which model it was and not where it lay.

    Raises:
        InputError: the model cannot be loaded or has not that many layers, there is no baseline for it, or
            there are no pictures.
        ValueError: a condition has not one hypothesis a picture.
    """
    if not references:
        raise InputError("expected at least one picture with a description to score, got none")
    for condition, texts in conditions.items():
        if isinstance(texts, str) or len(texts) != len(references):
            raise ValueError(f"condition {condition!r}: expected {len(references)} hypotheses, got {len(texts)}")
    if lower_case:
        conditions = {condition: [text.lower() for text in texts] for condition, texts in conditions.items()}
        references = [[text.lower() for text in texts] for texts in references]
    label = name or (Path(model).name if Path(model).is_dir() else str(model))
    floor = _baseline(label, num_layers) if rescale_with_baseline else 0.0
    scorer = _load(model, num_layers)
    pairs = {(text, ref) for texts in conditions.values() for text, refs in _rows(texts, references) for ref in refs}
    scores = scorer.f1(sorted(pairs), [ref for refs in references for ref in refs] if idf else None)
    found = {}
    for condition, texts in conditions.items():
        best = [
            max((scores[text, ref] for ref in refs if (text, ref) in scores), default=None)
            for text, refs in _rows(texts, references)
        ]
        values = np.array([0.0 if one is None else (one - floor) / (1 - floor) for one in best])
        assert values.shape == (len(references),), "every picture is scored once"
        found[condition] = bootstrap_mean(values, seed=seed, resamples=resamples)
    settings = _settings(model, label, num_layers, idf, rescale_with_baseline)
    return found, f"{settings}, lower case" if lower_case else settings


def _rows(texts: Sequence[str], references: Sequence[Sequence[str]]) -> Iterator[tuple[str, Sequence[str]]]:
    return zip(texts, references, strict=True)


@dataclass(frozen=True)
class _Scorer:
    model: Any
    tokenizer: Any

    def f1(self, pairs: Sequence[tuple[str, str]], documents: Sequence[str] | None) -> dict[tuple[str, str], float]:
        """F1 of each (hypothesis, reference); pairs with a text that holds no token are left out."""
        from bert_score.utils import bert_cos_score_idf

        filled = {text: self._is_filled(text) for pair in pairs for text in pair}
        pairs = [pair for pair in pairs if filled[pair[0]] and filled[pair[1]]]
        if not pairs:
            return {}
        scores = bert_cos_score_idf(
            self.model,
            [reference for _, reference in pairs],
            [hypothesis for hypothesis, _ in pairs],
            self.tokenizer,
            self._weights(documents),
            device=next(self.model.parameters()).device,
        )
        return dict(zip(pairs, scores[:, 2].tolist(), strict=True))

    def _is_filled(self, text: str) -> bool:
        # bert_score fails on an empty text with the tokenizers of transformers 5, so it never gets one
        return bool(text.strip()) and bool(self.tokenizer.encode(text.strip(), add_special_tokens=False))

    def _weights(self, documents: Sequence[str] | None) -> dict[int, float]:
        from bert_score.utils import get_idf_dict

        if documents is not None:
            filled = [text for text in documents if self._is_filled(text)]
            weights: dict[int, float] = get_idf_dict(filled, self.tokenizer, nthreads=0)
            return weights
        weights = defaultdict(lambda: 1.0)
        weights[self.tokenizer.sep_token_id] = weights[self.tokenizer.cls_token_id] = 0
        return weights


def _load(model: Path | str, num_layers: int) -> _Scorer:
    from bert_score.utils import get_model, get_tokenizer

    if Path(model).is_dir() and "t5" in str(model):
        raise InputError(
            f"BERTScore model {model}: expected a path without 't5' in it, by which bert_score chooses a T5 "
            "model whatever the folder holds; move or rename it"
        )
    try:
        with _quiet():
            tokenizer, network = get_tokenizer(str(model)), get_model(str(model), num_layers)
    except (OSError, ValueError) as error:
        raise InputError(f"BERTScore model {model}: expected a folder with a model, got: {error}") from error
    except AssertionError as error:
        raise InputError(f"BERTScore: expected a layer that the model has, got {num_layers}: {error}") from error
    if tokenizer.model_max_length > _NO_LIMIT:
        tokenizer.model_max_length = _LONGEST
    return _Scorer(network.to("cuda" if torch.cuda.is_available() else "cpu"), tokenizer)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers from drawing its own bars and notes while a model loads."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _baseline(label: str, num_layers: int) -> float:
    """F1 of sentences paired at random, as bert_score measured it for the layer."""
    import bert_score

    path = Path(bert_score.__file__).parent / "rescale_baseline" / "en" / f"{label}.tsv"
    if not path.is_file():
        raise InputError(
            f"BERTScore: expected a model with a baseline in bert_score, got {label!r}, which has none; "
            "choose one that has, or leave rescale_with_baseline off"
        )
    with path.open(encoding="utf-8", newline="") as file:
        rows = {int(row["LAYER"]): float(row["F"]) for row in csv.DictReader(file)}
    if num_layers not in rows:
        raise InputError(f"BERTScore: expected a layer of {label} up to {max(rows)}, got {num_layers}")
    return rows[num_layers]


def _settings(model: Path | str, label: str, num_layers: int, idf: bool, rescaled: bool) -> str:
    from bert_score.utils import get_hash

    folder = Path(model)
    if folder.is_dir():
        files = {path for part in _PARTS for path in folder.glob(part) if path.is_file()}
        digest = sha256_json({path.name: sha256_file(path) for path in files})
        label = f"{label}@{digest[:12]}"
    return str(get_hash(label, num_layers, idf, rescaled, False, False))
