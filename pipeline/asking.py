"""Which explainer a command asks: a run's, an exported translator's, or the one that comes with the package."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from devil_pipe.stages.explain.explainer import Explainer
    from devil_pipe.stages.train.language_model import LanguageModel


def open_explainer(
    run: str | None,
    translator: str | None,
    *,
    weights: str | None = None,
    backbone: str | None = None,
    language_model: str | LanguageModel | None = None,
    device: str = "auto",
    precision: str = "auto",
) -> Explainer:
    """Open what the command line names; without `run` and `translator` the demo's translator.

    Args:
        run: the name of a trained run of this project.
        translator: an exported one: a folder, or owner/name on the hub.
        weights: the backbone's; None takes the run's own, or what the backbone's name stands for.
        backbone: says that a backbone that is a function may be called; a run of this project calls its own.
        language_model: where it is, if elsewhere; or one that is loaded already.
        device: auto, cpu, cuda, cuda:1, mps.
        precision: the language model's.

    Raises:
        UsageError: both are named, or an option is wrong.
        InputError: a part is missing, or belongs to another.
    """
    from devil_pipe.store.errors import UsageError

    if run is not None and translator is not None:
        raise UsageError("expected --run (of this project) or --translator (an exported one), got both")
    if precision not in ("auto", "float32", "bfloat16"):
        raise UsageError(f"--precision: expected auto, float32 or bfloat16, got {precision!r}")
    from devil_pipe.stages.explain.explainer import Explainer

    if run is None:
        return Explainer.from_pretrained(
            translator,
            weights=weights or "auto",
            trusted=backbone or "",
            language_model=language_model,
            device=device,
            precision=precision,
        )
    from devil_pipe.pipeline.config import Run

    opened = Run(run)
    return Explainer.from_run(
        opened.train.out,
        weights=weights or opened.store.weights,
        trusted=backbone or opened.store.backbone,
        language_model=language_model,
        device=device,
        precision=precision,
    )
