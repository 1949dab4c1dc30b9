"""A trained translator as a folder to hand on: weights, configuration, model card; nothing in it runs code."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from devil_pipe.stages.common.files import expanded, sha256_file, write_json, write_text_atomic
from devil_pipe.stages.common.progress import warn
from devil_pipe.stages.train.checkpoint import Card, load, load_weights, read_card
from devil_pipe.stages.train.model_card import About, model_card
from devil_pipe.stages.train.translator import Translator, trainable_parameters
from devil_pipe.store.errors import InputError, UsageError
from devil_pipe.store.place import plain_file

FORMAT, FORMAT_VERSION = "devil-pipe translator", 1
WEIGHTS, CONFIG, README = "translator.safetensors", "config.json", "README.md"
_ON_HUB = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def export(run_dir: Path, target: Path, about: About, *, force: bool = False) -> None:
    """Write the translator of a finished run as a folder of three files, all of them or none.

    Args:
        run_dir: runs/RUN, trained, and evaluated if the card is to have figures.
        target: the folder to make; an empty one may be there.
        about: what only the exporter knows.
        force: replace an exported translator that lies there.

    Raises:
        InputError: nothing trained, or figures of another training.
        UsageError: something lies at the target.
    """
    translator, card = load(run_dir / "checkpoint")
    metrics = _metrics(run_dir, card)
    card = _without_paths(card)
    with _new_folder(target, force=force) as folder:
        shutil.copyfile(run_dir / "checkpoint" / WEIGHTS, folder / WEIGHTS)
        weights = {"sha256": sha256_file(folder / WEIGHTS), "size": (folder / WEIGHTS).stat().st_size}
        made_by = f"devil-pipe {version('devil-pipe')}"
        config = {"format": FORMAT, "format_version": FORMAT_VERSION, "made_by": made_by, "weights": weights}
        write_json(folder / CONFIG, config | {"card": card.as_dict()})
        parameters = trainable_parameters(translator.requires_grad_(True))
        text = model_card(card, parameters, _captions(run_dir), metrics, about)
        write_text_atomic(folder / README, text)


def from_pretrained(source: str | Path, revision: str | None = None) -> tuple[Translator, Card]:
    """Read an exported translator from a folder or from the Hugging Face hub, in eval mode and frozen.

    Args:
        source: a folder, or a name on the hub such as `owner/name`.
        revision: branch, tag or commit on the hub.

    Raises:
        InputError: not there, damaged, or something else than an exported translator.
    """
    folder = _folder(str(source), revision)
    config = _read_config(folder)
    card = read_card(config["card"], folder / CONFIG)
    path = folder / WEIGHTS
    if not path.is_file():
        raise InputError(f"{path}: expected the translator's weights, found none; copy or download the folder again")
    found = {"sha256": sha256_file(path), "size": path.stat().st_size}
    if found != config["weights"]:
        raise InputError(
            f"{path}: expected the file that {CONFIG} names ({_told(config['weights'])}), got {_told(found)}; "
            "it is damaged or of another export: copy or download the folder again"
        )
    return load_weights(path, card, folder / CONFIG), card


def _told(weights: dict[str, Any]) -> str:
    return f"{weights['size']} bytes, SHA-256 {weights['sha256']}"


def _folder(source: str, revision: str | None) -> Path:
    path = expanded(source)
    if path.is_dir():
        return path
    if path.exists() or not _ON_HUB.fullmatch(source):
        raise InputError(f"{source}: expected the folder of an exported translator, or a name on the hub (owner/name)")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(source, revision=revision, allow_patterns=[WEIGHTS, CONFIG, README]))
    except Exception as error:
        # Hub clients fail in many ways without a network, a login or such a name; the remedies are the same.
        reason = str(error).strip().splitlines()[0][:160] if str(error).strip() else type(error).__name__
        raise InputError(
            f"{source}: no such folder, and it cannot be fetched from the model hub ({reason}); "
            "expected the folder of an exported translator, or a name on the hub and a network"
        ) from error


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    try:
        config = json.loads(plain_file(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        hint = ""
        if (folder / "config.yaml").exists():
            hint = "; this is a run's checkpoint: `devil-pipe export RUN DIR` makes a translator to share of it"
        raise InputError(f"{path}: expected an exported translator, found none{hint}") from None
    except InputError:
        raise
    except (ValueError, RecursionError) as error:  # no JSON, or no UTF-8
        raise InputError(f"{path}: expected JSON: {error}; copy or download the folder again") from error
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise InputError(f"{path}: expected format {FORMAT!r}; it belongs to another kind of model")
    if config.get("format_version") != FORMAT_VERSION:
        raise InputError(
            f"{path}: expected format_version {FORMAT_VERSION}, got {config.get('format_version')!r} "
            f"(written by {config.get('made_by')}); a newer devil-pipe may read it"
        )
    weights = config.get("weights")
    if not isinstance(weights, dict) or set(weights) != {"sha256", "size"} or "card" not in config:
        raise InputError(f"{path}: expected the keys card, weights.sha256 and weights.size; it was changed by hand")
    return config


def _captions(run_dir: Path) -> dict[str, int]:
    """How many captions of each split training used; nothing where its summary is gone."""
    try:
        summary = json.loads((run_dir / "train" / "summary.json").read_text(encoding="utf-8"))
        return {str(split): int(count) for split, count in summary["captions"].items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}


def _metrics(run_dir: Path, card: Card) -> dict[str, Any] | None:
    """What evaluation found, if it was run on this very training."""
    path = run_dir / "evaluate" / "metrics.json"
    if not path.exists():
        warn(f"{run_dir}: not evaluated; the model card will say so (`devil-pipe evaluate` fills it)")
        return None
    try:
        metrics = json.loads(path.read_text(encoding="utf-8"))
        trained, evaluated = (card.store.digest, card.seed), (metrics["store_identity"], metrics["seed"])
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f"{path}: expected what `devil-pipe evaluate` writes: {error!r}; run it again") from error
    if trained != evaluated:
        raise InputError(
            f"{path}: expected figures of this training (store {trained[0][:12]}, seed {trained[1]}), "
            f"got those of store {evaluated[0][:12]}, seed {evaluated[1]}; run `devil-pipe evaluate` again"
        )
    if path.stat().st_mtime < (run_dir / "checkpoint" / WEIGHTS).stat().st_mtime:
        raise InputError(f"{path}: is older than the checkpoint; run `devil-pipe evaluate` again, or remove it")
    return dict(metrics)


def _without_paths(card: Card) -> Card:
    """The card as others may read it: a language model in a folder goes by the folder's name."""
    path = expanded(card.language_model)
    if not (path.exists() or path.is_absolute() or path.suffix == ".gguf"):
        return card
    warn(
        f"the language model is a folder of this machine: whoever takes the translator has to have {path.name} too, "
        "and names it with --language-model"
    )
    return dataclasses.replace(card, language_model=path.name)


@contextmanager
def _new_folder(target: Path, *, force: bool) -> Iterator[Path]:
    """Give an empty folder beside `target`, which takes its place on success alone."""
    if target.exists() and not target.is_dir():
        raise UsageError(f"{target}: expected a folder that is still to be made, got a file")
    there = sorted(item.name for item in target.iterdir()) if target.is_dir() else []
    if there and not force:
        raise UsageError(f"{target}: expected a folder that is still to be made, or --force to replace the one there")
    if foreign := sorted(set(there) - {WEIGHTS, CONFIG, README}):
        raise UsageError(f"{target}: --force replaces an exported translator alone, and there is also {foreign[0]}")
    target.parent.mkdir(parents=True, exist_ok=True)
    home = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    try:
        (new := home / "new").mkdir()
        yield new
        if target.exists():
            target.rename(home / "old")
        try:
            new.rename(target)
        except OSError:
            if (home / "old").exists():
                (home / "old").rename(target)
            raise
    finally:
        shutil.rmtree(home)
