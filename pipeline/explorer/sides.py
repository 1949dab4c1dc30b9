"""One translator that answers the page: features of a picture computed once, answers as plain values for JSON."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from PIL import Image

if TYPE_CHECKING:
    from devil_pipe.stages.explain.explainer import Explainer, Looked, SaliencyMap

Open = Callable[[], Image.Image]


class Side:
    """A named explainer with the feature maps of the pictures that it looked at last; used from one thread."""

    def __init__(self, name: str, explainer: Explainer, kept: int = 12) -> None:
        """`kept` pictures' feature maps are held."""
        self.name, self.explainer, self.kept = name, explainer, kept
        self._looked: OrderedDict[tuple[str, str], Looked] = OrderedDict()

    def about(self) -> dict[str, Any]:
        """What a reader has to know of the translator."""
        card = self.explainer.card
        return {
            "name": self.name,
            "backbone": card.store.backbone,
            "weights": card.store.weights,
            "language_model": card.language_model,
            "seed": card.seed,
            "data_note": card.data_note,
            "layers": [
                {"name": layer.name, "height": layer.height, "width": layer.width, "channels": layer.channels}
                for layer in self.explainer.layers
            ],
        }

    def look(self, picture: tuple[str, str], read: Open) -> Looked:
        """The feature maps of a picture, computed at the first asking."""
        found = self._looked.pop(picture, None)
        if found is None:
            found = self.explainer.look(read())
        self._looked[picture] = found
        while len(self._looked) > self.kept:
            self._looked.popitem(last=False)
        return found

    def describe(
        self,
        picture: tuple[str, str],
        read: Open,
        layers: Sequence[str | None],
        at: tuple[float, float] | None,
        margin: bool,
    ) -> list[dict[str, Any]]:
        """Describe layers (None: all together) at a place in pixels, or of the whole picture."""
        from devil_pipe.stages.explain.answers import Asked

        found = self.explainer.describe_many(
            self.look(picture, read), [Asked(layer, at=at) for layer in layers], margin=margin
        )
        return [{"layer": item.layer, **item.as_dict()} for item in found]

    def maps(
        self, picture: tuple[str, str], read: Open, layer: str | None, queries: Sequence[str]
    ) -> list[dict[str, Any]]:
        """Where on a layer each query is likelier than without looking, in nats."""
        found = self.explainer.saliency(self.look(picture, read), list(queries), layer=layer)
        return [_mapped(item) for item in (found if isinstance(found, list) else [found])]


def _mapped(found: SaliencyMap) -> dict[str, Any]:
    return {
        "query": found.query,
        "layer": found.layer,
        "prior": found.prior,
        "tokens": found.tokens,
        "values": [[round(float(value), 4) for value in row] for row in found.values],
    }
