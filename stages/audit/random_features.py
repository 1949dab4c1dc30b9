"""How much of the gap does a translator reach that was trained on a backbone which never learned?"""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

import numpy as np
import torch

from devil_pipe.stages.audit.config import AuditConfig, RandomRun
from devil_pipe.stages.audit.findings import Check, Demand, Measured, Needs, Row, Table
from devil_pipe.stages.evaluate.run import Trained, open_run
from devil_pipe.stages.train.batches import whole_features
from devil_pipe.stages.train.loop import derangement, row_losses, translate
from devil_pipe.store.errors import InputError

if TYPE_CHECKING:
    from devil_pipe.stages.audit.opened import Audited


def measure(audited: Audited) -> Measured:
    """The loss gap of this run and of its twin on random features, over the same pictures."""
    config = audited.config
    if config.random is None:
        raise Needs(f"a run on the features of a random backbone: {commands(config, audited.trained)}")
    twin = _twin(audited, config.random)
    rows = audited.rows(config.captioned)
    valid = twin.store.valid()
    rows = [row for row in rows if valid[row]]
    own, other = _gap(audited.trained, rows, config.seed), _gap(twin, rows, config.seed)
    apart = audited.mean(own - other)
    table = Table(
        "What the features are worth, nats a token: loss after another picture’s less loss after its own, "
        f"{len(rows)} pictures",
        "translator of",
        ("loss gap",),
        (
            Row(f"{config.run}: trained weights", (audited.mean(own),)),
            Row(f"{config.random.run}: {twin.store.identity.weights}", (audited.mean(other),), control=True),
            Row("difference, paired", (apart,)),
        ),
    )
    return Measured(
        n=f"{len(rows)} pictures",
        demands=(Demand("loss gap of this run, less that of the run on random features, nats a token", apart),),
        tables=(table,),
    )


def commands(config: AuditConfig, trained: Trained) -> str:
    """What makes a run on random features, step by step."""
    store = trained.store.identity
    layers, data = ",".join(layer.name for layer in store.layers), config.data_dir.name
    name = "-".join([data, store.backbone.replace("/", "-").replace(":", "-"), "random", *layers.split(",")])
    run = f"{config.run}-random"
    steps = (
        f"devil-pipe extract --backbone {shlex.quote(store.backbone)} --data {data} --weights random --layers {layers}",
        f"sed 's/^store: .*/store: {name}/' configs/runs/{config.run}.yaml > configs/runs/{run}.yaml",
        f"devil-pipe train {run}",
        f"devil-pipe audit {config.run} --random-run {run}",
    )
    return "; ".join(f"`{step}`" for step in steps)


def _twin(audited: Audited, chosen: RandomRun) -> Trained:
    """Open the other run. Raises InputError where it is not this run's twin on random weights."""
    runtime = audited.config.runtime
    twin = open_run(chosen.out, chosen.store, chosen.data_dir, runtime.device, runtime.precision)
    ours, theirs = audited.trained.store.identity, twin.store.identity
    if not theirs.weights.startswith("random:"):
        raise InputError(f"--random-run {chosen.run}: expected a store of random weights, got {theirs.weights}")
    for name in ("backbone", "index", "layers"):
        if getattr(ours, name) != getattr(theirs, name):
            told = ", ".join(layer.name for layer in theirs.layers) if name == "layers" else getattr(theirs, name)
            raise InputError(f"--random-run {chosen.run}: expected the {name} of {audited.config.run}, got {told}")
    return twin


def _gap(trained: Trained, rows: list[int], seed: int) -> np.ndarray:
    """Nats a token of each row's caption after another row's features, less after its own."""
    model = trained.language_model
    captions = model.encode([trained.index[row]["captions"][0] for row in rows])
    prefixes = translate(trained.translator, whole_features(trained.store, rows), device=model.device)
    (own, tokens), (other, _) = (
        row_losses(model, some, captions)
        for some in (prefixes, prefixes[torch.from_numpy(derangement(len(rows), seed))])
    )
    return ((other - own) / tokens).numpy().astype(np.float64)


CHECK = Check(
    name="random-features",
    title="A translator of random features",
    tested="A translator with the same settings, trained on the features of the same architecture that was never "
    "trained.",
    catches="If random features serve as well, the words tell of the pictures’ colours and edges, not of what the "
    "network learned.",
    rule="The paired 95 % interval of this run’s loss gap, less that of the run on random features, lies above 0.",
    worst="",
    measure=measure,
)
