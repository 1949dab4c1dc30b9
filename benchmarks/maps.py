"""Likelihood maps in batches beside the plain way, a loop over locations and queries; and how long one answer takes.

The plain way, for each location and each query: the translator, then one whole forward of [BOS, prefix, query] through
the language model with the logits of every place, nothing kept. The translator is the demo's (effnet_lite0 explained
through SmolLM2-135M), its 14 × 14 layer, three queries of one to three tokens, float32. Needs `make demo`, or another
run named by RUN (RUN= takes the translator that comes with the package); LOCATIONS=24 is a quick look.
"""

from __future__ import annotations

import os
import statistics

import skimage
import torch
from _measure import interleaved, report
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from devil_pipe.stages.common.memory import keep_freed_memory
from devil_pipe.stages.explain.explainer import Asked, Explainer
from devil_pipe.stages.saliency.likelihood import Likelihoods
from devil_pipe.stages.train.language_model import LanguageModel, cpu_has_bfloat16

RUN = os.environ.get("RUN", "runs/demo")
LOCATIONS = int(os.environ.get("LOCATIONS", "196"))
ROUNDS = int(os.environ.get("ROUNDS", "3"))
QUERIES = ("cat", "a dog", "a red bicycle")
PICTURE, AT = "skimage.data.chelsea()", (230.0, 120.0)
PLAIN, OURS, HALF = "a loop over locations and queries", "batches", "batches, bfloat16"


def loop(explainer: Explainer, layer: str, vectors: Tensor, texts: list[list[int]]) -> Tensor:
    """The plain way: log-likelihoods [locations, queries]."""
    model = explainer.language_model
    bos = model.embedding(torch.tensor([model.bos]))
    keep = torch.tensor([[spec.name == layer for spec in explainer.layers]])
    found = torch.zeros(len(vectors), len(texts))
    for row, vector in enumerate(vectors):
        for column, text in enumerate(texts):
            features = [
                vector[None] if spec.name == layer else torch.zeros(1, spec.channels) for spec in explainer.layers
            ]
            once = torch.cat([bos, explainer.translator(features, keep)[0]])
            before = once if model.repeats == 1 else torch.cat([*[once] * model.repeats, bos])
            read = torch.cat([before, model.embedding(torch.tensor(text))])
            logs = model.model(inputs_embeds=read[None], use_cache=False).logits[0].log_softmax(dim=-1)
            found[row, column] = sum(logs[len(before) - 1 + place, token] for place, token in enumerate(text))
    return found


def flops(work: object) -> int:
    with FlopCounterMode(display=False) as counter:
        work()  # type: ignore[operator]
    return int(counter.get_total_flops())


@torch.inference_mode()
def main() -> None:
    keep_freed_memory()
    how = {"device": "cpu", "precision": "float32"}
    explainer = Explainer.from_run(RUN, **how) if RUN else Explainer.from_pretrained(**how)
    looked = explainer.look(skimage.data.chelsea())
    layer = next(spec for spec in explainer.layers if (spec.height, spec.width) == (14, 14))
    vectors = looked.maps[layer.name].flatten(0, 1)[:LOCATIONS]
    model = explainer.language_model
    texts = model.encode(QUERIES)
    assert [len(text) for text in texts] == [1, 2, 3], "queries of one to three tokens"

    def engine(language_model: LanguageModel) -> Likelihoods:
        return Likelihoods(explainer.translator, explainer.layers, language_model)

    ours, found = engine(model), dict[str, Tensor]()

    def batches(way: str, chosen: Likelihoods, count: int = LOCATIONS) -> None:
        maps = {layer.name: vectors[None, :count]}
        found[way] = chosen.scores(layer.name, maps, QUERIES, plain=True)[:, 0].T

    def plainly() -> None:
        found[PLAIN] = loop(explainer, layer.name, vectors, texts)

    ways = {PLAIN: plainly, OURS: lambda: batches(OURS, ours)}
    if cpu_has_bfloat16():
        half = engine(
            LanguageModel(model.name, device=model.device, dtype=torch.bfloat16, repeats=model.repeats)
        )  # what `--precision auto` takes here
        ways[HALF] = lambda: batches(HALF, half)
    work = {
        PLAIN: flops(lambda: loop(explainer, layer.name, vectors[:1], texts)),
        OURS: flops(lambda: batches(OURS, ours, min(16, LOCATIONS))) / min(16, LOCATIONS),
    }
    seconds = interleaved(ways, ROUNDS)
    apart = {way: float((scores - found[PLAIN]).abs().max()) for way, scores in found.items() if way != PLAIN}
    assert apart[OURS] <= 1e-4, f"the same values: {apart}"

    deepest = explainer.layers[-1]
    asked = [Asked(None, AT), *(Asked(spec.name, AT) for spec in explainer.layers)]
    latency = interleaved(
        {
            "look at a picture": lambda: explainer.look(skimage.data.chelsea()),
            "one click, all layers, with margins": lambda: explainer.describe_many(looked, asked),
            "one click, all layers, without": lambda: explainer.describe_many(looked, asked, margin=False),
            "one query, the deepest layer": lambda: explainer.saliency(looked, "a cat", layer=deepest.name),
        },
        ROUNDS,
    )
    report(
        "maps",
        seconds,
        PLAIN,
        len(vectors) * len(texts),
        "values",
        ratio_of_medians={
            way: round(statistics.median(seconds[PLAIN]) / statistics.median(took), 2)
            for way, took in seconds.items()
            if way != PLAIN
        },
        greatest_difference_nats=apart,
        billion_multiplications_a_location={way: round(count / 2e9, 3) for way, count in work.items()},
        ratio_of_multiplications=round(work[PLAIN] / work[OURS], 2),
        latency_seconds={what: round(statistics.median(took), 3) for what, took in latency.items()},
        deepest_layer=f"{deepest.name}, {deepest.height} × {deepest.width}",
        layer=f"{layer.name}, 14 × 14",
        locations=len(vectors),
        queries=list(QUERIES),
        translator=RUN or "the package's demo",
        language_model=f"{model.name}, float32",
        context_tokens=int(model.context(torch.zeros(1, 10, model.width), 1).shape[1]),
        picture=PICTURE,
    )
    for what, took in latency.items():
        print(f"maps: {what}: {statistics.median(took):.2f} s")
    print(
        f"maps: greatest difference {apart[OURS]:.1e} nats; {work[PLAIN] / work[OURS]:.1f} times fewer multiplications"
    )


if __name__ == "__main__":
    main()
