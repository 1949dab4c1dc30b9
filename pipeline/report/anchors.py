"""Addresses inside the page: each comes from what its row is, never from where it stands, so a link outlives a draw."""

from __future__ import annotations

import hashlib
import re


def anchor(kind: str, name: str) -> str:
    """`KIND-NAME`, where NAME holds letters, digits and `_.-` alone.

    In any other name the rest becomes "-", and the first eight digits of the name's SHA-256 follow, so that two
    names do not share an address.
    """
    plain = re.sub(r"[^A-Za-z0-9_.-]+", "-", name)
    if name and plain == name:
        return f"{kind}-{name}"
    return f"{kind}-{plain}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
