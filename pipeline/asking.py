"""Which explainer a command asks: a run's, an exported translator's, or the one that comes with the package."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from devil_pipe.stages.explain.answers import Point
    from devil_pipe.stages.explain.explainer import Explainer
    from devil_pipe.stages.train.language_model import LanguageModel

# The options that explain, saliency and explore share.
Weights = Annotated[str | None, typer.Option(help="The backbone's: auto, or a file.")]
Trusted = Annotated[str | None, typer.Option(help="Says that a backbone that is a function may be called.")]
Elsewhere = Annotated[str | None, typer.Option(help="Where the language model is, if elsewhere.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")]
Precision = Annotated[str, typer.Option(help="The language model's: auto, float32 or bfloat16.")]


@dataclass(frozen=True)
class Parts:
    """What an explainer is opened with, beside the translator."""

    weights: str | None = None
    """The backbone's; None takes the run's own, or what the backbone's name stands for."""

    backbone: str | None = None
    """Says that a backbone that is a function may be called; a run of this project calls its own."""

    language_model: str | LanguageModel | None = None
    """Where it is, if elsewhere; or one that is loaded already."""

    device: str = "auto"
    precision: str = "auto"
    """The language model's."""


def point(text: str, option: str) -> Point:
    """X,Y as the command line has it. Raises UsageError, which names the option."""
    from devil_pipe.store.errors import UsageError

    try:
        x, y = (float(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"{option}: expected X,Y in pixels of the picture such as 120,80, got {text!r}") from None
    return x, y


def open_explainer(run: str | None, translator: str | None, parts: Parts) -> Explainer:
    """Open what the command line names; without `run` and `translator` the demo's translator.

    Args:
        run: the name of a trained run of this project.
        translator: an exported one: a folder, or owner/name on the hub.
        parts: the rest.

    Raises:
        UsageError: both are named, or an option is wrong.
        InputError: a part is missing, or belongs to another.
    """
    from devil_pipe.store.errors import UsageError

    if run is not None and translator is not None:
        raise UsageError("expected --run (of this project) or --translator (an exported one), got both")
    if parts.precision not in ("auto", "float32", "bfloat16"):
        raise UsageError(f"--precision: expected auto, float32 or bfloat16, got {parts.precision!r}")
    from devil_pipe.stages.explain.explainer import Explainer

    if run is None:
        return Explainer.from_pretrained(
            translator,
            weights=parts.weights or "auto",
            trusted=parts.backbone or "",
            language_model=parts.language_model,
            device=parts.device,
            precision=parts.precision,
        )
    from devil_pipe.pipeline.config import Run

    opened = Run(run)
    return Explainer.from_run(
        opened.train.out,
        weights=parts.weights or opened.store.weights,
        trusted=parts.backbone or opened.store.backbone,
        language_model=parts.language_model,
        device=parts.device,
        precision=parts.precision,
    )
