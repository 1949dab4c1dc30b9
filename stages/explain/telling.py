"""All that is asked of a picture in one go, as text and as plain values: `devil-pipe explain`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image
from rich.text import Text

from devil_pipe.stages.explain.answers import Asked, Box, Description, Point
from devil_pipe.stages.explain.describing import layer_called
from devil_pipe.stages.explain.explainer import Explainer
from devil_pipe.stages.explain.margin import RATE, SEED
from devil_pipe.stages.explain.places import checked_box, checked_point
from devil_pipe.store.errors import UsageError
from devil_pipe.store.schema import LayerSpec

MEANING = (
    "Nats: how much likelier the words are with the features than without (the likelier of the language model "
    "alone and of a grey picture), and the 2.5–97.5 % interval over random halves of the locations; weak: it reaches "
    "zero. A margin says that the words come from the features, not that they are true."
)


@dataclass(frozen=True)
class Questions:
    """What is asked of every picture, beside the description from all layers."""

    layers: tuple[str, ...]
    places: tuple[Point, ...] = ()
    boxes: tuple[Box, ...] = ()

    def check(self, name: str, size: tuple[int, int], option: str = "--at") -> None:
        """Raise UsageError, which names the picture and the `option` of places, for a place or box not in it."""
        for at in self.places:
            _refuse_fractions(at, size, option)
            _naming(f"{name}: {option}", checked_point, at, size)
        for box in self.boxes:
            _naming(f"{name}: --box", checked_box, box, size)


def _refuse_fractions(at: Point, size: tuple[int, int], option: str) -> None:
    """Places were once fractions of the frame, and 0.5,0.25 would now be the upper left pixel."""
    x, y = at
    if 0 <= x <= 1 and 0 <= y <= 1 and not (x.is_integer() and y.is_integer()):
        raise UsageError(
            f"{option}: expected X,Y in pixels of the picture, got {x:g},{y:g}, which looks like fractions of its "
            f"{size[0]} × {size[1]} pixels; those would be {option} {x * size[0]:.0f},{y * size[1]:.0f}"
        )


def _naming(what: str, check: Any, value: Any, size: tuple[int, int]) -> None:
    try:
        check(value, size)
    except UsageError as error:
        raise UsageError(f"{what}: {error}") from None


@dataclass(frozen=True)
class Told:
    """A picture with all that was asked of it; lists hold one description a layer, in the order asked."""

    name: str
    picture: Image.Image
    whole: Description
    layers: list[Description]
    places: list[tuple[Point, list[Description]]]
    boxes: list[tuple[Box, list[Description]]]

    @property
    def descriptions(self) -> Iterator[Description]:
        """All of them."""
        yield self.whole
        yield from self.layers
        for _, found in (*self.places, *self.boxes):
            yield from found


def tell(
    explainer: Explainer,
    name: str,
    picture: Image.Image,
    questions: Questions,
    *,
    max_new_tokens: int,
    margin: bool,
    resamples: int,
) -> Told:
    """Ask a picture everything, in one batch.

    Raises:
        UsageError: no such layer, or a place or box outside the picture.
    """
    for layer in questions.layers:
        layer_called(layer, explainer.layers)
    questions.check(name, picture.size)
    parts = [Asked(None, at, box) for at, box in _parts(questions)]
    asked = [Asked(None)] + [Asked(layer, part.at, part.box) for part in parts for layer in questions.layers]
    whole, *found = explainer.describe_many(
        picture, asked, max_new_tokens=max_new_tokens, margin=margin, resamples=resamples
    )
    count = len(questions.layers)
    groups = [found[begin : begin + count] for begin in range(0, len(found), count)]
    end = 1 + len(questions.places)
    places = list(zip(questions.places, groups[1:end], strict=True))
    return Told(name, picture, whole, groups[0], places, list(zip(questions.boxes, groups[end:], strict=True)))


def _parts(questions: Questions) -> list[tuple[Point | None, Box | None]]:
    """The whole picture, then each place, then each box."""
    return [(None, None), *((at, None) for at in questions.places), *((None, box) for box in questions.boxes)]


def as_dict(told: Told) -> dict[str, Any]:
    """Plain values for JSON."""
    width, height = told.picture.size
    return {
        "picture": told.name,
        "width": width,
        "height": height,
        "all": told.whole.as_dict(),
        "layers": _by_layer(told.layers),
        "places": [{"x": x, "y": y, "layers": _by_layer(found)} for (x, y), found in told.places],
        "boxes": [{"box": list(box), "layers": _by_layer(found)} for box, found in told.boxes],
    }


def _by_layer(found: Sequence[Description]) -> dict[str, Any]:
    return {str(item.layer): item.as_dict() for item in found}


def facts(explainer: Explainer, resamples: int | None) -> dict[str, Any]:
    """What a description's reader has to know; `resamples` is None without margins."""
    card = explainer.card
    how = {"resamples": resamples, "dropped": RATE, "seed": SEED, "unit": "nats", "meaning": MEANING}
    return {
        "backbone": card.store.backbone,
        "weights": card.store.weights,
        "language_model": explainer.language_model.name,
        "warmup": card.warmup,
        "seed": card.seed,
        "data_note": card.data_note,
        "margin": None if resamples is None else how,
    }


def note(explainer: Explainer) -> str:
    """One line on what the words come from."""
    card = explainer.card
    return f"{card.store.backbone} explained through {explainer.language_model.name}. {card.data_note}".strip()


def lines(told: Told, layers: Sequence[LayerSpec]) -> Iterator[Text]:
    """A picture's answers, line by line; weak ones are dim at a terminal, and say so anywhere."""
    grids = {layer.name: f"{layer.height}×{layer.width}" for layer in layers}
    yield Text(f"{told.name} ({told.picture.width} × {told.picture.height})", style="bold")
    yield _line("  all layers", told.whole)
    for item in told.layers:
        yield _line(f"  {item.layer}", item)
    for (x, y), found in told.places:
        yield Text(f"  at {x:g},{y:g}")
        for item in found:
            yield _line(f"    {item.layer} (row {item.row}, column {item.column} of {grids[str(item.layer)]})", item)
    for box, found in told.boxes:
        yield Text(f"  in {','.join(f'{side:g}' for side in box)}")
        for item in found:
            yield _line(f"    {item.layer}", item)


def _line(head: str, item: Description) -> Text:
    found = Text(f"{head}: ")
    found.append(item.text or "(nothing)", style="dim" if item.weak else "")
    found.append(trust(item), style="dim")
    return found


def trust(item: Description) -> str:
    """Margin and agreement in brackets; nothing where they were not asked for."""
    if item.margin is None:
        return ""
    margin, same = item.margin, f", the same words {item.agreement:.0%}"
    return f"  [{'weak: ' if item.weak else ''}{margin.nats:.1f} nats, {margin.low:.1f} to {margin.high:.1f}{same}]"
