"""The hub that models by name come from; asked with `--network` alone."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Iterator

from devil_pipe.pipeline.doctor.finding import Finding, Wish, note, ok

_PATIENCE = 15.0  # seconds


def hub(wish: Wish) -> Iterator[Finding]:
    """Whether the hub answers, or why it will not be asked."""
    if not wish.network:
        return
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        what = "the hub is not asked (HF_HUB_OFFLINE): models by name are taken from its cache alone"
        yield note("network.hub", what, "unset HF_HUB_OFFLINE")
        return
    address = constants.ENDPOINT
    try:
        with urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=_PATIENCE):
            pass
    except urllib.error.HTTPError:
        pass  # it answered
    except (OSError, ValueError) as error:
        advice = "behind a proxy set HTTPS_PROXY; without a network name folders in place of models (docs/training.md)"
        yield note("network.hub", f"{address} does not answer: {error}", advice=advice)
        return
    yield ok("network.hub", f"{address} answers")
