"""Tiny runs for the audit: one that sees, and one whose translator was trained on other pictures' features."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from devil_pipe.pipeline.config import Run
from devil_pipe.stages.audit.config import AuditConfig
from devil_pipe.stages.prepare.index import Row
from devil_pipe.stages.train import run as train_run
from devil_pipe.stages.train.loop import derangement

from .. import tiny
from .conftest import open_project

COUNT = 24
ASKED = ("controls", "round-trip", "pointing", "absent-words", "wrong-layer")
"""The checks that need features, an index with masks, and no backbone."""


def blind_project(root: Path) -> Path:
    """A project in which every picture that training sees has another one's caption."""
    real = tiny.pictures

    def permuted(folder: Path) -> list[Row]:
        rows = real(folder)
        places = [place for place, row in enumerate(rows) if row.split == "train"]
        captions = [rows[places[other]].captions for other in derangement(len(places), 0)]
        for place, given in zip(places, captions, strict=True):
            rows[place] = dataclasses.replace(rows[place], captions=given)
        return rows

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny, "pictures", permuted)
        return seeing_project(root)


def seeing_project(root: Path) -> Path:
    """A tiny project whose run is trained for longer than other tests need: its words must find their picture."""
    train = tiny.run_values(root)["train"]
    warmup = {**train["warmup"], "phase": {**train["warmup"]["phase"], "steps": 160}}
    return tiny.project(root, {tiny.NAME: tiny.run_values(root, warmup=warmup, phase={**train["phase"], "steps": 80})})


def trained_project(root: Path, *, blind: bool = False) -> Run:
    """A project of its own whose run is trained; it has 24 test pictures with features, so that intervals are short."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny, "SPLITS", {**tiny.SPLITS, "test": COUNT + 1})
        (blind_project if blind else seeing_project)(root)
    opened = open_project(root)
    train_run.run(opened.train)
    return opened


def audit_config(opened: Run, out: Path, **values: Any) -> AuditConfig:
    """The audit of a tiny run: all test pictures that have features."""
    given = {"pictures": COUNT, "resamples": 200, "only": ASKED, "max_new_tokens": 10, "grid": 4}
    return AuditConfig(
        run=opened.name,
        runtime=opened.evaluate.runtime,
        store=opened.train.store,
        data_dir=opened.train.data_dir,
        run_dir=opened.train.out,
        out=out,
        **{**given, **values},
    )
