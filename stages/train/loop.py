"""The training loop: two phases of one shape, the second through the frozen language model."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from devil_pipe.stages.common.progress import bar, log
from devil_pipe.stages.train.alignment import Alignment
from devil_pipe.stages.train.batches import Batch, BatchSource, Example, Features, shards_a_window, whole_features
from devil_pipe.stages.train.checkpoint import (
    Best,
    Progress,
    read_best,
    restore_best,
    restore_progress,
    save_best,
    save_progress,
)
from devil_pipe.stages.train.compiling import compiled
from devil_pipe.stages.train.config import PhaseConfig, TrainConfig
from devil_pipe.stages.train.journal import PHASES, Journal
from devil_pipe.stages.train.language_model import LanguageModel
from devil_pipe.stages.train.step import Step
from devil_pipe.stages.train.trackers import Tracker
from devil_pipe.stages.train.translator import Translator
from devil_pipe.store.errors import InputError
from devil_pipe.store.reader import FeatureStore


@dataclass
class Parts:
    """What the loop works with."""

    config: TrainConfig
    accelerator: Accelerator
    store: FeatureStore
    translator: Translator
    language_model: LanguageModel
    alignment: Alignment | None
    train: Sequence[Example]
    validation: Sequence[Example]


def learning_rate(phase: PhaseConfig, step: int) -> float:
    """Linear warm-up from 0, then linear decay towards 0 at the last step, never below the minimum."""
    if step < phase.warmup_steps:
        return phase.lr * (step + 1) / phase.warmup_steps
    left = (phase.steps - step) / max(phase.steps - phase.warmup_steps, 1)
    return max(phase.min_lr, phase.lr * left)


def make_optimizer(module: nn.Module, phase: PhaseConfig) -> torch.optim.AdamW:
    """AdamW without weight decay on biases, norms and embeddings of layers or queries (all that has no two sides)."""
    decayed = [value for name, value in module.named_parameters() if value.ndim > 1 and name.endswith("weight")]
    chosen = {id(value) for value in decayed}
    others = [value for value in module.parameters() if id(value) not in chosen]
    groups = [{"params": decayed, "weight_decay": phase.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=phase.lr, fused=True)  # on a processor in a quarter of the time


class Loop:
    """Runs the phases, saving where it stands, so that a kill costs a minute and changes no number."""

    def __init__(self, parts: Parts, digest: str, resumed: Progress | None) -> None:
        self.parts, self.digest, self.resumed = parts, digest, resumed
        config, accelerator = parts.config, parts.accelerator
        self.state = config.out / "train" / "state.safetensors"
        self.best_file = config.out / "train" / "best.safetensors"
        at = (resumed.phase, resumed.step) if resumed else (None, 0)
        self.main = accelerator.is_main_process
        self.best = self._best_before(resumed)
        written = resumed.journal if resumed else ""
        self.journal = Journal(config.out / "train" / "log.jsonl", at[0], at[1], written) if self.main else None
        self.tracker = Tracker(accelerator, config, *at) if self.main else None
        # Once: another wrapper around the same weights would leave the first one's hooks on them.
        model = accelerator.prepare(parts.translator)
        if config.runtime.compile:
            model = self._compiled(model)
        self.step = Step(
            accelerator, model, parts.language_model, parts.alignment, config.warmup.keep, config.runtime.accumulate
        )
        self.seconds = resumed.seconds if resumed else 0.0
        self.clock = time.monotonic()
        self.saved = self.clock

    def _compiled(self, model: nn.Module) -> Any:
        """The translator compiled, if that works. Its random state is as before: nothing in it is random."""
        translator, device = self.parts.translator, self.parts.accelerator.device
        channels = [layer.channels for layer in self.parts.store.layers]

        def trial(made: Any) -> None:
            keep = torch.ones(2, len(channels), dtype=torch.bool, device=device)
            made([torch.zeros(2, count, device=device) for count in channels], keep).sum().backward()
            translator.zero_grad()

        return compiled(model, trial, "translator")

    def run(self) -> float:
        """Train to the end; returns the seconds spent, earlier parts of a resumed run included."""
        phases = {"alignment": self.parts.config.warmup.phase, "language": self.parts.config.phase}
        for name, phase in phases.items():
            if self.resumed and PHASES.index(name) < PHASES.index(self.resumed.phase):
                continue
            self._phase(name, phase)
        if self.best is not None:
            restore_best(self.best_file, self.parts.translator)
            log("taking the step with the least validation loss", step=self.best.step, loss=round(self.best.loss, 3))
        return self._elapsed()

    def _best_before(self, resumed: Progress | None) -> Best | None:
        """The best step of a run that goes on; one that is still to come, or another run's, is forgotten."""
        if not self.main:
            return None
        found = read_best(self.best_file)
        behind = resumed.step if resumed and resumed.phase == PHASES[-1] else 0
        if resumed and resumed.best and not self._is_kept(found, resumed.best, behind):
            raise InputError(
                f"{self.best_file}: expected the weights of step {resumed.best}, the best so far, found none of them; "
                f"remove {self.best_file.parent} to start again"
            )
        if self.parts.config.take == "best" and found and found.digest == self.digest and found.step <= behind:
            return found
        self.best_file.unlink(missing_ok=True)
        return None

    def _is_kept(self, found: Best | None, step: int, behind: int) -> bool:
        """Whether a file's weights are those of the best step, or of a later and better one that is not saved yet."""
        return found is not None and found.digest == self.digest and (found.step == step or found.step > behind)

    def _elapsed(self) -> float:
        return self.seconds + time.monotonic() - self.clock

    def _phase(self, name: str, phase: PhaseConfig) -> None:
        parts = self.parts
        optimizer = make_optimizer(parts.translator, phase)
        start = 0
        if self.resumed and self.resumed.phase == name:
            start = self.resumed.step
            restore_progress(self.state, parts.translator, optimizer)
            log(f"going on at step {start} of the {name} phase")
        optimizer = parts.accelerator.prepare(optimizer)
        source = BatchSource(
            parts.store,
            parts.train,
            parts.config.dropout,
            batch_size=phase.batch_size,
            window=1 if name == "alignment" else phase.length_window,  # aligned captions all have the queries' length
            seed=parts.config.seed * len(PHASES) + PHASES.index(name),
            share=(parts.accelerator.process_index, parts.accelerator.num_processes),
            window_shards=shards_a_window(parts.config.order, parts.config.window_shards, parts.store),
        )
        with bar(f"train ({name})", phase.steps, "steps", start) as shown:
            for step, batch in source.stream(start, phase.steps):
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate(phase, step)
                if parts.config.language_model_dropout:  # the one thing random in a step: from (seed, step) as well
                    _seed_step(parts.config.seed, step, parts.accelerator.process_index)
                loss = self._step(name, phase, optimizer, batch, step)
                shown.advance(note=f"loss {float(loss):.3f}" if self._tells(step + 1, phase) else "")
                self._after(name, phase, step + 1, loss, optimizer)

    def _tells(self, step: int, phase: PhaseConfig) -> bool:
        """Whether the loss is read: for that the device has to be waited for."""
        return step % self.parts.config.runtime.log_every == 0 or step == phase.steps

    def _step(self, name: str, phase: PhaseConfig, optimizer: torch.optim.Optimizer, batch: Batch, step: int) -> Tensor:
        accelerator, translator = self.parts.accelerator, self.parts.translator
        loss = self.step.gradient(name, batch, step / phase.steps)
        if phase.clip_norm:
            accelerator.unscale_gradients(optimizer)  # of this phase alone
            torch.nn.utils.clip_grad_norm_(translator.parameters(), phase.clip_norm)
        optimizer.step()
        optimizer.zero_grad()
        return loss

    def _after(self, name: str, phase: PhaseConfig, step: int, loss: Tensor, optimizer: torch.optim.Optimizer) -> None:
        if not self.main:
            return
        config, last = self.parts.config, step == phase.steps
        if self._tells(step, phase):
            self._note(name, step, loss=round(float(loss), 5), lr=learning_rate(phase, step - 1))
        if step % config.validate_every == 0 or last:
            scores = self._validate(name)
            self._note(name, step, **scores)
            self._keep_best(step, scores.get("val_loss"))
        if time.monotonic() - self.saved >= config.runtime.save_every_seconds or last:
            assert self.journal is not None
            at = Progress(
                name, step, self._elapsed(), self.digest, self.journal.settle(), self.best.step if self.best else 0
            )
            save_progress(self.state, self.parts.translator, optimizer, at)
            self.saved = time.monotonic()

    def _note(self, name: str, step: int, **values: float) -> None:
        assert self.journal is not None
        assert self.tracker is not None
        self.journal.add(phase=name, step=step, seconds=round(self._elapsed(), 1), **values)
        self.tracker.show(name, step, **values)

    def _keep_best(self, step: int, loss: float | None) -> None:
        if self.parts.config.take == "best" and loss is not None and (self.best is None or loss < self.best.loss):
            self.best = Best(step, loss, self.digest)
            save_best(self.best_file, self.parts.translator, self.best)

    def _validate(self, name: str) -> dict[str, float]:
        """Losses without dropout on the validation rows, the language phase's beside that of shuffled features."""
        parts = self.parts
        rows = [example.row for example in parts.validation]
        captions = [example.caption for example in parts.validation]
        parts.translator.eval()
        prefixes = translate(parts.translator, whole_features(parts.store, rows), device=parts.accelerator.device)
        parts.translator.train()
        with torch.inference_mode():
            if name == "alignment":
                return _alignment_scores(parts.alignment, prefixes, captions)
            parts.language_model.model.eval()
            own = mean_loss(parts.language_model, prefixes, captions)
            other = derangement(len(rows), parts.config.seed)
            shuffled = mean_loss(parts.language_model, prefixes[torch.from_numpy(other)], captions)
            parts.language_model.model.train(parts.config.language_model_dropout)
        log("validation", loss=round(own, 3), shuffled=round(shuffled, 3), gap=round(shuffled - own, 3))
        return {"val_loss": round(own, 5), "val_loss_shuffled": round(shuffled, 5)}


def _seed_step(seed: int, step: int, process: int) -> None:
    torch.manual_seed(int(np.random.SeedSequence([seed, step, process]).generate_state(1)[0]))


def _alignment_scores(
    alignment: Alignment | None, prefixes: Tensor, captions: Sequence[Sequence[int]]
) -> dict[str, float]:
    assert alignment is not None
    loss = float(alignment.loss(prefixes, captions))
    read = alignment.read(prefixes)
    whole = [alignment.agreement(mine, caption) for mine, caption in zip(read, captions, strict=True)]
    tokens = sum(right for right, _ in whole) / max(sum(count for _, count in whole), 1)
    right = np.mean([found == count == len(mine) for (found, count), mine in zip(whole, read, strict=True)])
    log("validation (read by the embeddings)", loss=round(loss, 3), tokens=round(float(tokens), 3))
    return {
        "val_alignment_loss": round(loss, 5),
        "val_token_accuracy": round(float(tokens), 5),
        "val_caption_accuracy": round(float(right), 5),
    }


@torch.inference_mode()
def translate(
    translator: Translator,
    features: Features,
    layers: Sequence[int] | None = None,
    *,
    device: torch.device,
    size: int = 256,
) -> Tensor:
    """Prefix tokens [rows, queries, width] of features, looking at `layers` (all if None), as far as they are there."""
    keep = torch.zeros_like(features.there)
    chosen = list(layers) if layers is not None else slice(None)
    keep[:, chosen] = features.there[:, chosen]
    parts = [
        translator(
            [item[begin : begin + size].to(device) for item in features.layers], keep[begin : begin + size].to(device)
        )
        for begin in range(0, len(features), size)
    ]
    return torch.cat(parts)


@torch.inference_mode()
def row_losses(
    language_model: LanguageModel, prefixes: Tensor | None, captions: Sequence[Sequence[int]], size: int = 32
) -> tuple[Tensor, Tensor]:
    """(summed nats [rows], tokens [rows]) of each caption, similar lengths computed together."""
    order = sorted(range(len(captions)), key=lambda place: len(captions[place]))
    summed, counts = torch.zeros(len(captions)), torch.zeros(len(captions), dtype=torch.long)
    for begin in range(0, len(order), size):
        places = order[begin : begin + size]
        prefix = None if prefixes is None else prefixes[places]
        losses, tokens = language_model.token_losses(prefix, [captions[place] for place in places])
        summed[places], counts[places] = losses.cpu(), tokens.cpu()
    return summed, counts


def mean_loss(language_model: LanguageModel, prefixes: Tensor, captions: Sequence[Sequence[int]]) -> float:
    """Nats a token over all captions."""
    summed, counts = row_losses(language_model, prefixes, captions)
    return float(summed.sum() / counts.sum())


def derangement(count: int, seed: int) -> np.ndarray:
    """A seeded permutation of `count` ≥ 2 places that leaves none where it was."""
    cycle = np.random.default_rng([seed, 1]).permutation(count)
    out = np.empty(count, dtype=np.int64)
    out[cycle] = np.roll(cycle, 1)
    return out
