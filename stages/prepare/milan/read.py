"""MILANNOTATIONS as a source of the prepare stage: a row for each unit of one experiment."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from devil_pipe.stages.common.files import sha256_json
from devil_pipe.stages.common.progress import bar, log
from devil_pipe.stages.prepare.index import Row
from devil_pipe.stages.prepare.milan.archive import open_archive
from devil_pipe.stages.prepare.milan.config import MilanConfig
from devil_pipe.stages.prepare.milan.experiments import EXPERIMENTS, Experiment, file_stem
from devil_pipe.stages.prepare.milan.pictures import SourcePictures
from devil_pipe.stages.prepare.milan.published import Published
from devil_pipe.stages.prepare.milan.splits import draw, within
from devil_pipe.stages.prepare.milan.units import ENDING, UnitsFile, open_units
from devil_pipe.stages.prepare.sources import Found, cores, stored_path
from devil_pipe.store.errors import InputError

_DEAD = 600  # seconds without a write, after which a partial file is a killed run's


def read_milan(config: MilanConfig, seed: int, out: Path, workers: int) -> Found:
    """Index the units of an experiment's sets; sets that are not there as HDF5 files yet are made from their zips.

    Raises:
        InputError: a zip that is missing or not as published, source pictures that are missing, or a split file that
            does not fit.
    """
    experiment = EXPERIMENTS[config.experiment]
    files = {name: ensure(config, name, workers) for name in experiment.sets}
    splits = _splits(config, experiment, files, seed)
    rows = [
        Row(
            key=key,
            path=stored_path(found.path, out),
            offset=number,
            size=found.exemplars,
            captions=unit.captions,
            split=splits[key],
            width=found.width,
            height=found.height,
        )
        for found in files.values()
        for number, (key, unit) in enumerate(zip(found.keys(), found.units, strict=True))
    ]
    return Found(rows, _notes(config, experiment, files))


def ensure(config: MilanConfig, name: str, workers: int) -> UnitsFile:
    """A set's HDF5 file, made now unless the same one is there.

    Its name carries a digest of the zip and of the source pictures, so that another content is another file, and an
    index never points to pictures that changed. Where the zip is gone, the file that was made of it is enough.

    Raises:
        InputError: see `read_milan`.
    """
    stem, zipped = file_stem(name), config.zips / f"{file_stem(name)}.zip"
    if not zipped.exists():
        made = sorted(config.units.glob(f"{stem}-????????{ENDING}"))
        if len(made) == 1:
            log(f"{name}: no {zipped}; taking {made[0]}, which was made of it")
            return open_units(made[0])
    source = getattr(config, name.partition("/")[2])
    pictures = SourcePictures(source, name.partition("/")[2], config.fit)
    with open_archive(zipped, name) as archive:
        published = Published(archive, pictures)
        path = config.units / f"{stem}-{sha256_json(published.source)[:8]}{ENDING}"
        if not path.exists():
            _sweep(config.units, stem)
            config.units.mkdir(parents=True, exist_ok=True)
            with bar(f"reading {name}", len(published.annotated.units), "units") as shown:
                published.write(path, workers or cores(), shown.advance)
            _tell(published, path)
    return open_units(path)


def _splits(config: MilanConfig, experiment: Experiment, files: dict[str, UnitsFile], seed: int) -> dict[str, str]:
    """Key → split. The validation part is drawn from the training units of each set."""
    splits: dict[str, str] = {}
    for name, found in files.items():
        keys = found.keys()
        test = set(keys) if name in experiment.test else set()
        if experiment.within:
            test = within(found, config.held_out, seed, config.splits)
        train = [key for key in keys if key not in test]
        val = draw(train, config.validation, seed, "val") if train else set()
        if name in experiment.train and len(val) == len(train):
            raise InputError(
                f"{found.path}: expected units to train on beside {len(test)} for test and {len(val)} for val, "
                f"got {len(keys)} in all"
            )
        splits |= {key: "test" if key in test else "val" if key in val else "train" for key in keys}
    return splits


def _notes(config: MilanConfig, experiment: Experiment, files: dict[str, UnitsFile]) -> dict[str, Any]:
    """What summary.json tells beside the counts."""
    return {
        "experiment": {"name": config.experiment, "kind": experiment.kind}
        | {"train": list(experiment.train), "test": list(experiment.test)},
        "sets": {name: {"units": len(found.units), "file": found.path.name} for name, found in files.items()},
        "held_out_by": config.splits.name if config.splits else "seed" if experiment.within else "set",
    }


def _tell(published: Published, path: Path) -> None:
    annotated = published.annotated
    left = {"with_fewer_annotations": annotated.with_fewer, "spare_annotations": annotated.spare}
    log(f"{len(annotated.units)} units in {path}", **{name: count for name, count in left.items() if count})
    older = [other.name for other in path.parent.glob(f"{path.name[:-11]}????????{ENDING}") if other != path]
    if older:
        log(f"made of other zips or pictures, and not used by this: {', '.join(sorted(older))} in {path.parent}")


def _sweep(folder: Path, stem: str) -> None:
    """Remove what a killed run left half written."""
    for partial in folder.glob(f".{stem}-*.partial"):
        with suppress(OSError):
            if time.time() - partial.stat().st_mtime > _DEAD:
                partial.unlink()
