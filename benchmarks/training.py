"""A training step from the store, beside the loop that one writes first and the bare step on ready tensors.

Same translator (88 M), same optimizer, language model of OPT-125M's size, captions of 14 tokens, three layers of an
RN50; every weight is random. Ours is the loop's own step with all that belongs to it, except that nothing is saved.
`--device cuda` measures the same on a GPU, with batches of 64 and 512, and finds the largest batch that fits: that part
has never been run, for want of a GPU.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _measure import interleaved, rates, write
from _training_baseline import Plain
from PIL import Image

from devil_pipe.stages.common.progress import Mode, speak
from devil_pipe.stages.extract.config import ExtractConfig
from devil_pipe.stages.extract.pictures import sides
from devil_pipe.stages.extract.worker import Worker
from devil_pipe.stages.prepare.config import FolderConfig, PrepareConfig
from devil_pipe.stages.prepare.run import run as prepare
from devil_pipe.stages.train.batches import BatchSource, Example
from devil_pipe.stages.train.config import PhaseConfig, TrainConfig, TrainRuntime
from devil_pipe.stages.train.language_model import LanguageModel, cpu_has_bfloat16
from devil_pipe.stages.train.loop import Loop, Parts, make_optimizer
from devil_pipe.stages.train.run import _accelerator, _precision
from devil_pipe.stages.train.translator import build, trainable_parameters
from devil_pipe.store.reader import FeatureStore

BACKBONES = ("clip_rn50", "in_rn50")
OURS, BARE, PLAIN, PLAIN_HALF = (
    "from the store",
    "bare step",
    "straightforward loop",
    "straightforward loop, as precise",
)
TOKENS = 14  # of a caption, its EOS included
MANY = 10**9


def draw_pictures(folder: Path, count: int) -> list[Path]:
    """JPEGs of 340 × 256, as downloads are usually kept: soft colours with some noise."""
    random = np.random.default_rng(0)
    folder.mkdir()
    paths = [folder / f"{number:05d}.jpg" for number in range(count)]
    for path in paths:
        soft = Image.fromarray(random.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize(
            (340, 256), Image.Resampling.BICUBIC
        )
        noisy = np.asarray(soft, dtype=np.int16) + random.integers(-12, 13, (256, 340, 3), dtype=np.int16)
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(path, quality=90)
    (folder.parent / "captions.csv").write_text(
        "file,caption,split\n" + "".join(f"{path.name},a picture,train\n" for path in paths), encoding="utf-8"
    )
    return paths


def language_model(folder: Path) -> Path:
    """OPT-125M's architecture with random weights, and a tokenizer that knows the special tokens alone."""
    import transformers
    from tokenizers import Tokenizer, models

    torch.manual_seed(0)
    special = {"<s>": 0, "<pad>": 1, "</s>": 2}
    tokenizer = Tokenizer(models.WordLevel(special, unk_token="<s>"))
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="</s>", eos_token="</s>", pad_token="<pad>"
    ).save_pretrained(folder)
    transformers.utils.logging.disable_progress_bar()
    transformers.OPTForCausalLM(transformers.OPTConfig()).save_pretrained(folder)
    return folder


class Bench:
    """One backbone's store, and the four ways to take a step."""

    def __init__(self, folder: Path, backbone: str, pictures: list[Path], given: argparse.Namespace) -> None:
        self.folder, self.pictures, self.given = folder / backbone, pictures, given
        self.folder.mkdir()
        speed = {"batch_size": 16 if given.device == "cpu" else 128, "device": given.device}
        config = ExtractConfig(
            name="benchmark",
            data="pictures",
            backbone=backbone,
            weights="random",
            data_dir=folder / "data",
            out=self.folder / "store",
            runtime=speed,
        )
        self.worker = Worker(config, check=False)
        self.worker.make(range(len(self.worker.writer.ranges)))
        self.worker.writer.finalise(self.worker.index["key"].to_pylist())
        random = np.random.default_rng(1)
        self.captions = [tuple(random.integers(5, 50000, TOKENS - 1).tolist()) for _ in pictures]

    def ways(self, batch: int) -> dict[str, Callable[[], object]]:
        """The ways with batches of this size; they train one translator."""
        config = TrainConfig(
            run="benchmark", language_model=str(self.folder.parent / "lm"), store=str(self.folder / "store"),
            data_dir=self.folder, out=self.folder / f"run{batch}", order="permutation", validate_every=MANY,
            phase=PhaseConfig(steps=MANY, batch_size=batch),
            runtime=TrainRuntime(device=self.given.device, precision=self.given.precision, save_every_seconds=MANY),
        )  # fmt: skip
        accelerator = _accelerator(config)
        device, store = accelerator.device, FeatureStore(config.store)
        lm = LanguageModel(config.language_model, device=device, dtype=_precision(config, device))
        self.translator = build(config.translator, store.layers, lm.width, None)
        examples = [Example(row, caption) for row, caption in enumerate(self.captions)]
        loop = Loop(Parts(config, accelerator, store, self.translator, lm, None, examples, []), "", None)
        optimizer = accelerator.prepare(make_optimizer(self.translator, config.phase))
        source = BatchSource(store, examples, config.dropout, batch_size=batch, window=8, seed=0)
        stream = source.stream(0, MANY)

        def ours() -> None:
            step, drawn = next(stream)
            loss = loop._step("language", config.phase, optimizer, drawn, step)
            loop._after("language", config.phase, step + 1, loss, optimizer)

        ready = source.draw(0)
        features, keep = [item.to(device) for item in ready.features], ready.keep.to(device)

        def bare() -> None:
            summed, counts = lm.token_losses(self.translator(features, keep), ready.captions)
            accelerator.backward(summed.sum() / counts.sum())
            optimizer.step()
            optimizer.zero_grad()

        self.lm, self.optimizer, self.device = lm, optimizer, device
        self.usual = torch.optim.AdamW(self.translator.parameters(), lr=config.phase.lr)  # as one writes it
        found: dict[str, Callable[[], object]] = {OURS: ours, BARE: bare}
        if lm.model.dtype != torch.float32:
            found[PLAIN_HALF] = self.plain(lm.model, batch)
        full = LanguageModel(config.language_model, device=device, dtype=torch.float32)
        return {PLAIN: self.plain(full.model, batch), **found}

    def plain(self, model: Any, batch: int) -> Callable[[], object]:
        transform, module = self.worker.transform, self.worker.backbone.module
        loop = Plain(
            self.pictures, self.captions, module, [tap.module for tap in self.worker.taps], sides(transform.size),
            transform.mean, transform.std, self.translator, model, self.usual, self.lm.bos, self.lm.eos, self.device,
        )  # fmt: skip
        rows: Iterator[list[int]] = loop.endless(batch)
        return lambda: loop.step(next(rows))


def measure(bench: Bench, batch: int, rounds: int) -> dict[str, Any]:
    """Medians of each way's step, and ratios taken round by round."""

    def waited(way: Callable[[], object]) -> Callable[[], None]:
        def run() -> None:
            way()
            if bench.device.type == "cuda":
                torch.cuda.synchronize()

        return run

    ways = bench.ways(batch)
    seconds = interleaved({name: waited(way) for name, way in ways.items()}, rounds)

    def over(base: str) -> float:
        return round(statistics.median(a / b for a, b in zip(seconds[OURS], seconds[base], strict=True)), 3)

    return {
        "ways": rates(seconds, PLAIN, batch),
        "steps_per_second": {way: round(1 / statistics.median(values), 3) for way, values in seconds.items()},
        "time_over": {base: over(base) for base in ways if base != OURS},
        "language_model_dtype": str(bench.lm.model.dtype).removeprefix("torch."),
        "trainable_parameters": trainable_parameters(bench.translator),
    }


def largest_batch(bench: Bench) -> dict[str, Any]:
    """The largest power of two of examples whose bare step fits into the GPU's memory."""
    bench.ways(64)
    layers = [layer.channels for layer in FeatureStore(bench.folder / "store").layers]
    size, fits = 64, 0
    while True:
        try:
            features = [torch.randn(size, channels, device=bench.device) for channels in layers]
            keep = torch.ones(size, len(layers), dtype=torch.bool, device=bench.device)
            captions = [bench.captions[row % len(bench.captions)] for row in range(size)]
            summed, counts = bench.lm.token_losses(bench.translator(features, keep), captions)
            (summed.sum() / counts.sum()).backward()
            bench.optimizer.step()
            bench.optimizer.zero_grad()
            fits, size = size, 2 * size
        except torch.cuda.OutOfMemoryError:
            return {"largest_batch_that_fits": fits, "gpu_bytes": torch.cuda.get_device_properties(0).total_memory}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), help="of ours and of the bare step")
    parser.add_argument("--batch", type=int, nargs="+", help="sizes; by default 16, on a GPU 64 and 512")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--rows", type=int, help="pictures; by default 16 batches, on a GPU 4 of the largest")
    parser.add_argument("--backbones", nargs="+", default=list(BACKBONES))
    parser.add_argument("--trial", action="store_true", help="keep no results")
    given = parser.parse_args()
    on_gpu = given.device.startswith("cuda")
    given.precision = given.precision or ("bfloat16" if on_gpu or cpu_has_bfloat16() else "float32")
    if on_gpu and not torch.cuda.is_available():
        parser.exit(message="training: not run: no CUDA device\n")
    batches = given.batch or ([64, 512] if on_gpu else [16])
    rows = given.rows or max(batches) * (4 if on_gpu else 16)
    speak(Mode.QUIET)
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pictures = draw_pictures(folder / "pictures", rows)
        section = FolderConfig(pictures=folder / "pictures", captions=folder / "captions.csv")
        prepare(PrepareConfig(name="pictures", out=folder / "data", source="folder", folder=section, workers=1))
        language_model(folder / "lm")
        for backbone in given.backbones:
            bench = Bench(folder, backbone, pictures, given)
            found[backbone] = {f"batch {batch}": measure(bench, batch, given.rounds) for batch in batches}
            if on_gpu:
                found[backbone] |= largest_batch(bench)
            print(f"training, {backbone}: {told(found[backbone])}", flush=True)
    if not given.trial:
        write(
            "training_gpu" if on_gpu else "training",
            measured=found,
            rounds=given.rounds,
            seed=0,
            data=f"{rows} drawn JPEGs of 340 × 256, captions of {TOKENS} random tokens; store of full maps, warm",
            backbone="random weights, three layers, float32, batches channels last",
            language_model="OPT-125M's architecture, random weights",
            gpu=torch.cuda.get_device_name() if on_gpu else None,
            aims={PLAIN: 0.4, BARE: 1.15},
        )


def told(found: dict[str, Any]) -> str:
    """One line."""
    parts = []
    for name, one in found.items():
        if isinstance(one, dict):
            steps = ", ".join(f"{way} {rate['median_seconds']:.2f} s" for way, rate in one["ways"].items())
            over = ", ".join(f"{ratio:.2f} of the {base}" for base, ratio in one["time_over"].items())
            parts.append(f"{name}: {steps}; from the store takes {over}")
        else:
            parts.append(f"{name} {one}")
    return "; ".join(parts)


if __name__ == "__main__":
    main()
