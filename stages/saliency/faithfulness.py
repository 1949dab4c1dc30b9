"""Deletion and insertion: does the explained classifier depend on the pixels that a map calls important?

Petsiuk et al. 2018 (RISE); the paper's Table 5. Pixels leave, or come into, the picture in the order of the map; the
area under the curve of the class's probability is small for a good map's deletion and large for its insertion.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torchvision.transforms.functional import gaussian_blur

from devil_pipe.stages.extract.taps import Tap, locations
from devil_pipe.stages.saliency.localisation import enlarge

Pixels = Float[Tensor, "3 height width"]
Classify = Callable[[Float[Tensor, "batch 3 height width"]], Float[Tensor, "batch classes"]]
BLUR, SIGMA = 11, 5.0  # RISE's insertion starts from such a blur: sharp edges of a grey field are evidence themselves
BATCH = 32


@dataclass(frozen=True)
class Areas:
    """Areas under the curves of the class's probability, both in 0 … 1."""

    deletion: float
    insertion: float


class Classifier:
    """The explained classifier: probabilities of its classes, and Grad-CAM's maps of its layers."""

    def __init__(self, module: nn.Module, device: torch.device) -> None:
        """`module` gives logits [batch, classes] for pixels and is in eval mode."""
        self.module, self.device = module.to(device), device

    @torch.inference_mode()
    def __call__(self, pixels: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch classes"]:
        """Probabilities, on the CPU."""
        parts = [self.module(part.to(self.device)).float().softmax(dim=1).cpu() for part in torch.split(pixels, BATCH)]
        return torch.cat(parts)

    def grad_cam(self, pixels: Pixels, tap: Tap, number: int) -> Float[np.ndarray, "height width"]:
        """Grad-CAM of a class at a layer, upsampled to the pixels and scaled to 0 … 1 by the library."""
        from pytorch_grad_cam import GradCAM
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

        size = (pixels.shape[1], pixels.shape[2])

        def as_map(output: object) -> Tensor:
            tensor = next(item for item in tree_leaves(output) if isinstance(item, Tensor))
            found, (height, width) = locations(tap, tensor, size)
            return found.transpose(1, 2).reshape(len(found), -1, height, width)

        given = pixels[None].to(self.device).requires_grad_()  # the frozen weights alone would leave no gradient
        layer = self.module.get_submodule(tap.module)
        with torch.enable_grad(), GradCAM(self.module, [layer], reshape_transform=as_map) as cam:
            found: np.ndarray = cam(input_tensor=given, targets=[ClassifierOutputTarget(number)])[0]
        return found.astype(np.float64)


def order(values: Float[np.ndarray, "_ _"], size: tuple[int, int], seed: int) -> np.ndarray:
    """Every pixel of a picture once, the map's highest first; ties, as in a flat map, in random order.

    Args:
        values: a map of any grid, upsampled bilinearly.
        size: height and width of the picture.
        seed: of the ties.
    """
    large = (values if values.shape == size else enlarge(values, *size)).ravel()
    tied = np.random.default_rng(seed).random(large.size)
    return np.lexsort((tied, -large))


def areas(classify: Classify, pixels: Pixels, number: int, ranked: Sequence[int] | np.ndarray, steps: int) -> Areas:
    """Areas under both curves, by the trapezoidal rule over steps of equally many pixels.

    Deleted pixels take the training pictures' mean colour (zero in the backbone's scale), as RISE has it.

    Args:
        classify: probabilities of pixels.
        pixels: the picture in the backbone's scale.
        number: of the class.
        ranked: every pixel, in the order in which it leaves or comes.
        steps: by which the picture is emptied or filled.
    """
    ranks = np.empty(len(ranked), dtype=np.int64)
    ranks[np.asarray(ranked)] = np.arange(len(ranked))
    taken = torch.from_numpy(ranks).reshape(pixels.shape[1:])
    ends = np.linspace(0, len(ranked), steps + 1).round().astype(np.int64).tolist()
    gone = torch.stack([taken < end for end in ends])[:, None]
    empty, blurred = torch.zeros_like(pixels), gaussian_blur(pixels, [BLUR, BLUR], [SIGMA, SIGMA])
    curves = [
        classify(torch.where(gone, inside, outside))[:, number].double()
        for inside, outside in ((empty, pixels), (pixels, blurred))
    ]
    deletion, insertion = (float(torch.trapezoid(curve, torch.tensor(ends)) / len(ranked)) for curve in curves)
    return Areas(deletion, insertion)
