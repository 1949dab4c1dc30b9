"""The seven annotated sets, and the thirteen experiments of the paper's Table 6 over them."""

from __future__ import annotations

from dataclasses import dataclass

BASE = (
    "alexnet/imagenet",
    "alexnet/places365",
    "resnet152/imagenet",
    "resnet152/places365",
    "biggan/imagenet",
    "biggan/places365",
)
"""The six sets of convolutional networks, in Table 6's order."""
VIT = "dino_vits8/imagenet"
SETS = (*BASE, VIT)
"""ARCH/DATASET of every annotated set."""


@dataclass(frozen=True)
class Experiment:
    """A row of Table 6: which sets are trained on, and which are described."""

    kind: str
    train: tuple[str, ...]
    test: tuple[str, ...]

    @property
    def within(self) -> bool:
        """Training and test units are of one set, so that some of its units are held out."""
        return self.train == self.test

    @property
    def sets(self) -> tuple[str, ...]:
        """Every set that the experiment reads, once, training sets first."""
        return tuple(dict.fromkeys((*self.train, *self.test)))


def file_stem(name: str) -> str:
    """A set's name in file names and keys: ARCH-DATASET for ARCH/DATASET."""
    return name.replace("/", "-")


def _of(part: str) -> tuple[str, ...]:
    """The base sets of an architecture or of a data set."""
    return tuple(name for name in BASE if part in name.split("/"))


_CLASSIFIERS = _of("alexnet") + _of("resnet152")

EXPERIMENTS: dict[str, Experiment] = {
    **{f"within-{file_stem(name)}": Experiment("within network", (name,), (name,)) for name in BASE},
    "across-arch-alexnet-resnet152": Experiment("across arch.", _of("alexnet"), _of("resnet152")),
    "across-arch-resnet152-alexnet": Experiment("across arch.", _of("resnet152"), _of("alexnet")),
    "across-arch-cnns-vit": Experiment("across arch.", BASE, (VIT,)),
    "across-data-imagenet-places365": Experiment("across datasets", _of("imagenet"), _of("places365")),
    "across-data-places365-imagenet": Experiment("across datasets", _of("places365"), _of("imagenet")),
    "across-task-classifiers-biggan": Experiment("across tasks", _CLASSIFIERS, _of("biggan")),
    "across-task-biggan-classifiers": Experiment("across tasks", _of("biggan"), _CLASSIFIERS),
}
"""Table 6, row by row. "CNNs" are all six base sets, "classifiers" AlexNet and ResNet152."""
