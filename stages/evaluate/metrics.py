"""Caption metrics as pycocoevalcap computes them (BLEU, METEOR, ROUGE-L, CIDEr, SPICE), with intervals.

Captions go through the PTB tokenizer first, as in COCO's evaluation. Every picture counts: an empty
hypothesis scores 0, and the number of scored captions is the number given.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from devil_pipe.stages.evaluate.bootstrap import (
    Interval,
    bootstrap_mean,
    bootstrap_statistic,
    bootstrap_statistics,
)
from devil_pipe.stages.evaluate.java import (
    JavaFailure,
    MeteorProcess,
    ptb_tokenize,
    spice_lacks,
    spice_scores,
)
from devil_pipe.store.errors import InputError

BLEU_ORDER = 4
METRICS = ("bleu_1", "bleu_2", "bleu_3", "bleu_4", "meteor", "rouge_l", "cider", "spice")

Tokenizer = Callable[[Sequence[str]], list[str]]


@dataclass(frozen=True)
class NotRun:
    """A metric that could not be computed, and why; never a zero in its place."""

    why: str

    def as_json(self) -> dict[str, str]:
        """`{"not_run": why}`."""
        return {"not_run": self.why}


Score = Interval | NotRun


def score_captions(
    hypotheses: Sequence[str],
    references: Sequence[Sequence[str]],
    *,
    seed: int,
    resamples: int = 1000,
    tokenizer: Tokenizer = ptb_tokenize,
) -> dict[str, Score]:
    """Every metric of `METRICS` for one hypothesis a picture. See `score_conditions`, also for what it raises."""
    return score_conditions({"all": hypotheses}, references, seed=seed, resamples=resamples, tokenizer=tokenizer)["all"]


def score_conditions(
    conditions: Mapping[str, Sequence[str]],
    references: Sequence[Sequence[str]],
    *,
    seed: int,
    resamples: int = 1000,
    tokenizer: Tokenizer = ptb_tokenize,
) -> dict[str, dict[str, Score]]:
    """Score several sets of hypotheses for the same pictures: condition → metric → score.

    One run of the tokenizer and one METEOR process serve all conditions, and all intervals draw the same
    pictures, so conditions can be compared.

    - bleu_1 … bleu_4: corpus BLEU with the closest reference length, not a mean of sentences; the interval
      resamples the sentences' n-gram counts. In [0, 1]; as in pycocoevalcap, a corpus without any matching
      4-gram scores a little above 0.
    - meteor: corpus METEOR 1.5, in [0, 1], which is not the mean of the sentences' scores either; the interval
      resamples the sentences' counts.
    - rouge_l, cider: means of the sentences' scores, ROUGE-L in [0, 1], CIDEr in [0, 10]. CIDEr's document
      frequencies are those of these references: its values depend on which pictures are scored together,
      and are all 0 for a single picture.
    - spice: mean of the sentences' F-scores in [0, 1], where its jars are installed; nothing is downloaded.

    Raises:
        InputError: no pictures, a picture without references, or there is no Java.
        ValueError: a condition has not one hypothesis a picture.
        TypeError: one text stands where a picture's list of references should.
        JavaFailure: the tokenizer failed (METEOR and SPICE that fail are a `NotRun`).
    """
    _check(conditions, references)
    with ExitStack() as stack:
        meteor = stack.enter_context(MeteorProcess())  # first: it starts up while we tokenize
        given, wanted = _tokenized(conditions, references, tokenizer)
        corpora = {name: _Corpus(texts, wanted, seed, resamples) for name, texts in given.items()}
        scores = {
            name: {**corpus.bleu(), "rouge_l": corpus.rouge_l(), "cider": corpus.cider()}
            for name, corpus in corpora.items()
        }
        for name, corpus in corpora.items():
            scores[name]["meteor"] = corpus.meteor(meteor)
    for name, score in _spice(given, wanted, seed, resamples).items():
        scores[name]["spice"] = score
    return {name: {metric: found[metric] for metric in METRICS} for name, found in scores.items()}


def _check(conditions: Mapping[str, Sequence[str]], references: Sequence[Sequence[str]]) -> None:
    if not references:
        raise InputError("expected at least one picture with a description to score, got none")
    for row, texts in enumerate(references):
        if isinstance(texts, str):
            raise TypeError(f"references, row {row}: expected a list of captions, got one text")
        if not texts:
            raise InputError(f"references, row {row}: expected at least one caption, got none")
    for name, texts in conditions.items():
        if isinstance(texts, str) or len(texts) != len(references):
            raise ValueError(
                f"condition {name!r}: expected {len(references)} hypotheses, one a picture, got {len(texts)}"
            )


def _tokenized(
    conditions: Mapping[str, Sequence[str]], references: Sequence[Sequence[str]], tokenizer: Tokenizer
) -> tuple[dict[str, list[str]], list[list[str]]]:
    """Tokenize everything in one call and put it back in its places."""
    flat = [text for texts in [*conditions.values(), *references] for text in texts]
    tokens = iter(tokenizer(flat))
    given = {name: [next(tokens) for _ in texts] for name, texts in conditions.items()}
    wanted = [[next(tokens) for _ in texts] for texts in references]
    assert next(tokens, None) is None, "the tokenizer gave more texts than it was given"
    return given, wanted


def _spice(
    given: Mapping[str, Sequence[str]], wanted: Sequence[Sequence[str]], seed: int, resamples: int
) -> dict[str, Score]:
    """SPICE of every condition in one run: its start takes longer than its work."""
    lacks = spice_lacks()
    if lacks:
        why = f"needs the Stanford CoreNLP 3.6.0 jars in pycocoevalcap/spice/lib: {' and '.join(lacks)} missing"
        return dict.fromkeys(given, NotRun(why))
    try:
        flat = spice_scores(
            [text for texts in given.values() for text in texts], [refs for _ in given for refs in wanted]
        )
    except JavaFailure as error:
        return dict.fromkeys(given, NotRun(str(error)))
    rows = flat.reshape(len(given), len(wanted))
    return {
        name: bootstrap_mean(scores, seed=seed, resamples=resamples) for name, scores in zip(given, rows, strict=True)
    }


@dataclass(frozen=True)
class _Corpus:
    """One set of tokenized hypotheses with its tokenized references, a row a picture."""

    hypotheses: Sequence[str]
    references: Sequence[Sequence[str]]
    seed: int
    resamples: int

    def bleu(self) -> dict[str, Score]:
        from pycocoevalcap.bleu.bleu_scorer import BleuScorer

        scorer = BleuScorer(n=BLEU_ORDER)
        for hypothesis, references in zip(self.hypotheses, self.references, strict=True):
            scorer += (hypothesis, list(references))
        values, _ = scorer.compute_score(option="closest", verbose=0)
        counts = np.array(
            [
                [*one["correct"], *one["guess"], one["testlen"], _closest(one["reflen"], one["testlen"])]
                for one in scorer.ctest
            ],
            dtype=np.float64,
        )
        assert len(counts) == len(self.references)
        found = bootstrap_statistics(
            lambda drawn: _bleu(counts, drawn), len(counts), seed=self.seed, resamples=self.resamples
        )
        assert np.allclose([one.value for one in found], values, rtol=1e-9, atol=1e-12)
        return {f"bleu_{order}": one for order, one in enumerate(found, start=1)}

    def rouge_l(self) -> Score:
        from pycocoevalcap.rouge.rouge import Rouge

        # Rouge takes an empty text for one empty token, which an empty reference would match in full.
        return self._mean(
            [
                Rouge().calc_score([hypothesis], list(references)) if hypothesis else 0.0
                for hypothesis, references in zip(self.hypotheses, self.references, strict=True)
            ]
        )

    def cider(self) -> Score:
        from pycocoevalcap.cider.cider import Cider

        if not any(text for texts in self.references for text in texts):
            return self._mean([0.0] * len(self.hypotheses))  # Cider fails without a single word
        given = {row: [text] for row, text in enumerate(self.hypotheses)}
        wanted = {row: list(texts) for row, texts in enumerate(self.references)}
        _, sentences = Cider().compute_score(wanted, given)
        return self._mean(sentences)

    def meteor(self, process: MeteorProcess) -> Score:
        try:
            corpus, counts = process.score(self.hypotheses, self.references)
        except JavaFailure as error:
            return NotRun(str(error))
        assert len(counts) == len(self.references)
        found = bootstrap_statistic(
            lambda drawn: _meteor(counts, drawn),
            len(counts),
            seed=self.seed,
            resamples=self.resamples,
        )
        assert np.isclose(found.value, corpus, rtol=1e-9, atol=1e-12)
        return found

    def _mean(self, sentences: Sequence[float] | Float[np.ndarray, " n"]) -> Interval:
        values = np.asarray(sentences, dtype=np.float64)
        assert values.shape == (len(self.references),), "every picture is scored once"
        return bootstrap_mean(values, seed=self.seed, resamples=self.resamples)


def _closest(lengths: Sequence[int], length: int) -> int:
    """The reference length nearest to the hypothesis's, the shorter one of two as near."""
    return min(lengths, key=lambda one: (abs(one - length), one))


def _bleu(
    counts: Float[np.ndarray, "n columns"], drawn: Int[np.ndarray, "draws n"]
) -> Float[np.ndarray, "draws orders"]:
    """Corpus BLEU-1 … BLEU-4 of resampled sentences, with pycocoevalcap's guards against zero counts.

    Columns: matching n-grams and n-grams of the hypothesis for n = 1 … 4, its length, the reference's.
    Papineni et al. 2002, equations 1 to 3; the geometric mean is over orders 1 … n.
    """
    small, tiny = 1e-9, 1e-15
    sums = _sums(counts, drawn)
    matched, guessed = sums[:, :BLEU_ORDER], sums[:, BLEU_ORDER : 2 * BLEU_ORDER]
    orders = np.arange(1, BLEU_ORDER + 1)
    means = np.cumprod((matched + tiny) / (guessed + small), axis=1) ** (1 / orders)
    ratio = (sums[:, -2] + tiny) / (sums[:, -1] + small)
    return np.asarray(means * np.exp(np.minimum(0.0, 1 - 1 / ratio))[:, None])


def _meteor(counts: Float[np.ndarray, "n 23"], drawn: Int[np.ndarray, "draws n"]) -> Float[np.ndarray, " draws"]:
    """Corpus METEOR of resampled sentences: Denkowski and Lavie 2014, with METEOR 1.5's settings for English.

    Columns: words of the hypothesis and of the reference, function words of both; then for each of the four
    matchers (exact, stem, synonym, paraphrase) the matched content words of both and function words of both;
    chunks; matched words of both. A sentence matched whole and in order counts no chunk, as in METEOR's sums.
    """
    alpha, beta, gamma, delta, matchers = 0.85, 0.2, 0.6, 0.75, np.array([1.0, 0.6, 0.8, 0.6])
    whole = (counts[:, 20] == 1) & (counts[:, 21:] == counts[:, :2]).all(axis=1)
    sums = _sums(np.where(whole[:, None] & (np.arange(23) == 20), 0.0, counts), drawn)
    functions, words = sums[:, 2:4], sums[:, :2]
    matches = sums[:, 4:20].reshape(-1, 4, 2, 2)  # draws, matchers, content or function, hypothesis or reference
    content_or_function = np.array([delta, 1 - delta])
    matched = np.einsum("dmcs,m,c->ds", matches, matchers, content_or_function)
    shares = _ratio(matched, delta * (words - functions) + (1 - delta) * functions)
    precision, recall = shares.T
    mean = _ratio(precision * recall, alpha * precision + (1 - alpha) * recall)
    fragments = _ratio(sums[:, 20], sums[:, 21:].mean(axis=1))
    return np.asarray(mean * (1 - gamma * fragments**beta))


def _ratio(above: Float[np.ndarray, "*shape"], below: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
    return np.asarray(np.divide(above, below, out=np.zeros_like(above), where=below != 0))


def _sums(
    counts: Float[np.ndarray, "n columns"], drawn: Int[np.ndarray, "draws n"]
) -> Float[np.ndarray, "draws columns"]:
    """Each resampled corpus's counts, added up."""
    times = np.stack([np.bincount(row, minlength=len(counts)) for row in drawn])
    return np.asarray(times.astype(np.float64) @ counts)
