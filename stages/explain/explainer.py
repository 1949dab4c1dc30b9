"""Ask any picture: what a layer, a location or a box of it says, and where words are likely.

```python
explainer = Explainer.from_run("runs/demo")
explainer.describe("cat.jpg", layer="s32", at=(250, 120)).text
explainer.saliency("cat.jpg", "a cat", layer="s32").values
```
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import overload

import numpy as np
import torch
from PIL import Image
from torch import nn

from devil_pipe.stages.explain import opening
from devil_pipe.stages.explain.answers import Asked, Box, Description, Looked, Margin, Point, SaliencyMap
from devil_pipe.stages.explain.describing import Describer, layer_called
from devil_pipe.stages.explain.images import Picture, as_picture
from devil_pipe.stages.explain.margin import RESAMPLES
from devil_pipe.stages.extract.pictures import sides
from devil_pipe.stages.extract.taps import Tap, Taps
from devil_pipe.stages.extract.worker import pick_device
from devil_pipe.stages.saliency.likelihood import Likelihoods, Smooth
from devil_pipe.stages.saliency.localisation import enlarge
from devil_pipe.stages.train.checkpoint import Card, load
from devil_pipe.stages.train.language_model import LanguageModel
from devil_pipe.stages.train.sharing import from_pretrained
from devil_pipe.stages.train.translator import Translator
from devil_pipe.store.errors import InputError, UsageError
from devil_pipe.store.schema import LayerSpec

__all__ = ["Asked", "Description", "Explainer", "Looked", "Margin", "Picture", "SaliencyMap"]

GREY = (128, 128, 128)


class Explainer:
    """A translator with the backbone whose features it reads and the language model that it writes through."""

    def __init__(
        self, translator: Translator, card: Card, module: nn.Module, taps: Sequence[Tap], language_model: LanguageModel
    ) -> None:
        """Put the parts together; `from_run`, `from_pretrained` and `from_module` find them.

        The translator moves to the language model's device; the backbone stays where it is, in the mode that it is in.

        Args:
            translator: trained on features of this backbone.
            card: the translator's.
            module: the backbone.
            taps: where the card's layers are read in it, in the card's order.
            language_model: of the embedding width that the translator writes.

        Raises:
            InputError: layers of other shapes, or another language model, than the translator was trained with.
        """
        self.card, self.language_model, self.module, self.taps = card, language_model, module, tuple(taps)
        self.translator = translator.to(language_model.device)
        self.transform = opening.transform_of(card.store)
        opening.check_layers(module, self.taps, card.store)
        self._describer = Describer(self.translator, self.layers, language_model)
        self._likelihoods = Likelihoods(self.translator, self.layers, language_model)
        self._check_width()

    @property
    def layers(self) -> tuple[LayerSpec, ...]:
        """The explained layers, in the backbone's order."""
        return self.card.store.layers

    @classmethod
    def from_run(
        cls,
        path: str | Path,
        *,
        weights: str = "auto",
        trusted: str = "",
        language_model: str | LanguageModel | None = None,
        device: str = "auto",
        precision: str = "auto",
    ) -> Explainer:
        """The explainer of a trained run.

        Args:
            path: the run's folder, runs/RUN.
            weights: of the backbone: "auto", or a file.
            trusted: the backbone's name again, if it is a function: it is imported and called.
            language_model: where it is, if elsewhere than the run says; or one that is loaded already.
            device: auto, cpu, cuda, cuda:1, mps.
            precision: of the language model: auto, float32 or bfloat16.

        Raises:
            InputError: nothing trained there, or a part that is missing or belongs to another.
        """
        return cls._open(*load(Path(path) / "checkpoint"), weights, trusted, language_model, device, precision)

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path | None = None,
        *,
        weights: str = "auto",
        trusted: str = "",
        language_model: str | LanguageModel | None = None,
        device: str = "auto",
        precision: str = "auto",
    ) -> Explainer:
        """The explainer of an exported translator: a folder or a name on the hub; None takes the package's own demo.

        The other arguments and errors are those of `from_run`.
        """
        source = opening.demo_folder() if name is None else name
        return cls._open(*from_pretrained(source), weights, trusted, language_model, device, precision)

    @classmethod
    def from_module(
        cls,
        translator: Translator,
        card: Card,
        module: nn.Module,
        taps: Sequence[Tap] | None = None,
        *,
        language_model: str | LanguageModel | None = None,
        device: str = "auto",
        precision: str = "auto",
    ) -> Explainer:
        """The explainer of a module that is at hand; no store is needed, and nothing is loaded for it.

        Args:
            translator: trained on its features.
            card: the translator's.
            module: with the weights that the card names; it stays on its device and in its mode.
            taps: where its layers are read; None looks for them as `devil-pipe layers` does.
            language_model: as in `from_run`.
            device: the language model's and the translator's.
            precision: as in `from_run`.

        Raises:
            InputError: other weights or layers than the translator was trained on.
        """
        opening.check_live(module, card.store)
        found = opening.taps_of(module, card.store) if taps is None else opening.chosen_taps(taps, card.store)
        return cls(translator, card, module, found, opening.language_model_of(card, language_model, device, precision))

    @classmethod
    def _open(
        cls,
        translator: Translator,
        card: Card,
        weights: str,
        trusted: str,
        language_model: str | LanguageModel | None,
        device: str,
        precision: str,
    ) -> Explainer:
        where = pick_device(device)  # the smallest part first, so that a mistake is said early
        backbone = opening.open_backbone(card.store, weights, trusted)
        taps = opening.chosen_taps(backbone.spec.taps, card.store)
        model = opening.language_model_of(card, language_model, device, precision)
        return cls(translator, card, backbone.module.to(where), taps, model)

    def _check_width(self) -> None:
        width = self._likelihoods.prefixes(None, [torch.zeros(1, layer.channels) for layer in self.layers]).shape[2]
        if width != self.language_model.width:
            raise InputError(
                f"language model {self.language_model.name}: expected {self.card.language_model}, whose embeddings are "
                f"{width} wide, got one of width {self.language_model.width}"
            )

    @torch.inference_mode()
    def look(self, image: Picture | Looked) -> Looked:
        """Run the backbone on a picture once; what comes back can be asked in the picture's place.

        Raises:
            InputError: no picture, or a `Looked` of another backbone.
        """
        if isinstance(image, Looked):
            shapes = {layer.name: (layer.height, layer.width, layer.channels) for layer in self.layers}
            if {name: tuple(features.shape) for name, features in image.maps.items()} != shapes:
                raise InputError("expected a picture that this explainer looked at, got one of another; look again")
            return image
        picture = as_picture(image)
        device = next((parameter.device for parameter in self.module.parameters()), torch.device("cpu"))
        pixels = self.transform(picture)[None].to(device)
        compute = self.card.store.compute
        kind = torch.float32 if compute == "float32" else getattr(torch, compute)
        with (
            opening.resting(self.module),
            Taps(self.module, self.taps) as taps,
            torch.autocast(device.type, kind, enabled=compute != "float32"),
        ):
            found = taps(pixels)
        maps = {
            layer.name: found[layer.name][0].float().cpu().reshape(layer.height, layer.width, layer.channels)
            for layer in self.layers
        }
        return Looked(picture.size, maps)

    def describe(
        self,
        image: Picture | Looked,
        *,
        layer: str | None = None,
        at: Point | None = None,
        box: Box | None = None,
        max_new_tokens: int = 20,
        margin: bool = True,
        resamples: int = RESAMPLES,
    ) -> Description:
        """Put one feature of a picture into words.

        Args:
            image: a picture in any form (see `Picture`), or what `look` gave for it.
            layer: looked at alone; None looks at all together.
            at: x and y of a pixel of the picture as given: the location that holds it; of all layers the locations.
            box: left, top, right, bottom in pixels: the mean over the locations whose middle lies in it. Neither: over
                the whole picture.
            max_new_tokens: length of the description.
            margin: also say how far to trust it (`margin.py`), which takes some times as long.
            resamples: spatial masks that the margin's interval and the agreement come from.

        Raises:
            InputError: no picture.
            UsageError: no such layer, a place or box outside the picture, or an empty box.
        """
        asked = Asked(layer, at, box)
        (found,) = self.describe_many(image, [asked], max_new_tokens=max_new_tokens, margin=margin, resamples=resamples)
        return found

    def describe_many(
        self,
        image: Picture | Looked,
        asked: Sequence[Asked],
        *,
        max_new_tokens: int = 20,
        margin: bool = True,
        resamples: int = RESAMPLES,
    ) -> list[Description]:
        """`describe` for several features of a picture, computed together; each as it would be alone.

        The arguments and errors are those of `describe`.
        """
        if max_new_tokens < 1 or resamples < 1:
            raise UsageError(f"expected at least one new token and one resample, got {max_new_tokens} and {resamples}")
        blank = self._blank if margin else None
        return self._describer.describe(self.look(image), asked, max_new_tokens, blank, resamples)

    @cached_property
    def _blank(self) -> Looked:
        """A mid-grey picture, as the backbone sees it."""
        height, width = sides(self.transform.size)
        return self.look(Image.new("RGB", (width, height), GREY))

    @overload
    def saliency(  # type: ignore[overload-overlap]  # a str is a sequence of str, too
        self,
        image: Picture | Looked,
        query: str,
        *,
        layer: str | None = ...,
        plain: bool = ...,
        per_token: bool = ...,
        smooth: Smooth = ...,
        grid: int = ...,
        upsample: bool = ...,
    ) -> SaliencyMap: ...

    @overload
    def saliency(
        self,
        image: Picture | Looked,
        query: Sequence[str],
        *,
        layer: str | None = ...,
        plain: bool = ...,
        per_token: bool = ...,
        smooth: Smooth = ...,
        grid: int = ...,
        upsample: bool = ...,
    ) -> list[SaliencyMap]: ...

    def saliency(
        self,
        image: Picture | Looked,
        query: str | Sequence[str],
        *,
        layer: str | None = None,
        plain: bool = False,
        per_token: bool = False,
        smooth: Smooth = 0,
        grid: int = 0,
        upsample: bool = False,
    ) -> SaliencyMap | list[SaliencyMap]:
        """Where words are likely: one map for one query, a list for several (section 3.4).

        Args:
            image: as in `describe`.
            query: words or phrases, any of them.
            layer: whose locations are asked; None: all layers together.
            plain: the paper's score; otherwise the language model's prior is taken off it, so that zero means no
                likelier than without looking.
            per_token: the mean over the query's tokens in place of their sum.
            smooth: side of an average pool; "auto": as in the paper, by the layer's depth; 0: none.
            grid: average finer layers down to so many locations a side before they are asked, which takes less time; 0
                asks every location.
            upsample: bilinearly to the picture's size.

        Raises:
            InputError: no picture.
            UsageError: no such layer, or an empty query.
        """
        layer_called(layer, self.layers)
        queries = [query] if isinstance(query, str) else list(query)
        looked, engine = self.look(image), self._likelihoods
        if not queries:
            return []
        counts = [len(tokens) for tokens in engine.tokens(queries)]
        how = {"plain": plain, "per_token": per_token}
        scores = engine.scores(layer, looked.maps, queries, smooth=smooth, grid=grid, **how).numpy()
        priors = [
            prior / (count if per_token else 1)
            for prior, count in zip(engine.prior(queries).tolist(), counts, strict=True)
        ]
        if upsample:
            width, height = looked.size
            scores = np.stack([enlarge(values, height, width) for values in scores])
        found = [
            SaliencyMap(text, layer, values.astype(np.float32), prior, count)
            for text, values, prior, count in zip(queries, scores, priors, counts, strict=True)
        ]
        return found[0] if isinstance(query, str) else found
