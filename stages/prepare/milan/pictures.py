"""The pictures of sets that are published without them: ids.csv counts the files of an ImageFolder."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from devil_pipe.stages.common.files import sha256_json
from devil_pipe.store.errors import InputError

_FORMATS = ("JPEG", "PNG", "BMP", "PPM", "TIFF", "WEBP")  # what ImageFolder looks for; Pillow would take EPS too
_SHORTER, _CUT = 256, 224  # the exemplars were found on pictures resized to 256 and cut to 224


class SourcePictures:
    """A data set's validation pictures in torchvision's order: classes sorted, files sorted within each."""

    def __init__(self, folder: Path | None, dataset: str, fit: Literal["crop", "stretch"]) -> None:
        """Nothing is looked at before it is needed; `dataset` is its name in the settings."""
        self.folder, self.dataset, self.fit = folder, dataset, fit

    @cached_property
    def files(self) -> list[Path]:
        """Every picture; its place in the list is its number in ids.csv.

        Raises:
            InputError: no folder, or no class folders with pictures.
        """
        from torchvision.datasets import ImageFolder

        key = f"milan.{self.dataset}"
        if self.folder is None:
            raise InputError(
                f"{key}: the set is published without pictures: expected the folder of the validation pictures of "
                f"{self.dataset}, a folder for each class inside; set {key}"
            )
        if not self.folder.is_dir():
            raise InputError(f"{key}: expected a folder of class folders at {self.folder}, found none")
        try:
            samples = ImageFolder(str(self.folder)).samples
        except FileNotFoundError as error:
            raise InputError(f"{key}: expected class folders with pictures in {self.folder}: {error}") from None
        return [Path(path) for path, _ in samples]

    @property
    def identity(self) -> list[str]:
        """What decides the pixels besides the set itself: which files in which order, and how they are fitted."""
        names = [path.relative_to(self.folder).as_posix() for path in self.files] if self.folder else []
        return [self.fit, sha256_json(names)]

    def check(self, number: int, where: str) -> None:
        """Raises InputError where ids.csv (`where`) names a picture that the folder does not have."""
        if number >= len(self.files):
            raise InputError(
                f"{where}: expected a picture's number below {len(self.files)}, as many as {self.folder} holds, got "
                f"{number}: is it the whole validation set of {self.dataset}?"
            )

    def load(self, number: int, size: Sequence[int]) -> UInt8[np.ndarray, "3 height width"]:
        """A picture fitted to (height, width).

        The way a camera was held is left alone, as when the masks were computed.

        Raises:
            InputError: it cannot be decoded.
        """
        from torchvision.transforms import functional

        path = self.files[number]
        height, width = size
        try:
            with Image.open(path, formats=_FORMATS) as opened:
                picture = opened.convert("RGB")
        except MemoryError:
            raise
        except Exception as error:  # a decoder that meets garbage may raise anything
            raise InputError(f"{path}: expected a picture: {error}; take it from {self.dataset} again") from None
        if self.fit == "stretch":
            fitted = functional.resize(picture, [height, width])
        else:
            fitted = functional.resize(picture, [round(max(height, width) * _SHORTER / _CUT)])
            fitted = functional.center_crop(fitted, [height, width])
        return np.ascontiguousarray(np.asarray(fitted).transpose(2, 0, 1))
