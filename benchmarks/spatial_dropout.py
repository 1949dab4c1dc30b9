"""Spatial dropout and mean of a batch of float16 maps: one embedding_bag beside a loop over pictures."""

from __future__ import annotations

import torch
from _measure import interleaved, report

from devil_pipe.stages.train.dropout import draw, masked_mean

BATCH, ROUNDS = 64, 9
SHAPES = ((784, 512), (196, 1024), (49, 2048))


def main() -> None:
    generator = torch.Generator().manual_seed(0)
    maps = [torch.randn(BATCH, *shape, generator=generator).half() for shape in SHAPES]
    keeps = [draw(BATCH, shape[0], 0.5, generator) for shape in SHAPES]
    pairs = list(zip(maps, keeps, strict=True))

    def loop() -> list[torch.Tensor]:
        return [
            torch.stack([one[kept].float().mean(dim=0) for one, kept in zip(item, keep, strict=True)])
            for item, keep in pairs
        ]

    def product() -> list[torch.Tensor]:
        return [
            torch.bmm((keep / keep.sum(dim=1, keepdim=True)).half().unsqueeze(1), item).squeeze(1)
            for item, keep in pairs
        ]

    ways = {
        "loop over pictures": loop,
        "batched matrix product": product,
        "embedding_bag": lambda: [masked_mean(item, keep) for item, keep in pairs],
    }
    seconds = interleaved(ways, ROUNDS)
    report("spatial_dropout", seconds, "loop over pictures", BATCH, "pictures", shapes=SHAPES, seed=0)


if __name__ == "__main__":
    main()
